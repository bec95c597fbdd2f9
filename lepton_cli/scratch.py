"""Temporary folders that nothing leaves behind: the next process removes those of killed ones."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "lepton-scratch-"
#: Seconds for which a new folder may be without its lock.
_NEW = 60


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder where the system keeps temporary files, removed at the end. Raises OSError.

    It is locked while it is used: the system frees the lock when a process ends, however it ends.
    """
    _reclaim(tempfile.gettempdir())
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix=PREFIX)
        lock = _lock(made.name)
        if lock is not None:
            stack.callback(os.close, lock)
        stack.enter_context(made)
        yield Path(made.name)


@functools.cache
def _reclaim(place: str) -> None:
    """Remove folders of this user that no process holds any more; once for each process."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(place):
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                _remove_left(entry)


def _remove_left(entry: os.DirEntry[str]) -> None:
    found = entry.stat(follow_symlinks=False)
    lock = _lock(entry.path) if time.time() - found.st_mtime > _NEW and found.st_uid == os.geteuid() else None
    if lock is not None:
        shutil.rmtree(entry.path, ignore_errors=True)
        os.close(lock)


def _lock(name: str) -> int | None:
    """What holds the lock of a folder until it is closed; `None` where another process does, or there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(name, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
