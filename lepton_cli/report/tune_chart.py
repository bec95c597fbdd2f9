"""The search of `lepton tune` in the HTML report: the front, how it went, what was rejected and why."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from lepton_cli.recipe.load import write
from lepton_cli.report import charts, tune_facts, words
from lepton_cli.report.charts import Bar
from lepton_cli.report.model import Report, Tune
from lepton_cli.report.tune_facts import NearestWords, TrialWords

#: Trials listed; the rest is in report.json.
LISTED = 150
_HEIGHT = 300
_BOTTOM, _TOP = 44, 34
#: Quality is drawn down to this many times the distance from the best to its limit.
_BELOW = 4
_STYLES = {"front": "after", "held": "before", "broken": "worse"}


@dataclasses.dataclass(frozen=True)
class ListedTrial:
    """A trial in the table of all trials; `recipe`: its steps as a recipe writes them."""

    trial: TrialWords
    id: str
    recipe: str


@dataclasses.dataclass(frozen=True)
class SearchSection:
    """What the template shows of a search."""

    title: str
    text: str
    front: Markup
    legend: tuple[tuple[str, str], ...]
    history: Markup
    cost: str
    quality: str
    #: The axis that shows the goal.
    goal: str
    rows: tuple[ListedTrial, ...]
    #: Whether trials tell their distance to the limits.
    limited: bool
    #: With where each is in the table, empty where it is not listed.
    nearest: tuple[tuple[NearestWords, str], ...]
    more: int
    rejected: int


def section(report: Report) -> SearchSection | None:
    """The search; `None` for reports of other commands."""
    tuned = tune_facts.search(report)
    if tuned is None:
        return None
    axes = tuned.axes
    trials = tune_facts.trials(tuned)
    drawn = [trial for trial in trials if trial.x is not None and trial.y is not None]
    return SearchSection(
        title="Trade-offs tried",
        text=_text(tuned, len(drawn)),
        front=_front(drawn, tuned),
        legend=(("after", "on the front"), ("before", "within the limits"), ("worse", "beyond a limit")),
        history=_history(trials, tuned),
        cost=tune_facts.label(axes.cost),
        quality=tune_facts.label(axes.quality),
        goal=tune_facts.goal_axis(tuned),
        rows=tuple(map(_row, trials[:LISTED])),
        limited=any(trial.margins for trial in trials),
        nearest=tuple((one, _link(one)) for one in tune_facts.nearest(tuned)),
        more=max(0, len(trials) - LISTED),
        rejected=sum(1 for trial in trials if trial.reason),
    )


def _row(trial: TrialWords) -> ListedTrial:
    return ListedTrial(trial, _anchor(trial.number), write({"steps": list(trial.steps)}))


def _anchor(number: int) -> str:
    return f"trial-{number}"


def _text(tuned: Tune, drawn: int) -> str:
    count = len(tuned.trials)
    limits = "; ".join(tuned.limits) or "none"
    ended = f" The search ended: {tuned.ended}." if tuned.ended else ""
    share = " Times are shares of the original's." if tuned.axes.cost.kind == "ratio" else ""
    return words.printable(
        f"{words.plural(count, 'trial')}, {drawn} measured to the end.{share} Limits: {limits}. "
        f"Seed {tuned.seed}.{ended}",
        900,
    )


def _front(trials: Sequence[TrialWords], tuned: Tune) -> Markup:
    """Points that lead to their recipe, the limits, and how the best was found; cost to the right, quality upwards."""
    if not trials:
        return Markup("")
    across = Scale.across([trial.x or 0.0 for trial in trials], _places(tuned, "cost"))
    upwards = Scale.upwards([trial.y or 0.0 for trial in trials], [-at for at in _places(tuned, "quality")])
    places = [(across.at(trial.x or 0.0), upwards.at(trial.y or 0.0)) for trial in trials]
    cost, quality = tune_facts.label(tuned.axes.cost), tune_facts.label(tuned.axes.quality)
    body = [
        Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(_HEIGHT - _BOTTOM),
        _text_at("100%", _HEIGHT - 8, "end", cost + (", log scale" if across.log else "") + " →"),
        _text_at("0", 12, "start", f"↑ {quality}"),
        *_ticks(trials, tuned, across, upwards, places),
        *_limits(tuned, across, upwards, places),
    ]
    body += _stairs(sorted(place for trial, place in zip(trials, places, strict=True) if trial.kind == "front"))
    at = {trial.number: place for trial, place in zip(trials, places, strict=True)}
    path = [at[index + 1] for index in tune_facts.improved(tuned) if index + 1 in at]
    body += [_line("path", *one, *other) for one, other in itertools.pairwise(path)]
    order = sorted(range(len(trials)), key=lambda i: (trials[i].kind == "front", trials[i].best))
    body += [_dot(trials[i], *places[i]) for i in order]
    body += _numbers([(number, *at[number]) for index in tune_facts.improved(tuned) if (number := index + 1) in at])
    text = f"{cost} against {quality}, one point a trial"
    return charts.joined([charts.svg("Trade-offs tried", text, _HEIGHT, body)])


@dataclasses.dataclass(frozen=True)
class Scale:
    """From a cost to per cent of the width, or from a quality to pixels from the top."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def across(cls, values: Iterable[float], limits: Iterable[float]) -> Scale:
        """Costs span decades (a network 50 times faster): a logarithm keeps the interesting end apart."""
        low, high = _ends([*values, *limits])
        if low > 0:
            return cls(math.log(low), math.log(high), 4.0, 96.0, log=True)
        return cls(low, high, 4.0, 96.0)

    @classmethod
    def upwards(cls, values: Sequence[float], limits: Sequence[float]) -> Scale:
        """What is far below the limits stands at the lower edge: else it presses what matters into one line."""
        low, high = _ends([*values, *limits])
        best = _ends(values)[1]
        if reach := max((abs(best - limit) for limit in limits), default=0.0):
            low = max(low, min(best, *limits) - _BELOW * reach)
        return cls(low, high, _HEIGHT - _BOTTOM - 10.0, _TOP)

    def at(self, value: float) -> float:
        """Where a value is drawn; one beyond the ends at the end."""
        place = math.log(value) if self.log else value
        share = (place - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)


def _ends(values: Iterable[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    return min(finite), max(finite)


def _places(tuned: Tune, axis: str) -> list[float]:
    return [one.at for one in tuned.bounds if one.axis == axis and one.at is not None and math.isfinite(one.at)]


def _ticks(
    trials: Sequence[TrialWords], tuned: Tune, across: Scale, upwards: Scale, points: Sequence[tuple[float, float]]
) -> Iterable[Markup]:
    """The least and the most of each axis, where no other words stand."""
    by_cost = sorted(trials, key=lambda trial: trial.x or 0.0)
    columns = [across.at(at) for at in _places(tuned, "cost")]
    for trial, anchor in ((by_cost[0], "start"), (by_cost[-1], "end")):
        place = across.at(trial.x or 0.0)
        if all(abs(place - other) > 16 for other in columns):
            columns.append(place)
            yield _text_at(f"{place:.2f}%", _HEIGHT - 26, anchor, trial.cost)
    by_quality = sorted(trials, key=lambda trial: trial.y or 0.0)
    rows = [upwards.at(-at) for at in _places(tuned, "quality")]
    for trial in (by_quality[0], by_quality[-1]):
        place = upwards.at(trial.y or 0.0)
        if all(abs(place - other) > 20 for other in rows):
            rows.append(place)
            cut = (trial.y or 0.0) < upwards.low
            least = f"{tune_facts.axis_value(-upwards.low, tuned.axes.quality)} and less"
            yield _aside(place - 9, least if cut else trial.quality, points)


def _limits(tuned: Tune, across: Scale, upwards: Scale, points: Sequence[tuple[float, float]]) -> Iterable[Markup]:
    """A line for each limit that lies on an axis, with what it says; at the left where points stand at the right."""
    line = Markup('<line class="limit" x1="{}" x2="{}" y1="{}" y2="{}"><title>{}</title></line>')
    rows: list[float] = []
    for bound, said in zip(tuned.bounds, tuned.limits, strict=False):
        if bound.at is None or not math.isfinite(bound.at):
            continue
        short = said.removeprefix(bound.metric).strip()
        if bound.axis == "cost":
            x = across.at(bound.at)
            yield line.format(f"{x:.2f}%", f"{x:.2f}%", _TOP - 8, _HEIGHT - _BOTTOM, said)
            yield _text_at(f"{x:.2f}%", _HEIGHT - 26, "end" if x > 60 else "start" if x < 40 else "middle", short)
        elif bound.axis == "quality":
            y = upwards.at(-bound.at)
            yield line.format("0", "100%", f"{y:.1f}", f"{y:.1f}", said)
            yield _aside(y - 5, short, points, rows)
            rows.append(y)


def _aside(y: float, said: str, points: Sequence[tuple[float, float]], rows: Sequence[float] = ()) -> Markup:
    """At the right; at the left where points (with their numbers) or limits in `rows` stand at the right alone."""

    def near(left: float, right: float) -> bool:
        return any(left <= x <= right and -14 < top - y < 20 for x, top in points)

    full = near(82, 100) or any(abs(y + 5 - top) < 14 for top in rows)
    return _text_at("0", y, "start", said) if full and not near(0, 12) else _text_at("100%", y, "end", said)


def _text_at(x: str, y: float, anchor: str, said: str) -> Markup:
    return Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, said)


def _line(style: str, x: float, y: float, next_x: float, next_y: float) -> Markup:
    return Markup('<line class="{}" x1="{:.2f}%" y1="{:.1f}" x2="{:.2f}%" y2="{:.1f}"/>').format(
        style, x, y, next_x, next_y
    )


def _stairs(points: Sequence[tuple[float, float]]) -> Iterable[Markup]:
    """The front as stairs: to the right of a point nothing better is known until the next one."""
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        yield _line("front", x, y, next_x, y)
        yield _line("front", next_x, y, next_x, next_y)


def _numbers(path: Sequence[tuple[int, float, float]]) -> Iterable[Markup]:
    """The number of each trial that became the best, the last first: one that would cover another is left out."""
    placed: list[tuple[float, float]] = []
    for number, x, y in reversed(path):
        if all(abs(x - other) > 3 or abs(y - top) > 14 for other, top in placed):
            placed.append((x, y))
            yield Markup('<text class="step" x="{:.2f}%" y="{:.1f}" dx="8" dy="-8">{}</text>').format(x, y, number)


def _dot(trial: TrialWords, x: float, top: float) -> Markup:
    said = f"{trial.number}. {trial.name}: {trial.cost}, {trial.quality}, {trial.file}"
    said += f"\n{trial.why}" if trial.why else ""
    return Markup(
        '<a href="#{}"><circle class="{}{}" cx="{:.2f}%" cy="{:.1f}" r="{}"><title>{}</title></circle></a>'
    ).format(
        _anchor(trial.number),
        _STYLES[trial.kind],
        " chosen" if trial.best else "",
        x,
        top,
        8 if trial.best else 6 if trial.kind == "front" else 4,
        said,
    )


def _link(one: NearestWords) -> str:
    return _anchor(one.number) if one.number is not None and one.number <= LISTED else ""


def _history(trials: Sequence[TrialWords], tuned: Tune) -> Markup:
    """Each trial that was better than all before it."""
    goal = tune_facts.goal_axis(tuned)
    rows: list[Bar] = []
    for index in tune_facts.improved(tuned):
        trial = trials[index]
        said, amount = (trial.cost, trial.x) if goal == "cost" else (trial.quality, trial.y)
        rows.append(Bar(f"{trial.number}. {trial.name}", said, (("after", abs(amount or 0.0)),)))
    label = tune_facts.label(tuned.axes.cost if goal == "cost" else tuned.axes.quality)
    text = f"Each trial within the limits that was better in {label} than all before it."
    return charts.bars("How the best was found", text, rows)
