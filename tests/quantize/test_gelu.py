"""GELU in every way it is written becomes one operator behind a Conv, and computes the closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lepton_cli.graph.shapes import opset
from lepton_cli.model import io
from lepton_cli.quantize import gelu
from lepton_cli.runtime import Session
from tests.quantize.builders import Graph, images, run
from tests.quantize.test_static import quick

Way = Callable[[Graph, str], str]


def number(graph: Graph, value: float) -> str:
    return graph.constant(np.array(value, np.float32))


def one_and_erf(graph: Graph, x: str, divided: bool = True, root: float = math.sqrt(2)) -> str:
    inner = graph.op("Div", x, number(graph, root)) if divided else graph.op("Mul", number(graph, 1 / root), x)
    return str(graph.op("Add", graph.op("Erf", inner), number(graph, 1)))


def half_last(graph: Graph, x: str) -> str:
    return str(graph.op("Mul", graph.op("Mul", x, one_and_erf(graph, x)), number(graph, 0.5)))


def half_of_the_sum(graph: Graph, x: str) -> str:
    return str(graph.op("Mul", x, graph.op("Mul", one_and_erf(graph, x, divided=False), number(graph, 0.5))))


def half_of_x(graph: Graph, x: str) -> str:
    return str(graph.op("Mul", graph.op("Mul", number(graph, 0.5), x), one_and_erf(graph, x)))


def between(way: Way, opset: int = 17, extra: bool = False) -> ir.Model:
    """Conv, `way`, Conv."""
    graph = Graph(opset)
    x = graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 16, relu=False)
    y = graph.conv(way(graph, x), 16, 16, relu=False)
    return graph.model(y, x) if extra else graph.model(y)


@pytest.mark.parametrize("way", [half_last, half_of_the_sum, half_of_x])
@pytest.mark.parametrize("extra", [False, True])
def test_every_way_becomes_one_operator(way: Way, extra: bool) -> None:
    """The result of the first Conv may be an output too."""
    model = between(way, extra=extra)
    made = gelu.join(model, ())
    kinds = [node.op_type for node in made.graph]
    assert kinds == ["Conv", "Gelu", "Conv"]
    assert opset(made) == 20
    np.testing.assert_allclose(run(made, images(4)), run(model, images(4)), atol=2e-6)


def test_it_is_the_closed_form() -> None:
    graph = Graph()
    weight = graph.constant(np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1))
    made = gelu.join(graph.model(half_of_x(graph, graph.op("Conv", graph.take("x", [1, 2, 1, 5]), weight))), ())
    assert [node.op_type for node in made.graph] == ["Conv", "Gelu"]
    x = np.array([-3, -1, -0.1, 0, 0.2, 0.5, 1, 2, 3, 4], np.float32).reshape(1, 2, 1, 5)
    (found,) = Session(io.to_bytes(made), threads=1).run({"x": x}).values()
    wanted = [one * 0.5 * (1 + math.erf(one / math.sqrt(2))) for one in x.ravel().tolist()]
    np.testing.assert_allclose(found.ravel(), wanted, atol=1e-6)


def twice_the_half(graph: Graph, x: str) -> str:
    return str(graph.op("Mul", graph.op("Mul", x, one_and_erf(graph, x)), number(graph, 1.0)))


def other_root(graph: Graph, x: str) -> str:
    return str(graph.op("Mul", graph.op("Mul", x, one_and_erf(graph, x, root=1.5)), number(graph, 0.5)))


def of_something_else(graph: Graph, x: str) -> str:
    other = graph.op("Sigmoid", x)
    return str(graph.op("Mul", graph.op("Mul", other, one_and_erf(graph, x)), number(graph, 0.5)))


def read_inside(graph: Graph, x: str) -> str:
    inner = graph.op("Mul", x, one_and_erf(graph, x))
    return str(graph.op("Add", graph.op("Mul", inner, number(graph, 0.5)), inner))


def behind_no_convolution(graph: Graph, x: str) -> str:
    return half_last(graph, graph.op("Tanh", x))


@pytest.mark.parametrize("way", [twice_the_half, other_root, of_something_else, read_inside, behind_no_convolution])
def test_what_is_no_gelu_of_a_convolution_stays(way: Way) -> None:
    model = between(way)
    assert gelu.join(model, ()) is model


def test_what_is_excluded_stays() -> None:
    model = between(half_last)
    (erf,) = (node.name or "" for node in model.graph if node.op_type == "Erf")
    assert gelu.join(model, {erf}) is model


def test_one_kernel_is_left_between_int8_convolutions(tmp_path: Path) -> None:
    model = quick(between(half_last, extra=False), tmp_path, images(16)).model
    path = tmp_path / "optimised.onnx"
    Session(io.to_bytes(model), threads=1, optimised_path=path)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QLinearConv") == 2
    assert kinds.count("Gelu") == 1
    assert "Erf" not in kinds
