"""The `lepton` command: the list of commands and nothing else."""

from __future__ import annotations

import importlib
import os
import sys

import typer

from lepton_cli.cli import boundary, streams
from lepton_cli.version import __version__

#: Every command is the file of its name beside this one, with a `command` or, for a group, an `app`.
COMMANDS = {
    "compress": "Compress a model, measure it, judge it: the main job.",
    "tune": "Search for the best model under limits.",
    "plan": "Show what a recipe would do, without doing it.",
    "inspect": "Show what a model is made of.",
    "bench": "Measure the latency of one or several models.",
    "evaluate": "Measure the accuracy of a model.",
    "compare": "Compare two models: size, graph, outputs, accuracy, latency.",
    "gate": "Judge a report again, or a bare model's size.",
    "baseline": "Accept a report as the state that later runs compare with.",
    "report": "Render a stored report again.",
    "init": "Write a commented recipe for a model.",
    "doctor": "Check this machine.",
    "steps": "List the steps and their options.",
    "schema": "Print JSON Schema for editors.",
}


def _version(show: bool) -> None:
    if show:
        typer.echo(f"lepton {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def _outline() -> None:
    """Stands for a command that is listed but not called."""


def make_app(called: str | None = None) -> typer.Typer:
    """The application. With `called` (a command's name, or "" for none) only that command is loaded.

    Typer reads the options of every command it is given, which would be half of the start-up time.
    """
    app = typer.Typer(
        name="lepton",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Plain help starts in half the time of Rich's.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Compress trained ONNX models (prune, quantize, measure, judge) without a training framework.",
        epilog="Exit codes: 0 done · 1 a gate failed · 2 cannot start · 3 a step or measurement failed · 130 stopped",
    )
    app.callback()(_root)
    for name, summary in COMMANDS.items():
        if called not in (None, name):
            app.command(name, short_help=summary)(_outline)
            continue
        module = importlib.import_module(f"lepton_cli.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, short_help=summary)
        else:
            app.command(name, short_help=summary)(module.command)
    return app


def run() -> None:
    """Entry point of the console script."""
    streams.protect()
    completing = "_LEPTON_COMPLETE" in os.environ
    called = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    try:
        try:
            make_app(None if completing else called)()
        finally:
            sys.stdout.flush()
    except streams.LostResultError as error:  # of --help and --version: commands handle their own
        boundary.show(error)
        sys.exit(error.exit_code)
