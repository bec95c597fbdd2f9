"""What 16-bit sums cost on x86 without VNNI: counted as the instruction counts."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from lepton_cli.probe import calibration
from lepton_cli.quantize import choose, qdq, saturation
from lepton_cli.quantize.targets import TARGETS
from tests.quantize.builders import Graph, Samples, context, images, residual_net, rows


def simulate(model: ir.Model, data: Samples, tmp_path: Path) -> list[saturation.Saturation]:
    choice = choose.candidates(model, {node.name or "" for node in model.graph})
    found = calibration.collect(model, choose.activations(model, choice), data, context(data, tmp_path))
    plan = qdq.Plan(TARGETS["x86-vnni"], choice, found.limits("minmax"))
    return saturation.simulate(model, plan, data, context(data, tmp_path))


def product(weight: float) -> ir.Model:
    graph = Graph()
    matrix = np.full((64, 32), weight, dtype=np.float32)
    matrix[:, 0] = 1.0
    x = graph.op("Relu", graph.take("x", ["b", 64]))
    return graph.model(graph.op("MatMul", x, graph.constant(matrix)))


def test_equal_large_weights_saturate(tmp_path: Path) -> None:
    data = Samples(x=np.full((8, 64), 1.0, dtype=np.float32))
    (found,) = simulate(product(1.0), data, tmp_path)
    # Every pair is 255 * 127 * 2 = 64770 and is cut at 32767: half of every result is lost.
    assert found.share == 1.0
    assert abs(found.sqnr_db - 20 * np.log10(64770 / (64770 - 32767))) < 0.01


def test_opposite_weights_do_not(tmp_path: Path) -> None:
    graph = Graph()
    matrix = np.where(np.arange(64)[:, None] % 2 == 0, 1.0, -1.0).repeat(32, axis=1).astype(np.float32)
    model = graph.model(graph.op("MatMul", graph.op("Relu", graph.take("x", ["b", 64])), graph.constant(matrix)))
    assert simulate(model, Samples(x=np.full((8, 64), 1.0, dtype=np.float32)), tmp_path) == []


def test_convolutions_and_odd_rows(tmp_path: Path) -> None:
    found = simulate(residual_net(), images(), tmp_path)
    assert all(0 < entry.share < 0.05 and entry.op == "Conv" for entry in found)
    assert found == sorted(found, key=lambda entry: entry.sqnr_db)


def test_small_inputs_never_reach_the_limit(tmp_path: Path) -> None:
    data = rows()
    data.feeds["x"][:, 1::2] = 0  # one of each pair is nothing: 255 * 127 fits 16 bits
    assert simulate(product(1.0), data, tmp_path) == []


def test_inputs_that_are_always_zero(tmp_path: Path) -> None:
    data = rows()
    data.feeds["x"][:] = -1  # nothing is left by Relu
    assert simulate(product(1.0), data, tmp_path) == []
