"""`inspect`, `init`, `steps`, `schema`, `doctor`, `report`: what people look at before and after the work."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import helper

from lepton_cli.recipe.load import load_recipe
from lepton_cli.steps import STEPS
from tests.conftest import Invoke
from tests.hostile.models import model


@pytest.mark.parametrize("name", ["digits_cnn", "digits_mlp", "digits_vit"])
def test_inspect_counts_what_is_there(invoke: Invoke, samples: Path, name: str) -> None:
    result = invoke("inspect", samples / f"{name}.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["size"]["file"] == (samples / f"{name}.onnx").stat().st_size
    assert sum(layer["parameters"] for layer in found["layers"]) == found["size"]["parameters"]
    assert found["size"]["macs"] > 0
    assert any(group["prunable"] for group in found["channel_groups"])


def test_inspect_tables(invoke: Invoke, samples: Path) -> None:
    assert "27 Conv" in invoke("inspect", samples / "digits_cnn.onnx").stdout
    assert "/fc2/Gemm" in invoke("inspect", samples / "digits_mlp.onnx", "--nodes").stdout
    assert "1024" in invoke("inspect", samples / "digits_mlp.onnx", "--channels").stdout


@pytest.mark.parametrize("name", ["digits_cnn", "digits_mlp", "digits_vit"])
def test_init_writes_a_recipe_that_plans(invoke: Invoke, tmp_path: Path, samples: Path, name: str) -> None:
    result = invoke("init", samples / f"{name}.onnx")
    assert result.exit_code == 0, result.stderr
    load_recipe(tmp_path / f"{name}.yaml")
    assert invoke("plan", samples / f"{name}.onnx", "-r", f"{name}.yaml").exit_code == 0


def test_init_asks_for_what_a_fixed_batch_allows(invoke: Invoke, tmp_path: Path) -> None:
    """Pictures and one flag for all of them: two samples a feed, and a gate on just that."""
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Mul", ["f", "gain"], ["y"])]
    inputs = {"gain": (1, [1]), "x": (1, [2, 3, 4, 4])}
    onnx.save(model(nodes, inputs, {"y": (1, [2, 48])}), tmp_path / "two.onnx")
    assert invoke("init", tmp_path / "two.onnx").exit_code == 0
    recipe = load_recipe(tmp_path / "two.yaml").recipe
    assert recipe.evaluate.latency
    assert recipe.evaluate.latency.batch == (2,)
    assert [gate.batch for gate in recipe.gates if gate.metric == "latency.median"] == [2]
    found = invoke("plan", tmp_path / "two.onnx", "-r", "two.yaml")
    assert found.exit_code == 0, found.stderr


def test_init_never_overwrites(invoke: Invoke, tmp_path: Path, samples: Path) -> None:
    (tmp_path / "digits_mlp.yaml").write_text("mine")
    result = invoke("init", samples / "digits_mlp.onnx")
    assert result.exit_code == 2
    assert "error[output.exists]" in result.stderr
    assert (tmp_path / "digits_mlp.yaml").read_text() == "mine"


def test_init_with_data_that_needs_preprocessing_says_so(invoke: Invoke, tmp_path: Path, samples: Path) -> None:
    shutil.copy(samples / "digits_train.npz", tmp_path)
    result = invoke("init", samples / "digits_cnn.onnx", "--data", "digits_train.npz")
    assert result.exit_code == 0, result.stderr
    text = (tmp_path / "digits_cnn.yaml").read_text()
    assert "NOT READY" in text
    assert "resize: [32, 32]" in text
    load_recipe(tmp_path / "digits_cnn.yaml")


def test_words_that_an_option_takes_are_named(invoke: Invoke) -> None:
    """A number or `auto` is no number or any text."""
    shown = invoke("steps", "distill").stdout
    assert re.search(r"learning_rate +number \| auto +auto", shown)
    assert re.search(r"least_gain +60 % \| false", invoke("steps", "quantize.static").stdout)


def test_steps(invoke: Invoke) -> None:
    listed = invoke("steps").stdout
    for name in STEPS:
        assert name in listed
        assert invoke("steps", name).exit_code == 0
    result = invoke("steps", "prune.channel")
    assert result.exit_code == 2
    assert "did you mean `prune.channels`?" in result.stderr


@pytest.mark.parametrize("kind", ["recipe", "budget", "report"])
def test_schema(invoke: Invoke, kind: str) -> None:
    assert json.loads(invoke("schema", kind).stdout)["$schema"]


def test_doctor(invoke: Invoke) -> None:
    result = invoke("doctor", "--noise", "0", "--json")
    checks = {check["name"]: check["status"] for check in json.loads(result.stdout)}
    assert checks["provider cpu"] == "ok"
    assert result.exit_code == 0


def test_report_of_something_else(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    result = invoke("report", "report.json")
    assert result.exit_code == 2
    assert "error[report." in result.stderr
