"""`quantize.dynamic`: MatMul, Gemm and tables, never Conv unless asked."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from lepton_cli import scratch
from lepton_cli.data.memory import Arrays
from lepton_cli.errors import ModelError, RecipeError, StepError
from lepton_cli.model import io
from lepton_cli.probe.distances import Closeness
from lepton_cli.quantize import blocks, cpu, dynamic, weights
from lepton_cli.quantize.spec import QuantizeDynamic
from lepton_cli.step import Decision, Outcome
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context, images, mlp, ops, residual_net, rows, run, sqnr


def quantize(model: ir.Model, tmp_path: Path, data: Arrays, **options: object) -> Outcome:
    params = QuantizeDynamic.model_validate({"step": "quantize.dynamic", "target": "x86-vnni", **options})
    return STEPS["quantize.dynamic"].apply(model, params, context(data, tmp_path))


def test_mlp(tmp_path: Path) -> None:
    model, data = mlp(), rows()
    outcome = quantize(model, tmp_path, data)
    assert outcome.changed == 2
    assert "Gemm" in ops(outcome.model), "the small classifier stays as it is"
    assert sqnr(model, outcome.model, data) > 30
    assert outcome.details.target == "x86-vnni"


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
        outcome = quantize(model, tmp_path, Arrays({"x": feeds}))
        assert outcome.changed == 1, "the MatMul"
        assert [one.reason for one in outcome.decisions if one.action == "kept"] == [reason], name
        np.testing.assert_array_equal(run(outcome.model, Arrays({"x": feeds})), expected)


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
    monkeypatch.setattr(blocks, "CHUNK", 128 * 40)
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
    assert outcome.details.smoothed == 1
    params = QuantizeDynamic.model_validate({"step": "quantize.dynamic", "target": "x86-vnni"})
    without = STEPS["quantize.dynamic"].apply(model, params, context(None, tmp_path, check=rows()))
    assert without.details.smoothed is None
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
    params = QuantizeDynamic.model_validate({"step": "quantize.dynamic", "target": "x86-vnni"})
    outcome = STEPS["quantize.dynamic"].apply(model, params, context(None, tmp_path, dry=True, check=rows()))
    assert outcome.changed == 0
    assert ["branch" in decision.reason for decision in outcome.decisions] == [True]


def params(**options: object) -> QuantizeDynamic:
    return QuantizeDynamic.model_validate({"step": "quantize.dynamic", "target": "x86", **options})


def array(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


@pytest.mark.parametrize(("target", "steps"), [("x86", 64), ("x86-vnni", 127), ("arm", 127), ("cuda", 127)])
def test_weights_have_one_symmetric_scale_per_column(target: str, steps: int, tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 64])
    model = graph.model(graph.linear(x, 64, 40, gemm=False), graph.linear(x, 64, 40))
    outcome = quantize(model, tmp_path, rows(), target=target)
    for name, matrix in (("w1", array(model, "w1")), ("w3_Gemm_2_T", array(model, "w3").T)):
        scales = np.array([max(abs(float(value)) for value in column) / steps for column in matrix.T])
        np.testing.assert_allclose(array(outcome.model, f"{name}_scale"), scales, rtol=1e-6)
        codes = array(outcome.model, f"{name}_quantized")
        assert codes.dtype == np.int8
        assert np.abs(codes * scales - matrix).max() <= 0.501 * scales.max()
        assert not array(outcome.model, f"{name}_zero_point").any()


def test_products_are_those_of_the_codes(tmp_path: Path) -> None:
    """DynamicQuantizeLinear as onnx defines it; 7-bit weights saturate on no machine."""
    graph = Graph()
    model = graph.model(graph.linear(graph.take("x", ["b", 64]), 64, 40))
    data = rows(16)
    made = quantize(model, tmp_path, data, target="x86").model
    x, matrix, bias = data.feeds["x"], array(model, "w1").T.astype(float), array(model, "w0")
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.rint(-low / scale)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255)
    steps = np.abs(matrix).max(axis=0) / 64
    expected = (codes - zero) @ np.rint(matrix / steps) * (scale * steps) + bias
    np.testing.assert_allclose(run(made, data), expected, atol=2e-5)


def verdict(kind: str, *operands: object, **options: object) -> str | None:
    graph = Graph()
    x = graph.take("x", ["b", 64])
    names = [x if one is None else graph.constant(one) for one in operands]
    model = graph.model(graph.op(kind, *names))
    outcome = STEPS["quantize.dynamic"].apply(model, params(**options), context(None, Path(), dry=True, check=rows()))
    (decision,) = outcome.decisions
    assert (decision.node, decision.op) == (f"{kind}_0", kind)
    assert outcome.changed == (decision.action == "quantized")
    assert (outcome.model is model) == (outcome.changed == 0)
    return None if outcome.changed else decision.reason


def test_each_reason_to_keep_an_operator() -> None:
    ones = np.ones((64, 64), np.float32)
    assert verdict("MatMul", None, ones) is None
    assert verdict("MatMul", None, None) == "its second input is computed, not a constant weight"
    assert verdict("MatMul", None, ones.astype(np.float64)) == "its weight is float64 with 2 dimensions"
    assert verdict("MatMul", None, ones.reshape(2, 32, 64)) == "its weight is float32 with 3 dimensions"
    for shape in ((15, 64), (64, 15)):
        told = f"too small for int8: {shape[0]}x{shape[1]}, needs at least 16 on both sides"
        assert verdict("MatMul", None, np.ones(shape, np.float32)) == told
    assert verdict("MatMul", None, np.ones((16, 16), np.float32)) is None
    assert verdict("Gemm", None, ones) is None
    assert verdict("Gemm", None, ones, op_types=["MatMul"]) == "Gemm is not among op_types"
    kernel = np.ones((4, 3, 3, 3), np.float32)
    assert verdict("Conv", None, kernel) == "Conv is not among op_types: dynamic Conv is slower than float"
    assert verdict("Conv", None, kernel, op_types=["Conv"]) is None
    assert verdict("LSTM", None, np.ones((1, 8, 64), np.float32), np.ones((1, 8, 2), np.float32)) is None


def test_tables_are_no_candidates_of_the_writer_but_stored_in_blocks(tmp_path: Path) -> None:
    graph = Graph()
    table = graph.constant(graph.random.normal(size=(1000, 128)).astype(np.float32))
    model = graph.model(graph.op("Gather", table, graph.take("x", ["b"], TensorProto.INT64)))
    data = Arrays({"x": np.arange(20)})
    outcome = quantize(model, tmp_path, data)
    assert (ops(outcome.model), outcome.changed) == (["GatherBlockQuantized"], 1)
    assert outcome.details.sqnr_db > 38
    assert [one.op for one in outcome.decisions] == ["Gather"]
    without = quantize(model, tmp_path, data, op_types=["MatMul"])
    assert (without.model is model, without.changed) == (True, 0)
    assert [(one.action, one.reason) for one in without.decisions] == [("kept", "Gather is not among op_types")]
    graph.take("y", ["b", 64])
    graph.op("MatMul", "y", graph.constant(np.ones((64, 64), np.float32)))
    excluded = quantize(
        graph.model("t0", "t1"), tmp_path, Arrays({"x": np.arange(20), "y": rows(20).feeds["x"]}), exclude=["Gather_0"]
    )
    assert "Gather" in ops(excluded.model)


def test_what_is_left_out_says_so_and_counts(tmp_path: Path) -> None:
    model = mlp()
    before = io.to_bytes(model)
    outcome = quantize(model, tmp_path, rows(), exclude=["MatMul_2"])
    assert [(one.node, one.action, one.reason) for one in outcome.decisions] == [
        ("Gemm_0", "quantized", "int8 weights, activations measured while running"),
        ("MatMul_2", "kept", "left out by include/exclude"),
        ("Gemm_5", "kept", "too small for int8: 10x128, needs at least 16 on both sides"),
    ]
    assert outcome.summary == "1 operators quantized, 2 kept in float"
    assert io.to_bytes(model) == before
    assert outcome.details.sqnr_db == pytest.approx(
        sqnr(model, outcome.model, Arrays({"x": rows().feeds["x"][:64]})), abs=0.05
    )
    with pytest.raises(RecipeError) as caught:
        quantize(model, tmp_path, rows(), op_types=["MatMul", "Softmax"])
    assert caught.value.option == ("op_types", 1)


@pytest.mark.parametrize(("target", "warned"), [("x86", False), ("arm", False), ("cuda", True), ("tensorrt", True)])
def test_gpus_have_no_kernels_for_it(target: str, warned: bool, tmp_path: Path) -> None:
    warnings = quantize(mlp(), tmp_path, rows(), target=target).warnings
    assert warnings == (
        (f"`{target}` has no dynamic int8 kernels: these operators fall back to the CPU",) if warned else ()
    )


def test_warnings_of_the_preparation_are_passed_on(tmp_path: Path) -> None:
    graph = Graph()
    ones = [graph.constant(np.float32(np.linspace(1, 2, 64))) for _ in range(4)]
    x = graph.op("BatchNormalization", graph.op("Tanh", graph.take("x", ["b", 64])), *ones)
    model = graph.model(graph.op("Tanh", graph.linear(graph.op("Tanh", x), 64, 64)))
    assert quantize(model, tmp_path, rows()).warnings[0].startswith("BatchNormalization `BatchNormalization_1`")


class Judged:
    """A fidelity that gives the scores of a list, whatever the model."""

    scores: list[float] = []

    def __init__(self, model: ir.Model, context: object) -> None:
        pass

    def sqnr(self, model: ir.Model) -> float:
        return self.scores.pop(0)

    def closeness(self, model: ir.Model) -> Closeness:
        return Closeness(self.sqnr(model), math.inf)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([20.0, 20.5, 20.5, 20.5], False),
        ([20.0, 20.51, 20.0, 20.0], True),
        ([20.0, 20.0, 20.0, 20.51], True),
        ([20.0, 19.0, 19.4, 19.9], False),
        ([20.0, 21.0, 21.4, 20.0], True),
    ],
)
def test_inputs_are_evened_out_where_that_gains_half_a_decibel(
    scores: list[float], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judged, "scores", [*scores, 33.333])
    monkeypatch.setattr(dynamic, "Reference", Judged)
    outcome = quantize(outlier_net(), tmp_path, rows())
    assert Judged.scores == []
    assert outcome.details.repairs == dict(
        zip(["none", "smooth 0.65", "smooth 0.8", "smooth 0.95"], scores, strict=True)
    )
    assert outcome.details.sqnr_db == 33.33
    assert outcome.details.smoothed == (1 if kept else None)
    assert any(node.name == "t0.smoothing" for node in outcome.model.graph) == kept


def test_the_best_strength_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = {}
    for best in range(3):
        scores = [20.0, 21.0, 21.0, 21.0, 9.0]
        scores[best + 1] = 25.0
        monkeypatch.setattr(Judged, "scores", scores)
        monkeypatch.setattr(dynamic, "Reference", Judged)
        factors[best] = array(quantize(outlier_net(), tmp_path, rows()).model, "t0.smooth")
    assert np.ptp(factors[0]) < np.ptp(factors[1]) < np.ptp(factors[2]), "the stronger the wider"


def test_inputs_that_are_even_are_left_alone(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.op("Tanh", graph.take("x", ["b", 64]))
    model = graph.model(graph.op("MatMul", x, graph.constant(np.eye(64, dtype=np.float32))))
    details = quantize(model, tmp_path, rows()).details
    assert set(details.repairs) == {"none"}
    assert details.smoothed is None


@pytest.mark.parametrize(("above", "streamed"), [(0, False), (-1, True)])
def test_tensor_by_tensor_above_the_limit(
    above: int, streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mlp()
    monkeypatch.setattr(weights, "SPILL_ABOVE", io.weight_bytes(model) + above)
    for target, limit in (("x86", 63), ("x86-vnni", 127)):
        outcome = quantize(model, tmp_path, rows(), target=target)
        assert outcome.changed == 2
        assert ("MatMul_2.codes" in outcome.model.graph.initializers) == streamed
        assert (outcome.details.sqnr_db is None) == streamed
        if streamed:
            assert outcome.summary == "2 operators quantized, tensor by tensor"
            assert np.abs(array(outcome.model, "MatMul_2.codes").astype(int)).max() == limit
            assert isinstance(outcome.model.graph.initializers["MatMul_2.codes"].const_value, ir.ExternalTensor)
            assert len(outcome.decisions) == 3


def test_models_without_matrices_are_never_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SPILL_ABOVE", 0)
    assert quantize(residual_net(), tmp_path, images(), op_types=["Conv"]).changed == 5


@pytest.mark.parametrize("target", ["x86", "cuda"])
def test_masks_are_softened_for_the_cpu_only(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Decision(node="mask", op="Where", action="rewritten", reason="softer")
    monkeypatch.setattr(cpu, "soften_masks", lambda model, context: (model, [said]))
    graph = Graph()
    parts = [graph.constant(np.ones(64, np.float32)) for _ in range(2)]
    x = graph.take("x", ["b", 64])
    norm = graph.op("LayerNormalization", graph.op("Add", x, graph.linear(x, 64, 64)), *parts)
    outcome = quantize(graph.model(norm), tmp_path, rows(), target=target)
    assert (said in outcome.decisions) == (target == "x86")
    assert ("Sum" in ops(outcome.model)) == (target == "x86")
    assert outcome.changed == 1


def test_a_graph_that_the_writer_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("first\nsecond")

    monkeypatch.setattr(dynamic, "gemm_to_matmul", lambda model, nodes: None)
    monkeypatch.setattr("onnxruntime.quantization.onnx_quantizer.ONNXQuantizer.quantize_model", fail)
    with pytest.raises(StepError) as caught:
        quantize(mlp(), tmp_path, rows())
    assert (caught.value.code, caught.value.cause) == ("quantize.writer", "first second")


def test_every_folder_lies_where_the_next_process_clears_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process removes nothing itself: `scratch` and the run's own folder are cleared by those that follow."""
    made: list[Path] = []
    plain = tempfile.mkdtemp

    def noted(*arguments: Any, **named: Any) -> str:
        made.append(Path(plain(*arguments, **named)))
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", noted)
    assert quantize(mlp(), tmp_path, rows()).changed
    assert any(folder.is_relative_to(tmp_path) for folder in made)
    assert [f for f in made if not f.is_relative_to(tmp_path) and not f.name.startswith(scratch.PREFIX)] == []
    assert not any(folder.exists() for folder in made if folder.parent == tmp_path)


def test_the_producer_stays(tmp_path: Path) -> None:
    model = mlp()
    model.producer_name, model.producer_version = "maker", "7"
    made = quantize(model, tmp_path, rows()).model
    assert (made.producer_name, made.producer_version) == ("maker", "7")


def test_gemms_alone(tmp_path: Path) -> None:
    """They are MatMuls by the time that they are written, and quantized all the same."""
    outcome = quantize(mlp(), tmp_path, rows(), op_types=["Gemm"])
    told = [(one.node, one.action) for one in outcome.decisions]
    assert told == [("Gemm_0", "quantized"), ("MatMul_2", "kept"), ("Gemm_5", "kept")]
    assert ops(outcome.model).count("MatMulInteger") == 1


def test_a_weight_that_several_gemms_read_is_stored_once(tmp_path: Path) -> None:
    """Each Gemm becomes a product with a weight that was turned for it."""
    graph = Graph()
    x, weight = graph.take("x", ["n", 64]), graph.constant(np.eye(64, dtype=np.float32))
    model = graph.model(*(graph.op("Gemm", x, weight, transB=1) for _ in range(3)))
    outcome = quantize(model, tmp_path, rows())
    assert outcome.changed == 3
    assert len(io.to_bytes(outcome.model)) < 0.5 * len(io.to_bytes(model))
    assert sqnr(model, outcome.model, rows(seed=2)) > 40
