"""How a search looks while it runs, and the table of its front at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lepton_cli.cli.boundary import printable
from lepton_cli.cli.console import is_live, make_console, plain_table
from lepton_cli.recipe.tuning import Objective
from lepton_cli.report import facts, words
from lepton_cli.report.model import Report
from lepton_cli.report.trial import Trial
from lepton_cli.report.tune_facts import axis_value
from lepton_cli.tune import front
from lepton_cli.tune.limits import Judge
from lepton_cli.units import format_duration

#: Rows of the front and of the newest trials in the live view.
_ROWS, _NEWEST = 8, 5


class View:
    """One line per trial."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.judge: Judge | None = None
        self.axes: tuple[Objective, Objective] | None = None
        self.seconds, self.most = 0.0, 0
        self.count = 0

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self, judge: Judge, axes: tuple[Objective, Objective], seconds: float, trials: int | None) -> None:
        """The search begins."""
        self.judge, self.axes, self.seconds, self.most = judge, axes, seconds, trials or 0
        self.began = time.monotonic()
        most = f" or {trials} trials" if trials else ""
        self.say(f"  searching for {format_duration(seconds)}{most}")

    def begin(self, name: str) -> None:
        """A candidate is being measured."""

    def end(self, trial: Trial, trials: Sequence[Trial], best: Trial | None) -> None:
        """It has been."""
        self.count = len(trials)
        mark = "best" if best is not None and best.key == trial.key else "ok" if not trial.reason else trial.reached
        self.say(
            f"  {self.count:4d}  {format_duration(trial.seconds):>8s}  {mark:8s}  {trial.name}   {self.said(trial)}"
        )

    def note(self, text: str) -> None:
        """A remark."""
        self.say(f"  {text}")

    def say(self, text: str) -> None:
        """One line of narration."""
        self.console.print(printable(text.rstrip()))

    def said(self, trial: Trial) -> str:
        """What was found, or why it ended."""
        if trial.reason:
            return trial.reason
        return ", ".join(part for part in self.numbers(trial) if part)

    def numbers(self, trial: Trial) -> list[str]:
        """The two sides of the trade-off and the size."""
        assert self.judge is not None
        assert self.axes is not None
        report = self.judge.report(trial)
        found = [_number(report, axis) for axis in self.axes]
        size = words.value(trial.size.file, "size") if trial.size else ""
        return [*found, *([size] if self.axes[0].metric != "size.file" else [])]


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

    def begin(self, name: str) -> None:
        self._now = name

    def end(self, trial: Trial, trials: Sequence[Trial], best: Trial | None) -> None:
        self._trials, self._best = list(trials), best

    def note(self, text: str) -> None:
        self._now = text

    def _picture(self) -> Group:
        if self.judge is None:
            return Group(Text(f"  {self._now} …"))
        left = max(0.0, self.seconds - (time.monotonic() - self.began))
        lines = [
            Text(f"  {len(self._trials)} trials, {format_duration(round(left))} left    now: {printable(self._now)}")
        ]
        if self._best is not None:
            lines.append(Text(f"  best: {printable(self._best.name)}   {self.said(self._best)}", style="bold"))
        rows = [[trial.name, *self.numbers(trial)] for trial in _front(self.judge, self.axes, self._trials)[:_ROWS]]
        parts: list[Text | object] = [*lines]
        if rows:
            parts += [Text("  front"), plain_table([("", "left"), *[("", "right")] * (len(rows[0]) - 1)], rows)]
        newest = [f"  {trial.name}: {self.said(trial)}" for trial in self._trials[-_NEWEST:]]
        parts += [Text("  newest"), *(Text(printable(line), style="dim") for line in newest)]
        return Group(*parts)  # type: ignore[arg-type]


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


def _number(report: Report, axis: Objective) -> str:
    found = facts.find(report, axis.metric, **axis.scope)
    if not found:
        return ""
    fact = found[0]
    if axis.metric == "latency.median" and fact.ratio is not None:
        return f"{words.times(1 / fact.ratio.value)} as fast"
    if fact.kind == "share" and fact.difference is not None:
        return f"{words.value(fact.value.value, fact.kind)} ({words.points(fact.difference.value)})"
    return words.value(fact.value.value, fact.kind, fact.unit)


def show_search(report: Report, console: Console) -> None:
    """The front and how the search ended."""
    tuned = report.tune
    if tuned is None:
        return
    rows = [row for row in tuned.trials if row.front]
    console.print()
    count = len(tuned.trials)
    console.print(f"search: {count} trials, {len(rows)} on the front" + (f"; {tuned.ended}" if tuned.ended else ""))
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
