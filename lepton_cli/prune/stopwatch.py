"""How fast many candidate models run beside one reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli import runtime
from lepton_cli.model import io
from lepton_cli.runtime import Values
from lepton_cli.timing.bursts import Call, Clock, warm_up
from lepton_cli.timing.compare import StopRule, Warm, compare
from lepton_cli.timing.intervals import Z

#: Runs of a burst: many candidates take turns.
RUNS = 4
#: Visits of every candidate, at least.
LEAST = 5
#: Half-width of a candidate's interval that is good enough, beside others and on its own; seconds for one on its own.
PRECISION, SURE, LIMIT = 0.004, 0.008, 20.0
#: Weights of the candidates that are open at the same time, in bytes.
OPEN = 1_500_000_000


class Stopwatch:
    """Times candidates against one reference model on one provider; all go through `quantize` where it is given."""

    def __init__(
        self,
        reference: ir.Model,
        feeds: Values,
        provider: str,
        threads: int,
        workdir: Path,
        quantize: Callable[[ir.Model], ir.Model] | None = None,
        clock: Clock = perf_counter_ns,
    ) -> None:
        self._quantize, self._clock = quantize, clock
        self._feeds, self._provider, self._threads, self._workdir = feeds, provider, threads, workdir
        begun = clock()
        self._reference = self._call(reference)
        #: Seconds until the reference could run, and that one run of it takes.
        self.setup = (clock() - begun) / 1e9
        self.once = warm_up(self._reference, clock).seconds

    def _call(self, model: ir.Model) -> Call:
        model = model if self._quantize is None else self._quantize(model)
        session = runtime.Session(io.payload(model, self._workdir), provider=self._provider, threads=self._threads)
        return session.caller(self._feeds)

    def ratios(
        self, candidates: Sequence[Callable[[], ir.Model]], seconds: float, done: Callable[[], object] = lambda: None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Time of every candidate over the reference's, and its relative standard error; takes about `seconds`."""
        ratios: list[float] = []
        errors: list[float] = []
        waiting = list(candidates)
        while waiting:
            calls: list[Call] = []
            weight = 0
            while waiting and (not calls or weight < OPEN):
                model = waiting.pop(0)()
                weight += io.weight_bytes(model)
                calls.append(self._call(model))
                calls[-1]()
                done()
            rule = StopRule(
                PRECISION, seconds * len(calls) / len(candidates), fewest=LEAST, share=0, setup=0, runs=RUNS
            )
            for ratio, error in self._beside(calls, rule):
                ratios.append(ratio)
                errors.append(error)
        return np.array(ratios), np.array(errors)

    def ratio(self, model: ir.Model) -> float:
        """Time of one candidate over the reference's; more visits where they disagree."""
        rule = StopRule(SURE, LIMIT, fewest=LEAST, share=0, setup=0)
        return self._beside([self._call(model)], rule)[0][0]

    def _beside(self, calls: Sequence[Call], rule: StopRule) -> list[tuple[float, float]]:
        """Ratio to the reference and its relative standard error, for every call."""
        openers = [lambda call=call: Warm(call) for call in (self._reference, *calls)]
        rounds = compare(openers, rule, np.random.default_rng(0), clock=self._clock)
        found = [rounds.ratio(index) for index in range(1, rounds.count)]
        return [(ratio.value, ratio.half_width / ratio.value / Z) for ratio in found]
