"""Energy per inference, read from the processor's own meter (RAPL, as Linux shows it under /sys/class/powercap).

The meter counts what the whole processor and its memory use, whoever causes it. Therefore the models run in turns like
in any timing, a block of runs at a time, with the meter in place of the clock; a block of rest after each round shows
the power that flows anyway.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lepton_cli.errors import LeptonError
from lepton_cli.machine import usable_threads
from lepton_cli.measure.arms import InputNames, Payload
from lepton_cli.measure.case import Case
from lepton_cli.measure.results import Energy, EnergyChange, EnergyTable
from lepton_cli.measure.spec import LatencySpec
from lepton_cli.progress import Progress, Silent, Stage
from lepton_cli.runtime import Values
from lepton_cli.timing import compare as timing
from lepton_cli.timing.bursts import NOTHING, Call, Clock
from lepton_cli.timing.compare import StopRule, Warm

POWERCAP = Path("/sys/class/powercap")
#: Rounds at least, and the longest block in seconds: the meter steps once a millisecond.
ROUNDS, BLOCK = 6, 0.4
#: After work, threads of onnxruntime look for more for a while: that is not rest.
_SETTLE = 0.05
_MICRO = 1e-6


class Unreadable(Exception):
    """The machine has a meter that cannot be read, or no longer. The message says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Domain:
    """A counter of the processor: its name, its file, and the value in joules after which it begins again at zero."""

    name: str
    file: Path
    range: float

    def read(self) -> float:
        """Joules since some moment. Raises Unreadable."""
        try:
            return int(self.file.read_text()) * _MICRO
        except PermissionError:
            folders = self.file.parent.parent / "intel-rapl:*"
            raise Unreadable(
                f"only root may read {self.file}: sudo chmod a+r {folders}/energy_uj (until the next start)"
            ) from None
        except (OSError, ValueError) as error:
            raise Unreadable(f"{self.file} cannot be read: {error}") from None


class Meter:
    """All domains together, as one reading that only grows."""

    def __init__(self, domains: Sequence[Domain]) -> None:
        self.domains = tuple(domains)
        self._last = [domain.read() for domain in domains]
        self._total = 0.0

    def read(self) -> float:
        """Joules since the meter was made. Counters that began again at zero are carried on. Raises Unreadable."""
        for index, domain in enumerate(self.domains):
            now = domain.read()
            step = now - self._last[index]
            self._total += step if step >= 0 else step + domain.range
            self._last[index] = now
        return self._total


def meter(root: Path = POWERCAP) -> Meter | None:
    """The machine's meter: every processor package with its memory. `None` where the system exposes none.

    A package's `core` and `uncore` are part of it, and `psys` is the whole board: counting them would count twice.
    Raises Unreadable.
    """
    found: list[Domain] = []
    for folder in sorted(root.glob("intel-rapl:*")):
        name = _text(folder / "name")
        if name is None or not (name.startswith("package") or name == "dram"):
            continue
        file = folder / "max_energy_range_uj"
        limit = _text(file) or ""
        if not limit.isdecimal():
            raise Unreadable(f"{file} does not say where the counter begins again")
        found.append(Domain(name, folder / "energy_uj", int(limit) * _MICRO))
    return Meter(found) if found else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def compare(
    arms: Mapping[str, Payload],
    feeds_for_batch: Callable[[int], Values],
    spec: LatencySpec,
    counter: Meter,
    *,
    progress: Progress | None = None,
    seed: int = 0,
    input_names: InputNames | None = None,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> EnergyTable:
    """Energy of all arms on the CPU at every batch size of `spec`; the first arm is the reference of the changes.

    Batch sizes that the reference cannot run are left out: the latency table names them. The other providers of
    `spec` are too: the processor's meter does not see a graphics card. Raises MeasurementError.
    """
    threads = spec.threads or usable_threads()
    tables = []
    for batch in spec.batch if any(provider.name == "cpu" for provider in spec.providers) else ():
        case = Case(arms, "cpu", batch, threads, feeds_for_batch(batch), input_names or {})
        try:
            case.check()
        except LeptonError:
            continue
        with (progress or Silent()).stage(f"energy cpu batch {batch}") as stage:
            generator = np.random.default_rng([seed, batch])
            tables.append(_measure(case, spec, _Power(counter, len(arms), clock, sleep), generator, stage))
    return EnergyTable(
        domains=tuple(domain.name for domain in counter.domains),
        idle_watts=float(np.median([table.idle_watts for table in tables])) if tables else 0.0,
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
        return EnergyTable(idle_watts=idle)  # a counter that stands still says nothing
    results, changes = [], []
    for arm, name in enumerate(case.arms):
        shared = {"variant": name, "batch": case.batch, "threads": case.threads}
        joules, watts = rounds.absolute(arm), power.watts(arm)
        results.append(
            Energy(
                **shared,
                joules=joules.value / case.batch,
                low=joules.low / case.batch,
                high=joules.high / case.batch,
                above_idle=joules.value / case.batch * max(0.0, 1 - idle / watts),
                watts=watts,
                n=int(power.runs[arm]),
            )
        )
        if arm:
            ratio = rounds.ratio(arm)
            changes.append(EnergyChange(**shared, ratio=ratio.value, low=ratio.low, high=ratio.high))
    return EnergyTable(idle_watts=idle, results=tuple(results), changes=tuple(changes))
