"""`lepton schema`: JSON Schema for editors and other programs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary


class SchemaKind(StrEnum):
    """What there is a schema of."""

    recipe = "recipe"
    budget = "budget"
    report = "report"


@boundary
def command(
    kind: Annotated[SchemaKind, typer.Argument(help="What to describe.")] = SchemaKind.recipe,
    metrics: Annotated[bool, typer.Option("--metrics", help="List the metrics that gates can name instead.")] = False,
    debug: options.DebugOption = False,
) -> None:
    """Print the JSON Schema of recipes, budgets or reports.

    In an editor with the YAML language server, begin a recipe with
    `# yaml-language-server: $schema=recipe.schema.json`.
    """
    import json

    from lepton_cli.cli.console import make_console, plain_table
    from lepton_cli.metrics import METRICS
    from lepton_cli.schema import json_schema

    if metrics:
        rows = [[metric.name, metric.kind, metric.better, metric.meaning] for metric in METRICS.values()]
        columns = [("metric", "left"), ("kind", "left"), ("better", "left"), ("", "left")]
        make_console().print(plain_table(columns, rows))
        return
    typer.echo(json.dumps(json_schema(kind.value), indent=2, ensure_ascii=False))
