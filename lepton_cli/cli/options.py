"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX model to work on; it is never changed.")]
RecipeFile = Annotated[Path, typer.Option("--recipe", "-r", metavar="RECIPE", help="The recipe, a YAML file.")]
OptionalRecipe = Annotated[
    Path | None,
    typer.Option("--recipe", "-r", metavar="RECIPE", help="The recipe, a YAML file; without it a safe one is chosen."),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the model and the reports.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a recipe value, as in `steps.1.target.macs=50%`; repeatable."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="PATH", help="Without a recipe: data to calibrate with, and to judge on if labelled."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable result on stdout and nothing else.")]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Let the recipe run its own Python (loaders, metrics). Off by default.")
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="FILE", help="What gates with `against: baseline` compare with (lepton baseline update)."
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Inconclusive and skipped gates fail too.")]
Provider = Annotated[
    str | None, typer.Option("--provider", metavar="NAME", help="Execution provider: cpu, cuda, or onnxruntime's name.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
