"""Grids of integers: from a range to a scale and a zero point, and from numbers to codes.

A number is `scale * (code - zero_point)`. Formulas are those of ONNX's QuantizeLinear and onnxruntime's quantizers, so
that files are equal to theirs: the scale is stored in float32 and codes are rounded half to even.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

#: Types of codes.
Code = Literal["uint8", "int8", "uint16", "int16"]
#: Steps that an 8-bit weight may take either side where sums of two products must fit 16 bits.
REDUCED = 64
#: A bias of this many steps still fits int32.
_BIAS_STEPS = (2**31 - 1) / 1.0001


@dataclasses.dataclass(frozen=True)
class Grid:
    """`scale` and `zero_point` [] for a whole tensor or [channels]."""

    scale: NDArray[np.float32]
    zero_point: NDArray[Any]

    def codes(self, values: NDArray[np.float32], axis: int | None = None) -> NDArray[Any]:
        """The nearest codes of values; `axis`: that of the channels."""
        shape = [1] * values.ndim
        if axis is not None:
            shape[axis] = -1
        limits = np.iinfo(self.zero_point.dtype)
        steps = np.rint(values.astype(np.float32) / self.scale.reshape(shape)) + self.zero_point.reshape(shape)
        codes: NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(self.zero_point.dtype)
        return codes


def of_range(low: float, high: float, code: Code, *, symmetric: bool, reduced: bool = False) -> Grid:
    """The grid of one range, which always holds 0. `symmetric`: 0 is in its middle. `reduced`: half of the steps."""
    dtype = np.dtype(code)
    least, most = _ends(dtype, symmetric, reduced)
    # Ends are float32 as in a file; their difference may be beyond it.
    bottom, top = min(float(np.float32(low)), 0.0), max(float(np.float32(high)), 0.0)
    if symmetric:
        top = max(-bottom, top)
        bottom = -top
    scale = (top - bottom) / (most - least)
    if scale < np.finfo(np.float32).tiny:
        return Grid(np.ones((), np.float32), np.zeros((), dtype))
    zero = np.rint((least + most) / 2 if symmetric else least - bottom / scale)
    return Grid(np.asarray(scale, np.float32), np.asarray(zero).astype(dtype))


def per_channel(weight: NDArray[np.float32], axis: int, *, reduced: bool) -> NDArray[np.float32]:
    """Symmetric int8 scales of a weight's channels: the greatest magnitude is the last step."""
    rest = tuple(other for other in range(weight.ndim) if other != axis)
    greatest = np.abs(weight.astype(np.float32)).max(axis=rest, initial=0).astype(np.float64)
    least, most = _ends(np.dtype(np.int8), True, reduced)
    scale = 2 * greatest / (most - least)
    return np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(np.float32)


def holding_bias(
    scales: NDArray[np.float32], step: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Weight scales, larger where the bias in steps of `step * scale` would not fit 32 bits."""
    product = np.asarray(step, np.float64) * scales.astype(np.float64)
    needed = np.abs(bias.astype(np.float64)) / _BIAS_STEPS
    narrow = (product > 0) & (product < needed)
    larger = scales.astype(np.float64) * needed / np.where(product > 0, product, 1)
    return np.where(narrow, larger, scales).astype(np.float32)


def bias_codes(bias: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int32]:
    """A bias in int32 steps of `scale`."""
    limits = np.iinfo(np.int32)
    steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    return np.clip(steps, limits.min, limits.max).astype(np.int32)


def _ends(dtype: np.dtype[Any], symmetric: bool, reduced: bool) -> tuple[int, int]:
    """First and last step of a type."""
    limits = np.iinfo(dtype)
    if reduced:
        return (
            (0, int(limits.max) // 2) if limits.min == 0 else (-(int(limits.max) + 1) // 2, (int(limits.max) + 1) // 2)
        )
    return (-int(limits.max) if symmetric and limits.min else int(limits.min)), int(limits.max)
