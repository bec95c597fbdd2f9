"""Activations, one element at a time, and the softmax family over an axis."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator

#: Klambauer et al. 2017, in the digits of the standard.
SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def celu(call: OperatorCall, x: Tensor) -> Tensor:
    return functional.celu(x, call.get("alpha", 1.0))


def elu(call: OperatorCall, x: Tensor) -> Tensor:
    return functional.elu(x, call.get("alpha", 1.0))


def selu(call: OperatorCall, x: Tensor) -> Tensor:
    return call.get("gamma", SELU_GAMMA) * functional.elu(x, call.get("alpha", SELU_ALPHA))


def leaky_relu(call: OperatorCall, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call.get("alpha", 0.01))


def p_relu(call: OperatorCall, x: Tensor, slope: Tensor) -> Tensor:
    """One slope, or one a channel, in a single kernel of torch; others by broadcasting."""
    slope = slope.to(x.dtype)
    if slope.numel() == 1 and slope.dim() <= x.dim():
        return functional.prelu(x, slope.reshape(1))
    if x.dim() > 1 and slope.dim() == x.dim() - 1 and slope.shape[0] == slope.numel() == x.shape[1]:
        return functional.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def thresholded_relu(call: OperatorCall, x: Tensor) -> Tensor:
    return functional.threshold(x, call.get("alpha", 1.0), 0.0)


def gelu(call: OperatorCall, x: Tensor) -> Tensor:
    """Hendrycks and Gimpel 2016: by the error function, or its approximation by tanh."""
    return functional.gelu(x, approximate=call.get("approximate", "none"))


def hard_sigmoid(call: OperatorCall, x: Tensor) -> Tensor:
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if beta == 0.5 and abs(alpha - 1 / 6) < 1e-7:
        return functional.hardsigmoid(x)
    return (alpha * x + beta).clamp(0, 1)


def swish(call: OperatorCall, x: Tensor) -> Tensor:
    alpha = call.get("alpha", 1.0)
    return functional.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def shrink(call: OperatorCall, x: Tensor) -> Tensor:
    bias, edge = call.get("bias", 0.0), call.get("lambd", 0.5)
    inside = torch.where(x < -edge, x + bias, torch.zeros_like(x))
    return torch.where(x > edge, x - bias, inside).to(x.dtype)


def dropout(
    call: OperatorCall, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As in inference: nothing is dropped, and the mask says so. Raises NotInTorch where a model drops by itself."""
    if training is not None and bool(training) and (ratio is None or float(ratio) > 0):
        raise NotInTorch("Dropout that draws random numbers")
    return x, torch.ones_like(x, dtype=torch.bool if call.opset >= 10 else x.dtype)


def over_axis(function: Callable[[Tensor, int], Tensor]) -> TorchOperator:
    """Softmax and its kin: along `axis` (the last) since opset 13; before, over all axes from `axis` (1) on at once."""

    def operator(call: OperatorCall, x: Tensor) -> Tensor:
        if call.opset >= 13:
            return function(x, call.get("axis", -1))
        axis = call.get("axis", 1)
        axis += x.dim() if axis < 0 else 0
        if axis == x.dim() - 1:
            return function(x, -1)
        rows = x.reshape(x.shape[:axis].numel(), -1)
        return function(rows, -1).reshape(x.shape)

    return operator


def hard_max(x: Tensor, axis: int) -> Tensor:
    """One at the first largest place, zero elsewhere."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)
