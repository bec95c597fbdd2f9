"""Work ends with its time, whatever it is doing."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lepton_cli.tune.deadline import OutOfTime, deadline


def _work_for_ever() -> None:
    while True:
        with contextlib.suppress(Exception):  # as around steps, which may raise anything
            time.sleep(0.01)


def _in_thread(work: Callable[[], None]) -> list[BaseException]:
    """Run in a thread of its own; what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


def _too_long() -> None:
    with deadline(0.05):
        _work_for_ever()


def test_work_is_stopped_even_where_it_catches_everything() -> None:
    with pytest.raises(OutOfTime):
        _too_long()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_work_is_stopped_in_other_threads() -> None:
    assert [type(error) for error in _in_thread(_too_long)] == [OutOfTime]


def test_work_is_stopped_on_systems_without_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "setitimer")
    with pytest.raises(OutOfTime):
        _too_long()


def test_no_time_left() -> None:
    for seconds in (0, -1):
        with pytest.raises(OutOfTime), deadline(seconds):
            pytest.fail("it has begun")


def test_what_ends_in_time_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with deadline(60):
        pass
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_what_ends_in_time_is_left_alone_in_threads() -> None:
    threads = threading.active_count()

    def work() -> None:
        with deadline(60):
            pass

    assert _in_thread(work) == []
    while threading.active_count() > threads:  # a timer that was not cancelled would wait for a minute
        time.sleep(0.001)


def test_a_timer_that_rings_at_the_last_moment_is_not_raised_behind_the_block() -> None:
    def work() -> None:
        for _ in range(200):
            with contextlib.suppress(OutOfTime), deadline(1e-3):
                end = time.monotonic() + 1e-3
                while time.monotonic() < end:
                    pass
            for _ in range(1000):
                abs(0)

    assert _in_thread(work) == []


@pytest.fixture
def rung() -> Iterator[list[int]]:
    """An alarm handler of the caller, and the alarms that it has had."""
    found: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: found.append(number))
    yield found
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_the_alarm_of_the_caller_is_left_alone(rung: list[int]) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 600, 7)
    with pytest.raises(OutOfTime):
        _too_long()
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    assert 0 < left <= 600
    assert interval == 7
    assert signal.getsignal(signal.SIGALRM) == handler
    assert not rung


def test_the_alarm_of_the_caller_rings_inside(rung: list[int]) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    with deadline(60):
        while not rung:
            time.sleep(0.01)


def test_the_handler_of_the_caller_is_put_back(rung: list[int]) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(OutOfTime):
        _too_long()
    assert signal.getsignal(signal.SIGALRM) == handler
    assert not rung


def test_one_deadline_inside_another() -> None:
    with pytest.raises(OutOfTime), deadline(60):
        _too_long()
    with pytest.raises(OutOfTime), deadline(0.05), deadline(60):
        _work_for_ever()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
