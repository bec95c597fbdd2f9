"""Sequences: the standard has few cases with them, so onnxruntime runs whole graphs of theirs; and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from lepton_cli.train.network import Network
from lepton_cli.train.proof import tensors
from tests.quantize.builders import Graph
from tests.train.test_network import ran

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def number(graph: Graph, value: Any) -> str:
    return graph.constant(np.array(value, np.int64))


#: Operators on a sequence of three tensors, with the positions that they are given.
STEPS: list[list[tuple[str, list[int]]]] = [
    [],
    [("SequenceErase", [])],
    [("SequenceErase", [0])],
    [("SequenceErase", [-2])],
    [("SequenceInsert", [])],
    [("SequenceInsert", [0])],
    [("SequenceInsert", [-1])],
    [("SequenceErase", [1]), ("SequenceInsert", [1]), ("SequenceErase", [-1])],
]


@pytest.mark.parametrize("new_axis", [0, 1])
@pytest.mark.parametrize("steps", STEPS)
def test_as_onnxruntime(steps: list[tuple[str, list[int]]], new_axis: int) -> None:
    graph = Graph()
    x = graph.take("x", [3, 4])
    items = [graph.op("Mul", x, graph.constant(np.float32(factor))) for factor in (1, 2, 3)]
    sequence = graph.op("SequenceConstruct", *items)
    for name, positions in steps:
        given = [graph.op("Neg", x)] if name == "SequenceInsert" else []
        sequence = graph.op(name, sequence, *given, *(number(graph, one) for one in positions))
    count = graph.op("Cast", graph.op("SequenceLength", sequence), to=1)
    joined = graph.op("ConcatFromSequence", sequence, axis=-1, new_axis=new_axis)
    model = graph.model(joined, count, graph.op("SequenceAt", sequence, number(graph, -1)))
    found, expected = Network(model).run(tensors({"x": X})), ran(model, {"x": X})
    for name, array in expected.items():
        assert np.array_equal(found[name].numpy(), array)
        assert found[name].shape == array.shape


@pytest.mark.parametrize(
    ("sizes", "attributes"),
    [
        (None, {}),
        (None, {"axis": 1, "keepdims": 0}),
        (None, {"axis": -1}),
        (3, {"axis": -1}),
        ([1, 2], {"axis": 0}),
        ([1, 1, 2], {"axis": 1}),
    ],
)
def test_split(sizes: Any, attributes: dict[str, int]) -> None:
    graph = Graph()
    given = [] if sizes is None else [number(graph, sizes)]
    sequence = graph.op("SplitToSequence", graph.take("x", [3, 4]), *given, **attributes)
    count = graph.op("Cast", graph.op("SequenceLength", sequence), to=1)
    model = graph.model(count, *(graph.op("SequenceAt", sequence, number(graph, place)) for place in (0, -1)))
    found, expected = Network(model).run(tensors({"x": X})), ran(model, {"x": X})
    assert all(np.array_equal(found[name].numpy(), array) for name, array in expected.items())
    assert all(found[name].shape == array.shape for name, array in expected.items())


def test_an_empty_one_grows_in_a_loop() -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    graph = Graph()
    x = graph.take("x", [3, 4])
    nodes = [
        helper.make_node("SequenceInsert", ["carried", x], ["more"], name="more"),
        helper.make_node("Identity", ["on"], ["still"], name="still"),
    ]
    taken = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        helper.make_value_info("carried", kind),
    ]
    made = [helper.make_tensor_value_info("still", TensorProto.BOOL, []), helper.make_value_info("more", kind)]
    body = helper.make_graph(nodes, "body", taken, made)
    rows = graph.op("Loop", number(graph, 3), "", graph.op("SequenceEmpty"), body=body)
    model = graph.model(graph.op("ConcatFromSequence", rows, axis=0))
    (found,) = Network(model).run(tensors({"x": X})).values()
    (expected,) = ran(model, {"x": X}).values()
    assert np.array_equal(found.numpy(), expected)


def test_gradients_come_back() -> None:
    """Twice the first part and the last: by the weight of a sum that is how often each row of the input counts."""
    graph = Graph()
    weight = graph.constant(np.eye(4, dtype=np.float32))
    parts = graph.op("SplitToSequence", graph.op("MatMul", graph.take("x", [3, 4]), weight), axis=0)
    first, last = (graph.op("SequenceAt", parts, number(graph, place)) for place in (0, 2))
    again = graph.op("SequenceConstruct", first, last, first)
    model = graph.model(graph.op("ConcatFromSequence", again, axis=0))
    network = Network(model)
    (found,) = network.run(tensors({"x": X})).values()
    found.sum().backward()
    slope = network.parameters[weight].grad
    assert slope is not None
    np.testing.assert_allclose(slope, np.repeat((2 * X[0] + X[2])[:, None], 4, 1), rtol=1e-6)
