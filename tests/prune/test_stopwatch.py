"""The statistics of timing and what is fed; no test looks at a clock's result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.prune import stopwatch
from tests.prune.context import images, redundant


def test_batches_are_cut_or_repeated_unless_the_model_fixes_them() -> None:
    feeds = images(3).feeds
    assert stopwatch.feeds_of(redundant(), feeds, 2)["x"].shape == (2, 3, 8, 8)
    assert stopwatch.feeds_of(redundant(), feeds, 7)["x"].shape == (7, 3, 8, 8)


def test_inputs_without_axes_are_fed_as_they_are() -> None:
    model = redundant()
    model.graph.inputs.append(ir.Value(name="scale", shape=ir.Shape(()), type=ir.TensorType(ir.DataType.FLOAT)))
    feeds = {**images(3).feeds, "scale": np.array(2.0, np.float32)}
    assert stopwatch.feeds_of(model, feeds, 7)["scale"].shape == ()


def test_every_candidate_gets_a_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "OPEN", 1)
    model, done = redundant(), []
    watch = stopwatch.Stopwatch(model, stopwatch.feeds_of(model, images(2).feeds, 1), "cpu", 1, tmp_path)
    ratios, errors = watch.ratios([lambda: model] * 3, 0.05, lambda: done.append(1))
    assert ratios.shape == errors.shape == (3,)
    assert len(done) == 3
    assert (ratios > 0).all()
    assert watch.ratio(model) > 0
