"""The output folder: whose it is, what may be in it, and that only one run writes there."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lepton_cli import scratch
from lepton_cli.errors import OutputError, disk_full

#: What lepton itself writes besides the model.
OWN_FILES = frozenset(
    (
        "report.json",
        "report.md",
        "report.html",
        "report.junit.xml",
        "recipe.yaml",
        "recipe.resolved.yaml",
        "recipe.best.yaml",
    )
)
LOCK = ".lepton.lock"
#: The metadata key that marks a model as a result, and how far from the end of the file it is looked for.
PROVENANCE = "lepton.source_sha256"
_TAIL = 65_536
_TEMPORARY = ".lepton-"
#: The journal of `lepton tune`: kept until the user removes it.
TUNE = ".lepton-tune"
#: What an interrupted `lepton compress` leaves for `--resume`.
RESUME = ".lepton-resume"
#: The input of the last step that failed.
FAILED = ".failed"


def check(folder: Path, model: Path | None, own: tuple[str, ...] = ()) -> None:
    """Raises OutputError unless `folder` is new, empty, or holds an earlier result of lepton and nothing else.

    `model`: the input's file, if it has one. `own`: names that this command writes besides.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputError("output.not-a-folder", f"{folder} is not a folder", hint="choose another -o DIR")
    parent = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not parent.is_dir():
        raise OutputError("output.not-a-folder", f"{folder} cannot be made: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise OutputError("output.not-writable", f"{folder} cannot be written: {parent} is not writable")
    if parent is not folder:
        return
    if model is not None and os.path.realpath(model.parent) == os.path.realpath(folder):
        raise OutputError(
            "output.is-input-folder",
            f"{folder} holds the input model",
            hint="choose another -o DIR: inputs are never touched",
        )
    foreign = sorted(name for name in os.listdir(folder) if name not in own and not _own(name, folder))
    if foreign:
        raise OutputError(
            "output.not-empty",
            f"{folder} holds other files: {', '.join(foreign[:3])}" + (" …" if len(foreign) > 3 else ""),
            hint="choose another -o DIR, or empty it",
        )


def _own(name: str, folder: Path) -> bool:
    if name in OWN_FILES or name in (LOCK, FAILED) or name.startswith(_TEMPORARY) or _is_temporary(name):
        return True
    return name.endswith((".onnx", ".onnx.data")) and _is_result(folder / name.removesuffix(".data"))


def _is_temporary(name: str) -> bool:
    """A file that an atomic write was about to rename."""
    return name.startswith(".") and name.endswith(".tmp")


def _is_result(path: Path) -> bool:
    """Did lepton write this model? It says where it came from at the end of the file (field 14 of a ModelProto)."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _TAIL))
            return PROVENANCE.encode() in stream.read()
    except OSError:
        return False


@contextlib.contextmanager
def use(folder: Path, *, resume: bool = False) -> Iterator[Path]:
    """Create and lock the folder; yields a scratch folder inside it that is removed at the end.

    Leftovers of killed and failed runs are removed first: the lock proves that nobody uses them. `resume`: what a run
    can go on from stays. A folder that this call made and that stayed empty is removed again. Raises OutputError when
    another run holds the lock or the folder cannot be written, DiskFullError when there is no room in it.
    """
    made = not folder.exists()
    with contextlib.ExitStack() as stack:
        if made:
            stack.callback(_remove_empty, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder))
            _reclaim(folder, {LOCK, TUNE, RESUME} if resume else {LOCK, TUNE})
            scratch = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=_TEMPORARY))
        except OSError as error:
            raise disk_full(error, folder, begun=False) or OutputError(
                "output.write",
                f"cannot write into {folder}",
                cause=error.strerror or str(error),
                hint="choose another -o DIR",
            ) from error
        yield Path(scratch)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """A scratch folder for what leaves nothing behind.

    Raises OutputError when none can be made, and DiskFullError for whatever fails in its use for want of room.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch.folder())
        except OSError as error:
            raise disk_full(error, None, begun=False) or OutputError(
                "output.write",
                "cannot write temporary files",
                cause=error.strerror or str(error),
                hint="name a folder for them in the variable TMPDIR",
            ) from error
        try:
            yield Path(folder)
        except Exception as error:
            full = disk_full(error, None)
            if full is None or full is error:
                raise
            raise full from error


def _reclaim(folder: Path, stays: set[str]) -> None:
    """Remove what earlier runs left; links are removed, never followed."""
    for entry in folder.iterdir():
        if entry.name in stays or not (
            entry.name.startswith(_TEMPORARY) or entry.name == FAILED or _is_temporary(entry.name)
        ):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    if (folder / RESUME).is_symlink():
        (folder / RESUME).unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / LOCK
    with path.open("w") as stream:
        busy = OutputError(
            "output.in-use",
            f"another lepton run is writing into {folder}",
            hint="wait for it, or choose another -o DIR",
        )
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # Windows: no lock, two runs into one folder are the user's risk
        except BlockingIOError as error:
            raise busy from error
        if not path.exists() or path.stat().st_ino != os.fstat(stream.fileno()).st_ino:
            raise busy  # the run before removed this file while it was being opened, and another may hold the new one
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
