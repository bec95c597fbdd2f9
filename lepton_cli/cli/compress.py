"""`lepton compress`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary, show
from lepton_cli.errors import UsageError


@boundary
def command(
    model: options.Model,
    recipe: options.OptionalRecipe = None,
    output: options.Output = Path("out"),
    data: options.Data = None,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="NAME", help="With --data: the array or column that holds labels.")
    ] = None,
    overrides: options.Overrides = None,
    baseline: options.Baseline = None,
    strict: options.Strict = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on after the last finished step of a run into DIR that was stopped; else start anew."
        ),
    ] = False,
    allow_code: options.AllowCode = False,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compress a model: run the recipe's steps, measure original and result side by side, judge, write.

    DIR receives NAME.onnx, report.json, report.md, report.html and recipe.resolved.yaml.

    Without a recipe a safe one is chosen from the model, the data and this machine, and saved beside the result.

    Examples:  `lepton compress model.onnx -r recipe.yaml -o out`  ·  `lepton compress model.onnx --data calib.npz`
    """
    from lepton_cli.cli.console import TerminalProgress, make_console, show_report
    from lepton_cli.cli.github import publish
    from lepton_cli.commands.compress import compress
    from lepton_cli.commands.run import Arguments, Run
    from lepton_cli.recipe.load import load_recipe
    from lepton_cli.report import store

    progress = TerminalProgress()
    chosen = load_recipe(recipe, overrides or ()) if recipe is not None else None
    if chosen is None:
        from lepton_cli.commands.choose import choose

        if overrides:
            raise UsageError("usage.set-without-recipe", "--set changes a recipe, so it needs -r RECIPE")
        chosen = choose(model, data, labels, progress)
    elif data is not None:
        raise UsageError("usage.data-with-recipe", "--data goes without a recipe; with -r the recipe names the data")
    given = Arguments(
        "compress",
        (model,),
        recipe=recipe,
        overrides=tuple(overrides or ()),
        data=data,
        labels=labels,
        output=output,
        baseline=baseline,
        strict=strict,
        allow_code=allow_code,
    )
    result = compress(
        model,
        chosen,
        output,
        progress,
        allow_code=allow_code,
        strict=strict,
        baseline=baseline,
        run=Run(given),
        resume=resume,
    )
    if json_output:
        typer.echo(store.to_json(result.report))
    else:
        console = make_console()
        show_report(result.report, console)
        if result.files:
            console.print()
            console.print("wrote " + ", ".join(str(file) for file in result.files))
    publish(result.report)
    if result.error is not None:
        show(result.error)
        if debug:
            raise result.error
        raise typer.Exit(result.error.exit_code)
    raise typer.Exit(1 if result.report.status == "gate_failed" else 0)
