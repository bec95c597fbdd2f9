"""Quantization as training sees it: numbers rounded as onnxruntime rounds them, gradients as if they were not.

A quantized tensor is held as whole numbers **of a floating type**, so that gradients pass; `QuantizeLinear` returns
float32 (float64 of float64), and `DequantizeLinear` takes that as well as integers. Rounding counts as the identity,
the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432), and values outside of the range pass no gradient.
For the scale that makes the gradients of learned step size quantization (Esser et al. 2020, arXiv 1902.08153).
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from lepton_cli.train.operators.call import TYPES, NotInTorch, OperatorCall

#: The least and the greatest number of the types that quantized values have.
RANGES: dict[ir.DataType, tuple[int, int]] = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
    ir.DataType.UINT16: (0, 65535),
}
_NAMES = {kind: name for name, kind in TYPES.items()}


def quantize_linear(call: OperatorCall, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Whole numbers of the zero point's type, of `output_dtype`, or uint8, one scale for all, an axis or a block. 4-bit
    types have to be named by the attribute.
    """
    kind = ir.DataType(call.get("output_dtype", 0))
    if kind == ir.DataType.UNDEFINED:
        kind = ir.DataType.UINT8 if zero is None else _NAMES[zero.dtype]
    if kind not in RANGES:
        raise NotInTorch(f"quantization to {kind.name}")
    scale, zero = spread(call, x, scale), None if zero is None else spread(call, x, zero)
    return rounded(x, scale, zero, *RANGES[kind])


def rounded(x: Tensor, scale: Tensor, zero: Tensor | None, low: int, high: int) -> Tensor:
    """`x / scale + zero` as whole numbers in `low ... high`, half to even, straight-through. Cut before it is rounded,
    as in the paper: beyond the range's ends nothing passes to `x`.
    """
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    ratio = x.to(kind) / scale.to(kind)
    if zero is None:
        return _straight(ratio.clamp(low, high))
    zero = zero.to(kind)
    return _straight(ratio.clamp(low - zero, high - zero)) + zero


def dequantize_linear(call: OperatorCall, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """`(x - zero) * scale`, of the scale's type or `output_dtype`; `x` integers, or floats that are whole numbers."""
    kind = ir.DataType(call.get("output_dtype", 0))
    if kind != ir.DataType.UNDEFINED and kind not in TYPES:
        raise NotInTorch(f"torch has no {kind.name} tensors")
    made = scale.dtype if kind == ir.DataType.UNDEFINED else TYPES[kind]
    exact = torch.float64 if scale.dtype == torch.float64 else torch.float32
    steps = x.to(exact)
    if zero is not None:
        steps = steps - spread(call, x, zero).to(exact)
    return (steps * spread(call, x, scale).to(exact)).to(made)


def dynamic_quantize_linear(call: OperatorCall, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """To uint8, by the range that `x` has together with zero; the zero point too is a whole number of a floating
    type.
    """
    x = x if x.dtype == torch.float64 else x.float()
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = torch.where(low == high, torch.ones_like(low), (high - low) / 255)
    zero = _straight((-low / scale).clamp(0, 255))
    return rounded(x, scale, zero, 0, 255), scale, zero


def _straight(x: Tensor) -> Tensor:
    """The nearest whole number, half to even, exactly: numbers so near each other differ by one that floats have."""
    return x + (x.round() - x).detach()


def spread(call: OperatorCall, x: Tensor, values: Tensor) -> Tensor:
    """Scales or zero points in a shape that broadcasts against `x`."""
    axis = call.get("axis", 1)
    if call.get("block_size", 0):
        return values.repeat_interleave(call["block_size"], axis).narrow(axis, 0, x.shape[axis])
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)
