"""Shape arithmetic made literal: what follows from sizes is, what follows from data is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def sliced(n: Network, x: str, axis: int) -> str:
    """Half of an axis, computed."""
    half = n.node("Div", n.node("Gather", n.node("Shape", x), n.literal(axis)), n.literal(2))
    return n.node("Slice", x, n.literal(0), half, n.literal(axis))


@pytest.mark.parametrize("run", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_open_axes_are_those_that_another_size_of_the_input_changes(run: bool, batch: int) -> None:
    n = Network()
    model = n.model(sliced(n, n.node("Relu", n.input("x", "batch", 3, "t")), 1))
    made, facts = known_shapes.prepare(model, {"x": (batch, 3, 8)}, run=run)
    assert literal(made, "Slice_4", 2)
    assert [node.op_type for node in made.graph] == ["Relu", "Slice"]
    names = ("x", "Relu_0_out", "Slice_4_out")
    assert facts.open == {(name, axis) for name in names for axis in (0, 2)}
    assert [facts.shapes[name] for name in names] == [(batch, 3, 8), (batch, 3, 8), (batch, 1, 8)]


@pytest.mark.parametrize("run", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_half_of_an_open_axis_is_open(run: bool, batch: int) -> None:
    n = Network()
    model = n.model(sliced(n, n.input("x", "batch", 8), 0))
    made, facts = known_shapes.prepare(model, {"x": (batch, 8)}, run=run)
    assert not literal(made, "Slice_3", 2)
    assert {("x", 0), ("Slice_3_out", 0)} <= facts.open
    assert not any(name in ("x", "Slice_3_out") and axis == 1 for name, axis in facts.open)


def test_sizes_that_the_model_does_not_take_are_not_tried() -> None:
    """The second axis is open by name, and a weight fixes it; then only samples vary."""
    n = Network()
    model = n.model(n.node("MatMul", n.input("x", "batch", "f"), n.weight(8, 4)))
    assert known_shapes.prepare(model, {"x": (2, 8)})[1].open == {("x", 0), ("MatMul_0_out", 0)}
    n = Network()
    fixed = n.model(n.node("MatMul", n.input("x", 2, 8), n.weight(8, 4)))
    assert known_shapes.prepare(fixed, {"x": (2, 8)})[1].open == frozenset()


@pytest.mark.parametrize("run", [True, False])
def test_without_open_axes_all_arithmetic_is_literal(run: bool) -> None:
    n = Network()
    model = n.model(sliced(n, n.input("x", 4, 8), 0))
    made, facts = known_shapes.prepare(model, {"x": (4, 8)}, run=run)
    assert literal(made, "Slice_3", 2)
    assert facts.open == frozenset()
    assert facts.shapes["Slice_3_out"] == (2, 8)


def test_other_readers_keep_the_computed_value() -> None:
    n = Network()
    x = n.input("x", "batch", 8)
    half = n.node("Div", n.node("Gather", n.node("Shape", x), n.literal(1)), n.literal(2))
    y = n.node("Slice", x, n.literal(0), half, n.literal(1))
    model = n.model(n.node("Add", y, n.node("Cast", half, to=TensorProto.FLOAT)))
    made = prepared(model)
    assert literal(made, "Slice_3", 2)
    (cast,) = (node for node in made.graph if node.op_type == "Cast")
    assert cast.inputs[0] is not None
    assert cast.inputs[0].producer() is not None
    same(model, {"x": np.arange(16, dtype=np.float32).reshape(2, 8)})


def test_absurd_lengths_are_unknown() -> None:
    """No position of theirs is written down."""
    n = Network()
    x = n.input("x", "batch", 4)
    model = n.model(n.node("Expand", n.node("Unsqueeze", x, n.literal(2)), n.literal(1, 1, 10_000_001)))
    facts = known_shapes.prepare(model, {"x": (1, 4)}, run=False)[1]
    assert facts.shapes["Unsqueeze_0_out"] == (1, 4, 1)
    assert "Expand_1_out" not in facts.shapes
    n = Network()
    model = n.model(
        n.node("Expand", n.node("Unsqueeze", n.input("x", "batch", 4), n.literal(2)), n.literal(1, 1, 10_000_000))
    )
    assert known_shapes.prepare(model, {"x": (1, 4)}, run=False)[1].shapes["Expand_1_out"] == (1, 4, 10_000_000)


def test_shapes_of_weights_that_came_later() -> None:
    n = Network()
    model = n.model(n.node("MatMul", n.input("x", "batch", 8), n.weight(8, 4)))
    facts = known_shapes.KnownShapes({"x": (2, 8), "w0": (1, 1)}, frozenset({("x", 0)}))
    assert facts.with_weights(model) == known_shapes.KnownShapes({"x": (2, 8), "w0": (8, 4)}, frozenset({("x", 0)}))


def test_sizes_of_what_was_found_steer_what_they_reach() -> None:
    """How many numbers are not zero decides a shape, whose size decides another."""
    n = Network()
    x = n.input("x", "batch", 8)
    many = n.node("Gather", n.node("Shape", n.node("NonZero", x)), n.literal(1))
    some = n.node("Slice", x, n.literal(0), many, n.literal(1))
    length = n.node("Gather", n.node("Shape", some), n.literal(1))
    y = n.node("Slice", n.node("Relu", x), n.literal(0), length, n.literal(1))
    model = n.model(y)
    x_ = np.zeros((1, 8), np.float32)
    x_[0, 2:5] = 1
    same(model, {"x": x_})
    made = prepared(model)
    slices = [node.name or "" for node in made.graph if node.op_type == "Slice"]
    assert not any(literal(made, name, 2) for name in slices)


def test_the_model_given_stays() -> None:
    n = Network()
    model = n.model(sliced(n, n.input("x", "batch", 8), 1))
    before = io.to_bytes(model)
    known_shapes.prepare(model, {"x": (2, 8)})
    assert io.to_bytes(model) == before


def test_strings_are_fed_empty() -> None:
    n = Network()
    n.inputs.append(helper.make_tensor_value_info("s", TensorProto.STRING, ["batch"]))
    y = n.node("Cast", n.node("Shape", "s"), to=TensorProto.FLOAT)
    facts = known_shapes.prepare(n.model(n.node("Add", n.input("x", "batch", 4), y)), {"x": (2, 4), "s": (2,)})[1]
    assert facts.open == {("x", 0), ("s", 0), ("Add_2_out", 0)}


def cut_by_length_of(n: Network, x: str, found: str) -> ir.Model:
    """`x` as long as the last axis of `found`."""
    length = n.node("Gather", n.node("Shape", found), n.literal(-1))
    return n.model(n.node("Slice", x, n.literal(0), length, n.literal(1)))


def cut_is_literal(model: ir.Model) -> bool:
    made = prepared(model)
    return literal(made, [node.name or "" for node in made.graph if node.op_type == "Slice"][-1], 2)


def test_the_size_of_what_a_fed_number_cut_is_no_literal() -> None:
    n = Network()
    x, stop = n.input("x", "batch", 8), counted(n, "stop")
    model = cut_by_length_of(n, n.node("Relu", x), n.node("Slice", x, n.literal(0), stop, n.literal(1)))
    assert not cut_is_literal(model)
    same(model, {"x": np.arange(16, dtype=np.float32).reshape(2, 8), "stop": np.array([3])})


def test_the_size_of_what_a_branch_found_in_the_data_is_no_literal() -> None:
    n = Network()
    x = n.input("x", "batch", 8)
    out = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in ("a", "b")]
    branches = [
        helper.make_graph([helper.make_node("NonZero", [x], [value.name])], value.name, [], [value]) for value in out
    ]
    found = n.node("If", n.weight(values=np.array(True)), then_branch=branches[0], else_branch=branches[1])
    assert not cut_is_literal(cut_by_length_of(n, x, found))


def test_what_is_found_in_a_constant_is_a_literal() -> None:
    n = Network()
    assert cut_is_literal(cut_by_length_of(n, n.input("x", "batch", 8), n.node("NonZero", n.literal(1, 0, 2, 3))))


def test_nothing_runs_where_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError("run")

    n = Network()
    model = n.model(sliced(n, n.input("x", "batch", 8), 1))
    monkeypatch.setattr(known_shapes, "_values", fails)
    monkeypatch.setattr(known_shapes.shapes, "concrete", fails)
    assert known_shapes.prepare(model, {"x": (2, 8)}, run=False)[1].open >= {("x", 0)}


def odd(n: Network, x: str, axis: int) -> str:
    """Without its first row where an axis is odd."""
    rest = n.node("Mod", n.node("Gather", n.node("Shape", x), n.literal(axis)), n.literal(2))
    return n.node("Slice", n.node("Relu", x), rest, n.literal(9), n.literal(1))


def test_a_number_of_samples_is_looked_at_even_and_odd_and_so_is_what_has_its_name() -> None:
    """Twice as many would be even again."""
    n = Network()
    made, facts = known_shapes.prepare(n.model(odd(n, n.input("x", "batch", 8), 0)), {"x": (2, 8)})
    assert not literal(made, "Slice_4", 1)
    assert ("Slice_4_out", 1) in facts.open
    n = Network()
    x, turned = n.input("x", "batch", 8), n.input("turned", 8, "batch")
    model = n.model(odd(n, x, 0), n.node("Relu", turned))
    assert not literal(known_shapes.prepare(model, {"x": (2, 8), "turned": (8, 2)})[0], "Slice_4", 1)


def test_other_lengths_are_twice_as_long() -> None:
    """Pairs are made of a length, which an odd one does not take; one and two are the lengths that fit a pair."""
    n = Network()
    model = n.model(n.node("Reshape", n.input("x", 1, "t"), n.literal(1, -1, 2)))
    assert known_shapes.prepare(model, {"x": (1, 8)})[1].open == {("x", 1), ("Reshape_0_out", 1)}
    n = Network()
    model = n.model(n.node("Mul", n.input("x", 1, "t"), n.weight(2)))
    assert known_shapes.prepare(model, {"x": (1, 1)})[1].open == {("x", 1)}


def test_axes_without_a_name_are_changed_one_by_one() -> None:
    n = Network()
    n.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None]))
    model = n.model(n.node("MatMul", "x", n.weight(8, 4)))
    assert known_shapes.prepare(model, {"x": (2, 8)})[1].open == {("x", 0), ("MatMul_0_out", 0)}


def test_axes_that_have_to_be_equal_are_changed_together_whatever_their_names() -> None:
    n = Network()
    model = n.model(n.node("Concat", n.input("a", "n", 4), n.input("b", "m", 4), axis=1))
    assert known_shapes.prepare(model, {"a": (2, 4), "b": (2, 4)})[1].open == {("a", 0), ("b", 0), ("Concat_0_out", 0)}


def test_models_are_looked_at_with_zeros() -> None:
    """A table of one row has no second."""
    n = Network()
    n.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"]))
    model = n.model(n.node("Gather", n.weight(1, 4), "ids"))
    assert known_shapes.prepare(model, {"ids": (2,)})[1].open == {("ids", 0), ("Gather_0_out", 0)}


@pytest.mark.parametrize(("declared", "fed"), [(None, (2, 8)), (["batch", "t", "f"], (2, 8)), (["batch"], (2, 8))])
def test_inputs_of_unknown_or_of_another_rank_have_no_open_axes(declared: Any, fed: tuple[int, ...]) -> None:
    n = Network()
    model = n.model(n.node("Relu", n.input("x", *(declared or [1]))))
    if declared is None:
        model.graph.inputs[0].shape = None
    for run in (True, False):
        facts = known_shapes.prepare(model, {"x": fed}, run=run)[1]
        assert facts.open == frozenset()
        assert facts.shapes["Relu_0_out"] == fed


def test_inputs_that_are_not_fed_have_no_open_axes() -> None:
    n = Network()
    model = n.model(n.node("Relu", n.input("x", "batch", 8)), n.node("Neg", n.input("other", "n", "m")))
    opened = known_shapes.prepare(model, {"x": (2, 8)}, run=False)[1].open
    assert opened == {("x", 0), ("Relu_0_out", 0)}


def test_a_model_that_does_not_run_at_all_has_no_literals_of_its_own() -> None:
    """The two inputs do not fit."""
    n = Network()
    x = n.node("Add", n.input("x", "batch", "f"), n.input("other", "batch", "g"))
    model = n.model(sliced(n, x, 1))
    made, facts = known_shapes.prepare(model, {"x": (2, 8), "other": (2, 7)})
    assert not literal(made, "Slice_4", 2)
    assert facts.open == frozenset()


@pytest.mark.parametrize(("most", "seen"), [(40, True), (8, True), (7, False)])
def test_inputs_of_too_many_numbers_are_not_run(most: int, seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five times eight at the second look, or once; a small input beside them changes nothing."""
    monkeypatch.setattr(known_shapes.shapes, "MOST_VALUES", most)
    n = Network()
    model = n.model(sliced(n, n.input("x", "batch", 8), 1), n.node("Relu", n.input("small", 1)))
    facts = known_shapes.prepare(model, {"x": (2, 8), "small": (1,)})[1]
    assert (("x", 0) in facts.open) is seen


def test_weights_in_constant_nodes_and_turned_ones_become_initializers() -> None:
    n = Network()
    held = helper.make_tensor("", TensorProto.FLOAT, [8, 4], np.arange(32))
    x = n.node("MatMul", n.input("x", "batch", 8), n.node("Constant", value=held))
    made = prepared(n.model(n.node("MatMul", x, n.node("Transpose", n.weight(5, 4)))))
    assert [node.name for node in made.graph] == ["MatMul_1", "MatMul_3"]
    assert literal(made, "MatMul_1", 1)
    assert literal(made, "MatMul_3", 1)


@pytest.mark.parametrize("shared", ["norm", "layers", "weights"])
def test_a_bias_stored_once_for_layers_that_share_nothing_else_ties_none(shared: str) -> None:
    n = Network()
    x, bias = n.input("x", "batch", 6), n.weight(6)
    first = n.weight(6, 6)
    one = n.node("Add", n.node("MatMul", x, first), bias)
    two = n.node("Gemm", n.node("Relu", one), first if shared == "weights" else n.weight(6, 6), bias)
    y = n.node("MatMul", n.node("Relu", two), n.weight(6, 3))
    outputs = [n.node("LayerNormalization", x, n.weight(6), bias)] if shared == "norm" else []
    model = n.model(y, *outputs)
    made = known_shapes.prepare(model, {"x": (2, 6)})[0]
    add, gemm = (next(node for node in made.graph if node.op_type == op) for op in ("Add", "Gemm"))
    names = [add.inputs[1].name, gemm.inputs[2].name]
    assert (
        names
        == {
            "norm": [f"{bias}__{add.name}", f"{bias}__{gemm.name}"],
            "layers": [bias, f"{bias}__{gemm.name}"],
            "weights": [bias, bias],
        }[shared]
    )
    feed = {"x": np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)}
    for before, after in zip(
        *(runtime.Session(io.to_bytes(m), threads=1).run(feed).values() for m in (model, made)), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_a_vector_that_is_no_bias_of_a_layer_stays_shared() -> None:
    """Added to what no stored weight made, or multiplied."""
    n = Network()
    x, vector = n.input("x", "batch", 6), n.weight(6)
    y = n.node("Add", n.node("Mul", n.node("MatMul", x, n.weight(6, 6)), vector), vector)
    made = known_shapes.prepare(n.model(n.node("Add", y, n.node("MatMul", x, n.weight(6, 6)))), {"x": (2, 6)})[0]
    assert vector in made.graph.initializers
    assert len(made.graph.initializers[vector].uses()) == 2


def looked_at(monkeypatch: pytest.MonkeyPatch, accepts: Callable[[dict[str, tuple[int, ...]]], bool]) -> Any:
    """The second look at a model that runs with the sizes that `accepts` says."""
    n = Network()
    x, past, mask = n.input("x", "batch", "now", 4), n.input("p", "batch", "past", 4), n.input("m", "batch", "all", 1)
    model = n.model(n.node("Mul", n.node("Concat", past, x, axis=1), mask))
    monkeypatch.setattr(known_shapes, "_runs", lambda model, feeds: accepts(feeds))
    feeds = {"x": (2, 8, 4), "p": (2, 6, 4), "m": (2, 14, 1)}
    made = known_shapes._other_sizes(model, feeds, run=True)
    return None if made is None else [made[name][:2] for name in feeds]


@pytest.mark.parametrize(
    ("accepts", "found"),
    [
        (lambda f: f["x"][1] + f["p"][1] == f["m"][1], [(5, 16), (5, 12), (5, 28)]),
        (lambda f: f["x"][1] + f["p"][1] == f["m"][1] <= 14, [(5, 4), (5, 3), (5, 7)]),
        (lambda f: f["x"][0] <= 2 and f["m"][1] == 14, [(1, 16), (1, 12), (1, 14)]),
        (lambda f: f["x"][1] == 8 and f["p"][1] <= 6, [(5, 8), (5, 3), (5, 28)]),
        (lambda f: f["x"][0] == 2 and f["x"][1] == 8 and f["p"][1] == 6 and f["m"][1] == 14, None),
    ],
)
def test_other_sizes_are_larger_else_smaller_all_at_once_else_one_by_one(
    accepts: Callable[[dict[str, tuple[int, ...]]], bool], found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert looked_at(monkeypatch, accepts) == found


def test_where_a_table_ends_with_the_data_shorter_lengths_still_run() -> None:
    n = Network()
    x = n.input("x", 1, "length", 4)
    end = n.node("Slice", n.node("Shape", x), n.literal(1), n.literal(2))
    y = n.node("Add", x, n.node("Slice", n.weight(8, 4), n.literal(0), end, n.literal(0)))
    made = known_shapes.prepare(n.model(y), {"x": (1, 8, 4)})[0]
    feed = {"x": np.zeros((1, 5, 4), np.float32)}
    assert next(iter(runtime.Session(io.to_bytes(made), threads=1).run(feed).values())).shape == (1, 5, 4)
