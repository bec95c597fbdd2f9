"""Comparisons on a clock that only the models move: every number is known beforehand."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import numpy as np
import pytest

from lepton_cli.timing.compare import Opener, Round, Rounds, StopRule, Warm, compare, undisturbed
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
    """Every run is 0.001 % slower than the one before. Bursts are not quite centred: short runs have more warm ones."""
    clock = FakeClock()
    openers = [
        clock.model("a", lambda: 1e-3 * 1.00001 ** len(clock.calls)),
        clock.model("b", lambda: 0.5e-3 * 1.00001 ** len(clock.calls)),
    ]
    found = compare(openers, StopRule(precision=0.0, seconds=2.0), generator(), clock=clock)
    assert len(clock.calls) > 1000  # 1 %
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
        logs = np.zeros((len(visits), 2, 3))
        # The bursts of the reference make up for it: every visit takes the same time as a whole.
        logs[:, 1] = np.log(visits)[:, None] * (-1 / 3, 2 / 3, -1 / 3)
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
    assert np.quantile(found.ratios(1), [0.5, 0.25, 0.0]) == pytest.approx([3, 2, 1])


def test_one_round_has_no_interval() -> None:
    found = rounds_of([[2.0]])
    assert found.ratio(1).value == pytest.approx(2)
    assert found.ratio(1).low == 0
    assert math.isfinite(found.ratio(1).high)


def states(clock: FakeClock, fast: float, slow: float, period: float = 0.5, share: float = 0.6) -> Callable[[], float]:
    """Seconds of a run on a machine that is in a slow state for this share of every period."""
    return lambda: slow if (clock.now * 1e-9) % period < share * period else fast


def test_a_slow_state_of_the_machine_is_left_out() -> None:
    """Two cores of their own: 2 and 1 ms. Halves of one core: 3 and 2 ms, for three fifths of the time."""
    clock = FakeClock()
    openers = [clock.model("a", states(clock, 2e-3, 3e-3)), clock.model("b", states(clock, 1e-3, 2e-3))]
    found = compare(openers, StopRule(0.0, 10.0), generator(), clock=clock)
    assert found.ratio(1).value == pytest.approx(0.5, rel=1e-3)
    assert found.ratio(1).high < 0.51
    assert found.absolute(0).value == pytest.approx(2e-3)
    assert found.absolute(1).value == pytest.approx(1e-3)
    assert np.median(found.times(0)) == pytest.approx(3e-3)
    assert 0.25 < found.undisturbed_share(0) < 0.6


def test_a_quiet_machine_leaves_out_nothing() -> None:
    clock = FakeClock()
    found = compare([clock.model("a", 1e-3), clock.model("b", 2e-3)], RULE, generator(), clock=clock)
    assert (found.undisturbed_share(0), found.undisturbed_share(1)) == (1, 1)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.5])
def test_leaving_out_slow_visits_does_not_move_the_ratio(sigma: float) -> None:
    """Two equal models under noise of any size: visits are chosen by their sum, which says nothing about the ratio."""
    noise = np.random.default_rng(5)
    visits = noise.normal(0, sigma, (40, 500, 2, 3))
    found = Rounds(2)
    found.rounds = [Round([[], []], [[], []], round_) for round_ in visits]
    # The standard error of the mean of 5,000 kept visits is `sigma * sqrt(1.5 / 5000)`.
    assert abs(math.log(found.ratio(1).value)) < 5 * sigma * math.sqrt(1.5 / 5000)


def test_undisturbed_visits_are_those_near_the_fast_ones() -> None:
    """Fast ones: a tenth percentile of 1.00; 6 % above it is the limit."""
    kept = undisturbed([np.array([1.0] * 8 + [1.061]), np.array([1.059]), np.array([2.0, 1.0]), np.array([2.0])])
    assert [list(part) for part in kept] == [[True] * 8 + [False], [True], [False, True], [False]]


def test_a_quarter_of_the_visits_is_kept_however_they_scatter() -> None:
    levels = np.arange(100.0)
    assert int(undisturbed([levels[:50], levels[50:]], rounds=1)[0].sum()) == 25


def test_enough_rounds_for_an_interval_are_kept() -> None:
    kept = undisturbed([np.array([0.0] * 50), np.array([5.0, 1.0]), np.array([3.0, 2.0]), np.array([9.0])])
    assert [list(part) for part in kept[1:]] == [[False, True], [False, True], [False]]
    assert all(part.all() for part in undisturbed([np.array([0.0]), np.array([4.0]), np.array([8.0])]))


def test_a_meter_in_place_of_the_clock_gives_joules() -> None:
    """Twice the time at a third of the power: two thirds of the energy."""
    clock, joules = FakeClock(), [0.0]

    def model(name: str, seconds: float, watts: float) -> Opener:
        run = clock.call(name, seconds)

        def call() -> None:
            run()
            joules[0] += seconds * watts

        return lambda: Warm(call)

    rule = StopRule(0.01, 5.0, setup=0, runs=1, block=0.05)
    found = compare(
        [model("a", 1e-3, 30.0), model("b", 2e-3, 10.0)],
        rule,
        generator(),
        clock=clock,
        gauge=lambda: round(joules[0] * 1e9),
    )
    assert found.absolute(0).value == pytest.approx(0.03)
    assert found.ratio(1).value == pytest.approx(2 / 3)


def test_a_visit_is_as_slow_as_the_mean_of_its_three_bursts() -> None:
    """Each burst of the second visit is 5 % slower: kept. Of the third it is 7 %: left out, and its ratio with it."""
    logs = np.zeros((40, 2, 3))
    logs[20:30, 1] = 0.05
    logs[30:, 1] = 0.07
    logs[20:30, 1, 1] += 0.002
    logs[30:, 1, 1] += 2.0
    logs[30:, 1, 0] -= 2.0
    found = Rounds(2)
    found.rounds = [Round([[np.ones(3)], [np.ones(3)]], [[], []], logs)]
    assert np.quantile(found.ratios(1), [1.0, 0.5]) == pytest.approx([math.exp(0.002), 1])


def test_no_garbage_is_collected_while_models_run() -> None:
    clock, states = FakeClock(), []

    def seconds() -> float:
        states.append(gc.isenabled())
        return 1e-3

    compare([clock.model("a", seconds), clock.model("b", seconds)], RULE, generator(), clock=clock)
    assert set(states) == {False}
    gc.disable()
    try:
        compare([clock.model("a", 1e-3)], RULE, generator(), clock=clock)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(("longest", "runs"), [(0.1, 10), (0.03, 3)])
def test_a_rule_says_how_long_bursts_are(longest: float, runs: int) -> None:
    clock = FakeClock()
    rule = StopRule(precision=0.5, seconds=2.0, longest=longest)
    found = compare([clock.model("a", 0.01), clock.model("b", 0.01)], rule, generator(), clock=clock)
    assert {len(burst) for model in found.rounds[0].times for burst in model} == {runs}
