"""What `finetune` taught stays: the steps behind it learn the answers of the fine-tuned model, not the original's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.commands import trials, workspace
from lepton_cli.commands.compress import Compressed, compress
from lepton_cli.commands.tune import tune
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict, load_recipe
from lepton_cli.runtime import Session
from lepton_cli.step import Options, Step
from tests.commands.test_tune import Lines
from tests.train.test_distill import ROWS, classifier

#: Other classes than the model's own: what it answers, moved by one.
MOVED = 1
DISTILL: dict[str, Any] = {"step": "distill", "budget": {"epochs": 1}, "precision": "float32", "if_possible": True}
STEPS: list[dict[str, Any]] = [
    {"step": "finetune", "budget": {"epochs": 12}, "precision": "float32", "batch": 32},
    {"step": "prune.channels", "target": {"params": "60 %"}, "round_to": 1, "importance": "l2", "recover": []},
    DISTILL,
]


def answers(model: ir.Model) -> np.ndarray:
    return Session(io.to_bytes(model), threads=1).run({"x": ROWS})["y"]


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    model = classifier()
    model.graph.outputs[0].name = "y"
    io.save(model, tmp_path / "net.onnx")
    labels = (answers(model).argmax(1) + MOVED) % 5
    np.savez(tmp_path / "train.npz", x=ROWS, labels=labels)
    return tmp_path


def run(folder: Path, steps: list[dict[str, Any]], name: str = "out", *, resume: bool = False) -> Compressed:
    plain = {
        "version": 1,
        "name": "small",
        "data": {
            "calibration": {"path": str(folder / "train.npz"), "inputs": {"x": "x"}, "samples": 64},
            "training": {"path": str(folder / "train.npz"), "inputs": {"x": "x"}, "labels": "labels"},
        },
        "steps": steps,
        "evaluate": {"latency": False, "memory": False, "accuracy": []},
    }
    return compress(folder / "net.onnx", from_dict(plain), folder / name, Silent(), resume=resume)


def test_the_fine_tuned_model_teaches(folder: Path) -> None:
    original = answers(io.load(folder / "net.onnx").model).argmax(1)
    made = run(folder, STEPS)
    tuned, _, distilled = made.report.steps
    assert tuned.changed
    assert distilled.details.model_dump()["teacher"] == "the model as it was fine-tuned"
    assert made.model is not None
    now = answers(made.model).argmax(1)
    assert np.mean(now == (original + MOVED) % 5) > 0.8
    assert np.mean(now == original) < 0.2


def test_without_it_the_original_teaches(folder: Path) -> None:
    made = run(folder, STEPS[1:])
    assert made.report.steps[-1].details.model_dump()["teacher"] == "the original"
    original = answers(io.load(folder / "net.onnx").model).argmax(1)
    assert made.model is not None
    assert np.mean(answers(made.model).argmax(1) == original) > 0.8


def test_where_it_goes_on_the_same_model_teaches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, STEPS, "whole")
    apply, stop = Step.apply, ["distill"]

    def stopped(step: Step, model: ir.Model, options: Options, context: Any) -> Any:
        if options.step in stop:
            raise KeyboardInterrupt
        return apply(step, model, options, context)

    monkeypatch.setattr(Step, "apply", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(folder, STEPS)
    assert {"step-1.onnx", "step-2.onnx"} <= {file.name for file in (folder / "out" / workspace.RESUME).iterdir()}
    stop.clear()
    monkeypatch.setattr("lepton_cli.train.checkpoint.Checkpoints.found", lambda self: None)
    made = run(folder, STEPS, resume=True)
    assert made.report.steps[-1].details.model_dump()["teacher"] == "the model as it was fine-tuned"
    assert (folder / "out" / "small.onnx").read_bytes() == (folder / "whole" / "small.onnx").read_bytes()


def test_a_lost_teacher_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, apply, stop = list[str](), Step.apply, ["distill"]

    def stopped(step: Step, model: ir.Model, options: Options, context: Any) -> Any:
        if options.step in stop:
            raise KeyboardInterrupt
        ran.append(options.step)
        return apply(step, model, options, context)

    monkeypatch.setattr(Step, "apply", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(folder, STEPS)
    (folder / "out" / workspace.RESUME / "step-1.onnx").unlink()
    ran.clear()
    stop.clear()
    run(folder, STEPS, resume=True)
    assert ran == ["finetune", "prune.channels", "distill"]


def test_candidates_of_a_search_learn_from_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "KEEP_SECONDS", 1e9)
    np.savez(folder / "data.npz", x=ROWS[:300], labels=np.load(folder / "train.npz")["labels"][:300])
    (folder / "tune.yaml").write_text(
        """
version: 1
name: small
data:
  calibration: {path: data.npz, inputs: {x: x}}
  evaluation: {path: data.npz, inputs: {x: x}, labels: labels}
  training: {path: train.npz, inputs: {x: x}, labels: labels}
steps:
  - {step: finetune, budget: {epochs: 12}, precision: float32, batch: 32}
tune:
  minimize: size.file
  budget: {trials: 4}
  space:
    keep: ["50 %"]
    precision: [float, weights8]
    prune_by: [params]
    importance: [l2]
    round_to: [1]
    distill: [1]
evaluate: {accuracy: [{metric: top1}], latency: false, memory: false}
gates: [{metric: accuracy.top1, max_drop: "30 pp"}]
""",
        encoding="utf-8",
    )
    found = tune(folder / "net.onnx", load_recipe(folder / "tune.yaml"), folder / "out", Lines())
    teachers = [one.details.model_dump()["teacher"] for one in found.report.steps if one.step == "distill"]
    assert teachers == ["the model as it was fine-tuned"]
    labels = np.load(folder / "train.npz")["labels"]
    best = io.load(found.files[0]).model
    assert np.mean(answers(best).argmax(1) == labels) > 0.8
