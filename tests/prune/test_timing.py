"""The statistics of timing and what is fed, on a clock that only models move; no test looks at a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.prune import timing
from lepton_cli.prune.taps import Arrays
from tests.prune.context import images, redundant


class Clock:
    """Time passes only where a model runs: a model's seconds are its metadata's, times what `noise` draws."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[str] = []
        self.noise: Callable[[], float] = lambda: 1.0

    def __call__(self) -> float:
        return self.now

    def run(self, model: ir.Model) -> None:
        self.runs.append(model.metadata_props["name"])
        self.now += float(model.metadata_props["seconds"]) * self.noise()


def model(seconds: float, name: str = "candidate") -> ir.Model:
    made = ir.Model(ir.Graph([], [], nodes=[]), ir_version=9)
    made.metadata_props.update(seconds=str(seconds), name=name)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()

    class Session:
        def __init__(self, payload: ir.Model, *, provider: str, threads: int) -> None:
            self.payload = payload

        def caller(self, feeds: Arrays) -> Callable[[], object]:
            return lambda: found.run(self.payload)

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=found))
    monkeypatch.setattr(timing.runtime, "Session", Session)
    monkeypatch.setattr(timing.io, "payload", lambda given, workdir: given)
    monkeypatch.setattr(timing.io, "weight_bytes", lambda given: 10)
    monkeypatch.setattr(timing, "LIMIT", 1e9)
    return found


def stopwatch(
    folder: Path, seconds: float = 1.0, quantize: Callable[[ir.Model], ir.Model] | None = None
) -> timing.Stopwatch:
    return timing.Stopwatch(model(seconds, "reference"), {}, "cpu", 1, folder, quantize)


@pytest.mark.parametrize("reference", [1.0, 0.001])
@pytest.mark.parametrize("times", [0.5, 1.0, 2.0, 3.5])
def test_a_ratio_is_the_candidates_time_over_the_references(
    reference: float, times: float, clock: Clock, tmp_path: Path
) -> None:
    watch = stopwatch(tmp_path, reference)
    assert watch.once == pytest.approx(reference)
    assert watch.ratio(model(times * reference)) == pytest.approx(times)
    found, errors = watch.ratios([lambda: model(times * reference), lambda: model(reference)], 1e9)
    assert found == pytest.approx([times, 1.0])
    assert errors == pytest.approx([0.0, 0.0], abs=1e-9)


def test_pairs_run_in_turns_so_that_neither_is_always_second(clock: Clock, tmp_path: Path) -> None:
    """A reference that is slower right behind itself, or a drift, would spoil one order only."""
    watch = stopwatch(tmp_path)
    clock.runs.clear()
    watch.ratio(model(2.0))
    pairs = ["candidate", "reference", "reference", "candidate"] * 20
    assert clock.runs == ["reference", "candidate"] * 3 + pairs


def test_the_median_of_pairs_is_the_ratio(clock: Clock, tmp_path: Path) -> None:
    """Every run takes longer by chance; the pairs' log ratios are written down beside."""
    watch = stopwatch(tmp_path)
    random, drawn = np.random.default_rng(0), []

    def noise() -> float:
        drawn.append(float(random.choice([1.0, 1.0, 1.001, 4.0])))
        return drawn[-1]

    clock.noise = noise
    found = watch.ratio(model(2.0))
    logs = [
        np.log(2 * one / two if number % 2 == 0 else 2 * two / one)
        for number, (one, two) in enumerate(zip(drawn[6::2], drawn[7::2], strict=True))
    ]
    assert len(logs) % timing.PAIRS == 0
    assert found == pytest.approx(np.exp(np.median(logs)))
    for count in range(timing.PAIRS, len(logs) + 1, timing.PAIRS):
        low, high = np.percentile(logs[:count], [25, 75])
        assert (1.25 * (high - low) / 1.35 / np.sqrt(count) < timing.SURE) == (count == len(logs))


@pytest.mark.parametrize(
    ("limit", "most", "wanted"), [(100.0, 4000, 40), (100.0, 7, 7), (7.0, 4000, 6), (0.0, 4000, 5)]
)
def test_disagreeing_pairs_end_at_the_limits(
    limit: float, most: int, wanted: int, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of 1.25 seconds; the end is looked at from the fifth pair on, agreement after forty."""
    watch = stopwatch(tmp_path)
    monkeypatch.setattr(timing, "LIMIT", limit)
    monkeypatch.setattr(timing, "MANY", most)
    clock.runs.clear()
    assert watch.ratio(model(0.25)) == pytest.approx(0.25)
    assert clock.runs.count("reference") == 3 + wanted


def test_a_pair_that_disagrees_is_no_reason_to_go_on_when_time_is_up(clock: Clock, tmp_path: Path) -> None:
    watch = stopwatch(tmp_path)
    clock.noise = iter([1.0] * 6 + [1.0, 1.0, 1.0, 9.0] * 10_000).__next__
    clock.runs.clear()
    watch.ratio(model(1.0))
    assert clock.runs.count("reference") == 3 + timing.MANY


def test_every_visit_to_a_candidate_lies_between_two_to_the_reference(clock: Clock, tmp_path: Path) -> None:
    watch = stopwatch(tmp_path)
    clock.runs.clear()
    watch.ratios([lambda: model(2.0, "a"), lambda: model(3.0, "b")], 0.0)
    assert clock.runs == ["a", "b", *["reference", "a", "reference", "b", "reference"] * timing.LEAST]


def test_a_drift_cancels_between_the_visits_around(clock: Clock, tmp_path: Path) -> None:
    """The machine slows down by the same amount at every run: the mean of before and after is what counts."""
    watch = stopwatch(tmp_path)
    slower = iter(np.arange(1, 1000, 0.01))
    clock.noise = lambda: float(next(slower))
    found, _ = watch.ratios([lambda: model(1.0)], 0.0)
    assert found == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("seconds", "runs"), [(0.00021, 15), (0.0008, 4), (0.001, 3), (0.02, 3), (0.025, 3), (0.026, 1)]
)
def test_short_runs_are_repeated_in_a_visit_and_the_first_does_not_count(
    seconds: float, runs: int, clock: Clock, tmp_path: Path
) -> None:
    watch = stopwatch(tmp_path, seconds)
    clock.runs.clear()
    watch.ratios([lambda: model(seconds)], 0.0)
    visit = runs + (runs > 1)
    assert clock.runs == ["candidate", *(["reference"] * visit + ["candidate"] * visit + ["reference"] * visit) * 5]


def test_a_visit_takes_the_shortest_run_after_the_first(clock: Clock, tmp_path: Path) -> None:
    watch = stopwatch(tmp_path, 0.001)
    clock.noise = iter([1.0] + [0.1, 5.0, 1.0, 3.0] * 1000).__next__
    found, _ = watch.ratios([lambda: model(0.002)], 0.0)
    assert found == pytest.approx([2.0])


def test_the_reference_is_warm_before_its_time_is_taken(clock: Clock, tmp_path: Path) -> None:
    clock.noise = iter([50.0, 20.0, 10.0, 2.0, 1.5, 3.0]).__next__
    assert stopwatch(tmp_path).once == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("noise", "seconds", "rounds"), [(0.0, 1e9, 10), (0.5, 1e9, 100), (0.5, 40.0, 14), (0.5, 1.0, 5)]
)
def test_visits_go_on_until_all_agree_or_time_is_up(
    noise: float, seconds: float, rounds: int, clock: Clock, tmp_path: Path
) -> None:
    """Rounds of three seconds and more: at least 5, 10 before agreement counts, 100 at most."""
    watch = stopwatch(tmp_path)
    pattern = [1.0] + [1.0, 1 - noise / 2, 1.0, 1.0, 1 + noise / 2, 1.0] * 1000
    clock.noise = iter(pattern).__next__
    clock.runs.clear()
    watch.ratios([lambda: model(1.0)], seconds)
    assert clock.runs.count("candidate") == 1 + rounds


def test_one_candidate_that_disagrees_keeps_the_others(clock: Clock, tmp_path: Path) -> None:
    watch = stopwatch(tmp_path)
    # Two candidates: reference, a, reference, b, reference.
    rows = [1.0, 1.0] + [1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.5, 1.0] * 1000
    clock.noise = iter(rows).__next__
    clock.runs.clear()
    found, errors = watch.ratios([lambda: model(1.0, "a"), lambda: model(1.0, "b")], 1e9)
    assert clock.runs.count("a") == 1 + timing.MOST
    assert errors[0] == 0
    assert errors[1] > timing.PRECISION
    assert found[0] == pytest.approx(1.0)


def test_as_many_are_open_at_once_as_their_weights_allow(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten bytes each: two reach the limit of twenty, and the time is shared out by their number."""
    for limit, groups in ((20, [2, 2, 1]), (21, [3, 2]), (1, [1] * 5), (1000, [5])):
        monkeypatch.setattr(timing, "OPEN", limit)
        watch, seen, done = stopwatch(tmp_path), [], []

        def visits(
            opened: list[Callable[[], object]], seconds: float, seen: list[tuple[int, float]] = seen
        ) -> tuple[np.ndarray, np.ndarray]:
            first = sum(count for count, _ in seen)
            seen.append((len(opened), seconds))
            return np.arange(first, first + len(opened)), np.arange(first, first + len(opened)) / 10

        monkeypatch.setattr(watch, "_visits", visits)
        found, errors = watch.ratios([lambda: model(1.0)] * 5, 50.0, lambda done=done: done.append(1))
        assert seen == [(count, 10.0 * count) for count in groups]
        assert found.tolist() == [0, 1, 2, 3, 4]
        assert errors.tolist() == [0, 0.1, 0.2, 0.3, 0.4]
        assert len(done) == 5


def test_both_sides_go_through_what_is_given(clock: Clock, tmp_path: Path) -> None:
    """The reference takes 3 seconds as itself and 1 as an integer model; the candidate 5 and 1.5."""
    names = {"3.0": 1.0, "5.0": 1.5}
    watch = stopwatch(tmp_path, 3.0, lambda given: model(names[given.metadata_props["seconds"]]))
    assert watch.once == pytest.approx(1.0)
    assert watch.ratio(model(5.0)) == pytest.approx(1.5)


@pytest.mark.parametrize("count", [1, 2, 5, 64])
def test_the_median_and_its_error_from_the_middle_half(count: int) -> None:
    """For a normal distribution 1.25 sigma / sqrt(n), sigma being the middle half's width over 1.35."""
    rows = np.random.default_rng(count).normal(0.1, 0.02, (count, 3))
    middle, error = timing._median(rows)
    low, high = np.percentile(rows, 25, axis=0), np.percentile(rows, 75, axis=0)
    np.testing.assert_allclose(middle, np.median(rows, axis=0))
    np.testing.assert_allclose(error, 1.25 / 1.35 * (high - low) / count**0.5)


def test_outliers_move_neither_the_median_nor_its_error() -> None:
    rows = np.random.default_rng(0).normal(0.1, 0.02, (200, 2))
    rows[::10] += 3.0
    middle, error = timing._median(rows)
    assert middle == pytest.approx([0.1, 0.1], abs=0.01)
    assert error == pytest.approx([0.0018, 0.0018], rel=0.5)


def test_batches_are_cut_or_repeated_unless_the_model_fixes_them() -> None:
    feeds = images(3).feeds
    two, seven = (timing.feeds_of(redundant(), feeds, batch)["x"] for batch in (2, 7))
    np.testing.assert_array_equal(two, feeds["x"][:2])
    np.testing.assert_array_equal(seven, feeds["x"][[0, 1, 2, 0, 1, 2, 0]])
    assert seven.flags.c_contiguous
    fixed = redundant()
    fixed.graph.inputs[0].shape = ir.Shape([3, 3, 8, 8])
    assert timing.feeds_of(fixed, feeds, 7)["x"] is feeds["x"]


def test_inputs_without_axes_are_fed_as_they_are() -> None:
    made = redundant()
    made.graph.inputs.append(ir.Value(name="scale", shape=ir.Shape(()), type=ir.TensorType(ir.DataType.FLOAT)))
    made.graph.inputs.append(ir.Value(name="unknown", type=ir.TensorType(ir.DataType.FLOAT)))
    feeds = {**images(3).feeds, "scale": np.array(2.0, np.float32), "unknown": np.zeros((3, 2), np.float32)}
    found = timing.feeds_of(made, feeds, 7)
    assert found["scale"].shape == ()
    assert found["unknown"].shape == (7, 2)


def test_real_models_get_a_ratio(tmp_path: Path) -> None:
    made = redundant()
    watch = timing.Stopwatch(made, timing.feeds_of(made, images(2).feeds, 1), "cpu", 1, tmp_path)
    ratios, errors = watch.ratios([lambda: made], 0.01)
    assert ratios.shape == errors.shape == (1,)
    assert (ratios > 0).all()
    assert watch.ratio(made) > 0
