"""Inside GitHub Actions: the job's summary and annotations on the lines that set a gate, for every command alike."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from lepton_cli.errors import LeptonError, OutputError

if TYPE_CHECKING:
    from lepton_cli.report.model import Report


def active() -> bool:
    """Whether this process runs as a step of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true" or bool(os.environ.get("GITHUB_STEP_SUMMARY"))


def publish(report: Report, *, always: bool = False) -> None:
    """Append the summary and print annotations, when in GitHub Actions or `always`.

    Annotations go to stderr, which GitHub reads as well: stdout stays what the user asked for. A summary that cannot
    be written is a warning: it must not change what the run itself found.
    """
    if not (always or active()):
        return
    from lepton_cli.report import github

    sys.stderr.write(github.annotations(report))
    try:
        github.append_summary(report, os.environ)
    except OutputError as error:
        sys.stderr.write(f"warning: {error.message}: {error.cause}\n")


def announce(error: LeptonError) -> None:
    """An annotation for an error that ended a command before it had a report, when in GitHub Actions."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from lepton_cli.report import github

        sys.stderr.write(github.error_annotation(error))
