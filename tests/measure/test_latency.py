"""Latency: the machinery with made-up clocks, and small real runs without a claim about their times."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import numpy as np
import pytest

from lepton_cli import units
from lepton_cli.errors import MeasurementError, ProviderError
from lepton_cli.machine import usable_threads
from lepton_cli.measure import latency
from lepton_cli.measure.case import Case
from lepton_cli.measure.results import Latency
from lepton_cli.measure.spec import LatencySpec
from lepton_cli.timing.compare import Round, Rounds, StopRule
from tests.measure import builders

SMALL = builders.chain(2, 16)


def feeds(batch: int) -> dict[str, Any]:
    return {"x": np.ones((batch, 16), np.float32)}


def spec(**options: Any) -> LatencySpec:
    return LatencySpec(**{"threads": 1, "time": units.Seconds(0.2), **options})


def measured(ratios: list[list[float]], runs: int = 1) -> latency._Measured:
    """What a comparison found whose rounds had these ratios; every run took a second."""
    arms = ("original", "compressed")
    case = Case(dict.fromkeys(arms, b""), "cpu", 4, 1, {}, {}, {arm: {} for arm in arms}, dict.fromkeys(arms, ()))
    rounds = Rounds(2)
    for visits in ratios:
        logs = np.zeros((len(visits), 2, 3))
        logs[:, 1] = np.log(visits)[:, None] * (-1 / 3, 2 / 3, -1 / 3)
        rounds.rounds.append(Round([[np.ones(runs)], [np.ones(runs)]], [[], []], logs))
    return latency._Measured(case, StopRule(0.02, 10.0), rounds)


def test_a_busy_machine_is_worth_a_warning() -> None:
    """Two of three bursts of the reference take twice as long."""
    found = measured([[1.0] * 3] * 4)
    for round_ in found.rounds.rounds:
        round_.times[0] = [np.array([1.0])] + [np.array([2.0])] * 2
        round_.times[1] = [np.array([1.0])] * 3
    assert found.warnings() == [
        "latency on cpu, batch 4: other work on this machine slowed 67 % of the bursts, which do not count"
    ]
    assert [result.undisturbed for result in found.latencies()] == pytest.approx([1 / 3, 1.0])
    assert [result.median for result in found.latencies()] == [1.0, 1.0]


def test_another_provider_for_the_same_processor_is_named_where_it_is_faster() -> None:
    def one(provider: str, batch: int, median: float, variant: str = "int8") -> Latency:
        like = measured([[1.0] * 3] * 4).latencies()[0]
        ends = {"median": median, "low": 0.9 * median, "high": 1.1 * median}
        return like.model_copy(update={"provider": provider, "batch": batch, "variant": variant, **ends})

    own = [one("cpu", 1, 1.0), one("cpu", 8, 4.0), one("cpu", 32, 9.0)]
    other = [one("openvino", 1, 1.1), one("openvino", 8, 2.0), one("openvino", 32, 6.0), one("openvino", 64, 1.0)]
    said = ["`int8` is faster on openvino than on cpu: 2.00x (batch 8), 1.50x (batch 32)"]
    assert latency._faster_elsewhere([*own, *other]) == said
    slower = [one(result.provider, result.batch, 9.9) for result in other]
    assert latency._faster_elsewhere([*own, *slower]) == latency._faster_elsewhere(own) == []
    assert latency._faster_elsewhere([*own, *(one("cuda", batch, 0.1) for batch in (1, 8))]) == []
    assert latency._faster_elsewhere([*own, one("openvino", 8, 0.1, "original"), one("openvino", 8, 3.9)]) == []
    assert latency._faster_elsewhere([]) == []


def test_further_arms_are_timed_in_the_first_comparison_alone() -> None:
    """Without the one that takes no such input, and the one that is no model."""
    more = {"part": SMALL, "other": builders.chain(2, 8), "none": b"nothing"}
    asked = spec(batch=(2, 1), providers=("cpu", {"name": "cuda", "optional": True}))
    found = latency.compare({"original": SMALL, "compressed": SMALL}, feeds, asked, beside=more)
    both = ["original", "compressed"]
    assert [(one.variant, one.batch) for one in found.results] == [
        *((name, 2) for name in (*both, "part")),
        *((name, 1) for name in both),
    ]
    assert [(one.variant, one.batch) for one in found.changes] == [("compressed", 2), ("part", 2), ("compressed", 1)]
    assert len({one.rounds for one in found.changes if one.batch == 2}) == 1
    assert [one.what for one in found.skipped] == ["latency cuda"]


def test_every_number_of_threads_is_timed_on_the_cpu_and_said() -> None:
    """The first is the one that parts of a run are timed with; sessions really have that many."""
    asked = spec(threads=(2, 1), batch=(1, 2), time=units.Seconds(0.05), precision=units.Share(1e-6))
    found = latency.compare({"original": SMALL, "compressed": SMALL}, feeds, asked, beside={"part": SMALL})
    keys = [(2, 1), (2, 2), (1, 1), (1, 2)]
    assert list(dict.fromkeys((one.threads, one.batch) for one in found.results)) == keys
    assert [(one.threads, one.batch) for one in found.changes if one.variant == "compressed"] == keys
    assert [(one.threads, one.batch) for one in found.changes if one.variant == "part"] == keys[:1]
    assert any(line.startswith("latency on cpu, batch 1, 2 threads: ") for line in found.warnings)
    assert any(line.startswith("latency on cpu, batch 2, 1 thread: ") for line in found.warnings)


def test_a_device_is_measured_with_the_first_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_SAME_PROCESSOR", frozenset())
    found = latency.compare({"original": SMALL}, feeds, spec(threads=(2, 1), time=units.Seconds(0.05)))
    assert [one.threads for one in found.results] == [2]


def test_a_size_and_a_number_of_threads_are_measured_once() -> None:
    asked = LatencySpec.model_validate({"batch": [8, 1, 8], "threads": [2, 2]})
    assert (asked.batch, asked.threads) == ((8, 1), (2,))
    assert LatencySpec.model_validate({"batch": 4, "threads": 1}).threads == (1,)
    assert LatencySpec().threads == ()


def test_an_arm_that_is_asked_for_has_to_run() -> None:
    with pytest.raises(MeasurementError):
        latency.compare({"original": SMALL, "other": builders.chain(2, 8)}, feeds, spec(), beside={"part": SMALL})


def test_how_precise_it_is_says_what_was_asked_for() -> None:
    """A part of the steps whose times scatter is no reason to measure longer."""
    found = measured([[1.0] * 3] * 6)
    noisy = latency._Measured(
        Case({**found.case.arms, "part": b""}, "cpu", 4, 1, {}, {}, optional=frozenset({"part"})), found.rule, Rounds(3)
    )
    for sign in (1, -1) * 3:
        logs = np.zeros((3, 3, 3))
        logs[:, 2] = 0.2 * sign * np.array([-1 / 3, 2 / 3, -1 / 3])
        noisy.rounds.rounds.append(Round([[np.ones(1)]] * 3, [[]] * 3, logs))
    assert noisy.rounds.half_width() > 0.02 > noisy.rounds.half_width(2)
    assert noisy.warnings() == []
    required = latency._Measured(dataclasses.replace(noisy.case, optional=frozenset()), noisy.rule, noisy.rounds)
    assert "wanted ±2 %" in required.warnings()[0]


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
        assert change.rounds >= 3
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


def test_imprecise_results_and_fallback_are_pointed_out() -> None:
    found = measured([[ratio] for ratio in (1.0, 1.3, 0.8, 1.1, 0.9, 1.0)])
    found.case.placement["compressed"] = {"CUDAExecutionProvider": 10, "CPUExecutionProvider": 6}
    found.case.fallback["compressed"] = tuple(f"n{i}" for i in range(6))
    warnings = found.warnings()
    assert "after 10 s, wanted ±2 %" in warnings[0]
    assert any("`compressed` ran 6 of 16 nodes elsewhere: n0, n1, n2, n3, n4, …" in text for text in warnings)


def test_changes_name_pairs_and_rounds() -> None:
    (change,) = measured([[2.0, 2.0]] * 7).changes()
    assert (change.variant, change.pairs, change.rounds) == ("compressed", 14, 7)
    assert (change.ratio, change.low, change.high) == pytest.approx((2, 2, 2))
    assert (change.original, change.compressed) == (1.0, 1.0)


def test_percentiles_need_runs() -> None:
    few = measured([[1.0]] * 6, runs=5).latencies()[0]
    many = measured([[1.0]] * 6, runs=100).latencies()[0]
    assert (few.p90, few.p99) == (None, None)
    assert (many.p90, many.p99) == (1.0, 1.0)
    assert len(many.times) <= 200
