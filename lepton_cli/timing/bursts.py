"""A burst: one model run many times in a row, as in a process of its own.

Interleaved run by run, two models evict each other from the caches and wake each other's threads: on two threads each
then takes up to twice the time that it takes alone. In a burst only the first runs do, and those are not counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

#: Nanoseconds since some moment; an argument everywhere, so that tests have a clock of their own.
Clock = Callable[[], int]
#: What a burst reads before and after: a clock, or a meter in nanojoules.
Gauge = Callable[[], int]
Call = Callable[[], object]
#: Seconds (or joules) per run, one number a run (or block of runs).
RunTimes = NDArray[np.float64]

#: Runs that count in a burst; fewer where they would take longer than `LONGEST` seconds.
RUNS = 20
LONGEST = 0.1
#: A burst begins with runs that do not count, as many as counted ones or for this long (seconds): until the caches are
#: its own and the other model's threads sleep (`runtime.SPIN`). Longer runs are alike: none is left out.
_WARM, _LONG = 0.01, 0.025
#: Runs shorter than half of this (seconds) are timed in blocks of it: the clock and the call cost a microsecond.
BLOCK = 100e-6
#: Read from a gauge that did not move between two readings: all times have a logarithm.
NOTHING = 1e-12


@dataclasses.dataclass(frozen=True)
class Burst:
    """How a call of about `seconds` is timed."""

    call: Call
    seconds: float
    #: Times that one burst gives, at most.
    most: int = RUNS
    #: Seconds between two readings, at least.
    shortest: float = BLOCK
    #: Seconds of the runs that count, at most, but for the first.
    longest: float = LONGEST

    @property
    def runs(self) -> int:
        """Times that one burst gives."""
        return int(min(max(self.longest / max(self.seconds, 1e-9), 1), self.most))

    @property
    def warm(self) -> int:
        """Runs before those that count."""
        if self.seconds >= _LONG:
            return 0
        return _times(min(_WARM, self.most * max(self.seconds, BLOCK)), self.seconds)

    @property
    def block(self) -> int:
        """Runs behind each of these times."""
        return _times(self.shortest, self.seconds) if self.seconds < self.shortest / 2 else 1

    def time(self, gauge: Gauge = perf_counter_ns) -> RunTimes:
        """Run the burst; shape [runs], each at least `NOTHING`."""
        for _ in range(self.warm):
            self.call()
        return np.maximum([self._block(gauge) for _ in range(self.runs)], NOTHING)

    def _block(self, gauge: Gauge) -> float:
        call, block = self.call, self.block
        if block == 1:
            before = gauge()
            call()
            return (gauge() - before) * 1e-9
        before = gauge()
        for _ in range(block):
            call()
        return (gauge() - before) * 1e-9 / block


def _times(whole: float, part: float) -> int:
    """How many parts make up the whole, at least."""
    return math.ceil(whole / max(part, 1e-9) - 1e-9)


def warm_up(call: Call, clock: Clock = perf_counter_ns, limit: float = 0.5) -> Burst:
    """Run until three runs in a row are no longer faster than the ones before, or `limit` seconds have passed."""
    best, started = math.inf, clock()
    while True:
        times = []
        for _ in range(3):
            before = clock()
            call()
            now = clock()
            times.append((now - before) * 1e-9)
            if (now - started) * 1e-9 > limit:
                return Burst(call, min(best, *times))
        typical = float(np.median(times))
        if typical > 0.97 * best:
            return Burst(call, min(best, typical))
        best = typical
