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
    ├── DiskFullError         3  no room for what has to be written; 2 where nothing has begun
    ├── StepError             3  a step failed or produced a broken model
    └── MeasurementError      3  a measurement failed

An error says what is wrong (`message`), where (`where`), why (`cause`) and what to do (`hint`). `code` is a
stable word for machines, such as `recipe.unknown-key`.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence


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

    def __init__(self, extra: str, package: str, purpose: str, besides: str = "") -> None:
        super().__init__(
            "environment.missing-extra",
            f"{purpose} needs the package `{package}`, which is not installed",
            hint=f"pip install 'lepton-cli[{extra}]'" + (f"; {besides}" if besides else ""),
        )


class OutputError(LeptonError):
    """The result cannot be written where asked."""

    exit_code = ExitCode.CANNOT_START


class DiskFullError(LeptonError):
    """There is no room for what has to be written. `places`: the file or folder, or those that come into question."""

    exit_code = ExitCode.FAILED

    def __init__(self, *places: str | os.PathLike[str] | None, begun: bool = True) -> None:
        named = [_temporary() if place is None else os.fspath(place) for place in places]
        free = sorted((room, place) for place in named if (room := _free(place)) is not None)
        super().__init__(
            "disk.full",
            "the disk is full",
            where=free[0][1] if free else None,
            cause=", ".join(f"{_amount(room)} are free in {place} now" for room, place in free) or None,
            hint="free space there, or write elsewhere: -o for results, the variable TMPDIR for temporary files",
        )
        if not begun:
            self.exit_code = ExitCode.CANNOT_START


class StepError(LeptonError):
    """A step failed, or what it made is not a valid model."""

    exit_code = ExitCode.FAILED


class MeasurementError(LeptonError):
    """A measurement failed."""

    exit_code = ExitCode.FAILED


#: Characters of a cause: all of nearly every message of onnxruntime, which may quote the signature of a C++ function.
_MOST = 900
#: File systems give room in pieces of so many bytes.
_BLOCK = 4096
_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name)}
#: How libraries say it that keep no number: onnxruntime, protobuf, other processes; numpy.
_SAID = re.compile(
    "|".join(map(re.escape, map(os.strerror, sorted(_FULL))))
    + r"|Not enough free space to write|\d+ requested and \d+ written"
)


def cause_of(error: BaseException | str) -> str:
    """What a library says of an error, as one line; of a very long one both ends, since the reason stands in either."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= _MOST:
        return text
    return f"{text[: _MOST // 2].rsplit(' ', 1)[0]} … {text[-(_MOST // 2) :].split(' ', 1)[-1]}"


def disk_full(
    error: BaseException, *folders: str | os.PathLike[str] | None, begun: bool = True
) -> DiskFullError | None:
    """The error to show when a full disk is behind `error`, however a library has wrapped it; else `None`.

    `folders` are those that were written to, `None` the one for temporary files: the fullest is named where the system
    does not tell which file it was.
    """
    for one in _behind(error):
        if isinstance(one, DiskFullError):
            return one
        if isinstance(one, OSError) and one.errno is not None:
            if one.errno in _FULL:
                return DiskFullError(*([one.filename] if isinstance(one.filename, str) else folders), begun=begun)
        elif _SAID.search(f"{one} {one.cause if isinstance(one, LeptonError) else ''}"):
            return DiskFullError(*folders, begun=begun)
    return None


def check_room(path: str | os.PathLike[str]) -> None:
    """Raises OSError where nothing more can be written: for libraries that write without saying that they could not."""
    room = _free(os.fspath(path))
    if room is not None and room < _BLOCK:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The error and all that led to it."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [before for before in (one.__context__, one.__cause__) if before is not None]


def _amount(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _temporary() -> str:
    """The folder for temporary files. Python looks for one that it can write to, and may find none by now."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return os.environ.get("TMPDIR", "/tmp")


def _free(place: str) -> int | None:
    """Bytes free where a file or folder is, or would be."""
    while True:
        try:
            return shutil.disk_usage(place or ".").free
        except OSError:
            if place in ("", os.path.dirname(place)):
                return None
            place = os.path.dirname(place)
