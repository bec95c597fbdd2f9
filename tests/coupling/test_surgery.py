"""What stays of every axis in a cut whose labels are written by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.coupling.known_shapes import KnownShapes
from lepton_cli.coupling.links import Coupling
from lepton_cli.coupling.surgery import Surgery
from tests.coupling.networks import Network

WEIGHT = np.arange(30, dtype=np.float32).reshape(6, 5)
BIAS = np.arange(5, dtype=np.float32)
INNER, OUTER = np.arange(10, 16), np.arange(20, 25)
LABELS = {("x", 2): INNER, ("w0", 0): INNER, ("w0", 1): OUTER, ("MatMul_0_out", 2): OUTER, ("w1", 0): OUTER}


def surgery(*removed: int, shapes: dict[str, tuple[int, ...]] | None = None) -> Surgery:
    """`x` [2, 4, 6] times [6, 5], plus five numbers, all of whose axes but those of the sum are labelled."""
    n = Network()
    y = n.node("MatMul", n.input("x", 2, 4, 6), n.weight(values=WEIGHT))
    model = n.model(n.node("Add", y, n.weight(values=BIAS)))
    known = {"x": (2, 4, 6), "MatMul_0_out": (2, 4, 5), "Add_1_out": (2, 4, 5)} if shapes is None else shapes
    coupling = Coupling(LABELS, (), KnownShapes(known, frozenset()))
    return Surgery(model, coupling, np.array(removed, np.int64))


def value(one: Surgery, name: str) -> ir.Value:
    return next(
        v for node in one.model.graph for v in (*node.inputs, *node.outputs) if v is not None and v.name == name
    )


@pytest.mark.parametrize("axis", [2, -1])
def test_axes_count_from_either_end(axis: int) -> None:
    one = surgery(11, 14, 20)
    mask = one.keep(value(one, "x"), axis)
    assert mask is not None
    assert mask.tolist() == [True, False, True, True, False, True]
    assert (one.width(value(one, "x"), axis), one.width(value(one, "MatMul_0_out"), axis)) == (4, 4)
    assert one.width(value(one, "Add_1_out"), axis) == 5
    assert (one.width(value(one, "w1"), 0), one.width(value(one, "w1"), -1)) == (4, 4)
    assert one.keep(value(one, "x"), axis - 1) is None
    assert one.width(value(one, "x"), axis - 1) == 4


def test_values_with_a_shorter_axis_are_touched() -> None:
    one = surgery(11)
    touched = {name for name in ("x", "w0", "w1", "MatMul_0_out", "Add_1_out") if one.touches(value(one, name))}
    assert touched == {"x", "w0"}


def test_nothing_is_known_of_a_value_without_shape() -> None:
    one = surgery(11, shapes={"MatMul_0_out": ()})
    assert one.keep(value(one, "x"), 2) is None
    assert not one.touches(value(one, "x"))
    assert one.keep(value(one, "MatMul_0_out"), 0) is None


def test_weights_lose_what_goes_from_every_axis() -> None:
    one = surgery(11, 14, 20)
    one.slice_weights()
    held = {
        name: v.const_value.numpy() for name, v in one.model.graph.initializers.items() if v.const_value is not None
    }
    np.testing.assert_array_equal(held["w0"], WEIGHT[np.ix_([0, 2, 3, 5], [1, 2, 3, 4])])
    np.testing.assert_array_equal(held["w1"], [1, 2, 3, 4])
    two = surgery(11)
    two.slice_weights()
    np.testing.assert_array_equal(two.model.graph.initializers["w0"].const_value, WEIGHT[[0, 2, 3, 4, 5]])


def test_a_weight_of_which_all_stays_is_the_same_tensor() -> None:
    one = surgery(11)
    before = one.model.graph.initializers["w1"].const_value
    one.slice_weights()
    assert one.model.graph.initializers["w1"].const_value is before


def test_an_input_of_new_numbers() -> None:
    one = surgery(11)
    node = one.model.graph[1]
    one.set_input(node, 1, [3, -1])
    given = node.inputs[1]
    assert given is not None
    assert given.const_value is not None
    assert (given.name, given.const_value.dtype) == ("Add_1__1", ir.DataType.INT64)
    assert given.const_value.numpy().tolist() == [3, -1]
