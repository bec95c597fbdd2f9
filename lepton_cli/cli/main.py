"""The `lepton` command: the list of commands and nothing else."""

from __future__ import annotations

import typer

from lepton_cli import __version__
from lepton_cli.cli import compress, doctor, init, inspect, plan, schema, steps
from lepton_cli.cli import report as report_command

app = typer.Typer(
    name="lepton",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compress trained ONNX models (prune, quantize, measure, judge) without a training framework.",
    epilog="Exit codes: 0 done · 1 a gate failed · 2 cannot start · 3 a step or measurement failed · 130 interrupted",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"lepton {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


MAIN, LOOK, SET_UP = "Work on a model", "Look at a model", "Set up"
app.command("compress", rich_help_panel=MAIN)(compress.command)
app.command("plan", rich_help_panel=MAIN)(plan.command)
app.command("report", rich_help_panel=MAIN)(report_command.command)
app.command("inspect", rich_help_panel=LOOK)(inspect.command)
app.command("init", rich_help_panel=SET_UP)(init.command)
app.command("doctor", rich_help_panel=SET_UP)(doctor.command)
app.command("steps", rich_help_panel=SET_UP)(steps.command)
app.command("schema", rich_help_panel=SET_UP)(schema.command)


def run() -> None:
    """Entry point of the console script."""
    app()
