"""What a course measures before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lepton_cli.train import course
from lepton_cli.train.course import Took
from lepton_cli.train.details import TrainingDetails
from lepton_cli.train.spec import TrainingBudget
from tests.train.test_distill import classifier, damaged, trained


@pytest.mark.parametrize(
    ("single", "half", "chosen"),
    [
        (Took(1.0, 1.0), Took(0.5, 0.5), "bfloat16"),
        (Took(0.5, 1.0), Took(3.0, 0.9), "bfloat16"),
        (Took(3.0, 1.0), Took(0.5, 1.0), "float32"),
        (Took(1.0, 1.0), Took(0.95, 0.95), "float32"),
    ],
)
def test_precision_is_chosen_by_the_work_and_not_by_the_clock(
    single: Took, half: Took, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others that hold the processor lengthen what the clock says. The first step of each warms up."""
    count = {True: 0, False: 0}

    def took(work: Any, device: object) -> Took:
        work()
        narrow = work.func.__self__.lesson.narrow
        count[narrow] += 1
        if count[narrow] == 1:
            return Took(0.0, 0.0)
        return half if narrow else single

    monkeypatch.setattr(course, "_took", took)
    outcome = trained(damaged(classifier()), classifier(), tmp_path, budget=TrainingBudget(samples=100))
    assert isinstance(outcome.details, TrainingDetails)
    assert outcome.details.precision == chosen
    assert count == {True: course.TIMED + 1, False: course.TIMED + 1}


def test_a_budget_of_time_is_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def took(work: Any, device: object) -> Took:
        work()
        return Took(0.5, 0.01)

    monkeypatch.setattr(course, "_took", took)
    outcome = trained(damaged(classifier()), classifier(), tmp_path, budget=TrainingBudget(time="6200 ms"))
    assert isinstance(outcome.details, TrainingDetails)
    assert outcome.details.steps == 12
