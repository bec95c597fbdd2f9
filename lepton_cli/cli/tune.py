"""`lepton tune`: the search, live on a terminal, a line per trial elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary
from lepton_cli.errors import ExitCode


@boundary
def command(
    model: options.ModelArgument,
    recipe: options.RecipeOption,
    output: options.OutputOption = Path("out"),
    earlier: Annotated[
        Path | None,
        typer.Option("--from", metavar="REPORT", help="A report.json of `tune`: begin with its trials, judged anew."),
    ] = None,
    overrides: options.OverridesOption = None,
    allow_code: options.AllowCodeOption = False,
    json_output: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Search steps and their options for the best model under the recipe's limits (`tune:`).

    DIR receives the best model so far, recipe.best.yaml (ready for `compress`) and the reports, complete at every
    moment. A search that was stopped goes on where it was when started again; several processes may share DIR.

    Examples:  `lepton tune model.onnx -r tune.yaml -o out`
    ·  `lepton tune model.onnx -r stricter.yaml --from out/report.json -o out2`
    """
    from lepton_cli.cli.console import make_console, show_report
    from lepton_cli.cli.tune_view import make_view, show_search
    from lepton_cli.commands.tune import tune
    from lepton_cli.recipe.load import load_recipe
    from lepton_cli.report import store

    chosen = load_recipe(recipe, overrides or ())
    with make_view() as view:
        result = tune(model, chosen, output, view, earlier=earlier, allow_code=allow_code)
    if json_output:
        typer.echo(store.to_json(result.report))
    else:
        console = make_console()
        show_report(result.report, console)
        show_search(result.report, console)
        console.print()
        console.print("wrote " + ", ".join(str(file) for file in result.files))
    if result.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    raise typer.Exit(ExitCode.GATE_FAILED if result.report.status == "gate_failed" else ExitCode.OK)
