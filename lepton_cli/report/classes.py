"""Classes and groups side by side in words: who lost most first, and what may be chance."""

from __future__ import annotations

import math

from lepton_cli.measure.results import ENOUGH, ClassChange
from lepton_cli.report import words
from lepton_cli.report.model import Report

HEADER = ("class", "n", "original", "compressed", "change", "95 % interval", "lost", "won", "p (Holm)")
#: Half of the least axis: on it half a point is a small change.
_LEAST, _STEP = 0.05, 0.05


def ranked(report: Report) -> list[ClassChange]:
    """Those that are judged by what they lost, then the others by how many answers."""
    rows = report.accuracy.classes if report.accuracy else ()
    return sorted(rows, key=lambda one: (not judged(one), one.change if judged(one) else one.change * one.n))


def judged(one: ClassChange) -> bool:
    """Whether it has enough samples for more than counting."""
    return one.p_adjusted is not None


def name(report: Report, one: ClassChange) -> str:
    """What it is called; with its output where several have classes."""
    several = len({spread.output for spread in report.accuracy.spread}) > 1 if report.accuracy else False
    called = one.title if one.column else one.label
    return f"{called} of {one.output}" if several else called


def cells(report: Report, one: ClassChange) -> tuple[str, ...]:
    """One line under `HEADER`. Of few samples there are counts alone."""
    interval = "-" if one.low is None or one.high is None else words.interval(one.low, one.high, "points")
    return (
        name(report, one),
        f"{one.n:,}",
        words.value(one.original, "share"),
        words.value(one.compressed, "share"),
        words.points(one.change) if one.n >= ENOUGH else "-",
        interval,
        *("-" if count is None else f"{count:,}" for count in (one.lost, one.won)),
        "-" if one.p_adjusted is None else words.significant(one.p_adjusted),
    )


def summary(report: Report) -> str:
    """How many changed, and how to read it."""
    rows = ranked(report)
    large = [one for one in rows if judged(one)]
    few = len(rows) - len(large)
    noun = "classes and groups" if any(one.column for one in rows) else "classes"
    counted = f"{few:,} with fewer than {ENOUGH} samples {'is' if few == 1 else 'are'} counted, not judged"
    if not large:
        return f"None of the {len(rows):,} {noun} has {ENOUGH} samples: they are counted, not judged."
    clear = sum(one.significant for one in large)
    return (
        f"Change in percentage points with its 95 % interval, losses to the left. {clear} of {len(large):,} {noun} "
        "changed by more than chance (McNemar's exact test, Holm's correction)" + (f"; {counted}." if few else ".")
    )


def title(rows: list[ClassChange]) -> str:
    """What the rows are."""
    return "Accuracy by class and group" if any(one.column for one in rows) else "Accuracy by class"


def scale(rows: list[ClassChange]) -> float:
    """Half of the axis that all rows are drawn on: 5 points, or as many more as the intervals need."""
    ends = [abs(end) for one in rows for end in (one.low, one.high) if end is not None]
    return max(_LEAST, _STEP * math.ceil(max(ends, default=0.0) / _STEP - 1e-9))
