"""`quantize.weights`: blockwise 4 and 8 bits on MatMul, Gemm and embedding tables."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto

from lepton_cli.model import io
from lepton_cli.quantize import blockwise, weights
from lepton_cli.quantize.spec import QuantizeWeights
from lepton_cli.step import Outcome
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, Samples, context, mlp, ops, rows, sqnr

BLOCKS = hnp.arrays(np.float32, (3, 2, 16), elements=st.floats(-4, 4, width=32))


def quantize(model: ir.Model, tmp_path: Path, data: Samples, **options: object) -> Outcome:
    return STEPS["quantize.weights"].apply(
        model, QuantizeWeights.model_validate({"step": "quantize.weights", **options}), context(data, tmp_path)
    )


@pytest.mark.parametrize("method", ["rtn", "hqq", "k_quant"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "least"), [(4, 14), (8, 38)])
def test_mlp(method: str, symmetric: bool, bits: int, least: float, tmp_path: Path) -> None:
    model, data = mlp(), rows()
    outcome = quantize(model, tmp_path, data, method=method, symmetric=symmetric, bits=bits)
    assert ops(outcome.model).count("MatMulNBits") == 2
    assert sqnr(model, outcome.model, data) > least
    assert [d.action for d in outcome.decisions] == ["quantized", "quantized", "kept"]


@given(BLOCKS)
@settings(max_examples=30)
def test_error_is_within_a_step_and_searching_never_loses(values: np.ndarray) -> None:
    for symmetric in (True, False):
        plain = blockwise.quantize(values, 4, "rtn", symmetric)
        error = np.abs(plain.dequantized(4) - values)
        assert np.all(error <= 1.01 * np.abs(plain.scales)[..., None] + 1e-6)
        for method in ("hqq", "k_quant"):
            better = blockwise.quantize(values, 4, method, symmetric).dequantized(4)
            assert np.square(better - values).sum() <= np.square(error).sum() * 1.0001 + 1e-9


def test_embedding_table_and_odd_inner_size(tmp_path: Path) -> None:
    graph = Graph()
    table = graph.constant(np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32))
    x = graph.op("Gather", table, graph.take("x", ["b", 4], TensorProto.INT64))
    weight = graph.constant(np.random.default_rng(1).normal(size=(64, 72)).astype(np.float32))
    odd = graph.constant(np.random.default_rng(2).normal(size=(72, 100)).astype(np.float32))
    model = graph.model(graph.op("MatMul", graph.op("MatMul", x, weight), odd))
    data = Samples(x=np.random.default_rng(3).integers(0, 200, (20, 4)))
    outcome = quantize(model, tmp_path, data, bits=8)
    assert ops(outcome.model) == ["GatherBlockQuantized", "MatMulNBits", "MatMulNBits"]
    assert sqnr(model, outcome.model, data) > 38


def test_slabs_and_spilling_to_disk_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = mlp(), rows()
    whole = quantize(model, tmp_path, data, symmetric=False).model
    ir.save(model, tmp_path / "model.onnx", external_data="model.data")
    monkeypatch.setattr(weights, "CHUNK", 128 * 40)
    monkeypatch.setattr(weights, "SPILL_ABOVE", 0)
    spilled = quantize(io.load(tmp_path / "model.onnx").model, tmp_path, data, symmetric=False).model
    kept = [v.const_value for v in spilled.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]
    assert any(tensor.location == "weights.data" for tensor in kept)
    assert sqnr(whole, spilled, data) > 120


def test_small_weights_are_kept(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.linear(graph.take("x", ["b", 16]), 16, 16))
    outcome = quantize(model, tmp_path, rows(8, 16))
    assert outcome.changed == 0
    assert outcome.decisions[0].reason == "only 256 values"
