"""Shape arithmetic made literal: what follows from sizes is, what follows from data is not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lepton_cli import runtime
from lepton_cli.coupling import known_shapes
from lepton_cli.graph.feeds import default_feeds
from lepton_cli.model import io
from tests.coupling.networks import Network


def prepared(model: ir.Model) -> ir.Model:
    return known_shapes.prepare(model, default_feeds(model, 2, 8))[0]


def literal(model: ir.Model, node: str, index: int) -> bool:
    value = next(n for n in model.graph if n.name == node).inputs[index]
    return value is not None and value.const_value is not None


def counted(n: Network, name: str) -> str:
    """An input of one whole number."""
    n.inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, [1]))
    return name


def same(model: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    before, after = (
        list(runtime.Session(io.to_bytes(m), threads=1).run(feeds).values()) for m in (model, prepared(model))
    )
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_length_that_is_fed_is_no_literal() -> None:
    """With zeros fed, every slice is empty at any size: that says nothing about other numbers."""
    n = Network()
    x, stop = n.input("x", "batch", 8), counted(n, "stop")
    y = n.node("Slice", x, n.literal(0), stop, n.literal(1))
    model = n.model(y)
    assert not literal(prepared(model), "Slice_0", 2)
    for count in (0, 3, 8):
        same(model, {"x": np.arange(16, dtype=np.float32).reshape(2, 8), "stop": np.array([count])})


def test_positions_found_in_the_data_are_no_literal() -> None:
    n = Network()
    x = n.input("x", "batch", 8)
    found = n.node("Shape", n.node("NonZero", x))
    many = n.node("Gather", found, n.literal(1))
    y = n.node("Slice", x, n.literal(0), many, n.literal(1))
    model = n.model(y)
    # How many there are is a size: it leaves by `Shape`, and is the data's all the same.
    x_ = np.zeros((1, 8), np.float32)
    x_[0, :3] = 1
    same(model, {"x": x_})


@pytest.mark.parametrize("feed", [True, False])
def test_what_a_branch_reads_counts(feed: bool) -> None:
    """An If that returns a fed number in both branches, or a constant."""
    n = Network()
    x, stop = n.input("x", "batch", 8), counted(n, "stop")
    given = stop if feed else n.literal(5)
    out = [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("a", "b")]
    branches = [
        helper.make_graph([helper.make_node("Identity", [given], [value.name])], value.name, [], [value])
        for value in out
    ]
    always = n.weight(values=np.array(True))
    chosen = n.node("If", always, then_branch=branches[0], else_branch=branches[1])
    model = n.model(n.node("Slice", x, n.literal(0), chosen, n.literal(1)))
    assert literal(prepared(model), "Slice_1", 2) is not feed
    same(model, {"x": np.arange(16, dtype=np.float32).reshape(2, 8), "stop": np.array([3])})


def test_arithmetic_on_sizes_is_a_literal_where_no_size_is_open() -> None:
    n = Network()
    x = n.input("x", "batch", 8)
    half = n.node("Div", n.node("Gather", n.node("Shape", x), n.literal(1)), n.literal(2))
    model = n.model(n.node("Slice", x, n.literal(0), half, n.literal(1)))
    assert literal(prepared(model), "Slice_3", 2)
    same(model, {"x": np.arange(24, dtype=np.float32).reshape(3, 8)})


def test_arithmetic_on_an_open_size_is_none() -> None:
    n = Network()
    x = n.input("x", "batch", 8)
    half = n.node("Div", n.node("Gather", n.node("Shape", x), n.literal(0)), n.literal(2))
    model = n.model(n.node("Slice", x, n.literal(0), half, n.literal(0)))
    assert not literal(prepared(model), "Slice_3", 2)
    same(model, {"x": np.arange(48, dtype=np.float32).reshape(6, 8)})


def test_random_numbers_are_none() -> None:
    n = Network()
    x = n.input("x", "batch", 8)
    number = n.node("Cast", n.node("RandomUniform", shape=[1], low=0.0, high=8.0, seed=1.0), to=TensorProto.INT64)
    model = n.model(n.node("Slice", x, n.literal(0), number, n.literal(1)))
    assert not literal(prepared(model), "Slice_2", 2)


def test_axes_of_one_name_are_changed_together() -> None:
    """Messages along edges are summed at nodes: as many rows as there are nodes, whatever the number of edges."""
    n = Network()
    x, told = n.input("x", "nodes", 4), n.input("told", "edges", 4)
    n.inputs.append(helper.make_tensor_value_info("ends", TensorProto.INT64, ["edges", 1]))
    y = n.node("Relu", x)
    none = n.node("ConstantOfShape", n.node("Shape", y))
    met = n.node("ScatterND", none, "ends", told, reduction="add")
    model = n.model(n.node("Add", y, met))
    made = known_shapes.prepare(model, {"x": (3, 4), "told": (5, 4), "ends": (5, 1)})
    assert not literal(made[0], "ConstantOfShape_2", 0)
    assert {(name, axis) for name, axis in made[1].open if name in ("x", "told", "ends")} == {
        ("x", 0),
        ("told", 0),
        ("ends", 0),
    }


def test_where_one_axis_cannot_change_the_others_do() -> None:
    """The batch is open in name only: the Reshape behind it knows one."""
    n = Network()
    x = n.input("x", "batch", "time", 4)
    flat = n.node("Reshape", x, n.literal(2, -1, 4))
    wide = n.node("Expand", n.weight(1, 1, 4), n.node("Shape", x))
    model = n.model(n.node("Add", flat, wide))
    opened = known_shapes.prepare(model, {"x": (2, 3, 4)})[1].open
    assert {axis for name, axis in opened if name == "x"} == {1}
