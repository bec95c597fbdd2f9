"""Latency: the machinery with made-up clocks, and small real runs without a claim about their times."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from lepton_cli import units
from lepton_cli.errors import MeasurementError, ProviderError
from lepton_cli.measure import latency, statistics
from lepton_cli.measure.case import Case, warm_up
from lepton_cli.measure.rounds import Rounds
from lepton_cli.measure.spec import LatencySpec
from lepton_cli.runtime import usable_threads
from tests.measure import builders

SMALL = builders.chain(2, 16)


def feeds(batch: int) -> dict[str, Any]:
    return {"x": np.ones((batch, 16), np.float32)}


def spec(**options: Any) -> LatencySpec:
    return LatencySpec(threads=1, time=units.Seconds(0.2), **options)


def rounds_of(times: list[Any], arms: tuple[str, ...] = ("original", "compressed")) -> Rounds:
    rounds = Rounds(Case(dict.fromkeys(arms, b""), "cpu", 4, 1, {}, {}))
    rounds.times = [np.asarray(time) for time in times]
    rounds.case.placement = {arm: {} for arm in arms}
    rounds.case.fallback = dict.fromkeys(arms, ())
    return rounds


def test_two_models_on_two_batch_sizes() -> None:
    found = latency.compare({"original": SMALL, "compressed": SMALL}, feeds, spec(batch=(1, 8)), seed=3)
    assert [(r.variant, r.batch) for r in found.results] == [
        ("original", 1),
        ("compressed", 1),
        ("original", 8),
        ("compressed", 8),
    ]
    assert found.skipped == ()
    for result in found.results:
        assert 0 < result.low <= result.median <= result.high
        assert result.threads == 1
        assert result.throughput == pytest.approx(result.batch / result.median)
        assert 0 < len(result.times) <= 200
        assert result.device_median is None
        assert sum(result.placement.values()) > 0
    for change in found.changes:
        assert change.low <= change.ratio <= change.high
        assert change.rounds >= latency.FEWEST_ROUNDS
        assert change.pairs >= change.rounds
    assert gc.isenabled()


def test_one_model_alone() -> None:
    found = latency.compare({"model": SMALL}, feeds, spec())
    assert len(found.results) == 1
    assert found.changes == ()


def test_many_models_are_compared_with_the_first() -> None:
    found = latency.compare({"a": SMALL, "b": SMALL, "c": SMALL}, feeds, spec())
    assert [change.variant for change in found.changes] == ["b", "c"]


def test_inputs_of_another_name_or_float_type() -> None:
    other = builders.model("g (float16[N, 16] z) => (float16[N, 16] y) { y = Relu (z) }")
    found = latency.compare({"original": SMALL, "other": other}, feeds, spec(), input_names={"other": {"z": "x"}})
    assert len(found.changes) == 1


def test_batch_sizes_of_a_fixed_model_are_skipped() -> None:
    fixed = builders.identity("4, 16")
    found = latency.compare({"original": fixed}, feeds, spec(batch=(1, 4)))
    assert [result.batch for result in found.results] == [4]
    assert [(s.what, s.reason) for s in found.skipped] == [
        ("latency cpu batch 1", "input `x` is fixed to 4 x 16, not 1 x 16")
    ]


def test_a_baked_in_shape_is_skipped_too_unless_nothing_runs() -> None:
    baked = builders.model("g (float[N, 16] x) => (float[4, 4] y) { y = Reshape (x, s) }", s=np.array([4, 4]))
    found = latency.compare({"original": baked}, feeds, spec(batch=(1, 2)))
    assert [result.batch for result in found.results] == [1]
    assert len(found.skipped) == 1
    with pytest.raises(MeasurementError, match="cannot be run on cpu"):
        latency.compare({"original": baked}, feeds, spec(batch=2))


def test_a_result_that_cannot_do_what_the_original_does_is_an_error() -> None:
    fixed = builders.identity("1, 16")
    with pytest.raises(MeasurementError, match="`compressed` cannot run batch 2 on cpu"):
        latency.compare({"original": SMALL, "compressed": fixed}, feeds, spec(batch=(1, 2)))


def test_missing_providers() -> None:
    with pytest.raises(ProviderError, match="tensorrt"):
        latency.compare({"original": SMALL}, feeds, spec(providers=("cpu", "tensorrt")))
    optional = {"name": "tensorrt", "optional": True}
    found = latency.compare({"original": SMALL}, feeds, spec(providers=("cpu", optional)))
    assert [result.provider for result in found.results] == ["cpu"]
    assert found.skipped[0].what == "latency tensorrt"
    assert "optional" in found.skipped[0].reason


def test_more_threads_than_cores_are_pointed_out() -> None:
    threads = usable_threads() + 1
    found = latency.compare({"m": SMALL}, feeds, LatencySpec(threads=threads, time=units.Seconds(0.1)))
    assert f"{threads} threads" in found.warnings[0]


def test_ratio_is_paired_and_survives_drift() -> None:
    """The machine gets ten times slower on the way: absolute times are useless, the paired ratio is exact."""
    drift = np.linspace(1, 10, 12)
    times = [np.stack([speed * np.ones(9), 0.5 * speed * np.ones(9)], axis=1) for speed in drift]
    rounds = rounds_of(times)
    assert rounds.ratio(1) == pytest.approx((0.5, 0.5, 0.5))
    assert rounds.half_width() == pytest.approx(0)
    (change,) = rounds.changes()
    assert (change.ratio, change.pairs, change.rounds) == (pytest.approx(0.5), 108, 12)


def test_interval_rests_on_rounds_not_on_runs() -> None:
    """Rounds differ by 5 %, runs within a round not at all: a million runs in 6 rounds decide nothing finer."""
    ratios = [1.05, 0.95, 1.04, 0.96, 1.05, 0.95]
    times = [np.stack([np.ones(5000), ratio * np.ones(5000)], axis=1) for ratio in ratios]
    _, low, high = rounds_of(times).ratio(1)
    assert low < 0.97
    assert high > 1.03


def test_imprecise_results_and_fallback_are_pointed_out() -> None:
    rounds = rounds_of([np.array([[1.0, ratio]]) for ratio in (1.0, 1.3, 0.8, 1.1, 0.9, 1.0)])
    rounds.case.placement["compressed"] = {"CUDAExecutionProvider": 10, "CPUExecutionProvider": 6}
    rounds.case.fallback["compressed"] = tuple(f"n{i}" for i in range(6))
    found = rounds.warnings(spec())
    assert "wanted ±2 %" in found[0]
    assert any("`compressed` ran 6 of 16 nodes elsewhere: n0, n1, n2, n3, n4, …" in text for text in found)


def test_percentiles_need_runs() -> None:
    few = rounds_of([np.ones((5, 2))] * 6).latencies()[0]
    many = rounds_of([np.ones((100, 2))] * 6).latencies()[0]
    assert (few.p90, few.p99) == (None, None)
    assert (many.p90, many.p99) == (1.0, 1.0)


def test_warm_up_ends_when_runs_get_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    durations = iter([9, 9, 9, 4, 4, 4, 1, 1, 1, 1, 1, 1])
    calls = 0

    def call() -> None:
        nonlocal now, calls
        calls += 1
        now += next(durations) / 1000

    monkeypatch.setattr("lepton_cli.measure.case.perf_counter", lambda: now)
    assert warm_up(call) == pytest.approx(0.001)
    assert calls == 12


def test_warm_up_of_a_slow_model_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def call() -> None:
        nonlocal now
        now += 2.0

    monkeypatch.setattr("lepton_cli.measure.case.perf_counter", lambda: now)
    assert warm_up(call) == 2.0
    assert now == 2.0


def test_short_runs_are_timed_in_blocks() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    assert latency._time(call, 7) >= 0
    assert calls == 7


def test_order_within_pairs_is_random_and_repeatable() -> None:
    def orders(seed: int) -> list[int]:
        seen: list[int] = []
        opened = latency.Open([lambda: seen.append(0), lambda: seen.append(1)], [None, None], [1.0, 1.0])
        latency._round(opened, [1, 1], np.random.default_rng(seed), 0.001)
        return seen[:40]

    assert orders(1)[:10] == orders(1)[:10]
    firsts = orders(1)[0::2]
    assert {0, 1} == set(firsts)


def test_exponential_of_an_unbounded_interval_is_finite_enough() -> None:
    one = rounds_of([np.array([[1.0, 2.0]])])
    assert one.ratio(1).value == pytest.approx(2)
    assert one.ratio(1).low == 0
    assert isinstance(one.ratio(1), statistics.Estimate)
