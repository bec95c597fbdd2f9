"""`quantize.static` on small graphs: what becomes int8, what stays float and why, and how close the result is."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.errors import DataError, ModelError, RecipeError
from lepton_cli.model import io
from lepton_cli.quantize.spec import QuantizeStatic
from lepton_cli.step import Outcome
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, Samples, context, images, mlp, ops, residual_net, rows, sqnr


def quantize(model: ir.Model, data: Samples | None, tmp_path: Path, **options: object) -> Outcome:
    params = QuantizeStatic.model_validate(
        {"step": "quantize.static", "target": "x86-vnni", "speed_guard": False, **options}
    )
    return STEPS["quantize.static"].apply(model, params, context(data, tmp_path))


def reason(outcome: Outcome, node: str) -> str:
    return next(decision.reason for decision in outcome.decisions if decision.node == node)


def test_residual_net_is_close_and_all_convolutions_are_int8(tmp_path: Path) -> None:
    model, data = residual_net(), images()
    before = io.to_bytes(model)
    outcome = quantize(model, data, tmp_path)
    assert sqnr(model, outcome.model, images(seed=7)) > 28
    assert io.to_bytes(model) == before
    convolutions = [d for d in outcome.decisions if d.op == "Conv"]
    assert len(convolutions) == 5
    assert all(d.action == "quantized" for d in convolutions)
    assert "too small" in reason(outcome, "Gemm_14")


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_every_method_gives_a_usable_model(method: str, tmp_path: Path) -> None:
    model = mlp()
    outcome = quantize(model, rows(), tmp_path, calibration=method)
    assert sqnr(model, outcome.model, rows(seed=5)) > 25
    assert outcome.details["calibration"] == method


@pytest.mark.parametrize("target", ["x86", "arm", "tensorrt"])
def test_targets_choose_their_types(target: str, tmp_path: Path) -> None:
    model = residual_net()
    outcome = quantize(model, images(), tmp_path, target=target)
    kinds = {value.const_value.dtype for value in outcome.model.graph.initializers.values() if value.const_value}
    assert (ir.DataType.UINT8 in kinds) == (target == "x86")
    largest = max(
        np.abs(value.const_value.numpy().astype(int)).max()
        for value in outcome.model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype == ir.DataType.INT8 and value.const_value.size > 1
    )
    assert largest <= (64 if target == "x86" else 128)
    assert sqnr(model, outcome.model, images(seed=7)) > 20


@pytest.mark.parametrize("opset", [11, 12, 13, 21])
def test_opsets(opset: int, tmp_path: Path) -> None:
    model = residual_net(opset)
    outcome = quantize(model, images(), tmp_path)
    assert sqnr(model, outcome.model, images(seed=7)) > 28


def test_mask_arithmetic_stays_float(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 64])
    mask = graph.op("Mul", graph.op("Relu", x), graph.constant(np.float32(-3.4e38)))
    y = graph.linear(graph.op("Add", graph.linear(x, 64, 64, gemm=False), mask), 64, 64, gemm=False)
    model = graph.model(graph.op("Softmax", graph.op("Clip", y, graph.constant(np.float32(-50.0))), axis=-1), y)
    outcome = quantize(model, rows(), tmp_path)
    assert "mask constants" in reason(outcome, "MatMul_5")


def test_concat_of_boxes_and_scores_stays_float(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 16)
    boxes = graph.op("Mul", graph.conv(x, 16, 16), graph.constant(np.float32(600.0)))
    scores = graph.op("Sigmoid", graph.conv(x, 16, 16, relu=False))
    joined = graph.op("Concat", boxes, scores, axis=1)
    model = graph.model(graph.conv(joined, 32, 16))
    outcome = quantize(model, images(), tmp_path)
    assert "joins ranges" in reason(outcome, joined.replace("t", "Concat_"))


def test_exclude_is_honoured(tmp_path: Path) -> None:
    outcome = quantize(residual_net(), images(), tmp_path, exclude=["Conv_0"])
    assert "exclude" in reason(outcome, "Conv_0")
    assert next(node for node in outcome.model.graph if node.name == "Conv_0").inputs[1].name == "w0"


def test_glob_without_match_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="matches no node"):
        quantize(residual_net(), images(), tmp_path, exclude=["nothing*"])


def test_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs calibration data"):
        quantize(residual_net(), None, tmp_path)


def test_nan_in_the_data(tmp_path: Path) -> None:
    data = images()
    data.feeds["x"][40, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN in the batch at sample"):
        quantize(residual_net(), data, tmp_path)


def test_quantized_models_are_recognised(tmp_path: Path) -> None:
    outcome = quantize(mlp(), rows(), tmp_path)
    with pytest.raises(ModelError, match="quantized already"):
        quantize(outcome.model, rows(), tmp_path)


def test_nothing_to_quantize_changes_nothing(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.op("Relu", graph.take("x", ["b", 64])))
    outcome = quantize(model, rows(), tmp_path)
    assert outcome.changed == 0
    assert ops(outcome.model) == ["Relu"]


def test_dry_run_needs_no_data(tmp_path: Path) -> None:
    params = QuantizeStatic.model_validate({"step": "quantize.static", "target": "x86-vnni"})
    model = residual_net()
    outcome = STEPS["quantize.static"].apply(model, params, context(None, tmp_path, dry=True, check=images()))
    assert outcome.model is model
    assert outcome.changed == 5


def test_same_input_same_bytes(tmp_path: Path) -> None:
    made = [io.to_bytes(quantize(residual_net(), images(), tmp_path).model) for _ in range(2)]
    assert made[0] == made[1]


def test_fixed_batch(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.linear(graph.op("Relu", graph.linear(graph.take("x", [8, 64]), 64, 64)), 64, 64))
    outcome = quantize(model, rows(30), tmp_path)
    assert outcome.details["sqnr_db"] > 25


def test_speed_guard_measures_and_reports(tmp_path: Path) -> None:
    outcome = quantize(residual_net(), images(), tmp_path, target="auto", speed_guard=True)
    assert outcome.details["speed"]["speedup"] > 0
    assert {"int8", "float", "qdq_left"} <= set(outcome.details["placement"])


def test_accuracy_guard_returns_layers_until_the_limit_holds(tmp_path: Path) -> None:
    model = residual_net()

    def score(candidate: ir.Model) -> float:
        return 1.0 if candidate is model or sum(op == "QuantizeLinear" for op in ops(candidate)) < 7 else 0.5

    params = QuantizeStatic.model_validate(
        {"step": "quantize.static", "target": "x86-vnni", "speed_guard": False, "accuracy_guard": {"max_drop": "1 pp"}}
    )
    outcome = STEPS["quantize.static"].apply(model, params, context(images(), tmp_path, score=score))
    assert outcome.details["accuracy_guard"]["holds"]
    assert len(outcome.details["sensitivity"]) == 5
    returned = [d for d in outcome.decisions if d.reason == "returned to float by accuracy_guard"]
    assert 1 <= len(returned) < 5
    assert sqnr(model, outcome.model, images(seed=7)) > 28


def test_accuracy_guard_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labelled evaluation data"):
        quantize(residual_net(), images(), tmp_path, accuracy_guard={"max_drop": "1 pp"})


def test_outlier_channels_of_layer_norm_are_smoothed(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 64]), 64, 64, gemm=False)
    gamma = np.ones(64, dtype=np.float32)
    gamma[:3] = 40.0
    norm = graph.op("LayerNormalization", x, graph.constant(gamma), graph.constant(np.zeros(64, np.float32)))
    weight = graph.random.normal(0, 0.1, (64, 64)).astype(np.float32)
    weight[:3] *= 0.02
    y = graph.op("Add", graph.op("MatMul", norm, graph.constant(weight)), norm)
    model = graph.model(graph.op("Tanh", graph.linear(y, 64, 64, gemm=False)))
    outcome = quantize(model, rows(), tmp_path)
    assert outcome.details["smoothed"] >= 1
    assert max(v for k, v in outcome.details["repairs"].items() if "smooth" in k) > outcome.details["repairs"]["none"]


def test_equalisation_keeps_the_float_model(tmp_path: Path) -> None:
    model = residual_net()
    weight = model.graph.initializers["w2"]
    uneven = weight.const_value.numpy().copy()  # type: ignore[union-attr]
    uneven[::4] *= 30
    weight.const_value = ir.tensor(uneven, name="w2")
    outcome = quantize(model, images(), tmp_path, equalise=True)
    assert outcome.details["equalised"] == 2
    assert sqnr(model, outcome.model, images(seed=7)) > 25


def test_int16_activations_are_more_exact(tmp_path: Path) -> None:
    model = residual_net()
    outcome = quantize(model, images(), tmp_path, activations="int16")
    assert sqnr(model, outcome.model, images(seed=7)) > 45


def test_depthwise_and_clipped_layers(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 16, relu=False)
    limits = [graph.constant(np.float32(v)) for v in (0.0, 6.0)]
    x = graph.op("Clip", x, *limits)
    x = graph.op("Clip", graph.conv(x, 16, 16, group=16, stride=2, relu=False), *limits)
    x = graph.conv(x, 16, 32, 1, relu=False)
    model = graph.model(graph.op("Flatten", graph.op("GlobalAveragePool", x)))
    outcome = quantize(model, images(), tmp_path)
    assert "Clip" not in ops(outcome.model)
    assert sqnr(model, outcome.model, images(seed=7)) > 28


def test_dense_net_with_nearly_dead_channels(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 16)
    for width in (16, 24, 32):
        grown = graph.conv(graph.op("Relu", x), width, 8)
        x = graph.op("Concat", x, grown, axis=1)
    model = graph.model(graph.op("Flatten", graph.op("GlobalAveragePool", graph.conv(x, 40, 32, 1))))
    for name in ("w0", "w2"):
        value = model.graph.initializers[name]
        dead = value.const_value.numpy().copy()  # type: ignore[union-attr]
        dead[::3] *= 1e-7
        value.const_value = ir.tensor(dead, name=name)
    outcome = quantize(model, images(), tmp_path)
    assert sqnr(model, outcome.model, images(seed=7)) > 25


def test_opset_8_is_converted(tmp_path: Path) -> None:
    model = residual_net(9)
    outcome = quantize(model, images(), tmp_path)
    assert sqnr(model, outcome.model, images(seed=7)) > 28


def test_shared_weights(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 64]), 64, 64, gemm=False)
    mean = graph.op("ReduceMean", "w1", axes=[0], keepdims=0)
    y = graph.op("Add", graph.op("MatMul", graph.op("Tanh", x), "w1"), mean)
    model = graph.model(y)
    outcome = quantize(model, rows(), tmp_path)
    assert len([d for d in outcome.decisions if d.action == "quantized" and d.op in ("MatMul", "Gemm")]) == 2
    assert outcome.details["placement"]["int8"] == 2, "products with a bias become int8 kernels"
    assert sqnr(model, outcome.model, rows(seed=5)) > 28
