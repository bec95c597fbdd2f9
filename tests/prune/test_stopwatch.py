"""Ratios of candidates to a reference, on a clock that only models move; no test looks at a real one's result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.prune import stopwatch
from lepton_cli.prune.stopwatch import Stopwatch
from lepton_cli.runtime import Values
from tests.prune.context import images, redundant
from tests.timing.clocks import FakeClock


def model(seconds: float, name: str = "candidate") -> ir.Model:
    """A model that takes so long on the clock below."""
    made = ir.Model(ir.Graph([], [], nodes=[]), ir_version=9)
    made.metadata_props.update(seconds=str(seconds), name=name)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    found = FakeClock()

    class Session:
        def __init__(self, payload: ir.Model, *, provider: str, threads: int) -> None:
            self.run = found.call(payload.metadata_props["name"], float(payload.metadata_props["seconds"]))

        def caller(self, feeds: Values) -> Callable[[], object]:
            return self.run

    monkeypatch.setattr(stopwatch.runtime, "Session", Session)
    monkeypatch.setattr(stopwatch.io, "payload", lambda given, workdir: given)
    monkeypatch.setattr(stopwatch.io, "weight_bytes", lambda given: 10)
    monkeypatch.setattr(stopwatch, "LIMIT", 1e3)
    return found


def watch(
    folder: Path, clock: FakeClock, seconds: float = 1.0, quantize: Callable[[ir.Model], ir.Model] | None = None
) -> Stopwatch:
    return Stopwatch(model(seconds, "reference"), {}, "cpu", 1, folder, quantize, clock)


@pytest.mark.parametrize("reference", [1.0, 0.001])
@pytest.mark.parametrize("times", [0.5, 1.0, 2.0, 3.5])
def test_a_ratio_is_the_candidates_time_over_the_references(
    reference: float, times: float, clock: FakeClock, tmp_path: Path
) -> None:
    timed = watch(tmp_path, clock, reference)
    assert timed.once == pytest.approx(reference)
    assert timed.ratio(model(times * reference)) == pytest.approx(times)
    found, errors = timed.ratios([lambda: model(times * reference), lambda: model(reference)], 1e3)
    assert found == pytest.approx([times, 1.0])
    assert errors == pytest.approx([0.0, 0.0], abs=1e-9)


def test_what_a_model_takes_to_be_made_is_known(clock: FakeClock, tmp_path: Path) -> None:
    def slowly(given: ir.Model) -> ir.Model:
        clock.now += 3_000_000_000
        return given

    timed = watch(tmp_path, clock, 0.5, slowly)
    assert (timed.setup, timed.once) == (3.0, 0.5)


def test_the_error_is_that_of_the_interval(clock: FakeClock, tmp_path: Path) -> None:
    """A candidate that wobbles has an error, one that does not has none; both come out right."""
    timed, random = watch(tmp_path, clock, 0.001), np.random.default_rng(0)
    steady = clock.call("steady", 0.002)
    wobbling = clock.call("wobbling", lambda: 0.003 * float(random.choice([0.9, 1.0, 1.1])))
    rule = stopwatch.StopRule(0.0, 2.0, share=0, setup=0, runs=stopwatch.RUNS)
    (one, none), (two, some) = timed._beside([steady, wobbling], rule)
    assert (one, none) == (pytest.approx(2.0), pytest.approx(0, abs=1e-9))
    assert two == pytest.approx(3.0, rel=0.05)
    assert 0 < some < 0.02


def test_as_many_are_open_at_once_as_their_weights_allow(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten bytes each: two reach the limit of twenty, and the time is shared out by their number."""
    for limit, groups in ((20, [2, 2, 1]), (21, [3, 2]), (1, [1] * 5), (1000, [5])):
        monkeypatch.setattr(stopwatch, "OPEN", limit)
        timed, seen, done = watch(tmp_path, clock), [], []

        def beside(
            calls: list[object], rule: stopwatch.StopRule, seen: list[tuple[int, float]] = seen
        ) -> list[tuple[float, float]]:
            first = sum(count for count, _ in seen)
            seen.append((len(calls), rule.seconds))
            return [(number, number / 10) for number in range(first, first + len(calls))]

        monkeypatch.setattr(timed, "_beside", beside)
        found, errors = timed.ratios([lambda: model(1.0)] * 5, 50.0, lambda done=done: done.append(1))
        assert seen == [(count, pytest.approx(10.0 * count)) for count in groups]
        assert found.tolist() == [0, 1, 2, 3, 4]
        assert errors.tolist() == [0, 0.1, 0.2, 0.3, 0.4]
        assert len(done) == 5


def test_candidates_get_short_bursts_and_at_least_five_visits(clock: FakeClock, tmp_path: Path) -> None:
    timed = watch(tmp_path, clock, 0.03)
    clock.calls.clear()
    timed.ratios([lambda: model(0.03, "a"), lambda: model(0.03, "b")], 0.0)
    warm, visits = 1 + 6, stopwatch.LEAST * 3
    assert clock.calls.count("a") == warm + visits
    assert clock.calls.count("b") == warm + visits


def test_both_sides_go_through_what_is_given(clock: FakeClock, tmp_path: Path) -> None:
    """The reference takes 3 seconds as itself and 1 as an integer model; the candidate 5 and 1.5."""
    names = {"3.0": 1.0, "5.0": 1.5}
    timed = watch(tmp_path, clock, 3.0, lambda given: model(names[given.metadata_props["seconds"]]))
    assert timed.once == pytest.approx(1.0)
    assert timed.ratio(model(5.0)) == pytest.approx(1.5)


def test_real_models_get_a_ratio(tmp_path: Path) -> None:
    made = redundant()
    watch = Stopwatch(made, {"x": images(1).feeds["x"]}, "cpu", 1, tmp_path)
    ratios, errors = watch.ratios([lambda: made], 0.01)
    assert ratios.shape == errors.shape == (1,)
    assert (ratios > 0).all()
    assert watch.ratio(made) > 0
