"""`quantize.dynamic`: MatMul, Gemm and tables, never Conv unless asked."""

from pathlib import Path

import onnx_ir as ir
import pytest

from lepton_cli.errors import ModelError, RecipeError
from lepton_cli.graph import io
from lepton_cli.quantize import weights
from lepton_cli.steps.base import Outcome
from lepton_cli.steps.quantize_dynamic import Params, apply
from tests.quantize.builders import Samples, context, images, mlp, ops, residual_net, rows, sqnr


def quantize(model: ir.Model, tmp_path: Path, data: Samples, **options: object) -> Outcome:
    params = Params.model_validate({"step": "quantize.dynamic", "target": "x86-vnni", **options})
    return apply(model, params, context(data, tmp_path))


def test_mlp(tmp_path: Path) -> None:
    model, data = mlp(), rows()
    outcome = quantize(model, tmp_path, data)
    assert outcome.changed == 2
    assert "Gemm" in ops(outcome.model), "the small classifier stays as it is"
    assert sqnr(model, outcome.model, data) > 30
    assert outcome.details["target"] == "x86-vnni"


def test_conv_only_when_asked_and_with_a_warning(tmp_path: Path) -> None:
    model, data = residual_net(), images()
    untouched = quantize(model, tmp_path, data)
    assert untouched.changed == 0
    assert "slower" in untouched.decisions[0].reason
    asked = quantize(model, tmp_path, data, op_types=["Conv"])
    assert asked.changed == 5
    assert "slower" in asked.warnings[0]


def test_unknown_operator(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be quantized dynamically"):
        quantize(mlp(), tmp_path, rows(), op_types=["Softmax"])


def test_quantized_models_are_recognised(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="quantized already"):
        quantize(quantize(mlp(), tmp_path, rows()).model, tmp_path, rows())


def test_large_models_are_quantized_tensor_by_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = mlp(), rows()
    usual = quantize(model, tmp_path, data).model
    ir.save(model, tmp_path / "model.onnx", external_data="model.data")
    monkeypatch.setattr(weights, "SPILL_ABOVE", 0)
    monkeypatch.setattr(weights, "CHUNK", 128 * 40)
    outcome = quantize(io.load(tmp_path / "model.onnx").model, tmp_path, data)
    assert ops(outcome.model).count("MatMulInteger") == 2
    assert sqnr(model, outcome.model, data) > 30
    assert abs(sqnr(model, outcome.model, data) - sqnr(model, usual, data)) < 1
