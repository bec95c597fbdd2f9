"""The trials of `lepton tune` as a report holds them, in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import JsonValue

from lepton_cli import metrics, units
from lepton_cli.report import words
from lepton_cli.report.model import Axis, Bound, Margin, Narrowed, Report, TrialRow, Tune
from lepton_cli.report.trial import Band, Forecast, Trial

#: Times this close to a limit hold it, as a search judges them: a trial cannot tell such differences.
_SAME_TIME = 0.01


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
    #: Why it was chosen, with its chance to hold the limits, and what was expected of the goal.
    why: str
    expected: str
    #: The distance to each limit, and why it ended where no distance tells that.
    margins: tuple[Distance, ...]
    ended: str


@dataclasses.dataclass(frozen=True)
class Distance:
    """What a trial has of a limit in words, and whether it is within it."""

    text: str
    held: bool


@dataclasses.dataclass(frozen=True)
class NearestWords:
    """How near to one limit a trial comes; `number`: of the trial, `None` where it is not one of the report."""

    number: int | None
    text: str


def search(report: Report) -> Tune | None:
    """A search that tried something."""
    return report.tune if report.tune is not None and report.tune.trials else None


def trials(tuned: Tune) -> list[TrialWords]:
    """Every trial, in the order they ended."""
    return [trial(number, row, tuned) for number, row in enumerate(tuned.trials, 1)]


def trial(number: int, row: TrialRow, tuned: Tune) -> TrialWords:
    """One trial; numbers count from 1."""
    margins = distances(tuned.bounds, row.margins, row.forecast)
    ended = ends(row, margins)
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
        why=reason(row.why, row.forecast),
        expected=_expected_goal(row.forecast, tuned),
        margins=() if ended else margins,
        ended=words.printable(ended, 300),
    )


def ends(row: TrialRow | Trial, margins: Sequence[Distance]) -> str:
    """Why it ended, where no limit that it is beyond tells that already; empty for what was measured to the end."""
    return row.reason if row.reached == "failed" or all(one.held for one in margins) else ""


def improved(tuned: Tune) -> list[int]:
    """Positions of the trials that were the best within the limits when they ended, in that order."""
    found: list[int] = []
    best = math.inf
    for index, row in enumerate(tuned.trials):
        value = row.cost if goal_axis(tuned) == "cost" else row.quality
        if row.feasible and value is not None and value < best:
            best = value
            found.append(index)
    return found


def goal_axis(tuned: Tune) -> Literal["cost", "quality"]:
    """The axis that shows the goal."""
    return "quality" if tuned.goal.metric == tuned.axes.quality.metric else "cost"


def nearest(tuned: Tune) -> list[NearestWords]:
    """Where nothing holds all limits: how near to each of them one comes."""
    numbers = {row.key: number for number, row in enumerate(tuned.trials, 1)}
    return [NearestWords(numbers.get(one.key), words.printable(one.text, 600)) for one in tuned.nearest]


def reason(why: str, forecast: Forecast | None) -> str:
    """Why a trial was chosen, and the chance it was given: `at the limit on size (chance 62 %)`."""
    chance = f"chance {100 * forecast.chance:.0f} %" if forecast is not None else ""
    said = words.printable(why, 300)
    return f"{said} ({chance})" if said and chance else said or chance


def distances(
    bounds: tuple[Bound, ...], margins: tuple[Margin, ...], forecast: Forecast | None
) -> tuple[Distance, ...]:
    """How far a trial is from each limit, with what was expected."""
    expected = forecast.limits if forecast is not None else ()
    return tuple(
        distance(bounds[one.limit], one, expected[one.limit] if one.limit < len(expected) else None)
        for one in margins
        if one.limit < len(bounds)
    )


def distance(bound: Bound, margin: Margin, expected: Band | None) -> Distance:
    """What is found `of` a limit, or `beyond` (`below`) it: `accuracy.top1 -0.83 pp of 1 (expected -0.9)`."""
    held = margin.room >= -(_SAME_TIME if metrics.of(bound.metric).varies else 1e-9)
    within, outside = ("of at least", "below") if bound.comparison in ("min", "min_ratio") else ("of", "beyond")
    text = (
        f"{metric_name(bound)} {_amount(bound, margin.found.value)} {within if held else outside} "
        f"{_limit(bound)}{expectation(_short(bound, expected))}"
    )
    return Distance(words.printable(text), held)


def expectation(amount: str) -> str:
    """What was expected, behind what was found."""
    return f" (expected {amount})" if amount else ""


def metric_name(about: Narrowed) -> str:
    """The metric with what narrows it down: `latency.median batch 64`."""
    given = {key: value for key in metrics.SCOPE if (value := getattr(about, key)) is not None}
    return " ".join(filter(None, (about.metric, words.scope(given))))


def _amount(bound: Bound, amount: float) -> str:
    """What a limit looks at: a change with its sign, a share of the original's, or the value."""
    kind = metrics.of(bound.metric).kind
    match bound.comparison:
        case "max_drop" | "max_increase":
            change = -amount if bound.comparison == "max_drop" else amount
            return words.points(change) if kind == "share" else ("+" if change > 0 else "") + words.value(change, kind)
        case "max_ratio" | "min_ratio":
            return f"{words.significant(100 * amount)} %"
        case _:
            return words.value(amount, kind)


def _limit(bound: Bound) -> str:
    """The limit, without the unit where the amount before it has the same."""
    kind = metrics.of(bound.metric).kind
    if bound.comparison in ("max_drop", "max_increase") and kind == "share":
        return units.write_points(round(bound.limit, 12)).removesuffix(" pp")
    if bound.comparison in ("max_ratio", "min_ratio") or kind == "share":
        return units.write_percent(round(bound.limit, 12))
    return words.value(bound.limit, kind)


def _short(bound: Bound, expected: Band | None) -> str:
    """What was expected, as exact as a guess is: the unit is that of what was found."""
    if expected is None or not math.isfinite(expected.value):
        return ""
    if bound.comparison in ("max_drop", "max_increase") and metrics.of(bound.metric).kind == "share":
        change = -expected.value if bound.comparison == "max_drop" else expected.value
        return f"{round(100 * change, 1) + 0.0:+.1f}"
    return _amount(bound, expected.value).removesuffix(" %")


def _expected_goal(forecast: Forecast | None, tuned: Tune) -> str:
    if forecast is None or forecast.goal is None:
        return ""
    return axis_value(forecast.goal.value, getattr(tuned.axes, goal_axis(tuned)))


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
