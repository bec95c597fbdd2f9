"""`lepton compress` as a user meets it: the main job, and one clear message for everything that is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.conftest import Invoke, Lepton

RECIPE = """\
version: 1
name: small
data:
  calibration: &data
    path: {samples}/digits_train.npz
    inputs: {{pixels: images}}
    samples: 64
    preprocess: {{scale: 1/16, shape: [64]}}
  evaluation: {{<<: *data, path: {samples}/digits_test.npz, labels: labels, samples: 200}}
steps:
  - step: simplify
  - step: quantize.dynamic
evaluate:
  latency: {{batch: [1], time: 300 ms}}
  memory: false
gates:
  - {{metric: size.file, max_ratio: 0.5}}
"""


@pytest.fixture
def recipe(tmp_path: Path, samples: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(samples=samples))
    return path


@pytest.fixture
def model(samples: Path) -> Path:
    return samples / "digits_mlp.onnx"


def test_the_main_job(invoke: Invoke, recipe: Path, model: Path, tmp_path: Path, samples: Path) -> None:
    before = hashlib.sha256(model.read_bytes()).digest()
    result = invoke("compress", model, "-r", recipe, "-o", "out")
    assert result.exit_code == 0, result.stderr
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "small.onnx", "report.json", "report.md", "report.html", "recipe.resolved.yaml",
    }  # fmt: skip
    assert hashlib.sha256(model.read_bytes()).digest() == before
    assert "accuracy, top-1" in result.stdout
    assert "size, file" in result.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["complete"]
    original, compressed = report["variants"]
    assert compressed["size"]["file"] == (out / "small.onnx").stat().st_size < original["size"]["file"] / 3
    # The number in the report is the number one gets by hand.
    with np.load(samples / "digits_test.npz") as data:
        chosen = [index * len(data["images"]) // 200 for index in range(200)]
        images, labels = data["images"][chosen], data["labels"][chosen]
    session = onnxruntime.InferenceSession(out / "small.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixels": images.reshape(-1, 64).astype(np.float32) / 16})
    (change,) = report["accuracy"]["changes"]
    assert change["n"] == 200
    assert change["compressed"] == pytest.approx(float((logits.argmax(1) == labels).mean()))


def test_provenance_is_in_the_model(invoke: Invoke, recipe: Path, model: Path, tmp_path: Path) -> None:
    assert invoke("compress", model, "-r", recipe, "-o", "out").exit_code == 0
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "out/small.onnx").metadata_props}
    assert properties["lepton.source_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert len(properties["lepton.recipe_sha256"]) == 64


def test_two_runs_give_the_same_bytes(invoke: Invoke, recipe: Path, model: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert invoke("compress", model, "-r", recipe, "-o", folder).exit_code == 0
    assert (tmp_path / "a/small.onnx").read_bytes() == (tmp_path / "b/small.onnx").read_bytes()


def test_the_resolved_recipe_runs_again(invoke: Invoke, recipe: Path, model: Path, tmp_path: Path) -> None:
    assert invoke("compress", model, "-r", recipe, "-o", "a").exit_code == 0
    again = invoke("compress", model, "-r", "a/recipe.resolved.yaml", "-o", "b")
    assert again.exit_code == 0, again.stderr
    assert onnx.load(tmp_path / "a/small.onnx").graph == onnx.load(tmp_path / "b/small.onnx").graph


def test_a_run_replaces_an_earlier_result(invoke: Invoke, recipe: Path, model: Path) -> None:
    assert invoke("compress", model, "-r", recipe, "-o", "out").exit_code == 0
    assert invoke("compress", model, "-r", recipe, "-o", "out").exit_code == 0


def test_without_a_recipe_a_safe_one_is_chosen(invoke: Invoke, model: Path, tmp_path: Path, samples: Path) -> None:
    with np.load(samples / "digits_test.npz") as data:
        np.savez("data.npz", pixels=data["images"].reshape(-1, 64).astype(np.float32) / 16, labels=data["labels"])
    result = invoke("compress", model, "--data", "data.npz")
    assert result.exit_code == 0, result.stderr
    assert "chosen: quantize.dynamic" in result.stderr
    assert (tmp_path / "out/digits_mlp-compressed.onnx").exists()
    assert "prune" not in (tmp_path / "out/recipe.resolved.yaml").read_text()


@pytest.mark.parametrize("wrong", [("--data", "data.npz"), ("--labels", "y")], ids=lambda wrong: wrong[0])
def test_data_beside_a_recipe_are_refused(
    invoke: Invoke, recipe: Path, model: Path, tmp_path: Path, wrong: tuple[str, str]
) -> None:
    found = invoke("compress", model, "-r", recipe, *wrong)
    assert (found.exit_code, f"{wrong[0]} goes without a recipe" in found.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_set_changes_the_chosen_recipe_too(invoke: Invoke, model: Path, tmp_path: Path) -> None:
    unmeasured = ("--set", "evaluate.latency=false", "--set", "evaluate.memory=false")
    found = invoke("compress", model, "--set", "name=other", *unmeasured, "-o", "out")
    assert found.exit_code == 0, found.stderr
    assert (tmp_path / "out/other.onnx").exists()
    wrong = invoke("compress", model, "--set", "naem=other", "-o", "wrong")
    assert (wrong.exit_code, "did you mean `name`?" in wrong.stderr) == (2, True)


def test_set_needs_a_recipe_where_none_is_chosen(invoke: Invoke, model: Path) -> None:
    found = invoke("compare", model, model, "--set", "seed=1")
    assert (found.exit_code, "error[usage.set-without-recipe]" in found.stderr) == (2, True)


def test_a_failed_gate_is_exit_code_1_with_its_place(
    invoke: Invoke, recipe: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # long paths are wrapped
    recipe.write_text(recipe.read_text().replace("max_ratio: 0.5", "max: 10 kB"))
    result = invoke("compress", model, "-r", recipe, "-o", "out")
    assert result.exit_code == 1
    assert result.stdout.startswith("1 of 1 gate FAILED")
    assert "recipe.yaml:17" in result.stdout
    assert (tmp_path / "out/small.onnx").exists()


def test_json_is_all_of_stdout(invoke: Invoke, recipe: Path, model: Path) -> None:
    result = invoke("compress", model, "-r", recipe, "-o", "out", "--json")
    assert json.loads(result.stdout)["command"] == "compress"


def test_set_changes_the_recipe(invoke: Invoke, recipe: Path, model: Path, tmp_path: Path) -> None:
    assert invoke("compress", model, "-r", recipe, "-o", "out", "--set", "name=other").exit_code == 0
    assert (tmp_path / "out/other.onnx").exists()


def _swap(old: str, new: str) -> tuple[str, str]:
    return old, new


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (_swap("simplify", "simplfy"), "recipe.unknown-step", "simplify"),
        (_swap("- step: simplify", "- step: simplify\n    fold: true"), "recipe.unknown-key", "fold"),
        (_swap("300 ms", "300"), "recipe.unit-missing", "unit"),
        (_swap("{pixels: images}", "{pixel: images}"), "", "pixel"),
        (_swap("inputs: {pixels: images}", "inputs: {pixels: image}"), "data.unknown-array", "images"),
        (_swap(", shape: [64]", ""), "data.", "pixels"),
        (_swap("digits_train.npz", "digits_tain.npz"), "data.not-found", "digits_train.npz"),
        (_swap("samples: 200", "samples: 200, label_offset: 5"), "data.", "label"),
        (_swap("latency: {batch", "latency: {providers: [cuda], batch"), "provider.unavailable", "cuda"),
        (
            _swap("- step: simplify", '- step: prune.channels\n    target: {macs: 60 %}\n    exclude: ["none*"]'),
            "recipe.glob",
            "none*",
        ),
        (_swap("max_ratio: 0.5", "max: 3"), "recipe.unit-missing", "unit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_recipe_is_one_message_and_nothing_written(
    invoke: Invoke, recipe: Path, model: Path, tmp_path: Path, change: tuple[str, str], code: str, words: str
) -> None:
    old, new = change
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))
    if "cuda" in new and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is there")
    result = invoke("compress", model, "-r", recipe, "-o", "out")
    assert result.exit_code == 2, result.output
    assert result.stderr.count("error[") == 1
    assert f"error[{code}" in result.stderr
    assert words in result.stderr
    assert f"--> {recipe}:" in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "model.missing"),
        (b"", "model.broken"),
        (b"hello\n", "model.not-onnx"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "model.not-onnx"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "model.lfs-pointer"),
        (b"<!DOCTYPE html><html></html>", "model.not-onnx"),
        (b"\x08\x08\x12\x03" + b"\xff" * 64, "model.broken"),
    ],
)
def test_a_file_that_is_no_model(
    invoke: Invoke, recipe: Path, tmp_path: Path, content: bytes | None, code: str
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    result = invoke("compress", path, "-r", recipe, "-o", "out")
    assert result.exit_code == 2
    assert f"error[{code}]" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_folder_with_other_content_is_left_alone(
    invoke: Invoke, recipe: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    result = invoke("compress", model, "-r", recipe, "-o", "out")
    assert result.exit_code == 2
    assert "error[output.not-empty]" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_the_folder_of_the_input_is_refused(invoke: Invoke, recipe: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    copy = shutil.copy(model, tmp_path / "in/model.onnx")
    result = invoke("compress", copy, "-r", recipe, "-o", "in")
    assert result.exit_code == 2
    assert "error[output.is-input-folder]" in result.stderr


def test_a_step_without_effect_is_a_failed_step(invoke: Invoke, recipe: Path, model: Path, tmp_path: Path) -> None:
    recipe.write_text(
        recipe.read_text().replace("step: quantize.dynamic", "step: quantize.dynamic\n    op_types: [LSTM]")
    )
    result = invoke("compress", model, "-r", recipe, "-o", "out")
    assert result.exit_code == 3
    assert "error[step.no-effect]" in result.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert not report["complete"]
    assert report["error"]["code"] == "step.no-effect"
    assert not (tmp_path / "out/small.onnx").exists()
    allowed = recipe.read_text().replace("op_types: [LSTM]", "op_types: [LSTM]\n    if_possible: true")
    recipe.write_text(allowed.replace("max_ratio: 0.5", "max_ratio: 1.5"))
    assert invoke("compress", model, "-r", recipe, "-o", "out").exit_code == 0


def test_empty_data(invoke: Invoke, recipe: Path, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "empty.npz", images=np.zeros((0, 8, 8), np.uint8))
    text = recipe.read_text().split("\n")
    text[4] = "    path: empty.npz"
    recipe.write_text("\n".join(text))
    result = invoke("compress", model, "-r", recipe, "-o", "out")
    assert result.exit_code == 2
    assert "error[data.empty]" in result.stderr


def test_errors_as_json(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("compress", "absent.onnx", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == "model.missing"


def test_debug_shows_the_traceback(lepton: Lepton) -> None:
    assert "Traceback" not in lepton("compress", "absent.onnx").stderr
    done = lepton("compress", "absent.onnx", "--debug")
    assert "Traceback" in done.stderr
