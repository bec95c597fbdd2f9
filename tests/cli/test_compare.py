"""`lepton compare`: what it finds, what it refuses, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.small import QUICK, data, model, recipe
from tests.conftest import Invoke


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model and a slightly different one with other input names; data and recipe beside them."""
    data(tmp_path / "data.npz")
    recipe(tmp_path / "recipe.yaml")
    return model(tmp_path / "a.onnx"), model(tmp_path / "b.onnx", noise=0.3, hidden=2, name="input")


def test_everything_side_by_side(invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path) -> None:
    found = invoke("compare", *pair, "-r", "recipe.yaml", "-o", "out")
    assert found.exit_code == 0, found.output
    for said in ("accuracy, top-1 (n = 60)", "agreement with original", "latency, cpu batch 1", "size, file"):
        assert said in found.stdout
    assert "MatMul 2 → 3" in found.stdout
    assert "x float32 [N, 8] → input float32 [N, 8]" in found.stdout
    assert "layers added   1 MatMul" in found.stdout
    assert max(map(len, found.stdout.splitlines())) <= 100
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.md", "report.html"}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["diff"]["operators"] == {"MatMul": [2, 3]}
    assert [variant["name"] for variant in report["variants"]] == ["original", "compressed"]


def test_json_is_the_whole_output(invoke: Invoke, pair: tuple[Path, Path]) -> None:
    found = invoke("compare", *pair, "--data", "data.npz", *QUICK, "--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["accuracy"]["values"]["original"][0]["value"] == 1.0
    assert report["accuracy"]["changes"][0]["difference"] < 0
    assert report["recipe"] is None


def test_without_data_agreement_on_random_inputs_is_said_to_be_that(invoke: Invoke, pair: tuple[Path, Path]) -> None:
    found = invoke("compare", *pair, *QUICK)
    assert found.exit_code == 0, found.output
    assert "16 random inputs" in found.stdout


def test_a_failed_gate_of_the_recipe_ends_in_1(invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path) -> None:
    recipe(tmp_path / "strict.yaml", gates="gates:\n  - {metric: agreement, min: 99.9 %}\n")
    found = invoke("compare", *pair, "-r", "strict.yaml")
    assert found.exit_code == 1, found.output
    assert "FAILED" in found.stdout.splitlines()[0]
    assert "strict.yaml:12" in found.stdout.replace("\n", "")


def test_a_budget_replaces_the_gates(invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "budget.yaml").write_text("version: 1\ngates:\n  - {metric: size.file, max: 1 B}\n")
    found = invoke("compare", *pair, "-r", "recipe.yaml", "--budget", "budget.yaml")
    assert found.exit_code == 1


def test_a_gate_that_cannot_be_judged_ends_in_2_and_keeps_the_report(
    invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe(tmp_path / "gated.yaml", evaluate="accuracy: []", gates="gates:\n  - {metric: accuracy.f1, min: 1 %}\n")
    for command in (("compare", *pair), ("compress", pair[0])):
        found = invoke(*command, "-r", "gated.yaml", "-o", command[0])
        assert found.exit_code == 2, found.output
        assert "error[gate.metric-missing]" in found.stderr
        report = json.loads((tmp_path / str(command[0]) / "report.json").read_text())
        assert (report["status"], report["complete"]) == ("failed", False)
        assert report["accuracy"]["values"]["original"][0]["metric"] == "top1"


def test_nan_outputs_end_in_3_with_what_is_known(invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path) -> None:
    broken = model(tmp_path / "broken.onnx", nan=True)
    found = invoke("compare", pair[0], broken, "-r", "recipe.yaml", "-o", "out")
    assert found.exit_code == 3, found.output
    assert "error[measure.nan]" in found.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["error"]["code"] == "measure.nan"
    assert report["diff"]["layers_same"] == 2
    assert invoke("gate", "out/report.json", "--budget", _budget(tmp_path)).exit_code == 2


def _budget(folder: Path) -> Path:
    path = folder / "size.yaml"
    path.write_text("version: 1\ngates:\n  - {metric: size.file, max: 1 MB}\n")
    return path


def test_a_hook_that_raises_is_an_error(invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text("def score(outputs, labels):\n    raise KeyError('boxes')\n")
    recipe(tmp_path / "hook.yaml", evaluate="accuracy: {metric: python, function: 'metric.py:score'}")
    refused = invoke("compare", *pair, "-r", "hook.yaml")
    assert refused.exit_code == 2
    assert "--allow-code" in refused.stderr
    found = invoke("compare", *pair, "-r", "hook.yaml", "--allow-code")
    assert found.exit_code in (2, 3), found.output
    assert "boxes" in found.stderr


@pytest.mark.parametrize(
    ("labels", "code"), [(np.full(60, 7), "data.labels"), (np.zeros(59, np.int64), "data."), (None, "data.")]
)
def test_labels_that_do_not_match_end_in_2(
    invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path, labels: np.ndarray | None, code: str
) -> None:
    if labels is not None:
        data(tmp_path / "data.npz", labels=labels)
    found = invoke(
        "compare", *pair, "--data", "data.npz", "--labels", "labels" if labels is not None else "truth", *QUICK
    )
    assert found.exit_code == 2, found.output
    assert f"error[{code}" in found.stderr


def test_models_with_other_inputs_are_refused(invoke: Invoke, pair: tuple[Path, Path], samples: Path) -> None:
    found = invoke("compare", pair[0], samples / "digits_cnn.onnx")
    assert found.exit_code == 2
    assert "error[model.other-inputs]" in found.stderr


def test_options_that_contradict_a_recipe_are_refused(invoke: Invoke, pair: tuple[Path, Path]) -> None:
    for wrong in (("--data", "data.npz"), ("--labels", "y"), ("--time", "1 s"), ("--batch", "2")):
        found = invoke("compare", *pair, "-r", "recipe.yaml", *wrong)
        assert found.exit_code == 2, wrong
    assert invoke("compare", *pair, "--set", "seed=1").exit_code == 2
    assert invoke("compare", *pair, "--time", "10").exit_code == 2
    assert invoke("compare", *pair, "--labels", "labels").exit_code == 2


def test_reports_never_replace_another_commands(invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert invoke("compress", pair[0], "-r", "recipe.yaml", "-o", "out").exit_code == 0
    before = (tmp_path / "out" / "report.json").read_bytes()
    assert invoke("compare", pair[0], pair[1], "-r", "recipe.yaml", "-o", "out").exit_code == 2
    assert invoke("compare", pair[0], "out/small.onnx", "-r", "recipe.yaml", "-o", "out").exit_code == 2
    assert (tmp_path / "out" / "report.json").read_bytes() == before


def test_github_actions_get_summary_and_annotations(
    invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe(tmp_path / "strict.yaml", gates="gates:\n  - {metric: size.file, max: 1 B}\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    found = invoke("compare", *pair, "-r", "strict.yaml", "--json")
    assert found.exit_code == 1
    json.loads(found.stdout)
    assert "::error file=strict.yaml,line=12,title=size.file::" in found.stderr
    assert "FAILED" in (tmp_path / "summary.md").read_text()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "such" / "folder"))
    assert invoke("compare", *pair, "-r", "strict.yaml").exit_code == 1
    missing = invoke("compare", pair[0], pair[1], "-r", "none.yaml")
    assert missing.exit_code == 2
    assert "::error title=recipe.not-found::" in missing.stderr
