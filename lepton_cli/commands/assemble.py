"""Putting a report together: what every command's report says about models, machine, recipe and time."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Mapping
from typing import Any

from lepton_cli.errors import LeptonError
from lepton_cli.measure import size
from lepton_cli.measure.environment import environment
from lepton_cli.model import io
from lepton_cli.recipe.load import LoadedRecipe
from lepton_cli.report import headline
from lepton_cli.report.model import Failure, FileFacts, RecipeFacts, Report, Variant

#: The error of a run that was stopped from outside.
INTERRUPTED = Failure(code="interrupted", message="interrupted")


@dataclasses.dataclass(frozen=True)
class RunClock:
    """When a run began."""

    started: float = dataclasses.field(default_factory=time.monotonic)
    created: str = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    )

    @property
    def seconds(self) -> float:
        """Time since."""
        return time.monotonic() - self.started


def variant(name: str, loaded: io.LoadedModel, macs: Mapping[str, int] | None) -> Variant:
    """File, size and structure of one model."""
    facts = FileFacts(path=str(loaded.path), sha256=loaded.sha256, name=loaded.model.graph.name or "")
    return Variant(name=name, file=facts, size=size.measure(loaded.stored, loaded.given or loaded.model, macs=macs))


def recipe_facts(recipe: LoadedRecipe) -> RecipeFacts:
    """The recipe as the report holds it."""
    return RecipeFacts(
        name=recipe.name,
        path=str(recipe.path) if recipe.path else None,
        sha256=recipe.sha256,
        resolved=recipe.resolved(),
    )


def assemble(command: str, clock: RunClock, **parts: Any) -> Report:
    """A complete report of a command; `parts` are its fields. Warnings of the measurements are collected.

    The machine is looked at anew unless `environment` is among the parts.
    """
    warnings = list(parts.pop("warnings", ()))
    for part in (parts.get("accuracy"), parts.get("latency")):
        warnings += part.warnings if part is not None else ()
    report = Report(
        command=command,
        status="ok",
        complete=True,
        headline="",
        created=clock.created,
        environment=parts.pop("environment", None) or environment(),
        warnings=tuple(dict.fromkeys(warnings)),
        seconds=clock.seconds,
        **parts,
    )
    return report.model_copy(update={"headline": headline.headline(report)})


def broken(report: Report, error: LeptonError | None) -> Report:
    """The report as what is left of a run that broke off; without an error it was interrupted."""
    status = "failed" if error else "interrupted"
    said = Failure.model_validate(error.to_dict()) if error else INTERRUPTED
    report = report.model_copy(update={"status": status, "complete": False, "error": said})
    return report.model_copy(update={"headline": headline.headline(report)})
