"""The report type. `report.json` is this type as JSON; every other format is rendered from it.

Light: reading a report and judging it again imports neither numpy nor onnx.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lepton_cli.measure.results import Accuracy, EnergyTable, Environment, LatencyTable, Memory, Size, Skipped
from lepton_cli.step import Decision

FORMAT_VERSION = "1.0"


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

    role: Literal["calibration", "evaluation", "check"]
    path: str
    samples: int
    fingerprint: str
    labelled: bool


class RecipeFacts(ReportPart):
    """The recipe as it was run: `resolved` holds every option, defaults included."""

    name: str
    path: str | None
    sha256: str
    resolved: dict[str, Any]


class StepRecord(ReportPart):
    """What one step did."""

    index: int
    step: str
    changed: int
    seconds: float
    summary: str
    decisions: tuple[Decision, ...] = ()
    details: dict[str, Any] = {}
    warnings: tuple[str, ...] = ()
    #: File bytes (serialised model) after the step.
    size_after: int | None = None


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
    #: `provider`, `batch`, `output` where the gate names them.
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
    steps: tuple[StepRecord, ...] = ()
    #: `original` first.
    variants: tuple[Variant, ...] = ()
    accuracy: Accuracy | None = None
    latency: LatencyTable | None = None
    energy: EnergyTable | None = None
    skipped: tuple[Skipped, ...] = ()
    cost: dict[str, Any] = {}
    gates: tuple[Verdict, ...] = ()
    warnings: tuple[str, ...] = ()
    error: dict[str, Any] | None = None
    reproduce: str = ""
    seconds: float = 0.0
    #: Further sections of other commands (graph diff of `compare`, front of `tune`).
    extra: dict[str, Any] = {}

    def variant(self, name: str) -> Variant | None:
        """The variant of that name."""
        return next((variant for variant in self.variants if variant.name == name), None)
