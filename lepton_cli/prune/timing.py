"""How fast many candidate models run beside one reference: visited in turns, so that a busy moment spares nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli import runtime
from lepton_cli.model import io
from lepton_cli.probe.activations import Arrays

#: One visit lasts at least this many seconds and runs; the first run, with cold caches, does not count.
VISIT, RUNS = 0.003, 3
#: Runs of this many seconds are long enough for one to be a visit, whatever is in the caches.
LONG = 0.025
#: Visits of every candidate, at least and at most.
LEAST, MOST = 5, 100
#: Standard error of a candidate's ratio that is good enough, beside others and on its own.
PRECISION, SURE = 0.002, 0.004
#: Pairs of runs of one candidate on its own after which the error is looked at, pairs and seconds at most.
PAIRS, MANY, LIMIT = 40, 4000, 20.0
#: Weights of the candidates that are open at the same time, in bytes.
OPEN = 1_500_000_000


class Stopwatch:
    """Times candidates against one reference model on one provider; all go through `quantize` where it is given."""

    def __init__(
        self,
        reference: ir.Model,
        feeds: Arrays,
        provider: str,
        threads: int,
        workdir: Path,
        quantize: Callable[[ir.Model], ir.Model] | None = None,
    ) -> None:
        self._quantize = quantize
        self._feeds, self._provider, self._threads, self._workdir = feeds, provider, threads, workdir
        self._reference = self._runner(reference)
        for _ in range(3):
            self._reference()
        #: Seconds that one run of the reference takes.
        self.once = min(_seconds(self._reference) for _ in range(3))
        self._runs = 1 if self.once > LONG else max(RUNS, int(np.ceil(VISIT / max(self.once, 1e-6))))

    def _runner(self, model: ir.Model) -> Callable[[], object]:
        model = model if self._quantize is None else self._quantize(model)
        session = runtime.Session(io.payload(model, self._workdir), provider=self._provider, threads=self._threads)
        return session.caller(self._feeds)

    def ratios(
        self, candidates: Sequence[Callable[[], ir.Model]], seconds: float, done: Callable[[], object] = lambda: None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Time of every candidate over the reference's, and its standard error; takes `seconds` in all, about."""
        found: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        waiting = list(candidates)
        while waiting:
            opened: list[Callable[[], object]] = []
            weight = 0
            while waiting and (not opened or weight < OPEN):
                model = waiting.pop(0)()
                weight += io.weight_bytes(model)
                opened.append(self._runner(model))
                opened[-1]()
                done()
            found.append(self._visits(opened, seconds * len(opened) / len(candidates)))
        return np.concatenate([ratio for ratio, _ in found]), np.concatenate([error for _, error in found])

    def _visits(
        self, opened: Sequence[Callable[[], object]], seconds: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows: list[list[float]] = []
        end = time.perf_counter() + seconds
        while len(rows) < LEAST or (len(rows) < MOST and time.perf_counter() < end):
            before = self._visit(self._reference)
            row = []
            for candidate in opened:
                spent = self._visit(candidate)
                after = self._visit(self._reference)
                row.append(float(np.log(2 * spent / (before + after))))
                before = after
            rows.append(row)
            middle, error = _median(np.array(rows))
            if len(rows) >= 2 * LEAST and np.all(error < PRECISION):
                break
        return np.exp(middle), error

    def _visit(self, run: Callable[[], object]) -> float:
        """Shortest of a few runs in a row: what others do on this machine only ever adds time."""
        if self._runs > 1:
            run()
        return min(_seconds(run) for _ in range(self._runs))

    def ratio(self, model: ir.Model) -> float:
        """Median of paired ratios, candidate over reference, run by run; more pairs where they disagree."""
        candidate = self._runner(model)
        for run in (self._reference, candidate) * 3:
            run()
        logs: list[float] = []
        end = time.perf_counter() + LIMIT
        while True:
            first, second = (self._reference, candidate) if len(logs) % 2 else (candidate, self._reference)
            one, two = _seconds(first), _seconds(second)
            logs.append(float(np.log(two / one)) * (1 if first is self._reference else -1))
            over = len(logs) >= MANY or (len(logs) >= LEAST and time.perf_counter() > end)
            if over or len(logs) % PAIRS == 0:
                middle, error = _median(np.array(logs))
                if over or error < SURE:
                    return float(np.exp(middle))


def _median(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median over the first axis and its standard error, from the spread of the middle half of the rows."""
    low, middle, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
    return middle, 1.25 * (high - low) / 1.35 / np.sqrt(len(rows))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def feeds_of(model: ir.Model, feeds: Arrays, batch: int) -> Arrays:
    """One batch of `batch` samples, repeated or cut; models with a fixed batch keep theirs, scalars have none."""
    shapes = {info.name: info.shape for info in io.inputs(model)}
    fixed = {name for name, shape in shapes.items() if shape is not None and (not shape or isinstance(shape[0], int))}
    return {
        name: array if name in fixed else np.ascontiguousarray(np.resize(array, (batch, *array.shape[1:])))
        for name, array in feeds.items()
    }
