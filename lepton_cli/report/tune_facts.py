"""The trials of `lepton tune` as a report holds them, in words."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pydantic import JsonValue

from lepton_cli import metrics
from lepton_cli.report import words
from lepton_cli.report.model import Axis, Report, TrialRow, Tune


@dataclasses.dataclass(frozen=True)
class TrialWords:
    """A trial in words; `cost`, `quality` and `file` are empty where not measured. `x`, `y`: where it is drawn."""

    number: int
    name: str
    best: bool
    #: `held`: within the limits; `broken`: beyond one.
    kind: Literal["front", "held", "broken"]
    x: float | None
    y: float | None
    cost: str
    quality: str
    file: str
    reason: str
    feasible: bool
    steps: tuple[dict[str, JsonValue], ...]


def search(report: Report) -> Tune | None:
    """A search that tried something."""
    return report.tune if report.tune is not None and report.tune.trials else None


def trials(tuned: Tune) -> list[TrialWords]:
    """Every trial, in the order they ended."""
    return [trial(number, row, tuned) for number, row in enumerate(tuned.trials, 1)]


def trial(number: int, row: TrialRow, tuned: Tune) -> TrialWords:
    """One trial; numbers count from 1."""
    return TrialWords(
        number=number,
        name=words.printable(row.name, 160),
        best=row.key == tuned.best,
        kind="front" if row.front and row.feasible else "held" if row.feasible else "broken",
        x=row.cost,
        y=None if row.quality is None else -row.quality,
        cost=axis_value(row.cost, tuned.axes.cost),
        quality=axis_value(row.quality, tuned.axes.quality),
        file="" if row.file is None else words.value(row.file, "size"),
        reason=words.printable(row.reason, 300),
        feasible=row.feasible,
        steps=row.steps,
    )


def axis_value(value: float | None, axis: Axis) -> str:
    """A cost or quality in words; they are stored so that lower is better, times as ratios to the original."""
    if value is None:
        return ""
    number = -value if axis.higher_is_better else value
    if axis.kind == "ratio":
        return f"{words.significant(100 * number)} %"
    return words.value(number, metrics.of(axis.metric).kind)


def label(axis: Axis) -> str:
    """The metric with what narrows it down."""
    where = " ".join(f"{key} {value}" for key in metrics.SCOPE if (value := getattr(axis, key)))
    return f"{axis.metric}{f' ({where})' if where else ''}"
