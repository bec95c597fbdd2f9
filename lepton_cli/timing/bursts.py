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
Call = Callable[[], object]
#: Seconds per run, one number a run (or block of runs).
RunTimes = NDArray[np.float64]

#: Runs that count in a burst; fewer where they would take longer than `_LONGEST` seconds.
RUNS = 20
_LONGEST = 0.1
#: A burst begins with times that do not count, as many as counted ones or for this long (seconds): until the caches are
#: its own and the other model's threads sleep (`runtime.SPIN`). Longer runs are alike: none is left out.
_WARM, _LONG = 0.01, 0.025
#: Runs shorter than half of this (seconds) are timed in blocks of it: the clock and the call cost a microsecond.
_BLOCK = 100e-6


@dataclasses.dataclass(frozen=True)
class Burst:
    """How a call of about `seconds` is timed."""

    call: Call
    seconds: float
    #: Times that one burst gives, at most.
    most: int = RUNS

    @property
    def runs(self) -> int:
        """Times that one burst gives."""
        return int(min(max(_LONGEST / max(self.seconds, 1e-9), 1), self.most))

    @property
    def warm(self) -> int:
        """Times before those that count."""
        return 0 if self.seconds >= _LONG else min(self.most, math.ceil(_WARM / max(self.seconds, 1e-9) - 1e-9))

    @property
    def block(self) -> int:
        """Runs behind each of these times."""
        return math.ceil(_BLOCK / max(self.seconds, 1e-9) - 1e-9) if self.seconds < _BLOCK / 2 else 1

    def time(self, clock: Clock = perf_counter_ns) -> RunTimes:
        """Run the burst; shape [runs]."""
        for _ in range(self.warm * self.block):
            self.call()
        return np.array([self._block(clock) for _ in range(self.runs)])

    def _block(self, clock: Clock) -> float:
        call, block = self.call, self.block
        if block == 1:
            before = clock()
            call()
            return (clock() - before) * 1e-9
        before = clock()
        for _ in range(block):
            call()
        return (clock() - before) * 1e-9 / block


def warm_up(call: Call, clock: Clock = perf_counter_ns, runs: int = RUNS, limit: float = 0.5) -> Burst:
    """Run until three runs in a row are no longer faster than the ones before, or `limit` seconds have passed.

    `runs`: of the bursts to come, at most.
    """
    best, started = math.inf, clock()
    while True:
        times = []
        for _ in range(3):
            before = clock()
            call()
            now = clock()
            times.append((now - before) * 1e-9)
            if (now - started) * 1e-9 > limit:
                return Burst(call, min(best, *times), runs)
        typical = float(np.median(times))
        if typical > 0.97 * best:
            return Burst(call, min(best, typical), runs)
        best = typical
