"""Sums and their kin along axes: reductions, places of extremes, running sums, Einstein's sums."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator, ints


def reduction(function: Callable[[Tensor, list[int], bool], Tensor], each: Callable[[Tensor], Tensor]) -> TorchOperator:
    """An operator that reduces the axes of an attribute or, later, an input; without either all of them, or with
    `noop_with_empty_axes` none: then `each` is what is left of the function.
    """

    def operator(call: OperatorCall, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = call.get("axes") if axes is None else axes
        places = [] if given is None else ints(given)
        if not places and call.get("noop_with_empty_axes", 0):
            return each(x)
        places = [axis % x.dim() for axis in places] or list(range(x.dim()))
        return function(x, places, bool(call.get("keepdims", 1)))

    return operator


def same(x: Tensor) -> Tensor:
    return x


def total(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """torch adds small integers up as int64, the standard does not."""
    return x.sum(axes, keep, dtype=x.dtype)


def mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keep)
    return torch.div(total(x, axes, keep), math.prod(x.shape[axis] for axis in axes), rounding_mode="trunc")


def product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keep, dtype=x.dtype)
    return x


def largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Of nothing: the least number of the type."""
    if any(x.shape[axis] == 0 for axis in axes):
        return total(x, axes, keep).fill_(_extreme(x.dtype, -1))
    return x.amax(axes, keep)


def smallest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Of nothing: the greatest number of the type."""
    if any(x.shape[axis] == 0 for axis in axes):
        return total(x, axes, keep).fill_(_extreme(x.dtype, 1))
    return x.amin(axes, keep)


def _extreme(kind: torch.dtype, sign: int) -> float:
    if kind.is_floating_point:
        return sign * math.inf
    if kind == torch.bool:
        return sign > 0
    return int(torch.iinfo(kind).max if sign > 0 else torch.iinfo(kind).min)


def norm_1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return total(x.abs(), axes, keep)


def norm_2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Its gradient at zero is zero, not the infinity of a square root."""
    if not x.is_floating_point():
        return total(x * x, axes, keep).double().sqrt().to(x.dtype)
    return torch.linalg.vector_norm(x, 2, axes, keep)


def square_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return total(x * x, axes, keep)


def log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return total(x, axes, keep).log()


def log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keep)


def place_of_extreme(find: Callable[..., Tensor]) -> TorchOperator:
    """ArgMax and ArgMin: the first of equals, or with `select_last_index` the last."""

    def operator(call: OperatorCall, x: Tensor) -> Tensor:
        axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
        if not call.get("select_last_index", 0):
            return find(x, dim=axis, keepdim=keep)
        return x.shape[axis] - 1 - find(x.flip(axis), dim=axis, keepdim=keep)

    return operator


def top_k(call: OperatorCall, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of equals the first come first, which torch.topk does not promise; a stable sort does."""
    axis, count = call.get("axis", -1), ints(call["k"] if k is None else k)[0]
    values, places = torch.sort(x, dim=axis, descending=bool(call.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def cumulative(function: Callable[..., Tensor], start: int) -> TorchOperator:
    """CumSum and CumProd; `exclusive` leaves out the element itself, so that the first is `start`."""

    def operator(call: OperatorCall, x: Tensor, axis: Tensor) -> Tensor:
        along, back = ints(axis)[0], bool(call.get("reverse", 0))
        x = x.flip(along) if back else x
        made = function(x, along, dtype=x.dtype)
        if call.get("exclusive", 0) and x.shape[along]:
            first = torch.full_like(made.narrow(along, 0, 1), start)
            made = torch.cat([first, made.narrow(along, 0, x.shape[along] - 1)], along)
        return made.flip(along) if back else made

    return operator


def einsum(call: OperatorCall, *inputs: Tensor) -> Tensor:
    return torch.einsum(call["equation"], *inputs)


def det(call: OperatorCall, x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise NotInTorch("determinants of integers")
    return torch.linalg.det(x)
