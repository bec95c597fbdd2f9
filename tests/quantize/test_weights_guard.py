"""Weights in 8 bits whose outputs come out too far off: the worst go back to float, or it is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lepton_cli.data.memory import Arrays
from lepton_cli.quantize.spec import QuantizeDynamic, QuantizeWeights
from lepton_cli.step import Outcome
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context, ops
from tests.quantize.test_stored import run

_RANDOM = np.random.default_rng(0)
_WEIGHT, _DELTA = (_RANDOM.normal(size=(64, 64)).astype(np.float32) for _ in range(2))


def cancelling() -> ir.Model:
    """Two products of large weights whose difference is 1000 times smaller, beside a convolution that is harmless."""
    graph = Graph()
    x, image = graph.take("x", ["n", 64]), graph.take("image", ["n", 8, 6, 6])
    first, second = (graph.op("MatMul", x, graph.constant(w)) for w in (_WEIGHT, _WEIGHT + np.float32(0.001) * _DELTA))
    kernel = graph.constant(_RANDOM.normal(size=(16, 8, 3, 3)).astype(np.float32))
    return graph.model(graph.op("Sub", first, second), graph.op("Conv", image, kernel))


def samples(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=(8, *shape)).astype(np.float32) for name, shape in
            (("x", (64,)), ("image", (8, 6, 6)))}  # fmt: skip


def quantize(folder: Path, *, data: bool = True, step: str = "quantize.weights", **options: object) -> Outcome:
    chosen = (QuantizeWeights if step == "quantize.weights" else QuantizeDynamic).model_validate(
        {"step": step, **options}
    )
    made = Arrays(samples(1))
    return STEPS[step].apply(cancelling(), chosen, context(made if data else None, folder, check=made))


def decibel(model: ir.Model, feeds: dict[str, np.ndarray] | None = None) -> float:
    """Of the first output, by plain onnxruntime on samples that the step did not see, against the closed form."""
    feeds = feeds or samples(2)
    exact = feeds["x"].astype(float) @ (-0.001 * _DELTA.astype(float))
    return float(10 * np.log10(np.sum(exact**2) / np.sum((run(model, feeds) - exact) ** 2)))


def test_the_worst_weights_go_back_to_float_until_20_db_hold(tmp_path: Path) -> None:
    outcome = quantize(tmp_path, bits=8)
    assert decibel(outcome.model) > 20
    assert "MatMul" in ops(outcome.model)
    assert outcome.changed == len([one for one in outcome.decisions if one.action == "quantized"]) >= 1
    assert {one.op for one in outcome.decisions if one.action == "quantized"} >= {"Conv"}
    (why,) = {one.reason for one in outcome.decisions if one.action == "kept"}
    assert "below 20 dB" in why
    assert outcome.details.sqnr_db > 20
    assert outcome.details.fidelity_guard.holds


def test_who_insists_or_has_no_data_is_told(tmp_path: Path) -> None:
    insisted = quantize(tmp_path, bits=8, fidelity_guard=False)
    assert insisted.changed == 3
    assert decibel(insisted.model) < 0
    (said,) = insisted.warnings
    assert said.startswith("the worst part of the outputs comes out at -")
    blind = quantize(tmp_path, data=False, bits=8)
    assert blind.changed == 3
    assert "made-up inputs" in blind.warnings[0]


def test_dynamic_int8_says_the_same(tmp_path: Path) -> None:
    outcome = quantize(tmp_path, step="quantize.dynamic", target="x86-vnni")
    assert decibel(outcome.model) < 0
    assert any(one.startswith("the worst part of the outputs comes out at -") for one in outcome.warnings)


def test_4_bits_are_a_choice_for_size(tmp_path: Path) -> None:
    outcome = quantize(tmp_path, bits=4)
    assert outcome.changed == 2
    assert not outcome.warnings
    assert outcome.details.sqnr_db < 0


def in_branches(second: np.ndarray) -> ir.Model:
    """`x @ w` where `sum(x) > 0`, `x @ second` elsewhere."""

    def branch(name: str, array: np.ndarray) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        node = helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"], name=name)
        return helper.make_graph([node], name, [], [out], [numpy_helper.from_array(array, f"{name}_w")])

    graph = Graph()
    total = graph.op("ReduceSum", graph.take("x", ["n", 64]), keepdims=0)
    positive = graph.op("Greater", total, graph.constant(np.float32(0)))
    branches = {"then_branch": branch("yes", _WEIGHT), "else_branch": branch("no", second)}
    return graph.model(graph.op("If", positive, **branches))


@pytest.mark.parametrize("equal", [True, False])
def test_a_weight_of_two_branches_is_stored_in_one_form(equal: bool, tmp_path: Path) -> None:
    model = in_branches(_WEIGHT if equal else _WEIGHT + _DELTA)
    options = QuantizeWeights.model_validate({"step": "quantize.weights", "bits": 8, "exclude": ["no"]})
    outcome = STEPS["quantize.weights"].apply(model, options, context(Arrays({"x": samples(1)["x"]}), tmp_path))
    fates = {one.node: one.action for one in outcome.decisions if one.op == "MatMul"}
    assert fates == {"yes": "kept" if equal else "quantized", "no": "kept"}
    sizes = [v.const_value.nbytes for graph in outcome.model.graphs() for v in graph.initializers.values()]
    assert sum(size for size in sizes if size > 4000) == 4 * 64 * 64 + 64 * 64 * (4 if equal else 1)
    assert (outcome.model is model) == equal


def test_what_reads_one_weight_goes_back_together(tmp_path: Path) -> None:
    """Two products by the cancelling weights share one of them; in float both, or none."""
    graph = Graph()
    x, other = graph.take("x", ["n", 64]), graph.take("image", ["n", 64])
    weights = [graph.constant(w) for w in (_WEIGHT, _WEIGHT + np.float32(0.001) * _DELTA)]
    first, second = (graph.op("MatMul", x, w) for w in weights)
    again = graph.op("MatMul", other, weights[0])
    model = graph.model(graph.op("Sub", first, second), again)
    feeds = {"x": samples(1)["x"], "image": samples(3)["x"]}
    options = QuantizeWeights.model_validate({"step": "quantize.weights", "bits": 8})
    outcome = STEPS["quantize.weights"].apply(model, options, context(Arrays(feeds), tmp_path))
    fates = {one.node: one.action for one in outcome.decisions}
    assert fates["MatMul_0"] == fates["MatMul_2"] == "kept"
    assert decibel(outcome.model, {"x": samples(2)["x"], "image": samples(4)["x"]}) > 20
