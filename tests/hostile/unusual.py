"""Legal models that tools rarely meet: odd operators, shapes, types, names, control flow, functions, numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.hostile.models import FLOAT, mlp, model, parse, tensor, weights

Make = Callable[[], onnx.ModelProto]
_ROWS: dict[str, Any] = {"x": (FLOAT, ["n", 8])}
_OUT: dict[str, Any] = {"y": (FLOAT, ["n", 8])}
_IMAGE: dict[str, Any] = {"x": (FLOAT, ["n", 3, 8, 8])}
_ANY: dict[str, Any] = {"y": (FLOAT, None)}
_node = helper.make_node


def _info(name: str, kind: int = FLOAT, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _convolution(shape: tuple[int, ...], channels: int, op: str = "Conv", **attributes: Any) -> Make:
    """One convolution, ReLU and a mean; the output's rank is not declared."""

    def make() -> onnx.ModelProto:
        sizes = {1: ["n", 3, 16], 2: ["n", 3, 8, 8], 3: ["n", 3, 5, 5, 5]}[len(shape) - 2]
        nodes = [
            _node(op, ["x", "w", "b"], ["c"], **attributes),
            _node("Relu", ["c"], ["r"]),
            _node("GlobalAveragePool", ["r"], ["y"]),
        ]
        return model(nodes, {"x": (FLOAT, sizes)}, _ANY, [tensor("w", weights(*shape)), tensor("b", weights(channels))])

    return make


def _product(shape: tuple[int, ...], x: list[int | str], y: list[int | str], left: bool = False) -> Make:
    """A MatMul with a weight of this shape."""
    order = ["w", "x"] if left else ["x", "w"]
    held = [tensor("w", weights(*shape))]
    return lambda: model([_node("MatMul", order, ["y"])], {"x": (FLOAT, x)}, {"y": (FLOAT, y)}, held)  # type: ignore[dict-item]


def _gemm(bias: np.ndarray, **attributes: Any) -> Make:
    held = [tensor("w", weights(8, 8)), tensor("c", bias)]
    return lambda: model([_node("Gemm", ["x", "w", "c"], ["y"], **attributes)], _ROWS, _OUT, held)


def _renamed(old: str, new: str) -> Make:
    def make() -> onnx.ModelProto:
        proto = mlp()
        for node in proto.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]
        for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
            value.name = new if value.name == old else value.name
        return proto

    return make


def _filled(name: str, value: float) -> Make:
    """The MLP with one weight filled with a number."""

    def make() -> onnx.ModelProto:
        proto = mlp()
        for held in proto.graph.initializer:
            if name in (held.name, "*"):
                held.CopyFrom(tensor(held.name, np.full(list(held.dims), value, np.float32)))
        return proto

    return make


def _text(graph: str, opset: int = 17, ir_version: int = 8) -> Make:
    return lambda: parse(graph, opset, ir_version)


def _loop(inner: bool) -> Make:
    """Three rounds of MatMul and ReLU; the weight lies in the body or is captured."""

    def make() -> onnx.ModelProto:
        held = [tensor("w", weights(8, 8))]
        body = helper.make_graph(
            [_node("MatMul", ["s", "w"], ["t"]), _node("Relu", ["t"], ["so"]), _node("Identity", ["c"], ["co"])],
            "body",
            [_info("i", TensorProto.INT64, []), _info("c", TensorProto.BOOL, []), _info("s")],
            [_info("co", TensorProto.BOOL, []), _info("so")],
            held if inner else [],
        )
        own = [tensor("v", weights(8, 8)), tensor("k", np.int64(3)), *([] if inner else held)]
        nodes = [_node("MatMul", ["x", "v"], ["h"]), _node("Loop", ["k", "", "h"], ["y"], body=body)]
        return model(nodes, _ROWS, _OUT, own)

    return make


def _scan() -> onnx.ModelProto:
    row = [1, 8]
    body = helper.make_graph(
        [_node("MatMul", ["s", "w"], ["t"]), _node("Add", ["t", "xi"], ["so"]), _node("Identity", ["so"], ["yo"])],
        "body",
        [_info("s", FLOAT, row), _info("xi", FLOAT, row)],
        [_info("so", FLOAT, row), _info("yo", FLOAT, row)],
    )
    held = [tensor("w", weights(8, 8)), tensor("s0", np.zeros((1, 8), np.float32))]
    nodes = [_node("Scan", ["s0", "x"], ["last", "y"], body=body, num_scan_inputs=1)]
    return model(nodes, {"x": (FLOAT, ["t", 1, 8])}, {"y": (FLOAT, ["t", 1, 8])}, held)


def _if_constant() -> onnx.ModelProto:
    branches = {
        name: helper.make_graph([_node(op, ["h"], ["o"])], name, [], [_info("o")])
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    nodes = [_node("MatMul", ["x", "w"], ["h"]), _node("If", ["c"], ["y"], **branches)]
    return model(nodes, _ROWS, _OUT, [tensor("c", np.bool_(True)), tensor("w", weights(8, 8))])


def _functions(opset: int) -> Make:
    """A function that calls another, which holds a weight; `opset`: the version they are written in."""

    def make() -> onnx.ModelProto:
        standard = helper.make_opsetid("", opset)
        held = [_node("Constant", [], ["w"], value=tensor("", weights(8, 8))), _node("MatMul", ["a", "w"], ["b"])]
        twice = [
            _node("A", ["a"], ["b"], domain="my"),
            _node("Relu", ["b"], ["r"]),
            _node("A", ["r"], ["c"], domain="my"),
        ]
        proto = model([_node("B", ["x"], ["y"], domain="my")], _ROWS, _OUT, domains=("my",))
        proto.functions.append(helper.make_function("my", "A", ["a"], ["b"], held, [standard]))
        both = [standard, helper.make_opsetid("my", 1)]
        proto.functions.append(helper.make_function("my", "B", ["a"], ["c"], twice, both))
        return proto

    return make


def _own_operator() -> onnx.ModelProto:
    """What onnxruntime's optimiser writes into the standard domain, although ONNX does not know it."""
    norm = _node("SimplifiedLayerNormalization", ["h", "g"], ["n"], axis=-1, epsilon=1e-5, stash_type=1)
    nodes = [_node("MatMul", ["x", "w"], ["h"]), norm, _node("MatMul", ["n", "w"], ["y"])]
    return model(nodes, _ROWS, _OUT, [tensor("w", weights(8, 8)), tensor("g", np.ones(8, np.float32))])


def _sparse_initializer(flat: bool) -> Make:
    def make() -> onnx.ModelProto:
        rows, columns = np.array([0, 3, 7]), np.array([1, 3, 5])
        indices = rows * 8 + columns if flat else np.stack([rows, columns], axis=1)
        proto = model([_node("MatMul", ["x", "w"], ["y"])], _ROWS, _OUT)
        held = (tensor("w", weights(3)), tensor("", indices.astype(np.int64)))
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(*held, [8, 8]))
        return proto

    return make


def _embedding(rows: int) -> Make:
    held = [tensor("w", weights(rows, 16)), tensor("v", weights(16, 4))]
    nodes = [_node("Gather", ["w", "i"], ["e"]), _node("MatMul", ["e", "v"], ["y"])]
    return lambda: model(nodes, {"i": (TensorProto.INT64, ["n", "t"])}, {"y": (FLOAT, ["n", "t", 4])}, held)


def _recurrent(op: str, gates: int, **attributes: Any) -> Make:
    count = 2 if attributes.get("direction") == "bidirectional" else 1
    held = [tensor("w", weights(count, gates * 4, 8)), tensor("r", weights(count, gates * 4, 4))]
    nodes = [_node(op, ["x", "w", "r"], ["y"], hidden_size=4, **attributes)]
    return lambda: model(nodes, {"x": (FLOAT, ["t", "n", 8])}, {"y": (FLOAT, ["t", count, "n", 4])}, held)


def _sparse_constant() -> onnx.ModelProto:
    values = helper.make_tensor("values", FLOAT, [2], [1.0, 2.0])
    places = numpy_helper.from_array(np.array([1, 5], np.int64), "places")
    sparse = helper.make_sparse_tensor(values, places, [8])
    return model([_node("Constant", [], ["w"], sparse_value=sparse), _node("Add", ["x", "w"], ["y"])], _ROWS, _OUT)


def _concatenated() -> onnx.ModelProto:
    """Concat, Split and a product of the halves: channels that hang together in odd ways."""
    nodes = [
        _node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        _node("Conv", ["a", "w2"], ["b"], pads=[1] * 4),
        _node("Concat", ["a", "b", "x"], ["c"], axis=1),
        _node("Conv", ["c", "w3"], ["d"]),
        _node("Split", ["d"], ["e", "f"], axis=1),
        _node("Mul", ["e", "f"], ["g"]),
        _node("GlobalMaxPool", ["g"], ["y"]),
    ]
    shapes = {"w1": (6, 3, 3, 3), "w2": (6, 6, 3, 3), "w3": (8, 15, 1, 1)}
    return model(nodes, _IMAGE, _ANY, [tensor(name, weights(*shape)) for name, shape in shapes.items()])


def _shuffled() -> onnx.ModelProto:
    nodes = [
        _node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        _node("DepthToSpace", ["a"], ["d"], blocksize=2),
        _node("Conv", ["d", "w2"], ["y"]),
    ]
    return model(nodes, _IMAGE, _ANY, [tensor("w1", weights(16, 3, 3, 3)), tensor("w2", weights(4, 4, 1, 1))])


def _described() -> onnx.ModelProto:
    """Everything around the graph: long texts, keys twice, keys that lepton itself writes."""
    proto = mlp()
    proto.doc_string, proto.producer_name, proto.graph.name = "x" * 1_000_000, "\x1b[31m", ""
    for key in ("k", "k", "lepton.source_sha256", "lepton.value_type"):
        proto.metadata_props.add(key=key, value="of somebody else")
    entry = proto.graph.output[0].metadata_props.add()
    entry.key, entry.value = "lepton.other", "not base64!"
    proto.graph.value_info.extend([_info("h", FLOAT, [3]), _info("nothing", FLOAT, [1])])
    return proto


def _untold(where: str) -> Make:
    """Rank or type of input or output left out."""

    def make() -> onnx.ModelProto:
        proto = mlp()
        if where == "type of output":
            proto.graph.output[0].ClearField("type")
        else:
            proto.graph.output[0].type.tensor_type.ClearField("shape")
        return proto

    return make


def _many(inputs: int, outputs: int) -> Make:
    """`inputs` summed and copied to `outputs`."""

    def make() -> onnx.ModelProto:
        nodes = [_node("Sum", [f"x{i}" for i in range(inputs)], ["s"])]
        nodes += [_node("Neg", ["s"], [f"y{i}"]) for i in range(outputs)]
        shape = (FLOAT, ["n", 2])
        return model(nodes, {f"x{i}": shape for i in range(inputs)}, {f"y{i}": shape for i in range(outputs)})  # type: ignore[dict-item]

    return make


MODELS: dict[str, Make] = {
    "conv 1d": _convolution((4, 3, 3), 4),
    "conv 3d": _convolution((4, 3, 3, 3, 3), 4),
    "conv in groups": _convolution((6, 1, 3, 3), 6, group=3),
    "conv with automatic padding": _convolution((4, 3, 3, 3), 4, auto_pad="SAME_UPPER"),
    "conv dilated": _convolution((4, 3, 3, 3), 4, dilations=[2, 2]),
    "transposed conv in groups": _convolution((3, 2, 3, 3), 6, "ConvTranspose", group=3),
    "transposed conv with output padding": _convolution(
        (3, 5, 3, 3), 5, "ConvTranspose", strides=[2, 2], output_padding=[1, 1]
    ),
    "gemm with factors": _gemm(np.array(3, np.float32), alpha=0.5, beta=2.0, transB=1),
    "gemm with a row": _gemm(weights(1, 8)),
    "gemm with one number": _gemm(weights(1, 1)),
    "weight on the left": _product((8, 8), [8, "n"], [8, "n"], left=True),
    "weight is a vector": _product((8,), ["n", 8], ["n"]),
    "weight is a stack": _product((2, 8, 4), [2, "n", 8], [2, "n", 4]),
    "weight is a number": _product((1, 1), ["n", 1], ["n", 1]),
    "weight without rows": _product((0, 4), ["n", 0], ["n", 4]),
    "weight without columns": _product((8, 0), ["n", 8], ["n", 0]),
    "long name": _renamed("w1", "w" * 20_000),
    "name with line breaks": _renamed("x", "x\ny\r\x1b[31m\x07"),
    "name as a workflow command": _renamed("y", "y\n::error::\x1b]0;t\x07"),
    "name as a path": _renamed("w1", "../../etc/passwd"),
    "name as a format": _renamed("x", "{x} %s $HOME `id`"),
    "name as markup": _renamed("y", "[/nothing][bold]"),
    "name is a number": _renamed("x", "0"),
    "name is a blank": _renamed("x", " "),
    "the same dimension twice": _text("g (float[n, n] x) => (float[n, n] y) { y = Relu(x) }"),
    "rank 0": _text("g (float x) => (float y) { y = Relu(x) }"),
    "rank of the output left out": _untold("rank"),
    "type of the output left out": _untold("type of output"),
    "no samples to compute with": _text("g (float[n, 0] x) => (float[n, 0] y) { y = Relu(x) }"),
    "short table": _embedding(5),
    "bool input": _text("g (bool[n, 4] x) => (float[n, 4] y) { y = Cast<to = 1>(x) }"),
    "string input": _text("g (string[n] x) => (string[n] y) { y = Identity(x) }"),
    "half input": _text("g (float16[n, 4] x) => (float16[n, 4] y) { y = Relu(x) }"),
    "two dynamic inputs": _text("g (float[n, 4] x, float[m, 4] z) => (float[k, 4] y) { y = Concat<axis = 0>(x, z) }"),
    "scalar inputs": _text("g (float[n, 4] x, float s) => (float[n, 4] y) { y = Mul(x, s) }"),
    "values decide the shape": _text("g (float[n, 4] x) => (int64[2, k] y) { r = Relu(x) y = NonZero(r) }"),
    "not a number by design": _text("g (float[n, 4] x) => (float[n, 4] y) { y = Log(x) }"),
    "random numbers": _text("g (float[n, 4] x) => (float[n, 4] y) { r = RandomNormalLike(x) y = Add(x, r) }"),
    "loop captures": _loop(inner=False),
    "loop holds": _loop(inner=True),
    "scan": _scan,
    "if on a constant": _if_constant,
    "lstm": _recurrent("LSTM", 4),
    "gru both ways": _recurrent("GRU", 3, direction="bidirectional"),
    "functions": _functions(17),
    "functions in another opset": _functions(13),
    "sparse constant": _sparse_constant,
    "sparse initializer": _sparse_initializer(flat=True),
    "sparse initializer by rows and columns": _sparse_initializer(flat=False),
    "operator of onnxruntime alone": _own_operator,
    "list constant": _text(
        "g (float[n, 2] x) => (float[n, 2] y) { w = Constant<value_floats = [1.0, 2.0]>() y = Mul(x, w) }"
    ),
    "concatenated and split": _concatenated,
    "shuffled pixels": _shuffled,
    "texts around the graph": _described,
    "three hundred inputs": _many(300, 1),
    "three hundred outputs": _many(1, 300),
    "zero everywhere": _filled("*", 0.0),
    "denormal everywhere": _filled("*", 1e-44),
    "largest floats": _filled("w1", 3.4e38),
    "infinite bias": _filled("b1", np.inf),
    "dead layer": _filled("b1", -1e6),
}
