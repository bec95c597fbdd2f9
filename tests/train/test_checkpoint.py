"""Checkpoints: written when it is time, found again by the same training alone, and the same bytes come of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_cli.cache import Cache
from lepton_cli.model import io
from lepton_cli.step import Context, Outcome
from lepton_cli.train import checkpoint
from lepton_cli.train.checkpoint import Checkpoints
from lepton_cli.train.spec import Distill, TrainingBudget
from lepton_cli.train.steps import distill
from tests.train.test_distill import around, classifier, damaged, told

STATE = {"done": 3, "marks": [[0, 1.5]], "now w": np.ones(2, np.float32)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_one_a_minute(tmp_path: Path, clock: Callable[[float], None]) -> None:
    kept = Checkpoints(Cache(tmp_path), "key")
    kept.facts = {"rate": 0.01}
    clock(59)
    kept.keep(lambda: STATE)
    assert kept.found() is None
    clock(1)
    kept.keep(lambda: STATE)
    found = kept.found()
    assert found is not None
    assert (found["done"], found["facts"]) == (3, {"rate": 0.01})
    np.testing.assert_array_equal(found["now w"], STATE["now w"])
    assert Checkpoints(Cache(tmp_path), "other").found() is None


def test_what_takes_long_to_write_is_written_less_often(tmp_path: Path, clock: Callable[[float], None]) -> None:
    kept = Checkpoints(Cache(tmp_path), "key")

    def slow() -> dict[str, Any]:
        clock(10)
        return STATE

    kept.keep(slow, now=True)
    clock(150)
    kept.keep(lambda: {**STATE, "done": 4})
    found = kept.found()
    assert found is not None
    assert found["done"] == 3
    clock(50)
    kept.keep(lambda: {**STATE, "done": 5})
    found = kept.found()
    assert found is not None
    assert found["done"] == 5


def counted(context: Context, stop: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps whose batches are read; Ctrl-C at the third reading of step `stop`, behind the looks at the start."""
    assert context.training is not None
    data, asked = context.training, list[int]()
    right = data.batch

    def batch(step: int, size: int) -> Any:
        asked.append(step)
        if step == stop:
            raise KeyboardInterrupt
        return right(step, size)

    monkeypatch.setattr(data, "batch", batch)
    return asked


def run(
    folder: Path, cache: Path | None, stop: int, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[Outcome, list[int]]:
    original = classifier()
    context = dataclasses.replace(around(original, folder), cache=Cache(cache), **changes)
    asked = counted(context, stop, monkeypatch)
    options = Distill(batch=128, budget=TrainingBudget(samples=3000), precision="float32")
    return distill(damaged(original), options, context), asked


def test_a_training_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    whole, _ = run(tmp_path, None, -1, monkeypatch)
    for stop in (9, 17):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, cache, stop, monkeypatch)
    made, asked = run(tmp_path, cache, -1, monkeypatch)
    assert io.to_bytes(made.model) == io.to_bytes(whole.model)
    assert told(made).marks == told(whole).marks
    assert min(step for step in asked if step > 0) == 17
    again, asked = run(tmp_path, cache, -1, monkeypatch)
    assert io.to_bytes(again.model) == io.to_bytes(whole.model)
    assert set(asked) == {0}, "a training that was finished is not done again"
    assert told(again).samples_per_second == told(made).samples_per_second > 0
    _, asked = run(tmp_path, cache, -1, monkeypatch, seed=7)
    assert max(asked) == 23, "of another seed nothing is known"
