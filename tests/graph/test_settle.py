"""What follows from sizes alone: shapes and small numbers, and never what is fed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lepton_cli.graph.settle import settle
from lepton_cli.model import io
from tests.hostile.models import FLOAT, model, tensor

N = helper.make_node


def network(nodes: list[Any], **held: Any) -> ir.Model:
    inputs: dict[str, Any] = {"x": (FLOAT, ["b", "n"]), "other": (FLOAT, ["m", 2])}
    outputs = {nodes[-1].output[0]: (FLOAT, None)}
    proto = model(nodes, inputs, outputs, [tensor(name, np.asarray(array)) for name, array in held.items()])
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    return ir.from_proto(proto)


def sized() -> list[Any]:
    """Zeros, as many as `x` has columns."""
    return [
        N("Shape", ["x"], ["size"]),
        N("Gather", ["size", "one"], ["columns"]),
        N("ConstantOfShape", ["columns"], ["zeros"]),
        N("Add", ["x", "zeros"], ["y"]),
    ]


@pytest.mark.parametrize("length", [3, 4096, 4097])
def test_small_numbers_are_computed_and_large_ones_have_a_shape(length: int) -> None:
    shapes, values = settle(network(sized(), one=np.array([1])), {"x": (2, length)})
    if length <= 4096:
        np.testing.assert_array_equal(values["zeros"], np.zeros(length))
    else:
        assert {name: array.tolist() for name, array in values.items()} == {"columns": [length]}
    assert shapes == {
        "x": (2, length),
        "one": (1,),
        "size": (2,),
        "columns": (1,),
        "zeros": (length,),
        "y": (2, length),
    }


def test_constants_in_nodes_are_numbers_of_the_graph_where_they_are_small() -> None:
    small, large = np.arange(4096), np.arange(4097)
    nodes = [N("Constant", [], [name], value=tensor("", array)) for name, array in (("s", small), ("l", large))]
    nodes += [N("Add", ["x", "held"], ["y"])]
    shapes, values = settle(network(nodes, held=np.zeros(1, np.float32)), {"x": (2, 3)})
    assert (values.keys(), shapes["l"], shapes["held"]) == ({"s"}, (4097,), (1,))


def test_folding_and_inference_take_turns() -> None:
    """The size of what was reshaped by a size decides the next."""
    nodes = []
    value = "x"
    for turn in range(5):
        nodes += [
            N("Shape", [value], [f"s{turn}"]),
            N("ReduceProd", [f"s{turn}"], [f"p{turn}"], keepdims=1),
            N("Concat", [f"p{turn}", "one"], [f"c{turn}"], axis=0),
            N("Reshape", [value, f"c{turn}"], [f"r{turn}"]),
        ]
        value = f"r{turn}"
    shapes, values = settle(network(nodes, one=np.array([1])), {"x": (2, 3)})
    assert shapes["r4"] == (6, 1)
    assert values["c4"].tolist() == [6, 1]


def test_a_part_of_what_is_large_is_not_computed() -> None:
    nodes = [N("Split", ["held", "parts"], ["a", "b"]), N("Add", ["x", "b"], ["y"])]
    shapes, values = settle(network(nodes, held=np.zeros(5000, np.float32), parts=np.array([4999, 1])), {"x": (2, 3)})
    assert values == {}
    assert (shapes["a"], shapes["b"]) == ((4999,), (1,))


def test_what_is_not_given_or_follows_from_the_data_stays_out() -> None:
    nodes = [
        N("Shape", ["other"], ["size"]),
        N("NonZero", ["x"], ["found"]),
        N("Shape", ["found"], ["many"]),
        N("Cast", ["many"], ["float"], to=TensorProto.FLOAT),
        N("Add", ["x", "x"], ["sum"]),
    ]
    shapes, values = settle(network(nodes), {"x": (2, 3)})
    assert values == {}
    assert shapes == {"x": (2, 3), "size": (2,), "many": (2,), "float": (2,), "sum": (2, 3)}


def test_the_model_stays_as_it_is() -> None:
    before = network(sized(), one=np.array([1]))
    given = io.to_bytes(before)
    settle(before, {"x": (2, 3)})
    assert io.to_bytes(before) == given
