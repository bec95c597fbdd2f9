"""A histogram of float32 values that needs no range beforehand, never grows and survives infinities.

The upper 16 bits of a float32 are its sign, its exponent and 7 bits of its mantissa: counting them gives logarithmic
bins less than 1 % wide over all of float32, in one pass, with one `bincount`. Every calibration method reads from it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 1 << 16
#: Magnitudes above this are infinities or the constants that mask attention (-3.4e38).
MASK = 1e30
#: Elements counted at once: what stays in the core's cache is counted twice as fast.
CHUNK = 1 << 17
_UPPER = 1 if sys.byteorder == "little" else 0


def _edges() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per bin the values nearest to and farthest from zero."""
    upper = np.arange(BINS, dtype=np.uint32) << 16
    return upper.view(np.float32), (upper | 0xFFFF).view(np.float32)


NEAR, FAR = _edges()
with np.errstate(invalid="ignore", over="ignore"):
    CENTRE: NDArray[np.float64] = (NEAR.astype(np.float64) + FAR.astype(np.float64)) / 2
CENTRE[[0, BINS // 2]] = 0  # these bins hold the zeros: a middle of 4.6e-41 would pass for an extent
USABLE: NDArray[np.bool_] = np.isfinite(FAR) & (np.abs(FAR) < MASK)
#: Bins in the order of their values, without NaN, infinities and mask constants.
ORDER: NDArray[np.int64] = np.flatnonzero(USABLE)[np.argsort(CENTRE[USABLE], kind="stable")]


class Histogram:
    """Counts of one tensor's values, with the exact least and greatest usable value."""

    def __init__(self) -> None:
        self.low = np.inf
        self.high = -np.inf
        #: All bins, while values are added; else the occupied ones, a twentieth of the bytes.
        self._dense: NDArray[np.int64] | None = None
        self._sparse = np.empty(0, np.int64), np.empty(0, np.int64)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Values seen per bin."""
        if self._dense is not None:
            return self._dense
        every = np.zeros(BINS, dtype=np.int64)
        bins, counts = self._sparse
        every[bins] = counts
        return every

    def pack(self) -> None:
        """Hold no more memory than what was seen takes; adding goes on as before."""
        if self._dense is not None:
            bins = np.flatnonzero(self._dense)
            self._sparse, self._dense = (bins, self._dense[bins]), None

    def add(self, values: NDArray[Any]) -> None:
        """Count all elements of an array of any shape and float type."""
        every = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        for start in range(0, every.size, CHUNK):
            self._count(every[start : start + CHUNK])

    def _count(self, flat: NDArray[np.float32]) -> None:
        self._dense = self.counts
        self._dense += np.bincount(flat.view(np.uint16)[_UPPER::2], minlength=BINS)
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)) or max(-low, high) >= MASK:
            usable = flat[np.abs(flat) < MASK]
            if not usable.size:
                return
            low, high = float(usable.min()), float(usable.max())
        self.low, self.high = min(self.low, low), max(self.high, high)

    def join(self, other: Histogram) -> None:
        """Count what the other has counted too."""
        self._dense = self.counts + other.counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def nan(self) -> int:
        """Number of NaN values seen."""
        upper = np.arange(BINS) & 0x7FFF
        return int(self.counts[upper > 0x7F80].sum())

    @property
    def masked(self) -> int:
        """Number of infinities and mask constants seen; such tensors stay float."""
        return int(self.counts[~USABLE].sum()) - self.nan

    @property
    def empty(self) -> bool:
        """Whether nothing usable was seen."""
        return not self.low <= self.high

    def sorted(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values of the occupied bins in rising order, and their counts."""
        counts = self.counts[ORDER]
        occupied = counts > 0
        return CENTRE[ORDER][occupied], counts[occupied].astype(np.float64)

    def state(self) -> tuple[NDArray[np.int64], NDArray[np.int64], float, float]:
        """Occupied bins, their counts and the range: what is kept on disk."""
        counts = self.counts
        bins = np.flatnonzero(counts)
        return bins, counts[bins], self.low, self.high

    @staticmethod
    def restore(bins: NDArray[np.int64], counts: NDArray[np.int64], low: float, high: float) -> Histogram:
        """The histogram that `state` was taken from."""
        made = Histogram()
        made._sparse = bins.astype(np.int64), counts.astype(np.int64)
        made.low, made.high = low, high
        return made
