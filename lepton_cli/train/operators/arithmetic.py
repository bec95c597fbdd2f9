"""Arithmetic, comparisons, logic and types: one element at a time, broadcast as numpy does.

Whatever is kept in channels_last order stays so. A bound or an exponent that is one number on the CPU is handed to
torch as a number, for which it has faster kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import onnx_ir as ir
import torch
from torch import Tensor

from lepton_cli.train.operators.call import TYPES, NotInTorch, OperatorCall, TorchOperator


def elementwise(function: Callable[..., Tensor]) -> TorchOperator:
    """An operator that has no attributes and whose inputs are those of the function."""
    return lambda call, *inputs: function(*inputs)


def broadcast(function: Callable[[Tensor, Tensor], Tensor]) -> TorchOperator:
    """An operator of two inputs. Before opset 7 they broadcast by attributes, which onnxruntime refuses too."""

    def operator(call: OperatorCall, x: Tensor, y: Tensor) -> Tensor:
        if call.opset < 7 and call.get("broadcast"):
            raise NotInTorch("broadcasting by attributes, before opset 7")
        return function(x, y)

    return operator


def folded(function: Callable[[Tensor, Tensor], Tensor]) -> TorchOperator:
    """An operator of one input or more, taken two at a time from the left."""
    return lambda call, *inputs: functools.reduce(function, inputs)


def quotient(x: Tensor, y: Tensor) -> Tensor:
    """Integers divide towards zero."""
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def mean(call: OperatorCall, *inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs) / len(inputs)


def power(call: OperatorCall, x: Tensor, y: Tensor) -> Tensor:
    """Of the base's type, whatever the exponent's."""
    return torch.pow(x, _number(y) if y.dim() <= x.dim() else y).to(x.dtype)


def mod(call: OperatorCall, x: Tensor, y: Tensor) -> Tensor:
    """The remainder has the divisor's sign, with `fmod` the dividend's."""
    return torch.fmod(x, y) if call.get("fmod", 0) else torch.remainder(x, y)


def bit_shift(call: OperatorCall, x: Tensor, y: Tensor) -> Tensor:
    shift = torch.bitwise_left_shift if call["direction"] == "LEFT" else torch.bitwise_right_shift
    return shift(x, y)


def cast(call: OperatorCall, x: Tensor) -> Tensor:
    """Floats lose their fraction on the way to integers."""
    kind = ir.DataType(call["to"])
    if kind not in TYPES:
        raise NotInTorch(f"torch has no {kind.name} tensors")
    return x.to(TYPES[kind])


def cast_like(call: OperatorCall, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def is_inf(call: OperatorCall, x: Tensor) -> Tensor:
    if call.get("detect_negative", 1) and call.get("detect_positive", 1):
        return torch.isinf(x)
    if call.get("detect_positive", 1):
        return torch.isposinf(x)
    return torch.isneginf(x) if call.get("detect_negative", 1) else torch.zeros_like(x, dtype=torch.bool)


def clip(call: OperatorCall, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are attributes before opset 11, inputs after. Where they cross, the upper one holds."""
    bounds = [call.get("min"), call.get("max")] if call.opset < 11 else [_bound(low, x), _bound(high, x)]
    least, most = bounds
    if least is None and most is None:
        return x
    if isinstance(least, Tensor) != isinstance(most, Tensor):
        # torch takes two numbers or two tensors.
        least, most = (
            torch.as_tensor(one, dtype=x.dtype, device=x.device) if one is not None else None for one in bounds
        )
    return torch.clamp(x, least, most)


def _bound(value: Tensor | None, x: Tensor) -> Tensor | float | None:
    return None if value is None or not value.numel() else _number(value.to(x.dtype))


def _number(value: Tensor) -> Tensor | float:
    """As a number if that is one, costs no wait for a device, and cuts no gradient."""
    if value.numel() != 1 or value.requires_grad or value.device.type != "cpu":
        return value
    number: float = value.item()
    return number
