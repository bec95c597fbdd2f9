"""Energy per inference, read from the processor's own meter (RAPL, as Linux shows it under /sys/class/powercap).

The meter counts what the whole processor and its memory use, whoever causes it. Therefore the models run in blocks of
their own, in turn with blocks of rest: the rest is the power that flows anyway, and ratios are taken within a round.
"""

from __future__ import annotations

import dataclasses
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
from lepton_cli.timing.bursts import Call, warm_up
from lepton_cli.timing.intervals import centre, exp

POWERCAP = Path("/sys/class/powercap")
#: Rounds of one block each for rest and every model, and the longest block: the meter steps once a millisecond.
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
        with (progress or Silent()).stage(f"energy cpu batch {batch}", ROUNDS) as stage:
            blocks = _measure(case, spec, counter, np.random.default_rng([seed, batch]), stage)
        tables.append(_table(case, blocks))
    return EnergyTable(
        domains=tuple(domain.name for domain in counter.domains),
        idle_watts=float(np.median([table.idle_watts for table in tables])) if tables else 0.0,
        results=tuple(result for table in tables for result in table.results),
        changes=tuple(change for table in tables for change in table.changes),
    )


@dataclasses.dataclass(frozen=True)
class _Block:
    """One stretch of work or rest."""

    joules: float
    seconds: float
    runs: int


def _measure(
    case: Case, spec: LatencySpec, counter: Meter, generator: np.random.Generator, stage: Stage
) -> list[list[_Block]]:
    """Blocks by round: rest first, then every arm in the order of the case."""
    calls = [opener().call for opener in case.openers()]
    for call in calls:
        warm_up(call)
    seconds = min(BLOCK, spec.time / (2 * ROUNDS))
    rounds = []
    for _ in range(ROUNDS):
        blocks: list[_Block | None] = [None] * (len(case.arms) + 1)
        for index in generator.permutation(len(blocks)):
            if index == 0:
                time.sleep(min(_SETTLE, seconds))
            blocks[index] = _block(counter, None if index == 0 else calls[index - 1], seconds)
        rounds.append([block for block in blocks if block is not None])
        stage.advance()
    return rounds


def _block(counter: Meter, call: Call | None, seconds: float) -> _Block:
    """Run `call` again and again, or rest. At least one run and one step of the meter."""
    before, started, runs = counter.read(), time.perf_counter(), 0
    while True:
        if call is None:
            time.sleep(seconds)
        else:
            call()
            runs += 1
        passed = time.perf_counter() - started
        if passed >= seconds:
            return _Block(counter.read() - before, passed, runs)


def _table(case: Case, rounds: Sequence[Sequence[_Block]]) -> EnergyTable:
    idle = float(np.median([blocks[0].joules / blocks[0].seconds for blocks in rounds]))
    used = np.array([[block.joules / block.runs / case.batch for block in blocks[1:]] for blocks in rounds])
    if not (used > 0).all():
        return EnergyTable(idle_watts=idle)  # a counter that stands still says nothing
    watts = np.array([[block.joules / block.seconds for block in blocks[1:]] for blocks in rounds])
    results, changes = [], []
    for index, name in enumerate(case.arms):
        estimate = exp(centre(np.log(used[:, index])))
        power = float(np.median(watts[:, index]))
        results.append(
            Energy(
                variant=name,
                batch=case.batch,
                threads=case.threads,
                joules=estimate.value,
                low=estimate.low,
                high=estimate.high,
                above_idle=estimate.value * max(0.0, 1 - idle / power),
                watts=power,
                n=sum(blocks[index + 1].runs for blocks in rounds),
            )
        )
        if index:
            ratio = exp(centre(np.log(used[:, index] / used[:, 0])))
            changes.append(
                EnergyChange(
                    variant=name,
                    batch=case.batch,
                    threads=case.threads,
                    ratio=ratio.value,
                    low=ratio.low,
                    high=ratio.high,
                )
            )
    return EnergyTable(idle_watts=idle, results=tuple(results), changes=tuple(changes))
