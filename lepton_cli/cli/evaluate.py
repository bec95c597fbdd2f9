"""`lepton evaluate`: accuracy of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lepton_cli.cli import measuring, options
from lepton_cli.cli.boundary import boundary, printable
from lepton_cli.errors import ExitCode, UsageError


@boundary
def command(
    model: options.ModelArgument,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", metavar="RECIPE", help="Takes data and metrics from it.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="PATH", help="Without a recipe: the labelled data.")
    ] = None,
    labels: options.LabelsOption = None,
    overrides: options.OverridesOption = None,
    allow_code: options.AllowCodeOption = False,
    json_output: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Measure the accuracy of a model on the recipe's evaluation data, or on labelled data. No steps are run.

    Examples:  `lepton evaluate model.onnx -r recipe.yaml`  ·  `lepton evaluate model.onnx --data test.npz`
    """
    from lepton_cli.cli.console import TerminalProgress, comparison, make_console, show_headline
    from lepton_cli.commands.evaluate import evaluate
    from lepton_cli.commands.job import prepare
    from lepton_cli.commands.run import Arguments, Run
    from lepton_cli.report import store

    if recipe is None and data is None:
        raise UsageError("usage.no-data", "accuracy is measured on data: give -r RECIPE or --data PATH")
    source = measuring.recipe_or_data(model, recipe, data, labels, {}, overrides)
    job = prepare(model, source, allow_code=allow_code, steps=False)
    arguments = Arguments(
        "evaluate",
        (model,),
        recipe=recipe,
        overrides=tuple(overrides or ()),
        data=data,
        labels=labels,
        allow_code=allow_code,
    )
    report = evaluate(job, TerminalProgress(), run=Run(arguments))
    if json_output:
        typer.echo(store.to_json(report))
    else:
        console = make_console()
        for warning in report.warnings:
            console.print(f"warning: {printable(warning)}", style="yellow")
        show_headline(report, console)
        console.print()
        console.print(comparison(report))
    if not report.complete:
        raise typer.Exit(ExitCode.INTERRUPTED)
