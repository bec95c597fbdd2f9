"""Multiply-accumulates (MACs) of every node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import onnx_ir as ir

from lepton_cli.graph.settle import settle
from lepton_cli.graph.shapes import calls, concrete

Shape = tuple[int, ...]
_Rule = Callable[[ir.Node, Sequence[Shape | None], Shape], int | None]


#: Where the operators below come from; others may only be named alike.
_DOMAINS = ("", "com.microsoft")
#: Inputs that rules read.
_MOST_READ = 4


def macs(model: ir.Model, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """MACs by node name for the given concrete shapes; nodes without multiplications or with open shapes are absent.

    Convolutions count kernel x input channels per group for each output element; matrix products count K for each
    output element; recurrent layers count their two products per gate and time step; Einsum counts every combination of
    its indices, once for each operand behind the first. Bias, activation and normalisation are not counted, as is usual
    in the field. Nodes of subgraphs are not counted, see `count`.
    """
    found: dict[str, int] = {}
    for node in model.graph:
        if not node.outputs or node.outputs[0].name not in shapes:
            continue
        inputs = [shapes.get(value.name or "") if value is not None else None for value in node.inputs]
        count = _of(node, inputs, shapes[node.outputs[0].name or ""])
        if count is not None:
            found[node.name or ""] = count
    return found


def count(model: ir.Model, feeds: Mapping[str, Shape], *, run: bool) -> dict[str, int]:
    """MACs by node name for inputs of the shapes `feeds`, branches and loop bodies included where the model may `run`.

    These count as they are run on zeros: the branch that is taken then, the body as often as it is passed.
    """
    found = macs(model, concrete(model, feeds) if run else settle(model, feeds)[0])
    if run:
        nodes = {node.name or "": node for node in model.graph.all_nodes()}
        for call in calls(model, feeds):
            given = iter(call.inputs)
            inputs = [None if value is None else next(given, None) for value in nodes[call.node].inputs]
            more = _of(nodes[call.node], inputs, call.output)
            if more is not None:
                found[call.node] = found.get(call.node, 0) + more
    return found


def multiplies(node: ir.Node) -> bool:
    """Is this a node whose MACs are counted where its shapes are known?"""
    return node.op_type in _RULES and node.domain in _DOMAINS


def _of(node: ir.Node, inputs: list[Shape | None], output: Shape) -> int | None:
    return (
        None
        if not multiplies(node)
        else _RULES[node.op_type](node, inputs + [None] * (_MOST_READ - len(inputs)), output)
    )


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


def _einsum(node: ir.Node, inputs: Sequence[Shape | None], output: Shape) -> int | None:
    """All combinations of the indices; what stands for `...` is as large as in the operand that has most of it."""
    terms = node.attributes.get_string("equation", "").replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    rest = 1
    for term, shape in zip(terms, inputs, strict=False):
        if shape is None:
            return None
        first, dots, last = term.partition("...")
        behind = len(shape) - len(last)
        rest = max(rest, prod(shape[len(first) : behind])) if dots else rest
        for letter, size in [*zip(first, shape, strict=False), *zip(last, shape[behind:], strict=False)]:
            sizes[letter] = max(sizes.get(letter, 1), size)
    return prod(sizes.values()) * rest * (len(terms) - 1)


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
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "DynamicQuantizeLSTM": _recurrent,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
    "QAttention": _attention,
}
