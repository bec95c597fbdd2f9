"""Wrong rewrites and wrong nodes planted into whole steps: none reaches the model that comes out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.coupling import shortcuts
from lepton_cli.errors import StepError
from lepton_cli.graph import batch_norm
from lepton_cli.graph.edit import Editor, array_of
from lepton_cli.quantize import blocks, cpu, dynamic, forms
from lepton_cli.quantize.spec import QuantizeWeights
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context, images, mlp, ops, rows, sqnr


def normalised() -> ir.Model:
    """Conv, BatchNormalization, a shortcut that thins out and pads, LayerNormalization of a sum, Gemm and MatMul."""
    graph = Graph()
    draw = graph.random.normal
    x = graph.conv(graph.take("x", ["b", 3, 8, 8]), 3, 16, relu=False)
    parts = [graph.constant(abs(draw(1, 0.2, 16)).astype(np.float32)) for _ in range(4)]
    x = graph.op("Relu", graph.op("BatchNormalization", x, *parts))
    flat = graph.op("Flatten", graph.op("GlobalAveragePool", x))
    both = graph.op("Add", graph.linear(flat, 16, 32), graph.linear(flat, 16, 32, gemm=False))
    scale = [graph.constant(np.ones(32, np.float32)), graph.constant(np.zeros(32, np.float32))]
    norm = graph.op("LayerNormalization", both, *scale)
    return graph.model(graph.linear(norm, 32, 32))


def doubled(model: ir.Model) -> None:
    """Plants an error: the first weight is twice what it was."""
    for node in model.graph:
        weight = array_of(node)
        if node.op_type in ("Conv", "Gemm", "MatMul") and weight is not None:
            Editor(model).give(node, 1, 2 * weight, "planted")
            return


PLANTS = [
    ("quantize.static", forms, "matmul_to_gemm"),
    ("quantize.static", forms, "unshare"),
    ("quantize.static", shortcuts, "as_convolutions"),
    ("quantize.static", cpu, "spare_slow_sums"),
    ("quantize.static", batch_norm, "fold_batch_norm"),
    ("quantize.dynamic", dynamic, "gemm_to_matmul"),
    ("quantize.dynamic", cpu, "spare_slow_sums"),
    ("quantize.dynamic", batch_norm, "fold_batch_norm"),
]


@pytest.mark.parametrize(("step", "module", "name"), PLANTS)
def test_a_wrong_rewrite_never_leaves_the_step(
    step: str, module: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(module, name)

    def wrong(model: ir.Model, *others: object) -> object:
        found = real(model, *others)
        doubled(model)
        return found

    monkeypatch.setattr(module, name, wrong)
    data = images(32, size=8)
    guard = {"speed_guard": False} if step == "quantize.static" else {}
    options = STEPS[step].options.model_validate({"step": step, "target": "x86-vnni", **guard})
    run = partial(STEPS[step].apply, normalised(), options, context(data, tmp_path, batch=8))
    if name == "gemm_to_matmul":
        with pytest.raises(StepError, match="Gemm as MatMul and Add does not compute the same"):
            run()
        return
    outcome = run()
    assert sqnr(normalised(), outcome.model, data) > 35, "a doubled weight leaves less than 10 dB"
    assert any("does not compute the same" in warning for warning in outcome.warnings)


@pytest.mark.parametrize("plant", ["half", "no bias", "turned"])
def test_a_node_that_is_written_wrong_goes_back_to_float(
    plant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of int8 itself: what it loses besides rounding is seen at the node, whatever follows it."""
    real = dynamic._written

    def wrong(model: ir.Model, nodes: set[str], *others: Any) -> ir.Model:
        made = real(model, nodes, *others)
        if "MatMul_2" in nodes:
            result = next(v for node in made.graph for v in node.outputs if v.name == "t2")
            readers = list(result.uses())
            factor = ir.node("Mul", [result, Editor(made).constant("f", np.float32(0.5))], name="plant")
            if plant == "turned":
                factor = ir.node("Neg", [result], name="plant")
            if plant == "no bias":
                factor = ir.node("Sub", [result, Editor(made).constant("f", np.float32(5))], name="plant")
            factor.outputs[0].name = "t2"
            result.name = "t2_right"
            made.graph.append(factor)
            for use in readers:
                use.node.replace_input_with(use.idx, factor.outputs[0])
            made.graph.sort()
        return made

    options = STEPS["quantize.dynamic"].options.model_validate({"step": "quantize.dynamic", "target": "x86-vnni"})
    monkeypatch.setattr(dynamic, "_written", wrong)
    outcome = STEPS["quantize.dynamic"].apply(mlp(), options, context(rows(), tmp_path))
    told = {one.node: one for one in outcome.decisions}
    assert told["MatMul_2"].action == "kept"
    assert told["MatMul_2"].reason.startswith("stays float: in 8 or fewer bits its result is")
    assert told["Gemm_0"].action == "quantized"
    assert outcome.changed == 1
    assert sqnr(mlp(), outcome.model, rows()) > 30


def test_blocks_that_are_written_wrong_go_back_to_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks with scales of half their size, in one of two layers."""
    real = blocks._by_rows

    def wrong(tensor: ir.TensorProtocol, size: int, options: QuantizeWeights, empty: bool) -> Any:
        made = real(tensor, size, options, empty)
        made.scales /= 2
        return made

    model = mlp()
    options = STEPS["quantize.weights"].options.model_validate({"step": "quantize.weights", "bits": 8})
    monkeypatch.setattr(blocks, "_by_rows", wrong)
    outcome = STEPS["quantize.weights"].apply(model, options, context(rows(), tmp_path))
    told = {one.node: one for one in outcome.decisions}
    assert (told["Gemm_0"].action, told["MatMul_2"].action) == ("kept", "quantized")
    assert "its result is 0.5" in told["Gemm_0"].reason
    assert ops(outcome.model).count("MatMulNBits") == 1
    assert sqnr(model, outcome.model, rows()) > 30
