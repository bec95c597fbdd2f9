"""The report type. `report.json` is this type as JSON; every other format is rendered from it.

Light: reading a report and judging it again imports neither numpy nor onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import BaseModel, ConfigDict, Discriminator, JsonValue, Tag, TypeAdapter, create_model, model_validator

from lepton_cli.graph.details import GraphDiff
from lepton_cli.measure.results import (
    Accuracy,
    Costs,
    EnergyTable,
    Environment,
    Fidelity,
    LatencyChange,
    LatencyTable,
    Memory,
    MetricChange,
    Size,
    Skipped,
)
from lepton_cli.quantize.details import QuantizeStaticDetails, QuantizeWeightsDetails, Sensitivity
from lepton_cli.report.trial import Band, Forecast, Trial, Value
from lepton_cli.step import Decision, Details, Step
from lepton_cli.steps import STEPS

FORMAT_VERSION = "1.2"


class ReportPart(BaseModel):
    """Base of the report's own types: frozen; keys added by a later minor version are kept out, not errors."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class FileFacts(ReportPart):
    """A model file: its path as given, content hash (file and external data), graph name."""

    path: str
    sha256: str
    name: str = ""


class DataFacts(ReportPart):
    """A data set that was used."""

    role: Literal["calibration", "evaluation", "training", "check"]
    path: str
    samples: int
    fingerprint: str
    labelled: bool


class RecipeFacts(ReportPart):
    """The recipe as it was run: `resolved` holds every option, defaults included."""

    name: str
    path: str | None
    sha256: str
    resolved: dict[str, JsonValue]


class StepRecord(ReportPart):
    """What one step did. `RECORDS` holds the kinds, each with the `details` of its step."""

    index: int
    step: str
    changed: int
    seconds: float
    summary: str
    #: Why a step that could have changed the model left it as it was: then `details` and the reasons of `decisions` say
    #: what it tried. Empty where it did not.
    left_because: str = ""
    decisions: tuple[Decision, ...] = ()
    details: Details = Details()
    warnings: tuple[str, ...] = ()
    #: File bytes (serialised model) after the step.
    size_after: int | None = None

    def without_lists(self) -> StepRecord:
        """Without decisions and details: what a short report holds of it."""
        return self.model_copy(update={"decisions": (), "details": type(self.details)()})


def _kind(name: str, step: Step) -> type[StepRecord]:
    return create_model(
        f"{step.options.__name__}Record",
        __base__=StepRecord,
        __doc__=f"What `{name}` did.",
        step=(Literal[name], ...),  # type: ignore[arg-type]
        details=(step.details, step.details()),
    )


#: The record of each step, by its name.
RECORDS = {name: _kind(name, step) for name, step in STEPS.items()}


def _tag(record: object) -> str:
    """The step that a record is of; a step that is not known has the plain record."""
    if isinstance(record, StepRecord):
        return record.step if type(record) is not StepRecord else ""
    name = record.get("step") if isinstance(record, dict) else None
    return name if isinstance(name, str) and name in RECORDS else ""


if TYPE_CHECKING:
    AnyRecord = StepRecord
else:
    _KINDS = [Annotated[kind, Tag(name)] for name, kind in {**RECORDS, "": StepRecord}.items()]
    AnyRecord = Annotated[Union[tuple(_KINDS)], Discriminator(_tag)]  # noqa: UP007

#: Reads the records of steps outside a report.
STEP_RECORDS: TypeAdapter[tuple[StepRecord, ...]] = TypeAdapter(tuple[AnyRecord, ...])


class Bought(ReportPart):
    """A model that a part of the steps made of the original, measured beside the result."""

    #: `after 1. simplify`, or what was left out: `without prune.channels`.
    name: str
    #: The steps behind it, numbered from 0.
    steps: tuple[int, ...]
    #: Bytes of its file.
    file: int
    #: Beside the original in the comparison that timed the result, on the first provider at the first batch size.
    latency: LatencyChange | None = None
    #: Paired differences from the original; none where it computes the same.
    changes: tuple[MetricChange, ...] = ()
    fidelity: tuple[Fidelity, ...] = ()


class Variant(ReportPart):
    """One model with what belongs to it alone. Accuracy and latency are in the tables, by variant name."""

    name: str
    file: FileFacts
    size: Size
    memory: Memory | None = None


VerdictWord = Literal["pass", "fail", "inconclusive", "skipped"]


class Verdict(ReportPart):
    """One judged gate. Only `fail` at level `error` turns into exit code 1."""

    metric: str
    #: `provider`, `batch`, `threads`, `output`: what tells it from others of its metric.
    scope: dict[str, str | int] = {}
    level: Literal["error", "warn"]
    #: The comparison in words: `max 1 MB`, `max_drop 0.5 pp`.
    limit: str
    verdict: VerdictWord
    #: What was found, in words with interval where there is one.
    observed: str
    #: By how much a failing value is beyond its limit.
    excess: str = ""
    reason: str = ""
    hint: str = ""
    #: `file:line` of the gate.
    where: str = ""


class Failure(ReportPart):
    """What ended a run early. `code` is a stable word for machines, `help` what to do."""

    code: str = ""
    message: str = ""
    where: str | None = None
    cause: str | None = None
    help: str | None = None


class Narrowed(ReportPart):
    """A metric of a search, and what narrows it down."""

    metric: str
    provider: str | None = None
    batch: int | None = None
    threads: int | None = None
    output: str | None = None


class Axis(Narrowed):
    """A side of the front. `kind`: `ratio` (times, as shares of the original's) or the kind of the metric's number."""

    higher_is_better: bool
    kind: str


class Axes(ReportPart):
    """What is made small, and what is kept."""

    cost: Axis
    quality: Axis


class Bound(Narrowed):
    """A limit of a search, at its position in `limits`.

    `limit`: what a drop, an increase, a ratio or the value itself is compared with. `at`: where it lies on the axis
    that shows its metric, as the axis counts; `None` where none does.
    """

    comparison: Literal["max", "min", "max_ratio", "min_ratio", "max_drop", "max_increase"]
    limit: float
    axis: Literal["", "cost", "quality"] = ""
    at: float | None = None


class Margin(ReportPart):
    """A limit and what a trial has of the number that it bounds.

    `limit`: its position. `room`: distance to the bound as a share of it, below 0 beyond it; `error`: half of the 95 %
    interval of `room`, 0 for what is counted and not measured.
    """

    limit: int
    found: Band
    room: float
    error: float = 0.0


class Nearest(ReportPart):
    """Where nothing holds all limits: the trial that comes nearest to this one of those that hold the others."""

    limit: int
    key: str
    text: str


class TrialRow(ReportPart):
    """A trial in short. Cost and quality are better when lower, times as ratios to the original."""

    key: str
    name: str
    origin: str = ""
    point: dict[str, Value] = {}
    steps: tuple[dict[str, JsonValue], ...] = ()
    reached: str
    reason: str = ""
    feasible: bool
    cost: float | None
    quality: float | None
    #: Bytes of the model; `None` where it was not made.
    file: int | None
    seconds: float
    front: bool
    #: Why the search chose it, what it expected, and how far it is from each limit.
    why: str = ""
    forecast: Forecast | None = None
    margins: tuple[Margin, ...] = ()


class Tune(ReportPart):
    """A search: its space, every trial in short, and the records that `--from` reads."""

    format: int = 1
    #: Hash of what trials have to have in common to be compared: model, data, measurements, seed.
    search: str
    seed: int
    #: Values tried by dimension; `dropped` says what was left out of it and why.
    space: dict[str, tuple[Value, ...]]
    dropped: tuple[str, ...] = ()
    #: Seconds of this process, and the share of them that was not spent on trials.
    seconds: float | None = None
    overhead: float | None = None
    goal: Narrowed
    limits: tuple[str, ...]
    bounds: tuple[Bound, ...] = ()
    axes: Axes
    #: Key of the trial whose model was written, and whether it holds the limits.
    best: str
    met: bool
    ended: str = ""
    nearest: tuple[Nearest, ...] = ()
    trials: tuple[TrialRow, ...]
    records: tuple[Trial, ...] = ()


class Report(ReportPart):
    """All of a run. `status` is the worst thing that happened; `headline` is the first line to show."""

    format_version: str = FORMAT_VERSION
    command: str
    status: Literal["ok", "gate_failed", "failed", "interrupted"]
    #: False while a run is unfinished or when it broke off: such a report says so first.
    complete: bool
    headline: str
    created: str
    environment: Environment
    recipe: RecipeFacts | None = None
    data: tuple[DataFacts, ...] = ()
    steps: tuple[AnyRecord, ...] = ()
    #: What each of several steps made, and what the others make without `prune.channels`.
    bought: tuple[Bought, ...] = ()
    #: `original` first.
    variants: tuple[Variant, ...] = ()
    accuracy: Accuracy | None = None
    latency: LatencyTable | None = None
    energy: EnergyTable | None = None
    skipped: tuple[Skipped, ...] = ()
    cost: Costs = None
    gates: tuple[Verdict, ...] = ()
    warnings: tuple[str, ...] = ()
    error: Failure | None = None
    reproduce: str = ""
    seconds: float = 0.0
    #: What differs between the graphs, of `compare`.
    diff: GraphDiff | None = None
    #: The search, of `tune`.
    tune: Tune | None = None

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, data: object) -> object:
        """Format 1.0 held `diff` and `tune` in a section `extra`."""
        if isinstance(data, dict) and isinstance(extra := data.get("extra"), dict):
            return {**{key: extra[key] for key in ("diff", "tune") if key in extra}, **data}
        return data

    @property
    def sensitivity(self) -> list[tuple[str, float, Sensitivity]]:
        """Nodes whose error a step measured alone, with their SQNR in decibels, the most sensitive first."""
        measured = (QuantizeStaticDetails, QuantizeWeightsDetails)
        rows = [row for step in self.steps if isinstance(step.details, measured) for row in step.details.sensitivity]
        found = [(row.node, row.sqnr_db, row) for row in rows if row.sqnr_db is not None]
        return sorted(found, key=lambda row: row[1])

    def variant(self, name: str) -> Variant | None:
        """The variant of that name."""
        return next((variant for variant in self.variants if variant.name == name), None)
