"""What is measured, once; what counts of earlier trials; what fits into the time; when the budget is spent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lepton_cli.measure.results import Memory
from lepton_cli.prune.prospects import Prospect
from lepton_cli.recipe.tuning import Space
from lepton_cli.report.trial import Trial, Value
from lepton_cli.tune import bench as benches
from lepton_cli.tune.bench import Bench, Spent
from lepton_cli.tune.candidate import Candidate
from lepton_cli.tune.journal import Journal
from lepton_cli.tune.limits import Judge
from lepton_cli.tune.space import derive
from tests.tune.builders import accuracy, gate, judge, latency, trial
from tests.tune.test_space import TRAINED

DROP = gate("accuracy.top1", max_drop="2 pp")
SPACE = derive(Space(), TRAINED)


def candidate(width: int | None = None, **chosen: Value) -> Candidate:
    """Pruned to so many channels; as the search makes it, with its loss."""
    point = SPACE.point({"precision": "float", **chosen}, pruned=width is not None)
    if width is None:
        return SPACE.candidate(point)
    made = SPACE.candidate(point, Prospect({"g": width}, (), 1 / width, parameters=0.5, macs=0.5))
    return Candidate(made.name, made.steps, {**point, "loss": 1 / width})


class Measured:
    """Makes a trial of a candidate; remembers which."""

    def __init__(self, one: Judge, drop: float = 0.0, **fields: Any) -> None:
        self.judge, self.drop, self.fields = one, drop, fields
        self.keys: list[str] = []

    def __call__(self, candidate: Candidate) -> Trial:
        self.keys.append(candidate.key("s"))
        found = trial(candidate.name, point=dict(candidate.point), accuracy=accuracy(self.drop), seconds=1.0)
        found = found.model_copy(update=self.fields)
        breaches = self.judge.breaches(found)
        if not breaches:
            return found
        return found.model_copy(update={"reached": "accuracy", "latency": None, "reason": breaches[0].text})


def bench(folder: Path, measure: Callable[[Candidate], Trial], seconds: float = 1000.0, **given: Any) -> Bench:
    fields = {"judge": judge(DROP), "most": None, "cpu": "a", **given}
    return Bench(Journal(folder, "s"), search="s", measure=measure, seconds=seconds, **fields)


def before(one: Bench, name: str, seconds: float, made: Candidate, **fields: Any) -> None:
    """A trial that is known already."""
    fields = {"elapsed": 0.0, **fields}
    one.store.add(trial(name, point=dict(made.point), seconds=seconds, **fields))


def test_trials_come_in_the_order_of_their_candidates(tmp_path: Path) -> None:
    measure = Measured(judge(DROP))
    one = bench(tmp_path, measure)
    first, second = candidate(8), candidate(4)
    one.run([second])
    told: list[str] = []
    one.finished = lambda trial: told.append(trial.name)
    found = one.run([first, second, first])
    assert [trial.name for trial in found] == [first.name, second.name, first.name]
    assert measure.keys == [second.key("s"), first.key("s")], "each is measured once"
    assert told == [first.name]
    assert [trial.key for trial in found[:2]] == [first.key("s"), second.key("s")]
    assert 0 < found[1].elapsed < found[0].elapsed <= one.elapsed
    assert {trial.cpu for trial in found} == {"a"}


def test_what_such_a_trial_takes(tmp_path: Path) -> None:
    """The median of those of its kind: precision, guard, whether pruned, and how long trained."""
    one = bench(tmp_path, Measured(judge(DROP)), usual=3.0)
    pruned, whole, trained = candidate(8), candidate(), candidate(8, distill=5)
    assert [one.expected(made.point) for made in (pruned, whole, trained)] == [3, 3, 30]
    assert one.expected(candidate(distill=5).point) == 3, "what is not pruned is not trained"
    for name, seconds, made in (
        ("a", 40.0, candidate(4)),
        ("b", 10.0, candidate(2)),
        ("c", 20.0, candidate(16, importance="activation")),
        ("d", 500.0, candidate(4, precision="int8")),
        ("e", 90.0, candidate(4, distill=5)),
        ("f", 7.0, candidate(precision="int8", calibration="minmax")),
        ("g", 70.0, candidate(precision="int8", guard=0.005)),
    ):
        before(one, name, seconds, made)
    before(one, "failed", 1e6, candidate(4), reached="failed")
    one.store.add(trial("recipe", seconds=1e6))
    kinds = [
        (pruned, 20),
        (trained, 90),
        (whole, 3),
        (candidate(8, precision="int8"), 500),
        (candidate(8, precision="int8", distill=5), 30),
        (candidate(precision="int8"), 7),
        (candidate(precision="int8", guard=0.005), 70),
    ]
    assert [one.expected(made.point) for made, _ in kinds] == [seconds for _, seconds in kinds]


@pytest.mark.parametrize(("seconds", "fits"), [(63.0, True), (67.0, False)])
def test_what_cannot_be_finished_does_not_fit(tmp_path: Path, seconds: float, fits: bool) -> None:
    """After 40 of 100 seconds, which may be 105."""
    before(bench(tmp_path, Measured(judge(DROP))), "a", seconds, candidate(4), elapsed=40.0)
    one = bench(tmp_path, Measured(judge(DROP)), seconds=100.0, usual=1.0)
    assert one.fits(candidate(8)) == fits
    assert one.fits(candidate()), "another kind"
    assert one.fits(candidate(8, distill=5)), "that says itself whether it does when its training begins"


def test_the_usual_trial_has_to_fit_too(tmp_path: Path) -> None:
    one = bench(tmp_path, Measured(judge(DROP)), seconds=100.0, usual=106.0)
    assert not one.fits(candidate())
    one.usual = 104.0
    assert one.fits(candidate())


def test_so_many_trials_and_no_more(tmp_path: Path) -> None:
    """Earlier runs' count; what was taken over from a report does not."""
    measure = Measured(judge(DROP))
    one = bench(tmp_path, measure, most=2)
    before(one, "taken over", 1.0, candidate(2))
    one.run([candidate(8)])
    again = bench(tmp_path, measure, most=2)
    with pytest.raises(Spent):
        again.run([candidate(4), candidate(5)])
    assert measure.keys == [candidate(8).key("s"), candidate(4).key("s")]
    assert [trial.name for trial in again.run([candidate(8)])] == [candidate(8).name], "what is known costs nothing"


def test_so_many_seconds_and_no_more(tmp_path: Path) -> None:
    """Runs before an interruption included."""
    before(bench(tmp_path, Measured(judge(DROP))), "a", 1.0, candidate(2), elapsed=30.0)
    measure = Measured(judge(DROP))
    short = bench(tmp_path, measure, seconds=30.0)
    assert 30 <= short.elapsed < 60
    assert short.own_seconds < 30
    assert short.end - time.monotonic() == pytest.approx(1.5, abs=1)
    with pytest.raises(Spent):
        short.run([candidate(8)])
    assert not measure.keys
    assert bench(tmp_path, measure, seconds=90.0).run([candidate(8)])


def test_a_trial_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    def slow(candidate: Candidate) -> Trial:
        time.sleep(30)
        raise AssertionError

    one = bench(tmp_path, slow, seconds=0.1)
    begun: list[Candidate] = []
    one.beginning = begun.append
    with pytest.raises(Spent):
        one.run([candidate(8), candidate(4)])
    assert one.trials() == []
    assert len(begun) == 1
    assert 0 < one.measuring < 30


def test_failures_are_not_tried_again(tmp_path: Path) -> None:
    measure = Measured(judge(DROP), reached="failed", reason="broken", latency=None)
    for _ in range(2):
        (found,) = bench(tmp_path, measure).run([candidate(8)])
        assert found.reached == "failed"
    assert len(measure.keys) == 1


@pytest.mark.parametrize(("drop", "times"), [("1 pp", 1), ("2 pp", 1), ("5 pp", 2)])
def test_what_ended_early_counts_while_it_breaks_a_limit(tmp_path: Path, drop: str, times: int) -> None:
    """It was not timed: where looser limits allow it, it is measured to the end."""
    measure = Measured(judge(DROP), drop=0.03)
    (early,) = bench(tmp_path, measure).run([candidate(8)])
    assert early.reason
    now = judge(gate("accuracy.top1", max_drop=drop))
    measure.judge = now
    one = bench(tmp_path, measure, judge=now)
    (found,) = one.run([candidate(8)])
    assert len(measure.keys) == times
    assert bool(found.latency) == (times == 2)
    assert one.trials() == [found], "the newest of each counts"


@pytest.mark.parametrize(("goal", "times"), [("latency.median", 2), ("size.file", 1)])
def test_times_of_another_processor_do_not_count(tmp_path: Path, goal: str, times: int) -> None:
    one = judge(DROP, goal=goal)
    measure = Measured(one)
    for cpu in ("a", "a", "b"):
        bench(tmp_path, measure, judge=one, cpu=cpu).run([candidate(8)])
    assert len(measure.keys) == times


def test_what_a_new_goal_asks_for_is_measured(tmp_path: Path) -> None:
    measure = Measured(judge(DROP, goal="size.file"), latency=None)
    bench(tmp_path, measure, judge=measure.judge).run([candidate(8)])
    measure.fields = {"latency": latency(0.5)}
    for goal, times in (("latency.median", 2), ("latency.median", 2), ("memory.peak", 3), ("memory.peak", 3)):
        if goal == "memory.peak":
            measure.fields["memory"] = Memory(peak=10, added=1)
        bench(tmp_path, measure, judge=judge(DROP, goal=goal)).run([candidate(8)])
        assert len(measure.keys) == times


def test_what_was_not_begun_is_tried_with_more_time(tmp_path: Path) -> None:
    """A training that is foreseen to take too long; the others go on."""
    long, short = candidate(8, distill=5), candidate(8)
    measure = Measured(judge(DROP))

    def late(made: Candidate) -> Trial:
        found = measure(made)
        return found.model_copy(update={"reached": "failed", "begun": False}) if made is long else found

    one = bench(tmp_path, late)
    assert [trial.reached for trial in one.run([long, short])] == ["failed", "latency"]
    assert one.run([long])[0].reached == "failed"
    assert measure.keys == [long.key("s"), short.key("s")], "asked for again it is not tried again"
    assert {trial.key for trial in one.trials()} == set(measure.keys)
    assert [trial.key for trial in one.store.trials()] == [short.key("s")]
    assert bench(tmp_path, measure).run([long])[0].reached == "latency"


def test_what_others_work_on_is_left_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else is done first, and then their result is taken."""
    monkeypatch.setattr(benches, "_POLL", 0.0)
    measure = Measured(judge(DROP))
    one = bench(tmp_path, measure)
    taken, free = candidate(8), candidate(4)
    claim, asked = one.store.claim, list[str]()

    @contextlib.contextmanager
    def theirs(key: str) -> Iterator[bool]:
        asked.append(key)
        if key == taken.key("s"):
            if asked.count(key) == 2:
                one.store.add(trial("theirs", key=key, cpu="a"))
            yield False
        else:
            with claim(key) as mine:
                yield mine

    monkeypatch.setattr(one.store, "claim", theirs)
    assert [trial.name for trial in one.run([taken, free])] == ["theirs", free.name]
    assert asked == [taken.key("s"), free.key("s"), taken.key("s")]
    assert measure.keys == [free.key("s")]


def test_what_another_process_has_just_finished_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Measured(judge(DROP))
    one = bench(tmp_path, measure)
    claim = one.store.claim

    @contextlib.contextmanager
    def after_them(key: str) -> Iterator[bool]:
        one.store.add(trial("theirs", key=key, cpu="a"))
        with claim(key) as mine:
            yield mine

    monkeypatch.setattr(one.store, "claim", after_them)
    assert one.run([candidate(8)])[0].name == "theirs"
    assert not measure.keys


def test_waiting_ends_with_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "_POLL", 0.01)
    one = bench(tmp_path, Measured(judge(DROP)), seconds=0.05)
    monkeypatch.setattr(one.store, "claim", lambda key: contextlib.nullcontext(False))
    with pytest.raises(Spent):
        one.run([candidate(8)])
