"""Every node that holds weights is named by every step that stores weights, with what became of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.graph.held import holders
from lepton_cli.model import io
from lepton_cli.quantize.fates import TABLES, left_alone
from lepton_cli.step import Decision
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context

STORING = ("quantize.static", "quantize.dynamic", "quantize.weights", "convert.fp16")


def mixed() -> tuple[Graph, str]:
    """A recurrent layer, a product in Einstein's notation, an upsampling layer and a MatMul: weights in each."""
    graph = Graph()
    draw = graph.random.normal

    def weight(*shape: int) -> str:
        return graph.constant((0.1 * draw(size=shape)).astype(np.float32))

    x = graph.take("x", ["L", "B", 32])
    _, last = graph.op("GRU", x, weight(1, 96, 32), weight(1, 96, 32), outputs=2, hidden_size=32)
    flat = graph.op("Squeeze", last, graph.constant(np.array([0])))
    ein = graph.op("Einsum", flat, weight(32, 64), equation="ab,bc->ac")
    dense = graph.op("MatMul", ein, weight(64, 64))
    image = graph.op("Reshape", dense, graph.constant(np.array([-1, 16, 2, 2])))
    return graph, graph.op("ConvTranspose", image, weight(16, 8, 2, 2), strides=[2, 2])


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("step", STORING)
def test_nothing_that_holds_weights_is_left_without_a_word(step: str, dry: bool, tmp_path: Path) -> None:
    graph, result = mixed()
    model = graph.model(result)
    data = Arrays({"x": np.random.default_rng(1).normal(size=(6, 4, 32)).astype(np.float32)})
    options = STEPS[step].options.model_validate({"step": step})
    outcome = STEPS[step].apply(model, options, context(data, tmp_path, dry=dry, batch=6))
    told = {decision.node: decision for decision in outcome.decisions}
    assert {holder.node.op_type for holder in holders(model)} == {"GRU", "Einsum", "MatMul", "ConvTranspose"}
    assert {holder.node.name for holder in holders(model)} <= told.keys()
    for holder in holders(model):
        found = told[holder.node.name or ""]
        wanted = "converted" if step == "convert.fp16" else "quantized" if found.op == "MatMul" else "kept"
        assert found.action == wanted
        assert found.reason
    assert io.to_bytes(model) == io.to_bytes(graph.model(result))


def test_operators_that_are_never_int8_are_no_surprise(tmp_path: Path) -> None:
    graph, result = mixed()
    data = Arrays({"x": np.random.default_rng(1).normal(size=(6, 4, 32)).astype(np.float32)})
    options = STEPS["quantize.static"].options.model_validate({"step": "quantize.static", "speed_guard": False})
    outcome = STEPS["quantize.static"].apply(graph.model(result), options, context(data, tmp_path, batch=6))
    assert outcome.changed
    assert not any("matrix operators in float" in warning for warning in outcome.warnings)


def test_what_is_said_of_an_operator_names_its_set() -> None:
    graph = Graph()
    x = graph.take("x", ["b", 32])
    table = graph.constant(np.zeros((32, 16), np.float32))
    ids = graph.op("Cast", x, to=7)
    outputs = [
        graph.op("FusedMatMul", x, table, domain="com.microsoft"),
        graph.op("MatMul", x, table),
        graph.op("Gather", table, ids),
        graph.op("Gather", table, ids, domain="other"),
        graph.op("Einsum", x, table, equation="ab,bc->ac"),
    ]
    model = graph.model(*outputs)
    known = Decision(node="MatMul_2", op="MatMul", action="quantized", reason="")
    found = left_alone(model, [known], "the step takes MatMul")
    assert [(one.node, one.op, one.action, one.reason) for one in found] == [
        ("FusedMatMul_1", "FusedMatMul", "kept", "com.microsoft.FusedMatMul stays float: the step takes MatMul"),
        ("Gather_3", "Gather", "kept", TABLES["Gather"]),
        ("Gather_4", "Gather", "kept", "other.Gather stays float: the step takes MatMul"),
        ("Einsum_5", "Einsum", "kept", "Einsum stays float: the step takes MatMul"),
    ]


@pytest.mark.parametrize("step", ["static", "dynamic"])
def test_what_has_no_int8_kernel_is_told_so(step: str, tmp_path: Path) -> None:
    """A GRU and a ConvTranspose have none; an LSTM has one, which only the dynamic step reaches."""
    graph = Graph()
    x = graph.take("x", [5, 1, 32])
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        weights = [graph.random.normal(size=(1, gates * 32, 32)).astype(np.float32) for _ in range(2)]
        y = graph.op(op, x, *(graph.constant(weight) for weight in weights), hidden_size=32)
        x = graph.op("Squeeze", y, graph.constant(np.array([1])))
    x = graph.op("Unsqueeze", graph.linear(x, 32, 32, gemm=False), graph.constant(np.array([0])))
    model = graph.model(graph.op("ConvTranspose", x, graph.constant(np.ones((5, 64, 9), np.float32))))
    given = context(None, tmp_path, dry=True)
    made = STEPS[f"quantize.{step}"]
    outcome = made.apply(model, made.options.model_validate({"step": f"quantize.{step}"}), given)
    said = {decision.op: (decision.action, decision.reason) for decision in outcome.decisions}
    none = "onnxruntime has no int8 kernel for it"
    assert said["GRU"] == ("kept", f"GRU stays float: {none}")
    assert said["RNN"] == ("kept", f"RNN stays float: {none}")
    assert said["ConvTranspose"][1].startswith(f"ConvTranspose stays float: {none}")
    assert said["LSTM"][0] == ("kept" if step == "static" else "quantized")
    assert step == "dynamic" or "quantize.dynamic" in said["LSTM"][1]
