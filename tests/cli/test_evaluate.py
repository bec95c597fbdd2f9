"""`lepton evaluate`: accuracy of one model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.small import data, model, recipe
from tests.conftest import Invoke


@pytest.fixture
def float_model(tmp_path: Path) -> Path:
    data(tmp_path / "data.npz")
    recipe(tmp_path / "recipe.yaml", evaluate="accuracy: [{metric: top1}, {metric: topk, k: 2}]")
    return model(tmp_path / "a.onnx")


def test_value_interval_and_count(invoke: Invoke, float_model: Path) -> None:
    found = invoke("evaluate", float_model, "-r", "recipe.yaml")
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines()[0] == "100.00 % top-1 (n = 60), 100.00 % top-2 (n = 60)"
    assert "[93.98, 100.00]" in found.stdout
    assert "latency" not in found.stdout


def test_without_a_recipe_on_labelled_data(invoke: Invoke, float_model: Path) -> None:
    found = invoke("evaluate", float_model, "--data", "data.npz")
    assert found.stdout.splitlines()[0] == "100.00 % top-1 (n = 60)", found.output
    assert "give -r RECIPE or --data PATH" in invoke("evaluate", float_model).output


def test_json_is_a_report_that_gate_takes(invoke: Invoke, float_model: Path, tmp_path: Path) -> None:
    found = invoke("evaluate", float_model, "-r", "recipe.yaml", "--json")
    (tmp_path / "report.json").write_text(found.stdout)
    assert json.loads(found.stdout)["accuracy"]["values"]["original"][1]["metric"] == "top2"
    (tmp_path / "budget.yaml").write_text("version: 1\ngates:\n  - {metric: accuracy.top1, min: 99 %}\n")
    assert invoke("gate", "report.json", "-b", "budget.yaml").exit_code == 0


def test_an_implausible_accuracy_is_said_first(invoke: Invoke, tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((300, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=np.arange(300) % 3)
    recipe(tmp_path / "recipe.yaml")
    found = invoke("evaluate", model(tmp_path / "a.onnx"), "-r", "recipe.yaml")
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("warning: ")
    assert "preprocess" in found.stdout


def test_without_data_or_labels_there_is_nothing_to_measure(invoke: Invoke, float_model: Path, tmp_path: Path) -> None:
    text = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "none.yaml").write_text("version: 1\nsteps:\n  - step: simplify\n")
    (tmp_path / "unlabelled.yaml").write_text(text.replace(", labels: labels", ""))
    for name, code in (("none.yaml", "data.no-evaluation"), ("unlabelled.yaml", "data.no-labels")):
        found = invoke("evaluate", float_model, "-r", name)
        assert found.exit_code == 2, found.output
        assert f"error[{code}]" in found.stderr


def test_nan_outputs_end_in_3(invoke: Invoke, float_model: Path, tmp_path: Path) -> None:
    found = invoke("evaluate", model(tmp_path / "b.onnx", nan=True), "-r", "recipe.yaml")
    assert found.exit_code == 3, found.output
    assert "error[measure.nan]" in found.stderr


def test_a_missing_recipe_ends_in_2(invoke: Invoke, float_model: Path) -> None:
    assert invoke("evaluate", float_model, "-r", "other.yaml").exit_code == 2
