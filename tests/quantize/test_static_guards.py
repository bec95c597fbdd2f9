"""What `quantize.static` does when int8 does not pay or costs too much, and on nets that are hard to quantize."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.dataset import Dataset
from lepton_cli.data.memory import Arrays
from lepton_cli.probe import calibration
from lepton_cli.quantize import guard, refine, speed
from lepton_cli.quantize.details import GuardTrial, Speed
from lepton_cli.quantize.spec import QuantizeStatic
from lepton_cli.step import Context, Outcome
from lepton_cli.steps import STEPS
from tests.quantize.builders import (
    Graph,
    context,
    dense_net,
    images,
    inverted_residual_net,
    mlp,
    ops,
    residual_net,
    rows,
    sqnr,
)


def quantize(model: ir.Model, data: Arrays, tmp_path: Path, **options: object) -> Outcome:
    params = QuantizeStatic.model_validate(
        {"step": "quantize.static", "target": "x86-vnni", "speed_guard": False, **options}
    )
    return STEPS["quantize.static"].apply(model, params, context(data, tmp_path))


def test_where_int8_does_not_pay_the_other_ways_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "faster_choice", lambda model, choice, *rest: (choice, Speed(speedup=0.8)))
    model = mlp()
    outcome = quantize(model, rows(), tmp_path, target="auto", speed_guard=True)
    measured = outcome.details.speed
    assert set(measured.alternatives) == {"float", "quantize.dynamic", "convert.fp16"}
    assert measured.verdict.startswith("int8 does not pay here (0.8x at batch 1), best is")
    assert any("kept for its size" in warning for warning in outcome.warnings)


def test_sensitivity_without_a_guard(tmp_path: Path) -> None:
    outcome = quantize(residual_net(), images(), tmp_path, sensitivity=True)
    ratios = [row.sqnr_db for row in outcome.details.sensitivity]
    assert len(ratios) == 5
    assert ratios == sorted(ratios)


def test_outputs_far_from_the_float_model_are_repaired(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 16)
    wide = graph.op("Mul", x, graph.constant(np.float32([1000.0] + [0.05] * 15).reshape(1, 16, 1, 1)))
    y = graph.conv(wide, 16, 16, relu=False)
    model = graph.model(graph.op("Flatten", graph.conv(graph.op("Relu", y), 16, 16, 1, relu=False)))
    weight = model.graph.initializers["w3"]
    rows_ = weight.const_value.numpy().copy()  # type: ignore[union-attr]
    rows_[:, 0] *= 1e-5  # the wide channel matters no more than the narrow ones, which one scale for all loses
    weight.const_value = ir.tensor(rows_, name="w3")
    outcome = quantize(model, images(), tmp_path, equalise=False)
    assert outcome.details.fidelity_guard.holds
    assert outcome.details.sqnr_db >= 20
    assert any("below 20 dB" in decision.reason for decision in outcome.decisions)


def test_relu6_pairs_are_skipped_with_a_reason(tmp_path: Path) -> None:
    model = inverted_residual_net()
    outcome = quantize(model, images(), tmp_path)
    assert "ReLU6" in outcome.details.equalise_skipped.reason
    assert len(outcome.details.equalise_skipped.nodes) == 4
    assert sqnr(model, outcome.model, images(seed=7)) > 20
    assert all(decision.action == "quantized" for decision in outcome.decisions if decision.op == "Conv")


def test_nearly_dead_channels_of_batch_norm(tmp_path: Path) -> None:
    model = dense_net()
    outcome = quantize(model, images(), tmp_path)
    assert sqnr(model, outcome.model, images(seed=7)) > 25


def test_accuracy_guard_may_widen_activations_before_float(tmp_path: Path) -> None:
    model = residual_net()

    def score(candidate: ir.Model) -> float:
        kinds = [value.const_value.dtype for value in candidate.graph.initializers.values() if value.const_value]
        return 1.0 if "QuantizeLinear" not in ops(candidate) or ir.DataType.UINT16 in kinds else 0.5

    guard = {"max_drop": "1 pp", "fallback": "int16"}
    options = {"step": "quantize.static", "target": "x86-vnni", "speed_guard": False, "accuracy_guard": guard}
    outcome = STEPS["quantize.static"].apply(
        model, QuantizeStatic.model_validate(options), context(images(), tmp_path, score=score)
    )
    assert outcome.details.accuracy_guard.holds
    assert outcome.details.accuracy_guard.trials[1] == GuardTrial(int16=1, drop=0.0)
    assert sum("16-bit" in decision.reason for decision in outcome.decisions) == 1
    assert sum(decision.action == "quantized" and decision.op == "Conv" for decision in outcome.decisions) == 5
    assert sqnr(model, outcome.model, images(seed=7)) > 28


def test_what_returns_to_float_has_the_weights_it_had_stored_once(tmp_path: Path) -> None:
    """Differences of large products need float. Left as rounding made them, their weights cost as much as int8."""
    random = np.random.default_rng(0)
    weight, delta, other = (random.normal(size=(64, 64)).astype(np.float32) for _ in range(3))
    weights = [weight, weight + np.float32(0.001) * delta]
    graph = Graph()
    inputs = [graph.take(name, ["n", 64]) for name in ("a", "b")]
    shared = [graph.constant(one) for one in weights]
    outputs = [graph.op("Sub", *(graph.op("MatMul", x, one) for one in shared)) for x in inputs]
    model = graph.model(*outputs, graph.op("MatMul", inputs[0], graph.constant(other)))
    data = Arrays({name: random.normal(size=(16, 64)).astype(np.float32) for name in ("a", "b")})
    outcome = quantize(model, data, tmp_path, rounding="gptq", calibration="minmax", equalise=False)
    assert {one.node for one in outcome.decisions if one.action == "quantized"} == {"MatMul_6"}
    held = [value.const_value for value in outcome.model.graph.initializers.values() if len(value.shape) == 2]
    floats = sorted((one.numpy() for one in held if one.dtype == ir.DataType.FLOAT), key=np.sum)
    np.testing.assert_array_equal(floats, sorted(weights, key=np.sum))
    assert outcome.details.sqnr_db > 30


def test_near_the_floor_the_samples_that_judge_are_none_of_those_fitted_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    collect, best = calibration.collect, refine.best

    def collected(model: ir.Model, names: list[str], data: Dataset, told: Context) -> calibration.Ranges:
        fitted.append(data.count)
        return collect(model, names, data, told)

    def found(*given: object) -> refine.Best:
        fitted.append(-given[6].count)  # type: ignore[attr-defined]
        assert given[2].samples == given[6].count, "ranges of the same samples"  # type: ignore[attr-defined]
        return best(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(calibration, "collect", collected)
    monkeypatch.setattr(refine, "best", found)
    monkeypatch.setattr(guard, "FLOOR_DB", 30.0)
    outcome = quantize(mlp(), rows(40), tmp_path, equalise=False, rounding="nearest", bias_correction=False)
    assert fitted == [30, 10, -40, -30], "ranges in one pass; fits to all samples, and without those that judge"
    unseen = sqnr(mlp(), outcome.model, rows(400))
    assert outcome.details.fidelity_guard is None or unseen > 30


def test_too_few_samples_to_judge_by_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "OPTIMISM_DB", 100.0)
    said, quick = "`arrays` has 15 samples, too few to keep some apart", {"equalise": False, "rounding": "nearest"}
    assert any(one.startswith(said) for one in quantize(mlp(), rows(15), tmp_path, **quick).warnings)
    assert not any("too few" in one for one in quantize(mlp(), rows(16), tmp_path, **quick).warnings)
