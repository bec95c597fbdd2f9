"""Pooling over windows and over everything."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lepton_cli.train.operators.call import NotInTorch, OperatorCall
from lepton_cli.train.operators.windows import Windows, padded, windows


def max_pool(call: OperatorCall, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """MaxPool. Raises NotInTorch for indices where the padding is not torch's own."""
    shape, ceil = _windows(call, x), bool(call.get("ceil_mode", 0))
    floats = x if x.is_floating_point() else x.float()  # 8-bit integers, which a float holds exactly
    run = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(shape.kernel) - 1]
    own = _in_kernel(shape)
    if call.outputs > 1:
        if not own:
            raise NotInTorch("indices of MaxPool with uneven or wide padding")
        y, places = run(
            floats, shape.kernel, shape.strides, shape.begin, shape.dilations, ceil_mode=ceil, return_indices=True
        )
        return y.to(x.dtype), _indices(places, x.shape, bool(call.get("storage_order", 0)))
    if own:
        return run(floats, shape.kernel, shape.strides, shape.begin, shape.dilations, ceil_mode=ceil).to(x.dtype)
    filled = shape.filled(floats, -math.inf, ceil)
    return run(filled, shape.kernel, shape.strides, 0, shape.dilations).to(x.dtype)


def average_pool(call: OperatorCall, x: Tensor) -> Tensor:
    """AveragePool. Windows that hang over the end (`ceil_mode`) count what is there."""
    shape, ceil, include = _windows(call, x), bool(call.get("ceil_mode", 0)), bool(call.get("count_include_pad", 0))
    if _in_kernel(shape) and max(shape.dilations) == 1:
        run = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(shape.kernel) - 1]
        return run(x, shape.kernel, shape.strides, shape.begin, ceil, include)
    counted = x.new_ones(1, 1, *x.shape[2:])
    if include:
        counted = padded(counted, shape.begin, shape.end, value=1.0)
        bare = dataclasses.replace(shape, begin=[0] * len(shape.kernel), end=[0] * len(shape.kernel))
        share = _means(bare.filled(counted, 0.0, ceil), bare)
        share = share[(..., *(slice(count) for count in shape.counts(x.shape[2:], ceil)))]
    else:
        share = _means(shape.filled(counted, 0.0, ceil), shape)
    return _means(shape.filled(x, 0.0, ceil), shape) / share


def lp_pool(call: OperatorCall, x: Tensor) -> Tensor:
    """LpPool: the p-norm of each window."""
    shape, power = _windows(call, x), call.get("p", 2)
    powers = shape.filled(x.abs().pow(power), 0.0, bool(call.get("ceil_mode", 0)))
    return root(_means(powers, shape) * math.prod(shape.kernel), power)


def global_average_pool(call: OperatorCall, x: Tensor) -> Tensor:
    """GlobalAveragePool."""
    return x.mean(_spatial(x), keepdim=True)


def global_max_pool(call: OperatorCall, x: Tensor) -> Tensor:
    """GlobalMaxPool."""
    return x.amax(_spatial(x), keepdim=True)


def global_lp_pool(call: OperatorCall, x: Tensor) -> Tensor:
    """GlobalLpPool: the p-norm of each channel."""
    power = call.get("p", 2)
    return root(x.abs().pow(power).sum(_spatial(x), keepdim=True), power)


def root(sums: Tensor, power: float) -> Tensor:
    """The root of sums of powers; its slope at zero is zero, not infinite, as after a ReLU whole windows are zero."""
    some = sums > 0
    roots = torch.where(some, sums, torch.ones_like(sums)).pow(1 / power)
    return torch.where(some, roots, torch.zeros_like(roots))


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


def _windows(call: OperatorCall, x: Tensor) -> Windows:
    if not 3 <= x.dim() <= 5:
        raise NotInTorch(f"pooling over {x.dim() - 2} spatial axes")
    return windows(call, call["kernel_shape"], x.shape[2:])


def _in_kernel(shape: Windows) -> bool:
    """Whether torch pads by itself: both ends alike and by at most half a window."""
    return shape.symmetric and all(2 * pad <= size for pad, size in zip(shape.begin, shape.kernel, strict=True))


def _means(x: Tensor, shape: Windows) -> Tensor:
    """The mean of each window of an input that needs no padding. torch's kernels have no holes; a convolution of each
    channel by itself has.
    """
    rank = len(shape.kernel)
    if max(shape.dilations) == 1:
        return (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1](
            x, shape.kernel, shape.strides
        )
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    weight = x.new_full((1, 1, *shape.kernel), 1 / math.prod(shape.kernel))
    made = run(x.reshape(-1, 1, *x.shape[2:]), weight, None, shape.strides, 0, shape.dilations)
    return made.reshape(*x.shape[:2], *made.shape[2:])


def _indices(places: Tensor, shape: Sequence[int], columns: bool) -> Tensor:
    """Places in one channel as places in the whole input, counted with the last axis fastest or the first."""
    if columns:
        strides = [math.prod(shape[2:axis]) for axis in range(2, len(shape))]
        rest, turned = places, torch.zeros_like(places)
        for size, stride in zip(reversed(shape[2:]), reversed(strides), strict=True):
            turned, rest = turned + rest % size * stride, rest // size
        places = turned
    channels = torch.arange(shape[0] * shape[1], device=places.device).reshape(shape[0], shape[1])
    return places + channels.reshape(shape[0], shape[1], *[1] * (len(shape) - 2)) * math.prod(shape[2:])
