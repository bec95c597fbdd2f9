"""Models timed in turns, burst by burst, so that whatever else the machine does hits all of them alike.

Every burst of a model lies between two bursts of the reference, and its ratio is taken to both: drift cancels. A round
creates fresh sessions (memory layout differs from one to the next). Bursts within a round are alike, so intervals rest
on the medians of the rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from lepton_cli.timing.bursts import RUNS, Burst, Call, Clock, RunTimes, warm_up
from lepton_cli.timing.intervals import Estimate, centre, exp


@dataclasses.dataclass(frozen=True)
class Warm:
    """A model that is ready to run: from host memory to host memory, and within a device where there is one."""

    call: Call
    device: Call | None = None


#: Creates a session.
Opener = Callable[[], Warm]


@dataclasses.dataclass(frozen=True)
class StopRule:
    """When to stop: at the wanted precision, or when time is up."""

    #: Relative half-width of the widest interval of a ratio (of the time itself for one model alone).
    precision: float
    #: Seconds, all rounds together.
    seconds: float
    #: Rounds before precision may end the measurement, and the fewest that give an interval at all.
    rounds: int = 10
    fewest: int = 3
    #: Share of the time that one round takes; at least one visit of every model.
    share: float = 0.025
    #: Share of the time that creating sessions anew may take; 0: one set of sessions for all rounds.
    setup: float = 0.4
    #: Runs of a burst, at most.
    runs: int = RUNS


@dataclasses.dataclass
class Round:
    """What one round timed, by model: all times, and the logarithm of each burst's ratio to the reference."""

    times: list[list[RunTimes]]
    device: list[list[RunTimes]]
    #: [visits, models]; the reference's own column is 0.
    ratios: NDArray[np.float64]


class Rounds:
    """What a comparison timed, and the statistics of it. Model 0 is the reference."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.rounds: list[Round] = []
        #: How often sessions were created.
        self.created = 0

    @property
    def visits(self) -> int:
        """Bursts of each model that have a ratio."""
        return sum(len(round_.ratios) for round_ in self.rounds)

    def ratio(self, model: int) -> Estimate:
        """Time of a model over the reference's: centre of the rounds' medians, on a log scale."""
        return exp(self._log_ratio(model))

    def ratio_quantile(self, model: int, share: float) -> float:
        """The ratio that this share of all visits stays below."""
        return float(np.exp(np.quantile(np.concatenate([round_.ratios[:, model] for round_ in self.rounds]), share)))

    def absolute(self, model: int) -> Estimate:
        """Median of all times of a model in seconds; the interval is that of the rounds' medians."""
        medians = [float(np.median(np.concatenate(round_.times[model]))) for round_ in self.rounds]
        spread = exp(centre(np.log(medians)))
        value = float(np.median(self.times(model)))
        return Estimate(value, min(value, spread.low), max(value, spread.high))

    def times(self, model: int) -> RunTimes:
        """All times of a model, in order."""
        return np.concatenate([burst for round_ in self.rounds for burst in round_.times[model]])

    def device(self, model: int) -> RunTimes | None:
        """All times on the device, where there is one."""
        bursts = [burst for round_ in self.rounds for burst in round_.device[model]]
        return np.concatenate(bursts) if bursts else None

    def half_width(self) -> float:
        """Relative half-width of the widest ratio's interval; of the time itself when there is one model only."""
        estimates = [self.ratio(model) for model in range(1, self.count)] or [self.absolute(0)]
        return max(estimate.half_width / estimate.value for estimate in estimates)

    def _log_ratio(self, model: int) -> Estimate:
        return centre(np.array([np.median(round_.ratios[:, model]) for round_ in self.rounds]))


def compare(
    openers: Sequence[Opener],
    rule: StopRule,
    generator: np.random.Generator,
    *,
    clock: Clock = perf_counter_ns,
    advance: Callable[[int], None] = lambda visits: None,
    into: Rounds | None = None,
) -> Rounds:
    """Time the models, the first being the reference, until `rule` says stop.

    `advance` is told how many visits were made after every round. `into` is filled and returned: whoever gives it has
    what was measured when an interrupt ends the rest.
    """
    found = into if into is not None else Rounds(len(openers))
    with _no_collection():
        _until(rule, openers, generator, clock, advance, found)
    return found


def _until(
    rule: StopRule,
    openers: Sequence[Opener],
    generator: np.random.Generator,
    clock: Clock,
    advance: Callable[[int], None],
    found: Rounds,
) -> None:
    started, setup = clock(), 0.0
    opened: list[_Opened] | None = None

    def passed() -> float:
        return (clock() - started) * 1e-9

    while True:
        if opened is None or (rule.setup and setup <= rule.setup * passed()):
            before = clock()
            opened = None  # the old sessions go before new ones take their memory
            opened = _open(openers, rule.runs, generator, clock)
            setup += (clock() - before) * 1e-9
            found.created += 1
        found.rounds.append(_round(opened, max(0.02, rule.share * rule.seconds), generator, clock))
        advance(len(found.rounds[-1].ratios))
        late = passed() >= rule.seconds
        if len(found.rounds) >= (rule.fewest if late else rule.rounds) and (
            late or found.half_width() <= rule.precision
        ):
            return


@dataclasses.dataclass(frozen=True)
class _Opened:
    host: Burst
    device: Burst | None


def _open(openers: Sequence[Opener], runs: int, generator: np.random.Generator, clock: Clock) -> list[_Opened]:
    """Fresh, warm sessions of all models, created in random order."""
    opened: dict[int, _Opened] = {}
    for index in generator.permutation(len(openers)).tolist():
        warm = openers[index]()
        device = None if warm.device is None else warm_up(warm.device, clock, runs)
        opened[index] = _Opened(warm_up(warm.call, clock, runs), device)
    return [opened[index] for index in range(len(openers))]


def _round(opened: Sequence[_Opened], seconds: float, generator: np.random.Generator, clock: Clock) -> Round:
    """Visits of all models in random order for `seconds`, at least one of each."""
    count = len(opened)
    found = Round([[] for _ in opened], [[] for _ in opened], np.zeros((0, count)))
    rows: list[NDArray[np.float64]] = []

    def visit(model: int) -> float:
        times = opened[model].host.time(clock)
        found.times[model].append(times)
        if (device := opened[model].device) is not None:
            found.device[model].append(device.time(clock))
        return float(np.log(np.median(times)))

    end = clock() + seconds * 1e9
    before = visit(0)
    while not rows or clock() < end:
        row = np.zeros(count)
        for model in 1 + generator.permutation(count - 1):
            own = visit(int(model))
            after = visit(0)
            row[model] = own - (before + after) / 2
            before = after
        if count == 1:
            visit(0)
        rows.append(row)
    found.ratios = np.array(rows)
    return found


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is collected before, not inside."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
