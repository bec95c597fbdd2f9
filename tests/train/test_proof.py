"""Before training, torch is held to onnxruntime: a wrong operator is found and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import StepError
from lepton_cli.train import proof
from lepton_cli.train.network import Network
from lepton_cli.train.operators import table
from lepton_cli.train.quantized import QuantizedNetwork
from tests.quantize.builders import Graph, images, residual_net
from tests.train.test_outside import boxed, typed


def test_equal_functions_pass(tmp_path: Path) -> None:
    assert 0 <= proof.prove(Network(residual_net()), images(4), tmp_path, 1) < 1e-5


@pytest.mark.parametrize("size", [1.01, -1.0, float("nan")])
def test_the_first_node_that_differs_is_named(size: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = residual_net()
    pool = next(node for node in model.graph if "Pool" in node.op_type or node.op_type == "ReduceMean")
    right = table.OPERATORS["", pool.op_type]
    monkeypatch.setitem(table.OPERATORS, ("", pool.op_type), lambda *given: right(*given) * size)
    with pytest.raises(StepError, match=f"first at node `{pool.name}`"):
        proof.prove(Network(model), images(4), tmp_path, 1)


@pytest.mark.parametrize("wrong", ["Abs", "Sigmoid"])
def test_what_cannot_be_compared_is_proved_by_what_it_is_made_of(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes and scores, not which of them are left: that rests on the last bit."""
    graph = Graph()
    *_, left, chosen = boxed(graph, graph.take("x", ["b", 6, 4]))
    model = typed(graph, **{left: TensorProto.INT64, chosen: TensorProto.FLOAT})
    data = Arrays({"x": np.random.default_rng(5).normal(size=(4, 6, 4)).astype(np.float32)})
    assert 0 < proof.prove(Network(model), data, tmp_path, 1) < 1e-5
    right = table.OPERATORS["", wrong]
    monkeypatch.setitem(table.OPERATORS, ("", wrong), lambda *given: right(*given) * 1.01)
    with pytest.raises(StepError, match=f"first at node `{wrong}_"):
        proof.prove(Network(model), data, tmp_path, 1)


@pytest.mark.parametrize(
    ("expected", "found", "distance"),
    [
        ([1.0, -4.0], [1.0, -4.4], 0.1),
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([1.0, 1.0], [np.nan, 1.0], np.nan),
        ([1.0], [1.0, 1.0], np.inf),
    ],
)
def test_distances(expected: list[float], found: list[float], distance: float) -> None:
    made = proof.distance(np.array(expected, np.float32), np.array(found, np.float32))
    assert made == pytest.approx(distance, rel=1e-5, nan_ok=True)


def test_whole_numbers_may_turn_here_and_there() -> None:
    numbers = np.arange(1000)
    other = numbers.copy()
    other[:5] += 1
    assert proof.distance(numbers, other) == 0
    other[:50] += 1
    assert proof.distance(numbers, other) == np.inf
    assert proof.distance(numbers, numbers.astype(np.float32)) == np.inf


def test_numbers_that_say_where_stay_on_the_processor() -> None:
    made = proof.tensors({"x": np.ones(2, np.float32), "i": np.ones(2, np.int64)})
    assert made["x"].dtype == torch.float32
    assert made["i"].device.type == "cpu"
    given = Graph()
    assert Network(given.model(given.op("Relu", given.take("x", [2])))).parameters == {}


def quantized() -> ir.Model:
    graph, random = Graph(), np.random.default_rng(2)
    scale, zero = graph.constant(np.float32(0.02)), graph.constant(np.uint8(128))
    x = graph.op("QuantizeLinear", graph.take("x", ["b", 3, 16, 16]), scale, zero)
    x = graph.op("Flatten", graph.op("DequantizeLinear", x, scale, zero))
    codes = graph.constant(random.integers(-127, 128, (768, 4)).astype(np.int8))
    w = graph.op("DequantizeLinear", codes, graph.constant(np.float32(0.01)))
    x = graph.op("QuantizeLinear", graph.op("MatMul", x, w), graph.constant(np.float32(0.2)), zero)
    return graph.model(graph.op("DequantizeLinear", x, graph.constant(np.float32(0.2)), zero))


def test_a_number_in_the_middle_of_two_steps_may_go_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step up for every second number is a small share of the spread; another scale is another function."""
    model, right = quantized(), table.OPERATORS["", "MatMul"]
    assert proof.prove(QuantizedNetwork(model), images(8), tmp_path, 1) < 0.01
    monkeypatch.setitem(table.OPERATORS, ("", "MatMul"), lambda *given: right(*given) + 0.1)
    assert 0.002 < proof.prove(QuantizedNetwork(model), images(8), tmp_path, 1) < 0.05
    monkeypatch.setitem(table.OPERATORS, ("", "MatMul"), lambda *given: right(*given) * 1.1)
    with pytest.raises(StepError, match="first at node `MatMul_"):
        proof.prove(QuantizedNetwork(model), images(8), tmp_path, 1)


@pytest.mark.parametrize(
    ("expected", "found", "noise"),
    [
        ([3.0, 4.0], [3.0, 4.5], 0.1),
        ([0, 2], [0.0, 2.0], 0.0),
        ([1.0], [1.0, 1.0], np.inf),
        ([1.0, 1.0], [np.nan, 1.0], np.nan),
    ],
)
def test_noise(expected: list[float], found: list[float], noise: float) -> None:
    np.testing.assert_allclose(proof.noise(np.array(expected), np.array(found)), noise, equal_nan=True)
