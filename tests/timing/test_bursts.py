"""Bursts: how many runs, which of them count, and when a model is warm."""

from __future__ import annotations

import pytest

from lepton_cli.timing.bursts import NOTHING, RUNS, Burst, warm_up
from tests.timing.clocks import FakeClock


@pytest.mark.parametrize(
    ("seconds", "runs", "block"),
    [
        (1e-6, RUNS, 100),  # a microsecond: blocks of 100 us
        (3e-5, RUNS, 4),
        (6e-5, RUNS, 1),  # longer than half a block
        (1e-3, RUNS, 1),
        (0.01, 10, 1),  # a tenth of a second in all
        (0.04, 2, 1),
        (0.3, 1, 1),
        (0.0, RUNS, 100_000),
    ],
)
def test_runs_and_blocks(seconds: float, runs: int, block: int) -> None:
    burst = Burst(lambda: None, seconds)
    assert (burst.runs, burst.block) == (runs, block)


def test_a_burst_may_be_shorter() -> None:
    assert Burst(lambda: None, 1e-3, 4).runs == 4
    assert Burst(lambda: None, 0.05, 4).runs == 2


@pytest.mark.parametrize(
    ("seconds", "first"),
    [(2e-4, RUNS), (1e-3, 10), (3e-3, 4), (0.024, 1), (0.025, 0), (0.03, 0)],
)
def test_the_first_runs_warm_the_caches_unless_runs_are_long(seconds: float, first: int) -> None:
    clock = FakeClock()
    durations = iter([5 * seconds] * first + [seconds] * 50)
    times = Burst(clock.call("a", lambda: next(durations)), seconds).time(clock)
    assert times == pytest.approx([seconds] * len(times))
    assert len(clock.calls) == first + len(times)


def test_short_runs_are_timed_in_blocks() -> None:
    clock = FakeClock()
    burst = Burst(clock.call("a", 2e-6), 2e-6)
    times = burst.time(clock)
    assert times == pytest.approx([2e-6] * RUNS)
    assert len(clock.calls) == 2 * RUNS * 50


def test_warm_up_ends_when_runs_get_no_faster() -> None:
    clock = FakeClock()
    durations = iter([9, 9, 9, 4, 4, 4, 1, 1, 1, 1, 1, 1])
    burst = warm_up(clock.call("a", lambda: next(durations) / 1000), clock)
    assert burst.seconds == pytest.approx(0.001)
    assert len(clock.calls) == 12


def test_warm_up_takes_the_middle_of_three_runs() -> None:
    clock = FakeClock()
    durations = iter([3, 1, 2, 5, 2, 9])
    assert warm_up(clock.call("a", lambda: next(durations) / 1000), clock).seconds == pytest.approx(0.002)


def test_warm_up_of_a_slow_model_is_short() -> None:
    clock = FakeClock()
    call = clock.call("a", 2.0)
    assert warm_up(call, clock) == Burst(call, 2.0)
    assert clock.now == 2_000_000_000


def test_a_meter_is_read_once_for_a_block_of_runs() -> None:
    """Ten runs of 1 ms between two readings; the meter counts 3 J for every second."""
    clock, read = FakeClock(), []
    burst = Burst(clock.call("a", 1e-3), 1e-3, most=2, shortest=0.01)

    def meter() -> int:
        read.append(clock.now)
        return 3 * clock.now

    assert burst.time(meter) == pytest.approx([3e-3, 3e-3])
    assert len(clock.calls) == 2 + 2 * 10
    assert len(read) == 4


def test_a_gauge_that_stands_still_has_read_nothing() -> None:
    assert list(Burst(lambda: None, 1e-3, most=2).time(lambda: 7)) == [NOTHING, NOTHING]


def test_warm_up_ends_after_half_a_second_unless_said() -> None:
    for options, runs in (({}, 2), ({"limit": 0.6}, 3), ({"limit": 1.0}, 4)):
        clock = FakeClock()
        durations = iter([0.3, 0.28, 0.26, 0.25, 0.24, 0.23])
        burst = warm_up(clock.call("a", lambda durations=durations: next(durations)), clock, **options)
        assert len(clock.calls) == runs
        assert burst.seconds == pytest.approx([0.3, 0.28, 0.26, 0.25][runs - 1])


def test_without_arguments_a_burst_gives_twenty_times_of_a_hundred_microseconds() -> None:
    burst = Burst(lambda: None, 1e-5)
    assert (burst.runs, burst.block, burst.most, burst.shortest) == (20, 10, 20, 1e-4)
    assert Burst(lambda: None, 4.9e-5).block == 3
    assert Burst(lambda: None, 5e-5).block == 1


@pytest.mark.parametrize(("longest", "runs"), [(0.1, 10), (0.03, 3), (0.005, 1)])
def test_a_burst_ends_after_so_many_seconds(longest: float, runs: int) -> None:
    assert Burst(lambda: None, 0.01, longest=longest).runs == runs
