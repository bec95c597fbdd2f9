"""The figures of the HTML report: which numbers go into which chart, each with the same numbers as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from lepton_cli import metrics
from lepton_cli.measure.results import Layer
from lepton_cli.prune.details import PruneChannelsDetails
from lepton_cli.report import charts, classes, words
from lepton_cli.report.charts import Bar, Swing
from lepton_cli.report.model import Report
from lepton_cli.train.details import TrainingDetails

#: Rows drawn and rows listed; a longer list ends with how many more report.json holds.
DRAWN = 24
LISTED = 120
#: Endings that quantizers add to the names of nodes they replace.
_ENDINGS = ("_quant", "_QuantizeLinear", "_Q4", "_Q8", "_bnfusion")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart and its text equivalent. `legend`: (class, meaning)."""

    key: str
    title: str
    text: str
    chart: Markup
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: tuple[tuple[str, str], ...] = ()
    more: int = 0


_BOTH = (("before", "original"), ("after", "compressed"))


def figures(report: Report) -> list[Figure]:
    """All figures that the report has numbers for, in reading order."""
    made = (
        *_latencies(report),
        _layers(report),
        _widths(report),
        _errors(report),
        *_trainings(report),
        _classes(report),
    )
    return [figure for figure in made if figure is not None]


def _figure(
    key: str,
    title: str,
    text: str,
    chart: Markup,
    header: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    legend: tuple[tuple[str, str], ...] = (),
) -> Figure:
    shown = tuple(tuple(words.printable(cell, 160) for cell in row) for row in rows[:LISTED])
    return Figure(key, title, text, chart, header, shown, legend, max(0, len(rows) - LISTED))


def _paired_layers(report: Report) -> list[tuple[str, Layer | None, Layer | None]]:
    """Layers of the first and last variant by node name, in the order of the original graph."""
    before = {layer.node: layer for layer in report.variants[0].size.layers}
    after: dict[str, Layer] = {}
    if len(report.variants) > 1:
        for layer in report.variants[-1].size.layers:
            after[_original_name(layer.node, before)] = layer
    names = [*before, *(name for name in after if name not in before)]
    return [(name, before.get(name), after.get(name)) for name in names]


def _original_name(node: str, known: dict[str, Layer]) -> str:
    """The node that a quantizer replaced, by what it appended to the name."""
    for ending in _ENDINGS:
        if node not in known and node.removesuffix(ending) in known:
            return node.removesuffix(ending)
    return node


def _layers(report: Report) -> Figure | None:
    if not report.variants or not report.variants[0].size.layers:
        return None
    pairs = _paired_layers(report)
    ranked = sorted(pairs, key=lambda pair: max(_bytes(pair[1]), _bytes(pair[2])), reverse=True)
    both = len(report.variants) > 1
    drawn = [Bar(name, _change(one, two, both), _lengths(one, two, both)) for name, one, two in ranked[:DRAWN]]
    text = f"Bytes of weights, the {len(drawn)} largest of {words.plural(len(pairs), 'layer')}."
    rows = [
        (name, *(cell for layer in ((one, two) if both else (one,)) for cell in _layer_cells(layer)))
        for name, one, two in pairs
    ]
    columns = ("bytes before", "type before", "bytes after", "type after") if both else ("bytes", "type")
    title = "Size by layer"
    return _figure(
        "layers", title, text, charts.bars(title, text, drawn), ("layer", *columns), rows, _BOTH if both else ()
    )


def _bytes(layer: Layer | None) -> int:
    return layer.bytes if layer else 0


def _lengths(one: Layer | None, two: Layer | None, both: bool) -> tuple[tuple[str, float], ...]:
    return (("before", _bytes(one)), ("after", _bytes(two))) if both else (("after", _bytes(one)),)


def _change(one: Layer | None, two: Layer | None, both: bool) -> str:
    before = words.value(_bytes(one), "size")
    if not both:
        return before
    return f"{before} → {'removed' if two is None else words.value(two.bytes, 'size')}"


def _layer_cells(layer: Layer | None) -> tuple[str, str]:
    return ("-", "-") if layer is None else (f"{layer.bytes:,}", layer.dtype)


def _latencies(report: Report) -> Iterator[Figure]:
    """One figure for each provider and batch size with raw times."""
    results = [result for result in (report.latency.results if report.latency else ()) if result.times]
    for key in dict.fromkeys(result.setting for result in results):
        arms = [result for result in results if result.setting == key]
        provider, batch, threads = key
        title = f"Latency, {provider} batch {batch}"
        counts = ", ".join(f"{arm.variant} {arm.n:,}" for arm in arms)
        samples = [
            charts.Sample(arm.variant, "before" if arm is arms[0] and len(arms) > 1 else "after", arm.median, arm.times)
            for arm in arms
        ]
        _, end = charts.time_axis(samples)
        beyond, drawn = sum(time > end for one in samples for time in one.times), sum(len(one.times) for one in samples)
        outside = f"; {beyond} of {drawn} sampled runs took longer than the axis" if beyond else ""
        text = f"Times of single runs ({words.plural(threads, 'thread')}; runs: {counts}). Dashed: median{outside}."
        rows = [
            (
                arm.variant,
                words.value(arm.median, "time"),
                f"[{words.value(arm.low, 'time')}, {words.value(arm.high, 'time')}]",
                "-" if arm.p90 is None else words.value(arm.p90, "time"),
                "-" if arm.p99 is None else words.value(arm.p99, "time"),
                words.value(arm.throughput, "rate"),
                f"{arm.n:,}",
                ", ".join(
                    f"{name.removesuffix('ExecutionProvider')} {nodes:,}" for name, nodes in arm.placement.items()
                )
                or "-",
            )
            for arm in arms
        ]
        header = ("model", "median", "95 % interval", "p90", "p99", "samples", "runs", "nodes ran on")
        key_text = f"latency-{provider}-{batch}-{threads}"
        yield _figure(key_text, title, text, charts.distributions(title, text, samples), header, rows)


def _widths(report: Report) -> Figure | None:
    pruned = [step.details for step in report.steps if isinstance(step.details, PruneChannelsDetails)]
    rows = [row for details in pruned for row in details.widths]
    if not rows:
        return None
    title = "Channels kept"
    changed = sum(row.after < row.before for row in rows)
    text = f"Width of each prunable group before and after; {changed} of {len(rows)} are narrower now."
    ranked = sorted(rows, key=lambda row: row.before - row.after, reverse=True)[:DRAWN]
    chosen = [row for row in rows if any(row is one for one in ranked)]
    drawn = [
        Bar(row.node, f"{row.before} → {row.after}", (("before", row.before), ("after", row.after))) for row in chosen
    ]
    cells = [(row.node, f"{row.before}", f"{row.after}") for row in rows]
    return _figure("widths", title, text, charts.bars(title, text, drawn), ("group", "before", "after"), cells, _BOTH)


def _errors(report: Report) -> Figure | None:
    rows = report.sensitivity
    if not rows:
        return None
    title = "Error by layer"
    text = (
        "Signal over quantization error at each layer's output, in decibels (short bars lose most); "
        f"the {min(DRAWN, len(rows))} most sensitive of {len(rows)}."
    )
    metric = metrics.of("fidelity.sqnr")
    drawn = [Bar(node, words.value(ratio, metric.kind), (("after", ratio),)) for node, ratio, _ in rows[:DRAWN]]
    timed = any(row.int8_gmacs or row.float_gmacs for *_, row in rows)
    rates = [tuple(f"{rate:.0f}" if rate else "" for rate in (row.int8_gmacs, row.float_gmacs)) for *_, row in rows]
    cells = [
        (node, words.value(ratio, metric.kind), *(rate if timed else ()))
        for (node, ratio, _), rate in zip(rows, rates, strict=True)
    ]
    header = ("layer", metric.label, *(("int8 GMAC/s", "float GMAC/s") if timed else ()))
    return _figure("errors", title, text, charts.bars(title, text, drawn), header, cells)


def _trainings(report: Report) -> Iterator[Figure]:
    """One figure for each step that trained."""
    for number, step in enumerate(report.steps, start=1):
        details = step.details.training if isinstance(step.details, PruneChannelsDetails) else step.details
        if not isinstance(details, TrainingDetails) or len(details.marks) < 2:
            continue
        title = f"Loss while training, {step.step}"
        text = (
            f"On {details.kept_apart:,} samples kept apart, after so many steps of "
            f"{words.plural(details.batch, 'sample')}; the model is that after step {details.kept_step:,}."
        )
        steps = [mark.step for mark in details.marks]
        chosen = steps.index(details.kept_step) if details.kept_step in steps else len(steps) - 1
        chart = charts.curve(title, text, [(mark.step, mark.loss) for mark in details.marks], chosen)
        rows = [(f"{mark.step:,}", f"{mark.loss:.4g}") for mark in details.marks]
        yield _figure(f"training-{number}", title, text, chart, ("step", "loss"), rows)


def _classes(report: Report) -> Figure | None:
    ranked = classes.ranked(report)
    if not ranked:
        return None
    title, text = classes.title(ranked), classes.summary(report)
    large = [
        Swing(
            classes.name(report, one),
            f"{words.points(one.change, 1)}, {one.lost} lost, {one.won} won",
            ("worse" if one.change < 0 else "after") if one.significant else "chance",
            one.change,
            one.low,
            one.high,
        )
        for one in ranked
        if one.low is not None and one.high is not None
    ]
    drawn = large[:DRAWN]
    text += f" The {DRAWN} that lost most are drawn." if len(large) > DRAWN else ""
    chart = charts.diverging(title, text, drawn, classes.scale(ranked[: len(drawn)]))
    rows = [classes.cells(report, one) for one in ranked]
    return _figure("classes", title, text, chart, classes.HEADER, rows, _CHANGED if drawn else ())


_CHANGED = (("worse", "lost"), ("after", "won"), ("chance", "no more than chance"))
