"""The search of `lepton tune` in the HTML report: the front, how it went, what mattered, what was rejected and why."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import yaml
from markupsafe import Markup

from lepton_cli.report import charts, tune_facts, words
from lepton_cli.report.charts import Bar
from lepton_cli.report.model import Axes, Axis, Report, Tune
from lepton_cli.report.tune_facts import TrialWords

#: Trials listed; the rest is in report.json.
LISTED = 150
_HEIGHT = 300
_BOTTOM, _TOP = 44, 26
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
    importance: Markup
    cost: str
    quality: str
    rows: tuple[ListedTrial, ...]
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
        front=_front(drawn, axes),
        legend=(("after", "on the front"), ("before", "within the limits"), ("worse", "beyond a limit")),
        history=_history(trials, axes.cost),
        importance=_importance(tuned.importance),
        cost=tune_facts.label(axes.cost),
        quality=tune_facts.label(axes.quality),
        rows=tuple(map(_row, trials[:LISTED])),
        more=max(0, len(trials) - LISTED),
        rejected=sum(1 for trial in trials if trial.reason),
    )


def _row(trial: TrialWords) -> ListedTrial:
    recipe = yaml.safe_dump({"steps": list(trial.steps)}, sort_keys=False, default_flow_style=None, width=90)
    return ListedTrial(trial, _anchor(trial), recipe)


def _anchor(trial: TrialWords) -> str:
    return f"trial-{trial.number}"


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


def _front(trials: Sequence[TrialWords], axes: Axes) -> Markup:
    """Points that lead to their recipe; cost to the right, quality upwards."""
    if not trials:
        return Markup("")
    # Costs span decades (a network 50 times faster): a logarithm keeps the interesting end apart.
    xs, ys = [trial.x or 0.0 for trial in trials], [trial.y or 0.0 for trial in trials]
    if positive := all(x > 0 for x in xs):
        xs = [math.log(x) for x in xs]
    body = [
        Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(_HEIGHT - _BOTTOM),
        Markup('<text class="tick" x="100%" y="{}" text-anchor="end">{} →</text>').format(
            _HEIGHT - 8, tune_facts.label(axes.cost) + (", log scale" if positive else "")
        ),
        Markup('<text class="tick" x="0" y="12">↑ {}</text>').format(tune_facts.label(axes.quality)),
    ]
    ends = {min(range(len(xs)), key=lambda i: xs[i]): "start", max(range(len(xs)), key=lambda i: xs[i]): "end"}
    for index, anchor in ends.items():
        tick = Markup('<text class="tick" x="{:.2f}%" y="{}" text-anchor="{}">{}</text>')
        body.append(tick.format(_scaled(xs[index], xs), _HEIGHT - 26, anchor, trials[index].cost))
    heights = [_HEIGHT - _BOTTOM - 10 - (_HEIGHT - _BOTTOM - _TOP - 10) * _scaled(y, ys) / 100 for y in ys]
    for index in {min(range(len(ys)), key=lambda i: ys[i]), max(range(len(ys)), key=lambda i: ys[i])}:
        tick = Markup('<text class="tick" x="100%" y="{:.1f}" text-anchor="end">{}</text>')
        body.append(tick.format(heights[index] - 9, trials[index].quality))
    on_front = sorted((i for i in range(len(trials)) if trials[i].kind == "front"), key=lambda i: xs[i])
    body += _steps([(_scaled(xs[i], xs), heights[i]) for i in on_front])
    order = sorted(range(len(trials)), key=lambda i: (trials[i].kind == "front", trials[i].best))
    body += [_dot(trials[i], _scaled(xs[i], xs), heights[i]) for i in order]
    title, text = (
        "Trade-offs tried",
        f"{tune_facts.label(axes.cost)} against {tune_facts.label(axes.quality)}, one point a trial",
    )
    return charts.joined([charts.svg(title, text, _HEIGHT, body)])


def _steps(points: Sequence[tuple[float, float]]) -> Iterable[Markup]:
    """The front as stairs: to the right of a point nothing better is known until the next one."""
    line = Markup('<line class="front" x1="{:.2f}%" y1="{:.1f}" x2="{:.2f}%" y2="{:.1f}"/>')
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        yield line.format(x, y, next_x, y)
        yield line.format(next_x, y, next_x, next_y)


def _dot(trial: TrialWords, x: float, top: float) -> Markup:
    said = f"{trial.name}: {trial.cost}, {trial.quality}, {trial.file}"
    return Markup(
        '<a href="#{}"><circle class="{}{}" cx="{:.2f}%" cy="{:.1f}" r="{}"><title>{}</title></circle></a>'
    ).format(
        _anchor(trial),
        _STYLES[trial.kind],
        " chosen" if trial.best else "",
        x,
        top,
        8 if trial.best else 6 if trial.kind == "front" else 4,
        said,
    )


def _scaled(value: float, values: Iterable[float]) -> float:
    """Where a value lies between the least (4) and the largest (96), in per cent."""
    least, largest = min(values), max(values)
    return 4 + 92 * ((value - least) / (largest - least) if largest > least else 0.5)


def _history(trials: Sequence[TrialWords], axis: Axis) -> Markup:
    """Each trial that was better than all before it."""
    rows: list[Bar] = []
    best = math.inf
    for trial in trials:
        if trial.feasible and trial.x is not None and trial.x < best:
            best = trial.x
            rows.append(Bar(f"{trial.number}. {trial.name}", trial.cost, (("after", abs(best)),)))
    text = f"Each trial within the limits that was better in {tune_facts.label(axis)} than all before it."
    return charts.bars("How the best was found", text, rows)


def _importance(shares: Mapping[str, float]) -> Markup:
    rows = [Bar(name, f"{100 * share:.0f} %", (("after", share),)) for name, share in shares.items() if share > 0]
    text = "Share of the differences in cost that each part of the space explains alone."
    return charts.bars("What mattered", text, rows)
