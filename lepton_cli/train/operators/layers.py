"""Convolutions and matrix products, also as onnxruntime fuses them with what follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lepton_cli.train.operators.call import NotInTorch, OperatorCall
from lepton_cli.train.operators.windows import padded, windows


def conv(call: OperatorCall, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv over one to three spatial axes."""
    rank = weight.dim() - 2
    run = _kernel((functional.conv1d, functional.conv2d, functional.conv3d), rank, "Conv")
    shape = windows(call, weight.shape[2:], x.shape[2:])
    padding = shape.begin
    if not shape.symmetric:
        x, padding = padded(x, shape.begin, shape.end), [0] * rank
    return run(x, weight, bias, shape.strides, padding, shape.dilations, call.get("group", 1))


def conv_transpose(call: OperatorCall, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """ConvTranspose over one to three spatial axes."""
    rank = weight.dim() - 2
    run = _kernel(
        (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d), rank, "ConvTranspose"
    )
    shape = windows(call, weight.shape[2:], x.shape[2:])
    group, extra = call.get("group", 1), list(call.get("output_padding") or [0] * rank)
    begin, end = shape.begin, shape.end
    same = call.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    if "output_shape" in call or same:
        wanted = list(
            call.get("output_shape") or [n * step for n, step in zip(x.shape[2:], shape.strides, strict=True)]
        )
        full = [
            step * (size - 1) + more + extent
            for step, size, more, extent in zip(shape.strides, x.shape[2:], extra, shape.extents, strict=True)
        ]
        totals = [have - want for have, want in zip(full, wanted[-rank:], strict=True)]
        begin = [total // 2 for total in totals]
        end = [total - first for total, first in zip(totals, begin, strict=True)]
        if call.get("auto_pad", "NOTSET") != "SAME_UPPER":
            begin, end = end, begin
    small = all(more < max(steps) for more, *steps in zip(extra, shape.strides, shape.dilations, strict=True))
    if begin == end and min(begin) >= 0 and small:
        return run(x, weight, bias, shape.strides, begin, extra, group, shape.dilations)
    y = run(x, weight, None, shape.strides, 0, 0, group, shape.dilations)
    cut = [more - last for more, last in zip(extra, end, strict=True)]
    y = padded(y, [-first for first in begin], cut)
    return y if bias is None else y + bias.to(y.dtype).reshape(-1, *[1] * rank)


def fused_conv(
    call: OperatorCall, x: Tensor, weight: Tensor, bias: Tensor | None = None, addend: Tensor | None = None
) -> Tensor:
    """com.microsoft FusedConv: a convolution, what is added to it, and an activation."""
    y = conv(call, x, weight, bias)
    if addend is not None:
        y = y + addend
    name, parameters = call.get("activation", ""), list(call.get("activation_params") or [])
    if name == "Clip":
        return y.clamp(parameters[0], parameters[1])
    return activation(name, *parameters)(y) if name else y


def gemm(call: OperatorCall, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm: alpha * A' B' + beta * C."""
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    a = a.t() if call.get("transA", 0) else a
    b = b.t() if call.get("transB", 0) else b
    if c is None:
        y = torch.mm(a, b)
        return y if alpha == 1 else y * alpha
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


def fused_gemm(call: OperatorCall, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """com.microsoft FusedGemm: Gemm and an activation, whose parameters are attributes of their own."""
    y = gemm(call, a, b, c)
    name = call.get("activation", "")
    return activation(name, call.get("activation_alpha"), call.get("activation_beta"))(y) if name else y


def matmul(call: OperatorCall, a: Tensor, b: Tensor) -> Tensor:
    """MatMul, with numpy's broadcasting of the axes before the last two."""
    return torch.matmul(a, b)


def fused_matmul(call: OperatorCall, a: Tensor, b: Tensor) -> Tensor:
    """com.microsoft FusedMatMul: alpha times the product of the transposed inputs. `transBatch` says that the axes of
    the batch stand between the last two of the matrix.
    """
    a = _turned(a, bool(call.get("transA", 0)), bool(call.get("transBatchA", 0)))
    b = _turned(b, bool(call.get("transB", 0)), bool(call.get("transBatchB", 0)))
    y, alpha = torch.matmul(a, b), call.get("alpha", 1.0)
    return y if alpha == 1 else y * alpha


def _turned(x: Tensor, matrix: bool, batch: bool) -> Tensor:
    if x.dim() < 2:
        return x
    if batch:
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if matrix else x


def activation(name: str, alpha: float | None = None, beta: float | None = None) -> Callable[[Tensor], Tensor]:
    """The activation that an attribute names (in any case: onnxruntime asks no more), with the standard's parameters
    unless others are given. Raises NotInTorch for a name that is none.
    """
    first = {"leakyrelu": 0.01, "hardsigmoid": 0.2}.get(name.lower(), 1.0) if alpha is None else alpha
    second = {"hardsigmoid": 0.5, "scaledtanh": 1.0}.get(name.lower(), 0.0) if beta is None else beta
    named: dict[str, Callable[[Tensor], Tensor]] = {
        "affine": lambda x: first * x + second,
        "elu": lambda x: functional.elu(x, first),
        "hardsigmoid": lambda x: (first * x + second).clamp(0, 1),
        "leakyrelu": lambda x: functional.leaky_relu(x, first),
        "relu": functional.relu,
        "scaledtanh": lambda x: first * torch.tanh(second * x),
        "sigmoid": torch.sigmoid,
        "softplus": functional.softplus,
        "softsign": functional.softsign,
        "tanh": torch.tanh,
        "thresholdedrelu": lambda x: torch.where(x > first, x, torch.zeros_like(x)),
    }
    if name.lower() not in named:
        raise NotInTorch(f"the activation {name}")
    return named[name.lower()]


def _kernel(kernels: Sequence[Callable[..., Tensor]], rank: int, name: str) -> Callable[..., Tensor]:
    if not 1 <= rank <= len(kernels):
        raise NotInTorch(f"{name} over {rank} spatial axes")
    return kernels[rank - 1]
