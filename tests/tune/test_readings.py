"""How far limits are: closed forms for every comparison, with the noise."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lepton_cli.measure.results import Accuracy, Fidelity, MetricChange
from lepton_cli.recipe.schema import Gate
from lepton_cli.report.model import Margin, Verdict
from lepton_cli.tune.readings import stands
from tests.tune.builders import accuracy, gate, judge, latency, size, trial


def margin(limit: Gate, **fields: Any) -> Margin:
    (found,) = judge(limit).margins(trial(**fields))
    return found


@pytest.mark.parametrize(
    ("limit", "measured", "found", "room"),
    [
        (gate("size.file", max="400 B"), {"size": size(500)}, 500, -0.25),
        (gate("size.file", min="400 B"), {"size": size(500)}, 500, 0.25),
        (gate("size.file", max_ratio="60 %"), {"size": size(500)}, 0.5, 1 / 6),
        (gate("size.file", min_ratio="60 %"), {"size": size(500)}, 0.5, -1 / 6),
        (gate("size.file", max_increase="200 B"), {"size": size(1500)}, 500, -1.5),
        (gate("accuracy.top1", max_drop="2 pp"), {"accuracy": accuracy(0.005)}, 0.005, 0.75),
        (gate("accuracy.top1", max_drop="2 pp"), {"accuracy": accuracy(0.05)}, 0.05, -1.5),
        # Of shares a point is the least that distances are a share of.
        (gate("accuracy.top1", max_drop="0.2 pp"), {"accuracy": accuracy(0.004)}, 0.004, -0.2),
        (gate("accuracy.top1", min="80 %"), {"accuracy": accuracy(0.02)}, 0.88, 0.1),
        (gate("latency.median", max="2 ms"), {"latency": latency(0.5)}, 0.0005, 0.75),
    ],
)
def test_room_is_a_share_of_the_bound(limit: Gate, measured: dict[str, Any], found: float, room: float) -> None:
    one = margin(limit, **measured)
    assert one.limit == 0
    assert one.found.value == pytest.approx(found)
    assert one.room == pytest.approx(room)


def test_the_error_is_half_of_the_interval() -> None:
    # A loss of 1.5 pp in [0.5, 2.5]: the difference, as it is stored, is its negative.
    change = MetricChange(
        metric="top1", output="y", original=0.9, compressed=0.885, difference=-0.015, low=-0.03, high=-0.005, n=100
    )
    measured = Accuracy(values=accuracy(0.015).values, changes=(change,))
    one = margin(gate("accuracy.top1", max_drop="2 pp"), accuracy=measured)
    assert (one.found.low, one.found.high) == pytest.approx((0.005, 0.03))
    assert one.error == pytest.approx(0.0125 / 0.02)
    timed = margin(gate("latency.median", max_ratio=0.8), latency=latency(0.5))
    assert (timed.found.low, timed.found.high) == pytest.approx((0.495, 0.505))
    assert timed.error == pytest.approx(0.005 / 0.8)
    assert margin(gate("size.file", max="400 B")).error == 0


def test_margins_are_of_limits_that_bind_and_were_measured() -> None:
    limits = (
        gate("size.file", max="400 B", level="warn"),
        gate("latency.median", max_ratio=0.8),
        gate("size.file", max_ratio=0.8, against="baseline"),
        gate("accuracy.top1", max_drop="2 pp"),
    )
    assert [one.limit for one in judge(*limits).margins(trial())] == [1, 3]
    assert [one.limit for one in judge(*limits).margins(trial(latency=None))] == [3]


def test_a_margin_for_every_value_of_the_metric() -> None:
    both = latency(0.5)
    other = latency(0.9, batch=8)
    table = both.model_copy(
        update={"results": (*both.results, *other.results), "changes": (*both.changes, *other.changes)}
    )
    found = judge(gate("latency.median", max_ratio=0.6)).margins(trial(latency=table))
    assert [one.room for one in found] == pytest.approx([1 / 6, -0.5])
    (one,) = judge(gate("latency.median", max_ratio=0.6, batch=8)).margins(trial(latency=table))
    assert one.room == pytest.approx(-0.5)


def test_equal_outputs_hold_a_limit_and_have_no_distance() -> None:
    same = Fidelity(output="y", agreement=1, agreement_low=0.9, agreement_high=1, sqnr_db=None, max_abs_error=0, n=9)
    one = judge(gate("fidelity.sqnr", min="30 dB"))
    equal = trial(accuracy=Accuracy(fidelity=(same,)))
    assert not one.margins(equal)
    assert not one.breaches(equal)
    other = same.model_copy(update={"sqnr_db": 24.0})
    assert one.margins(trial("b", accuracy=Accuracy(fidelity=(other,))))[0].room == pytest.approx(-0.2)


def test_what_is_no_number_is_beyond() -> None:
    (breach,) = judge(gate("accuracy.top1", max_drop="2 pp")).breaches(trial(accuracy=accuracy(math.nan)))
    assert breach.excess == math.inf


def test_room_and_excess_are_two_sides() -> None:
    """What is beyond a limit is as far beyond as its room says, but for what a trial cannot tell of a time."""
    one = judge(gate("size.file", max="400 B"), gate("latency.median", max_ratio=0.4))
    measured = trial()
    assert [breach.index for breach in one.breaches(measured)] == [0, 1]
    assert one.breaches(measured)[0].excess == pytest.approx(0.25)
    assert [m.room for m in one.margins(measured)] == pytest.approx([-0.25, -0.25])
    assert one.breaches(measured)[1].excess == pytest.approx((0.5 * 0.99 - 0.4) / 0.4)


@pytest.mark.parametrize(
    ("metric", "verdict", "level", "expected"),
    [
        ("accuracy.top1", "pass", "error", True),
        ("accuracy.top1", "fail", "error", False),
        ("accuracy.top1", "fail", "warn", True),
        ("latency.median", "skipped", "error", True),
        ("latency.median", "inconclusive", "error", False),
        # What is measured again on the same samples is no other.
        ("accuracy.worst_class", "inconclusive", "error", True),
        ("accuracy.evenness", "inconclusive", "error", True),
        ("accuracy.worst_class", "fail", "error", False),
    ],
)
def test_what_leaves_a_finalist_in_its_place(metric: str, verdict: Any, level: Any, expected: bool) -> None:
    said = Verdict(metric=metric, limit="max 1", observed="2", level=level, verdict=verdict)
    assert stands(said) == expected
