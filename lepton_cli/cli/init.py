"""`lepton init`: a commented recipe for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary


@boundary
def command(
    model: options.ModelArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The recipe to write; default: MODEL.yaml here."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="PATH", help="Data to calibrate and judge with: its names go into the recipe."),
    ] = None,
    labels: options.LabelsOption = None,
    shape: options.ShapeOption = None,
    debug: options.DebugOption = False,
) -> None:
    """Write a commented recipe for this model and machine. Never overwrites.

    Example:  `lepton init model.onnx --data train.npz`
    """
    from lepton_cli.commands.init import write_recipe

    path = output or Path(f"{model.stem}.yaml")
    write_recipe(model, path, data, labels, options.shapes(shape))
    typer.echo(f"wrote {path}")
    sizes = "".join(f" --shape {one}" for one in shape or ())
    typer.echo(f"next: lepton plan {model} -r {path}{sizes}   then: lepton compress {model} -r {path}{sizes} -o out")
