"""How close a model's outputs are to the original's, sample by sample; needs no labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.measure import statistics
from lepton_cli.measure.metrics import cosine
from lepton_cli.measure.results import Fidelity

#: Outputs -> one or more class decisions per sample.
Decide = Callable[[NDArray[Any]], NDArray[Any]]
#: An output without classes agrees when its error is at most this share of the original's length.
_CLOSE = 0.01


class Tracker:
    """Sums over batches for one output of one model."""

    def __init__(self, variant: str, output: str, decide: Decide | None) -> None:
        """`decide` turns outputs into class decisions, whose equality is agreement; without it closeness is."""
        self.variant, self.output, self._decide = variant, output, decide
        self._agreeing, self._n, self._cosines = 0.0, 0, 0.0
        self._signal = self._noise = self._largest = 0.0
        self._float = True
        #: Batches in which the two outputs had different shapes: they count as disagreement.
        self.different_shapes = 0

    def add(self, reference: NDArray[Any], other: NDArray[Any], samples: int) -> None:
        """One batch of both models."""
        # An output without samples on axis 0 (boxes of all images together) is one unit of agreement.
        by_sample = len(reference) == samples
        units = samples if by_sample else 1
        self._n += units
        if reference.shape != other.shape:
            self.different_shapes += 1
            return
        if not np.issubdtype(reference.dtype, np.number):
            self._float = False
            self._agreeing += float((reference == other).reshape(units, -1).all(axis=1).sum())
            return
        self._float &= np.issubdtype(reference.dtype, np.floating)
        first, second = (a.reshape(units, -1).astype(np.float64) for a in (reference, other))
        # Infinities (masks) in both models at the same place are equal, elsewhere an error without size.
        same = first == second
        with np.errstate(invalid="ignore"):
            error = np.where(same, 0.0, second - first)
        usable = np.isfinite(error) & np.isfinite(first)
        error, signal = np.where(usable, error, 0.0), np.where(usable, first, 0.0)
        self._signal += float((signal**2).sum())
        self._noise += float((error**2).sum())
        self._largest = max(self._largest, float(np.abs(error).max(initial=0.0)))
        self._cosines += float(cosine(signal, signal + error).sum())
        if self._decide is not None and by_sample:
            agreeing = (self._decide(reference) == self._decide(other)).reshape(units, -1).mean(axis=1)
        else:
            close = np.linalg.norm(error, axis=1) <= _CLOSE * np.linalg.norm(signal, axis=1)
            agreeing = close & (usable | same).all(axis=1)
        self._agreeing += float(agreeing.sum())

    def result(self) -> Fidelity:
        """The finished comparison."""
        low, high = statistics.wilson(self._agreeing, self._n)
        sqnr = 10 * math.log10(self._signal / self._noise) if self._float and self._signal and self._noise else None
        return Fidelity(
            output=self.output,
            agreement=self._agreeing / max(1, self._n),
            agreement_low=low,
            agreement_high=high,
            sqnr_db=sqnr,
            max_abs_error=self._largest,
            n=self._n,
            cosine=self._cosines / self._n if self._float and self._n else None,
            variant=self.variant,
        )
