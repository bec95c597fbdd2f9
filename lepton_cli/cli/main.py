"""The `lepton` command: the list of commands and nothing else."""

from __future__ import annotations

import typer

from lepton_cli import __version__
from lepton_cli.cli import (
    baseline,
    bench,
    compare,
    compress,
    doctor,
    evaluate,
    gate,
    init,
    inspect,
    plan,
    schema,
    steps,
    tune,
)
from lepton_cli.cli import report as report_command

app = typer.Typer(
    name="lepton",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help starts in half the time of Rich's.
    rich_markup_mode=None,
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


for name, function, summary in (
    ("compress", compress.command, "Compress a model, measure it, judge it: the main job."),
    ("tune", tune.command, "Search for the best model under limits."),
    ("plan", plan.command, "Show what a recipe would do, without doing it."),
    ("inspect", inspect.command, "Show what a model is made of."),
    ("bench", bench.command, "Measure the latency of one or several models."),
    ("evaluate", evaluate.command, "Measure the accuracy of a model."),
    ("compare", compare.command, "Compare two models: size, graph, outputs, accuracy, latency."),
    ("gate", gate.command, "Judge a report again, or a bare model's size."),
    ("report", report_command.command, "Render a stored report again."),
    ("init", init.command, "Write a commented recipe for a model."),
    ("doctor", doctor.command, "Check this machine."),
    ("steps", steps.command, "List the steps and their options."),
    ("schema", schema.command, "Print JSON Schema for editors."),
):
    app.command(name, short_help=summary)(function)
app.add_typer(baseline.app, name="baseline", short_help="Accept a report as the state that later runs compare with.")


def run() -> None:
    """Entry point of the console script."""
    app()
