"""Latency targets: widths in the machine's vector blocks, and a search that ends on measured times.

Fewer multiply-accumulates can even be slower, so no formula is trusted: candidates are cut, run side by side with the
original, and the budget is moved until the measured ratio is the one asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lepton_cli import runtime
from lepton_cli.graph import io
from lepton_cli.prune.cost import Widths
from lepton_cli.prune.taps import Arrays

#: A measured ratio this close to the target is good enough.
CLOSE = 0.03
#: Candidates that are built and timed at most.
TRIES = 7


def vector_block() -> int:
    """Channels that onnxruntime's CPU convolutions compute together: 16 with AVX-512, else 8."""
    try:
        return 16 if "avx512f" in Path("/proc/cpuinfo").read_text() else 8
    except OSError:
        return 8


class Stopwatch:
    """Times candidates against one reference model, run by run."""

    def __init__(self, reference: ir.Model, feeds: Arrays, provider: str, threads: int, workdir: Path) -> None:
        self._feeds, self._provider, self._threads, self._workdir = feeds, provider, threads, workdir
        self._reference = self._session(reference)

    def _session(self, model: ir.Model) -> runtime.Session:
        return runtime.Session(io.payload(model, self._workdir), provider=self._provider, threads=self._threads)

    def ratio(self, model: ir.Model, seconds: float = 1.5) -> float:
        """Median of paired ratios, candidate over reference; at least 15 pairs, more within `seconds`."""
        candidate = self._session(model)
        for session in (self._reference, candidate) * 3:
            session.run(self._feeds)
        ratios: list[float] = []
        end = time.perf_counter() + seconds
        while len(ratios) < 15 or (time.perf_counter() < end and len(ratios) < 1000):
            first, second = (self._reference, candidate) if len(ratios) % 2 else (candidate, self._reference)
            times = [self._once(first), self._once(second)]
            one, two = times if first is self._reference else times[::-1]
            ratios.append(two / one)
        return float(np.median(ratios))

    def _once(self, session: runtime.Session) -> int:
        start = time.perf_counter_ns()
        session.raw.run(None, self._feeds)
        return time.perf_counter_ns() - start


def feeds_of(model: ir.Model, feeds: Arrays, batch: int) -> Arrays:
    """One batch of `batch` samples, repeated or cut; models with a fixed batch keep theirs."""
    fixed = {info.name for info in io.inputs(model) if info.shape and isinstance(info.shape[0], int)}
    return {
        name: array if name in fixed else np.ascontiguousarray(np.resize(array, (batch, *array.shape[1:])))
        for name, array in feeds.items()
    }


def search(
    target: float, measure: Callable[[Widths], float], propose: Callable[[float], Widths], lowest: float
) -> tuple[Widths | None, float, float]:
    """Widths whose measured ratio is nearest to `target` without being above it by more than the tolerance.

    `propose(share)` allocates widths for a share of the multiply-accumulates, `lowest` is the least share there is.
    Returns the widths (`None` when even the narrowest is too slow), their ratio, and the fastest ratio seen.
    """
    low, high = lowest, 1.0
    share = max(target, lowest)
    best: tuple[Widths | None, float] = (None, np.inf)
    fastest, seen = np.inf, set[tuple[int, ...]]()
    for attempt in range(TRIES):
        widths = propose(share)
        key = tuple(widths.tolist())
        if key not in seen:
            seen.add(key)
            ratio = measure(widths)
        fastest = min(fastest, ratio)
        if ratio <= target * (1 + CLOSE) and (best[0] is None or ratio > best[1]):
            best = (widths, ratio)
        if abs(ratio - target) <= CLOSE * target:
            break
        if ratio > target:
            high = share
        else:
            low = share
        share = lowest if attempt == TRIES - 2 and best[0] is None else (low + high) / 2
    return best[0], best[1], fastest
