"""Every error a user can cause or meet, and the exit code it ends in.

    LeptonError
    ├── UsageError            2  command line: wrong option, wrong argument
    ├── RecipeError           2  recipe or budget file: syntax, unknown key, wrong value, glob without match
    ├── ModelError            2  the model file: missing, broken, unsupported, unsafe
    ├── DataError             2  calibration or evaluation data: missing, wrong names, shapes, labels
    ├── ReportError           2  a stored report or baseline that cannot be used
    ├── ProviderError         2  an execution provider that is not there
    ├── MissingExtraError     2  a package that an extra installs is not there
    ├── OutputError           2  the output folder or file cannot be written
    ├── StepError             3  a step failed or produced a broken model
    └── MeasurementError      3  a measurement failed

An error says what is wrong (`message`), where (`where`), why (`cause`) and what to do (`hint`). `code` is a
stable word for machines, such as `recipe.unknown-key`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence


class ExitCode(enum.IntEnum):
    """How a command ends; the same meaning for every command."""

    OK = 0
    GATE_FAILED = 1
    CANNOT_START = 2
    FAILED = 3
    INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Place:
    """A position in a text file. `line` and `column` count from 1; `length` is what to underline."""

    file: str
    line: int
    column: int
    source: str = ""
    length: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a measurement; `partial` is what was measured until then, `None` for nothing."""

    def __init__(self, partial: object = None) -> None:
        super().__init__("interrupted")
        self.partial = partial


class LeptonError(Exception):
    """Base of all errors shown to the user as one message.

    `option` is the path of a step option or recipe key the error is about, such as `("exclude", 0)`: whoever
    knows the recipe turns it into a `Place` with `at()`.
    """

    exit_code = ExitCode.FAILED

    def __init__(
        self,
        code: str,
        message: str,
        *,
        where: Place | str | None = None,
        cause: str | None = None,
        hint: str | None = None,
        note: str | None = None,
        option: Sequence[str | int] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.where = where
        self.cause = cause
        self.hint = hint
        self.note = note
        self.option = tuple(option)

    def at(self, place: Place | str | None) -> LeptonError:
        """The same error with a place, unless it already has one."""
        if self.where is None:
            self.where = place
        return self

    def to_dict(self) -> dict[str, object]:
        """The `error` object of `--json`."""
        return {
            "code": self.code,
            "message": self.message,
            "where": None if self.where is None else str(self.where),
            "cause": self.cause,
            "help": self.hint,
        }


class UsageError(LeptonError):
    """The command line is wrong."""

    exit_code = ExitCode.CANNOT_START


class RecipeError(LeptonError):
    """The recipe or budget file is wrong."""

    exit_code = ExitCode.CANNOT_START


class ModelError(LeptonError):
    """The model file cannot be used."""

    exit_code = ExitCode.CANNOT_START


class DataError(LeptonError):
    """Calibration or evaluation data cannot be used."""

    exit_code = ExitCode.CANNOT_START


class ReportError(LeptonError):
    """A stored report or baseline cannot be used."""

    exit_code = ExitCode.CANNOT_START


class ProviderError(LeptonError):
    """An execution provider is not available."""

    exit_code = ExitCode.CANNOT_START


class MissingExtraError(LeptonError):
    """A package that belongs to an extra is not installed."""

    exit_code = ExitCode.CANNOT_START

    def __init__(self, extra: str, package: str, purpose: str) -> None:
        super().__init__(
            "environment.missing-extra",
            f"{purpose} needs the package `{package}`, which is not installed",
            hint=f"pip install 'lepton-cli[{extra}]'",
        )


class OutputError(LeptonError):
    """The result cannot be written where asked."""

    exit_code = ExitCode.CANNOT_START


class StepError(LeptonError):
    """A step failed, or what it made is not a valid model."""

    exit_code = ExitCode.FAILED


class MeasurementError(LeptonError):
    """A measurement failed."""

    exit_code = ExitCode.FAILED
