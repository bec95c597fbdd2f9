"""`lepton plan` decides and predicts without writing or measuring."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from lepton_cli.commands.plan import plan
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict
from tests.conftest import ROOT, Invoke
from tests.quantize.builders import Graph


def test_predicted_sizes_are_near_the_real_ones(samples: Path) -> None:
    recipe = from_dict({"version": 1, "steps": [{"step": "simplify"}, {"step": "quantize.dynamic"}]})
    found = plan(samples / "digits_mlp.onnx", recipe, Silent())
    before, simplified, quantized = found.sizes
    assert simplified <= before
    assert 0.24 * before < quantized < 0.27 * before
    assert [record.step for record in found.steps] == ["simplify", "quantize.dynamic"]


def test_pruning_predicts_its_target(samples: Path) -> None:
    recipe = from_dict(
        {
            "version": 1,
            "steps": [{"step": "prune.channels", "target": {"params": "10 %"}}, {"step": "quantize.dynamic"}],
        }
    )
    before, pruned, quantized = plan(samples / "digits_mlp.onnx", recipe, Silent()).sizes
    assert 0.09 * before < pruned < 0.11 * before
    assert quantized < 0.3 * pruned


def test_nothing_is_written(invoke: Invoke, tmp_path: Path, samples: Path) -> None:
    result = invoke("plan", samples / "digits_cnn.onnx", "-r", ROOT / "configs/cnn-int8.yaml")
    assert result.exit_code == 0, result.stderr
    assert "quantize.static" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_node_of_a_step(invoke: Invoke, samples: Path) -> None:
    result = invoke("plan", samples / "digits_cnn.onnx", "-r", ROOT / "configs/cnn-int8.yaml", "--step", "1")
    assert result.stdout.count(" BatchNormalization ") == 27
    assert (
        invoke("plan", samples / "digits_cnn.onnx", "-r", ROOT / "configs/cnn-int8.yaml", "--step", "9").exit_code == 2
    )


def test_a_large_table_is_part_of_the_prediction(tmp_path: Path) -> None:
    """1000 rows of 128 in float32: a quarter of the bytes is left, and a scale for each 128 values."""
    graph = Graph()
    table = graph.constant(graph.random.normal(size=(1000, 128)).astype(np.float32))
    ids = graph.take("x", ["b"], TensorProto.INT64)
    weight = graph.constant(graph.random.normal(size=(128, 128)).astype(np.float32))
    path = tmp_path / "table.onnx"
    path.write_bytes(io.to_bytes(graph.model(graph.op("MatMul", graph.op("Gather", table, ids), weight))))
    for step in ("quantize.dynamic", "quantize.weights", "convert.fp16"):
        found = plan(path, from_dict({"version": 1, "steps": [{"step": step}]}), Silent())
        held = 4 * (1000 * 128 + 128 * 128)
        share = {"quantize.dynamic": 1 / 4, "quantize.weights": 1 / 8, "convert.fp16": 1 / 2}[step]
        assert found.sizes[1] == pytest.approx(share * held, rel=0.01)


def test_a_step_that_would_change_nothing_is_shown_and_then_ends_as_compress_does(
    invoke: Invoke, samples: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "idle.yaml"
    recipe.write_text(
        "version: 1\nsteps:\n  - step: simplify\n  - {step: quantize.dynamic, op_types: [LSTM]}\n"
        "  - step: quantize.weights\nevaluate: {latency: false}\n"
    )
    model = samples / "digits_mlp.onnx"
    planned, done = invoke("plan", model, "-r", recipe), invoke("compress", model, "-r", recipe, "-o", "out")
    assert planned.exit_code == done.exit_code == 3
    assert "`quantize.dynamic` changed nothing" in planned.stderr
    assert "`quantize.dynamic` changed nothing" in done.stderr
    assert "lepton plan" in done.stderr
    assert "lepton plan" not in planned.stderr, "that was done already"
    assert "2  quantize.dynamic" in planned.stdout
    assert "quantize.weights" not in planned.stdout
    found = json.loads(invoke("plan", model, "-r", recipe, "--json").stdout)
    assert found["error"]["code"] == "step.no-effect"
    recipe.write_text(recipe.read_text().replace("[LSTM]}", "[LSTM], if_possible: true}"))
    assert invoke("plan", model, "-r", recipe).exit_code == 0


def test_a_target_that_holds_already_is_no_error(invoke: Invoke, samples: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "there.yaml"
    recipe.write_text(
        "version: 1\nname: there\nevaluate: {latency: false}\nsteps: [{step: prune.channels, target: {macs: 100 %}}]\n"
    )
    model = samples / "digits_mlp.onnx"
    planned = invoke("plan", model, "-r", recipe)
    assert planned.exit_code == 0
    assert "already there" in planned.stdout
    done = invoke("compress", model, "-r", recipe, "-o", "out")
    assert done.exit_code == 0, done.stderr
    assert "prune.channels LEFT THE MODEL AS IT WAS (already there: macs within 100.0 % of the original)" in " ".join(
        done.stdout.split()
    ).replace("100.0%", "100.0 %")
    kept, was = (io.load(path).model for path in (tmp_path / "out/there.onnx", model))
    for name, value in was.graph.initializers.items():
        assert np.array_equal(kept.graph.initializers[name].const_value.numpy(), value.const_value.numpy())
