"""What each step bought: size, speed and exactness after it; and whether a part of the steps beats all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from lepton_cli import metrics
from lepton_cli.graph.details import HeadDetails
from lepton_cli.measure.results import Fidelity, LatencyChange, MetricChange
from lepton_cli.prune.details import PruneChannelsDetails
from lepton_cli.report import words
from lepton_cli.report.model import Bought, Report
from lepton_cli.steps import STEPS

#: Files closer than this are equally large.
SAME_SIZE = 1.05
#: Targets of pruning that are for speed: what holds them is not asked to be small.
_FOR_SPEED = frozenset({"macs", "latency"})


@dataclasses.dataclass(frozen=True)
class Row:
    """A model on the way, or beside it: what all steps until then made of the original."""

    name: str
    size: str
    speed: str
    exactness: str


def rows(report: Report) -> list[Row]:
    """One row a step that changed something, and one for each part that left a step out; none of a single step."""
    if not report.bought or len(report.variants) < 2:
        return []
    return [_row(report, part) for part in (*_on_the_way(report), *_left_out(report))]


def _on_the_way(report: Report) -> Iterator[Bought]:
    """After each step; what was not measured has its size alone, as far as it is known."""
    measured = {part.steps[-1]: part for part in report.bought if part not in _left_out(report)}
    changed = [step for step in report.steps if step.changed]
    for step in changed:
        found = result(report) if step is changed[-1] else measured.get(step.index)
        if found is not None:
            yield found.model_copy(update={"name": f"{step.index + 1}. {step.step}"})


def _left_out(report: Report) -> list[Bought]:
    """Parts that are no beginning of the run."""
    changed = tuple(step.index for step in report.steps if step.changed)
    return [part for part in report.bought if part.steps != changed[: len(part.steps)]]


def result(report: Report) -> Bought:
    """The result as one of the parts: all of them."""
    latency = report.latency.changes[:1] if report.latency else ()
    close = report.accuracy
    return Bought(
        name="all steps",
        steps=tuple(step.index for step in report.steps if step.changed),
        file=report.variants[-1].size.file,
        latency=latency[0] if latency else None,
        changes=close.changes if close else (),
        fidelity=close.fidelity if close else (),
    )


def _row(report: Report, part: Bought) -> Row:
    original = report.variants[0].size.file
    ratio = words.percent(part.file / original - 1) if original else ""
    return Row(part.name, f"{words.value(part.file, 'size')} ({ratio})", speed(part.latency), exactness(report, part))


def speed(change: LatencyChange | None) -> str:
    """How many times as fast as the original, with its interval."""
    if change is None:
        return "-"
    return f"{words.times(1 / change.ratio)} {words.interval(1 / change.high, 1 / change.low)}"


def exactness(report: Report, part: Bought) -> str:
    """Differences of the metrics, and the worst output."""
    if not part.fidelity and not part.changes:
        known = {step.index: STEPS.get(step.step) for step in report.steps}
        equal = all((step := known.get(index)) is not None and step.options.cleaning for index in part.steps)
        return "equal outputs" if report.accuracy is not None and equal else "-"
    told = [difference(change) for change in part.changes]
    worst = _worst(part.fidelity)
    return ", ".join([*told, "identical" if worst is None else f"{words.value(worst, 'decibel')} SQNR"])


def difference(change: MetricChange) -> str:
    """`-0.10 pp top-1`."""
    metric = metrics.accuracy(change.metric)
    return f"{words.difference(change.difference, metric.kind)} {metric.label}"


def _worst(fidelity: Sequence[Fidelity]) -> float | None:
    """The lowest signal-to-noise ratio; `None` where all is identical."""
    return min((one.sqnr_db for one in fidelity if one.sqnr_db is not None), default=None)


def beaten(report: Report) -> Bought | None:
    """The fastest part of the steps that is clearly faster than all of them, as exact or more, and not larger.

    Larger is no objection to a part that leaves out what was asked to make the model fast, and not small.
    """
    made = any(isinstance(step.details, HeadDetails) and step.changed for step in report.steps)
    if len(report.variants) < 2 or made:  # a part without a head, or its training, does not do what was asked for
        return None
    whole = result(report)
    found = [part for part in report.bought if _faster(part, whole) and _as_exact(part, whole) and _fits(report, part)]
    return min(found, key=lambda part: part.latency.ratio if part.latency else 0, default=None)


def _faster(part: Bought, whole: Bought) -> bool:
    """Whether the intervals, of one comparison, lie apart, by more than sessions of one model differ."""
    if part.latency is None or whole.latency is None:
        return False
    apart = part.latency.high < whole.latency.low
    return apart and part.latency.ratio * (1 + words.SAME_SPEED) < whole.latency.ratio


def _as_exact(part: Bought, whole: Bought) -> bool:
    """By the metrics; by the worst output where there are none."""
    if not whole.changes:
        mine, other = _worst(part.fidelity), _worst(whole.fidelity)
        return mine is None or (other is not None and mine >= other)
    lost = {(change.metric, change.output): _loss(change) for change in part.changes}
    return all(lost.get((change.metric, change.output), 0.0) <= _loss(change) for change in whole.changes)


def _loss(change: MetricChange) -> float:
    return -change.difference if change.higher_is_better else change.difference


def _fits(report: Report, part: Bought) -> bool:
    if part.file <= SAME_SIZE * report.variants[-1].size.file:
        return True
    missing = [step for step in report.steps if step.changed and step.index not in part.steps]
    asked = {
        target.metric
        for step in missing
        if isinstance(step.details, PruneChannelsDetails)
        for target in step.details.targets
    }
    pruned = all(isinstance(step.details, PruneChannelsDetails) for step in missing)
    return bool(missing) and pruned and asked <= _FOR_SPEED


def said(report: Report) -> str:
    """The part that beats the whole, with its figures; empty where none does."""
    part = beaten(report)
    if part is None or part.latency is None:
        return ""
    figures = [f"{words.times(1 / part.latency.ratio)} as fast as the original", exactness(report, part)]
    smaller = report.variants[0].size.file / part.file
    figures += [f"{smaller:.1f}x smaller"] if smaller > SAME_SIZE else []
    return f"A PART OF THE STEPS IS BETTER: {part.name} {', '.join(figures)}"
