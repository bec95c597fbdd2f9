"""What onnxruntime makes of our QDQ placement, by the kernels of its optimised graph: pattern by pattern.

A version of onnxruntime that stops fusing one fails the test of that name. Where versions truly differ, the table says
so. What stands in float here, stays so for the reason beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lepton_cli.model import io
from lepton_cli.quantize import static
from lepton_cli.quantize.spec import QuantizeStatic
from lepton_cli.runtime import Session
from tests.quantize.builders import Graph, context

Build = Callable[[Graph], str]


def _ints(graph: Graph, *numbers: int) -> str:
    return graph.constant(np.array(numbers, np.int64))


def _number(graph: Graph, value: float) -> str:
    return graph.constant(np.float32(value))


def _image(graph: Graph) -> str:
    """What a convolution gives: [1, 16, 8, 8]."""
    return graph.conv(graph.take("x", [1, 16, 8, 8]), 16, 16, relu=False)


def _conv(graph: Graph, x: str, **options: Any) -> str:
    return graph.conv(x, 16, 16, relu=False, **options)


def _between(inner: Callable[[Graph, str], str], **options: Any) -> Build:
    """Between two convolutions."""
    return lambda graph: _conv(graph, inner(graph, _image(graph)), **options)


def _matmul(graph: Graph, x: str, bias: Any = 24, inner: int = 32) -> str:
    """A product with 24 columns; `bias`: the shape of what is added, `None` for nothing."""
    weight = graph.constant(graph.random.normal(size=(inner, 24)).astype(np.float32))
    y = str(graph.op("MatMul", x, weight))
    if bias is None:
        return y
    return str(graph.op("Add", y, graph.constant(graph.random.normal(size=bias).astype(np.float32))))


def _gemm(graph: Graph, x: str, inner: int = 32, outer: int = 24, **attributes: Any) -> str:
    shape = (outer, inner) if attributes.get("transB") else (inner, outer)
    weight, bias = (graph.random.normal(size=size).astype(np.float32) for size in (shape, outer))
    return str(graph.op("Gemm", x, graph.constant(weight), graph.constant(bias), **attributes))


def _products(inner: Callable[[Graph, str], str], *shape: int | str) -> Build:
    """Between two products with bias."""

    def build(graph: Graph) -> str:
        x = graph.take("x", [*shape, 32])
        return _matmul(graph, inner(graph, _matmul(graph, x)), inner=24)

    return build


def _residual(graph: Graph, x: str) -> str:
    return str(graph.op("Relu", graph.op("Add", _conv(graph, graph.op("Relu", _conv(graph, x))), x)))


def _silu(graph: Graph, x: str) -> str:
    return str(graph.op("Mul", x, graph.op("Sigmoid", x)))


def _hard_swish(form: str) -> Callable[[Graph, str], str]:
    def build(graph: Graph, x: str) -> str:
        if form == "HardSwish":
            return str(graph.op("HardSwish", x))
        if form == "HardSigmoid":
            return str(graph.op("Mul", x, graph.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)))
        return str(graph.op("Mul", x, _hard_sigmoid(form)(graph, x)))

    return build


def _hard_sigmoid(form: str) -> Callable[[Graph, str], str]:
    def build(graph: Graph, x: str) -> str:
        if form == "HardSigmoid":
            return str(graph.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))
        y = graph.op("Clip", graph.op("Add", x, _number(graph, 3)), _number(graph, 0), _number(graph, 6))
        return str(
            graph.op("Div", y, _number(graph, 6)) if form == "Div" else graph.op("Mul", y, _number(graph, 1 / 6))
        )

    return build


def _excited(pool: str, gate: str, form: str = "") -> Callable[[Graph, str], str]:
    """Squeeze-and-excite."""

    def build(graph: Graph, x: str) -> str:
        y = graph.op(pool, x) if pool == "GlobalAveragePool" else graph.op(pool, x, axes=[2, 3])
        y = graph.op("Relu", graph.conv(y, 16, 16, k=1, relu=False))
        y = graph.conv(y, 16, 16, k=1, relu=False)
        y = _hard_sigmoid(form)(graph, y) if form else graph.op(gate, y)
        return str(graph.op("Mul", x, y))

    return build


def _shuffle(graph: Graph, x: str) -> str:
    """ShuffleNet's: channels in two groups, interleaved."""
    x = graph.op("Transpose", graph.op("Reshape", x, _ints(graph, 1, 2, 8, 8, 8)), perm=[0, 2, 1, 3, 4])
    return str(graph.op("Reshape", x, _ints(graph, 1, 16, 8, 8)))


def _transposed(graph: Graph, x: str, stride: int = 2, k: int = 2) -> str:
    weight = graph.constant(graph.random.normal(size=(16, 16, k, k)).astype(np.float32))
    pads = [(k - stride) // 2] * 4
    bias = graph.constant(graph.random.normal(size=16).astype(np.float32))
    return str(graph.op("ConvTranspose", x, weight, bias, strides=[stride, stride], pads=pads))


def _halves(graph: Graph, x: str) -> str:
    first, second = graph.op("Split", x, _ints(graph, 8, 8), outputs=2, axis=1)
    return str(graph.op("Concat", second, first, axis=1))


def _with(op: str, *given: Any, **attributes: Any) -> Callable[[Graph, str], str]:
    """One operator, with constants behind its input: integers in tuples, numbers as they are, `None` for nothing."""

    def constant(graph: Graph, one: Any) -> str:
        if isinstance(one, tuple):
            return _ints(graph, *one)
        return "" if one is None else graph.constant(np.asarray(one, np.float32))

    return lambda graph, x: str(graph.op(op, x, *(constant(graph, one) for one in given), **attributes))


def _chain(*parts: Callable[[Graph, str], str]) -> Callable[[Graph, str], str]:
    def build(graph: Graph, x: str) -> str:
        for part in parts:
            x = part(graph, x)
        return x

    return build


def _classifier(graph: Graph) -> str:
    """Pooled or not, from images to rows."""
    x = graph.op("Flatten", graph.op("GlobalAveragePool", _image(graph)))
    return _gemm(graph, x, 16, 24, transB=1)


def _flattened(graph: Graph) -> str:
    return _gemm(
        graph, graph.op("Flatten", graph.op("MaxPool", _image(graph), kernel_shape=[4, 4], strides=[4, 4])), 64, 24
    )


def _sequence(graph: Graph) -> str:
    """Conv1d, pooling, Conv1d."""

    def conv(x: str) -> str:
        weight = graph.constant(graph.random.normal(size=(16, 16, 3)).astype(np.float32))
        return str(graph.op("Conv", x, weight, graph.constant(np.ones(16, np.float32)), pads=[1, 1]))

    return conv(graph.op("Relu", conv(graph.take("x", [1, 16, 32]))))


def _attention(*shape: int | str) -> Build:
    """Scores and their product with the values, two heads of 12."""

    def build(graph: Graph) -> str:
        x = graph.take("x", [*shape, 32])
        heads = []
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            split = graph.op("Reshape", _matmul(graph, x), _ints(graph, 0, -1, 2, 12))
            heads.append(graph.op("Transpose", split, perm=perm))
        query, key, value = heads
        scores = graph.op("Softmax", graph.op("Div", graph.op("MatMul", query, key), _number(graph, 12**0.5)), axis=-1)
        joined = graph.op("Transpose", graph.op("MatMul", scores, value), perm=[0, 2, 1, 3])
        return _matmul(graph, graph.op("Reshape", joined, _ints(graph, 0, -1, 24)), inner=24)

    return build


def _gelu(graph: Graph, x: str) -> str:
    y = graph.op("Erf", graph.op("Div", x, _number(graph, 2**0.5)))
    return str(graph.op("Mul", graph.op("Mul", x, graph.op("Add", y, _number(graph, 1))), _number(graph, 0.5)))


def _gelu_of_dynamo(graph: Graph, x: str) -> str:
    y = graph.op("Erf", graph.op("Div", x, _number(graph, 2**0.5)))
    return str(graph.op("Mul", x, graph.op("Mul", _number(graph, 0.5), graph.op("Add", y, _number(graph, 1)))))


def _norm(graph: Graph, x: str) -> str:
    ones = graph.constant(np.linspace(0.5, 1.5, 24, dtype=np.float32))
    return str(graph.op("LayerNormalization", x, ones, graph.constant(np.ones(24, np.float32)), axis=-1))


def _block(*shape: int | str) -> Build:
    """Feed-forward of a transformer with its shortcut."""

    def inner(graph: Graph, x: str) -> str:
        y = _matmul(graph, _gelu(graph, _matmul(graph, x, inner=24)), inner=24)
        return _norm(graph, graph.op("Add", y, x))

    return _products(inner, *shape)


def _embedded(graph: Graph) -> str:
    table = graph.constant(graph.random.normal(size=(100, 32)).astype(np.float32))
    ids = graph.take("x", [2, 5], onnx.TensorProto.INT64)
    return _matmul(graph, graph.op("Gather", table, ids))


def _recurrent(op: str) -> Build:
    def build(graph: Graph) -> str:
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
        weights = [graph.random.normal(size=(1, gates * 16, width)).astype(np.float32) for width in (32, 16)]
        x = graph.take("x", [5, 1, 32])
        return str(graph.op(op, x, *(graph.constant(weight) for weight in weights), hidden_size=16))

    return build


#: Name -> how it is built, and the kernels of its optimised graph (Q, DQ: QuantizeLinear, DequantizeLinear).
PATTERNS: dict[str, tuple[Build, str]] = {
    "Conv": (lambda graph: _conv(graph, _image(graph)), "DQ, 2 QLinearConv, Q, 2 Transpose"),
    "Conv + Relu": (_between(_with("Relu")), "DQ, 2 QLinearConv, Q, 2 Transpose"),
    "Conv + Clip": (_between(_with("Clip", 0, 6)), "DQ, 2 QLinearConv, Q, 2 Transpose"),
    "Conv + Clip(-1, 1)": (_between(_with("Clip", -1, 1)), "DQ, 2 QLinearConv, Q, 2 Transpose"),
    "Conv + Relu at the end": (lambda graph: graph.conv(_image(graph), 16, 16), "DQ, 2 QLinearConv, Q, 2 Transpose"),
    "Pad + Conv + Clip": (
        _between(_chain(_with("Clip", 0, 6), _with("Pad", (0, 0, 1, 1, 0, 0, 1, 1)))),
        "DQ, 2 QLinearConv, Q, 2 Transpose",
    ),
    "Pad at the input + Conv": (
        lambda graph: _conv(graph, _with("Pad", (0, 0, 0, 0, 0, 0, 1, 1))(graph, graph.take("x", [1, 16, 8, 8]))),
        "DQ, QLinearConv, Q, 2 Transpose",
    ),
    "reflecting Pad + Conv": (
        _between(_with("Pad", (0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")),
        "DQ, Pad, 2 QLinearConv, Q, 2 Transpose",
    ),
    "Conv + Add + Relu": (_between(_residual), "DQ, QLinearAdd, 4 QLinearConv, Q, 2 Transpose"),
    "Conv + LeakyRelu": (
        _between(_with("LeakyRelu", alpha=0.1)),
        "DQ, 2 QLinearConv, QLinearLeakyRelu, Q, 2 Transpose",
    ),
    "Conv + PRelu": (
        _between(_with("PRelu", np.full((16, 1, 1), 0.1))),
        "2 DQ, PRelu, 2 QLinearConv, 2 Q, 2 Transpose",
    ),
    "Conv + Sigmoid": (_between(_with("Sigmoid")), "DQ, 2 QLinearConv, QLinearSigmoid, Q, 2 Transpose"),
    "Conv + Tanh": (_between(_with("Tanh")), "2 DQ, 2 QLinearConv, 2 Q, Tanh, 2 Transpose"),
    "SiLU": (_between(_silu), "DQ, 2 QLinearConv, QLinearMul, QLinearSigmoid, Q, 2 Transpose"),
    "Conv + Mul by constants": (
        _between(_with("Mul", np.linspace(0.5, 2, 16).reshape(16, 1, 1))),
        "DQ, 2 QLinearConv, Q, 2 Transpose",
    ),
    "depthwise Conv": (
        lambda graph: _conv(graph, _conv(graph, _image(graph), group=16)),
        "DQ, 3 QLinearConv, Q, 2 Transpose",
    ),
    "grouped Conv": (
        lambda graph: _conv(graph, _conv(graph, _image(graph), group=4)),
        "DQ, 3 QLinearConv, Q, 2 Transpose",
    ),
    "strided 1x1 Conv": (
        lambda graph: _conv(graph, _conv(graph, _image(graph), k=1, stride=2)),
        "DQ, 3 QLinearConv, Q, 2 Transpose",
    ),
    "Conv1d": (_sequence, "DQ, 2 QLinearConv, Q, 2 Transpose"),
    "hard-swish, operator": (
        _between(_hard_swish("HardSwish")),
        "DQ, QLinearAdd, 2 QLinearConv, QLinearMul, Q, 2 Transpose",
    ),
    "hard-swish by HardSigmoid": (
        _between(_hard_swish("HardSigmoid")),
        "DQ, QLinearAdd, 2 QLinearConv, QLinearMul, Q, 2 Transpose",
    ),
    "hard-swish by Clip and Div": (
        _between(_hard_swish("Div")),
        "DQ, QLinearAdd, 2 QLinearConv, QLinearMul, Q, 2 Transpose",
    ),
    "hard-swish by Clip and Mul": (
        _between(_hard_swish("Mul")),
        "DQ, QLinearAdd, 2 QLinearConv, QLinearMul, Q, 2 Transpose",
    ),
    "hard-sigmoid, operator": (_between(_hard_sigmoid("HardSigmoid")), "DQ, QLinearAdd, 2 QLinearConv, Q, 2 Transpose"),
    "hard-sigmoid by Clip and Div": (_between(_hard_sigmoid("Div")), "DQ, 2 QLinearConv, Q, 2 Transpose"),
    "squeeze-and-excite": (
        _between(_excited("GlobalAveragePool", "Sigmoid")),
        "DQ, 4 QLinearConv, QLinearGlobalAveragePool, QLinearMul, QLinearSigmoid, Q, 2 Transpose",
    ),
    "squeeze-and-excite by ReduceMean": (
        _between(_excited("ReduceMean", "Sigmoid")),
        "DQ, 4 QLinearConv, QLinearGlobalAveragePool, QLinearMul, QLinearSigmoid, Q, 2 Transpose",
    ),
    "squeeze-and-excite with hard-sigmoid": (
        _between(_excited("GlobalAveragePool", "", "HardSigmoid")),
        "DQ, QLinearAdd, 4 QLinearConv, QLinearGlobalAveragePool, QLinearMul, Q, 2 Transpose",
    ),
    "squeeze-and-excite with Clip and Div": (
        _between(_excited("GlobalAveragePool", "", "Div")),
        "DQ, 4 QLinearConv, QLinearGlobalAveragePool, QLinearMul, Q, 2 Transpose",
    ),
    "Concat": (
        _between(lambda graph, x: graph.op("Concat", _conv(graph, x), x, axis=2)),
        "DQ, QLinearConcat, 3 QLinearConv, Q, 2 Transpose",
    ),
    "Resize, nearest": (
        _between(lambda graph, x: graph.op("Resize", x, "", graph.constant(np.float32([1, 1, 2, 2])), mode="nearest")),
        "DQ, 2 QLinearConv, Q, Resize, 2 Transpose",
    ),
    "Resize, linear": (
        _between(lambda graph, x: graph.op("Resize", x, "", graph.constant(np.float32([1, 1, 2, 2])), mode="linear")),
        "2 DQ, 2 QLinearConv, 2 Q, Resize, 2 Transpose",
    ),
    "MaxPool": (
        _between(_with("MaxPool", kernel_shape=[2, 2], strides=[2, 2])),
        "DQ, NhwcMaxPool, 2 QLinearConv, Q, 2 Transpose",
    ),
    "AveragePool": (
        _between(_with("AveragePool", kernel_shape=[2, 2], strides=[2, 2])),
        "DQ, QLinearAveragePool, 2 QLinearConv, Q, 2 Transpose",
    ),
    "GlobalAveragePool": (
        _between(_with("GlobalAveragePool")),
        "DQ, 2 QLinearConv, QLinearGlobalAveragePool, Q, 2 Transpose",
    ),
    "ReduceMean over positions": (
        _between(_with("ReduceMean", axes=[2, 3])),
        "DQ, 2 QLinearConv, QLinearGlobalAveragePool, Q, 2 Transpose",
    ),
    "GlobalAveragePool + Flatten + Gemm": (
        _classifier,
        "Flatten, QGemm, QLinearConv, QLinearGlobalAveragePool, Q, 2 Transpose",
    ),
    "MaxPool + Flatten + Gemm": (_flattened, "Flatten, NhwcMaxPool, QGemm, QLinearConv, Q, 2 Transpose"),
    "ConvTranspose, kernel as stride": (_between(_transposed), "DQ, 3 QLinearConv, Q, 2 Reshape, 3 Transpose"),
    "ConvTranspose, overlapping": (
        _between(lambda graph, x: _transposed(graph, x, 2, 4)),
        "ConvTranspose, 2 DQ, 2 QLinearConv, 2 Q, Sum, 4 Transpose",
    ),
    "DepthToSpace": (
        lambda graph: graph.conv(graph.op("DepthToSpace", _image(graph), blocksize=2), 4, 16, relu=False),
        "DepthToSpace, DQ, Gather, Pad, 2 QLinearConv, Q, Reshape, 4 Transpose",
    ),
    "SpaceToDepth": (
        lambda graph: graph.conv(graph.op("SpaceToDepth", _image(graph), blocksize=2), 64, 16, relu=False),
        "DQ, 2 QLinearConv, Q, SpaceToDepth, 4 Transpose",
    ),
    "Transpose": (_between(_with("Transpose", perm=[0, 1, 3, 2])), "DQ, 2 QLinearConv, Q, 3 Transpose"),
    "Reshape": (_between(_with("Reshape", (1, 16, 4, 16))), "DQ, 2 QLinearConv, Q, Reshape, 4 Transpose"),
    "Squeeze, Unsqueeze": (
        _between(_chain(_with("Squeeze", (0,)), _with("Unsqueeze", (0,)))),
        "DQ, 2 QLinearConv, Q, 2 Transpose",
    ),
    "channel shuffle": (_between(_shuffle), "DQ, 2 QLinearConv, Q, 2 Reshape, 4 Transpose"),
    "Split + Concat": (_between(_halves), "DQ, QLinearConcat, 2 QLinearConv, Q, Split, 2 Transpose"),
    "Slice": (_between(_with("Slice", (1,), (7,), (2,))), "DQ, 2 QLinearConv, Q, Slice, 2 Transpose"),
    "Gather of channels": (
        _between(lambda graph, x: graph.op("Gather", x, _ints(graph, *range(15, -1, -1)), axis=1)),
        "DQ, Gather, 2 QLinearConv, Q, 4 Transpose",
    ),
    "InstanceNormalization": (
        _between(_with("InstanceNormalization", np.ones(16), np.ones(16))),
        "2 DQ, InstanceNormalization, 2 QLinearConv, 2 Q, 4 Transpose",
    ),
    "MatMul": (lambda graph: _matmul(graph, graph.take("x", ["b", 32]), None), "MatMulIntegerToFloat, Q"),
    "MatMul + Add": (lambda graph: _matmul(graph, graph.take("x", ["b", 32])), "QGemm, Q"),
    "MatMul + Add, fixed": (lambda graph: _matmul(graph, graph.take("x", [4, 32])), "QGemm, Q"),
    "MatMul, 3-D": (lambda graph: _matmul(graph, graph.take("x", ["b", "s", 32]), None), "MatMulIntegerToFloat, Q"),
    "MatMul, 3-D fixed": (lambda graph: _matmul(graph, graph.take("x", [2, 5, 32]), None), "MatMulIntegerToFloat, Q"),
    "MatMul + Add, 3-D": (
        lambda graph: _matmul(graph, graph.take("x", ["b", "s", 32])),
        "Add, MatMulIntegerToFloat, Q",
    ),
    "MatMul + Add, 3-D fixed": (lambda graph: _matmul(graph, graph.take("x", [2, 5, 32])), "QGemm, Q, 2 Reshape"),
    "MatMul + Add, 3-D with open batch": (
        lambda graph: _matmul(graph, graph.take("x", ["b", 5, 32])),
        "QGemm, Q, 2 Reshape",
    ),
    "MatMul + Add [1, n], 3-D fixed": (
        lambda graph: _matmul(graph, graph.take("x", [2, 5, 32]), (1, 24)),
        "Add, MatMulIntegerToFloat, Q",
    ),
    "MatMul + Add of a matrix": (
        lambda graph: _matmul(graph, graph.take("x", [4, 32]), (4, 24)),
        "MatMulIntegerToFloat, Q, Sum",
    ),
    "MatMul + shortcut": (
        _products(lambda graph, x: graph.op("Add", _matmul(graph, x, None, 24), x), "b"),
        "2 MatMulIntegerToFloat, QGemm, 3 Q, 2 Sum",
    ),
    "MatMul + shortcut, fixed": (
        _products(lambda graph, x: graph.op("Add", _matmul(graph, x, None, 24), x), 4),
        "2 MatMulIntegerToFloat, QGemm, 3 Q, 2 Sum",
    ),
    "MatMul + shortcut, 3-D fixed": (
        _products(lambda graph, x: graph.op("Add", _matmul(graph, x, None, 24), x), 2, 5),
        "Add, DQ, MatMulIntegerToFloat, 2 QGemm, 2 Q, 4 Reshape",
    ),
    "MatMul + computed row, 3-D fixed": (
        lambda graph: str(graph.op("Add", _matmul(graph, graph.take("x", [2, 5, 32]), None), graph.take("row", [24]))),
        "MatMulIntegerToFloat, Q, Sum",
    ),
    "MatMul + Add, 4-D fixed": (lambda graph: _matmul(graph, graph.take("x", [1, 2, 5, 32])), "QGemm, Q, 2 Reshape"),
    "MatMul + Relu": (_products(_with("Relu"), "b"), "2 QGemm, Q"),
    "MatMul + Relu, 3-D": (_products(_with("Relu"), "b", "s"), "2 Add, 2 MatMulIntegerToFloat, 2 Q, Relu"),
    "MatMul + Relu, 3-D fixed": (_products(_with("Relu"), 2, 5), "2 QGemm, Q, 4 Reshape"),
    "MatMul + Sigmoid, 3-D fixed": (_products(_with("Sigmoid"), 2, 5), "2 QGemm, QLinearSigmoid, Q, 4 Reshape"),
    "MatMul + GELU, 3-D": (_products(_gelu, "b", "s"), "Add, BiasGelu, 2 MatMulIntegerToFloat, 2 Q"),
    "MatMul + GELU, 3-D fixed": (_products(_gelu, 2, 5), "Gelu, 2 QGemm, 2 Q, 4 Reshape"),
    "MatMul + GELU of the newer exporter, 3-D": (
        _products(_gelu_of_dynamo, "b", "s"),
        "Add, BiasGelu, 2 MatMulIntegerToFloat, 2 Q",
    ),
    "MatMul + GELU of the newer exporter, 3-D fixed": (
        _products(_gelu_of_dynamo, 2, 5),
        "Gelu, 2 QGemm, 2 Q, 4 Reshape",
    ),
    "MatMul + LayerNormalization, 3-D": (
        _products(_norm, "b", "s"),
        "2 Add, LayerNormalization, 2 MatMulIntegerToFloat, 2 Q",
    ),
    "MatMul + LayerNormalization, 3-D fixed": (_products(_norm, 2, 5), "LayerNormalization, 2 QGemm, 2 Q, 4 Reshape"),
    "MatMul + Softmax, 3-D fixed": (_products(_with("Softmax", axis=-1), 2, 5), "2 QGemm, 2 Q, 4 Reshape, Softmax"),
    "feed-forward with shortcut, 3-D": (
        _block("b", "s"),
        "3 Add, BiasGelu, LayerNormalization, 4 MatMulIntegerToFloat, 4 Q, Sum",
    ),
    "feed-forward with shortcut, 3-D fixed": (
        _block(2, 5),
        "DQ, Gelu, LayerNormalization, 4 QGemm, 3 Q, 8 Reshape, Sum",
    ),
    "attention": (
        _attention("b", "s"),
        "4 Add, Attention, 4 MatMulIntegerToFloat, 2 Q",
    ),
    "attention, fixed": (_attention(2, 5), "Attention, 4 QGemm, 2 Q, 6 Reshape"),
    "Gemm, transB": (lambda graph: _gemm(graph, graph.take("x", ["b", 32]), transB=1), "QGemm, Q"),
    "Gemm": (lambda graph: _gemm(graph, graph.take("x", ["b", 32])), "QGemm, Q"),
    "Gemm, alpha and beta": (lambda graph: _gemm(graph, graph.take("x", ["b", 32]), alpha=0.5, beta=2.0), "Gemm"),
    "Gemm, transA": (lambda graph: _gemm(graph, graph.take("x", [32, 4]), transA=1), "Gemm"),
    "Gemm + Relu + Gemm": (
        lambda graph: _gemm(graph, graph.op("Relu", _gemm(graph, graph.take("x", ["b", 32]))), 24),
        "2 QGemm, Q",
    ),
    "embedding + MatMul": (_embedded, "Gather, QGemm, Q, 2 Reshape"),
    "LSTM": (_recurrent("LSTM"), "LSTM"),
    "GRU": (_recurrent("GRU"), "GRU"),
}


def kernels(model: ir.Model, folder: Path) -> Counter[str]:
    """Operators of the optimised graph, with how often each is there."""
    path = folder / "optimised.onnx"
    Session(io.to_bytes(model), threads=1, optimised_path=path)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def placed(build: Build, folder: Path, opset: int = 17, target: Any = "x86-vnni") -> Counter[str]:
    graph = Graph(opset)
    options = QuantizeStatic(target=target)
    return kernels(static.quantize(graph.model(build(graph)), options, context(None, folder, dry=True)).model, folder)


def said(found: Counter[str]) -> str:
    """As the table has it."""
    short = {"QuantizeLinear": "Q", "DequantizeLinear": "DQ"}
    return ", ".join(
        f"{count} {short.get(op, op)}" if count > 1 else short.get(op, op) for op, count in sorted(found.items())
    )


@pytest.mark.parametrize("name", PATTERNS)
def test_the_pattern_becomes_these_kernels(name: str, tmp_path: Path) -> None:
    build, expected = PATTERNS[name]
    found = placed(build, tmp_path)
    assert said(found) == expected
