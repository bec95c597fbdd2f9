"""The journal: one line per finished trial, appended and synchronised, read by every process of the search.

A line that a killed process left half-written is skipped. Claims are file locks, so a killed process holds none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from pydantic import ValidationError

from lepton_cli.errors import OutputError
from lepton_cli.report.trial import Trial
from lepton_cli.version import __version__

#: The first line. Another version's steps may give other models, so its trials do not count.
HEADER = {"lepton-tune": __version__}


class Store(Protocol):
    """Where trials are shared: a journal file, or an Optuna storage."""

    def trials(self) -> list[Trial]:
        """Every finished trial so far, oldest first."""

    def add(self, trial: Trial) -> None:
        """Share a finished trial; on disk when this returns."""

    def claim(self, key: str) -> contextlib.AbstractContextManager[bool]:
        """Hold a candidate: False when another process works on it."""


class Journal:
    """A folder with `journal.jsonl` and its locks. Raises OutputError for one that another version wrote."""

    def __init__(self, folder: Path, search: str) -> None:
        """`search`: hash of model, data and seed; trials of other searches in the same file are left alone."""
        self.folder, self.search = folder, search
        self.path = folder / "journal.jsonl"
        (folder / "locks").mkdir(parents=True, exist_ok=True)
        self._seen: list[Trial] = []
        self._read = 0
        self.skipped = 0
        # Under the lock: another process may just be creating the file, or have been killed while it did.
        with self._locked():
            if not self.path.exists() or not self.path.stat().st_size:
                self._write(HEADER)
            self._check()

    def _check(self) -> None:
        with self.path.open("rb") as stream:
            first = stream.readline(200)
        try:
            version = json.loads(first)["lepton-tune"]
        except (ValueError, KeyError, TypeError):
            version = None
        if version != __version__:
            raise OutputError(
                "tune.storage-version",
                f"{self.path} was written by {f'lepton {version}' if version else 'something else'}",
                cause=f"this is lepton {__version__}, and its trials are not comparable",
                hint="choose another -o DIR, or remove the file to start over",
            )

    def trials(self) -> list[Trial]:
        with self.path.open("rb") as stream:
            stream.seek(self._read)
            for line in stream:
                if not line.endswith(b"\n"):
                    break  # being written, or torn: the next writer ends it
                self._read += len(line)
                self._take(line)
        return list(self._seen)

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if entry.get("search") == self.search:
                self._seen.append(Trial.model_validate_json(json.dumps(entry["trial"])))
        except (ValueError, KeyError, AttributeError, ValidationError):
            self.skipped += 1

    def add(self, trial: Trial) -> None:
        with self._locked():
            self._write({"search": self.search, "trial": json.loads(trial.model_dump_json(exclude_defaults=True))})

    def _locked(self) -> contextlib.AbstractContextManager[bool]:
        return lock(self.folder / "locks" / "journal")

    def _write(self, entry: dict[str, Any]) -> None:
        with self.path.open("ab+") as stream:
            if stream.tell() and not _ends_with_newline(stream):
                stream.write(b"\n")
            stream.write(json.dumps(entry, ensure_ascii=True).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        with lock(self.folder / "locks" / f"claim-{key}", wait=False) as held:
            yield held


def _ends_with_newline(stream: IO[bytes]) -> bool:
    stream.seek(-1, os.SEEK_END)
    return stream.read(1) == b"\n"


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """A lock between processes that ends with the process; False when not waiting and another holds it."""
    with path.open("a") as stream:
        try:
            import fcntl

            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(stream, kind | (0 if wait else fcntl.LOCK_NB))
        except ImportError:
            pass  # Windows: no locks; several processes then repeat each other's work
        except BlockingIOError:
            yield False
            return
        yield True


@contextlib.contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A folder `work-…` for this process alone, removed at the end; those that killed processes left go first.

    Each has a lock that ends with its process: a folder whose lock is free has nobody.
    """
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("work-*") if _can_lock() else ():
        with lock(locks / left.name, wait=False) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
                (locks / left.name).unlink(missing_ok=True)
    name = f"work-{os.getpid()}-{secrets.token_hex(4)}"
    with lock(locks / name):
        (folder / name).mkdir()
        try:
            yield folder / name
        finally:
            shutil.rmtree(folder / name, ignore_errors=True)
            (locks / name).unlink(missing_ok=True)


def _can_lock() -> bool:
    return importlib.util.find_spec("fcntl") is not None


class Quiet:
    """Work may overlap, timing may not: many workers at once, or one that measures time and nobody else.

    Both pass a gate first, so that a process that wants to measure is not kept waiting by a stream of workers.
    """

    def __init__(self, folder: Path) -> None:
        self._gate, self._room = folder / "locks" / "gate", folder / "locks" / "room"

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Beside others that work."""
        with self._enter(shared=True):
            yield

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Alone."""
        with self._enter(shared=False):
            yield

    @contextlib.contextmanager
    def _enter(self, *, shared: bool) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with lock(self._gate):
                stack.enter_context(lock(self._room, shared=shared))
            yield
