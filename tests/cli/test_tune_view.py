"""The lines of a search: what was found beside what was expected, the distances to the limits, the time left."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lepton_cli.cli.tune_view import LiveView, View, show_search
from lepton_cli.commands.tune_report import About, Publisher
from lepton_cli.measure.spec import EvaluateSpec
from lepton_cli.recipe.tuning import Objective
from lepton_cli.report.model import Nearest, Tune
from lepton_cli.report.trial import Band, Forecast, Trial
from lepton_cli.tune.limits import Judge
from tests.report.builders import report
from tests.tune import builders

FASTEST, TOP1 = Objective(metric="latency.median"), Objective(metric="accuracy.top1")
LIMITS = (builders.gate("accuracy.top1", max_drop="1 pp"), builders.gate("size.file", max_ratio="25 %"))
WIDTH = 120


def band(value: float) -> Band:
    return Band(value=value, low=value, high=value)


def candidate(name: str = "small", drop: float = 0.0083, file: int = 247, **fields: Any) -> Trial:
    return builders.trial(name, accuracy=builders.accuracy(drop), size=builders.size(file), **fields)


def lines(*trials: Trial, judge: Judge | None = None, axes: tuple[Objective, Objective] = (FASTEST, TOP1)) -> list[str]:
    """What is printed once the search has begun."""
    judge = judge or builders.judge(*LIMITS)
    stream = io.StringIO()
    view = View(Console(file=stream, width=WIDTH))
    view.start(judge, axes, 900.0, None)
    for count, trial in enumerate(trials, 1):
        view.end(trial, trials[:count], judge.best(trials[:count]))
    return stream.getvalue().splitlines()[1:]


def test_a_line_without_forecast_is_one_line() -> None:
    heading, line = lines(candidate(elapsed=30.0))
    assert heading.split() == ["left", "candidate"]
    assert heading.index("candidate") == line.index("small")
    assert line.endswith("small   2.00x as fast   accuracy.top1 -0.83 pp of 1   size.file 24.7 % of 25 %")
    assert line.split()[:5] == ["1", "14.5", "min", "best", "small"]


def test_found_stands_beside_expected_and_why_behind_it() -> None:
    forecast = Forecast(chance=0.62, goal=band(0.4), limits=(band(0.009), band(0.249)))
    one = candidate("keep 86 % params (hessian, x8), int8", why="the best chance", forecast=forecast, elapsed=1.0)
    printed = lines(one)[1:]
    told = "   ".join(line.strip() for line in printed)
    for said in (
        "2.00x as fast (expected 2.50x)",
        "accuracy.top1 -0.83 pp of 1 (expected -0.9)",
        "size.file 24.7 % of 25 % (expected 24.9)",
        "the best chance (chance 62 %)",
    ):
        assert said in told
    assert len(printed) > 1
    assert max(map(len, printed)) <= WIDTH
    assert {line[: printed[0].index("keep")].strip() for line in printed[1:]} == {""}, "below the name"


def test_a_long_reason_goes_on_below_the_name() -> None:
    heading, *printed = lines(candidate("small", reached="failed", reason="word " * 60))
    assert len(printed) > 2
    assert {line[: heading.index("candidate")].strip() for line in printed[1:]} == {""}
    assert " ".join(printed).split().count("word") == 60


def test_a_limit_that_is_broken_is_said_once() -> None:
    judge = builders.judge(*LIMITS)
    bare = candidate(drop=0.02, reached="accuracy", latency=None)
    one = bare.model_copy(update={"reason": judge.breaches(bare)[0].text})
    (line,) = lines(one, judge=judge)[1:]
    assert "accuracy  small   accuracy.top1 -2.00 pp beyond 1   size.file 24.7 % of 25 %" in line
    assert "found" not in line


@pytest.mark.parametrize("reached", ["failed", "accuracy"])
def test_what_no_limit_tells_is_told(reached: str) -> None:
    one = candidate(reached=reached, reason="another 2 h of training than is left", latency=None)
    (line,) = lines(one)[1:]
    assert line.endswith("small   another 2 h of training than is left")


def test_without_limits_both_sides_and_the_size_are_told() -> None:
    (line,) = lines(candidate(), judge=builders.judge())[1:]
    assert line.endswith("small   2.00x as fast   89.17 % (-0.83 pp)   247 B")


@pytest.mark.parametrize(
    ("goal", "axes", "expected", "said"),
    [
        ("size.file", (Objective(metric="size.file"), TOP1), 240.0, "247 B (expected 240 B)"),
        ("accuracy.top1", (FASTEST, TOP1), -0.9, "89.17 % (-0.83 pp) (expected 90.00 %)"),
        ("throughput", (Objective(metric="throughput"), TOP1), -2.5, "2,000/s (expected 2,500/s)"),
    ],
)
def test_a_forecast_counts_as_the_judge_does(
    goal: str, axes: tuple[Objective, Objective], expected: float, said: str
) -> None:
    forecast = Forecast(chance=0.5, goal=band(expected))
    told = "\n".join(lines(candidate(forecast=forecast), judge=builders.judge(goal=goal), axes=axes))
    assert said in told


def test_the_time_left_counts_earlier_runs() -> None:
    first, second = lines(candidate("a", elapsed=300.0), candidate("b", elapsed=1000.0))[1:]
    assert first.split()[1:3] == ["10.0", "min"]
    assert second.split()[1:3] == ["0", "s"]


def test_the_live_view_tells_why() -> None:
    console = Console(width=WIDTH, record=True, force_terminal=True, file=io.StringIO())
    view = LiveView(console)
    view.start(builders.judge(*LIMITS), (FASTEST, TOP1), 900.0, None)
    forecast = Forecast(chance=0.3, goal=band(0.4), limits=(band(0.009), None))
    one = candidate(why="a near miss", forecast=forecast, elapsed=300.0)
    view.end(one, [one], one)
    console.print(view._picture())
    text = console.export_text()
    for said in (
        "10.0 min left",
        "best: small   2.00x as fast (expected 2.50x)",
        "a near miss (chance 30 %)",
    ):
        assert said in text
    (front,) = [line for line in text.splitlines() if line.startswith("small")]
    assert front.split("   ")[:2] == ["small", "2.00x as fast"], "the table of the front is short"


def summary(judge: Judge, *trials: Trial, axes: tuple[Objective, Objective] = (FASTEST, TOP1)) -> Tune:
    about = About(search="s", seed=0, space={}, dropped=())
    nothing: Any = None
    job: Any = SimpleNamespace(spec=SimpleNamespace(evaluate=EvaluateSpec()))
    return Publisher(job, judge, nothing, nothing, "tune.limits", about, axes).summary(trials[0], trials, "")


def ending(tuned: Tune) -> list[str]:
    """What is printed once the search is over."""
    stream = io.StringIO()
    show_search(report(tune=tuned), Console(file=stream, width=WIDTH))
    return stream.getvalue().splitlines()


def test_the_end_tells_the_nearest() -> None:
    tuned = summary(builders.judge(*LIMITS), candidate(drop=0.02), candidate("big", file=300))
    near = (Nearest(limit=0, key="small", text="word " * 40), Nearest(limit=1, key="big", text="30 % is the best"))
    printed = ending(tuned.model_copy(update={"nearest": near}))
    at = printed.index("nothing holds all limits:")
    assert " ".join(printed[at + 1 : -1]).split() == ["word"] * 40
    assert printed[-1] == "  30 % is the best"
    assert "nothing holds all limits:" not in ending(tuned.model_copy(update={"nearest": ()}))


def test_what_only_warns_does_not_hide_a_number() -> None:
    judge = builders.judge(builders.gate("accuracy.top1", max_drop="1 pp", level="warn"))
    (line,) = lines(candidate(), judge=judge)[1:]
    assert line.endswith("small   2.00x as fast   89.17 % (-0.83 pp)   247 B")


@pytest.mark.parametrize(
    ("limit", "axes", "axis", "at"),
    [
        ({"metric": "accuracy.top1", "max_drop": "1 pp"}, (FASTEST, TOP1), "quality", -0.89),
        ({"metric": "accuracy.top1", "min": "85 %"}, (FASTEST, TOP1), "quality", -0.85),
        ({"metric": "accuracy.top1", "min_ratio": 0.5}, (FASTEST, TOP1), "quality", -0.45),
        ({"metric": "latency.median", "max_ratio": 0.6}, (FASTEST, TOP1), "cost", 0.6),
        ({"metric": "latency.median", "max": "0.3 ms"}, (FASTEST, TOP1), "cost", 0.3),
        ({"metric": "latency.median", "max_increase": "0.2 ms"}, (FASTEST, TOP1), "cost", 1.2),
        ({"metric": "latency.median", "max_ratio": 0.6, "batch": 1}, (FASTEST, TOP1), "cost", 0.6),
        ({"metric": "latency.median", "max_ratio": 0.6, "batch": 64}, (FASTEST, TOP1), "", None),
        ({"metric": "latency.median", "max_ratio": 0.6, "level": "warn"}, (FASTEST, TOP1), "", None),
        ({"metric": "size.file", "max_ratio": 0.25}, (Objective(metric="size.file"), TOP1), "cost", 250),
        ({"metric": "size.file", "max": "300 B"}, (Objective(metric="size.file"), TOP1), "cost", 300),
        ({"metric": "size.file", "max_increase": "20 B"}, (Objective(metric="size.file"), TOP1), "cost", 1020),
        ({"metric": "size.file", "max": "300 B"}, (FASTEST, TOP1), "", None),
        ({"metric": "throughput", "min_ratio": 1.5}, (Objective(metric="throughput"), TOP1), "cost", -1.5),
        ({"metric": "throughput", "min": 3000}, (Objective(metric="throughput"), TOP1), "cost", -3.0),
    ],
)
def test_a_limit_is_placed_as_its_axis_counts(
    limit: dict[str, Any], axes: tuple[Objective, Objective], axis: str, at: float | None
) -> None:
    """The original: 90 %, 1 ms, 1000 B."""
    judge = builders.judge(builders.gate(**limit))
    (bound,) = summary(judge, candidate(), axes=axes).bounds
    assert (bound.metric, bound.axis) == (limit["metric"], axis)
    assert bound.at == (None if at is None else pytest.approx(at))


def test_a_limit_is_placed_by_a_trial_on_all_samples() -> None:
    """On a part of them the original is another."""
    judge = builders.judge(LIMITS[0])
    part = candidate("part", reached="proxy", reason="beyond", latency=None)
    assert part.accuracy is not None
    change = part.accuracy.changes[0].model_copy(update={"original": 0.95, "compressed": 0.9, "difference": -0.05})
    accuracy = part.accuracy.model_copy(update={"changes": (change,)})
    part = part.model_copy(update={"accuracy": accuracy})
    assert summary(judge, part, candidate()).bounds[0].at == pytest.approx(-0.89)
    assert summary(judge, part).bounds[0].at is None


def test_a_row_keeps_why_forecast_and_margins() -> None:
    forecast = Forecast(chance=0.62, goal=band(0.4), limits=(band(0.009), None))
    (row,) = summary(builders.judge(*LIMITS), candidate(why="because", forecast=forecast)).trials
    assert (row.why, row.forecast) == ("because", forecast)
    assert [(one.limit, one.found.value) for one in row.margins] == [(0, pytest.approx(0.0083)), (1, 0.247)]
    assert [one.room for one in row.margins] == pytest.approx([0.17, 0.012])
