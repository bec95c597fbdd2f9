"""A training for which there is no time is not begun."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from lepton_cli.cache import Cache
from lepton_cli.errors import LeptonError
from lepton_cli.train.course import Course
from lepton_cli.train.loop import Trainer
from lepton_cli.train.spec import Distill, TrainingBudget
from lepton_cli.train.steps import distill
from tests.train.test_distill import around, classifier, damaged

#: Seconds that a step is said to take.
STEP = 100.0


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Course, "_measured", lambda self, task: (False, STEP))


def train(folder: Path, left: float, cache: Path | None = None) -> Any:
    """Three steps of 128 samples, 300 seconds."""
    original = classifier()
    made = dataclasses.replace(around(original, folder), until=time.monotonic() + left, cache=Cache(cache))
    return distill(damaged(original), Distill(budget=TrainingBudget(samples=384), batch=128, precision="float32"), made)


def refused(folder: Path, left: float, cache: Path | None = None) -> LeptonError:
    with pytest.raises(LeptonError) as caught:
        train(folder, left, cache)
    assert caught.value.code == "train.no-time"
    return caught.value


def test_what_takes_longer_than_is_left_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(tmp_path, 3 * STEP + 30).changed
    monkeypatch.setattr(Trainer, "step", None)
    error = refused(tmp_path, 3 * STEP - 10)
    assert error.message.startswith("training takes about 300 s, and 2")
    assert "and 0 s are left" in refused(tmp_path, -1).message.replace("0 ms", "0 s")


def test_only_the_steps_that_are_left_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three steps are done and kept: the third takes 100 seconds."""
    right, cache = Trainer.step, tmp_path / "cache"

    def stopped(self: Trainer, number: int, rate: float) -> float:
        if number == 2:
            raise KeyboardInterrupt
        return right(self, number, rate)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, 1000, cache)
    refused(tmp_path, STEP - 10, cache)
    assert train(tmp_path, STEP + 30, cache).changed
    assert train(tmp_path, STEP - 10, cache).changed, "a training that was finished takes no time"
