"""`lepton bench`: latency, interleaved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lepton_cli.cli import measuring, options
from lepton_cli.cli.boundary import boundary
from lepton_cli.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import Console

    from lepton_cli.measure.results import Latency, LatencyChange, LatencyTable
    from lepton_cli.report.model import Report


@boundary
def command(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Models; the first is the reference.")],
    provider: measuring.ProvidersOption = None,
    batch: measuring.BatchOption = None,
    threads: measuring.ThreadsOption = None,
    time: measuring.TimeOption = None,
    precision: measuring.PrecisionOption = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="PATH", help="Real inputs; without it they are random.")
    ] = None,
    shape: options.ShapeOption = None,
    json_output: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Measure the latency of one or several models, run in turn so that the machine's noise hits all alike.

    Examples:  `lepton bench model.onnx`  ·  `lepton bench float.onnx int8.onnx --batch 1,32 --provider cuda?`
    """
    from lepton_cli.cli.console import TerminalProgress, make_console
    from lepton_cli.commands.bench import bench
    from lepton_cli.commands.run import Arguments, Run
    from lepton_cli.report import store

    arguments = Arguments(
        "bench",
        tuple(models),
        data=data,
        provider=tuple(provider or ()),
        batch=batch,
        threads=threads,
        time=time,
        precision=precision,
        shape=tuple(shape or ()),
    )
    report = bench(
        models,
        measuring.latency_options(provider, batch, threads, time, precision),
        TerminalProgress(),
        data=data,
        given=options.shapes(shape),
        run=Run(arguments),
    )
    if json_output:
        typer.echo(store.to_json(report))
    else:
        _show(report, make_console())
    if not report.complete:
        raise typer.Exit(ExitCode.INTERRUPTED)


def _show(report: Report, console: Console) -> None:
    from lepton_cli.cli.boundary import printable
    from lepton_cli.cli.console import show_headline

    show_headline(report, console)
    table = report.latency
    assert table is not None
    for setting in dict.fromkeys(result.setting for result in table.results):
        console.print()
        _show_case(table, [result for result in table.results if result.setting == setting], console)
    for notice in table.skipped:
        console.print(printable(f"\n{notice.what}: skipped: {notice.reason}"), style="dim")
    for warning in report.warnings:
        console.print(f"warning: {printable(warning)}", style="yellow")


def _show_case(table: LatencyTable, results: list[Latency], console: Console) -> None:
    """One table for a provider, batch size and number of threads."""
    from lepton_cli.cli.console import plain_table
    from lepton_cli.report import words

    first = results[0]
    changes = {c.variant: c for c in table.changes if c.setting == first.setting}
    with_p99 = any(result.p99 is not None for result in results)
    columns = [("model", "left"), ("median", "right"), ("95 % interval", "left")]
    columns += [("p99", "right")] if with_p99 else []
    columns += [("samples/s", "right")]
    columns += [("speed", "left"), ("95 % interval", "left")] if len(results) > 1 else []
    rows = [
        [
            result.variant,
            words.value(result.median, "time"),
            _interval(result),
            *([words.value(result.p99, "time") if result.p99 is not None else "-"] if with_p99 else []),
            words.significant(result.throughput),
            *(_speed(changes.get(result.variant)) if len(results) > 1 else ()),
        ]
        for result in results
    ]
    console.print(
        f"{first.provider} batch {first.batch} ({words.plural(first.threads, 'thread')}, n = {first.n:,})", style="bold"
    )
    console.print(plain_table(columns, rows))


def _interval(result: Latency) -> str:
    """Both bounds, the unit once where it is the same."""
    from lepton_cli.report import words

    low, high = (words.value(bound, "time") for bound in (result.low, result.high))
    same = low.split()[-1] == high.split()[-1]
    return f"[{low.split()[0]}, {high.split()[0]}] {low.split()[-1]}" if same else f"[{low}, {high}]"


def _speed(change: LatencyChange | None) -> tuple[str, str]:
    """How much faster than the reference, in words too, and the interval."""
    from lepton_cli.report import words

    if change is None:
        return "reference", ""
    word = words.speed(change.ratio, change.low, change.high)
    return f"{words.times(1 / change.ratio)} {'SLOWER' if word == 'slower' else word}", words.interval(
        1 / change.high, 1 / change.low
    )
