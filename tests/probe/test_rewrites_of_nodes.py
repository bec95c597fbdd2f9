"""Nodes that are written wrong: told from rounding by size and direction of their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.probe.rewrites import kept, strayed
from lepton_cli.step import Decision
from tests.probe.test_rewrites import combined
from tests.quantize.builders import Graph, context

TURN = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1], [0, 0, -1, 0]], np.float32)
EYE = np.eye(4, dtype=np.float32)


def chain(first: Any = EYE, second: Any = EYE, names: tuple[str, str] = ("m", "y")) -> ir.Model:
    """Two products with a Neg between, and one that nobody asks for."""
    graph = Graph()
    m = graph.op("MatMul", graph.take("x", ["b", 4]), graph.constant(np.float32(first)))
    y = graph.op("MatMul", graph.op("Neg", m), graph.constant(np.float32(second)))
    model = graph.model(y, graph.op("MatMul", m, graph.constant(EYE)))
    for value, name in zip((model.graph[0].outputs[0], model.graph[2].outputs[0]), names, strict=True):
        value.name = name
    return model


def seen(before: ir.Model, after: ir.Model, folder: Path, *names: str) -> dict[str, str]:
    x = np.float32([[1, 0, -2, 3], [0, 5, 1, 0]])
    return strayed(before, after, names or ("MatMul_0", "MatMul_2"), context(Arrays({"x": x}), folder, batch=2))


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (EYE, ""),
        (1.19 * EYE, ""),
        (0.81 * EYE, ""),
        (1.21 * EYE, "1.21 times what it was, at 14 dB"),
        (0.79 * EYE, "0.79 times what it was, at 14 dB"),
        (-EYE, "-1.00 times what it was, at -6 dB"),
        (EYE + 0.5 * TURN, ""),
        (EYE + 0.502 * TURN, "1.00 times what it was, at 6 dB"),
        (0 * EYE, "0.00 times what it was, at 0 dB"),
    ],
)
def test_rounding_leaves_size_and_direction(weight: np.ndarray, said: str, tmp_path: Path) -> None:
    """A turn by 90 degrees is orthogonal to what it turns: half of it is an error at 6.02 dB."""
    for node, after in (("MatMul_0", chain(first=weight)), ("MatMul_2", chain(second=weight))):
        told = f"stays float: in 8 or fewer bits its result is {said}"
        assert seen(chain(), after, tmp_path) == ({node: told} if said else {})


def test_errors_of_nodes_do_not_add_up(tmp_path: Path) -> None:
    assert seen(chain(), chain(1.15 * EYE, 1.15 * EYE), tmp_path) == {}
    assert seen(chain(), chain(2 * EYE, EYE), tmp_path).keys() == {"MatMul_0"}


def test_only_the_nodes_named_are_looked_at_and_only_where_their_result_is_left(tmp_path: Path) -> None:
    after = chain(2 * EYE, 2 * EYE)
    assert seen(chain(), after, tmp_path, "MatMul_2").keys() == {"MatMul_2"}
    assert seen(chain(), after, tmp_path, "Neg_1", "nobody") == {}
    assert seen(chain(), after, tmp_path, "nobody") == {}
    assert seen(chain(names=("m", "y")), chain(2 * EYE, 2 * EYE, names=("gone", "y")), tmp_path).keys() == {"MatMul_2"}


def test_a_result_of_another_shape_or_of_nothing(tmp_path: Path) -> None:
    wide = chain(second=np.ones((4, 6)))
    assert seen(chain(), wide, tmp_path) == {"MatMul_2": "its result has the shape [2, 6], not [2, 4]"}
    assert seen(chain(second=0 * EYE), chain(), tmp_path) == {}
    assert seen(chain(second=0 * EYE), chain(second=0 * EYE), tmp_path) == {}


def test_wrong_nodes_stay_as_they_are() -> None:
    made = [Decision(node=name, op="MatMul", action="quantized", reason="") for name in "ab"]
    assert [(one.node, one.action, one.reason) for one in kept(made, {"b": "no"})] == [
        ("a", "quantized", ""),
        ("b", "kept", "no"),
    ]


def test_without_a_batch_that_the_model_takes_nothing_is_said(tmp_path: Path) -> None:
    """A fixed batch of three, and two samples."""
    before, after = combined("Add", 0, batch=3), combined("Add", 9, batch=3)
    few = context(Arrays({"x": np.ones((2, 2), np.float32)}), tmp_path)
    assert strayed(before, after, ["Add_0"], few) == {}
    assert strayed(before, after, ["Add_0"], context(Arrays({"x": np.ones((3, 2), np.float32)}), tmp_path)).keys() == {
        "Add_0"
    }


def test_numbers_that_are_none_say_nothing_of_size_and_direction(tmp_path: Path) -> None:
    endless = EYE.copy()
    endless[1, 1] = np.inf
    assert seen(chain(second=endless), chain(second=endless), tmp_path) == {}
    assert seen(chain(second=endless), chain(second=2 * endless), tmp_path).keys() == {"MatMul_2"}


def test_of_several_results_the_first_is_compared(tmp_path: Path) -> None:
    def halves(last: str, factor: float) -> ir.Model:
        graph = Graph()
        first, second = graph.op("Split", graph.take("x", ["b", 4]), outputs=2, axis=1)
        model = graph.model(graph.op("Mul", first, graph.constant(np.float32(factor))), second)
        model.graph[0].outputs[1].name = last
        if factor != 1:
            model.graph[0].outputs[0].name, model.graph[1].outputs[0].name = "raw", first
        return model

    assert seen(halves("b", 1), halves("other", 2), tmp_path, "Split_0").keys() == {"Split_0"}
