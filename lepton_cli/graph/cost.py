"""Multiply-accumulates (MACs) of every node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import onnx_ir as ir

Shape = tuple[int, ...]
_Rule = Callable[[ir.Node, Sequence[Shape | None], Shape], int | None]


#: Where the operators below come from; others may only be named alike.
_DOMAINS = ("", "com.microsoft")
#: Inputs that rules read.
_MOST_READ = 4


def macs(model: ir.Model, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """MACs by node name for the given concrete shapes; nodes without multiplications or with open shapes are absent.

    Convolutions count kernel x input channels per group for each output element; matrix products count K for each
    output element; recurrent layers count their two products per gate and time step. Bias, activation and
    normalisation are not counted, as is usual in the field. Nodes of subgraphs are not counted.
    """
    found: dict[str, int] = {}
    for node in model.graph:
        rule = _RULES.get(node.op_type) if node.domain in _DOMAINS else None
        if rule is None or not node.outputs or node.outputs[0].name not in shapes:
            continue
        inputs = [shapes.get(value.name or "") if value is not None else None for value in node.inputs]
        inputs += [None] * (_MOST_READ - len(inputs))
        count = rule(node, inputs, shapes[node.outputs[0].name or ""])
        if count is not None:
            found[node.name or ""] = count
    return found


def _conv(weight: int) -> _Rule:
    """Output elements x (input channels per group x kernel)."""

    def rule(node: ir.Node, inputs: Sequence[Shape | None], output: Shape) -> int | None:
        shape = inputs[weight]
        return None if shape is None else prod(output) * prod(shape[1:])

    return rule


def _conv_transpose(node: ir.Node, inputs: Sequence[Shape | None], output: Shape) -> int | None:
    """Input elements x (output channels per group x kernel)."""
    if inputs[0] is None or inputs[1] is None:
        return None
    return prod(inputs[0]) * prod(inputs[1][1:])


def _matmul(left: int) -> _Rule:
    def rule(node: ir.Node, inputs: Sequence[Shape | None], output: Shape) -> int | None:
        shape = inputs[left]
        if not shape:
            return None
        transposed = node.attributes.get_int("transA", 0)
        return prod(output) * (shape[-2] if transposed and len(shape) > 1 else shape[-1])

    return rule


def _matmul_nbits(node: ir.Node, inputs: Sequence[Shape | None], output: Shape) -> int | None:
    return prod(output) * node.attributes.get_int("K", 0)


def _recurrent(node: ir.Node, inputs: Sequence[Shape | None], output: Shape) -> int | None:
    x, w, r = inputs[0], inputs[1], inputs[2]
    if x is None or w is None or r is None or len(x) != 3:
        return None
    layout = node.attributes.get_int("layout", 0)
    steps, batch = (x[1], x[0]) if layout else (x[0], x[1])
    return steps * batch * (prod(w) + prod(r))


def _attention(node: ir.Node, inputs: Sequence[Shape | None], output: Shape) -> int | None:
    """Q K^T and the product with V; onnxruntime's own operator also projects its input to Q, K and V."""
    first, second = inputs[0], inputs[1]
    if first is None or second is None or len(first) < 3 or len(second) < 2:
        return None
    if node.domain == "" or node.op_type == "MultiHeadAttention":
        return (prod(first) + prod(output)) * second[-2]
    batch, length = first[:2]
    return batch * length * prod(second) + 2 * batch * length * length * output[-1]


_RULES: dict[str, _Rule] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "Gemm": _matmul(0),
    "FusedGemm": _matmul(0),
    "QGemm": _matmul(0),
    "MatMul": _matmul(0),
    "FusedMatMul": _matmul(0),
    "MatMulInteger": _matmul(0),
    "MatMulIntegerToFloat": _matmul(0),
    "DynamicQuantizeMatMul": _matmul(0),
    "QLinearMatMul": _matmul(0),
    "MatMulNBits": _matmul_nbits,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "DynamicQuantizeLSTM": _recurrent,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
    "QAttention": _attention,
}
