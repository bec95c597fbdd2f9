"""What the user sees while lepton works: progress on stderr, results on stdout."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from lepton_cli.cli.boundary import printable
from lepton_cli.progress import Stage
from lepton_cli.report import bought
from lepton_cli.report.markdown import gate_name
from lepton_cli.report.model import Report, Verdict, VerdictWord
from lepton_cli.report.table import rows as table_rows
from lepton_cli.units import format_duration

#: Off a terminal, unless COLUMNS says otherwise.
WIDTH = 120
#: Seconds between signs of life off a terminal.
HEARTBEAT = 30.0


def make_console(*, stderr: bool = False) -> Console:
    """A console that neither cuts text off a terminal nor interprets it as markup."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def is_live(console: Console) -> bool:
    """May lines be redrawn? Not in CI and not off a terminal."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


class TerminalProgress:
    """Progress for people: bars on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = make_console(stderr=True)
        self._bars: Bars | None = None
        if is_live(self._console):
            self._bars = Bars(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
            )
        self.depth = 0

    def stage(self, name: str, total: int | None = None) -> Stage:
        """Begin a stage."""
        return _Stage(self, name, total)

    def say(self, text: str) -> None:
        """A remark that is good to know."""
        self.line(f"  {text}")

    def warn(self, text: str) -> None:
        """A remark, at once."""
        self.line(f"  warning: {text}", style="yellow")

    def line(self, text: str, style: str | None = None) -> None:
        """One line of narration."""
        (self._bars.console if self._bars else self._console).print(printable(text), style=style)

    @property
    def bars(self) -> Bars | None:
        """The live display, if any."""
        return self._bars


class _Stage:
    def __init__(self, progress: TerminalProgress, name: str, total: int | None) -> None:
        self._progress = progress
        self._name = name
        self._total = total
        self._done = 0
        self._note = ""
        self._timer: threading.Timer | None = None

    def advance(self, count: int = 1) -> None:
        self._done += count
        if self._progress.bars is not None:
            self._progress.bars.advance(self._task, count)

    def note(self, text: str) -> None:
        self._note = text

    def __enter__(self) -> Stage:
        self._started = time.monotonic()
        self._progress.depth += 1
        bars = self._progress.bars
        if bars is not None:
            if self._progress.depth == 1:
                bars.start()
            self._task = bars.add_task(self._name, total=self._total)
        elif self._progress.depth == 1:
            self._progress.line(f"  {self._name} …")
            self._beat()
        return self

    def _beat(self) -> None:
        self._timer = threading.Timer(HEARTBEAT, self._alive)
        self._timer.daemon = True
        self._timer.start()

    def _alive(self) -> None:
        count = f"  {self._done} of {self._total}" if self._total else ""
        self._progress.line(f"  {self._name} … {time.monotonic() - self._started:.0f} s{count}")
        self._beat()

    def __exit__(self, *exc: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        bars = self._progress.bars
        self._progress.depth -= 1
        if bars is not None:
            bars.remove_task(self._task)
            if self._progress.depth == 0:
                bars.stop()
        if self._progress.depth == 0 and exc[0] is None:
            seconds = format_duration(time.monotonic() - self._started)
            self._progress.line(f"  {self._name:28s} {seconds:>9s}  {self._note}".rstrip())


def plain_table(columns: list[tuple[str, str]], rows: list[list[str]]) -> Table:
    """A table without lines; `columns` are (heading, "left" | "right")."""
    table = Table(box=None, padding=(0, 3, 0, 0), show_edge=False, header_style="bold")
    for heading, side in columns:
        table.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(cell) for cell in row))
    return table


def comparison(report: Report) -> Table:
    """The table of original against compressed."""
    compared = len(report.variants) > 1
    name = report.recipe.name if report.recipe else report.command
    columns = [(name, "left"), ("original" if compared else "", "right")]
    columns += [("compressed", "right"), ("change", "right"), ("", "left")] if compared else [("", "left")]
    table = plain_table(columns, [])
    for column in table.columns[:-1]:
        column.no_wrap = True
    for row in table_rows(report):
        if not row.skipped:
            label = f"{row.label} {row.detail}".strip()
            cells = [label, row.original, *((row.compressed, row.change) if compared else ()), row.remark]
            table.add_row(*(printable(cell) for cell in cells), style=STYLES.get(row.tone))
    return table


#: The words carry the meaning; colour only repeats it.
STYLES = {"worse": "yellow"}
_VERDICTS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "skipped": "dim"}


#: Of the table of what each step bought: each row is what the steps until then made of the original.
BOUGHT = ("after step", "file", "speed", "exactness")


def show_report(report: Report, console: Console) -> None:
    """What a command prints about a report: the worst news first, the table, the gates."""
    show_headline(report, console)
    console.print()
    console.print(comparison(report))
    for row in table_rows(report):
        if row.skipped:
            console.print(f"{printable(row.label)}   skipped: {printable(row.skipped)}", style="dim")
    if listed := bought.rows(report):
        console.print()
        cells = [[row.name, row.size, row.speed, row.exactness] for row in listed]
        console.print(plain_table([(heading, "left") for heading in BOUGHT], cells))
    show_gates(report, console)
    for warning in report.warnings:
        console.print(f"warning: {printable(warning)}", style="yellow")


def show_headline(report: Report, console: Console) -> None:
    """The first line."""
    bad = report.status != "ok" or not report.complete
    console.print(printable(report.headline), style="bold red" if bad else "bold green")


def show_gates(report: Report, console: Console, *, every: bool = False) -> None:
    """How the gates ended: those that did not pass, or `every` one, with limit, value and place."""
    if not report.gates:
        return
    counts = Counter(verdict.verdict for verdict in report.gates)
    console.print()
    console.print(
        "gates: "
        + ", ".join(
            f"{counts[kind]} {word}" for kind, word in VERDICT_WORDS if counts[kind] or kind in ("pass", "fail")
        )
    )
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in ("verdict", "gate"):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for verdict in report.gates:
        if every or verdict.verdict != "pass":
            table.add_row(*map(printable, _gate_cells(verdict)), style=_VERDICTS[verdict.verdict])
    console.print(table)


def _gate_cells(verdict: Verdict) -> tuple[str, str, str]:
    """Verdict, gate, what was found and where the limit is set, with the reason and what to try below."""
    word = "warn" if verdict.verdict == "fail" and verdict.level == "warn" else verdict.verdict
    found = [f"limit {verdict.limit}", *([f"found {verdict.observed}"] if verdict.observed not in ("", "-") else [])]
    where = f"   {verdict.where}" if verdict.where else ""
    lines = [", ".join([*found, *filter(None, [verdict.excess])]) + where, verdict.reason, verdict.hint]
    return f"  {word}", gate_name(verdict), "\n".join(filter(None, lines))


VERDICT_WORDS: tuple[tuple[VerdictWord, str], ...] = (
    ("pass", "passed"),
    ("fail", "failed"),
    ("inconclusive", "inconclusive"),
    ("skipped", "skipped"),
)
