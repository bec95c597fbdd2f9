"""`lepton plan`: a dry run."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary, show

if TYPE_CHECKING:
    from rich.console import Console

    from lepton_cli.commands.plan import Plan
    from lepton_cli.report.model import StepRecord


@boundary
def command(
    model: options.ModelArgument,
    recipe: options.RecipeOption,
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="List every node of this step (1 is the first).")
    ] = None,
    overrides: options.OverridesOption = None,
    shape: options.ShapeOption = None,
    allow_code: options.AllowCodeOption = False,
    json_output: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Show what each step would touch, what it would leave and why, without writing anything.

    Example:  `lepton plan model.onnx -r recipe.yaml --step 2`
    """
    from lepton_cli.cli.console import TerminalProgress, make_console
    from lepton_cli.commands.plan import plan
    from lepton_cli.errors import UsageError
    from lepton_cli.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    found = plan(model, loaded, TerminalProgress(), allow_code=allow_code, given=options.shapes(shape))
    if step is not None and step > len(found.steps):
        raise UsageError("usage.step", f"the recipe has {len(found.steps)} steps, there is no step {step}")
    if json_output:
        typer.echo(json.dumps(_as_json(found), indent=2))
    elif step is not None:
        _show_nodes(found.steps[step - 1], make_console())
    else:
        _show(found, make_console())
    if found.error is not None:
        if not json_output:
            show(found.error)
        raise typer.Exit(found.error.exit_code)


def _as_json(found: Plan) -> dict[str, object]:
    return {
        "steps": [record.model_dump(mode="json") for record in found.steps],
        "bytes": list(found.sizes),
        "data": [facts.model_dump(mode="json") for facts in found.data],
        "providers": dict(found.providers),
        "warnings": list(found.warnings),
        **({} if found.error is None else {"error": found.error.to_dict()}),
    }


def _show(found: Plan, console: Console) -> None:
    from lepton_cli.cli.boundary import printable
    from lepton_cli.cli.console import plain_table
    from lepton_cli.units import format_size

    columns = [("step", "left"), ("changes", "right"), ("weights, about", "right"), ("", "left")]
    rows = [
        [f"{record.index + 1}  {record.step}", str(record.changed), format_size(size), record.summary]
        for record, size in zip(found.steps, found.sizes[1:], strict=True)
    ]
    console.print(plain_table(columns, rows))
    for record in found.steps:
        groups = Counter((decision.action, decision.reason) for decision in record.decisions)
        if groups:
            console.print(f"\n{record.index + 1}  {record.step}", style="bold")
        for (action, reason), count in groups.most_common(12):
            console.print(printable(f"   {count:5d}  {action}: {reason}"))
        if len(groups) > 12:
            console.print(f"          and {len(groups) - 12} more: --step {record.index + 1}")
    console.print()
    for facts in found.data:
        console.print(printable(f"data      {facts.role}: {facts.path}, {facts.samples} samples"))
    for name, state in found.providers:
        console.print(printable(f"provider  {name}: {state}"))
    for warning in found.warnings:
        console.print(f"warning: {printable(warning)}", style="yellow")


def _show_nodes(record: StepRecord, console: Console) -> None:
    from lepton_cli.cli.console import plain_table

    columns = [("node", "left"), ("operator", "left"), ("action", "left"), ("reason", "left")]
    console.print(plain_table(columns, [[d.node, d.op, d.action, d.reason] for d in record.decisions]))
