"""From a histogram to the range that 8 bits shall cover: minmax, percentile, entropy, mse."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lepton_cli.probe.histogram import Histogram

Method = Literal["minmax", "percentile", "entropy", "mse"]
Range = tuple[float, float]

#: Share of the values that a percentile range covers; both tails together lose the rest.
COVERED = 0.9999
_ENTROPY_BINS = 2048
#: No bounds.
EVERYTHING: Range = (-np.inf, np.inf)


def limits(histogram: Histogram, method: Method, levels: int = 256, bounds: Range = EVERYTHING) -> Range:
    """Least and greatest value to represent; always includes 0, so that zeros (padding, ReLU) stay exact.

    `levels` is the number of quantized values: 256 for 8 bits. Values beyond `bounds` are as good as these.
    """
    if histogram.empty:
        return 0.0, 0.0
    full = bounded((histogram.low, histogram.high), bounds)
    if method == "minmax" or full[0] == full[1]:
        return full
    if method == "percentile":
        return _percentile(histogram, full)
    if method == "mse":
        return _mse(histogram, full, levels, bounds)
    return _entropy(histogram, full, levels)


def bounded(ends: Range, bounds: Range) -> Range:
    """Least and greatest value that counts, 0 included."""
    return min(max(ends[0], bounds[0]), 0.0), max(min(ends[1], bounds[1]), 0.0)


def _percentile(histogram: Histogram, full: Range) -> Range:
    values, counts = histogram.sorted()
    cumulative = np.cumsum(counts) / counts.sum()
    tail = (1 - COVERED) / 2
    low = values[np.searchsorted(cumulative, tail)]
    high = values[min(int(np.searchsorted(cumulative, 1 - tail)), len(values) - 1)]
    return _within(low, high, full)


def _within(low: float, high: float, full: Range) -> Range:
    """A clipped range, never wider than what was seen, never without extent."""
    clipped = max(full[0], min(float(low), 0.0)), min(full[1], max(float(high), 0.0))
    return clipped if clipped[0] < clipped[1] else full


def quantization_error(
    values: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float, levels: int
) -> float:
    """Sum of squared errors of `counts` times `values` when [low, high] is cut into `levels` steps, zero exact."""
    scale = (high - low) / (levels - 1)
    zero = np.rint(-low / scale)
    quantized = np.clip(np.rint(values / scale) + zero, 0, levels - 1)
    return float(np.dot(counts, ((quantized - zero) * scale - values) ** 2))


def _mse(histogram: Histogram, full: Range, levels: int, bounds: Range) -> Range:
    """Coordinate descent over the two ends: 24 cuts of each, three rounds."""
    values, counts = histogram.sorted()
    values = np.clip(values, *bounds)
    cuts = np.linspace(1.0, 0.2, 24) ** 1.5
    best = full
    least = quantization_error(values, counts, full[0], full[1], levels)
    for _ in range(3):
        before = best
        for end in (0, 1):
            for cut in cuts:
                trial = (full[0] * cut, best[1]) if end == 0 else (best[0], full[1] * cut)
                if trial[0] == trial[1]:
                    continue
                error = quantization_error(values, counts, trial[0], trial[1], levels)
                if error < least:
                    best, least = trial, error
        if best == before:
            break
    return best


def _entropy(histogram: Histogram, full: Range, levels: int) -> Range:
    """Clip magnitudes where the Kullback-Leibler divergence between values and their quantization is least."""
    values, counts = histogram.sorted()
    largest = max(-full[0], full[1])
    steps = max(levels // 2, 16)
    binned: NDArray[np.float64] = np.bincount(
        np.minimum((np.abs(values) / largest * _ENTROPY_BINS).astype(np.int64), _ENTROPY_BINS - 1),
        weights=counts,
        minlength=_ENTROPY_BINS,
    ).astype(np.float64)
    binned[0] = 0  # zeros are exact in any quantization: they say nothing about the range
    best, least = largest, np.inf
    for end in range(steps, _ENTROPY_BINS + 1, 16):
        divergence = _divergence(binned, end, steps)
        if divergence < least:
            best, least = largest * end / _ENTROPY_BINS, divergence
    return _within(-best, best, full)


def _divergence(binned: NDArray[np.float64], end: int, steps: int) -> float:
    reference = binned[:end].copy()
    reference[-1] += binned[end:].sum()
    if not reference.any():
        return np.inf
    group = np.arange(end) * steps // end
    occupied = binned[:end] > 0
    totals = np.bincount(group, weights=binned[:end], minlength=steps)
    members = np.bincount(group, weights=occupied.astype(np.float64), minlength=steps)
    spread = np.where(occupied, totals[group] / np.maximum(members[group], 1), 0)
    p, q = reference / reference.sum(), spread / max(float(spread.sum()), 1e-300)
    both = p > 0
    return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-9))))
