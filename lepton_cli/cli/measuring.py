"""Options of the commands that measure without a recipe, read into the form of a recipe's `evaluate.latency`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import typer

from lepton_cli.errors import UsageError

ProvidersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        metavar="NAME",
        help="Execution provider (cpu, cuda, …); repeatable. `cuda?` is skipped where it is missing.",
    ),
]
BatchOption = Annotated[str | None, typer.Option("--batch", metavar="N,N", help="Batch sizes, as in `1,32`.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="Threads; default: the usable cores.")]
TimeOption = Annotated[
    str | None, typer.Option("--time", metavar="TIME", help="Longest time for one provider and batch size: `10 s`.")
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", metavar="SHARE", help="Half-width of the interval to stop at: `1%`.")
]


def latency_options(
    providers: Sequence[str] | None,
    batches: str | None,
    threads: int | None,
    time: str | None,
    precision: str | None,
) -> dict[str, object]:
    """What was given, as the keys of `evaluate.latency`. Raises UsageError for batch sizes that are no numbers."""
    given: dict[str, object] = {"threads": threads, "time": time, "precision": precision}
    if providers:
        given["providers"] = [{"name": name.removesuffix("?"), "optional": name.endswith("?")} for name in providers]
    if batches is not None:
        if not re.fullmatch(r" *[1-9][0-9]{0,8}( *, *[1-9][0-9]{0,8})* *", batches):
            raise UsageError("usage.batch", f"--batch {batches}: batch sizes are whole numbers such as `1,32`")
        given["batch"] = list(dict.fromkeys(int(size) for size in batches.split(",")))
    return {key: value for key, value in given.items() if value is not None}
