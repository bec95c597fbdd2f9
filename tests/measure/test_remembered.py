"""Every batch runs once, and the answers are those of a plain session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepton_cli.measure import remembered
from lepton_cli.measure.remembered import Remembered
from lepton_cli.runtime import Session
from tests.tune import builders


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> bytes:
    return builders.network(tmp_path / "net.onnx").read_bytes()


def batch(seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((3, 8)).astype(np.float32)}


def test_answers_are_the_sessions_own(model: bytes) -> None:
    plain, memory = Session(model, threads=1), Remembered(model, threads=1)
    for seed in (0, 1, 0):
        np.testing.assert_array_equal(memory.run(batch(seed))["y"], plain.run(batch(seed))["y"])


def test_a_batch_runs_once(model: bytes) -> None:
    memory = Remembered(model, threads=1)
    first = memory.run(batch(0))["y"]
    assert memory.run(batch(0))["y"] is first
    assert memory.run(batch(1))["y"] is not first


def test_memory_is_bounded(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "KEPT", 0)
    memory = Remembered(model, threads=1)
    assert memory.run(batch(0))["y"] is not memory.run(batch(0))["y"]
