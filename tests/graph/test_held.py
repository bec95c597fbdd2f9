"""Nodes that hold weights, whatever the operator and wherever the tensor stands."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lepton_cli.graph.held import holders

WEIGHT = np.zeros((32, 16), np.float32)


def model(nodes: list[onnx.NodeProto], held: dict[str, np.ndarray], inputs: tuple[str, ...] = ("x",)) -> ir.Model:
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(
        nodes, "g", shapes, result, [numpy_helper.from_array(array, name) for name, array in held.items()]
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def told(found: ir.Model) -> list[tuple[str, int]]:
    return [(holder.node.op_type, holder.values) for holder in holders(found)]


@pytest.mark.parametrize("op", ["MatMul", "Einsum", "GRU", "ConvTranspose", "NobodyKnowsThis"])
def test_any_operator(op: str) -> None:
    assert told(model([helper.make_node(op, ["x", "w"], ["y"])], {"w": WEIGHT})) == [(op, 512)]


def test_vectors_small_tensors_and_indices_are_no_weights() -> None:
    for array in (np.zeros(512, np.float32), np.zeros((1, 512, 1), np.float32), np.zeros((15, 17), np.float32)):
        assert told(model([helper.make_node("Mul", ["x", "w"], ["y"])], {"w": array})) == []
    assert told(model([helper.make_node("Gather", ["x", "w"], ["y"])], {"w": np.zeros((32, 16), np.int64)})) == []
    assert told(model([helper.make_node("Mul", ["x", "w"], ["y"])], {"w": np.zeros((16, 16), np.float16)})) == [
        ("Mul", 256)
    ]


def test_a_weight_is_followed_to_the_node_that_computes_with_it() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHT)),
        helper.make_node("Cast", ["c"], ["h"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["h"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["z"]),
        helper.make_node("Gather", ["w", "x"], ["e"]),
        helper.make_node("Add", ["z", "e"], ["y"]),
    ]
    assert told(model(nodes, {"w": WEIGHT})) == [("MatMul", 512), ("Gather", 512)]


def test_a_weight_that_callers_can_override() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    assert told(model(nodes, {"w": WEIGHT}, inputs=("x", "w"))) == [("MatMul", 512)]


def test_branches_and_lists_of_numbers() -> None:
    def branch(name: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("MatMul", ["x", "w"], [name])], name, [], [result])

    nodes = [
        helper.make_node("If", ["x"], ["z"], then_branch=branch("a"), else_branch=branch("b")),
        helper.make_node("Trees", ["z"], ["y"], domain="ai.onnx.ml", thresholds=[0.5] * 300),
    ]
    assert sorted(told(model(nodes, {"w": WEIGHT}))) == [("MatMul", 512), ("MatMul", 512), ("Trees", 300)]


def test_a_stored_output_is_held_by_the_node_that_gives_it() -> None:
    assert told(model([helper.make_node("Transpose", ["w"], ["y"])], {"w": WEIGHT})) == [("Transpose", 512)]


def test_lists_count_from_256_numbers_on() -> None:
    for length, found in ((255, []), (256, [("Trees", 256)])):
        node = helper.make_node("Trees", ["x"], ["y"], domain="ai.onnx.ml", a=[0.5] * length, b=[0.5] * 9, c=[1] * 300)
        assert told(model([node], {})) == found
    node = helper.make_node("Trees", ["x"], ["y"], domain="ai.onnx.ml", a=[0.5] * 300, b=[0.5] * 400)
    assert told(model([node], {})) == [("Trees", 700)]


def test_numbers_of_a_constant_are_a_vector() -> None:
    for attribute in ({"value_floats": [0.5] * 300}, {"value_float": 1.0}, {"value": 1.0}):
        nodes = [helper.make_node("Constant", [], ["c"], **attribute), helper.make_node("Mul", ["x", "c"], ["y"])]
        assert told(model(nodes, {})) == []


def test_a_constant_of_another_domain_is_none() -> None:
    node = helper.make_node("Constant", [], ["c"], domain="other", value=numpy_helper.from_array(WEIGHT))
    assert told(model([node, helper.make_node("Mul", ["x", "c"], ["y"])], {})) == []


def test_a_tensor_that_is_read_twice_counts_once() -> None:
    nodes = [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("Einsum", ["x", "w", "t", "v", "w"], ["y"])]
    (holder,) = holders(model(nodes, {"w": WEIGHT, "v": np.ones((16, 17), np.float32)}))
    assert [tensor.name for tensor in holder.tensors] == ["w", "v"]
    assert holder.values == 512 + 272


def test_a_node_with_a_body_computes_whatever_it_reads() -> None:
    """A Loop whose start, count and condition are all stored."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Mul", ["state", "x"], ["next"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("state", TensorProto.FLOAT, None)],
        [info("on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Loop", ["count", "true", "w"], ["last"], body=body),
        helper.make_node("Add", ["last", "x"], ["y"]),
    ]
    held = {"count": np.array(3), "true": np.array(True), "w": WEIGHT}
    assert told(model(nodes, held)) == [("Loop", 512)]


def test_what_is_left_out_and_what_is_made_of_nothing() -> None:
    nodes = [
        helper.make_node("RandomNormal", [], ["r"], shape=[32, 16]),
        helper.make_node("Clip", ["r", "", "w"], ["m"]),
        helper.make_node("Resize", ["x", "", "m"], ["y"]),
    ]
    assert told(model(nodes, {"w": WEIGHT})) == [("Resize", 512)]


def test_two_columns_are_a_matrix() -> None:
    assert told(model([helper.make_node("Mul", ["x", "w"], ["y"])], {"w": np.zeros((128, 2), np.float32)})) == [
        ("Mul", 256)
    ]


def test_a_node_that_gives_one_stored_output_holds_it_for_all() -> None:
    nodes = [helper.make_node("Split", ["w"], ["y", "o"]), helper.make_node("Mul", ["x", "o"], ["z"])]
    assert told(model(nodes, {"w": WEIGHT})) == [("Split", 512)]
