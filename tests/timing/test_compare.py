"""Comparisons on a clock that only the models move: every number is known beforehand."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest

from lepton_cli.timing.compare import Round, Rounds, StopRule, compare
from tests.timing.clocks import FakeClock

RULE = StopRule(precision=0.01, seconds=2.0)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("reference", "other", "ratio"), [(1e-3, 2e-3, 2.0), (2e-3, 1e-3, 0.5), (1e-3, 1e-3, 1.0)])
@pytest.mark.parametrize("setup", [0.0, 0.4])
def test_a_model_exactly_twice_as_slow_is_two(reference: float, other: float, ratio: float, setup: float) -> None:
    clock = FakeClock()
    rule = StopRule(precision=0.01, seconds=2.0, setup=setup)
    found = compare([clock.model("a", reference), clock.model("b", other)], rule, generator(), clock=clock)
    assert found.ratio(1) == pytest.approx((ratio, ratio, ratio))
    assert found.ratio(0) == pytest.approx((1, 1, 1))
    assert found.absolute(0) == pytest.approx((reference, reference, reference))
    assert found.absolute(1) == pytest.approx((other, other, other))
    assert found.half_width() == pytest.approx(0)
    assert len(found.rounds) == RULE.rounds


def test_many_models_are_compared_with_the_first() -> None:
    clock = FakeClock()
    openers = [clock.model(name, seconds) for name, seconds in (("a", 1e-3), ("b", 3e-3), ("c", 0.5e-3))]
    found = compare(openers, RULE, generator(), clock=clock)
    assert [found.ratio(model).value for model in range(3)] == pytest.approx([1, 3, 0.5])


def test_one_model_alone_has_a_time_and_an_interval() -> None:
    clock = FakeClock()
    found = compare([clock.model("a", 1e-3)], RULE, generator(), clock=clock)
    assert found.absolute(0) == pytest.approx((1e-3, 1e-3, 1e-3))
    assert found.half_width() == pytest.approx(0)
    assert found.visits > 0


def test_a_machine_that_gets_slower_does_not_change_the_ratio() -> None:
    """Every run is 0.01 % slower than the one before: both models ten times slower in the end."""
    clock = FakeClock()
    openers = [
        clock.model("a", lambda: 1e-3 * 1.0001 ** len(clock.calls)),
        clock.model("b", lambda: 0.5e-3 * 1.0001 ** len(clock.calls)),
    ]
    found = compare(openers, StopRule(precision=0.0, seconds=2.0), generator(), clock=clock)
    assert len(clock.calls) > 1000
    assert found.ratio(1).value == pytest.approx(0.5, rel=1e-4)


def test_bursts_of_the_reference_lie_on_both_sides() -> None:
    """Runs of 30 ms: three a burst, none to warm the caches; one visit fills a round of 20 ms."""
    clock = FakeClock()
    rule = StopRule(precision=1.0, seconds=0.0, rounds=2, fewest=2, share=0, setup=0)
    compare([clock.model("a", 0.03), clock.model("b", 0.03)], rule, generator(), clock=clock)
    warm = 2 * 6
    assert sorted(clock.calls[:warm]) == ["a"] * 6 + ["b"] * 6
    assert "".join(clock.calls[warm:]) == ("aaa" + "bbb" + "aaa") * 2


def test_the_order_of_the_others_is_random_and_repeatable() -> None:
    def order(seed: int) -> list[str]:
        clock = FakeClock()
        models = [clock.model(name, 0.03) for name in "abcd"]
        compare(models, StopRule(precision=0, seconds=10, setup=0), generator(seed), clock=clock)
        others = [name for name in clock.calls[40:] if name != "a"]
        return [name for name, before in zip(others, ["", *others], strict=False) if name != before]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_it_stops_at_the_precision_or_when_time_is_up() -> None:
    clock = FakeClock()
    noise = np.random.default_rng(3)
    wobbling = clock.model("b", lambda: 1e-3 * float(noise.uniform(0.5, 2)))
    precise = compare([clock.model("a", 1e-3), wobbling], StopRule(0.5, 100.0), generator(), clock=clock)
    assert len(precise.rounds) == 10
    begun = clock.now
    late = compare([clock.model("a", 1e-3), wobbling], StopRule(0.0, 3.0), generator(), clock=clock)
    assert 3.0 <= (clock.now - begun) * 1e-9 < 3.3
    assert len(late.rounds) > 10


def test_slow_models_get_the_fewest_rounds() -> None:
    clock = FakeClock()
    found = compare([clock.model("a", 2.0), clock.model("b", 2.0)], StopRule(0.0, 1.0), generator(), clock=clock)
    assert len(found.rounds) == 3
    assert found.created == 3
    more = compare(
        [clock.model("a", 2.0), clock.model("b", 2.0)], StopRule(0.0, 1.0, fewest=5), generator(), clock=clock
    )
    assert len(more.rounds) == 5


def test_sessions_are_created_anew_unless_that_takes_too_long() -> None:
    clock = FakeClock()
    fresh = compare([clock.model("a", 1e-3), clock.model("b", 1e-3)], RULE, generator(), clock=clock)
    assert fresh.created == len(fresh.rounds) == clock.opened["a"] == clock.opened["b"]
    kept = compare([clock.model("c", 1e-3)], StopRule(0.01, 2.0, setup=0), generator(), clock=clock)
    assert (kept.created, clock.opened["c"]) == (1, 1)


def test_the_device_is_timed_beside() -> None:
    clock = FakeClock()
    found = compare([clock.model("a", 1e-3, device=0.25e-3)], RULE, generator(), clock=clock)
    device = found.device(0)
    assert device is not None
    assert device == pytest.approx(np.full(len(device), 0.25e-3))
    assert compare([clock.model("a", 1e-3)], RULE, generator(), clock=clock).device(0) is None


def test_what_was_measured_survives_an_interrupt() -> None:
    clock, found = FakeClock(), Rounds(1)
    left = iter(range(300))

    def seconds() -> float:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return 1e-3

    with pytest.raises(KeyboardInterrupt):
        compare([clock.model("a", seconds)], RULE, generator(), clock=clock, into=found)
    assert 1 <= len(found.rounds) < 10
    assert found.absolute(0).value == pytest.approx(1e-3)
    assert gc.isenabled()


def test_progress_counts_visits() -> None:
    clock, told = FakeClock(), []
    found = compare(
        [clock.model("a", 1e-3), clock.model("b", 1e-3)], RULE, generator(), clock=clock, advance=told.append
    )
    assert sum(told) == found.visits
    assert len(told) == len(found.rounds)


def rounds_of(ratios: list[list[float]]) -> Rounds:
    """Rounds with these ratios of a model to the reference."""
    rounds = Rounds(2)
    for visits in ratios:
        logs = np.stack([np.zeros(len(visits)), np.log(visits)], axis=1)
        rounds.rounds.append(Round([[np.ones(3)], [np.ones(3)]], [[], []], logs))
    return rounds


def test_intervals_rest_on_rounds_not_on_visits() -> None:
    """Rounds differ by 5 %, visits within a round not at all: no number of visits decides more."""
    found = rounds_of([[ratio] * 5000 for ratio in (1.05, 0.95, 1.04, 0.96, 1.05, 0.95)])
    assert found.ratio(1).low < 0.97
    assert found.ratio(1).high > 1.03
    assert found.visits == 30_000


def test_a_share_of_the_visits_stays_below_a_quantile() -> None:
    found = rounds_of([[1.0, 2.0, 3.0], [4.0, 5.0]])
    assert found.ratio_quantile(1, 0.5) == pytest.approx(3)
    assert found.ratio_quantile(1, 0.25) == pytest.approx(2)
    assert found.ratio_quantile(1, 0.0) == pytest.approx(1)


def test_one_round_has_no_interval() -> None:
    found = rounds_of([[2.0]])
    assert found.ratio(1).value == pytest.approx(2)
    assert found.ratio(1).low == 0
    assert math.isfinite(found.ratio(1).high)
