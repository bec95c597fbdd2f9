"""What trains, and how it is written back."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lepton_cli.train import weights
from tests.quantize.builders import Graph


def names(model: ir.Model, nodes: set[str] | None = None) -> list[str]:
    return [value.name or "" for value in weights.weights(model, nodes)]


def test_weights_train_and_statistics_bounds_and_factors_do_not() -> None:
    graph = Graph()
    x = graph.take("x", ["b", 3, 8, 8])
    y = graph.conv(x, 3, 4)  # w0, w1
    numbers = [graph.constant(np.full(4, value, np.float32)) for value in (1, 0, 0.5, 2)]  # w2 to w5
    y = graph.op("BatchNormalization", y, *numbers)
    y = graph.op("Clip", y, graph.constant(np.float32(0)), graph.constant(np.float32(6)))
    y = graph.op("Mul", y, graph.constant(np.array([0.125], np.float32)))
    y = graph.op("Mul", y, graph.constant(np.ones((4, 1, 1), np.float32)))  # w9
    y = graph.op("Reshape", y, graph.constant(np.array([0, -1], np.int64)))
    assert names(graph.model(y)) == ["w0", "w1", "w2", "w3", "w9"]


def test_weights_are_seen_through_moves_and_each_once() -> None:
    graph = Graph()
    table = graph.constant(np.ones((8, 16), np.float32))
    half = graph.constant(np.ones((8, 8), np.float16))
    x = graph.op("Gather", table, graph.take("x", ["b"], TensorProto.INT64))
    y = graph.op("MatMul", x, graph.op("Transpose", table, perm=[1, 0]))
    y = graph.op("MatMul", y, graph.op("Cast", half, to=TensorProto.FLOAT))
    parts = graph.op(
        "Concat", graph.constant(np.ones((8, 3), np.float32)), graph.constant(np.ones((8, 4), np.float32)), axis=1
    )
    assert names(graph.model(graph.op("MatMul", y, parts))) == ["w0", "w1", "w2", "w3"]


def test_only_nodes_that_are_named() -> None:
    graph = Graph()
    y = graph.linear(graph.linear(graph.take("x", ["b", 4]), 4, 4), 4, 4)
    model = graph.model(y)
    assert names(model, {"Gemm_1"}) == ["w2", "w3"] or names(model, {"Gemm_1"}) == ["w3", "w2"]
    assert names(model, set()) == []


def branching() -> onnx.ModelProto:
    """A weight in a Constant node, and one in each branch of an If."""

    def body(name: str, factor: float) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.full((4, 4), factor, np.float32), f"{name}_weight")
        nodes = [helper.make_node("MatMul", ["h", f"{name}_weight"], [f"{name}_out"], name=f"{name}_product")]
        return helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)], [weight]
        )

    constant = numpy_helper.from_array(np.eye(4, dtype=np.float32) * 2)
    nodes = [
        helper.make_node("Constant", [], ["c"], name="c", value=constant),
        helper.make_node("MatMul", ["x", "c"], ["h"], name="first"),
        helper.make_node("If", ["on"], ["y"], name="if", then_branch=body("then", 1), else_branch=body("else", -1)),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 4]),
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 4])]
    return helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


def test_constant_nodes_and_branches_hold_weights() -> None:
    assert sorted(names(ir.from_proto(branching()))) == ["c", "else_weight", "then_weight"]


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_what_is_written_keeps_type_and_shape(kind: type) -> None:
    graph = Graph()
    value = graph.constant(np.ones((4, 4), kind))
    y = graph.op("MatMul", graph.take("x", ["b", 4]), graph.op("Cast", value, to=TensorProto.FLOAT))
    model = graph.model(y)
    held = weights.weights(model)[0]
    weights.write(held, np.arange(16, dtype=np.float32) / 3)
    made = ir.to_proto(model).graph.initializer[0]
    array = numpy_helper.to_array(made)
    assert array.dtype == kind
    assert np.array_equal(array, (np.arange(16, dtype=np.float32) / 3).astype(kind).reshape(4, 4))


def test_constant_nodes_are_written_in_their_place() -> None:
    model = ir.from_proto(branching())
    for value in weights.weights(model):
        weights.write(value, np.full((4, 4), 7, np.float32))
    proto = ir.to_proto(model)
    assert np.array_equal(numpy_helper.to_array(proto.graph.node[0].attribute[0].t), np.full((4, 4), 7, np.float32))
    inner = [numpy_helper.to_array(one.g.initializer[0]) for one in proto.graph.node[2].attribute]
    assert all((array == 7).all() for array in inner)
    assert [node.op_type for node in proto.graph.node] == ["Constant", "MatMul", "If"]


def test_zeros_of_a_pruned_matrix_are_known() -> None:
    pruned = np.array([[0, 1], [2, 0]], np.float32)
    found = weights.zeros(pruned)
    assert found is not None
    assert np.array_equal(found, [[True, False], [False, True]])
    assert weights.zeros(np.zeros(8, np.float32)) is None  # a bias that begins at zero
    assert weights.zeros(np.zeros((8, 8), np.float32)) is None
    assert weights.zeros(np.ones((20, 20), np.float32)) is None
