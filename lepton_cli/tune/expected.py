"""What is expected of a value that is not known yet: mean, interval, the chance of a limit, the gain over the best."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

#: The normal distribution is tabulated up to this many deviations, at this distance.
_FAR, _STEP = 9, 2**-10
#: Times that the bracket of a quantile is halved.
_HALVINGS = 24


@dataclasses.dataclass(frozen=True)
class Expected:
    """Of N candidates a mixture of K normal distributions each: `weights` [K], `centres` and `spreads` [K, N], of the
    value or of its logarithm. What it tells is [N]."""

    weights: _Array
    centres: _Array
    spreads: _Array
    #: What is larger counts as this.
    most: float = math.inf
    logarithmic: bool = False

    @functools.cached_property
    def mean(self) -> _Array:
        if math.isfinite(self.most):
            return self.most - self.gain(self.most)
        return np.asarray(
            self.weights @ (np.exp(self.centres + self.spreads**2 / 2) if self.logarithmic else self.centres)
        )

    @functools.cached_property
    def low(self) -> _Array:
        """The value that 2.5 of 100 lie below."""
        return self._quantile(0.025)

    @functools.cached_property
    def high(self) -> _Array:
        """The value that 2.5 of 100 lie above."""
        return self._quantile(0.975)

    def below(self, limit: float) -> _Array:
        """The chance that the value is at most the limit."""
        if limit >= self.most:
            return np.ones(self.centres.shape[1])
        return self._under(self._inner(limit))

    def gain(self, best: float) -> _Array:
        """How far the value is expected to lie below `best`, where what lies above counts as nothing (Jones, Schonlau
        and Welch, Efficient Global Optimization of Expensive Black-Box Functions, 1998, eq. 15; of a logarithm's normal
        distribution as Black and Scholes price a put)."""
        if best > self.most:
            return best - self.mean
        scores = (self._inner(best) - self.centres) / self.spreads
        chances = _cumulative(scores)
        if self.logarithmic:
            means = np.exp(self.centres + self.spreads**2 / 2)
            gains = best * chances - means * _cumulative(scores - self.spreads)
        else:
            densities = np.exp(-(scores**2) / 2) / math.sqrt(2 * math.pi)
            gains = (best - self.centres) * chances + self.spreads * densities
        # Far above `best` differences of tiny numbers are left.
        return np.asarray(self.weights @ np.maximum(gains, 0.0))

    def _inner(self, value: float) -> float:
        """The value, or its logarithm where the distributions are of that."""
        if not self.logarithmic:
            return value
        return math.log(value) if value > 0 else -math.inf

    def _under(self, values: float | _Array) -> _Array:
        return np.asarray(self.weights @ _cumulative((values - self.centres) / self.spreads))

    def _quantile(self, chance: float) -> _Array:
        """By bisection: it lies between the least and the largest quantile of the parts."""
        quantiles = self.centres + statistics.NormalDist().inv_cdf(chance) * self.spreads
        low, high = quantiles.min(axis=0), quantiles.max(axis=0)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            under = self._under(middle) < chance
            low, high = np.where(under, middle, low), np.where(under, high, middle)
        middle = (low + high) / 2
        return np.asarray(np.exp(middle) if self.logarithmic else np.minimum(middle, self.most))


@functools.cache
def _table() -> tuple[_Array, _Array]:
    scores = np.arange(-_FAR, _FAR + _STEP, _STEP)
    return scores, np.array([math.erfc(-score / math.sqrt(2)) / 2 for score in scores])


def _cumulative(scores: _Array) -> _Array:
    """The normal distribution's, within 3e-8 (h^2 / 8 times its largest second derivative, 0.242)."""
    return np.asarray(np.interp(scores, *_table(), left=0.0, right=1.0))
