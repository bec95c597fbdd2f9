"""A limit on the time of a piece of work, wherever in it the program is. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator


class OutOfTime(BaseException):
    """The time is up. Not an `Exception`: nothing on the way must take it for a failure of its own."""


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside the block after that many seconds; at once where none are left.

    A call into onnxruntime or numpy is finished first. In the main thread the system's alarm is used, which also ends
    waiting (for a lock, a process, in `sleep`). Where it is not free (other threads, Windows, a caller who has set an
    alarm of their own, which still rings) a timer thread does the same between two steps of Python: there, waiting is
    finished first too.
    """
    if seconds <= 0:
        raise OutOfTime
    with _alarm(seconds) if _alarm_is_free() else _timer(seconds):
        yield


def _alarm_is_free() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0
        and signal.getsignal(signal.SIGALRM) is not None  # one that is not Python's could not be put back
    )


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # an alarm that rang at the last moment is raised in between
            signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _timer(seconds: float) -> Iterator[None]:
    worker, lock = threading.get_ident(), threading.Lock()
    over = False

    def ring() -> None:
        with lock:
            if not over:
                _raise_in(worker, OutOfTime)

    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            over = True
        _raise_in(worker, None)  # what rang at the last moment must not be raised behind the block


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Let CPython raise `error` in a thread before its next step; `None` takes back what was not raised yet."""
    what = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)
