"""How close a model's outputs are to the original's, sample by sample; needs no labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.measure import statistics
from lepton_cli.measure.metrics import cosine
from lepton_cli.measure.results import Fidelity, FidelityPart
from lepton_cli.probe.parts import Division, Segments

#: Outputs -> one or more decisions per sample.
Decide = Callable[[NDArray[Any]], NDArray[Any]]
#: What an infinity counts as where the original has a number.
_LARGEST = float(np.finfo(np.float32).max)


class Tracker:
    """Sums over batches for one output of one model."""

    def __init__(self, variant: str, output: str, decide: Decide | None, ways: Sequence[Segments] = ()) -> None:
        """`decide` turns outputs into decisions, whose equality is agreement; without it there is none.

        `ways`: how the graph cuts the output into parts (`probe.parts`).
        """
        self.variant, self.output, self._decide = variant, output, decide
        self._agreeing, self._n, self._cosines = 0.0, 0, 0.0
        self._division, self._largest = Division(ways), 0.0
        self._float = True
        #: Batches in which the two outputs had different shapes: they count as disagreement.
        self.different_shapes = 0

    def add(self, reference: NDArray[Any], other: NDArray[Any], samples: int) -> None:
        """One batch of both models."""
        self._n += samples
        if reference.shape != other.shape:
            self.different_shapes += 1
            return
        if self._decide is not None:
            same = self._decide(reference) == self._decide(other) if reference.size else reference
            # The mean over all positions is that over the samples of their means: each has as many.
            self._agreeing += samples * float(same.mean()) if same.size else samples
        self._float &= np.issubdtype(reference.dtype, np.floating)
        if not np.issubdtype(reference.dtype, np.number):
            return
        first, second = (a.astype(np.float64) for a in (reference, other))
        # Infinities (masks) of the original say nothing about how far another model is from it.
        known = np.isfinite(first)
        signal = np.where(known, first, 0.0)
        error = np.where(known, np.clip(second, -_LARGEST, _LARGEST) - signal, 0.0)
        self._division.add(signal, error)
        self._largest = max(self._largest, float(np.abs(error).max(initial=0.0)))
        rows = (_by_sample(values, samples) for values in (signal, signal + error))
        self._cosines += samples * float(cosine(*rows).mean())

    def result(self) -> Fidelity:
        """The finished comparison."""
        agreement = low = high = None
        if self._decide is not None:
            low, high = statistics.wilson(self._agreeing, self._n)
            agreement = self._agreeing / max(1, self._n)
        parts = [part for part in self._division.parts() if part.signal and part.noise] if self._float else []
        sqnr = -10 * math.log10(sum(part.noise / part.signal for part in parts) / len(parts)) if parts else None
        return Fidelity(
            output=self.output,
            agreement=agreement,
            agreement_low=low,
            agreement_high=high,
            sqnr_db=sqnr,
            max_abs_error=self._largest,
            n=self._n,
            cosine=self._cosines / self._n if self._float and self._n else None,
            parts=tuple(
                FidelityPart(where=part.where, sqnr_db=10 * math.log10(part.signal / part.noise))
                for part in parts
                if part.where
            ),
            variant=self.variant,
        )


def _by_sample(values: NDArray[Any], samples: int) -> NDArray[Any]:
    """One row for each sample, wherever its axis is (states: `[layers, batch, size]`); one for all without any."""
    axis = next((axis for axis, size in enumerate(values.shape) if size == samples), None)
    return values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(samples, -1)
