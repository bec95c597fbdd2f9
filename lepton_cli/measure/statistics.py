"""Intervals of proportions, paired differences and whatever a bootstrap can reach. numpy only.

All intervals are two-sided with 95 % confidence unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.timing.intervals import Estimate, Interval, Z

#: Most numbers a bootstrap holds at once.
_CHUNK = 2_000_000


def wilson(successes: float, n: int, z: float = Z) -> Interval:
    """Score interval of a proportion (Wilson 1927). `(0, 1)` for `n = 0`."""
    if n <= 0:
        return Interval(0.0, 1.0)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, p * (1 - p) / n + z * z / (4 * n * n)))
    # At 0 and n successes the exact bound is 0 and 1; rounding must not move it past the estimate.
    return Interval(max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def paired_difference(both: int, only_first: int, only_second: int, neither: int, z: float = Z) -> Estimate:
    """Difference of two proportions on the same samples, second minus first.

    Newcombe's method 10: Wilson intervals of both proportions, combined with their continuity-corrected correlation
    (R. G. Newcombe, Statistics in Medicine 17, 1998, p. 2635). Unlike McNemar's test it has a width without any
    discordant pair, and it stays inside [-1, 1].
    """
    n = both + only_first + only_second + neither
    if n == 0:
        return Estimate(0.0, -1.0, 1.0)
    first, second = (both + only_first) / n, (both + only_second) / n
    difference = second - first
    low_first, high_first = wilson(both + only_first, n, z)
    low_second, high_second = wilson(both + only_second, n, z)
    correlation = _phi(both, only_first, only_second, neither)

    def combine(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))

    below = combine(second - low_second, high_first - first)
    above = combine(high_second - second, first - low_first)
    return Estimate(difference, max(-1.0, difference - below), min(1.0, difference + above))


def mcnemar(lost: int, won: int) -> float:
    """Two-sided p of McNemar's exact test: how often chance alone parts `lost` + `won` samples so unequally, or more.

    Twice the binomial tail up to the smaller of the two, at most 1 (Q. McNemar, Psychometrika 12, 1947, p. 153).
    """
    n, fewer = lost + won, min(lost, won)
    term = math.exp(math.lgamma(n + 1) - math.lgamma(fewer + 1) - math.lgamma(n - fewer + 1) - n * math.log(2))
    tail = 0.0
    for count in range(fewer, -1, -1):
        tail += term
        term *= count / (n - count + 1)
        if term < tail * 1e-17:
            break
    return min(1.0, 2 * tail)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in their order: one that is up to 5 % is so by chance in 5 % of all families.

    The k-th least of m times m - k + 1, and none below a lesser one (S. Holm, Scand. J. Statistics 6, 1979, p. 65).
    """
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def simultaneous(count: int) -> float:
    """The quantile with which `count` intervals hold all at once with 95 % confidence (Bonferroni)."""
    return NormalDist().inv_cdf(1 - 0.025 / max(1, count))


def paired_half_width(difference: float, discordant: float, n: int) -> float:
    """Half of the interval of a paired difference of two proportions, as it is to be expected before it is measured.

    `discordant`: share of the samples on which the two differ, at least `difference`. Of one sample the difference is
    -1, 0 or 1, so that its variance is `discordant` - `difference`², and that of the mean of `n` an n-th of it: the
    first method in Newcombe's article, the interval to McNemar's test.
    """
    return Z * math.sqrt(max(0.0, discordant - difference * difference) / n)


def samples_to_tell(difference: float, discordant: float) -> int:
    """The least number of samples with which `paired_half_width` is not above the difference itself."""
    return max(1, math.ceil(Z * Z * (discordant / (difference * difference) - 1) - 1e-9))


def _phi(a: int, b: int, c: int, d: int) -> float:
    """Correlation of two binary variables, positive ones corrected for continuity as Newcombe proposes."""
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    excess = float(a * d - b * c)
    if excess > 0:
        excess = max(excess - (a + b + c + d) / 2, 0.0)
    return excess / math.sqrt(product)


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], NDArray[Any]], n: int, *, seed: int, resamples: int = 1000
) -> Interval:
    """Percentile bootstrap over `n` samples.

    `statistic` gets sample indices of shape `(resamples, n)`, a chunk at a time, and returns one value per row.
    Rows without a finite value are left out; `(nan, nan)` when none is left.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // max(1, n))
    values = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        values.append(np.asarray(statistic(generator.integers(0, n, size=(count, n))), dtype=np.float64))
    joined = np.concatenate(values)
    joined = joined[np.isfinite(joined)]
    if joined.size == 0:
        return Interval(math.nan, math.nan)
    low, high = np.quantile(joined, [0.025, 0.975])
    return Interval(float(low), float(high))
