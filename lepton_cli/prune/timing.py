"""How fast many candidate models run beside one reference: visited in turns, so that a busy moment spares nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli import runtime
from lepton_cli.graph import io
from lepton_cli.prune.taps import Arrays

#: One visit lasts at least this many seconds and runs; the first run, with cold caches, does not count.
VISIT, RUNS = 0.003, 3
#: Visits of every candidate, at least and at most.
LEAST, MOST = 5, 60
#: Standard error of a candidate's ratio that is good enough.
PRECISION = 0.003
#: Weights of the candidates that are open at the same time, in bytes.
OPEN = 1_500_000_000


class Stopwatch:
    """Times candidates against one reference model on one provider."""

    def __init__(self, reference: ir.Model, feeds: Arrays, provider: str, threads: int, workdir: Path) -> None:
        self._feeds, self._provider, self._threads, self._workdir = feeds, provider, threads, workdir
        self._reference = self._runner(reference)
        for _ in range(3):
            self._reference()
        self._runs = max(RUNS, int(np.ceil(VISIT / max(_seconds(self._reference), 1e-6))))

    def _runner(self, model: ir.Model) -> Callable[[], object]:
        session = runtime.Session(io.payload(model, self._workdir), provider=self._provider, threads=self._threads)
        return session.caller(self._feeds)

    def ratios(
        self, candidates: Sequence[Callable[[], ir.Model]], seconds: float, done: Callable[[], object] = lambda: None
    ) -> NDArray[np.float64]:
        """Time of every candidate over the reference's: medians over the visits, for about `seconds` in all."""
        found: list[NDArray[np.float64]] = []
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
        return np.concatenate(found) if found else np.zeros(0)

    def _visits(self, opened: Sequence[Callable[[], object]], seconds: float) -> NDArray[np.float64]:
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
            logs = np.array(rows)
            if len(rows) >= 2 * LEAST and np.all(1.25 * logs.std(axis=0) / np.sqrt(len(rows)) < PRECISION):
                break
        return np.asarray(np.exp(np.median(np.array(rows), axis=0)))

    def _visit(self, run: Callable[[], object]) -> float:
        """Shortest of a few runs in a row: what others do on this machine only ever adds time."""
        run()
        return min(_seconds(run) for _ in range(self._runs))

    def ratio(self, model: ir.Model, seconds: float = 2.0) -> float:
        """Median of paired ratios, candidate over reference, run by run: at least 30 pairs, more within `seconds`."""
        candidate = self._runner(model)
        for run in (self._reference, candidate) * 3:
            run()
        ratios: list[float] = []
        end = time.perf_counter() + seconds
        while len(ratios) < 30 or (time.perf_counter() < end and len(ratios) < 2000):
            first, second = (self._reference, candidate) if len(ratios) % 2 else (candidate, self._reference)
            one, two = _seconds(first), _seconds(second)
            ratios.append(two / one if first is self._reference else one / two)
        return float(np.median(ratios))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def feeds_of(model: ir.Model, feeds: Arrays, batch: int) -> Arrays:
    """One batch of `batch` samples, repeated or cut; models with a fixed batch keep theirs."""
    fixed = {info.name for info in io.inputs(model) if info.shape and isinstance(info.shape[0], int)}
    return {
        name: array if name in fixed else np.ascontiguousarray(np.resize(array, (batch, *array.shape[1:])))
        for name, array in feeds.items()
    }
