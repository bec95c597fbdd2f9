"""The statistics of timing and what is fed; no test looks at a clock's result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.prune import timing
from tests.prune.context import images, redundant


def test_outliers_move_neither_the_median_nor_its_error() -> None:
    rows = np.random.default_rng(0).normal(0.1, 0.02, (200, 2))
    rows[::10] += 3.0
    middle, error = timing._median(rows)
    assert middle == pytest.approx([0.1, 0.1], abs=0.01)
    assert error == pytest.approx([0.0018, 0.0018], rel=0.5)


def test_batches_are_cut_or_repeated_unless_the_model_fixes_them() -> None:
    feeds = images(3).feeds
    assert timing.feeds_of(redundant(), feeds, 2)["x"].shape == (2, 3, 8, 8)
    assert timing.feeds_of(redundant(), feeds, 7)["x"].shape == (7, 3, 8, 8)


def test_inputs_without_axes_are_fed_as_they_are() -> None:
    model = redundant()
    model.graph.inputs.append(ir.Value(name="scale", shape=ir.Shape(()), type=ir.TensorType(ir.DataType.FLOAT)))
    feeds = {**images(3).feeds, "scale": np.array(2.0, np.float32)}
    assert timing.feeds_of(model, feeds, 7)["scale"].shape == ()


def test_slow_models_end_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LIMIT", 0.0)
    watch = timing.Stopwatch(redundant(), timing.feeds_of(redundant(), images(2).feeds, 1), "cpu", 1, tmp_path)
    run, runs = watch._reference, []
    watch._reference = lambda: (runs.append(1), run())
    assert watch.ratio(redundant()) > 0
    assert len(runs) == 3 + timing.LEAST


def test_every_candidate_gets_a_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "OPEN", 1)
    model, done = redundant(), []
    watch = timing.Stopwatch(model, timing.feeds_of(model, images(2).feeds, 1), "cpu", 1, tmp_path)
    ratios, errors = watch.ratios([lambda: model] * 3, 0.05, lambda: done.append(1))
    assert ratios.shape == errors.shape == (3,)
    assert len(done) == 3
    assert (ratios > 0).all()
    assert watch.ratio(model) > 0
