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
