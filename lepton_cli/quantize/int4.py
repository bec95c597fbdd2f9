"""Weights of 8 bits in 4: stored so, and widened to 8 by a Cast that onnxruntime computes once, when it loads the file.

The layer is then the int8 kernel that it was; the file is what gets smaller. DequantizeLinear of 4 bits would be
computed in float, at every run. Rounding to 16 steps destroys most networks: it takes training to live with them.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph import clean, shapes
from lepton_cli.graph.edit import Editor, array_of, is_constant
from lepton_cli.graph.opset import raised
from lepton_cli.step import Decision

#: The operator set that brought the type.
OPSET = 21
#: Ends of the codes, and the scales that are tried, as shares of the one that cuts nothing.
LOW, HIGH = -8, 7
_SHARES = np.linspace(0.4, 1.05, 40)
#: A convolution of fewer weights a channel (depthwise) saves little and errs much; so does a layer at an end of the
#: model with at most this share of all weights.
_FEW, _SMALL = 32, 0.1
_MOVES = frozenset(
    {
        "Cast",
        "DequantizeLinear",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "QuantizeLinear",
        "Reshape",
        "Slice",
        "Softmax",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def narrowed(model: ir.Model, allowed: Collection[str]) -> tuple[ir.Model | None, list[Decision]]:
    """A copy with int8 weights of the layers `allowed` in 4 bits; `None` where onnx cannot convert the model.

    Biases are as they were: their scales no longer fit those of the weights, until they are written anew.
    """
    made = raised(model, OPSET)
    if made is None:
        return None, []
    editor, decisions = Editor(made), []
    for node in made.graph:
        layers = [use.node for use in node.outputs[0].uses()]
        if node.op_type != "DequantizeLinear" or not layers or not {one.name for one in layers} <= set(allowed):
            continue
        if not is_constant(node.inputs[0]) or any(one.op_type not in _LAYERS for one in layers):
            continue
        codes, scale, zero = (array_of(node, index) if index < len(node.inputs) else None for index in range(3))
        if (
            codes is None
            or scale is None
            or codes.dtype != np.int8
            or codes.ndim < 2
            or (zero is not None and zero.any())
        ):
            continue
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        found, steps = nearest(
            codes.astype(np.float32) * _along(scale, codes.ndim, axis), None if scale.ndim == 0 else axis
        )
        name = (node.inputs[0].name if node.inputs[0] is not None else None) or ""
        stored = editor.constant(f"{name}_int4", found.astype(ml_dtypes.int4))
        cast = ir.node("Cast", [stored], {"to": int(ir.DataType.INT8)}, name=editor.name(f"{name}_widened"))
        editor.insert_before(node, [cast])
        node.replace_input_with(0, cast.outputs[0])
        editor.give(node, 1, steps.reshape(scale.shape), f"{name}_int4_scale")
        decisions += [
            Decision(node=one.name or "", op=one.op_type, action="quantized", reason="weights in 4 bits")
            for one in layers
        ]
    clean.remove_unused(made)
    shapes.annotate(made)
    return made, decisions


def nearest(weight: NDArray[np.float32], axis: int | None) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes and scales (of each channel along `axis`; `None`: one) with the least squared error."""
    rest = tuple(other for other in range(weight.ndim) if other != axis)
    whole = np.abs(weight).max(rest, keepdims=True).astype(np.float64) / HIGH
    whole = np.where(whole > 0, whole, 1.0)
    best, least = whole, np.full(whole.shape, np.inf)
    for share in _SHARES:
        scale = whole * share
        error = np.square(np.clip(np.rint(weight / scale), LOW, HIGH) * scale - weight).sum(rest, keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    steps = best.astype(np.float32)
    return np.clip(np.rint(weight / steps), LOW, HIGH).astype(np.int8), steps


def _along(scale: NDArray[np.float32], axes: int, axis: int) -> NDArray[np.float32]:
    shape = [1] * axes
    if scale.ndim:
        shape[axis] = -1
    return scale.reshape(shape)


def eight_bits(model: ir.Model) -> set[str]:
    """Names of layers that 4 bits cost most and save least: those that read an input of the model or make an output,
    where they hold few of the weights, and convolutions of few weights a channel."""
    ends = set(model.graph.outputs)
    layers = {node: _weights(node) for node in model.graph if node.op_type in _LAYERS}
    few = _SMALL * sum(math.prod(shape) for shape in layers.values())
    return {
        node.name or ""
        for node, shape in layers.items()
        if (node.op_type == "Conv" and math.prod(shape[1:]) < _FEW)
        or (
            math.prod(shape) <= few
            and (_from_input(node.inputs[0]) or any(_reaches(value, ends) for value in node.outputs))
        )
    }


def _weights(node: ir.Node) -> tuple[int, ...]:
    """The shape of the weights; empty sides where it is not known."""
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    return tuple(shape.numpy()) if shape is not None and shape.is_static() else (0, 0)


def _from_input(value: ir.Value | None) -> bool:
    """Whether only moves and quantization lie between a model's input and the value."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in _MOVES:
            return False
        value = node.inputs[0]
    return value is not None


def _reaches(value: ir.Value, ends: Collection[ir.Value]) -> bool:
    if value in ends:
        return True
    return any(
        use.node.op_type in _MOVES and any(_reaches(made, ends) for made in use.node.outputs) for use in value.uses()
    )
