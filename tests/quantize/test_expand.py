"""Operators without an int8 kernel: written as others, the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.graph.edit import Editor
from lepton_cli.quantize import expand
from tests.quantize.builders import Graph, ops, run

DATA = Arrays({"x": np.random.default_rng(0).normal(0, 4, (2, 3, 4, 5)).astype(np.float32)})


def single(
    op: str, *given: Any, swapped: bool = False, opset: int = 17, rank: int | None = 4, **attributes: Any
) -> Any:
    """One operator on `x` and constants, and a Relu behind it; the node too."""
    graph = Graph(opset)
    x = graph.take("x", None if rank is None else [2, 3, 4, 5][:rank])
    inputs = [x, *(graph.constant(np.asarray(one)) for one in given)]
    graph.op("Relu", graph.op(op, *(inputs[::-1] if swapped else inputs), **attributes))
    model = graph.model("t1")
    return model, next(iter(model.graph))


def written(model: ir.Model, node: ir.Node, *, limits: bool = True) -> tuple[list[str], dict[str, Any]]:
    ranges = {"x": (-8.0, 9.0), "t0": (0.0, 0.9)}
    made = expand.expand(node, Editor(model), ranges, limits=limits)
    assert made == [one for one in model.graph if one.op_type != "Relu"]
    assert [one.name for one in made if one.outputs[0].name == "t0"] == [made[-1].name] == [node.name]
    assert {value.dtype for one in made for value in one.outputs} == {ir.DataType.FLOAT}
    return [one.op_type for one in made], ranges


@pytest.mark.parametrize(
    ("op", "attributes", "expected"),
    [
        ("HardSwish", {}, ["Mul", "Add", "Clip", "Mul"]),
        ("HardSigmoid", {}, ["Mul", "Add", "Clip"]),
        ("HardSigmoid", {"alpha": 0.125, "beta": 0.25}, ["Mul", "Add", "Clip"]),
        ("ReduceMean", {"axes": [2, 3]}, ["GlobalAveragePool"]),
        ("ReduceMean", {"axes": [-1, 2], "keepdims": 0}, ["GlobalAveragePool", "Flatten"]),
    ],
)
def test_what_is_written_computes_the_same(op: str, attributes: dict[str, Any], expected: list[str]) -> None:
    model, node = single(op, **attributes)
    before = run(model, DATA)
    assert written(model, node)[0] == expected
    np.testing.assert_allclose(run(model, DATA), before, atol=2e-6)


def test_a_division_by_a_number_is_a_multiplication() -> None:
    model, node = single("Div", np.float32(6))
    before = run(model, DATA)
    assert written(model, node)[0] == ["Mul"]
    np.testing.assert_allclose(run(model, DATA), before, rtol=1e-6)


def test_axes_as_an_input_are_read_too() -> None:
    model, node = single("ReduceMean", np.array([3, 2]), opset=18)
    assert expand.over_positions(node)
    assert written(model, node)[0] == ["GlobalAveragePool"]


def test_means_over_other_axes_are_no_pooling() -> None:
    for options in ({"axes": [1, 2]}, {"axes": [3]}, {"axes": [2, 3], "rank": 3}, {"axes": [2, 3], "rank": None}, {}):
        if options.get("rank") == 3:
            options = {"axes": [1, 2], "rank": 3}
        assert not expand.over_positions(single("ReduceMean", **options)[1]), options


def test_factors_are_single_positive_numbers() -> None:
    found = {
        "Mul": (("Mul", np.float32(3)), {}),
        "in front": (("Mul", np.float32(3)), {"swapped": True}),
        "of one axis": (("Mul", np.float32([3])), {}),
        "Div": (("Div", np.float32(4)), {}),
        "divided": (("Div", np.float32(4)), {"swapped": True}),
        "negative": (("Mul", np.float32(-3)), {}),
        "zero": (("Mul", np.float32(0)), {}),
        "by zero": (("Div", np.float32(0)), {}),
        "infinite": (("Mul", np.float32(np.inf)), {}),
        "several": (("Mul", np.ones((3, 1, 1), np.float32)), {}),
        "two axes": (("Mul", np.float32([[3]])), {}),
        "another operator": (("Add", np.float32(3)), {}),
    }
    assert {name: expand.factor(single(*given, **options)[1]) for name, (given, options) in found.items()} == {
        "Mul": (0, 3.0), "in front": (1, 3.0), "of one axis": (0, 3.0), "Div": (0, 0.25), "divided": None,
        "negative": None, "zero": None, "by zero": None, "infinite": None, "several": None, "two axes": None,
        "another operator": None,
    }  # fmt: skip


def test_ranges_of_what_is_new_are_known() -> None:
    """A hard-sigmoid gives 0 to 1, or less where that was seen; below -3 a hard-swish is 0 whatever it reads."""
    _, ranges = written(*single("HardSwish"))
    assert {(name.split(".")[0], *pair) for name, pair in ranges.items()} == {
        ("x", -3.0, 9.0), ("t0", 0.0, 0.9), ("HardSwish_0_1", 0.0, 1.0), ("HardSwish_0_2", 0.0, 1.0)
    }  # fmt: skip
    _, ranges = written(*single("HardSigmoid", alpha=0.125, beta=0.25))
    assert {(name.split(".")[0], *pair) for name, pair in ranges.items()} == {
        ("x", -2.0, 6.0), ("t0", 0.0, 0.9), ("HardSigmoid_0_1", 0.0, 0.9)
    }  # fmt: skip
    _, ranges = written(*single("ReduceMean", axes=[2, 3], keepdims=0))
    assert {(name.split(".")[0], *pair) for name, pair in ranges.items()} == {
        ("x", -8.0, 9.0), ("t0", 0.0, 0.9), ("ReduceMean_0_0", 0.0, 0.9)
    }  # fmt: skip


def test_what_others_read_keeps_its_range() -> None:
    graph = Graph()
    x = graph.take("x", [2, 3, 4, 5])
    model = graph.model(graph.op("Add", graph.op("HardSwish", x), x))
    ranges = {"x": (-8.0, 9.0), "t0": (0.0, 0.9)}
    expand.expand(next(iter(model.graph)), Editor(model), ranges, limits=True)
    assert ranges["x"] == (-8.0, 9.0)


def test_without_a_grid_that_ends_at_0_a_hard_sigmoid_stays() -> None:
    for op in ("HardSigmoid", "HardSwish"):
        model, node = single(op)
        assert written(model, node, limits=False)[0] == [op]
        assert ops(model) == [op, "Relu"]


def test_a_falling_hard_sigmoid_stays() -> None:
    model, node = single("HardSigmoid", alpha=-0.5)
    assert written(model, node)[0] == ["HardSigmoid"]
