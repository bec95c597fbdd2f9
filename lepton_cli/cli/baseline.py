"""`lepton baseline`: the accepted state that gates with `against: baseline` compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Store the state that later runs compare with.")


@app.callback()
def _root() -> None:
    """One command so far; the callback keeps it a named one."""


@app.command("update", short_help="Accept a report as the new baseline.")
@boundary
def update(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="The report.json to accept.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The baseline file, kept in version control.")
    ] = Path("lepton-baseline.json"),
    debug: options.DebugOption = False,
) -> None:
    """Accept a report as the new baseline: its numbers without raw times, samples and verdicts.

    Example:  `lepton baseline update out/report.json -o lepton-baseline.json`
    """
    from lepton_cli.cli.boundary import printable
    from lepton_cli.report import baseline, store

    found = store.read(report)
    baseline.update(found, output)
    for verdict in found.gates:
        if verdict.verdict == "fail":
            typer.echo(printable(f"note: the gate on {verdict.metric} failed in this report"), err=True)
    typer.echo(f"wrote {output}: {printable(found.headline)}")
