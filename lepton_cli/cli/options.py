"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lepton_cli.errors import UsageError

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX model to work on; it is never changed.")]
RecipeOption = Annotated[Path, typer.Option("--recipe", "-r", metavar="RECIPE", help="The recipe, a YAML file.")]
OptionalRecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", "-r", metavar="RECIPE", help="The recipe, a YAML file; without it a safe one is chosen."),
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the model and the reports.")
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a recipe value, as in `steps.1.target.macs=50%`; repeatable."
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="PATH", help="Without a recipe: data to calibrate with, and to judge on if labelled."
    ),
]
LabelsOption = Annotated[
    str | None, typer.Option("--labels", metavar="NAME", help="With --data: the array or column of labels.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the machine-readable result on stdout and nothing else.")
]
AllowCodeOption = Annotated[
    bool, typer.Option("--allow-code", help="Let the recipe run its own Python (loaders, metrics). Off by default.")
]
BaselineOption = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="FILE", help="What gates with `against: baseline` compare with (lepton baseline update)."
    ),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Inconclusive and skipped gates fail too.")]
ProviderOption = Annotated[
    str | None, typer.Option("--provider", metavar="NAME", help="Execution provider: cpu, cuda, or onnxruntime's name.")
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=SIZES",
        help="Without data: the shape of an input, batch included, as in `input=1x3x224x224`; repeatable.",
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def check_either(recipe: Path | None, overrides: list[str] | None, data: Path | None, labels: str | None) -> None:
    """For commands that take a recipe or data. Raises UsageError for `--set` without a recipe, for data with one."""
    if recipe is None and overrides:
        raise UsageError("usage.set-without-recipe", "--set changes a recipe, so it needs -r RECIPE")
    for option, given in (("--data", data), ("--labels", labels)):
        if recipe is not None and given is not None:
            raise UsageError(
                "usage.data-with-recipe", f"{option} goes without a recipe; with -r the recipe names the data"
            )


def shapes(given: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """`input=1x3x224x224` as numbers. Raises UsageError."""
    found = {}
    for text in given or ():
        match = re.fullmatch(r"(.+)=([1-9][0-9]{0,8}(?:x[1-9][0-9]{0,8})*)", text)
        if match is None:
            raise UsageError("usage.shape", f"--shape {text}: write the input and its sizes: `input=1x3x224x224`")
        found[match[1]] = tuple(int(size) for size in match[2].split("x"))
    return found
