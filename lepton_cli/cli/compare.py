"""`lepton compare`: two models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lepton_cli.cli import measuring, options
from lepton_cli.cli.boundary import boundary, conclude, printable

if TYPE_CHECKING:
    from rich.console import Console

    from lepton_cli.report.model import Report

#: Changed layers shown; the rest is in the report.
_SHOWN = 12


@boundary
def command(
    first: Annotated[Path, typer.Argument(metavar="A", help="The model to compare with.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The model that is judged.")],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", metavar="RECIPE", help="Takes data, metrics and gates from it.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="PATH", help="Without a recipe: the data.")] = None,
    labels: options.LabelsOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write report.json, .md and .html here.")
    ] = None,
    provider: measuring.ProvidersOption = None,
    batch: measuring.BatchOption = None,
    threads: measuring.ThreadsOption = None,
    time: measuring.TimeOption = None,
    precision: measuring.PrecisionOption = None,
    budget: Annotated[
        Path | None, typer.Option("--budget", metavar="FILE", help="Judge these gates instead of the recipe's.")
    ] = None,
    baseline: options.BaselineOption = None,
    strict: options.StrictOption = False,
    overrides: options.OverridesOption = None,
    allow_code: options.AllowCodeOption = False,
    json_output: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Compare two models: size, graph, agreement of their outputs, accuracy on the same samples, latency in turn.

    Without recipe and data both run on the same random inputs.

    Examples:  `lepton compare a.onnx b.onnx -r recipe.yaml`  ·  `lepton compare a.onnx b.onnx --data test.npz`
    """
    from lepton_cli.cli.console import TerminalProgress, make_console
    from lepton_cli.commands.compare import compare
    from lepton_cli.commands.job import prepare
    from lepton_cli.commands.run import Arguments, Run
    from lepton_cli.recipe.load import load_budget
    from lepton_cli.report import store

    given = measuring.latency_options(provider, batch, threads, time, precision)
    source = measuring.recipe_or_data(first, recipe, data, labels, given, overrides)
    arguments = Arguments(
        "compare",
        (first, second),
        recipe=recipe,
        overrides=tuple(overrides or ()),
        data=data,
        labels=labels,
        output=output,
        budget=budget,
        baseline=baseline,
        provider=tuple(provider or ()),
        batch=batch,
        threads=threads,
        time=time,
        precision=precision,
        strict=strict,
        allow_code=allow_code,
    )
    result = compare(
        prepare(first, source, allow_code=allow_code, steps=False),
        second,
        TerminalProgress(),
        output=output,
        budget=load_budget(budget) if budget is not None else None,
        baseline=baseline,
        strict=strict,
        from_recipe=recipe is not None,
        run=Run(arguments),
    )
    if json_output:
        typer.echo(store.to_json(result.report))
    else:
        _show(result.report, make_console(), result.files)
    conclude(result.report, result.error, debug=debug)


def _show(report: Report, console: Console, files: tuple[Path, ...]) -> None:
    from lepton_cli.cli.console import show_report

    show_report(report, console)
    console.print()
    for variant in report.variants:
        console.print(printable(f"{variant.name:11s} {variant.file.path}"))
    _show_graph(report, console)
    if files:
        console.print()
        console.print("wrote " + ", ".join(str(file) for file in files))


def _show_graph(report: Report, console: Console) -> None:
    """What differs in the graph."""
    from lepton_cli.cli.console import plain_table
    from lepton_cli.report import sections

    found = sections.graph(report, _SHOWN)
    if found is None:
        return
    console.print()
    console.print(plain_table([("graph", "left"), ("", "left")], [list(fact) for fact in found.facts]))
    if found.rows:
        console.print()
        console.print(plain_table([(cell, "left") for cell in found.header], [list(row) for row in found.rows]))
    if found.more:
        console.print(f"and {found.more} more changed layers (--json lists all)")
