"""`lepton plan` decides and predicts without writing or measuring."""

from __future__ import annotations

from pathlib import Path

from lepton_cli.commands.plan import plan
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict
from tests.conftest import ROOT, Invoke


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
