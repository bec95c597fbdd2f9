"""`lepton report`: render a stored report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary

Format = Literal["text", "html", "md", "junit", "github", "json"]


@boundary
def command(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json.")],
    to: Annotated[Format, typer.Option("--to", help="The rendering.")] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here instead of stdout.")
    ] = None,
    debug: options.DebugOption = False,
) -> None:
    """Render a report as text, HTML, Markdown, JUnit XML, GitHub annotations or JSON."""
    from lepton_cli.cli.console import make_console, show_report
    from lepton_cli.report import render, store

    found = store.read(report)
    if to == "text":
        show_report(found, make_console())
        return
    text = render.render(found, to)
    if output is None:
        typer.echo(text)
    else:
        store.write_text(text, output)
