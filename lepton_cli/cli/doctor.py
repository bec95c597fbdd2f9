"""`lepton doctor`: is this machine ready, and how small a difference can be decided on it?"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary
from lepton_cli.errors import ExitCode


@boundary
def command(
    provider: options.ProviderOption = None,
    noise: Annotated[
        float, typer.Option("--noise", min=0, help="Seconds for the A/A test of the noise; 0 leaves it out.")
    ] = 5.0,
    json_output: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Check everything that makes numbers wrong or runs fail, with the fix.

    Every provider is really started on a small model; with --provider only that one must work.
    """
    from lepton_cli.cli.console import TerminalProgress, make_console, plain_table
    from lepton_cli.measure.doctor import checks

    found = checks(provider, progress=TerminalProgress(), noise_seconds=noise)
    failed = any(check.status == "fail" for check in found)
    if json_output:
        keys = ("name", "status", "found", "fix")
        typer.echo(json.dumps([{key: getattr(check, key) for key in keys} for check in found], indent=2))
    else:
        columns = [("", "left"), ("check", "left"), ("found", "left"), ("fix", "left")]
        make_console().print(plain_table(columns, [[c.status, c.name, c.found, c.fix or ""] for c in found]))
    raise typer.Exit(ExitCode.CANNOT_START if failed else ExitCode.OK)
