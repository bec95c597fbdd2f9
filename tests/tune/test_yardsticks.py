"""Limits and goal as numbers that are better when lower: by hand for every comparison and kind, there and back."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli import metrics
from lepton_cli.measure import rows, statistics
from lepton_cli.measure.results import Accuracy, Fidelity, Memory, MetricChange, MetricValue
from lepton_cli.measure.rows import Counts
from lepton_cli.recipe.schema import Gate
from lepton_cli.recipe.tuning import Objective
from lepton_cli.report.facts import BoundedValue
from lepton_cli.report.trial import Band, Trial
from lepton_cli.tune.limits import Judge
from lepton_cli.tune.outlook import Drop, Features, Ratio
from lepton_cli.tune.yardsticks import Yardstick, comparison, yardsticks
from tests.tune import builders
from tests.tune.builders import accuracy, gate, latency, size, trial


def error(amount: float, low: float, high: float) -> Accuracy:
    """A mean absolute error of 2 that grows by so much, in a paired interval that is narrower than its own."""

    def value(number: float) -> MetricValue:
        return MetricValue(metric="mae", output="y", value=number, low=number - 1, high=number + 1, n=9)

    change = MetricChange(metric="mae", output="y", original=2, compressed=2 + amount, difference=amount, low=low,
                          high=high, n=9)  # fmt: skip
    return Accuracy(values={"original": (value(2),), "compressed": (value(2 + amount),)}, changes=(change,))


def fidelity(decibel: float | None, agreement: float = 1.0) -> Accuracy:
    """Answers that agree within two points; without decibels they are equal."""
    one = Fidelity(output="y", agreement=agreement, agreement_low=agreement - 0.02, agreement_high=agreement + 0.01,
                   sqnr_db=decibel, max_abs_error=0.0 if decibel is None else 0.1, n=9)  # fmt: skip
    return Accuracy(fidelity=(one,))


def by_class(lost: int, other: int) -> Accuracy:
    """Two classes of 200, of which 180 and 160 were right, and so many of them are lost."""
    counted = (Counts("a", 180 - lost, lost, 0, 20), Counts("b", 160 - other, other, 0, 40))
    classes, spread = rows.judged({("y", ""): counted})
    return Accuracy(classes=classes, spread=spread)


def ends(lost: int, z: float = 2.241403) -> tuple[float, float]:
    """Of two intervals at once; the other class lost less for certain."""
    found = statistics.paired_difference(180 - lost, lost, 0, 20, z)
    return -found.high, -found.low


#: An original of 1000 bytes, parameters / 4, 1 ms, 1000 samples a second, 90 %; others are named.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "accuracy.top1": ({"accuracy": accuracy()}, {"accuracy": accuracy(0.005, half=0.02)}),
    "accuracy.mae": ({"accuracy": error(0, 0, 0)}, {"accuracy": error(0.3, 0.1, 0.4)}),
    "agreement": ({"accuracy": fidelity(None)}, {"accuracy": fidelity(40.0, 0.95)}),
    "fidelity.sqnr": ({"accuracy": fidelity(None)}, {"accuracy": fidelity(40.0)}),
    "accuracy.worst_class": ({"accuracy": by_class(0, 0)}, {"accuracy": by_class(20, 5)}),
    "accuracy.evenness": ({"accuracy": by_class(0, 0)}, {"accuracy": by_class(20, 5)}),
    "latency.median": ({}, {"latency": latency(0.5)}),
    "throughput": ({}, {"latency": latency(0.5)}),
    "size.file": ({}, {"size": size(500)}),
    "memory.peak": ({"memory": Memory(peak=10_000, added=1)}, {"memory": Memory(peak=8_000, added=1)}),
}


def given_original(metric: str) -> Trial:
    return trial("original", **{"size": size(1000), "latency": latency(1.0), **KINDS[metric][0]})


def measured(metric: str) -> Trial:
    return trial(**KINDS[metric][1])


def judge(*limits: Gate, goal: str) -> Judge:
    memory = Memory(peak=10_000, added=1)
    return dataclasses.replace(builders.judge(*limits, goal=goal), memory=memory)


def bound(limit: Gate) -> tuple[Yardstick, Judge]:
    one = judge(limit, goal=limit.metric)
    (found,), _ = yardsticks(one, given_original(limit.metric))
    return found, one


#: Wilson's interval of 20 of 25, of two at once.
EVEN = statistics.wilson(20, 25, 2.241403)
#: A limit; what it allows, what a trial has of it, and the ends of its interval, better when lower; then the same of
#: the trial as the limit looks at it.
CASES: list[tuple[Gate, float, tuple[float, float, float], tuple[float, float, float]]] = [
    # 89.5 % of 90 %, in [-1.5, 2.5] points lost.
    (gate("accuracy.top1", max_drop="2 pp"), 0.02, (0.005, -0.015, 0.025), (0.005, -0.015, 0.025)),
    (gate("accuracy.top1", min="80 %"), 0.1, (0.005, -0.015, 0.025), (0.895, 0.875, 0.915)),
    (gate("accuracy.top1", min_ratio="80 %"), 0.18, (0.005, -0.015, 0.025), (0.895 / 0.9, 0.875 / 0.9, 0.915 / 0.9)),
    # An error of 2.3 after 2, which is between 0.1 and 0.4 more.
    (gate("accuracy.mae", max=3), 1.0, (0.3, 0.1, 0.4), (2.3, 2.1, 2.4)),
    (gate("accuracy.mae", max_ratio=1.2), 0.4, (0.3, 0.1, 0.4), (1.15, 1.05, 1.2)),
    (gate("accuracy.mae", max_increase=0.5), 0.5, (0.3, 0.1, 0.4), (0.3, 0.1, 0.4)),
    # 95 % of the answers; the original agrees with itself.
    (gate("agreement", min="90 %"), 0.1, (0.05, 0.04, 0.07), (0.95, 0.93, 0.96)),
    # Class a lost 10 points, with an interval for both; the lowest of the original's is b with 80 %.
    (gate("accuracy.worst_class", max_drop="4 pp"), 0.04, (0.1, *ends(20)), (0.1, *ends(20))),
    # 20 of 25 lost in one of two equal classes. The original lost nothing: 1.
    (gate("accuracy.evenness", max=1.5), 0.5, (0.6, 2 * EVEN[0] - 1, 2 * EVEN[1] - 1), (1.6, 2 * EVEN[0], 2 * EVEN[1])),
    # 20 dB are a tenth of the signal.
    (gate("fidelity.sqnr", min="20 dB"), 0.1, (0.01, 0.01, 0.01), (40, 40, 40)),
    # Half of 1 ms, within 1 %.
    (gate("latency.median", max="2 ms"), 2.0, (0.5, 0.495, 0.505), (0.5e-3, 0.495e-3, 0.505e-3)),
    (gate("latency.median", max_ratio=0.6), 0.6, (0.5, 0.495, 0.505), (0.5, 0.495, 0.505)),
    (gate("latency.median", max_increase="1 ms"), 2.0, (0.5, 0.495, 0.505), (-0.5e-3, -0.505e-3, -0.495e-3)),
    # Twice the 1000 a second.
    (gate("throughput", min=500), 2.0, (0.5, 0.495, 0.505), (2000, 1000 / 0.505, 1000 / 0.495)),
    (gate("throughput", min_ratio=0.8), 1.25, (0.5, 0.495, 0.505), (2, 1 / 0.505, 1 / 0.495)),
    (gate("throughput", max_drop=200), 1.25, (0.5, 0.495, 0.505), (-1000, 1000 - 1000 / 0.495, 1000 - 1000 / 0.505)),
    # 500 of 1000 bytes.
    (gate("size.file", max="400 B"), 0.4, (0.5, 0.5, 0.5), (500, 500, 500)),
    (gate("size.file", max_ratio=0.6), 0.6, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    (gate("size.file", max_increase="200 B"), 1.2, (0.5, 0.5, 0.5), (-500, -500, -500)),
    # 8,000 of 10,000 bytes.
    (gate("memory.peak", max="7 kB"), 0.7, (0.8, 0.8, 0.8), (8000, 8000, 8000)),
    (gate("memory.peak", max_ratio=0.9), 0.9, (0.8, 0.8, 0.8), (0.8, 0.8, 0.8)),
    (gate("memory.peak", max_increase="1 kB"), 1.1, (0.8, 0.8, 0.8), (-2000, -2000, -2000)),
]


def _name(value: object) -> str:
    return f"{value.metric} {value.comparison}" if isinstance(value, Gate) else ""


@pytest.mark.parametrize(("limit", "allowed", "unit", "looked_at"), CASES, ids=_name)
def test_there_and_back(
    limit: Gate, allowed: float, unit: tuple[float, float, float], looked_at: tuple[float, float, float]
) -> None:
    one, judged = bound(limit)
    assert (one.metric, one.index) == (limit.metric, 0)
    assert one.bound == pytest.approx(allowed)
    read = one.read(judged.report(measured(limit.metric)))
    middle, low, high = unit
    assert read == pytest.approx((middle, (high - low) / 2 / 1.959964), rel=1e-4)
    assert comparison(judged, one) == limit.comparison
    shown = one.shown(Band(value=middle, low=low, high=high), comparison(judged, one))
    assert (shown.value, shown.low, shown.high) == pytest.approx(looked_at)


@pytest.mark.parametrize(("limit", "allowed", "unit", "looked_at"), CASES, ids=_name)
def test_what_holds_the_limit_is_below_its_bound(limit: Gate, allowed: float, unit: object, looked_at: object) -> None:
    """At the bound the limit looks at itself; a little less is better for the judge, a little more beyond."""
    one, judged = bound(limit)
    at = one.shown(Band(value=allowed, low=allowed, high=allowed), limit.comparison)
    assert at.value == pytest.approx(float(limit.limit))
    better, worse = (
        one.shown(Band(value=v, low=v, high=v), limit.comparison).value for v in (0.9 * allowed, 1.1 * allowed)
    )
    upper = limit.comparison.startswith("max")
    assert (better < at.value < worse) if upper else (better > at.value > worse)
    reading = judged.margins(measured(limit.metric))[0]
    assert (reading.room >= 0) == (one.read(judged.report(measured(limit.metric)))[0] <= one.bound)  # type: ignore[index]


def test_every_comparison_and_kind_is_tried() -> None:
    """But those that bound from the side where nobody wants to go."""
    assert {limit.comparison for limit, *_ in CASES} == {
        "max",
        "min",
        "max_ratio",
        "min_ratio",
        "max_drop",
        "max_increase",
    }
    kinds = {metrics.of(limit.metric).kind for limit, *_ in CASES}
    assert kinds >= {"share", "number", "decibel", "time", "rate", "size"}


@pytest.mark.parametrize(
    ("metric", "unit", "counted"),
    [
        ("accuracy.top1", 0.005, -0.895),
        ("accuracy.mae", 0.3, 2.3),
        ("agreement", 0.05, -0.95),
        ("fidelity.sqnr", 0.01, -40),
        ("latency.median", 0.5, 0.5),
        ("throughput", 0.5, -2),
        ("size.file", 0.5, 500),
        ("memory.peak", 0.8, 0.8),
    ],
)
def test_the_goal_is_shown_as_the_judge_counts_it(metric: str, unit: float, counted: float) -> None:
    one = judge(goal=metric)
    bounds, goal = yardsticks(one, given_original(metric))
    assert (bounds, goal.index, comparison(one, goal), goal.bound) == ([], None, None, math.inf)
    found = goal.read(one.report(measured(metric)))
    assert found is not None
    assert found[0] == pytest.approx(unit)
    shown = goal.shown(Band(value=unit, low=0.9 * unit, high=1.1 * unit), None)
    assert shown.value == pytest.approx(counted)
    assert shown.low < shown.value < shown.high, "a higher one is worse here too"
    assert one.value(measured(metric)) == pytest.approx(counted)


@given(st.sampled_from(sorted(KINDS)), st.floats(0.01, 1.5))
def test_values_come_back(metric: str, share: float) -> None:
    """Of a limit that looks at the value itself."""
    before = 90.0 if metric == "fidelity.sqnr" else 0.9
    one = Yardstick(metric, (), 0, before)
    unit = one.of(BoundedValue(share * before, 0.9 * share * before, 1.1 * share * before))
    assert unit.low < unit.value < unit.high
    shown = one.shown(Band(value=unit.value, low=unit.low, high=unit.high), "max")
    assert (shown.value, shown.low, shown.high) == pytest.approx(tuple(f * share * before for f in (1, 0.9, 1.1)))


def test_what_was_taken_beside_the_original_counts() -> None:
    """The paired ratio, not that of two medians; the original's value where there are no pairs."""
    table = latency(0.5)
    quick = table.results[0].model_copy(update={"median": 0.4e-3, "low": 0.4e-3, "high": 0.4e-3})
    one = judge(goal="latency.median")
    _, goal = yardsticks(one, given_original("latency.median"))
    beside = trial(latency=table.model_copy(update={"results": (quick, table.results[1])}))
    assert goal.read(one.report(beside)) == pytest.approx((0.5, 0.005 / 1.96))
    alone = trial("b", latency=table.model_copy(update={"changes": ()}))
    assert goal.read(one.report(alone)) == pytest.approx((0.5, 0.005 / 1.96))
    _, lost = yardsticks(judge(goal="accuracy.mae"), given_original("accuracy.mae"))
    unpaired = trial("c", accuracy=error(0.3, 0.1, 0.4).model_copy(update={"changes": ()}))
    assert lost.read(one.report(unpaired)) == pytest.approx((0.3, 1 / 1.96))


def test_what_was_not_measured_is_not_read() -> None:
    one, judged = bound(gate("latency.median", max_ratio=0.6))
    assert one.read(judged.report(trial(latency=None))) is None


def test_limits_that_bind() -> None:
    """Not warnings, not baselines, and not what bounds from the other side: that a size is not too small."""
    limits = (
        gate("size.file", max="1 B", level="warn"),
        gate("size.file", max_ratio=0.5, against="baseline"),
        gate("size.file", min="10 B"),
        gate("size.file", min_ratio="1 %"),
        gate("accuracy.top1", max="99 %"),
        gate("accuracy.top1", max_ratio=1.1),
        gate("throughput", max=1e9),
        gate("macs", max_ratio=0.5),
    )
    bounds, goal = yardsticks(judge(*limits, goal="parameters"), given_original("size.file"))
    assert [(one.index, one.metric, one.counted, one.bound) for one in bounds] == [(7, "macs", "macs", 0.5)]
    assert (goal.counted, goal.original) == ("parameters", 250)
    assert Yardstick("size.file", (), 0, 1).counted == "bytes"
    assert Yardstick("size.gzip", (), 0, 1).counted == Yardstick("accuracy.top1", (), 0, 1).counted == ""


def test_each_value_that_a_limit_bounds() -> None:
    """Every batch size against its own original."""
    tables = (latency(1.0), latency(1.0, batch=8))
    slow = tables[1].results[0].model_copy(update={"median": 4e-3, "low": 4e-3, "high": 4e-3})
    change = tables[1].changes[0].model_copy(update={"original": 4e-3})
    same = slow.model_copy(update={"variant": "compressed"})
    table = tables[0].model_copy(
        update={
            "results": (*tables[0].results, slow, same),
            "changes": (*tables[0].changes, change),
        }
    )
    one = judge(
        gate("latency.median", max="2 ms"), gate("latency.median", max_ratio=0.9, batch=8), goal="latency.median"
    )
    bounds, goal = yardsticks(one, trial("original", latency=table))
    assert [(stick.index, dict(stick.scope)["batch"]) for stick in bounds] == [(0, 1), (0, 8), (1, 8)]
    assert [stick.bound for stick in bounds] == pytest.approx([2, 0.5, 0.9])
    assert dict(goal.scope)["batch"] == 1
    named = judge(goal="latency.median")
    named = dataclasses.replace(named, goal=Objective(metric="latency.median", batch=8))
    assert yardsticks(named, trial("original", latency=table))[1].original == 4e-3
    both = latency(0.5).model_copy(
        update={
            "results": (*latency(0.5).results, *latency(0.7, batch=8).results),
            "changes": (*latency(0.5).changes, *latency(0.7, batch=8).changes),
        }
    )
    read = [stick.read(one.report(trial(latency=both))) for stick in bounds]
    assert [found[0] for found in read if found] == pytest.approx([0.5, 0.7, 0.7])


@pytest.mark.parametrize(
    ("metric", "original", "allowed", "unit", "most"),
    [
        # A limit says what matters; else a point of a share or of the signal, and a fiftieth of what it was.
        ("accuracy.top1", 0.9, 0.02, 0.02, 0.9),
        ("accuracy.top1", 0.9, math.inf, 0.01, 0.9),
        ("accuracy.top1", 0.9, 0.0, 0.01, 0.9),
        ("accuracy.top1", 0.0, -0.1, 0.01, 0.01),
        ("agreement", 1.0, 0.05, 0.05, 1.0),
        ("fidelity.sqnr", math.inf, 0.1, 0.1, math.inf),
        ("fidelity.sqnr", math.inf, math.inf, 0.01, math.inf),
        ("accuracy.mae", 2.0, math.inf, 0.04, math.inf),
        ("accuracy.psnr", 30.0, math.inf, 0.1, math.inf),
        ("accuracy.si_sdr", 12.0, 0.3, 0.3, math.inf),
        ("accuracy.eer", 0.04, math.inf, 0.01, 0.96),
        ("accuracy.perplexity", 5.0, math.inf, 0.1, math.inf),
        ("accuracy.mae", 2.0, 0.5, 0.5, math.inf),
        ("accuracy.r2", -3.0, math.inf, 0.06, math.inf),
        ("accuracy.mae", 0.0, math.inf, 1e-9, math.inf),
    ],
)
def test_what_matters_of_a_quality(metric: str, original: float, allowed: float, unit: float, most: float) -> None:
    found = Yardstick(metric, (), 0, original, allowed).quantity
    assert isinstance(found, Drop)
    assert found.unit == pytest.approx(unit)
    assert found.most == most


@pytest.mark.parametrize(
    ("metric", "share"),
    [
        ("latency.p99", 0.25),
        ("throughput", 0.25),
        ("energy", 0.25),
        ("cost.per_million", 0.25),
        ("memory.peak", 0.8),
        ("size.gzip", 0.6),
        ("nonzeros", 0.6),
    ],
)
def test_ratios_follow_the_tables(metric: str, share: float) -> None:
    found = Yardstick(metric, (), 0, 1.0).quantity
    assert isinstance(found, Ratio)
    assert found.share(Features("int8", time=0.25, bytes=0.6)) == pytest.approx(share)


def test_a_level_of_the_worst_class_is_read_without_the_original() -> None:
    """Class a fell from 90 to 80 % and is the worst; the original's lowest is b with 80 %: no level was lost."""
    one, judged = bound(gate("accuracy.worst_class", min="75 %"))
    assert one.original == pytest.approx(0.8)
    assert one.bound == pytest.approx(0.05)
    read = one.read(judged.report(measured("accuracy.worst_class")))
    assert read is not None
    assert read[0] == pytest.approx(0, abs=1e-12)
    assert not judged.breaches(measured("accuracy.worst_class"))
    # As a goal it is a level too: what the judge compares trials by.
    judged = judge(goal="accuracy.worst_class")
    _, goal = yardsticks(judged, given_original("accuracy.worst_class"))
    worse = trial(accuracy=by_class(30, 5))
    read = goal.read(judged.report(worse))
    assert read is not None
    shown = goal.shown(Band(value=read[0], low=read[0], high=read[0]), comparison(judged, goal))
    assert shown.value == pytest.approx(-0.75)
    assert judged.value(worse) == pytest.approx(-0.75)
