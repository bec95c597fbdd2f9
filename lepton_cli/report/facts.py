"""Metrics by name, as a gate reads them from a report: `find(report, "latency.median", provider="cpu")`.

Always about the last variant (the compressed model). A fact knows its value with an interval where one was
measured, and how it stands to the original: ratio and difference, paired wherever both came from one run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from lepton_cli import metrics
from lepton_cli.measure.results import ENOUGH, Latency, LossSpread, MetricChange, Setting, Skipped
from lepton_cli.metrics import Kind, Metric
from lepton_cli.report.model import Report


@dataclasses.dataclass(frozen=True)
class BoundedValue:
    """A number with the interval it is known to lie in (95 %); equal bounds when it is exact."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> BoundedValue:
        """A number without uncertainty."""
        return cls(value, value, value)

    @property
    def known_exactly(self) -> bool:
        """Whether there is no interval around the value."""
        return self.low == self.high

    def over(self, other: BoundedValue) -> BoundedValue:
        """The quotient; bounds assume the two were measured independently."""
        return BoundedValue(
            _divide(self.value, other.value), _divide(self.low, other.high), _divide(self.high, other.low)
        )

    def minus(self, other: BoundedValue) -> BoundedValue:
        """The difference; bounds assume the two were measured independently."""
        return BoundedValue(self.value - other.value, self.low - other.high, self.high - other.low)

    def inverse(self) -> BoundedValue:
        """One over it."""
        return BoundedValue(_divide(1, self.value), _divide(1, self.high), _divide(1, self.low))


@dataclasses.dataclass(frozen=True)
class Fact:
    """One metric of the compressed model. `ratio` and `difference` are compressed over (minus) original."""

    metric: str
    value: BoundedValue
    reference: BoundedValue | None = None
    ratio: BoundedValue | None = None
    difference: BoundedValue | None = None
    #: `provider`, `batch`, `threads`, `output`: what tells it from others of the same metric.
    scope: dict[str, str | int] = dataclasses.field(default_factory=dict)
    n: int | None = None
    unit: str = ""
    #: The class or group that it is about.
    row: str = ""
    #: The report says that lower is better, whatever the table does.
    lower: bool = False

    @property
    def about(self) -> Metric:
        """What is known about the metric."""
        return metrics.of(self.metric, lower=self.lower)

    @property
    def kind(self) -> Kind:
        """What kind of number it is."""
        return self.about.kind

    def compared_with(self, reference: BoundedValue) -> Fact:
        """The same fact against another reference, measured separately."""
        return dataclasses.replace(
            self,
            reference=reference,
            ratio=self.value.over(reference),
            difference=self.value.minus(reference),
        )


def find(report: Report, metric: str, **scope: str | int) -> tuple[Fact, ...]:
    """All facts of that metric within the scope: one for each provider, batch size and number of threads, or each
    output."""
    return tuple(
        fact
        for fact in facts(report)
        if fact.metric == metric and all(fact.scope.get(key) == value for key, value in scope.items())
    )


def facts(report: Report) -> Iterator[Fact]:
    """Every fact of the compressed model that the report holds."""
    if report.variants:
        yield from _structure(report)
    yield from _accuracy(report)
    yield from _latency(report)
    yield from _energy(report)
    yield from _cost(report)


def several_threads(report: Report) -> bool:
    """Whether times were taken with more than one number of threads, so that it has to be told beside them."""
    return len({one.threads for one in report.latency.results} if report.latency else ()) > 1


def names(report: Report) -> tuple[str, ...]:
    """The metrics a gate can ask this report for."""
    return tuple(dict.fromkeys(fact.metric for fact in facts(report)))


def skipped(report: Report, metric: str, provider: str | None = None, batch: int | None = None) -> Skipped | None:
    """Why a metric was left out on purpose, where the report says so."""
    source = metrics.of(metric).source
    notices = (*report.skipped, *(report.latency.skipped if report.latency else ()))
    for notice in notices:
        said = notice.what.lower().replace(",", " ").split()
        if not said or said[0] != source:
            continue
        other_batch = "batch" in said[:-1] and batch is not None and said[said.index("batch") + 1] != str(batch)
        if (provider is None or provider.lower() in said or len(said) == 1) and not other_batch:
            return notice
    return None


def _structure(report: Report) -> Iterator[Fact]:
    compressed = report.variants[-1]
    original = report.variants[0] if len(report.variants) > 1 else None
    for metric in metrics.METRICS.values():
        if metric.source == "structure" and (value := getattr(compressed.size, metric.short)) is not None:
            yield _against(metric.name, value, getattr(original.size, metric.short) if original else None)
    if compressed.memory is not None:
        before = original.memory.peak if original and original.memory else None
        yield _against("memory.peak", compressed.memory.peak, before)


def _against(metric: str, value: float, reference: float | None) -> Fact:
    fact = Fact(metric, BoundedValue.exact(value))
    return fact if reference is None else fact.compared_with(BoundedValue.exact(reference))


def _accuracy(report: Report) -> Iterator[Fact]:
    accuracy = report.accuracy
    if accuracy is None:
        return
    name = report.variants[-1].name if report.variants else next(reversed(accuracy.values), "")
    # Several functions of the recipe's own, or averages of F1, may be of one output: each has its change, in order.
    changes: dict[tuple[str, str], list[MetricChange]] = {}
    for change in accuracy.changes:
        changes.setdefault((change.metric, change.output), []).append(change)
    for entry in accuracy.values.get(name, ()):
        fact = Fact(
            metrics.accuracy(entry.metric).name,
            _range(entry.value, entry.low, entry.high),
            scope={"output": entry.output},
            n=entry.n,
            lower=not entry.higher_is_better,
        )
        own = changes.get((entry.metric, entry.output))
        yield _paired(fact, own.pop(0)) if own else fact
    for close in accuracy.fidelity:
        scope: dict[str, str | int] = {"output": close.output}
        if close.agreement is not None:
            yield Fact(
                "agreement", _range(close.agreement, close.agreement_low, close.agreement_high), scope=scope, n=close.n
            )
        if close.sqnr_db is not None or close.max_abs_error == 0:
            decibel = math.inf if close.sqnr_db is None else close.sqnr_db
            yield Fact("fidelity.sqnr", BoundedValue.exact(decibel), scope=scope, n=close.n)
        for part in close.parts:
            yield Fact("fidelity.sqnr", BoundedValue.exact(part.sqnr_db), scope=scope | {"part": part.where}, n=close.n)
    for spread in accuracy.spread:
        yield from _by_class(spread)


def _by_class(spread: LossSpread) -> Iterator[Fact]:
    """Where a class or group has enough samples. The original has lost nothing, which is even."""
    worst, scope = spread.worst, {"output": spread.output} | ({"group": spread.column} if spread.column else {})
    if worst is None or spread.evenness is None:
        return
    change = _range(worst.change, spread.low, spread.high)
    yield Fact(
        "accuracy.worst_group" if spread.column else "accuracy.worst_class",
        _range(worst.compressed, spread.compressed_low, spread.compressed_high),
        reference=BoundedValue.exact(worst.original),
        difference=change,
        ratio=BoundedValue(
            *(
                _divide(max(0.0, worst.original + bound), worst.original)
                for bound in (change.value, change.low, change.high)
            )
        ),
        scope=dict(scope),
        n=worst.n,
        row=worst.title,
    )
    if spread.column:
        return
    evenness = _range(spread.evenness, spread.evenness_low, spread.evenness_high)
    yield Fact("accuracy.evenness", evenness, scope=dict(scope)).compared_with(BoundedValue.exact(1.0))


def absent(report: Report, metric: str) -> str:
    """Why a report that could hold a metric does not; empty where nothing is known of it."""
    kind = metrics.of(metric).row
    if not kind:
        return ""
    every = report.accuracy.spread if report.accuracy else ()
    spreads = [spread for spread in every if bool(spread.column) == (kind == "group")]
    if not spreads and every:
        return "the evaluation data has no `groups`"
    if not spreads:
        return "it takes an original, and labels that are classes"
    largest = max(spread.largest for spread in spreads)
    return f"no {kind} has {ENOUGH} samples (the largest has {largest})"


def _paired(fact: Fact, change: MetricChange) -> Fact:
    original = BoundedValue.exact(change.original)
    return dataclasses.replace(
        fact,
        reference=original,
        difference=_range(change.difference, change.low, change.high),
        ratio=BoundedValue.exact(_divide(change.compressed, change.original)),
    )


def _latency(report: Report) -> Iterator[Fact]:
    table = report.latency
    if table is None:
        return
    name = report.variants[-1].name if report.variants else None
    changes = {change.setting: change for change in table.changes}
    for result in table.results:
        if name is not None and result.variant != name:
            continue
        scope = _scope(result)
        change = changes.get(result.setting)
        paired = None if change is None else BoundedValue(change.ratio, change.low, change.high)
        time = Fact("latency.median", BoundedValue(result.median, result.low, result.high), scope=scope, n=result.n)
        if change is not None and paired is not None:
            time = scaled(time, change.original, paired)
        yield time
        yield from _percentiles(result, original_latency(report, result), scope)
        speed = Fact("throughput", throughput(result), scope=scope, n=result.n)
        before = original_latency(report, result)
        if before is not None and paired is not None:
            speed = scaled(speed, before.throughput, paired.inverse())
        yield speed


def scaled(fact: Fact, original: float, ratio: BoundedValue) -> Fact:
    """The difference that a paired ratio means at the original's value."""
    difference = BoundedValue(*((bound - 1) * original for bound in (ratio.value, ratio.low, ratio.high)))
    return dataclasses.replace(fact, reference=BoundedValue.exact(original), ratio=ratio, difference=difference)


def _scope(measured: Setting) -> dict[str, str | int]:
    return {"provider": measured.provider, "batch": measured.batch, "threads": measured.threads}


def _percentiles(result: Latency, before: Latency | None, scope: dict[str, str | int]) -> Iterator[Fact]:
    """p90 and p99 have no interval of their own: they are judged as they are."""
    for name in ("p90", "p99"):
        value = getattr(result, name)
        if value is not None:
            fact = Fact(f"latency.{name}", BoundedValue.exact(value), scope=scope, n=result.n)
            reference = getattr(before, name) if before else None
            yield fact if reference is None else fact.compared_with(BoundedValue.exact(reference))


def original_latency(report: Report, result: Latency) -> Latency | None:
    """The original's result on the same provider, batch size and threads."""
    first = report.variants[0].name if len(report.variants) > 1 else None
    key = (first, result.setting)
    for other in report.latency.results if report.latency else ():
        if (other.variant, other.setting) == key:
            return other
    return None


def throughput(result: Latency) -> BoundedValue:
    """Samples per second, with the interval that the latency's implies."""
    return BoundedValue(
        result.throughput,
        result.throughput * _divide(result.median, result.high),
        result.throughput * _divide(result.median, result.low),
    )


def _energy(report: Report) -> Iterator[Fact]:
    """Joules per sample; ratios are paired."""
    table = report.energy
    if table is None or not report.variants:
        return
    last, first = report.variants[-1].name, report.variants[0].name
    changes = {(one.variant, one.setting): one for one in table.changes}
    before = {(one.variant, one.setting): one for one in table.results}
    for result in table.results:
        if result.variant != last:
            continue
        scope = _scope(result)
        fact = Fact("energy", BoundedValue(result.joules, result.low, result.high), scope=scope, n=result.n)
        change, original = changes.get((last, result.setting)), before.get((first, result.setting))
        if change is not None and original is not None:
            fact = scaled(fact, original.joules, BoundedValue(change.ratio, change.low, change.high))
        yield fact


def _cost(report: Report) -> Iterator[Fact]:
    """A price is a throughput turned round: its ratio and interval are those of the paired times."""
    times = {tuple(sorted(fact.scope.items())): fact for fact in _latency(report) if fact.metric == "latency.median"}
    last = report.variants[-1].name if report.variants else None
    if report.cost is None:
        return
    for row in report.cost.entries:
        if row.variant != last:
            continue
        scope = _scope(row)
        price, time = row.per_million, times.get(tuple(sorted(scope.items())))
        bounds = (time.value.low / time.value.value, time.value.high / time.value.value) if time else (1.0, 1.0)
        value = BoundedValue(price, price * bounds[0], price * bounds[1])
        fact = Fact("cost.per_million", value, scope=scope, unit=report.cost.currency)
        first = report.variants[0].name if len(report.variants) > 1 else None
        measured = (first, row.setting)
        before = [o.per_million for o in report.cost.entries if (o.variant, o.setting) == measured]
        if before and time and time.ratio:
            yield scaled(fact, before[0], time.ratio)
        else:
            yield fact.compared_with(BoundedValue.exact(before[0])) if before else fact


def _range(value: float, low: float | None, high: float | None) -> BoundedValue:
    return BoundedValue.exact(value) if low is None or high is None else BoundedValue(value, low, high)


def _divide(one: float, other: float) -> float:
    return one / other if other else math.inf if one else 1.0
