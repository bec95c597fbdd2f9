"""`quantize.aware` end to end: what rounding destroyed comes back, and the file stays what it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import LeptonError
from lepton_cli.quantize.aware import aware
from lepton_cli.quantize.spec import QuantizeAware
from lepton_cli.step import Context, Outcome
from lepton_cli.train.spec import TrainingBudget
from tests.quantize.builders import Graph, context
from tests.quantize.test_static import quick

pytest.importorskip("torch", reason="needs the extra `train`")
from tests.train.test_distill import ROWS, answers, given, told


def deep() -> ir.Model:
    graph = Graph()
    y = graph.take("x", ["b", 8])
    for inner in (8, 32, 32):
        y = graph.op("Relu", graph.linear(y, inner, 32))
    return graph.model(graph.linear(y, 32, 5))


def around(original: ir.Model, folder: Path) -> Context:
    made = context(Arrays({"x": ROWS[:64]}), folder, original=original)
    return dataclasses.replace(made, training=given(original, folder))


def trained(original: ir.Model, folder: Path, **options: Any) -> tuple[ir.Model, Outcome]:
    start = quick(original, folder, Arrays({"x": ROWS[:200]})).model
    budget = options.pop("budget", TrainingBudget(epochs=15))
    return start, aware(start, QuantizeAware(budget=budget, **options), around(original, folder))


def quantized(model: ir.Model) -> list[str]:
    """Layers with weights of 8 bits."""
    layers = [node for node in model.graph if node.op_type == "Gemm"]
    return [node.name or "" for node in layers if node.inputs[1] is not None and node.inputs[1].producer() is not None]


def far(model: ir.Model, original: ir.Model) -> float:
    """Of scores for classes, of which only the differences count."""
    rows = np.random.default_rng(9).normal(size=(500, 8)).astype(np.float32)
    apart = answers(model, rows) - answers(original, rows)
    return float(np.square(apart - apart.mean(1, keepdims=True)).mean())


def test_four_bits_learn_to_answer_like_the_float_model(tmp_path: Path) -> None:
    original = deep()
    start, outcome = trained(original, tmp_path, weight_bits=4, eight_bits=())
    count = len(quantized(start))
    _, rounded = trained(original, tmp_path, weight_bits=4, eight_bits=(), budget=TrainingBudget(samples=1))
    assert "kept as it was" in rounded.summary or told(rounded).steps == 1
    assert far(outcome.model, original) < 0.5 * far(rounded.model, original)
    assert (told(outcome).precision, told(outcome).piece) == ("float32", 0)
    kinds = [value.dtype for value in outcome.model.graph.initializers.values()]
    assert kinds.count(ir.DataType.INT4) == count >= 2
    assert f"{count} layers of 4-bit weights" in outcome.summary
    assert {one.reason for one in outcome.decisions if one.action == "quantized"} == {"weights in 4 bits"}


def test_eight_bits_come_closer_and_nothing_else_changes(tmp_path: Path) -> None:
    original = deep()
    start, outcome = trained(original, tmp_path)
    assert [node.op_type for node in outcome.model.graph] == [node.op_type for node in start.graph]
    for name, value in start.graph.initializers.items():
        now = outcome.model.graph.initializers[name]
        assert (now.dtype, now.shape) == (value.dtype, value.shape)
    if outcome.changed:
        assert far(outcome.model, original) < far(start, original)
    else:
        assert outcome.model is start


def test_layers_named_keep_eight_bits(tmp_path: Path) -> None:
    original = deep()
    start, outcome = trained(original, tmp_path, weight_bits=4, budget=TrainingBudget(samples=1))
    inner = [node.name for node in start.graph if node.op_type == "Gemm"][1:-1]
    assert [one.node for one in outcome.decisions if one.action == "quantized"] == inner
    layer = quantized(start)[1]
    _, outcome = trained(original, tmp_path, weight_bits=4, eight_bits=(layer,), budget=TrainingBudget(samples=1))
    assert [one.node for one in outcome.decisions if one.action == "quantized"] == [
        name for name in quantized(start) if name != layer
    ]


def refused(code: str, model: ir.Model, context: Context, **options: Any) -> LeptonError:
    with pytest.raises(LeptonError) as caught:
        aware(model, QuantizeAware(**options), context)
    assert caught.value.code == code
    return caught.value


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = deep()
    assert "quantize.static" in (refused("train.not-quantized", original, around(original, tmp_path)).hint or "")
    start = quick(original, tmp_path, Arrays({"x": ROWS[:200]})).model
    bare = context(Arrays({"x": ROWS[:8]}), tmp_path, original=original)
    assert "`quantize.aware` needs training data" in refused("data.training-missing", start, bare).message
    error = refused("quantize.nothing", start, around(original, tmp_path), weight_bits=4, eight_bits=("*",))
    assert "eight_bits" in (error.hint or "")
    refused("recipe.glob-matches-nothing", start, around(original, tmp_path), weight_bits=4, eight_bits=("nowhere",))
    monkeypatch.setattr("lepton_cli.quantize.int4.raised", lambda *_: None)
    refused("model.opset", start, around(original, tmp_path), weight_bits=4)


def test_a_plan_trains_nothing(tmp_path: Path) -> None:
    original = deep()
    start = quick(original, tmp_path, Arrays({"x": ROWS[:200]})).model
    outcome = aware(start, QuantizeAware(), dataclasses.replace(around(original, tmp_path), dry=True))
    assert outcome.model is start
    assert "codes and scales" in outcome.summary
