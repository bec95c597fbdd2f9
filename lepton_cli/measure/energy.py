"""Energy per inference, read from the meter of what computes it (`meters.py`).

A meter counts what the whole processor, or the whole device, and its memory use, whoever causes it. Therefore the
models run in turns like in any timing, a block of runs at a time, with the meter in place of the clock; a block of rest
after each round shows the power that flows anyway.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping

import numpy as np

from lepton_cli.errors import LeptonError
from lepton_cli.machine import usable_threads
from lepton_cli.measure.arms import InputNames, Payload
from lepton_cli.measure.case import Case
from lepton_cli.measure.meters import Meter
from lepton_cli.measure.results import Energy, EnergyChange, EnergyTable
from lepton_cli.measure.spec import LatencySpec
from lepton_cli.progress import Progress, Silent, Stage
from lepton_cli.runtime import Values
from lepton_cli.timing import compare as timing
from lepton_cli.timing.bursts import NOTHING, Call, Clock
from lepton_cli.timing.compare import StopRule, Warm

#: Rounds at least, and the longest block in seconds: the meter steps once a millisecond.
ROUNDS, BLOCK = 6, 0.4
#: After work, threads of onnxruntime look for more for a while: that is not rest.
_SETTLE = 0.05


def compare(
    arms: Mapping[str, Payload],
    feeds_for_batch: Callable[[int], Values],
    spec: LatencySpec,
    counters: Mapping[str, Meter],
    *,
    progress: Progress | None = None,
    seed: int = 0,
    input_names: InputNames | None = None,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> EnergyTable:
    """Energy of all arms at every batch size of `spec`, on the providers of `counters` (by the name that `spec` gives
    them); the first arm is the reference of the changes.

    What the reference cannot run is left out: the latency table names it. A processor's meter does not see a device,
    nor a device's the processor that feeds it. Raises MeasurementError.
    """
    threads = spec.threads[0] if spec.threads else usable_threads()
    tables = []
    for provider, batch in itertools.product(counters, spec.batch):
        case = Case(arms, provider, batch, threads, feeds_for_batch(batch), input_names or {})
        try:
            case.check()
        except LeptonError:
            continue
        with (progress or Silent()).stage(f"energy {provider} batch {batch}") as stage:
            generator = np.random.default_rng([seed, batch])
            power = _Power(counters[provider], len(arms), clock, sleep)
            tables.append(_measure(case, spec, power, generator, stage))
    return EnergyTable(
        domains={provider: tuple(one.name for one in counter.domains) for provider, counter in counters.items()},
        results=tuple(result for table in tables for result in table.results),
        changes=tuple(change for table in tables for change in table.changes),
    )


class _Power:
    """The meter as bursts read it, before and after, with a clock beside it: joules alone do not tell the power."""

    def __init__(self, counter: Meter, arms: int, clock: Clock, sleep: Callable[[float], None]) -> None:
        self._counter, self.clock, self._sleep = counter, clock, sleep
        self._current = 0
        self._began: tuple[float, float] | None = None
        self.joules, self.seconds, self.runs = np.zeros(arms), np.zeros(arms), np.zeros(arms, int)

    def run(self, arm: int, call: Call) -> None:
        """One run of an arm."""
        self._current = arm
        self.runs[arm] += self._began is not None
        call()

    def read(self) -> int:
        """Nanojoules; every second reading ends a block of runs of one arm."""
        now = self._now()
        if self._began is None:
            self._began = now
        else:
            self.joules[self._current] += now[0] - self._began[0]
            self.seconds[self._current] += now[1] - self._began[1]
            self._began = None
        return round(now[0] * 1e9)

    def watts(self, arm: int) -> float:
        """Mean power while an arm ran."""
        return float(self.joules[arm] / self.seconds[arm])

    def rest(self, seconds: float) -> float:
        """Mean power of the machine at rest."""
        self._sleep(min(_SETTLE, seconds))
        before = self._now()
        self._sleep(seconds)
        after = self._now()
        return (after[0] - before[0]) / (after[1] - before[1])

    def _now(self) -> tuple[float, float]:
        """Joules and seconds."""
        return self._counter.read(), self.clock() * 1e-9


def _measure(case: Case, spec: LatencySpec, power: _Power, generator: np.random.Generator, stage: Stage) -> EnergyTable:
    """The arms in turns, each for a block at a time, and a block of rest after every round."""
    rest: list[float] = []
    calls = [functools.partial(power.run, arm, opener().call) for arm, opener in enumerate(case.openers())]
    # A round: rest, the reference twice and every other arm once.
    block = min(BLOCK, spec.time / ROUNDS / (2 * len(case.arms)))

    def after(visits: int) -> None:
        rest.append(power.rest(block))
        stage.advance(visits)

    rule = StopRule(float(spec.precision), float(spec.time), ROUNDS, ROUNDS, share=0, setup=0, runs=1, block=block)
    openers = [functools.partial(Warm, call) for call in calls]
    rounds = timing.compare(openers, rule, generator, clock=power.clock, gauge=power.read, advance=after)
    idle = float(np.median(rest))
    if any((rounds.times(arm) <= NOTHING).any() for arm in range(rounds.count)):
        return EnergyTable()  # a counter that stands still says nothing
    results, changes = [], []
    for arm, name in enumerate(case.arms):
        shared = {"variant": name, "provider": case.provider, "batch": case.batch, "threads": case.threads}
        joules, watts = rounds.absolute(arm), power.watts(arm)
        results.append(
            Energy(
                **shared,
                joules=joules.value / case.batch,
                low=joules.low / case.batch,
                high=joules.high / case.batch,
                above_idle=joules.value / case.batch * max(0.0, 1 - idle / watts),
                watts=watts,
                idle_watts=idle,
                n=int(power.runs[arm]),
            )
        )
        if arm:
            ratio = rounds.ratio(arm)
            changes.append(EnergyChange(**shared, ratio=ratio.value, low=ratio.low, high=ratio.high))
    return EnergyTable(results=tuple(results), changes=tuple(changes))
