"""Models timed in turns, burst by burst, so that whatever else the machine does hits all of them alike.

Every burst of a model lies between two bursts of the reference, and its ratio is taken to both: drift cancels. A round
creates fresh sessions (memory layout differs from one to the next). Bursts within a round are alike, so intervals rest
on the medians of the rounds.

Shared machines have states: when a neighbour computes on the other half of a physical core, two threads take 1.4 to
1.8 times as long for seconds on end, and not every model suffers alike, so that the ratio is another. Such visits are
left out (`undisturbed`). Which ones is decided by the sum of a visit's three bursts, never by their ratio: for equal
noise in all three the two are uncorrelated, so that leaving out the slow ones does not move the ratio.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from lepton_cli.garbage import uncollected
from lepton_cli.timing.bursts import BLOCK, LONGEST, RUNS, Burst, Call, Clock, Gauge, RunTimes, warm_up
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
    #: Runs of a burst and their seconds, at most, and the seconds between two readings, at least.
    runs: int = RUNS
    longest: float = LONGEST
    block: float = BLOCK


@dataclasses.dataclass
class Round:
    """What one round timed: all times by model, and for each visit the logarithms of its bursts' medians (seconds)."""

    times: list[list[RunTimes]]
    device: list[list[RunTimes]]
    #: [visits, models, 3]: the reference before, the model, the reference after. The reference's own row is its burst
    #: three times.
    visits: NDArray[np.float64]

    @property
    def ratios(self) -> NDArray[np.float64]:
        """Logarithm of each burst's ratio to the reference, [visits, models]; the reference's own column is 0."""
        found: NDArray[np.float64] = self.visits[:, :, 1] - (self.visits[:, :, 0] + self.visits[:, :, 2]) / 2
        return found


#: A visit this much slower than the fast ones (logarithm) is disturbed; at least this share of all is kept.
_SLOWER, _KEPT = 0.06, 0.25


def undisturbed(levels: Sequence[NDArray[np.float64]], rounds: int = 3) -> list[NDArray[np.bool_]]:
    """Which visits of each round are no more than 6 % slower than the fast ones (tenth percentile of all).

    `levels`: logarithms of seconds, one array a round. A quarter of all and visits of `rounds` rounds are kept even
    where the times have no such concentration.
    """
    joined = np.concatenate(levels)
    fastest = np.sort([np.min(level) for level in levels])
    least = fastest[min(rounds, len(fastest)) - 1]
    limit = max(float(np.quantile(joined, 0.1)) + _SLOWER, float(np.quantile(joined, _KEPT)), float(least))
    return [level <= limit for level in levels]


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
        return sum(len(round_.visits) for round_ in self.rounds)

    def undisturbed_share(self, model: int) -> float:
        """Share of a model's bursts that its time rests on."""
        return float(np.mean(np.concatenate(undisturbed(self._bursts(model)))))

    def ratio(self, model: int) -> Estimate:
        """Time of a model over the reference's: centre of the rounds' medians, on a log scale."""
        return exp(centre(np.array([np.median(ratios) for ratios in self._ratios(model)])))

    def ratios(self, model: int) -> NDArray[np.float64]:
        """The ratios of the undisturbed visits of a model, in order."""
        return np.exp(np.concatenate(self._ratios(model)))

    def absolute(self, model: int) -> Estimate:
        """Median of a model's undisturbed times in seconds; the interval is that of the rounds' medians."""
        rounds = []
        for round_, kept in zip(self.rounds, undisturbed(self._bursts(model)), strict=True):
            bursts = [burst for burst, keep in zip(round_.times[model], kept, strict=True) if keep]
            if bursts:
                rounds.append(np.concatenate(bursts))
        spread = exp(centre(np.log([np.median(times) for times in rounds])))
        value = float(np.median(np.concatenate(rounds)))
        return Estimate(value, min(value, spread.low), max(value, spread.high))

    def times(self, model: int) -> RunTimes:
        """All times of a model, in order."""
        return np.concatenate([burst for round_ in self.rounds for burst in round_.times[model]])

    def device(self, model: int) -> RunTimes | None:
        """All times on the device, where there is one."""
        bursts = [burst for round_ in self.rounds for burst in round_.device[model]]
        return np.concatenate(bursts) if bursts else None

    def half_width(self, count: int | None = None) -> float:
        """Relative half-width of the widest ratio's interval; of the time itself when there is one model only.

        `count`: of the first models alone.
        """
        estimates = [self.ratio(model) for model in range(1, count or self.count)] or [self.absolute(0)]
        return max(estimate.half_width / estimate.value for estimate in estimates)

    def _bursts(self, model: int) -> list[NDArray[np.float64]]:
        """Logarithms of the medians of all bursts of a model, round by round."""
        return [np.log([np.median(burst) for burst in round_.times[model]]) for round_ in self.rounds]

    def _ratios(self, model: int) -> list[NDArray[np.float64]]:
        """Logarithmic ratios of the undisturbed visits of a model, by round; rounds without any are left out."""
        kept = undisturbed([round_.visits[:, model].sum(axis=-1) / 3 for round_ in self.rounds])
        ratios = [round_.ratios[keep, model] for round_, keep in zip(self.rounds, kept, strict=True)]
        return [found for found in ratios if len(found)]


def compare(
    openers: Sequence[Opener],
    rule: StopRule,
    generator: np.random.Generator,
    *,
    clock: Clock = perf_counter_ns,
    gauge: Gauge | None = None,
    advance: Callable[[int], None] = lambda visits: None,
    answered: Callable[[Rounds], bool] = lambda found: False,
    into: Rounds | None = None,
) -> Rounds:
    """Time the models, the first being the reference, until `rule` says stop.

    `gauge`: what bursts read instead of the clock; seconds are joules then, in all that is found. `advance` is told how
    many visits were made after every round. `answered` ends it early, once the fewest rounds are made. `into` is filled
    and returned: whoever gives it has what was measured when an interrupt ends the rest.
    """
    found = into if into is not None else Rounds(len(openers))
    gc.collect()
    with uncollected():
        _until(rule, openers, generator, clock, gauge or clock, advance, answered, found)
    return found


def _until(
    rule: StopRule,
    openers: Sequence[Opener],
    generator: np.random.Generator,
    clock: Clock,
    gauge: Gauge,
    advance: Callable[[int], None],
    answered: Callable[[Rounds], bool],
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
            opened = _open(openers, rule, generator, clock)
            setup += (clock() - before) * 1e-9
            found.created += 1
        found.rounds.append(_round(opened, max(0.02, rule.share * rule.seconds), generator, clock, gauge))
        advance(len(found.rounds[-1].visits))
        late = passed() >= rule.seconds
        if len(found.rounds) >= rule.fewest and answered(found):
            return
        if len(found.rounds) >= (rule.fewest if late else rule.rounds) and (
            late or found.half_width() <= rule.precision
        ):
            return


@dataclasses.dataclass(frozen=True)
class _Opened:
    host: Burst
    device: Burst | None


def _open(openers: Sequence[Opener], rule: StopRule, generator: np.random.Generator, clock: Clock) -> list[_Opened]:
    """Fresh, warm sessions of all models, created in random order."""

    def warm(call: Call) -> Burst:
        return dataclasses.replace(warm_up(call, clock), most=rule.runs, shortest=rule.block, longest=rule.longest)

    opened: dict[int, _Opened] = {}
    for index in generator.permutation(len(openers)).tolist():
        found = openers[index]()
        opened[index] = _Opened(warm(found.call), None if found.device is None else warm(found.device))
    return [opened[index] for index in range(len(openers))]


def _round(
    opened: Sequence[_Opened], seconds: float, generator: np.random.Generator, clock: Clock, gauge: Gauge
) -> Round:
    """Visits of all models in random order for `seconds`, at least one of each."""
    count = len(opened)
    found = Round([[] for _ in opened], [[] for _ in opened], np.zeros((0, count, 3)))
    rows: list[NDArray[np.float64]] = []

    def visit(model: int) -> float:
        times = opened[model].host.time(gauge)
        found.times[model].append(times)
        if (device := opened[model].device) is not None:
            found.device[model].append(device.time(gauge))
        return float(np.log(np.median(times)))

    end = clock() + seconds * 1e9
    before = visit(0)
    while not rows or clock() < end:
        row = np.full((count, 3), before)
        for model in 1 + generator.permutation(count - 1):
            own = visit(int(model))
            after = visit(0)
            row[model] = before, own, after
            before = after
        if count == 1:
            before = visit(0)
        rows.append(row)
    found.visits = np.array(rows)
    return found
