"""One run of a command: how it was asked for, since when, what is known so far, and how to do it again."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from lepton_cli.commands.assemble import RunClock, assemble, broken
from lepton_cli.commands.measuring import Measured
from lepton_cli.errors import LeptonError
from lepton_cli.recipe.load import LoadedRecipe
from lepton_cli.report.model import Report


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A command line as it was given: everything that changes the result, and nothing that changes how it is shown.

    The fields after `models` are options in the order of `_OPTIONS`; `None`, `False` and `()` were not given.
    """

    command: str
    models: tuple[Path, ...]
    recipe: Path | None = None
    #: `--set`, as written.
    overrides: tuple[str, ...] = ()
    data: Path | None = None
    labels: str | None = None
    output: Path | None = None
    #: `--from`: an earlier report of `tune`.
    earlier: Path | None = None
    budget: Path | None = None
    baseline: Path | None = None
    provider: tuple[str, ...] = ()
    batch: str | None = None
    threads: str | None = None
    time: str | None = None
    precision: str | None = None
    shape: tuple[str, ...] = ()
    strict: bool = False
    allow_code: bool = False

    @classmethod
    def of(cls, command: str, model: Path, recipe: LoadedRecipe, **options: Any) -> Arguments:
        """Of a command called from Python with a recipe."""
        return cls(command, (model,), recipe=recipe.path, overrides=recipe.overrides, **options)

    def line(self) -> str:
        """For a shell in the same folder; empty where the models are no files that it could name."""
        if not self.models:
            return ""
        parts = ["lepton", self.command, *map(str, self.models)]
        for field, option in _OPTIONS.items():
            value = getattr(self, field)
            if value is True:
                parts.append(option)
            elif value is not False and value is not None:
                for one in value if isinstance(value, tuple) else (value,):
                    parts += [option, str(one)]
        return shlex.join(parts)


_OPTIONS = {
    "recipe": "-r",
    "overrides": "--set",
    "data": "--data",
    "labels": "--labels",
    "earlier": "--from",
    "budget": "--budget",
    "baseline": "--baseline",
    "provider": "--provider",
    "batch": "--batch",
    "threads": "--threads",
    "time": "--time",
    "precision": "--precision",
    "shape": "--shape",
    "strict": "--strict",
    "allow_code": "--allow-code",
    "output": "-o",
}


class Run:
    """Made when a command begins; collects what its report says, so that there is one whatever happens."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.clock = RunClock()
        self.warnings: list[str] = []
        #: Filled while measuring: what an interrupt or an error leaves is in the report.
        self.measured = Measured()

    def report(self, **parts: Any) -> Report:
        """What is known so far as a complete report; `parts` are further fields."""
        return assemble(
            self.arguments.command,
            self.clock,
            warnings=[*self.warnings, *parts.pop("warnings", ())],
            reproduce=self.arguments.line(),
            **{**self.measured.parts(), **parts},
        )

    def partial(self, error: LeptonError | None, **parts: Any) -> Report:
        """The report of a run that broke off; without an error it was interrupted."""
        return broken(self.report(**parts), error)
