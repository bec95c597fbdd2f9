"""lepton from Python with training data: arrays in memory, files, and both as a recipe's would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import lepton_cli as lepton
from lepton_cli.model import io
from lepton_cli.train.spec import TrainingBudget
from tests.train.test_distill import ROWS, classifier, damaged

QUICK: dict[str, Any] = {"latency": False, "memory": False}


@pytest.fixture(name="step")
def _step(tmp_path: Path) -> lepton.Distill:
    (tmp_path / "teacher.onnx").write_bytes(io.to_bytes(classifier()))
    budget = TrainingBudget(samples=1000)
    return lepton.Distill(teacher=str(tmp_path / "teacher.onnx"), budget=budget, precision="float32")


@pytest.fixture(name="model")
def _model() -> ir.Model:
    return damaged(classifier())


def weights(model: ir.Model) -> dict[str | None, bytes]:
    return {value.name: value.const_value.tobytes() for value in model.graph.initializers.values() if value.const_value}


def test_what_is_in_memory_trains_as_what_is_in_a_file(tmp_path: Path, step: lepton.Distill, model: ir.Model) -> None:
    np.savez(tmp_path / "train.npz", x=ROWS)
    path = str(tmp_path / "train.npz")
    arrays = lepton.Arrays({"x": ROWS})
    plain = {"version": 1, "data": {"training": {"path": path}}, "steps": [step.model_dump()], "evaluate": QUICK}
    expected = weights(lepton.compress(model, plain).model)
    held = {**plain, "data": {}}
    for found in (
        lepton.apply(model, step, training=arrays),
        lepton.apply(model, step, training=lepton.DataSpec(path=path)),
        lepton.apply(model, step, training=lepton.TrainingSpec(path=path)),
        lepton.compress(model, held, training=arrays),
    ):
        assert weights(found.model) == expected != weights(model)
    other = lepton.apply(model, step, training=lepton.TrainingSpec(path=path, holdout="40 %"))
    assert weights(other.model) != expected, "fewer are trained with"


def test_labels_in_memory(model: ir.Model) -> None:
    labels = np.arange(len(ROWS)) % 5
    found = lepton.apply(model, lepton.Finetune(), training=lepton.Arrays({"x": ROWS}, labels))
    details = found.steps[0].details.model_dump()
    assert details["losses"]
    assert details["samples"] + details["kept_apart"] == len(ROWS)


@pytest.mark.parametrize(
    ("training", "code"),
    [
        (None, "data.training-missing"),
        (lepton.Arrays({"y": ROWS, "z": ROWS}), "data.unknown-array"),
        (lepton.Arrays({"x": ROWS[:, :3]}), "data.shape"),
        ({"x": ROWS}, "usage.data"),
        (lepton.TrainingSpec(path="nowhere.npz"), "data.not-found"),
    ],
)
def test_what_is_wrong_with_it(training: Any, code: str, step: lepton.Distill, model: ir.Model) -> None:
    with pytest.raises(lepton.LeptonError) as caught:
        lepton.apply(model, step, training=training)
    assert caught.value.code == code
