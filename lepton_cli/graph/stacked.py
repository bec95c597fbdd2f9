"""Where the samples of a batch lie in a value: one after the other along an axis, which may hold more than them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Largest difference, as a share of the largest value, that is rounding: sums in another order.
ROUNDING, ROUNDING_HALF = 2e-5, 5e-3
#: Outputs below this are as exact as numbers of this size: of a sigmoid near 0 there are few.
LEAST = 1e-2
#: Share of 8-bit numbers that rounding may turn.
TURNED = 0.01


@dataclasses.dataclass(frozen=True)
class SampleAxis:
    """The axis that holds the samples, and how many neighbours along it are of one sample.

    With `[1, 6]` of one sample, two are `[2, 6]` on axis 0, inner 1. With `[4, 6]` two are `[8, 6]`: one sample behind
    the other with inner 4, row by row in turns with inner 1.
    """

    axis: int
    inner: int

    def stack(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Samples together, from each alone; all of one shape."""
        shape = parts[0].shape
        before, size, behind = shape[: self.axis], shape[self.axis], shape[self.axis + 1 :]
        split = (*before, size // self.inner, 1, self.inner, *behind)
        joined = np.concatenate([part.reshape(split) for part in parts], self.axis + 1)
        return joined.reshape(*before, size * len(parts), *behind)

    def plain(self, shape: Sequence[int]) -> bool:
        """Whether the axis holds nothing but samples, or is the first with one sample behind the other.

        `shape`: of one sample.
        """
        return shape[self.axis] == 1 or (self.axis == 0 and self.inner == shape[0])

    def behind(self, shape: Sequence[int]) -> int:
        """Numbers of one sample that are neighbours in memory."""
        return self.inner * math.prod(shape[self.axis + 1 :])


def found(
    alone: Sequence[NDArray[Any]],
    together: NDArray[Any],
    likely: Iterable[SampleAxis | None] = (),
    tolerance: float | None = None,
) -> tuple[SampleAxis | None, str]:
    """Where the samples `alone` lie in `together`; else `None` and why they lie nowhere.

    `likely`: places to try before others, as a value may look the same at several.
    """
    shape, count = alone[0].shape, len(alone)
    if any(one.shape != shape for one in alone):
        return None, "its size follows from the data"
    for place in _places(shape, together.shape, count, likely):
        if same(place.stack(alone), together, tolerance):
            return place, ""
    if together.shape == shape:
        return None, f"it makes one result of {count} samples"
    if together.ndim == len(shape) and together.size == count * alone[0].size:
        return None, "it mixes the samples: its result is another than that of each alone"
    return None, (
        f"of {count} samples its result has the shape {list(together.shape)}, of one {list(shape)}: "
        "no axis holds the samples"
    )


def _places(
    shape: Sequence[int], many: Sequence[int], count: int, likely: Iterable[SampleAxis | None]
) -> Iterator[SampleAxis]:
    if len(many) != len(shape):
        return
    for axis, size in enumerate(shape):
        scaled = tuple(size * count if at == axis else one for at, one in enumerate(shape))
        if size and scaled == tuple(many):
            usual = (place.inner for place in likely if place is not None and place.axis == axis)
            divisors = (inner for inner in (size, *range(1, size)) if size % inner == 0)
            yield from (SampleAxis(axis, inner) for inner in dict.fromkeys((*usual, *divisors)) if size % inner == 0)


def reshaped(place: SampleAxis, shape: Sequence[int], target: Sequence[int]) -> list[SampleAxis]:
    """Where samples can lie when a value is reshaped: their order in memory stays. The likeliest place first.

    `shape`, `target`: of one sample. An axis of size 1 is one that exporters froze.
    """
    behind, places = place.behind(shape), []
    for axis, size in enumerate(target):
        rest = math.prod(target[axis + 1 :])
        if size and rest and behind and behind % rest == 0 and size % (behind // rest) == 0:
            places.append(SampleAxis(axis, behind // rest))
    stays = tuple(shape) == tuple(target)
    return sorted(places, key=lambda one: (target[one.axis] != 1, not (stays and one.axis == place.axis), one.axis))


def same(expected: NDArray[Any], got: NDArray[Any], tolerance: float | None = None) -> bool:
    """Whether two results are one up to rounding.

    `tolerance`: of a model's outputs, as a share of the largest value, or of LEAST where all are smaller.
    """
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    if expected.dtype.kind != "f":
        rounded = tolerance or (expected.dtype.itemsize == 1 and expected.dtype.kind in "iu" and tolerance is None)
        return bool(not expected.size or np.mean(expected != got) <= (TURNED if rounded else 0.0))
    least = 0.0 if tolerance is None else LEAST
    if tolerance is None:
        tolerance = ROUNDING_HALF if expected.dtype == np.float16 else ROUNDING
    first, second = expected.astype(np.float64), got.astype(np.float64)
    usable = np.isfinite(first)
    if not np.array_equal(first[~usable], second[~usable], equal_nan=True) or not np.isfinite(second[usable]).all():
        return False
    largest = float(np.abs(first[usable]).max(initial=least))
    return float(np.abs(first[usable] - second[usable]).max(initial=0.0)) <= tolerance * largest
