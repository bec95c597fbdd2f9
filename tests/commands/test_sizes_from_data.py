"""Outputs whose size follows from the data (detections): compared where they can be, and the change is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lepton_cli.commands import runner
from lepton_cli.data.memory import Arrays
from lepton_cli.errors import StepError
from lepton_cli.measure.accuracy import evaluate
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.step import Outcome, Step
from lepton_cli.steps import STEPS
from tests.quantize.builders import context

ROWS = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)


def detector(threshold: float, rows: int | str | None = "found", axis: int | str = "batch") -> ir.Model:
    """`found`: the rows of `x` whose first value is above the threshold; `y`: all rows."""
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["score"], axis=1, name="score"),
        helper.make_node("Greater", ["score", "threshold"], ["above"], name="above"),
        helper.make_node("Compress", ["x", "above"], ["found"], axis=0, name="found"),
        helper.make_node("Identity", ["x"], ["y"], name="all"),
    ]
    held = [
        numpy_helper.from_array(np.array(0), "first"),
        numpy_helper.from_array(np.array(threshold, np.float32), "threshold"),
    ]
    shape = None if rows == "undeclared" else [rows, 16]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [axis, 16])],
        [
            helper.make_tensor_value_info("found", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [axis, 16]),
        ],
        held,
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def stepped(
    before: ir.Model, after: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tolerance: float | None = None
) -> tuple[str, ...]:
    """Warnings of a step that makes `after` of `before`."""
    monkeypatch.setattr(Step, "apply", lambda *_: Outcome(after, 1, tolerance=tolerance))
    here = context(Arrays({"x": ROWS}), tmp_path)
    options = STEPS["quantize.dynamic"].options.model_validate({"step": "quantize.dynamic", "least_gain": False})
    return runner.run_step(runner.reference(before, here), options, 0, here, None)[1].warnings


@pytest.mark.parametrize("rows", ["found", None])
def test_another_number_of_detections_is_said(
    rows: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ROWS[: runner.CHECK_SAMPLES]
    old, new = (int((first[:, 0] > threshold).sum()) for threshold in (0.0, -0.4))
    assert old != new
    (warning,) = stepped(detector(0.0, rows), detector(-0.4, rows), tmp_path, monkeypatch)
    assert warning.startswith("output `found`, whose size depends on the data, has another size in 1 of 1 ")
    assert f"first from [{old}, 16] to [{new}, 16]" in warning


def test_without_a_declared_shape_the_axes_that_vary_count() -> None:
    """The last batch may be smaller than the others, and says nothing."""
    sizes = {"steady": (5, 5, 5, 2), "varying": (5, 4, 5, 5), "flat": (5, 5, 5, 5)}
    outputs = [{"found": np.zeros((size, 16), np.float32)} for size in range(4)]
    for name, found in sizes.items():
        for batch, size in zip(outputs, found, strict=True):
            batch["found"] = np.zeros((size, 16), np.float32)
        free = runner._sized_by_data(runner.Checked(detector(0.0, "undeclared"), outputs))["found"]
        assert free == (frozenset({0}) if name == "varying" else frozenset())


@pytest.mark.parametrize(("rows", "tolerance"), [(20, None), ("batch", None), ("found", 1e-3)])
def test_a_size_that_must_not_change(
    rows: int | str, tolerance: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Declared, named as an axis of an input, or of a step that promises equal outputs."""
    with pytest.raises(StepError, match="output `found` changed from"):
        stepped(detector(0.0, rows), detector(-0.4, rows), tmp_path, monkeypatch, tolerance)


def test_accuracy_compares_the_batches_that_can_be(tmp_path: Path) -> None:
    """One sample a batch: it is found by both, by none, or by the second model only."""
    models = {"original": io.to_bytes(detector(0.0, axis=1)), "other": io.to_bytes(detector(-0.4, axis=1))}
    found = evaluate({name: Session(model, threads=1) for name, model in models.items()}, Arrays({"x": ROWS}), ())
    only = int(((ROWS[:, 0] > -0.4) & (ROWS[:, 0] <= 0)).sum())
    told = {one.output: one for one in found.fidelity}
    assert told["y"].agreement == 1
    assert told["found"].agreement == pytest.approx(1 - only / len(ROWS))
    (warning,) = [text for text in found.warnings if "another shape" in text]
    assert f"`found` of `other` has another shape than before in {only} batches" in warning
