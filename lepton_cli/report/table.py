"""The comparison table as plain rows: the one source for terminal, Markdown and HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from lepton_cli import metrics, units
from lepton_cli.measure.results import Accuracy, Latency, LatencyChange, LatencyTable, MetricChange, MetricValue, Size
from lepton_cli.metrics import Kind
from lepton_cli.report import facts, words
from lepton_cli.report.model import Report, Variant

Tone = Literal["better", "worse", "same", ""]


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One line. `skipped` is set instead of values where nothing was measured; `tone` repeats what `note` says."""

    label: str
    detail: str = ""
    original: str = ""
    compressed: str = ""
    change: str = ""
    interval: str = ""
    note: str = ""
    tone: Tone = ""
    skipped: str = ""

    @property
    def remark(self) -> str:
        """Interval and note as one cell."""
        return "  ".join(part for part in (self.interval, self.note) if part)


def rows(report: Report) -> list[TableRow]:
    """The table, first variant against last. With one variant only `original` is filled."""
    listed: list[TableRow] = []
    if report.variants:
        listed += _structure(report.variants[0], _last(report))
    if report.accuracy is not None:
        listed += _accuracy(report, report.accuracy)
    listed += _latency(report)
    if report.variants:
        listed += _memory(report.variants[0], _last(report))
    listed += _energy(report)
    listed += _cost(report)
    return [*listed, *(TableRow(label=_said(notice.what), skipped=notice.reason) for notice in report.skipped)]


def _said(what: str) -> str:
    return what[:1].lower() + what[1:]


def _last(report: Report) -> Variant | None:
    return report.variants[-1] if len(report.variants) > 1 else None


def _tone(difference: float, *, better: Literal["higher", "lower"] = "lower") -> Tone:
    if difference == 0:
        return "same"
    return "better" if (difference < 0) == (better == "lower") else "worse"


def _structure(original: Variant, compressed: Variant | None) -> Iterator[TableRow]:
    before, after = original.size, compressed.size if compressed else None
    yield _counted("size.file", before, after)
    yield _counted("size.gzip", before, after)
    if any(size is not None and size.duplicated > _WASTE * size.file for size in (before, after)):
        yield _amount("stored twice", "size", before.duplicated, after.duplicated if after else None)
    yield _counted("parameters", before, after)
    if any(_has_zeros(size) for size in (before, after)):
        yield _counted("nonzeros", before, after)
    if before.macs is not None:
        yield _counted("macs", before, after)


def _counted(name: str, before: Size, after: Size | None) -> TableRow:
    metric = metrics.of(name)
    found = getattr(after, metric.short) if after else None
    return _amount(metric.label, metric.kind, getattr(before, metric.short), found)


#: Identical weights below this share of the file are not worth a line.
_WASTE = 0.01


def _has_zeros(size: Size | None) -> bool:
    """More than one zero in twenty: fewer are in every quantized model and say nothing."""
    return size is not None and size.nonzeros < 0.95 * size.parameters


def _amount(label: str, kind: Kind, before: float, after: float | None, detail: str = "") -> TableRow:
    """A row of something that is better when smaller."""
    shown = words.value if kind == "size" else _count
    if after is None:
        return TableRow(label, detail, shown(before, kind))
    change = (after - before) / before if before else 0.0
    tone = _tone(after - before) if before or not after else ""
    note = "larger" if tone == "worse" and abs(change) >= 0.0005 else ""
    said = words.percent(change) if before or not after else "-"
    return TableRow(label, detail, shown(before, kind), shown(after, kind), said, "", note, tone)


def _count(amount: float, kind: Kind) -> str:
    return units.format_count(amount)


def _accuracy(report: Report, accuracy: Accuracy) -> Iterator[TableRow]:
    several = len({close.output for close in accuracy.fidelity}) > 1
    for change in accuracy.changes:
        yield _metric_change(change, several)
    changed = {(change.metric, change.output) for change in accuracy.changes}
    names = [variant.name for variant in report.variants] or [*accuracy.values]
    for name in dict.fromkeys([*names[:1], *names[-1:]]):
        for value in accuracy.values.get(name, ()):
            if (value.metric, value.output) not in changed:
                yield _alone(value, several or len(names) > 1, name == names[0])
    for close in accuracy.fidelity:
        detail = "" if accuracy.changes else f"(n = {close.n:,})"
        if close.agreement is not None:
            bounds_words = words.interval(close.agreement_low or 0.0, close.agreement_high or 0.0, "percent")
            label = f"{metrics.of('agreement').label} with original{_of(close.output, several)}"
            yield TableRow(label, detail, "-", words.value(close.agreement, "share"), interval=bounds_words)
            detail = ""
        if close.sqnr_db is not None or close.max_abs_error == 0:
            fidelity = "identical" if close.sqnr_db is None else words.value(close.sqnr_db, "decibel")
            cosine = "" if close.cosine is None or close.sqnr_db is None else f"cosine {close.cosine:.6f}"
            if close.agreement is None and close.sqnr_db is not None:
                cosine = f"errors are {words.error_share(close.sqnr_db)} of the output, {cosine}"
            label = f"fidelity ({metrics.of('fidelity.sqnr').label}){_of(close.output, several)}"
            yield TableRow(label, detail, "-", fidelity, note=cosine)
        for part in close.parts:
            yield TableRow(f"fidelity of {close.output}{part.where}", "", "-", words.value(part.sqnr_db, "decibel"))


def _alone(value: MetricValue, several: bool, original: bool) -> TableRow:
    """A metric of one model: of the only one, or of an output that the other has not."""
    metric = metrics.accuracy(value.metric)
    shown = ""
    if value.low is not None and value.high is not None:
        shown = words.interval(value.low, value.high, "percent" if metric.kind == "share" else "")
    said = words.exact(value.value, metric.kind)
    label = f"accuracy, {metric.label}{_of(value.output, several)}"
    pair = (said, "") if original else ("-", said)
    return TableRow(label, f"(n = {value.n:,})", *pair, interval=shown)


def _of(output: str, several: bool) -> str:
    return f" of {output}" if several and output else ""


def _metric_change(change: MetricChange, several: bool) -> TableRow:
    metric = metrics.accuracy(change.metric, lower=not change.higher_is_better)
    share = metric.kind == "share"
    difference = words.difference(change.difference, metric.kind, 4)
    tone = _tone(change.difference, better=metric.better)
    return TableRow(
        f"accuracy, {metric.label}{_of(change.output, several)}",
        f"(n = {change.n:,})",
        words.exact(change.original, metric.kind),
        words.exact(change.compressed, metric.kind),
        difference,
        _bounds(change.low, change.high, "points" if share else ""),
        "" if metric.better == "higher" else "lower is better",
        tone,
    )


def _bounds(low: float | None, high: float | None, show: str) -> str:
    return "" if low is None or high is None else words.interval(low, high, show)


def _latency(report: Report) -> Iterator[TableRow]:
    table = report.latency
    if table is None:
        return
    several = len({change.variant for change in table.changes}) > 1
    for change in table.changes:
        speed = facts.BoundedValue(change.ratio, change.low, change.high).inverse()
        found = words.speed(change.ratio, change.low, change.high)
        yield TableRow(
            f"latency, {change.provider} batch {change.batch}" + (f", {change.variant}" if several else ""),
            f"({words.plural(change.threads, 'thread')})",
            words.value(change.original, "time"),
            words.value(change.compressed, "time"),
            words.times(speed.value),
            words.interval(speed.low, speed.high),
            "; ".join(filter(None, (_SPEEDS[found], _on_device(table, change)))),
            "worse" if found == "slower" else "better" if found == "faster" else "same",
        )
    yield from _throughput(report)
    compared = {change.setting for change in table.changes}
    for result in table.results:
        if result.setting not in compared:
            yield _single_latency(result)
    yield from (TableRow(label=_said(notice.what), skipped=notice.reason) for notice in table.skipped)


def _on_device(table: LatencyTable, change: LatencyChange) -> str:
    """Time on the device alone, where it can be told from the host's."""
    key = change.setting
    same = [one for one in table.results if one.setting == key]
    after = next((one for one in same if one.variant == change.variant), None)
    if after is None or after.device_median is None or same[0].device_median is None:
        return ""
    first, last = (words.value(one, "time") for one in (same[0].device_median, after.device_median))
    return f"on the device alone {first} → {last}"


def _throughput(report: Report) -> Iterator[TableRow]:
    """The batch size that the compressed model gets most out of, where there are several."""
    found = [fact for fact in facts.find(report, "throughput") if fact.reference is not None and fact.ratio is not None]
    if len(found) < 2:
        return
    fact = max(found, key=lambda fact: fact.value.value)
    assert fact.reference is not None
    assert fact.ratio is not None
    speed = words.speed(*(1 / bound for bound in (fact.ratio.value, fact.ratio.high, fact.ratio.low)))
    yield TableRow(
        f"{fact.about.label}, {fact.scope['provider']} batch {fact.scope['batch']}",
        "(the best)",
        words.value(fact.reference.value, fact.kind),
        words.value(fact.value.value, fact.kind),
        words.times(fact.ratio.value),
        words.interval(fact.ratio.low, fact.ratio.high),
        _SPEEDS[speed],
        "worse" if speed == "slower" else "better" if speed == "faster" else "same",
    )


_SPEEDS: dict[words.SpeedWord, str] = {
    "slower": "slower",
    "faster": "",
    "same": "same speed",
    "unclear": "no clear difference",
}


def _single_latency(result: Latency) -> TableRow:
    """A latency without a partner to compare with, as `bench` of one model measures it."""
    return TableRow(
        f"latency, {result.provider} batch {result.batch}",
        f"({words.plural(result.threads, 'thread')})",
        words.value(result.median, "time"),
        interval=f"[{words.value(result.low, 'time')}, {words.value(result.high, 'time')}]",
        note=f"{words.value(result.throughput, 'rate')}",
    )


def _memory(original: Variant, compressed: Variant | None) -> Iterator[TableRow]:
    before, after = original.memory, compressed.memory if compressed else None
    if before is None:
        return
    yield _amount(metrics.of("memory.peak").label, "size", before.peak, after.peak if after else None)
    if before.device is not None:
        yield _amount("device memory", "size", before.device, after.device if after else None)


def _energy(report: Report) -> Iterator[TableRow]:
    """Joules of one sample: all that was used, and in the note what was above a machine at rest."""
    results = report.energy.results if report.energy else ()
    above = {(one.variant, one.provider, one.batch): one.above_idle for one in results}
    for fact in facts.find(report, "energy"):
        provider, batch = str(fact.scope["provider"]), int(fact.scope["batch"])
        now, label, detail = (
            words.value(fact.value.value, fact.kind),
            f"{fact.about.label}, {provider} batch {batch}",
            "(a sample)",
        )
        if fact.reference is None or fact.ratio is None:
            yield TableRow(label, detail, now)
            continue
        ends = (report.variants[0].name, report.variants[-1].name)
        first, last = (words.value(above.get((name, provider, batch), 0.0), "energy") for name in ends)
        same = fact.ratio.low <= 1 <= fact.ratio.high
        yield TableRow(
            label,
            detail,
            words.value(fact.reference.value, fact.kind),
            now,
            words.percent(fact.ratio.value - 1),
            words.interval(fact.ratio.low - 1, fact.ratio.high - 1, "percent"),
            "no clear difference" if same else f"above rest {first} → {last}",
            "same" if same else _tone(fact.ratio.value - 1),
        )


def _cost(report: Report) -> Iterator[TableRow]:
    for fact in facts.find(report, "cost.per_million"):
        label = f"{fact.about.label}, {fact.scope.get('provider', '')} batch {fact.scope.get('batch', '')}"
        now = words.value(fact.value.value, fact.kind, fact.unit)
        threads = words.plural(int(fact.scope["threads"]), "thread")
        detail = f"({threads})" if facts.several_threads(report) else ""
        if fact.reference is None or fact.ratio is None:
            yield TableRow(label, detail, now)
            continue
        speed = words.speed(fact.ratio.value, fact.ratio.low, fact.ratio.high)
        clear = speed in ("faster", "slower")
        yield TableRow(
            label,
            detail,
            words.value(fact.reference.value, fact.kind, fact.unit),
            now,
            words.percent(fact.ratio.value - 1),
            note="" if clear else "no clear difference",
            tone=_tone(fact.ratio.value - 1) if clear else "same",
        )
