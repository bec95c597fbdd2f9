"""`lepton gate`: judge again without measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary
from lepton_cli.errors import ExitCode


@boundary
def command(
    subject: Annotated[Path, typer.Argument(metavar="REPORT|MODEL", help="A report.json, or a bare .onnx model.")],
    budget: Annotated[Path, typer.Option("--budget", "-b", metavar="FILE", help="The gates: a recipe's, alone.")],
    baseline: options.BaselineOption = None,
    strict: options.StrictOption = False,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write the verdicts as JUnit XML too.")
    ] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Print GitHub annotations; inside GitHub Actions this happens anyway.")
    ] = False,
    json_output: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Judge a stored report against a budget, or a bare model's size and structure. Nothing is measured.

    Ends with 0 when no gate of level `error` failed, else with 1; with 2 when a gate cannot be judged at all.

    Examples:  `lepton gate out/report.json --budget budget.yaml`  ·  `lepton gate model.onnx --budget size.yaml`
    """
    from lepton_cli.cli.github import publish
    from lepton_cli.commands.judge import judge
    from lepton_cli.recipe.load import load_budget
    from lepton_cli.report import store

    report = judge(subject, load_budget(budget), baseline=baseline, strict=strict)
    if junit is not None:
        from lepton_cli.report import render

        store.write_text(render.render(report, "junit"), junit)
    if json_output:
        typer.echo(store.to_json(report))
    else:
        from lepton_cli.cli.console import make_console, show_gates, show_headline

        console = make_console()
        show_headline(report, console)
        show_gates(report, console, every=True)
    publish(report, always=github)
    raise typer.Exit(ExitCode.GATE_FAILED if report.status == "gate_failed" else ExitCode.OK)
