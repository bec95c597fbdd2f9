"""`quantize.dynamic`: MatMul, Gemm and tables, never Conv unless asked."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lepton_cli.errors import ModelError, RecipeError
from lepton_cli.graph import io
from lepton_cli.quantize import weights
from lepton_cli.steps.base import Outcome
from lepton_cli.steps.quantize_dynamic import Params, apply
from tests.quantize.builders import Graph, Samples, context, images, mlp, ops, residual_net, rows, run, sqnr


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


def test_a_gemm_that_does_more_than_multiply_and_add_stays_float_and_exact(tmp_path: Path) -> None:
    """Written as a product and an addition it would lose alpha, beta and transA: 2*x*w + 3*b became x*w + b."""
    weight, bias = np.eye(16, dtype=np.float32), np.full(16, 10, np.float32)
    feeds = np.arange(256, dtype=np.float32).reshape(16, 16)
    cases = {
        "transA": ({"transA": 1}, feeds.T + bias, "its activation is transposed (transA)"),
        "alpha": ({"alpha": 2.0}, 2 * feeds + bias, "it scales its operands (alpha, beta)"),
        "beta": ({"beta": 3.0}, feeds + 3 * bias, "it scales its operands (alpha, beta)"),
    }
    for name, (attributes, expected, reason) in cases.items():
        graph = Graph()
        x = graph.take("x", [16, 16])
        y = graph.op("Gemm", x, graph.constant(weight), graph.constant(bias), **attributes)
        model = graph.model(y, graph.op("MatMul", x, graph.constant(weight)))
        outcome = quantize(model, tmp_path, Samples(x=feeds))
        assert outcome.changed == 1, "the MatMul"
        assert [one.reason for one in outcome.decisions if one.action == "kept"] == [reason], name
        np.testing.assert_array_equal(run(outcome.model, Samples(x=feeds)), expected)


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


def outlier_net() -> ir.Model:
    """Layer norm with a few channels forty times wider than the rest, which the product needs as little."""
    graph = Graph()
    gamma = np.ones(64, dtype=np.float32)
    gamma[:3] = 40.0
    parts = [graph.constant(gamma), graph.constant(np.zeros(64, np.float32))]
    norm = graph.op("LayerNormalization", graph.take("x", ["b", 64]), *parts)
    weight = graph.random.normal(0, 0.1, (64, 64)).astype(np.float32)
    weight[:3] *= 0.02
    return graph.model(graph.op("MatMul", norm, graph.constant(weight)))


def test_outlier_channels_are_smoothed_with_calibration_data(tmp_path: Path) -> None:
    model = outlier_net()
    outcome = quantize(model, tmp_path, rows())
    assert outcome.details["smoothed"] == 1
    params = Params.model_validate({"step": "quantize.dynamic", "target": "x86-vnni"})
    without = apply(model, params, context(None, tmp_path, check=rows()))
    assert "smoothed" not in without.details
    assert sqnr(model, outcome.model, rows(seed=5)) > sqnr(model, without.model, rows(seed=5)) + 3


def test_operators_inside_branches_stay_with_a_reason(tmp_path: Path) -> None:
    source = """<ir_version: 8, opset_import: ["": 17]>
    main (float[b, 64] x, bool flag) => (float[b, 64] y) <float[64, 64] w>
    { y = If (flag) <
        then_branch = yes () => (float[b, 64] p) { p = MatMul (x, w) },
        else_branch = no () => (float[b, 64] q) { q = Identity (x) }> }"""
    proto = onnx.parser.parse_model(source)
    del proto.graph.initializer[:]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w"))
    model = ir.from_proto(proto)
    io.name_nodes(model)
    params = Params.model_validate({"step": "quantize.dynamic", "target": "x86-vnni"})
    outcome = apply(model, params, context(None, tmp_path, dry=True, check=rows()))
    assert outcome.changed == 0
    assert ["branch" in decision.reason for decision in outcome.decisions] == [True]
