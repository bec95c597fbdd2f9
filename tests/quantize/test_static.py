"""`quantize.static` on small graphs: what becomes int8, what stays float and why, and how close the result is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.dataset import Dataset
from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError, ModelError, RecipeError
from lepton_cli.model import io
from lepton_cli.probe import calibration, distances
from lepton_cli.quantize import cpu, profiling, qdq, saturation, speed, static, targets
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.details import Placement, Portability, QuantizeStaticDetails, Saturated, Speed
from lepton_cli.quantize.saturation import Saturation
from lepton_cli.quantize.spec import QuantizeStatic
from lepton_cli.quantize.targets import TARGETS
from lepton_cli.step import Context, Decision, Outcome
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context, images, mlp, ops, residual_net, rows, sqnr


def quantize(model: ir.Model, data: Arrays | None, tmp_path: Path, **options: object) -> Outcome:
    params = QuantizeStatic.model_validate(
        {"step": "quantize.static", "target": "x86-vnni", "speed_guard": False, **options}
    )
    return STEPS["quantize.static"].apply(model, params, context(data, tmp_path))


#: No search for better ranges and roundings: for what does not depend on them.
QUICK = {"calibration": "minmax", "equalise": False, "bias_correction": False, "rounding": "nearest"}


def quick(model: ir.Model, tmp_path: Path, data: Arrays | None = None, **options: object) -> Outcome:
    return quantize(model, data or rows(16), tmp_path, **QUICK | options)


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
    assert outcome.details.calibration == method


@pytest.mark.parametrize("target", ["x86", "arm", "tensorrt"])
def test_targets_choose_their_types(target: str, tmp_path: Path) -> None:
    model = residual_net()
    outcome = quick(model, tmp_path, images(16), target=target)
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
    outcome = quick(model, tmp_path, images(16))
    assert sqnr(model, outcome.model, images(16, seed=7)) > 27


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
    outcome = quick(model, tmp_path, images(8))
    assert "joins ranges" in reason(outcome, joined.replace("t", "Concat_"))


def test_exclude_is_honoured(tmp_path: Path) -> None:
    outcome = quick(residual_net(), tmp_path, images(4), exclude=["Conv_0"])
    assert "exclude" in reason(outcome, "Conv_0")
    assert next(node for node in outcome.model.graph if node.name == "Conv_0").inputs[1].name == "w0"


def test_glob_without_match_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="matches no node"):
        quantize(residual_net(), images(), tmp_path, exclude=["nothing*"])


def test_where_int8_pays_nowhere_the_given_model_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one prepared for int8, with its bias joined into a Gemm and its batch norm folded."""

    def nothing(model: ir.Model, choice: Choice, *rest: object) -> tuple[Choice, Speed]:
        return choice.without(choice.anchors, "slow", model), Speed(speedup=1.0)

    monkeypatch.setattr(speed, "faster_choice", nothing)
    model = mlp()
    outcome = quick(model, tmp_path, target="auto", speed_guard=True)
    assert outcome.model is model
    assert (outcome.changed, outcome.left_because) == (0, "int8 pays nowhere on this machine")
    assert outcome.details.speed == Speed(speedup=1.0)
    assert {one.node: one.reason for one in outcome.decisions if one.node != "Gemm_5"} == {
        "Gemm_0": "slow",
        "MatMul_2": "slow",
    }


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
    assert ops(outcome.model).count("DequantizeLinear") > 0, "what will be written, but for the values"
    assert outcome.changed == 12


def test_same_input_same_bytes(tmp_path: Path) -> None:
    made = [io.to_bytes(quantize(residual_net(), images(6), tmp_path).model) for _ in range(2)]
    assert made[0] == made[1]


def test_fixed_batch(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.linear(graph.op("Relu", graph.linear(graph.take("x", [8, 64]), 64, 64)), 64, 64))
    outcome = quantize(model, rows(30).of(io.inputs(model), "rows"), tmp_path)
    assert outcome.details.sqnr_db > 25


def test_speed_guard_measures_and_reports(tmp_path: Path) -> None:
    outcome = quick(residual_net(), tmp_path, images(4), target="auto", speed_guard=True)
    assert outcome.details.speed.speedup > 0
    assert set(outcome.details.placement.model_dump()) == {"int8", "float", "qdq_left", "operators"}


def test_accuracy_guard_returns_layers_until_the_limit_holds(tmp_path: Path) -> None:
    model = residual_net()

    def score(candidate: ir.Model) -> float:
        return 1.0 if candidate is model or sum(op == "QuantizeLinear" for op in ops(candidate)) < 7 else 0.5

    params = QuantizeStatic.model_validate(
        {"step": "quantize.static", "target": "x86-vnni", "speed_guard": False, "accuracy_guard": {"max_drop": "1 pp"}}
        | QUICK
    )
    outcome = STEPS["quantize.static"].apply(model, params, context(images(16), tmp_path, score=score))
    assert outcome.details.accuracy_guard.holds
    assert len(outcome.details.sensitivity) == 5
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
    assert outcome.details.smoothed >= 1
    assert max(v for k, v in outcome.details.repairs.items() if "smooth" in k) > outcome.details.repairs["none"]


def test_equalisation_keeps_the_float_model(tmp_path: Path) -> None:
    model = residual_net()
    weight = model.graph.initializers["w2"]
    uneven = weight.const_value.numpy().copy()  # type: ignore[union-attr]
    uneven[::4] *= 30
    weight.const_value = ir.tensor(uneven, name="w2")
    outcome = quantize(model, images(), tmp_path, equalise=True)
    assert outcome.details.equalised == 2
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
    outcome = quantize(model, images(24), tmp_path)
    assert sqnr(model, outcome.model, images(seed=7)) > 22


def test_opset_8_is_converted(tmp_path: Path) -> None:
    model = residual_net(9)
    outcome = quick(model, tmp_path, images(16))
    assert sqnr(model, outcome.model, images(16, seed=7)) > 27


def test_shared_weights(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 64]), 64, 64, gemm=False)
    mean = graph.op("ReduceMean", "w1", axes=[0], keepdims=0)
    y = graph.op("Add", graph.op("MatMul", graph.op("Tanh", x), "w1"), mean)
    model = graph.model(y)
    outcome = quantize(model, rows(), tmp_path)
    assert len([d for d in outcome.decisions if d.action == "quantized" and d.op in ("MatMul", "Gemm")]) == 2
    assert outcome.details.placement.int8 == 2, "products with a bias become int8 kernels"
    assert sqnr(model, outcome.model, rows(seed=5)) > 28


def deep() -> ir.Model:
    """Five Gemms with ReLU between, x [b, 64]."""
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 64]), 64, 16)
    for _ in range(4):
        x = graph.linear(graph.op("Relu", x), 16, 16)
    return graph.model(x)


def saying(outcome: Outcome) -> list[tuple[str, str, str]]:
    return [(one.node, one.action, one.reason) for one in outcome.decisions]


def test_every_node_and_every_number_of_the_report(tmp_path: Path) -> None:
    model = residual_net()
    outcome = quick(model, tmp_path, images(8), exclude=["Conv_9"])
    anchor = "uint8 activations, int8 weights per channel"
    between = "keeps the int8 region around it together"
    assert saying(outcome) == [
        ("Conv_0", "quantized", anchor), ("Relu_1", "quantized", between), ("Conv_2", "quantized", anchor),
        ("Relu_3", "quantized", between), ("Conv_4", "quantized", anchor), ("Add_5", "quantized", between),
        ("Relu_6", "quantized", between), ("Conv_7", "quantized", anchor), ("Relu_8", "quantized", between),
        ("Conv_9", "kept", "left out by include/exclude"),
        ("Gemm_14", "kept", "too small for int8: 10x16, needs at least 16 on both sides"),
    ]  # fmt: skip
    assert outcome.changed == 9
    details = outcome.details
    assert outcome.summary == f"4 matrix operators in int8, 2 kept in float, fidelity {details.sqnr_db} dB"
    assert (details.target, details.why) == ("x86-vnni", TARGETS["x86-vnni"].why)
    assert details.sqnr_db == pytest.approx(sqnr(model, outcome.model, images(8)), abs=0.2)
    assert details.speed is None
    arm = quick(model, tmp_path, images(8), target="arm")
    assert reason(arm, "Conv_0") == "int8 activations, int8 weights per channel"
    assert arm.details.portability is None


def test_a_plan_says_what_would_become_int8_and_nothing_to_do_is_told(tmp_path: Path) -> None:
    params = QuantizeStatic.model_validate({"step": "quantize.static", "target": "x86"})
    model = residual_net()
    plan = STEPS["quantize.static"].apply(model, params, context(None, tmp_path, dry=True, check=images()))
    assert plan.summary == "5 of 6 matrix operators to int8"
    assert plan.details == QuantizeStaticDetails(target="x86", why=TARGETS["x86"].why)
    assert len(plan.decisions) == 5 + 7 + 1
    small = Graph()
    tiny = small.model(small.linear(small.take("x", ["b", 8]), 8, 8))
    outcome = quantize(tiny, rows(8, 8), tmp_path)
    assert (outcome.model is tiny, outcome.changed, outcome.summary) == (True, 0, "0 of 1 matrix operators to int8")
    assert len(outcome.decisions) == 1


def test_where_the_data_forbid_everything_the_given_model_comes_back(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.op("Mul", graph.op("Relu", graph.take("x", ["b", 64])), graph.constant(np.float32(-3.4e38)))
    model = graph.model(graph.op("Softmax", graph.op("MatMul", x, graph.constant(np.eye(64, dtype=np.float32)))))
    outcome = quantize(model, rows(), tmp_path)
    assert (outcome.model is model, outcome.changed) == (True, 0)
    assert outcome.left_because == outcome.summary == "the ranges of its tensors forbid int8"
    assert outcome.details.target == "x86-vnni"
    assert saying(outcome) == [("MatMul_2", "kept", "`t1` holds infinities or mask constants")]


def test_labels_are_needed_for_the_guard_but_not_for_a_plan(tmp_path: Path) -> None:
    options = {"step": "quantize.static", "target": "x86", "accuracy_guard": {"max_drop": "1 pp"}}
    params = QuantizeStatic.model_validate(options)
    assert (
        STEPS["quantize.static"]
        .apply(residual_net(), params, context(None, tmp_path, dry=True, check=images()))
        .changed
        == 12
    )
    with pytest.raises(DataError) as caught:
        STEPS["quantize.static"].apply(residual_net(), params, context(images(), tmp_path))
    assert (caught.value.code, caught.value.option) == ("data.labels-missing", ("accuracy_guard",))
    with pytest.raises(DataError) as caught:
        quantize(residual_net(), None, tmp_path)
    assert caught.value.code == "data.missing"


@pytest.mark.parametrize("target", ["x86", "tensorrt"])
def test_rewrites_for_the_cpu_are_made_for_cpu_targets_only(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Decision(node="mask", op="Where", action="rewritten", reason="softer")
    monkeypatch.setattr(cpu, "soften_masks", lambda model, context: (model, [said]))
    graph = Graph()
    parts = [graph.constant(np.ones(64, np.float32)) for _ in range(2)]
    x = graph.take("x", ["b", 64])
    norm = graph.op("LayerNormalization", graph.op("Add", x, graph.linear(x, 64, 64)), *parts)
    outcome = quick(graph.model(norm), tmp_path, target=target)
    assert (said in outcome.decisions) == (target == "x86")
    assert ("Sum" in ops(outcome.model)) == (target == "x86")


def test_a_shortcut_by_slice_and_pad_becomes_a_convolution_for_cpus_only(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 16)
    y = graph.conv(x, 16, 32, stride=2, relu=False)
    ends = [graph.constant(np.array(one)) for one in ([0, 0], [99, 99], [2, 3], [2, 2])]
    thin = graph.op("Slice", x, *ends)
    wide = graph.op("Pad", thin, graph.constant(np.array([0, 8, 0, 0, 0, 8, 0, 0])))
    model = graph.model(graph.conv(graph.op("Relu", graph.op("Add", y, wide)), 32, 16))
    assert "Slice" not in ops(quick(model, tmp_path, images(2)).model)
    assert "Pad" in ops(quick(model, tmp_path, images(2), target="tensorrt").model)
    assert "Slice" in ops(quick(model, tmp_path, images(2), exclude=["Pad_*"]).model)


def test_padding_and_what_onnxruntime_fused_become_int8_convolutions(tmp_path: Path) -> None:
    graph = Graph(13)
    x = graph.op("Pad", graph.take("x", ["b", 3, 16, 16]), graph.constant(np.array([0, 0, 0, 0, 0, 0, 1, 1])))
    x = graph.op("Relu", graph.op("Conv", x, *_weights(graph, 16, 3), strides=[2, 2]))
    fused = {"domain": "com.microsoft", "activation": "Relu", "pads": [1] * 4}
    x = graph.op(
        "FusedConv", graph.op("FusedConv", x, *_weights(graph, 16, 16), **fused), *_weights(graph, 16, 16), **fused
    )
    model = graph.model(x)
    outcome = quick(model, tmp_path, images())
    # The Pad left is one of codes, before the rows of the first layer's window are gathered.
    assert set(ops(outcome.model)) == {"QuantizeLinear", "DequantizeLinear", "Conv", "Pad", "Gather", "Reshape"}
    int8 = [d.node for d in outcome.decisions if d.op == "Conv" and d.action == "quantized"]
    assert int8 == ["Conv_1", "FusedConv_3", "FusedConv_4"]
    assert sqnr(model, outcome.model, images(seed=7)) > 28
    assert "FusedConv" in ops(quick(model, tmp_path, images(), exclude=["FusedConv_4"]).model)


def _weights(graph: Graph, cout: int, cin: int) -> list[str]:
    """Of a 3x3 convolution, with its bias."""
    weight = graph.random.normal(0, (2 / (cin * 9)) ** 0.5, (cout, cin, 3, 3)).astype(np.float32)
    return [graph.constant(weight), graph.constant(graph.random.normal(0, 0.1, cout).astype(np.float32))]


def test_speed_is_not_measured_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(speed, "faster_choice", never)
    outcome = quick(mlp(), tmp_path, target="tensorrt", speed_guard=True)
    assert outcome.warnings[0].startswith("speed not measured: target `tensorrt` is not the CPU")
    assert outcome.details.speed is None
    assert outcome.changed > 0
    monkeypatch.setattr(targets, "runs_here", lambda target: None)
    quick(mlp(), tmp_path, speed_guard=False)


@pytest.mark.parametrize(("speedup", "pays"), [(1.0, True), (0.999, False)])
def test_int8_pays_from_the_speed_of_float_on(
    speedup: float, pays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which layers is asked with one calibration batch and a quick version of the model."""
    seen: list[tuple[int, ...]] = []

    def measured(model: ir.Model, choice: Choice, write: object, feeds: dict[str, np.ndarray], *rest: object) -> object:
        seen.append(feeds["x"].shape)
        assert "QuantizeLinear" in ops(write(choice))  # type: ignore[operator]
        return choice.without(["MatMul_2"], "slow", model), Speed(speedup=speedup)

    monkeypatch.setattr(targets, "runs_here", lambda target: None)
    monkeypatch.setattr(speed, "faster_choice", measured)
    monkeypatch.setattr(static.alternatives, "measure", lambda *arguments: {"float": 1.0, "convert.fp16": 1.5})
    params = QuantizeStatic.model_validate({"step": "quantize.static", "target": "x86", **QUICK})
    outcome = STEPS["quantize.static"].apply(mlp(), params, context(rows(16), tmp_path, batch=2))
    assert seen == [(2, 64)]
    assert (outcome.details.speed.alternatives is None) == pays
    told = f"int8 does not pay here ({speedup}x at batch 2), best is `convert.fp16` (1.5x)"
    assert outcome.details.speed.verdict == (None if pays else told)
    assert outcome.warnings == (() if pays else (f"{told}; the int8 model is kept for its size",))
    assert reason(outcome, "MatMul_2") == "slow"
    assert "MatMulInteger" not in ops(outcome.model)


def test_a_target_without_int8_kernels_is_warned_about(tmp_path: Path) -> None:
    warnings = quick(mlp(), tmp_path, target="cuda").warnings
    assert warnings == (f"target `cuda`: {TARGETS['cuda'].why}; these nodes fall back to the CPU: use `convert.fp16`",)


@pytest.mark.parametrize(("floats", "here", "told"), [(2, True, True), (1, True, False), (2, False, False)])
def test_layers_that_onnxruntime_leaves_in_float_are_warned_about(
    floats: int, here: bool, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, the classifier, is float by decision."""
    monkeypatch.setattr(targets, "runs_here", lambda target: None if here else "elsewhere")
    placed = Placement(int8=0, in_float=floats, qdq_left=0)
    monkeypatch.setattr(profiling, "placement", lambda model, context: placed)
    outcome = quick(mlp(), tmp_path, target="x86")
    said = ("onnxruntime runs 2 matrix operators in float although 1 were left so",)
    assert outcome.warnings == (said if told else ())
    assert outcome.details.placement == placed


@pytest.mark.parametrize(
    ("found", "warned"),
    [([], False), ([Saturation("Gemm_0", "Gemm", 0.0123456, 30.0)], False),
     ([Saturation("Gemm_0", "Gemm", 0.0123456, 29.96), Saturation("MatMul_2", "MatMul", 0.5, 44.0)], True)],
)  # fmt: skip
def test_what_machines_without_vnni_would_lose(
    found: list[Saturation], warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saturation, "simulate", lambda *arguments: found)
    outcome = quick(mlp(), tmp_path)
    portability = outcome.details.portability
    if not found:
        assert portability == Portability(without_vnni="no sum saturated on calibration data")
        return
    said = (
        f"sums of {len(found)} layers saturate, worst in `Gemm_0` (1.2 % of the sums, 30 dB): "
        "use `target: x86` for such machines"
    )
    assert portability.model_dump()["x86 without VNNI"] == portability.without_vnni == said
    assert portability.layers[0] == Saturated(node="Gemm_0", share=0.012346, sqnr_db=30.0)
    assert len(portability.layers) == len(found)
    assert (f"on x86 without VNNI {said}" in outcome.warnings) == warned
    wide = quick(mlp(), tmp_path, activations="int16")
    assert wide.details.portability.layers == (), "16 bits have other kernels"
    assert quick(mlp(), tmp_path, target="x86").details.portability is None


def test_the_simulation_is_of_the_layers_that_are_int8_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[qdq.Scheme] = []
    monkeypatch.setattr(saturation, "simulate", lambda model, plan, *rest: plans.append(plan) or [])

    def score(candidate: ir.Model) -> float:
        kinds = [value.const_value.dtype for value in candidate.graph.initializers.values() if value.const_value]
        return 1.0 if kinds.count(ir.DataType.INT32) < 4 else 0.5  # a bias and its zero point for each layer

    options = {"step": "quantize.static", "target": "x86-vnni", "speed_guard": False, **QUICK}
    params = QuantizeStatic.model_validate(options | {"accuracy_guard": {"max_drop": "1 pp"}})
    outcome = STEPS["quantize.static"].apply(mlp(), params, context(rows(16), tmp_path, score=score))
    (plan,) = plans
    assert len(plan.choice.anchors) == 1
    assert {
        one.node for one in outcome.decisions if one.action == "quantized" and one.op != "Relu"
    } == plan.choice.anchors


def guarded_by_score(model: ir.Model, tmp_path: Path, score: Callable[[ir.Model], float]) -> Outcome:
    options = {"step": "quantize.static", "target": "x86", "speed_guard": False, "accuracy_guard": {"max_drop": "1 pp"}}
    told = context(rows(16), tmp_path, score=score)
    return STEPS["quantize.static"].apply(model, QuantizeStatic.model_validate(options | QUICK), told)


def test_a_guard_that_returns_every_layer_leaves_the_given_model(tmp_path: Path) -> None:
    model = mlp()
    outcome = guarded_by_score(model, tmp_path, lambda candidate: float("QuantizeLinear" not in ops(candidate)))
    assert outcome.model is model
    assert (outcome.changed, outcome.left_because) == (0, "int8 costs too much everywhere")
    assert outcome.details.accuracy_guard.holds
    reasons = [decision.reason for decision in outcome.decisions if decision.op == "Gemm"]
    assert reasons.count("returned to float by accuracy_guard") >= 2
    assert {decision.action for decision in outcome.decisions} == {"kept"}


@pytest.mark.parametrize(("least", "repaired"), [(20.0, False), (19.9, True)])
def test_of_outputs_below_20_db_as_many_layers_go_back_as_that_takes(
    least: float, repaired: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closeness(judge: distances.Reference, made: ir.Model, *few: float) -> distances.Closeness:
        found = least if "QuantizeLinear" in ops(made) else 140.0
        return distances.Closeness(found + 0.1, found)

    monkeypatch.setattr(distances.Reference, "closeness", closeness)
    model = deep()
    outcome = quick(model, tmp_path, target="x86")
    assert (outcome.model is model) == repaired
    assert bool(outcome.details.sensitivity) == repaired
    if repaired:
        assert outcome.details.fidelity_guard.holds
        (warning,) = outcome.warnings
        assert warning.startswith("all in int8, the worst part of the outputs came out at 20.0 dB (others like")
    else:
        assert (outcome.details.sqnr_db, outcome.warnings) == (least + 0.1, ())
    insisted = quick(model, tmp_path, target="x86", fidelity_guard=False)
    assert "QuantizeLinear" in ops(insisted.model)
    assert insisted.details.fidelity_guard is None


def test_calibration_ranges_are_collected_over_the_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], int]] = []
    collect = calibration.collect

    def collected(model: ir.Model, names: list[str], data: Dataset, told: Context) -> calibration.Ranges:
        asked.append((list(names[:3]), data.count))
        return collect(model, names, data, told)

    monkeypatch.setattr(calibration, "collect", collected)
    first = ["x", "t0", "t1"]
    quick(mlp(), tmp_path)
    assert asked == [(first, 12), (first, 4)], "those that a guard fits to, and those that may judge"
    asked.clear()
    quick(mlp(), tmp_path, fidelity_guard=False)
    quick(mlp(), tmp_path, rows(15))
    assert asked == [(first, 16), (first, 15)]
