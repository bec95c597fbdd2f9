"""Which tensors of a graph are weights, of which node, and how many of their values are not zero.

A quantized weight is zero where it equals its zero point. Weights are followed through the nodes that only unpack or
reorder them (DequantizeLinear, Transpose, Cast…) to the node that computes with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph.held import scales_stored
from lepton_cli.model.external import pieces

_FLOATS = {"float16", "bfloat16", "float32", "float64"}
#: Stored forms of quantized weights.
_QUANTIZED = {"int8", "uint8", "int4", "uint4", "int2", "uint2", "int16", "uint16"}
#: Nodes that pass a weight on without computing with it.
_CARRIERS = {"DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze"}
#: Inputs that are scales, zero points or settings, by operator: not parameters whatever their type.
_SETTINGS = {
    "QuantizeLinear": {1, 2},
    "DequantizeLinear": {1, 2},
    "QLinearConv": {1, 2, 4, 5, 6, 7},
    "QLinearMatMul": {1, 2, 4, 5, 6, 7},
    "QLinearAdd": {1, 2, 4, 5, 6, 7},
    "QLinearMul": {1, 2, 4, 5, 6, 7},
    "QGemm": {1, 2, 4, 5, 7, 8},
    "QAttention": {3, 4, 6, 7},
    "QEmbedLayerNormalization": set(range(8, 18)),
    "DynamicQuantizeLSTM": {8, 9, 10, 11},
    "MatMulIntegerToFloat": {2, 3, 4, 5},
    "ConvInteger": {2, 3},
    "MatMulInteger": {2, 3},
    "DynamicQuantizeMatMul": {2, 3},
    "MatMulNBits": {2, 3, 4},
    "GatherBlockQuantized": {2, 3},
    "Resize": {1, 2, 3},
    "Upsample": {1},
    "Clip": {1, 2},
    "Pad": {1, 2, 3},
    "OneHot": {1, 2},
    "Range": {0, 1, 2},
    "Where": {0},
    "Dropout": {1, 2},
}
#: Operator -> (weight input, its zero point, channel axis of the zero point counted from the end or start).
_ZERO_POINTS = {
    "QLinearConv": (3, 5, 0),
    "QLinearMatMul": (3, 5, -1),
    "QGemm": (3, 5, -1),
    "ConvInteger": (1, 3, 0),
    "MatMulInteger": (1, 3, -1),
    "MatMulIntegerToFloat": (1, 5, -1),
    "DynamicQuantizeMatMul": (1, 3, -1),
    "QAttention": (1, 7, -1),
}
#: A single number in one of these is part of a formula (x ** 2, x / 8), not a weight.
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Equal", "Greater", "Less", "Mod"}
#: Operators whose int32 input of that position is a quantized bias.
_BIASES = {"QLinearConv": 8, "QGemm": 6, "DequantizeLinear": 0}
#: Operators with several values packed into a byte: input position and the attribute with their width.
_PACKED = {"MatMulNBits": 1, "GatherBlockQuantized": 0}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight tensor and the node that computes with it."""

    node: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    nonzeros: int
    bytes: int


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every stored tensor: initializers and Constant nodes, subgraphs included."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and (tensor := _constant(node)) is not None:
            yield tensor


def find(model: ir.Model) -> Iterator[Weight]:
    """Every weight of the model, each once, in graph order of the nodes that use them."""
    seen: set[int] = set()
    for node in model.graph.all_nodes():
        for index, value in enumerate(node.inputs):
            tensor = _stored(value)
            if value is None or tensor is None or id(value) in seen or not _is_weight(node, index, tensor):
                continue
            seen.add(id(value))
            owner = _owner(node)
            parameters, nonzeros = _count(node, index, tensor)
            _let_go(tensor)
            yield Weight(
                node=owner.name or owner.op_type,
                op=owner.op_type,
                dtype=dtype_name(tensor)
                if node.op_type != "MatMulNBits"
                else f"int{node.attributes.get_int('bits', 4)}",
                shape=tuple(tensor.shape.numpy()),
                parameters=parameters,
                nonzeros=nonzeros,
                bytes=tensor.nbytes,
            )


def _let_go(tensor: ir.TensorProtocol) -> None:
    """Unmap a weight on disk that has been looked at: mapped files count as memory of the process."""
    if isinstance(tensor, ir.ExternalTensor):
        with contextlib.suppress(BufferError):  # someone else still reads it
            tensor.release()


def dtype_name(tensor: ir.TensorProtocol) -> str:
    """numpy's name of the stored type."""
    return "string" if tensor.dtype == ir.DataType.STRING else str(tensor.dtype.numpy())


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind a value: an initializer, or what a Constant node holds."""
    if value is None:
        return None
    if value.is_initializer():
        return value.const_value
    producer = value.producer()
    return _constant(producer) if producer is not None and producer.op_type == "Constant" else None


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    attribute = node.attributes.get("value")
    return attribute.as_tensor() if attribute is not None else None


def _is_weight(node: ir.Node, index: int, tensor: ir.TensorProtocol) -> bool:
    if index in _SETTINGS.get(node.op_type, ()) or (tensor.size == 1 and node.op_type.startswith("QLinear")):
        return False
    if scales_stored(node) or (node.op_type == "Mul" and any(map(_found_while_running, node.inputs))):
        return False
    name = dtype_name(tensor)
    if name in _FLOATS or name.startswith("float8"):
        return tensor.size > 1 or node.op_type not in _ELEMENTWISE
    if name == "int32":
        return _BIASES.get(node.op_type) == index
    return name in _QUANTIZED and tensor.size > 1 and node.op_type not in _ELEMENTWISE


def _found_while_running(value: ir.Value | None) -> bool:
    """Is this the scale of an activation? What it is multiplied by are the scales of a weight."""
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "DynamicQuantizeLinear"


def _owner(node: ir.Node) -> ir.Node:
    """The node that computes with what `node` carries."""
    while node.op_type in _CARRIERS or scales_stored(node):
        users = [use.node for use in node.outputs[0].uses()]
        if not users:
            break
        node = users[0]
    return node


def _count(node: ir.Node, index: int, tensor: ir.TensorProtocol) -> tuple[int, int]:
    """Elements, and those that are not zero."""
    if node.op_type in _PACKED and dtype_name(tensor) == "uint8":
        return _count_packed(node, tensor)
    if isinstance(tensor, ir.ExternalTensor) and dtype_name(tensor) in _FLOATS:
        return tensor.size, sum(int(np.count_nonzero(piece)) for piece in pieces(tensor))
    values = _numbers(tensor)
    zero = _zero_point(node, index, values)
    return values.size, int(np.count_nonzero(values != zero)) if zero is not None else int(np.count_nonzero(values))


def _numbers(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """Values in a type that numpy can compare; 4-bit types come unpacked from onnx-ir."""
    array = tensor.numpy()
    if array.dtype.kind == "V" or array.dtype.name in ("int4", "uint4", "int2", "uint2"):
        return array.astype(np.float32 if "float" in array.dtype.name else np.int8)
    return array


def _zero_point(node: ir.Node, index: int, values: NDArray[Any]) -> NDArray[Any] | None:
    """The zero point of a quantized weight, shaped to compare with it; `None` for 0 everywhere."""
    if node.op_type == "DequantizeLinear" and index == 0:
        position, axis = 2, node.attributes.get_int("axis", 1)
    elif _ZERO_POINTS.get(node.op_type, (None,))[0] == index:
        _, position, axis = _ZERO_POINTS[node.op_type]
    else:
        return None
    tensor = _stored(node.inputs[position]) if position < len(node.inputs) else None
    if tensor is None:
        return None
    zero = _numbers(tensor).astype(np.int32)
    if zero.size == 1:
        return zero.reshape(())
    if zero.ndim == values.ndim:  # blocks along one axis
        block = -(-values.shape[axis] // zero.shape[axis])
        return np.take(np.repeat(zero, block, axis=axis), np.arange(values.shape[axis]), axis=axis)
    return zero.reshape([-1 if i == axis % values.ndim else 1 for i in range(values.ndim)])


def _count_packed(node: ir.Node, tensor: ir.TensorProtocol) -> tuple[int, int]:
    """MatMulNBits: `B` is (N, blocks, bytes), several values a byte, low bits first; padding is not a parameter."""
    bits, width = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 32)
    packed = tensor.numpy()
    if packed.ndim != 3 or "K" not in node.attributes:
        per_byte = 8 // bits
        return packed.size * per_byte, int(np.count_nonzero(_unpack(packed, bits)))
    columns, rows = node.attributes.get_int("N", packed.shape[0]), node.attributes.get_int("K", 0)
    values = _unpack(packed.reshape(columns, packed.shape[1], -1), bits)[..., :width]
    zero_tensor = _stored(node.inputs[3]) if len(node.inputs) > 3 else None
    if zero_tensor is None:
        zero: NDArray[Any] = np.full((1, 1, 1), 1 << (bits - 1))
    elif dtype_name(zero_tensor) == "uint8":
        zero = _unpack(zero_tensor.numpy().reshape(columns, -1), bits)[:, : packed.shape[1], None]
    else:
        zero = zero_tensor.numpy().reshape(columns, -1)[:, : packed.shape[1], None]
    different = (values != zero).reshape(columns, -1)[:, :rows]
    return columns * rows, int(np.count_nonzero(different))


def _unpack(packed: NDArray[Any], bits: int) -> NDArray[Any]:
    """Values of the last axis, low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (packed[..., None] >> shifts) & ((1 << bits) - 1)
    return values.reshape(*packed.shape[:-1], -1)
