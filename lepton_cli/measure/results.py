"""What measurements return: plain frozen types that go into the report unchanged. Light: no numpy here.

Times are seconds, sizes bytes, accuracies and differences shares of 1. `low` and `high` bound a 95 % interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator

from lepton_cli.values import Strict


class Layer(Strict):
    """One weight-carrying node (or a stray tensor) of a model."""

    node: str
    op: str
    dtype: str
    parameters: int
    bytes: int
    macs: int | None
    #: Shape of the main weight, as stored.
    weight_shape: tuple[int, ...] = ()


class Size(Strict):
    """Size and structure of one model file."""

    #: The `.onnx` file and the external data it names, together.
    file: int
    external: int
    gzip: int
    parameters: int
    nonzeros: int
    #: Multiply-accumulates of one sample; `None` when shapes are unknown.
    macs: int | None
    nodes: int
    #: Bytes by tensor dtype.
    by_dtype: dict[str, int] = {}
    #: Bytes held twice (identical initializers).
    duplicated: int = 0
    layers: tuple[Layer, ...] = ()


class MetricValue(Strict):
    """One metric of one model."""

    metric: str
    output: str
    value: float
    low: float | None
    high: float | None
    n: int
    higher_is_better: bool = True


class MetricChange(Strict):
    """Paired difference, compressed minus original, on the same samples."""

    metric: str
    output: str
    original: float
    compressed: float
    difference: float
    low: float | None
    high: float | None
    n: int
    higher_is_better: bool = True
    #: `newcombe` (paired proportions) or `bootstrap`; empty: no interval.
    method: str = ""
    #: Which variant is compared with the original.
    variant: str = "compressed"


#: Classes of fewer samples are counted and not judged.
ENOUGH = 30
#: Adjusted p-values up to this are no chance.
SIGNIFICANT = 0.05
#: Points that a class has to lose beyond the whole before it is said first.
CLEARLY_WORSE = 0.02


class ClassChange(Strict):
    """Accuracy of one class, or of one group of samples, before and after, on the same samples.

    Too few samples are counted and not judged: no interval, no p.
    """

    label: str
    n: int
    original: float
    compressed: float
    output: str = ""
    #: Of a group: the column that has this value. Empty: of a class.
    column: str = ""
    #: Right before and wrong after, and the other way round; `None` in reports of earlier versions.
    lost: int | None = None
    won: int | None = None
    #: Of the change.
    low: float | None = None
    high: float | None = None
    #: McNemar's exact test, and the same by Holm's method among all classes that are judged.
    p: float | None = None
    p_adjusted: float | None = None

    @property
    def title(self) -> str:
        """What it is called: `class 3`, `region north`."""
        return f"{self.column or 'class'} {self.label}"

    @property
    def change(self) -> float:
        """Compressed minus original."""
        return self.compressed - self.original

    @property
    def significant(self) -> bool:
        """Whether it changed by more than chance makes one of so many classes change."""
        return self.p_adjusted is not None and self.p_adjusted <= SIGNIFICANT


class LossSpread(Strict):
    """How what one classification lost is spread over its classes, of which those with enough samples are judged.

    Or over the groups that one column makes.
    """

    output: str
    column: str = ""
    #: Compressed minus original, all samples together.
    change: float
    classes: int
    judged: int
    #: Samples of the largest class.
    largest: int
    #: The judged class that lost most, and an interval of the change of whichever really lost most.
    worst: ClassChange | None = None
    low: float | None = None
    high: float | None = None
    #: Of the worst class's accuracy after.
    compressed_low: float | None = None
    compressed_high: float | None = None
    #: Share of its samples that the class with most of them lost, over the share that all lost; 1: all lose alike.
    evenness: float | None = None
    evenness_low: float | None = None
    evenness_high: float | None = None

    def pays(self, one: ClassChange) -> bool:
        """Whether a class lost clearly more than the whole, and not by chance."""
        own = (one.output, one.column) == (self.output, self.column)
        return own and one.significant and one.change - self.change <= -CLEARLY_WORSE


class Flip(Strict):
    """A sample whose predicted class changed; `confidence` is the original's softmax probability."""

    sample: int
    label: str | None
    original: str
    compressed: str
    confidence: float


class Confusion(Strict):
    """Samples of one class that were taken for another, before and after."""

    label: str
    predicted: str
    original: int
    compressed: int


class FidelityPart(Strict):
    """How close the values of one kind are: `where`, as Python indexes the output."""

    where: str
    sqnr_db: float


class Fidelity(Strict):
    """How close one output is to the original's.

    `agreement`: share of the same decisions (classes, whole numbers); needs no labels. `None` where nothing is decided:
    pixels, boxes, embeddings.
    `sqnr_db`: -10 log10 of the mean over its parts of sum (ref - out)² / sum ref²; `None` for identical or non-float
    outputs.
    """

    output: str
    agreement: float | None
    agreement_low: float | None
    agreement_high: float | None
    sqnr_db: float | None
    max_abs_error: float
    n: int
    #: Mean cosine of each sample's output with the original's; `None` for outputs that are not float.
    cosine: float | None = None
    #: Parts with ranges of their own (boxes, scores); none where the whole output is of one kind.
    parts: tuple[FidelityPart, ...] = ()
    variant: str = "compressed"


class Accuracy(Strict):
    """Everything measured about what two (or more) models compute."""

    #: Metric values by variant name.
    values: dict[str, tuple[MetricValue, ...]] = {}
    changes: tuple[MetricChange, ...] = ()
    fidelity: tuple[Fidelity, ...] = ()
    #: Of every output that names classes, and how the loss spreads over them.
    classes: tuple[ClassChange, ...] = ()
    spread: tuple[LossSpread, ...] = ()
    #: Pairs of true and wrongly predicted class, the most changed first, 50 at most.
    confusions: tuple[Confusion, ...] = ()
    flips: tuple[Flip, ...] = ()
    flips_total: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def payers(self) -> tuple[ClassChange, ...]:
        """Classes that pay for the whole, the one that lost most first."""
        found = [one for spread in self.spread for one in self.classes if spread.pays(one)]
        return tuple(sorted(found, key=lambda one: one.change))


class Setting(Strict):
    """On what, at which batch size and with how many threads something was measured."""

    provider: str
    batch: int
    threads: int

    @property
    def setting(self) -> tuple[str, int, int]:
        """All three: measurements with the same ones are compared."""
        return self.provider, self.batch, self.threads


class Latency(Setting):
    """Latency of one variant on one provider at one batch size, in seconds per run (not per sample)."""

    variant: str
    #: Of the bursts in which nothing else slowed the machine, and their share of all.
    median: float
    low: float
    high: float
    undisturbed: float = 1.0
    #: Percentiles of all runs are given only where their number supports them.
    p90: float | None = None
    p99: float | None = None
    n: int
    #: Samples per second at this batch size.
    throughput: float
    #: On CUDA: time on the device alone, where it can be told apart.
    device_median: float | None = None
    #: Up to 200 of the raw times, evenly taken, for drawing.
    times: tuple[float, ...] = ()
    #: Nodes by the provider that really ran them.
    placement: dict[str, int] = {}


class LatencyChange(Setting):
    """Median of paired ratios, compressed over original time; below 1 is faster."""

    original: float
    compressed: float
    ratio: float
    low: float
    high: float
    pairs: int
    #: Which variant is compared with the original, and in how many rounds: the interval rests on their spread.
    variant: str = "compressed"
    rounds: int = 0


class Skipped(Strict):
    """A measurement that was not made, and why."""

    what: str
    reason: str


class LatencyTable(Strict):
    """All latency results of a run."""

    results: tuple[Latency, ...] = ()
    changes: tuple[LatencyChange, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()


class Cost(Setting):
    """What a million samples cost for one variant, provider and batch size."""

    variant: str
    per_million: float


class CostTable(Strict):
    """Costs at the measured throughput; `per_hour` is the price of the whole machine."""

    per_hour: float
    currency: str
    entries: tuple[Cost, ...] = ()


#: Reports of format 1.0 hold an empty object where nothing was priced.
Costs = Annotated[CostTable | None, BeforeValidator(lambda found: found or None)]


class Memory(Strict):
    """Peak memory of loading and running one model in a process of its own, in bytes."""

    peak: int
    #: What loading and running added over an empty session process.
    added: int
    device: int | None = None


class Energy(Setting):
    """What one inference of one variant takes from the processor or device and its memory, in joules per sample."""

    variant: str
    #: All that the meter counted while the model ran, and the part of it above a machine at rest.
    joules: float
    low: float
    high: float
    above_idle: float
    #: Mean power while it ran, and of the machine at rest.
    watts: float
    idle_watts: float
    n: int


class EnergyChange(Setting):
    """Median of paired ratios, compressed over original energy; below 1 is less."""

    variant: str
    ratio: float
    low: float
    high: float


class EnergyTable(Strict):
    """All energy results of a run. `domains`: what the meter counts, by provider."""

    domains: Mapping[str, tuple[str, ...]] = {}
    results: tuple[Energy, ...] = ()
    changes: tuple[EnergyChange, ...] = ()


class Environment(Strict):
    """The machine and software a measurement was made on."""

    lepton: str
    python: str
    onnxruntime: str | None
    onnx: str | None
    system: str
    cpu: str
    instructions: tuple[str, ...]
    cores: int
    usable_cores: int
    memory: int
    providers: tuple[str, ...]
    warnings: tuple[str, ...] = ()
