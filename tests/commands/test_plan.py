"""`lepton plan` decides and predicts without writing or measuring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

import lepton_cli as lepton
from lepton_cli.commands.plan import plan
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict
from lepton_cli.steps import STEPS
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
    graph = Graph()
    table = graph.constant(graph.random.normal(size=(1000, 128)).astype(np.float32))
    ids = graph.take("x", ["b"], TensorProto.INT64)
    weight = graph.constant(graph.random.normal(size=(128, 128)).astype(np.float32))
    path = tmp_path / "table.onnx"
    path.write_bytes(io.to_bytes(graph.model(graph.op("MatMul", graph.op("Gather", table, ids), weight))))
    for step in ("quantize.dynamic", "quantize.weights", "convert.fp16"):
        found = plan(path, from_dict({"version": 1, "steps": [{"step": step}]}), Silent())
        written = lepton.apply(path, STEPS[step].options.model_validate({"step": step})).model
        assert found.sizes[1] == pytest.approx(len(io.to_bytes(written)), rel=0.002)
