"""Rewrites for onnxruntime's CPU provider: they compute the same, and only where they may."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.model import io
from lepton_cli.quantize import cpu
from lepton_cli.quantize.targets import TARGETS
from lepton_cli.runtime import Session
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, Samples, context, ops, rows, sqnr

LOWEST = float(np.finfo(np.float32).min)


def attention(low: float = LOWEST, *, shown: bool = False, late: bool = False) -> ir.Model:
    """Scores with a mask added, softmax, a product, layer norm of a sum; inputs `x`, `keep` [b, 1, 32].

    `late`: the scores are scaled with the mask.
    """
    graph = Graph()
    x, keep = graph.take("x", ["b", 32, 32]), graph.take("keep", ["b", 1, 32])
    scores = graph.op("MatMul", x, graph.op("Transpose", x, perm=[0, 2, 1]))
    hidden = graph.op("Less", keep, graph.constant(np.float32(0.5)))
    mask = graph.op("Where", hidden, graph.constant(np.float32(low)), graph.constant(np.float32(0)))
    scale = graph.constant(np.float32(0.1))
    scores = (
        graph.op("Mul", graph.op("Add", scores, mask), scale)
        if late
        else graph.op("Add", graph.op("Mul", scores, scale), mask)
    )
    weights = graph.op("Softmax", scores)
    y = graph.linear(graph.op("MatMul", weights, x), 32, 32, gemm=False)
    norm = [graph.constant(np.ones(32, np.float32)), graph.constant(np.zeros(32, np.float32))]
    y = graph.op("LayerNormalization", graph.op("Add", y, x), *norm)
    return graph.model(*([y, mask] if shown else [y]))


def sentences(count: int = 12) -> Samples:
    random = np.random.default_rng(3)
    keep = (np.arange(32)[None, None] < random.integers(4, 33, (count, 1, 1))).astype(np.float32)
    return Samples(x=random.normal(0, 1, (count, 32, 32)).astype(np.float32), keep=keep)


def constants(model: ir.Model) -> list[float]:
    values = [value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value is not None]
    return [float(array) for array in values if array.ndim == 0]


def test_softer_masks_compute_the_same_without_denormal_numbers(tmp_path: Path) -> None:
    model, data = attention(), sentences()
    made, decisions = cpu.soften_masks(model, context(data, tmp_path))
    assert LOWEST in constants(model)
    assert LOWEST not in constants(made)
    assert [decision.op for decision in decisions] == ["Where"]
    assert sqnr(model, made, data) > 100
    softmax = next(node for node in made.graph if node.op_type == "Softmax").outputs[0]
    made.graph.outputs.append(softmax)
    weights = Session(io.to_bytes(made), threads=1).run(data.feeds)[softmax.name or ""]
    assert weights.min() > np.finfo(np.float32).tiny


@pytest.mark.parametrize("low", [-50.0, -10000.0])
def test_other_constants_stay(low: float, tmp_path: Path) -> None:
    model = attention(low)
    assert cpu.soften_masks(model, context(sentences(), tmp_path)) == (model, [])


def test_a_mask_that_the_model_returns_stays(tmp_path: Path) -> None:
    model = attention(shown=True)
    assert cpu.soften_masks(model, context(sentences(), tmp_path)) == (model, [])


def test_a_mask_that_changes_results_stays(tmp_path: Path) -> None:
    data = sentences()
    data.feeds["keep"][:] = 0  # nothing is visible: -3.4e38 then swallows the scores, -65 does not
    model = attention()
    assert cpu.soften_masks(model, context(data, tmp_path)) == (model, [])


def test_a_mask_that_is_scaled_later_stays(tmp_path: Path) -> None:
    data = sentences()
    data.feeds["keep"][:] = 1  # calibration without padding shows no difference
    model = attention(late=True)
    assert cpu.soften_masks(model, context(data, tmp_path)) == (model, [])


def test_sums_before_layer_norm_are_not_fused(tmp_path: Path) -> None:
    model, data = attention(), sentences()
    made = io.clone(model)
    cpu.spare_slow_sums(made)
    assert ops(made).count("Sum") == 1
    assert sqnr(model, made, data) > 120


@pytest.mark.parametrize("step", ["quantize.static", "quantize.dynamic"])
def test_steps_rewrite_for_the_cpu_only(step: str, tmp_path: Path) -> None:
    model, data = attention(), sentences()
    for target, rewritten in (("x86-vnni", True), ("tensorrt", False)):
        options = {"step": step, "target": target} | ({"speed_guard": False} if step == "quantize.static" else {})
        outcome = STEPS[step].apply(model, STEPS[step].options.model_validate(options), context(data, tmp_path))
        assert outcome.changed
        assert ("Sum" in ops(outcome.model)) == rewritten
        assert any(decision.action == "rewritten" for decision in outcome.decisions) == rewritten
        assert sqnr(model, outcome.model, data) > 25


def test_suits() -> None:
    assert [name for name, target in TARGETS.items() if cpu.suits(target)] == ["x86-vnni", "x86", "arm"]


def test_models_without_masks_are_left(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.linear(graph.take("x", ["b", 64]), 64, 64))
    assert cpu.soften_masks(model, context(rows(), tmp_path)) == (model, [])
