"""A trial ends with its time, whatever it is doing, and one that cannot be finished is not begun."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from pathlib import Path

import pytest

from lepton_cli.recipe.tuning import Space
from lepton_cli.report.trial import Trial
from lepton_cli.tune.bench import Bench, Spent
from lepton_cli.tune.candidate import Candidate
from lepton_cli.tune.deadline import OutOfTime, deadline
from lepton_cli.tune.journal import Journal
from lepton_cli.tune.space import derive
from tests.tune.builders import judge, trial
from tests.tune.test_space import CNN


def _work_for_ever() -> None:
    while True:
        with contextlib.suppress(Exception):  # as around steps, which may raise anything
            time.sleep(0.01)


def test_work_is_stopped_even_where_it_catches_everything() -> None:
    with pytest.raises(OutOfTime), deadline(0.05):
        _work_for_ever()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_what_ends_in_time_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with deadline(60):
        pass
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_other_threads_have_no_alarm() -> None:
    ended: list[bool] = []

    def work() -> None:
        with deadline(0):
            ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended


def _bench(folder: Path, seconds: float) -> Bench:
    def slow(candidate: Candidate) -> Trial:
        time.sleep(30)
        raise AssertionError

    return Bench(Journal(folder, "s"), judge(), "s", slow, seconds, None, "cpu")


def test_a_trial_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    space, bench = derive(Space(), CNN), _bench(tmp_path, 0.1)
    with pytest.raises(Spent):
        bench.run([space.candidate(space.point(), "grid")])
    assert bench.trials() == []


def test_a_trial_that_will_take_too_long_is_not_begun(tmp_path: Path) -> None:
    space, bench = derive(Space(), CNN), _bench(tmp_path, 60)
    point = space.point()
    bench.store.add(trial("before", point=dict(point), seconds=100.0))
    begun: list[Candidate] = []
    bench.beginning = begun.append
    with pytest.raises(Spent):
        bench.run([space.candidate({**point, "calibration": "minmax"}, "grid")])
    assert not begun
