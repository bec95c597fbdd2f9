"""Options of the commands that measure without a recipe, read into the form of a recipe's `evaluate.latency`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lepton_cli.cli import options
from lepton_cli.errors import UsageError

if TYPE_CHECKING:
    from lepton_cli.recipe.load import LoadedRecipe

ProvidersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        metavar="NAME",
        help="Execution provider (cpu, cuda, …); repeatable. `cuda?` is skipped where it is missing.",
    ),
]
BatchOption = Annotated[str | None, typer.Option("--batch", metavar="N,N", help="Batch sizes, as in `1,32`.")]
ThreadsOption = Annotated[
    str | None, typer.Option("--threads", metavar="N,N", help="Threads, as in `2` or `2,1`; default: the usable cores.")
]
TimeOption = Annotated[
    str | None, typer.Option("--time", metavar="TIME", help="Longest time for one provider and batch size: `10 s`.")
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", metavar="SHARE", help="Half-width of the interval to stop at: `1%`.")
]


def latency_options(
    providers: Sequence[str] | None,
    batches: str | None,
    threads: str | None,
    time: str | None,
    precision: str | None,
) -> dict[str, object]:
    """What was given, as the keys of `evaluate.latency`. Raises UsageError for lists of what is no number."""
    given: dict[str, object] = {"time": time, "precision": precision}
    if providers:
        given["providers"] = [{"name": name.removesuffix("?"), "optional": name.endswith("?")} for name in providers]
    if batches is not None:
        given["batch"] = _numbers("batch", batches, "batch sizes are whole numbers such as `1,32`")
    if threads is not None:
        given["threads"] = _numbers("threads", threads, "threads are whole numbers such as `2` or `2,1`")
    return {key: value for key, value in given.items() if value is not None}


def _numbers(option: str, text: str, meant: str) -> list[int]:
    if not re.fullmatch(r" *[1-9][0-9]{0,8}( *, *[1-9][0-9]{0,8})* *", text):
        raise UsageError(f"usage.{option}", f"--{option} {text}: {meant}")
    return list(dict.fromkeys(int(number) for number in text.split(",")))


def recipe_or_data(
    model: Path,
    recipe: Path | None,
    data: Path | None,
    labels: str | None,
    latency: dict[str, object],
    overrides: list[str] | None,
) -> LoadedRecipe:
    """The recipe file with the options put in, or a recipe made of the options alone. Raises LeptonError."""
    options.check_either(recipe, overrides, data, labels)
    if recipe is None:
        from lepton_cli.commands import adhoc
        from lepton_cli.model import io

        return adhoc.recipe(io.load(model).model, latency, data=data, labels=labels)
    from lepton_cli.recipe.load import load_recipe

    if latency:
        raise UsageError(
            "usage.latency-with-recipe",
            f"with -r the recipe says how latency is measured, not --{next(iter(latency)).removesuffix('s')}",
            hint=f"--set evaluate.latency.{next(iter(latency))}=…",
        )
    return load_recipe(recipe, overrides or ())
