"""Pictures, and anything with axes, at another size or along a grid.

Every axis by itself: where each new element lies on the old axis (numbers in float32 as in onnxruntime, whose ties
depend on it), then which old elements it is made of, with what weights. Where torch's own kernel takes the same points,
that one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lepton_cli.train.operators.call import NotInTorch, OperatorCall, ints

#: Old elements (new size, taps) and their weights.
_Taps = tuple[np.ndarray, np.ndarray]
#: How far from a half a place may lie and still count as one.
HALF = 1e-5
_KERNELS = {
    ("linear", 3): "linear",
    ("linear", 4): "bilinear",
    ("linear", 5): "trilinear",
    ("cubic", 4): "bicubic",
}


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One axis that changes: sizes, new by old, and which part is looked at (of `tf_crop_and_resize`)."""

    place: int
    old: int
    new: int
    scale: float
    part: tuple[float, float] = (0.0, 1.0)


def resize(
    call: OperatorCall, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """Since opset 11; before, the second input is the scales."""
    if call.opset < 11:
        return upsample(call, x, roi)
    places = [place % x.dim() for place in call.get("axes", range(x.dim()))]
    old = [x.shape[place] for place in places]
    if sizes is not None and sizes.numel():
        new, factors = _sizes(old, ints(sizes), call.get("keep_aspect_ratio_policy", "stretch"))
    elif scales is not None and scales.numel():
        factors = [float(number) for number in scales.tolist()]
        new = [int(np.floor(np.float32(size) * np.float32(factor))) for size, factor in zip(old, factors, strict=True)]
    else:
        raise NotInTorch("Resize without scales or sizes")
    cropped = call.get("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    corners = roi.tolist() if cropped and roi is not None else [0.0] * len(old) + [1.0] * len(old)
    parts = zip(corners[: len(old)], corners[len(old) :], strict=True)
    axes = [_Axis(*numbers) for numbers in zip(places, old, new, factors, parts, strict=True)]
    return _resized(call, x, [axis for axis in axes if cropped or axis.scale != 1 or axis.old != axis.new])


def upsample(call: OperatorCall, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Also Resize of opset 10: coordinates are a quotient, and nearest is the element before, when an axis shrinks the
    one after.
    """
    factors = [float(number) for number in (call["scales"] if scales is None else scales.tolist())]
    axes = [
        _Axis(place, old, int(np.floor(np.float32(old) * np.float32(factor))), factor)
        for place, (old, factor) in enumerate(zip(x.shape, factors, strict=True))
        if factor != 1
    ]
    fixed = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "simple"}
    return _resized(dataclasses.replace(call, attributes={**call.attributes, **fixed}), x, axes)


def _sizes(old: list[int], wanted: list[int], policy: str) -> tuple[list[int], list[float]]:
    """New sizes and what the old ones are multiplied by."""
    factors = [float(np.float32(new) / np.float32(size)) for new, size in zip(wanted, old, strict=True)]
    if policy == "stretch":
        return wanted, factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [math.floor(size * factor + 0.5) for size in old], [factor] * len(old)


def _resized(call: OperatorCall, x: Tensor, axes: Sequence[_Axis]) -> Tensor:
    mode, rule = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    if all(axis.old == axis.new for axis in axes) and rule != "tf_crop_and_resize":
        return x
    if mode not in ("nearest", "linear", "cubic"):
        raise NotInTorch(f"Resize of mode {mode}")
    by_torch = _by_torch(call, x, axes)
    if by_torch is not None:
        return by_torch
    outside: list[tuple[int, np.ndarray]] = []
    for axis in axes:
        where = _positions(rule, axis)
        if rule == "tf_crop_and_resize":
            outside.append((axis.place, (where < 0) | (where > axis.old - 1)))
        x = _mixed(x, axis.place, _taps(call, axis, where))
    for place, beyond in outside:
        if beyond.any():
            mask = torch.from_numpy(beyond).to(x.device).reshape([-1] + [1] * (x.dim() - 1 - place))
            x = torch.where(mask, torch.full_like(x, call.get("extrapolation_value", 0.0)), x)
    return x


def _by_torch(call: OperatorCall, x: Tensor, axes: Sequence[_Axis]) -> Tensor | None:
    """The same by `interpolate`, where it is the same: all axes after the first two, and its points ours."""
    mode, rule = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    rank = x.dim()
    if rule == "tf_crop_and_resize" or not 3 <= rank <= 5 or not x.is_floating_point():
        return None
    if min(axis.place for axis in axes) < 2:
        return None
    new = list(x.shape[2:])
    for axis in axes:
        new[axis.place - 2] = axis.new
    if mode == "nearest":
        for axis in axes:
            chosen = _taps(call, axis, _positions(rule, axis))[0][:, 0]
            if axis.new % axis.old or not np.array_equal(chosen, np.arange(axis.new) // (axis.new // axis.old)):
                return None
        return functional.interpolate(x, new, mode="nearest")
    kernel = _KERNELS.get((mode, rank))
    plain = not call.get("exclude_outside", 0) and call.get("cubic_coeff_a", -0.75) == -0.75
    if kernel is None or not plain or (call.get("antialias", 0) and any(axis.scale < 1 for axis in axes)):
        return None
    if rule == "align_corners":
        return functional.interpolate(x, new, mode=kernel, align_corners=True)
    exact = all(
        axis.new == axis.old * axis.scale or axis.scale == float(np.float32(axis.new / axis.old)) for axis in axes
    )
    if exact and (rule == "half_pixel" or (rule == "pytorch_half_pixel" and min(axis.new for axis in axes) > 1)):
        return functional.interpolate(x, new, mode=kernel, align_corners=False)
    return None


def _positions(rule: str, axis: _Axis) -> np.ndarray:
    """Where the new elements lie on the old axis, in float32."""
    one, half = np.float32(1), np.float32(0.5)
    steps, scale = np.arange(axis.new, dtype=np.float32), np.float32(axis.scale)
    if rule == "asymmetric":
        return steps / scale
    if rule in ("half_pixel", "pytorch_half_pixel"):
        return np.zeros_like(steps) if rule == "pytorch_half_pixel" and axis.new == 1 else (steps + half) / scale - half
    if rule == "half_pixel_symmetric":
        shift = np.float32(axis.old) / 2 * (one - np.float32(axis.new) / (scale * np.float32(axis.old)))
        # onnxruntime's one rule that adds up in float64
        return (float(shift) + (steps.astype(np.float64) + 0.5) / float(scale) - 0.5).astype(np.float32)
    if rule == "align_corners":
        return steps * np.float32(axis.old - 1) / np.float32(max(axis.new - 1, 1))
    if rule == "tf_half_pixel_for_nn":
        return (steps + half) / scale
    if rule == "tf_crop_and_resize":
        start, end = np.float32(axis.part[0]), np.float32(axis.part[1])
        last = np.float32(axis.old - 1)
        if axis.new == 1:
            return np.full(1, half * (start + end) * last, dtype=np.float32)
        return start * last + steps * (end - start) * last / np.float32(axis.new - 1)
    raise NotInTorch(f"Resize with coordinates {rule}")


def _taps(call: OperatorCall, axis: _Axis, where: np.ndarray) -> _Taps:
    mode = call.get("mode", "nearest")
    if mode == "nearest":
        chosen = _nearest(call.get("nearest_mode", "round_prefer_floor"), axis, where)
        return np.clip(chosen, 0, axis.old - 1).astype(np.int64)[:, None], np.ones((axis.new, 1), dtype=np.float32)
    # Shrinking with antialias makes the filter as much wider; what then lies outside is the edge again.
    stretch = min(axis.scale, 1.0) if call.get("antialias", 0) else 1.0
    width = math.ceil((1 if mode == "linear" else 2) / stretch)
    near = np.floor(where)[:, None] + np.arange(1 - width, width + 1)
    distance = np.abs(near - where[:, None].astype(np.float64)) * stretch
    weights = np.maximum(1 - distance, 0.0) if mode == "linear" else _cubic(distance, call.get("cubic_coeff_a", -0.75))
    if call.get("exclude_outside", 0):
        weights = np.where((near >= 0) & (near < axis.old), weights, 0.0)
    weights = weights / weights.sum(1, keepdims=True)
    return np.clip(near, 0, axis.old - 1).astype(np.int64), weights.astype(np.float32)


def _nearest(rule: str, axis: _Axis, where: np.ndarray) -> np.ndarray:
    """To onnxruntime 1.32 what is within rounding errors of a half is one; not so with whole numbers."""
    rule = {"simple": "ceil" if axis.scale < 1 else "floor"}.get(rule, rule)
    below: np.ndarray = np.floor(where)
    if rule == "floor":
        return below
    if rule == "ceil":
        return below + (where > below)
    if rule not in ("round_prefer_floor", "round_prefer_ceil"):
        raise NotInTorch(f"Resize with nearest {rule}")
    beyond = where - below - np.float32(0.5)
    return below + np.where(np.abs(beyond) < HALF, rule == "round_prefer_ceil", beyond > 0)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys 1981, equation 15 for any slope `a`."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _mixed(x: Tensor, place: int, taps: _Taps) -> Tensor:
    """The sum over the taps of what they take times their weights, along one axis."""
    chosen, weights = (torch.from_numpy(array).to(x.device) for array in taps)
    if chosen.shape[1] == 1:
        return x.index_select(place, chosen[:, 0])
    if not x.is_floating_point():
        raise NotInTorch("interpolation of integers")
    weights = weights.to(x.dtype).reshape([len(weights), -1] + [1] * (x.dim() - 1 - place))
    parts = (x.index_select(place, chosen[:, tap]) * weights[:, tap] for tap in range(chosen.shape[1]))
    return sum(parts, start=torch.zeros((), dtype=x.dtype, device=x.device))


def grid_sample(call: OperatorCall, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(call.get("mode", "linear"), call.get("mode", "linear"))
    if mode == "bicubic" and x.dim() != 4:
        raise NotInTorch("cubic GridSample of volumes")
    padding, corners = call.get("padding_mode", "zeros"), bool(call.get("align_corners", 0))
    kind = torch.promote_types(x.dtype, grid.dtype)  # places need their digits
    return functional.grid_sample(x.to(kind), grid.to(kind), mode, padding, corners).to(x.dtype)


def affine_grid(call: OperatorCall, theta: Tensor, size: Tensor) -> Tensor:
    return functional.affine_grid(theta, ints(size), bool(call.get("align_corners", 0)))
