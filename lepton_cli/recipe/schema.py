"""The typed recipe. Options of steps live with the steps, those of data and measurement with `data/` and `measure/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lepton_cli import metrics
from lepton_cli.data.spec import DataSection
from lepton_cli.measure.spec import EvaluateSpec
from lepton_cli.recipe.limits import Limit, parse_limit
from lepton_cli.recipe.tuning import Objective, ObjectiveField, Space, TuneBudget
from lepton_cli.step import Options
from lepton_cli.steps import STEPS
from lepton_cli.values import Strict

if TYPE_CHECKING:
    StepParams = Options
else:
    #: Any step's options, told apart by their `step`: made from the table, so that a new step is one line there.
    StepParams = Annotated[Union[tuple(step.options for step in STEPS.values())], Field(discriminator="step")]  # noqa: UP007

COMPARISONS = ("max", "min", "max_ratio", "min_ratio", "max_drop", "max_increase")


def _known_metric(name: str) -> str:
    if metrics.find(name) is None:
        raise PydanticCustomError("unknown_metric", "there is no metric of this name")
    return name


def _wrong_key(sentence: str) -> PydanticCustomError:
    """An error about a key that does not fit the gate's metric."""
    return PydanticCustomError("wrong_key", "{sentence}", {"sentence": sentence})


def _limit(value: object, info: ValidationInfo) -> Limit | None:
    """Read a limit in the unit of the gate's metric. An unknown metric has an error of its own already."""
    metric = metrics.find(info.data.get("metric", ""))
    if value is None or metric is None:
        return None
    # Of the recipe's own function `evaluate` says which way is better: see `recipe.judgeable`.
    if info.field_name == "max_drop" and metric.better == "lower":
        raise _wrong_key(f"lower is better for `{metric.name}`, so write `max_increase`")
    if info.field_name == "max_increase" and metric.better == "higher" and metric.name != metrics.OWN:
        raise _wrong_key(f"higher is better for `{metric.name}`, so write `max_drop`")
    return parse_limit(metric, info.field_name or "", value)


def _scope(value: object, info: ValidationInfo) -> object:
    metric = metrics.find(info.data.get("metric", ""))
    if value is not None and metric is not None and info.field_name not in metric.scope:
        takes = (
            " and ".join(f"`{key}`" for key in metric.scope) or "neither `provider` nor `batch`, `threads`, `output`"
        )
        raise _wrong_key(f"a gate on `{metric.name}` takes {takes}")
    return value


MetricName = Annotated[
    str,
    AfterValidator(_known_metric),
    WithJsonSchema({"anyOf": [{"enum": list(metrics.METRICS)}, {"type": "string", "pattern": metrics.TOP_K.pattern}]}),
]
#: A float in base units (bytes, seconds, shares), read in the unit of the gate's metric.
LimitField = Annotated[
    Limit | None,
    PlainValidator(_limit, json_schema_input_type=float | str | None),
    PlainSerializer(lambda limit: None if limit is None else limit.text, return_type=str | None),
]
_Scope = BeforeValidator(_scope)


class Gate(Strict):
    """A limit on one metric. Exactly one of the comparisons below is given.

    `max`/`min` are absolute (`1 MB`, `20 ms`, `90 %`, `300 k`); `max_ratio`/`min_ratio` compare with the original or
    the baseline (0.6: at most 60 %); `max_drop` is for metrics where higher is better, `max_increase` for those
    where lower is better (`0.5 pp` for accuracies, `100 kB` for sizes).
    """

    metric: MetricName = Field(description="What is limited: `size.file`, `accuracy.top1`, `latency.median`, …")
    max: LimitField = Field(default=None, description="At most this much")
    min: LimitField = Field(default=None, description="At least this much")
    max_ratio: LimitField = Field(default=None, description="At most this share of the original: `0.6` or `60 %`")
    min_ratio: LimitField = Field(default=None, description="At least this share of the original")
    max_drop: LimitField = Field(default=None, description="May fall by this much: `0.5 pp`")
    max_increase: LimitField = Field(default=None, description="May grow by this much: `100 kB`, `2 ms`")
    against: Literal["original", "baseline"] = Field(
        default="original", description="What ratios and differences compare with"
    )
    provider: Annotated[str | None, _Scope] = Field(default=None, description="Only this provider (latency)")
    batch: Annotated[int | None, Field(ge=1), _Scope] = Field(
        default=None, description="Only this batch size (latency)"
    )
    threads: Annotated[int | None, Field(ge=1), _Scope] = Field(
        default=None, description="Only this number of threads (latency)"
    )
    output: Annotated[str | None, _Scope] = Field(default=None, description="Only this model output (accuracy)")
    level: Literal["error", "warn"] = Field(default="error", description="`warn` is reported and fails nothing")

    @model_validator(mode="after")
    def _one_comparison(self) -> Gate:
        given = [name for name in COMPARISONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(COMPARISONS)}" + (f", not {' and '.join(given)}" if given else "")
            )
        return self

    @property
    def scope(self) -> dict[str, str | int]:
        """What of `metrics.SCOPE` is given: which of several values of the metric it judges."""
        return {key: value for key in metrics.SCOPE if (value := getattr(self, key)) is not None}

    @property
    def comparison(self) -> str:
        """Which of `COMPARISONS` is given."""
        return next(name for name in COMPARISONS if getattr(self, name) is not None)

    @property
    def limit(self) -> Limit:
        """The limit that is given."""
        value = getattr(self, self.comparison)
        assert isinstance(value, Limit)
        return value


def _not_bool(value: object) -> object:
    return str(value) if isinstance(value, bool) else value


Version = Annotated[Literal[1], BeforeValidator(_not_bool)]


class OutputSection(Strict):
    """What is written beside the model."""

    reports: tuple[Literal["json", "md", "html", "junit"], ...] = ("json", "md", "html")


class Budget(Strict):
    """A budget file for `lepton gate`: the gates of a recipe, alone."""

    version: Version
    gates: tuple[Gate, ...] = Field(min_length=1)


class TuneSection(Strict):
    """What `lepton tune` searches for: the best model under the limits."""

    limits: tuple[Gate, ...] = Field(
        default=(), description="What a candidate must hold, written like gates; default: the recipe's gates"
    )
    minimize: ObjectiveField | None = Field(
        default=None, description="What is made small: `latency.median`, `size.file`, `cost`, …"
    )
    maximize: ObjectiveField | None = Field(
        default=None, description="What is made large: `accuracy.top1`, `throughput`, …"
    )
    space: Space = Space()
    budget: TuneBudget = TuneBudget()
    storage: str | None = Field(
        default=None, description="Shared by several machines: an Optuna journal file or database URL (extra `tune`)"
    )

    @model_validator(mode="after")
    def _right_way(self) -> TuneSection:
        for key, better in (("minimize", "lower"), ("maximize", "higher")):
            goal = getattr(self, key)
            metric = metrics.find(goal.metric) if goal else None
            if metric is not None and metric.better != better and metric.name != metrics.OWN:
                other = "maximize" if key == "minimize" else "minimize"
                raise ValueError(f"{metric.better} is better for `{metric.name}`, so write `{other}`")
        return self

    @property
    def goal(self) -> Objective:
        """What decides between candidates that hold the limits."""
        return self.minimize or self.maximize or Objective(metric="latency.median")


def _steps_or_tune(schema: dict[str, Any]) -> None:
    """JSON Schema: `steps` may be left out where `tune` is there."""
    schema["required"] = [name for name in schema["required"] if name != "steps"]
    schema["anyOf"] = [{"required": ["steps"]}, {"required": ["tune"]}]


class Recipe(Strict):
    """How a model is compressed, measured and judged."""

    model_config = ConfigDict(json_schema_extra=_steps_or_tune)

    version: Version
    name: str = Field(
        default="",
        max_length=100,
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Names the result file: letters, digits, `.`, `_`, `-`",
    )
    seed: int = Field(default=0, ge=0, lt=2**32)
    data: DataSection = DataSection()
    steps: tuple[StepParams, ...] = Field(
        min_length=1, description="What is done, in order; may be left out with `tune:`, which tries them first"
    )
    evaluate: EvaluateSpec = EvaluateSpec()
    gates: tuple[Gate, ...] = ()
    output: OutputSection = OutputSection()
    tune: TuneSection | None = Field(default=None, description="What `lepton tune` searches for")

    @model_validator(mode="before")
    @classmethod
    def _tuned_steps(cls, data: object) -> object:
        """A recipe to tune needs no steps of its own: the search begins with the model cleaned up."""
        if isinstance(data, dict) and data.get("tune") is not None and "steps" not in data:
            return {**data, "steps": ({"step": "simplify"},)}
        return data

    @field_validator("steps")
    @classmethod
    def _know_each_other(cls, steps: tuple[Options, ...]) -> tuple[Options, ...]:
        """What a step leaves to those behind it is decided here, so that the recipe as it was run says it."""
        return tuple(step.knowing(steps[index + 1 :]) for index, step in enumerate(steps))

    @property
    def only_tunes(self) -> bool:
        """Whether it says what to search for and nothing to do."""
        return self.tune is not None and [step.step for step in self.steps] == ["simplify"]
