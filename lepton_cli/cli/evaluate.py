"""`lepton evaluate`: accuracy of one model."""

from __future__ import annotations

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary, printable
from lepton_cli.errors import ExitCode


@boundary
def command(
    model: options.ModelArgument,
    recipe: options.RecipeOption,
    overrides: options.OverridesOption = None,
    allow_code: options.AllowCodeOption = False,
    json_output: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Measure the accuracy of a model on the recipe's evaluation data. The recipe's steps are not run.

    Example:  `lepton evaluate model.onnx -r recipe.yaml`
    """
    from lepton_cli.cli.console import TerminalProgress, comparison, make_console, show_headline
    from lepton_cli.commands.evaluate import evaluate
    from lepton_cli.commands.job import prepare
    from lepton_cli.recipe.load import load_recipe
    from lepton_cli.report import store

    job = prepare(model, load_recipe(recipe, overrides or ()), allow_code=allow_code)
    report = evaluate(job, TerminalProgress())
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
