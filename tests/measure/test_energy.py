"""Joules per inference, from a meter and a clock of our own."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from lepton_cli import units
from lepton_cli.measure import energy, meters
from lepton_cli.measure.case import Case
from lepton_cli.measure.results import EnergyTable
from lepton_cli.measure.spec import LatencySpec
from lepton_cli.timing.compare import Opener, Warm
from tests.measure import builders
from tests.timing.clocks import FakeClock


class Wound:
    """A machine on a clock of its own: five watts at rest, twenty more while a model runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
        self.clock, self.busy = FakeClock(), 0.0
        monkeypatch.setattr(Case, "check", lambda case: None)
        monkeypatch.setattr(Case, "openers", lambda case: [self.opener(name, seconds[name]) for name in case.arms])

    def opener(self, name: str, seconds: float) -> Opener:
        run = self.clock.call(name, seconds)

        def call() -> None:
            run()
            self.busy += seconds

        return lambda: Warm(call)

    def sleep(self, seconds: float) -> None:
        self.clock.now += round(seconds * 1e9)

    def measure(self, meter: meters.Meter, batch: int = 1, time: float = 10.0) -> EnergyTable:
        spec = LatencySpec(batch=(batch,), threads=1, time=units.Seconds(time))
        arms = {"original": b"", "compressed": b""}
        return energy.compare(arms, lambda size: {}, spec, {"cpu": meter}, clock=self.clock, sleep=self.sleep)


class Metered(meters.Meter):
    """The meter of such a machine."""

    def __init__(self, machine: Wound) -> None:
        self.domains, self.machine = (meters.Domain("package-0", Path(), 1.0),), machine

    def read(self) -> float:
        return 5 * self.machine.clock.now * 1e-9 + 20 * self.machine.busy


def test_joules_per_sample_follow_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """25 W while a model runs: 2 ms for four samples take 12.5 mJ each, a fifth of which flows anyway."""
    machine = Wound(monkeypatch, {"original": 2e-3, "compressed": 0.5e-3})
    found = machine.measure(Metered(machine), batch=4)
    assert found.domains == {"cpu": ("package-0",)}
    before, after = found.results
    assert (before.provider, before.idle_watts, after.idle_watts) == ("cpu", pytest.approx(5), pytest.approx(5))
    assert (before.joules, after.joules) == pytest.approx((12.5e-3, 3.125e-3))
    assert (before.low, before.high) == pytest.approx((12.5e-3, 12.5e-3))
    assert (before.watts, after.watts) == pytest.approx((25, 25))
    assert (before.above_idle, after.above_idle) == pytest.approx((10e-3, 2.5e-3))
    assert (before.batch, before.threads, before.variant, after.variant) == (4, 1, "original", "compressed")
    (change,) = found.changes
    assert (change.ratio, change.low, change.high) == pytest.approx((0.25, 0.25, 0.25))
    assert change.variant == "compressed"
    # Six rounds, in each of which the original has two blocks of 0.4 s, the other one.
    assert (before.n, after.n) == (12 * 200, 6 * 800)


def test_blocks_are_shorter_where_time_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks an arm and round: 2.4 s are 24 blocks of 0.1 s."""
    machine = Wound(monkeypatch, {"original": 1e-3, "compressed": 1e-3})
    found = machine.measure(Metered(machine), time=2.4)
    assert [result.n for result in found.results] == [12 * 100, 6 * 100]
    assert machine.clock.now * 1e-9 < 3.2


def test_a_counter_that_stands_still_gives_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still(Metered):
        def read(self) -> float:
            return 1.0

    machine = Wound(monkeypatch, {"original": 1e-3, "compressed": 1e-3})
    found = machine.measure(Still(machine))
    assert (found.results, found.changes) == ((), ())


def test_real_models_are_run() -> None:
    """Ten watts by the real clock: energy is time, and the chain takes a hundred times that of one small layer."""

    class Steady(meters.Meter):
        def __init__(self) -> None:
            self.domains = (meters.Domain("package-0", Path(), 1.0),)

        def read(self) -> float:
            return 10 * perf_counter()

    arms = {"original": builders.chain(12, 256), "compressed": builders.chain(1, 8)}
    wide = np.ones((4, 256), np.float32)
    spec = LatencySpec(batch=(4,), threads=1, time=units.Seconds(0.5))
    names = {"original": {"x": "wide"}, "compressed": {"x": "narrow"}}
    feeds = {"wide": wide, "narrow": wide[:, :8]}
    found = energy.compare(arms, lambda batch: feeds, spec, {"cpu": Steady()}, input_names=names)
    assert found.results[1].joules < found.results[0].joules
    assert all(result.n > 0 for result in found.results)
