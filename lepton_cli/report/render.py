"""Every rendering of a report by the name a user gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lepton_cli.report import store
from lepton_cli.report.model import Report

ReportFormat = Literal["json", "md", "html", "junit", "github"]
#: Name of the file that a rendering is written to beside the model.
FILES: dict[ReportFormat, str] = {
    "json": "report.json",
    "md": "report.md",
    "html": "report.html",
    "junit": "report.junit.xml",
    "github": "report.github.txt",
}


def render(report: Report, kind: ReportFormat) -> str:
    """The report in that form. Libraries are imported only for the form that needs them."""
    if kind == "json":
        return store.to_json(report)
    if kind == "md":
        from lepton_cli.report import markdown

        return markdown.render(report)
    if kind == "html":
        from lepton_cli.report import html

        return html.render(report)
    if kind == "junit":
        from lepton_cli.report import junit

        return junit.render(report)
    from lepton_cli.report import github

    return github.annotations(report)


def write(report: Report, folder: Path, kinds: tuple[ReportFormat, ...]) -> tuple[Path, ...]:
    """Write each rendering into the folder, atomically. Raises OutputError."""
    written = []
    for kind in kinds:
        path = folder / FILES[kind]
        store.write_text(render(report, kind), path)
        written.append(path)
    return tuple(written)
