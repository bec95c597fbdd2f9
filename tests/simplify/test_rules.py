"""Every rule of `simplify`: fewer nodes, and plain onnxruntime computes the same from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

from lepton_cli.data.memory import Arrays
from lepton_cli.graph.spec import Simplify
from lepton_cli.model import io
from lepton_cli.simplify import simplify as step
from lepton_cli.simplify.found import Found, before
from lepton_cli.simplify.rules import RULES, Rule
from lepton_cli.step import Outcome
from tests.quantize.builders import Graph, context, ops

RANDOM = np.random.default_rng(0)


def plain(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs by onnxruntime alone, nothing optimised."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(io.to_bytes(model), options, providers=["CPUExecutionProvider"])
    return [np.asarray(one) for one in session.run(None, feeds)]


def simplified(model: ir.Model, feeds: dict[str, np.ndarray], tmp_path: Path, **options: object) -> Outcome:
    """What the step makes, held to plain onnxruntime on the model itself."""
    outcome = step.simplify(model, Simplify.model_validate(options), context(Arrays(feeds), tmp_path))
    for one, other in zip(plain(model, feeds), plain(outcome.model, feeds), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    return outcome


def weight(graph: Graph, *shape: int) -> str:
    return graph.constant(RANDOM.normal(size=shape).astype(np.float32))


def ints(graph: Graph, *values: int) -> str:
    return graph.constant(np.array(values, np.int64))


def padded(g: Graph, x: str) -> str:
    """As exporters write a stride of 2: one row and one column of zeros, then a convolution without."""
    return str(g.op("Conv", g.op("Pad", x, ints(g, 0, 0, 0, 0, 0, 0, 1, 1)), weight(g, 3, 4, 3, 3), strides=[2, 2]))


def one_axis_more(g: Graph, x: str) -> str:
    """A convolution in one dimension written in two."""
    flat = g.op("Reshape", x, ints(g, 0, 4, 64))
    return str(
        g.op(
            "Relu", g.op("Squeeze", g.op("Unsqueeze", g.op("Transpose", flat, perm=[0, 1, 2]), ints(g, 2)), ints(g, 2))
        )
    )


def sizes_asked(g: Graph, x: str) -> str:
    """What `view(x.size(0), -1)` exports to."""
    size = g.op("Unsqueeze", g.op("Gather", g.op("Shape", x), g.constant(np.int64(0)), axis=0), ints(g, 0))
    return str(g.op("Reshape", g.op("Relu", x), g.op("Concat", size, ints(g, -1), axis=0)))


def cut_twice(g: Graph, x: str) -> str:
    first = g.op("Slice", x, ints(g, 1), ints(g, 2**31 - 1), ints(g, 2))
    return str(g.op("Slice", first, ints(g, 0), ints(g, 7), ints(g, 3), ints(g, 2)))


def joined_twice(g: Graph, x: str) -> str:
    return str(g.op("Concat", x, g.op("Concat", x, g.op("Relu", x), axis=1), axis=-3))


def per_channel(g: Graph, x: str) -> str:
    y = g.op("Mul", g.op("Conv", x, weight(g, 3, 4, 1, 1)), weight(g, 3, 1, 1))
    return str(g.op("Sub", g.op("Add", weight(g, 1, 3, 1, 1), y), g.constant(np.float32(0.5))))


def per_channel_transposed(g: Graph, x: str) -> str:
    y = g.op("ConvTranspose", x, weight(g, 4, 3, 2, 2), group=2, strides=[2, 2])
    return str(g.op("Add", y, weight(g, 6, 1, 1)))


def matmul_add(g: Graph, x: str) -> str:
    y = g.op("Add", weight(g, 6), g.op("MatMul", g.op("Flatten", x), weight(g, 256, 6)))
    return str(g.op("Relu", y))


def clipped_twice(g: Graph, x: str) -> str:
    return str(g.op("Clip", g.op("Relu", x), "", g.constant(np.float32(0.4))))


def two_factors(first: str, last: str) -> Callable[[Graph, str], str]:
    """Constant factors in a row, of different shapes."""
    return lambda g, x: str(g.op(last, g.op(first, x, weight(g, 1)), weight(g, 4, 1, 1)))


CASES: list[tuple[Callable[[Graph, str], str], list[str]]] = [
    (padded, ["Conv"]),
    (one_axis_more, ["Reshape", "Relu"]),
    (sizes_asked, ["Relu", "Reshape"]),
    (cut_twice, ["Slice"]),
    (joined_twice, ["Relu", "Concat"]),
    (per_channel, ["Conv"]),
    (per_channel_transposed, ["ConvTranspose"]),
    (matmul_add, ["Flatten", "Gemm", "Relu"]),
    (clipped_twice, ["Clip"]),
    (two_factors("Mul", "Mul"), ["Mul"]),
    (two_factors("Mul", "Div"), ["Mul"]),
    (two_factors("Div", "Mul"), ["Div"]),
    (two_factors("Div", "Div"), ["Div"]),
    (lambda g, x: g.op("Mul", g.op("Mul", weight(g, 8, 1), x), weight(g, 8)), ["Mul", "Mul"]),
    (
        lambda g, x: g.op("Mul", g.op("Mul", x, g.constant(np.float32(1e-30))), g.constant(np.float32(1e-15))),
        ["Mul", "Mul"],
    ),
    (
        lambda g, x: g.op("Sub", g.op("Add", x, g.constant(np.float32(2**24))), g.constant(np.float32(2**24))),
        ["Add", "Sub"],
    ),
    (lambda g, x: g.op("Relu", g.op("CastLike", x, weight(g, 1))), ["Relu"]),
    (lambda g, x: g.op("Transpose", g.op("Transpose", x, perm=[0, 2, 3, 1]), perm=[0, 2, 1, 3]), ["Transpose"]),
    (lambda g, x: g.op("Relu", g.op("Mul", x, g.constant(np.float32(1)))), ["Relu"]),
    (lambda g, x: g.op("Add", x, g.op("Expand", weight(g, 1, 4, 1, 1), ints(g, 1, 4, 8, 8))), ["Add"]),
    (lambda g, x: g.op("Min", g.op("Max", x, g.constant(np.float32(0))), g.constant(np.float32(0.4))), ["Clip"]),
]


@pytest.mark.parametrize(("write", "left"), CASES, ids=lambda one: getattr(one, "__name__", ""))
def test_fewer_nodes_and_the_same_results(write: Callable[[Graph, str], str], left: list[str], tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(write(graph, graph.take("x", ["b", 4, 8, 8])))
    outcome = simplified(model, {"x": RANDOM.normal(size=(2, 4, 8, 8)).astype(np.float32)}, tmp_path)
    assert ops(outcome.model) == left
    names = {node.name for node in model.graph}
    assert names - {node.name for node in outcome.model.graph} == {d.node for d in outcome.decisions if d.op}


def test_shuffled_channels_are_slices(tmp_path: Path) -> None:
    """ShuffleNet: every other channel to the one branch, the others to the other."""
    graph = Graph()
    x = graph.op("Relu", graph.take("x", [1, 6, 4, 4]))
    mixed = graph.op("Transpose", graph.op("Reshape", x, ints(graph, 3, 2, 16)), perm=[1, 0, 2])
    both = graph.op("Reshape", mixed, ints(graph, 2, -1, 3, 4, 4))
    parts = [graph.op("Gather", both, graph.constant(np.int64(i)), axis=0) for i in (0, 1)]
    model = graph.model(*(graph.op(kind, one) for kind, one in zip(("Tanh", "Sigmoid"), parts, strict=True)))
    outcome = simplified(model, {"x": RANDOM.normal(size=(1, 6, 4, 4)).astype(np.float32)}, tmp_path)
    assert sorted(ops(outcome.model)) == ["Relu", "Sigmoid", "Slice", "Slice", "Tanh"]


def left_alone(g: Graph, x: str) -> str:
    """What only looks like one of the patterns."""
    y = g.op("Conv", g.op("Pad", x, ints(g, 0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"), weight(g, 3, 4, 3, 3))
    y = g.op("Conv", g.op("Pad", y, ints(g, 0, 1, 0, 0, 0, 0, 0, 0)), weight(g, 3, 4, 1, 1))
    y = g.op("Conv", g.op("Pad", y, ints(g, 0, 0, 1, 1, 0, 0, 1, 1), g.constant(np.float32(1))), weight(g, 3, 3, 3, 3))
    y = g.op("Mul", y, weight(g, 8))  # a factor a column
    y = g.op("Slice", y, ints(g, 1), ints(g, 8), ints(g, 3), ints(g, 1))
    return str(g.op("Slice", y, ints(g, 1), ints(g, 7), ints(g, 3), ints(g, 2)))


def test_what_only_looks_like_a_pattern(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(left_alone(graph, graph.take("x", ["b", 4, 8, 8])))
    outcome = simplified(model, {"x": RANDOM.normal(size=(2, 4, 8, 8)).astype(np.float32)}, tmp_path)
    assert ops(outcome.model) == ops(model)


def test_excluded_nodes_and_graph_outputs_stay(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 4, 8, 8])
    pad = graph.op("Pad", x, ints(graph, 0, 0, 0, 0, 0, 0, 1, 1))
    conv = graph.op("Conv", pad, weight(graph, 3, 4, 3, 3))
    feeds = {"x": RANDOM.normal(size=(2, 4, 8, 8)).astype(np.float32)}
    assert ops(simplified(graph.model(conv), feeds, tmp_path, exclude=("Pad*",)).model) == ["Pad", "Conv"]
    both = simplified(graph.model(pad, conv), feeds, tmp_path)
    assert ops(both.model) == ["Pad", "Conv"]
    assert [value.name for value in both.model.graph.outputs] == [pad, conv]


def test_shapes_that_a_file_states_wrongly_are_not_believed(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.op("Relu", graph.take("x", ["b", 4, 8, 8]))
    model = graph.model(graph.op("Tanh", graph.op("Slice", x, ints(graph, 0), ints(graph, 5), ints(graph, 3))))
    next(iter(model.graph)).outputs[0].shape = ir.Shape([2, 4, 8, 5])
    outcome = simplified(model, {"x": RANDOM.normal(size=(2, 4, 8, 8)).astype(np.float32)}, tmp_path)
    assert ops(outcome.model) == ["Relu", "Slice", "Tanh"]


def test_a_rule_that_breaks_a_graph_is_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(_: ir.Model, node: ir.Node) -> Found | None:
        first = before(node)
        if node.op_type != "Tanh" or first is None or first.op_type != "Neg":
            return None
        return Found([ir.node("Tanh", [first.inputs[0]])], [first, node])

    monkeypatch.setattr(step, "RULES", (*RULES, Rule("forgetful", "two in one", forgetful)))
    graph = Graph()
    x = graph.op("Relu", graph.op("Relu", graph.take("x", ["b", 8])))
    model = graph.model(graph.op("Tanh", graph.op("Neg", x)))
    outcome = simplified(model, {"x": RANDOM.normal(size=(2, 8)).astype(np.float32)}, tmp_path)
    assert ops(outcome.model) == ["Relu", "Neg", "Tanh"]
    assert len(outcome.warnings) == 1
    assert outcome.warnings[0].startswith("left out, as it does not compute the same here: forgetful, two in one")


FUSED: list[tuple[Callable[[Graph, str], str], list[str], int]] = [
    (
        lambda g, x: g.op("FusedConv", x, weight(g, 4, 4, 1, 1), weight(g, 4), x, domain="com.microsoft",
                          activation="Relu"),
        ["Conv", "Add", "Relu"], 17,
    ),
    (
        lambda g, x: g.op("FusedConv", x, weight(g, 4, 4, 3, 3), domain="com.microsoft", pads=[1, 1, 1, 1],
                          activation="Clip", activation_params=[-0.1, 0.2]),
        ["Conv", "Clip"], 17,
    ),
    (
        lambda g, x: g.op("FusedGemm", g.op("Flatten", x), weight(g, 5, 256), weight(g, 5), domain="com.microsoft",
                          transB=1, alpha=0.5, activation="LeakyRelu", activation_alpha=0.25),
        ["Flatten", "Gemm", "LeakyRelu"], 17,
    ),
    (
        lambda g, x: g.op("FusedMatMul", x, x, domain="com.microsoft", transA=1, alpha=0.5),
        ["Transpose", "MatMul", "Mul"], 17,
    ),
    (lambda g, x: g.op("BiasGelu", x, weight(g, 8), domain="com.microsoft"), ["Add", "Gelu"], 20),
    (lambda g, x: g.op("Gelu", x, domain="com.microsoft"), ["Div", "Erf", "Add", "Mul", "Mul"], 17),
    (lambda g, x: g.op("FastGelu", x, domain="com.microsoft"), ["Gelu"], 20),
    (lambda g, x: g.op("FastGelu", x, weight(g, 8), domain="com.microsoft"),
     ["Add", "Mul", "Mul", "Mul", "Add", "Mul", "Tanh", "Add", "Mul", "Mul"], 17),
    (lambda g, x: g.op("QuickGelu", x, domain="com.microsoft", alpha=1.5), ["Mul", "Sigmoid", "Mul"], 17),
    (lambda g, x: g.op("LayerNormalization", x, weight(g, 8), weight(g, 8), epsilon=1e-3),
     ["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"], 13),
]  # fmt: skip


@pytest.mark.parametrize(("write", "left", "opset"), FUSED)
def test_fused_operators_become_standard_ones(
    write: Callable[[Graph, str], str], left: list[str], opset: int, tmp_path: Path
) -> None:
    graph = Graph(opset)
    model = graph.model(write(graph, graph.take("x", ["b", 4, 8, 8])))
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    outcome = simplified(model, {"x": RANDOM.normal(size=(2, 4, 8, 8)).astype(np.float32)}, tmp_path)
    assert ops(outcome.model) == left
    assert set(outcome.model.graph.opset_imports) == {""}


@pytest.mark.parametrize("simple", [False, True])
def test_the_sum_that_a_skipping_normalisation_passes_on(simple: bool, tmp_path: Path) -> None:
    graph = Graph()
    x, y = graph.take("x", ["b", 4, 8]), graph.take("y", ["b", 4, 8])
    kind = "SkipSimplifiedLayerNormalization" if simple else "SkipLayerNormalization"
    weights = [weight(graph, 8) for _ in range(2 if simple else 3)]
    norm = graph.op(kind, x, y, *weights, domain="com.microsoft", epsilon=1e-3, outputs=4)
    for node in graph.nodes:
        node.output[1], node.output[2] = "", ""
    model = graph.model(graph.op("Add", graph.op("Tanh", norm[0]), norm[3]))
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    feeds = {name: RANDOM.normal(size=(2, 4, 8)).astype(np.float32) for name in ("x", "y")}
    outcome = simplified(model, feeds, tmp_path)
    assert not any(node.domain for node in outcome.model.graph)


def test_what_fuse_made_stays_fused(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 4, 8])
    parts = [graph.op("MatMul", x, weight(graph, 8, 8)) for _ in range(3)]
    y = graph.op("MultiHeadAttention", *parts, domain="com.microsoft", num_heads=2)
    model = graph.model(graph.op("BiasGelu", y, weight(graph, 8), domain="com.microsoft"))
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    outcome = simplified(model, {"x": RANDOM.normal(size=(2, 4, 8)).astype(np.float32)}, tmp_path)
    assert "BiasGelu" in ops(outcome.model)


def test_types_are_those_of_the_graph(tmp_path: Path) -> None:
    """Casts to the type a value has, found where no file says it."""
    graph = Graph()
    x = graph.op("Relu", graph.take("x", ["b", 8]))
    model = graph.model(graph.op("Tanh", graph.op("Cast", x, to=TensorProto.FLOAT)))
    for node in model.graph:
        node.outputs[0].type = None if node.op_type == "Relu" else node.outputs[0].type
    outcome = simplified(model, {"x": RANDOM.normal(size=(2, 8)).astype(np.float32)}, tmp_path)
    assert ops(outcome.model) == ["Relu", "Tanh"]
