"""What is timed in a trial of `lepton tune`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lepton_cli.commands import trials
from lepton_cli.commands.trials import Laboratory
from lepton_cli.measure.spec import EvaluateSpec, LatencySpec
from lepton_cli.recipe.schema import Gate
from lepton_cli.recipe.tuning import Objective
from lepton_cli.report.trial import Band, Forecast
from tests.tune import builders

LATENCY = {"providers": ["cpu", {"name": "cuda", "optional": True}], "batch": [1, 8], "threads": [2, 1]}


def timed(goal: dict[str, Any], *limits: dict[str, Any], latency: Any = LATENCY, needed: bool = True) -> Any:
    """Providers, batch sizes and numbers of threads; `None` when nothing is timed."""
    job = SimpleNamespace(spec=SimpleNamespace(evaluate=EvaluateSpec.model_validate({"latency": latency})))
    judge = SimpleNamespace(
        needs=lambda source: needed and source == "latency",
        limits=[Gate.model_validate(limit) for limit in limits],
        goal=Objective.model_validate(goal),
    )
    spec = trials._trial_spec(job, judge)  # type: ignore[arg-type]
    return spec and ([provider.name for provider in spec.providers], spec.batch, spec.threads)


MEDIAN = {"metric": "latency.median"}


@pytest.mark.parametrize(
    ("goal", "limits", "expected"),
    [
        (MEDIAN, [], (["cpu"], (1,), (2,))),
        ({**MEDIAN, "provider": "cuda", "batch": 8, "threads": 1}, [], (["cuda"], (8,), (1,))),
        ({"metric": "size.file"}, [{**MEDIAN, "max_ratio": 1}], (["cpu", "cuda"], (1, 8), (2, 1))),
        (MEDIAN, [{**MEDIAN, "max_ratio": 1, "provider": "cpu", "batch": 8, "threads": 1}], (["cpu"], (1, 8), (2, 1))),
        (MEDIAN, [{**MEDIAN, "max_ratio": 1, "provider": "cpu", "batch": 1, "threads": 2}], (["cpu"], (1,), (2,))),
        (MEDIAN, [{"metric": "size.file", "max": "1 MB"}], (["cpu"], (1,), (2,))),
    ],
)
def test_what_goal_and_limits_name_is_timed(goal: dict[str, Any], limits: list[dict[str, Any]], expected: Any) -> None:
    assert timed(goal, *limits) == expected


def test_the_usable_cores_stay_the_default() -> None:
    assert timed(MEDIAN, latency={"batch": [1]}) == (["cpu"], (1,), ())


def test_nothing_is_timed_where_nothing_needs_it() -> None:
    assert timed({"metric": "size.file"}, needed=False) is None
    assert timed(MEDIAN, latency=False) is None


@pytest.mark.parametrize(
    ("ratios", "counts", "asked"),
    [((0.5,), 0.5, 1), ((0.1, 0.5, 0.52), 0.5, 3), ((0.9, 0.1, 0.6), 0.6, 3)],
)
def test_a_time_that_surprises_is_measured_again(ratios: tuple[float, ...], counts: float, asked: int) -> None:
    """Expected were 40 to 60 %; of three measurements the middle one counts."""
    lab = Laboratory.__new__(Laboratory)
    lab.judge, lab.spec = builders.judge(), LatencySpec()
    lab.job = SimpleNamespace(spec=SimpleNamespace(evaluate=SimpleNamespace(cost=None)))  # type: ignore[assignment]
    left = list(ratios)
    lab.race = lambda paths, spec: builders.latency(left.pop(0))  # type: ignore[method-assign]
    foretold = Forecast(chance=1.0, goal=Band(value=0.5, low=0.4, high=0.6))
    found = lab._timed(builders.trial(forecast=foretold, latency=None), Path("made.onnx"))
    assert lab.judge.value(found) == counts
    assert len(ratios) - len(left) == asked
