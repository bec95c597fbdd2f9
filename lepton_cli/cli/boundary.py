"""The one place where errors become messages and exit codes."""

from __future__ import annotations

import _thread
import functools
import json
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from lepton_cli.cli.github import announce, publish
from lepton_cli.cli.streams import LostResultError
from lepton_cli.errors import ExitCode, LeptonError, Place, cause_of, disk_full

if TYPE_CHECKING:
    from lepton_cli.report.model import Report

_LONGEST = 1000
#: Seconds until a signal that met an import comes again.
_SOON = 0.02
F = TypeVar("F", bound=Callable[..., Any])


def boundary(function: F) -> F:
    """Wrap a command: a LeptonError is printed as one message, Ctrl-C and SIGTERM end in 130.

    With `--json` the error goes to stdout as an object; with `--debug` the traceback follows.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        stops = _listen()
        try:
            try:
                function(*args, **kwargs)
            finally:
                # Here, where an error still becomes a message; Python's own flush at exit is too late.
                sys.stdout.flush()
        except KeyboardInterrupt as error:
            _interrupted(error)
        except Exception as error:
            if stops and not isinstance(error, typer.Exit):
                # Compiled libraries raise an error of their own where the signal met them.
                _interrupted(error)
            if isinstance(error, typer.Exit) or type(error).__module__.startswith(("typer", "click")):
                raise
            said = _said(error)
            show(said, as_json=bool(kwargs.get("json_output")) and not isinstance(error, LostResultError))
            if isinstance(error, LeptonError):
                announce(said)
            _leave(error, said.exit_code, bool(kwargs.get("debug")))

    return wrapper  # type: ignore[return-value]


def conclude(report: Report, error: LeptonError | None, *, debug: bool) -> NoReturn:
    """End a command whose report was shown: annotations on GitHub, the error that broke it off, the exit code."""
    publish(report)
    if report.status == "interrupted":
        raise typer.Exit(ExitCode.INTERRUPTED)
    if error is not None:
        show(error)
        if debug:
            raise error
        raise typer.Exit(error.exit_code)
    raise typer.Exit(ExitCode.GATE_FAILED if report.status == "gate_failed" else ExitCode.OK)


def _leave(error: BaseException, code: ExitCode, debug: bool) -> None:
    if debug:
        raise error
    raise typer.Exit(code) from error


def _listen() -> list[int]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt from here on, and are noted in the list that is returned."""
    stops: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            later = threading.Timer(_SOON, _again, [number])
            later.daemon = True
            later.start()
            return
        stops.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGINT, interrupt)
    return stops


def _again(number: int) -> None:
    """The signal once more, which ends a wait of the main thread where the system can send it there."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being loaded: compiled ones end the process when an exception meets them there."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _interrupted(error: BaseException) -> NoReturn:
    sys.stderr.write("interrupted\n")
    raise typer.Exit(ExitCode.INTERRUPTED) from error


def _said(error: Exception) -> LeptonError:
    """What the user is told."""
    if isinstance(error, LostResultError):
        return error
    if (full := disk_full(error, ".", None)) is not None:
        return full
    return error if isinstance(error, LeptonError) else _unforeseen(error)


def _unforeseen(error: Exception) -> LeptonError:
    if isinstance(error, MemoryError):
        return LeptonError("memory.exhausted", "not enough memory", hint="free memory, or use fewer samples per batch")
    if isinstance(error, OSError) and error.errno is not None:
        return LeptonError(
            "system",
            f"the operating system refuses: {error.strerror or error}",
            where=None if error.filename is None else str(error.filename),
            hint="should this machine be in order, report it with the output of --debug",
        )
    text = cause_of(str(error)) if str(error) else ""
    return LeptonError(
        "internal",
        f"unforeseen error: {type(error).__name__}" + (f": {text}" if text else ""),
        hint="this is a defect of lepton: please report it with the output of --debug",
    )


def show(error: LeptonError, *, as_json: bool = False) -> None:
    """Print an error: to stderr as text, or to stdout as JSON."""
    if as_json:
        sys.stdout.write(json.dumps({"error": error.to_dict()}, ensure_ascii=False) + "\n")
        return
    sys.stderr.write(render(error) + "\n")


def render(error: LeptonError) -> str:
    """The text of an error: code, place with the source line, cause, note, help."""
    lines = [f"error[{error.code}]: {_one_line(error.message)}"]
    if isinstance(error.where, Place):
        lines.append(f"  --> {error.where}")
        if error.where.source:
            margin = len(str(error.where.line))
            source = printable(error.where.source.rstrip())
            start = min(error.where.column - 1, len(source))
            marks = "^" * max(1, min(error.where.length, len(source) - start))
            lines += [f"{error.where.line} | {source}", f"{' ' * margin} | {' ' * start}{marks}"]
    elif error.where:
        lines.append(f"  --> {_one_line(str(error.where))}")
    lines += [f"  {label}: {_one_line(text)}" for label, text in (("cause", error.cause), ("note", error.note)) if text]
    if error.hint:
        lines.append(f"   = help: {printable(error.hint)}")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    """At most `_LONGEST` printable characters on one line: a name from a file may be a novel."""
    text = printable(" ".join(text.splitlines()))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def printable(text: str) -> str:
    """Without control characters: names come from files and must not steer the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
