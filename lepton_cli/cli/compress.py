"""`lepton compress`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary, conclude


@boundary
def command(
    model: options.ModelArgument,
    recipe: options.OptionalRecipeOption = None,
    output: options.OutputOption = Path("out"),
    data: options.DataOption = None,
    labels: options.LabelsOption = None,
    overrides: options.OverridesOption = None,
    shape: options.ShapeOption = None,
    baseline: options.BaselineOption = None,
    strict: options.StrictOption = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on after the last finished step of a run into DIR that was stopped; else start anew."
        ),
    ] = False,
    allow_code: options.AllowCodeOption = False,
    json_output: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Compress a model: run the recipe's steps, measure original and result side by side, judge, write.

    DIR receives NAME.onnx, report.json, report.md, report.html and recipe.resolved.yaml.

    Without a recipe a safe one is chosen from the model, the data and this machine, and saved beside the result.

    Examples:  `lepton compress model.onnx -r recipe.yaml -o out`  ·  `lepton compress model.onnx --data calib.npz`
    """
    from lepton_cli.cli.console import TerminalProgress, make_console, show_report
    from lepton_cli.commands.compress import compress
    from lepton_cli.commands.run import Arguments, Run
    from lepton_cli.recipe.load import load_recipe
    from lepton_cli.report import store

    options.check_either(recipe, None, data, labels)
    progress = TerminalProgress()
    if recipe is None:
        from lepton_cli.commands.choose import choose

        chosen = choose(model, data, labels, progress, overrides=overrides or ())
    else:
        chosen = load_recipe(recipe, overrides or ())
    given = Arguments(
        "compress",
        (model,),
        recipe=recipe,
        overrides=tuple(overrides or ()),
        data=data,
        labels=labels,
        output=output,
        baseline=baseline,
        shape=tuple(shape or ()),
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
        given=options.shapes(shape),
    )
    if json_output:
        typer.echo(store.to_json(result.report))
    else:
        console = make_console()
        show_report(result.report, console)
        if result.files:
            console.print()
            console.print("wrote " + ", ".join(str(file) for file in result.files))
    conclude(result.report, result.error, debug=debug)
