"""How a search looks while it runs, and the table of its front at the end."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Collection, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lepton_cli.cli.boundary import printable
from lepton_cli.cli.console import is_live, make_console, plain_table
from lepton_cli.commands.tune_report import bound
from lepton_cli.recipe.tuning import Objective
from lepton_cli.report import facts, tune_facts, words
from lepton_cli.report.facts import Fact
from lepton_cli.report.model import Report
from lepton_cli.report.trial import Band, Forecast, Trial
from lepton_cli.report.tune_facts import axis_value
from lepton_cli.tune import front
from lepton_cli.tune.limits import Judge
from lepton_cli.units import format_duration

#: Rows of the front and of the newest trials in the live view.
_ROWS, _NEWEST = 8, 3
#: What is done between trials.
_CHOOSING = "choosing what to try"
#: Between the parts of a line.
_GAP = "   "


class View:
    """One line per trial."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.judge: Judge | None = None
        self.axes: tuple[Objective, Objective] | None = None
        self.seconds, self._headed = 0.0, False

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self, judge: Judge, axes: tuple[Objective, Objective], seconds: float, trials: int | None) -> None:
        """The search begins."""
        self.judge, self.axes, self.seconds = judge, axes, seconds
        self.began = time.monotonic()
        most = f" or {trials} trials" if trials else ""
        self.say(f"  searching for {format_duration(seconds)}{most}")

    def begin(self, name: str) -> None:
        """A candidate is being measured."""

    def end(self, trial: Trial, trials: Sequence[Trial], best: Trial | None) -> None:
        """It has been."""
        self._clock(trial)
        if not self._headed:
            self._headed = True
            self.say(_prefix("", "left", "") + "candidate")
        prefix = _prefix(str(len(trials)), self.left(), _mark(trial, best))
        for line in _filled(prefix, self.told(trial), self.console.width):
            self.say(line)

    def note(self, text: str) -> None:
        """A remark."""
        self.say(f"  {text}")

    def say(self, text: str) -> None:
        """One line of narration."""
        self.console.print(printable(text.rstrip()))

    def _clock(self, trial: Trial) -> None:
        """A search that goes on where it was began earlier: its trials know the time."""
        if trial.elapsed:
            self.began = time.monotonic() - trial.elapsed

    def left(self) -> str:
        """The time left."""
        seconds = round(self.seconds - (time.monotonic() - self.began))
        return format_duration(seconds) if seconds > 0 else "0 s"

    def told(self, trial: Trial) -> list[str]:
        """All there is to say about a trial: its name, what was found, and why it was chosen."""
        return [trial.name, *self.found(trial), tune_facts.reason(trial.why, trial.forecast)]

    def found(self, trial: Trial) -> list[str]:
        """The goal and the distance to each limit, both with what was expected; or why the trial ended."""
        assert self.judge is not None
        bounds = tuple(map(bound, self.judge.limits))
        margins = self.judge.margins(trial)
        distances = tune_facts.distances(bounds, margins, trial.forecast)
        if ended := tune_facts.ends(trial, distances):
            return [ended]
        told = {bounds[one.limit].metric for one in margins} - {self.judge.goal.metric}
        return [*self.numbers(trial, told, trial.forecast), *(one.text for one in distances)]

    def numbers(self, trial: Trial, told: Collection[str] = (), forecast: Forecast | None = None) -> list[str]:
        """The two sides of the trade-off and the size, without those that their limits have `told` already."""
        assert self.judge is not None
        assert self.axes is not None
        report = self.judge.report(trial)
        guesses = {self.judge.goal: forecast.goal} if forecast else {}
        found = [_number(report, axis, guesses.get(axis)) for axis in self.axes if axis.metric not in told]
        if trial.size and "size.file" not in {*told, self.axes[0].metric}:
            found.append(words.value(trial.size.file, "size"))
        return [number for number in found if number]


class LiveView(View):
    """A picture that is redrawn: the best, the front, the newest trials, the time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._now = "measuring the original"
        self._trials: Sequence[Trial] = ()
        self._best: Trial | None = None
        self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._picture)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def start(self, judge: Judge, axes: tuple[Objective, Objective], seconds: float, trials: int | None) -> None:
        super().start(judge, axes, seconds, trials)
        self._now = _CHOOSING

    def begin(self, name: str) -> None:
        self._now = name

    def end(self, trial: Trial, trials: Sequence[Trial], best: Trial | None) -> None:
        self._clock(trial)
        self._trials, self._best = list(trials), best
        self._now = _CHOOSING

    def note(self, text: str) -> None:
        self._now = text

    def _picture(self) -> Group:
        if self.judge is None:
            return Group(Text(f"  {self._now} …"))
        lines = [
            Text(f"  {words.plural(len(self._trials), 'trial')}, {self.left()} left    now: {printable(self._now)}")
        ]
        if self._best is not None:
            lines += self._lines("  best: ", [self._best.name, *self.found(self._best)], "bold")
        rows = [[trial.name, *self.numbers(trial)] for trial in _front(self.judge, self.axes, self._trials)[:_ROWS]]
        parts: list[Text | object] = [*lines]
        if rows:
            parts += [Text("  front"), plain_table([("", "left"), *[("", "right")] * (len(rows[0]) - 1)], rows)]
        parts += [Text("  newest")] if self._trials else []
        for trial in self._trials[-_NEWEST:]:
            parts += self._lines(f"  {_mark(trial, self._best):8s}  ", self.told(trial), "dim")
        return Group(*parts)  # type: ignore[arg-type]

    def _lines(self, prefix: str, parts: Sequence[str], style: str) -> list[Text]:
        return [Text(printable(line), style=style) for line in _filled(prefix, parts, self.console.width)]


def make_view() -> View:
    """Live where lines may be redrawn."""
    console = make_console(stderr=True)
    return LiveView(console) if is_live(console) else View(console)


def _front(judge: Judge, axes: tuple[Objective, Objective] | None, trials: Sequence[Trial]) -> list[Trial]:
    assert axes is not None
    measured = [trial for trial in trials if trial.complete]
    pairs = [(judge.value(trial, axes[0]), judge.value(trial, axes[1])) for trial in measured]
    usable = [(pair, trial) for pair, trial in zip(pairs, measured, strict=True) if None not in pair]
    return [usable[i][1] for i in front.pareto([pair for pair, _ in usable])]  # type: ignore[misc]


def _mark(trial: Trial, best: Trial | None) -> str:
    if best is not None and best.key == trial.key:
        return "best"
    return trial.reached if trial.reason else "ok"


def _prefix(number: str, left: str, mark: str) -> str:
    return f"  {number:>4s}  {left:>8s}  {mark:8s}  "


def _filled(prefix: str, parts: Sequence[str], width: int) -> list[str]:
    """The parts behind the prefix, and below each other where a line is full; only what is longer is broken."""
    room = max(width - len(prefix), 20)
    rows: list[list[str]] = [[]]
    for piece in (piece for part in parts for piece in textwrap.wrap(part, room, break_on_hyphens=False)):
        if rows[-1] and len(_GAP.join([*rows[-1], piece])) > room:
            rows.append([])
        rows[-1].append(piece)
    return [(" " * len(prefix) if index else prefix) + _GAP.join(row) for index, row in enumerate(rows)]


def _number(report: Report, axis: Objective, expected: Band | None = None) -> str:
    found = facts.find(report, axis.metric, **axis.scope)
    if not found:
        return ""
    fact = found[0]
    guess = tune_facts.expectation(_expected(fact, expected))
    if axis.metric == "latency.median" and fact.ratio is not None:
        return f"{words.times(1 / fact.ratio.value)} as fast{guess}"
    if fact.kind == "share" and fact.difference is not None:
        return f"{words.value(fact.value.value, fact.kind)} ({words.points(fact.difference.value)}){guess}"
    return words.value(fact.value.value, fact.kind, fact.unit) + guess


def _expected(fact: Fact, expected: Band | None) -> str:
    """The forecast of a goal, which counts times as ratios and lower as better, as the fact is told."""
    if expected is None or not expected.value:
        return ""
    if fact.metric == "latency.median" and fact.ratio is not None:
        return words.times(1 / expected.value)
    number = -expected.value if fact.about.better == "higher" else expected.value
    if fact.about.varies and fact.ratio is not None:
        number *= fact.value.value / fact.ratio.value
    return words.value(number, fact.kind, fact.unit)


def show_search(report: Report, console: Console) -> None:
    """The front and how the search ended."""
    tuned = report.tune
    if tuned is None:
        return
    rows = [row for row in tuned.trials if row.front]
    console.print()
    console.print(
        f"search: {words.plural(len(tuned.trials), 'trial')}, {len(rows)} on the front"
        + (f"; {tuned.ended}" if tuned.ended else "")
    )
    cost, quality = tuned.axes.cost, tuned.axes.quality
    cells = [
        [
            ("* " if row.key == tuned.best else "  ") + row.name,
            axis_value(row.cost, cost),
            axis_value(row.quality, quality),
            "" if row.file is None else words.value(row.file, "size"),
            "" if row.feasible else "beyond a limit",
        ]
        for row in sorted(rows, key=lambda row: row.cost or 0.0)
    ]
    names = [
        ("  candidate", "left"),
        (cost.metric, "right"),
        (quality.metric, "right"),
        ("file", "right"),
        ("", "left"),
    ]
    console.print(plain_table(names, cells))
    if listed := tune_facts.nearest(tuned):
        console.print()
        console.print("nothing holds all limits:")
        for one in listed:
            for line in _filled("  ", [one.text], console.width):
                console.print(line)
