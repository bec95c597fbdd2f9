"""The `evaluate:` part of a recipe: what to measure and how precisely. Light: no numpy here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lepton_cli import metrics, units
from lepton_cli.values import Duration, Number, Percent, Strict

if TYPE_CHECKING:
    Measurable = str
else:
    #: The words of the table, so that schema and error messages list them.
    Measurable = Literal[tuple(metrics.MEASURABLE)]


#: Options that are an error with any other metric, where they would change nothing and seem to.
_ONLY_FOR = {
    "better": ("python",),
    "ignore_index": ("miou", "dice", "perplexity"),
    "peak": ("psnr", "ssim"),
    "alphabet": ("cer", "wer", "exact"),
    "blank": ("cer", "wer", "exact"),
}


class AccuracySpec(Strict):
    """One accuracy metric. Agreement with the original and fidelity are always measured besides."""

    metric: Measurable = Field(description="What is computed from outputs and labels")
    k: int = Field(default=5, ge=1, description="For `topk`: how many guesses count")
    average: Literal["macro", "micro", "binary"] = Field(
        default="macro", description="For `f1`, `miou`, `dice`: mean of the classes, all together, or class 1 alone"
    )
    ignore_index: int | None = Field(
        default=None, description="For `miou`, `dice`, `perplexity`: labels that do not count (-100 never is a token)"
    )
    peak: Annotated[Number, Field(gt=0)] = Field(
        default=1.0, description="For `psnr`, `ssim`: the range that values can have, 255 for bytes"
    )
    alphabet: str | None = Field(
        default=None,
        description="For `cer`, `wer`, `exact` of token ids or CTC scores: a file with one symbol a line",
    )
    blank: int | str | None = Field(
        default=None, description="With `alphabet`: the class that stands for nothing, or its symbol; of CTC the first"
    )
    output: str | None = Field(default=None, description="Model output; the first one when left out")
    labels: str | None = Field(default=None, description="Label array or column for this output")
    weight: float = Field(default=1.0, gt=0, description="Weight in the combined score of several metrics")
    function: str | None = Field(default=None, description="For `python`: `file.py:function` (needs --allow-code)")
    better: Literal["higher", "lower"] = Field(
        default="higher", description="For `python`: which of the function's values are better"
    )

    @model_validator(mode="after")
    def _fitting(self) -> AccuracySpec:
        for option, takers in _ONLY_FOR.items():
            if getattr(self, option) != type(self).model_fields[option].default and self.metric not in takers:
                listed = ", ".join(f"`{metric}`" for metric in takers)
                raise ValueError(f"`{option}` is for {listed}, and `{self.metric}` takes none")
        if self.blank is not None and self.alphabet is None:
            raise ValueError("`blank` goes with `alphabet`")
        return self

    @property
    def about(self) -> metrics.Metric:
        """The metric's row in the table; `topk` with its own k, the recipe's own function with its direction."""
        short = f"top{self.k}" if self.metric == "topk" else self.metric
        return metrics.accuracy(short, lower=self.better == "lower")


class ProviderSpec(Strict):
    """An execution provider to measure on."""

    name: str = Field(description="`cpu`, `cuda`, or an onnxruntime provider name")
    optional: bool = Field(default=False, description="Skip with a notice where the provider is not there")


def _provider(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _several(value: object) -> object:
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


def _each_once(values: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(values))


Provider = Annotated[ProviderSpec, BeforeValidator(_provider, json_schema_input_type=str | ProviderSpec)]
#: onnxruntime starts as many as it is told: a million of them took 19 GB and then the process.
MAX_THREADS = 1024
PositiveInt = Annotated[int, Field(ge=1)]
Batches = Annotated[
    tuple[PositiveInt, ...],
    BeforeValidator(_several, json_schema_input_type=int | tuple[PositiveInt, ...]),
    AfterValidator(_each_once),
]
ThreadCount = Annotated[int, Field(ge=1, le=MAX_THREADS)]
ThreadCounts = Annotated[
    tuple[ThreadCount, ...],
    BeforeValidator(_several, json_schema_input_type=int | tuple[ThreadCount, ...]),
    AfterValidator(_each_once),
]


class LatencySpec(Strict):
    """Latency measurement: original and result interleaved, on every provider, batch size and number of threads."""

    providers: tuple[Provider, ...] = Field(default=(ProviderSpec(name="cpu"),), min_length=1)
    batch: Batches = Field(default=(1,), description="Batch sizes, all measured")
    threads: ThreadCounts = Field(
        default=(),
        description="Threads per session, all measured; steps decide for the first; default: the usable cores",
    )
    precision: Percent = Field(default=units.Share(0.02), description="Half-width of the interval to stop at")
    time: Duration = Field(
        default=units.Seconds(10.0), description="Longest time for one provider, batch size and number of threads"
    )


class CostSpec(Strict):
    """What a machine costs, to turn throughput into money."""

    per_hour: str = Field(pattern=r"^[0-9]+(\.[0-9]+)? [A-Z]{3}$", description="For example `0.40 USD`")


class EvaluateSpec(Strict):
    """What is measured. A part left out takes its defaults; `latency: false` leaves it out."""

    accuracy: Annotated[
        tuple[AccuracySpec, ...],
        BeforeValidator(
            lambda value: (value,) if isinstance(value, (dict, AccuracySpec)) else value,
            json_schema_input_type=AccuracySpec | tuple[AccuracySpec, ...],
        ),
    ] = Field(default=(), description="Metrics; empty: top1 where labels look like classes")
    latency: LatencySpec | Literal[False] = LatencySpec()
    memory: bool = Field(default=True, description="Peak memory of each model in a process of its own")
    energy: bool | Literal["auto"] = Field(
        default="auto", description="Joules per inference (RAPL, NVML); `auto`: where this machine lets us read them"
    )
    cost: CostSpec | None = None

    def directions(self, metric: str, output: str | None = None) -> set[str]:
        """Which way is better for a metric (of an output): as the recipe says of its own function, else the table's."""
        own = [spec.about for spec in self.accuracy if output is None or spec.output in (None, output)]
        return {about.better for about in own if about.name == metric} or {metrics.of(metric).better}
