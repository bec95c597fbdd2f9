"""`lepton inspect`: what a model is made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary

if TYPE_CHECKING:
    from rich.console import Console

LARGEST = 12


@boundary
def command(
    model: options.ModelArgument,
    nodes: Annotated[bool, typer.Option("--nodes", help="List every node (the names that globs match).")] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="List every layer with weights, not only the largest.")
    ] = False,
    channels: Annotated[
        bool, typer.Option("--channels", help="List the groups of channels that pruning can remove.")
    ] = False,
    shape: options.ShapeOption = None,
    json_output: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Show operators, parameters, MACs, bytes, inputs and outputs, and what can be pruned or quantized and why not."""
    from lepton_cli.cli.console import make_console
    from lepton_cli.commands.inspect import inspect

    found = inspect(model, options.shapes(shape))
    if json_output:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    console = make_console()
    if nodes:
        _table(console, found["nodes"], ("name", "op", "outputs"))
    elif channels:
        _table(
            console, found["channel_groups"], ("group", "channels", "parameters", "macs_share", "prunable", "reason")
        )
    else:
        _overview(console, found)
        shown = found["layers"] if layers else found["layers"][:LARGEST]
        console.print(
            "\nlayers" if layers else f"\nlargest layers ({len(shown)} of {len(found['layers'])}; all: --layers)"
        )
        columns = ("node", "op", "weight_shape", "dtype", "parameters", "bytes", "macs")
        _table(console, shown, (*columns, "int8") if layers else columns)


def _table(console: Console, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    from lepton_cli.cli.console import plain_table

    numbers = {"parameters", "bytes", "macs", "macs_share", "channels"}
    columns = [(key.replace("_", " "), "right" if key in numbers else "left") for key in keys]
    console.print(plain_table(columns, [[_cell(row.get(key), key) for key in keys] for row in rows]))


def _cell(value: Any, key: str) -> str:
    from lepton_cli.units import format_count, format_size

    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "macs_share":
        return f"{100 * value:.1f} %"
    if key == "bytes":
        return format_size(value)
    if key in ("parameters", "macs"):
        return format_count(value)
    if isinstance(value, list):
        return "x".join(map(str, value)) if all(isinstance(item, int) for item in value) else ", ".join(map(str, value))
    return str(value)


def _overview(console: Console, found: dict[str, Any]) -> None:
    from lepton_cli.cli.console import plain_table
    from lepton_cli.units import format_count, format_size

    size = found["size"]
    operators = ", ".join(f"{count} {name}" for name, count in list(found["operators"].items())[:8])
    more = len(found["operators"]) - 8
    rows = [
        ["file", format_size(size["file"]) + (f"   gzip {format_size(size['gzip'])}" if size["gzip"] else "")],
        [
            "parameters",
            format_count(size["parameters"])
            + "   "
            + ", ".join(f"{k} {format_size(v)}" for k, v in size["by_dtype"].items()),
        ],
        ["MACs", "unknown" if size["macs"] is None else f"{format_count(size['macs'])} for {found['shapes']}"],
        ["nodes", f"{size['nodes']}: {operators}" + (f" and {more} more kinds" if more > 0 else "")],
        [
            "opset",
            f"{found['opset']}   IR {found['ir_version']}"
            + (f"   {', '.join(found['domains'])}" if found["domains"] else ""),
        ],
        *([f"input {info['name']}", f"{info['dtype']} {info['shape']}"] for info in found["inputs"]),
        *([f"output {info['name']}", f"{info['dtype']} {info['shape']}"] for info in found["outputs"]),
        ["prunable", found["prunable"]],
        ["quantizable", found["quantizable"]],
        *(["hazard", text] for text in found["hazards"]),
    ]
    console.print(plain_table([("", "left"), ("", "left")], rows))
