"""Every metric from the samples to a verdict: a model made worse is worse for tables, gates and a search."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from lepton_cli import gates
from lepton_cli.data.memory import Arrays
from lepton_cli.measure import accuracy
from lepton_cli.measure.metrics import formula
from lepton_cli.measure.results import Accuracy
from lepton_cli.measure.spec import AccuracySpec
from lepton_cli.metrics import MEASURABLE
from lepton_cli.recipe.schema import Gate
from lepton_cli.report import table
from lepton_cli.tune.yardsticks import yardsticks
from tests.measure import builders
from tests.report import builders as reports
from tests.tune import builders as tuning

SAMPLES = 40


@dataclasses.dataclass(frozen=True)
class Task:
    """Labels, and answers of which the second are worse."""

    labels: Any
    good: Any
    bad: Any


def _noisy(clean: Any, much: float) -> Any:
    return (clean + np.random.default_rng(1).normal(0, much, np.shape(clean))).astype(np.float32)


CLASSES = np.arange(SAMPLES) % 2
PIXELS = np.random.default_rng(0).integers(0, 3, (SAMPLES, 4, 5))
TOKENS = np.random.default_rng(0).integers(0, 7, (SAMPLES, 4))
PICTURES = np.random.default_rng(0).random((SAMPLES, 12, 13)).astype(np.float32)
SOUND = np.sin(np.arange(SAMPLES * 50)).reshape(SAMPLES, 50)
WORDS = [f"line {number} of {SAMPLES}" for number in range(SAMPLES)]


def _scores(classes: Any, count: int, much: float) -> Any:
    return _noisy(3 * np.eye(count)[classes], much)


def _misread(every: int) -> Any:
    return np.array([word.replace("line", "lime") if n % every == 0 else word for n, word in enumerate(WORDS)], object)


REGIONS = Task(PIXELS, np.moveaxis(_scores(PIXELS, 3, 1.0), -1, 1), np.moveaxis(_scores(PIXELS, 3, 3.0), -1, 1))
PAIRS = Task(CLASSES, _noisy(CLASSES, 0.3), _noisy(CLASSES, 1.0))
SHARP = Task(PICTURES, _noisy(PICTURES, 0.05), _noisy(PICTURES, 0.2))
READ = Task(WORDS, _misread(10), _misread(3))
TASKS = {
    "miou": REGIONS,
    "dice": REGIONS,
    "perplexity": Task(TOKENS, _scores(TOKENS, 7, 0.5), _scores(TOKENS, 7, 2.0)),
    "auc": PAIRS,
    "average_precision": PAIRS,
    "eer": PAIRS,
    "psnr": SHARP,
    "ssim": SHARP,
    "si_sdr": Task(SOUND, _noisy(SOUND, 0.1), _noisy(SOUND, 0.5)),
    "cer": READ,
    "wer": READ,
    "exact": READ,
}


@pytest.fixture(scope="module", params=TASKS)
def measured(request: pytest.FixtureRequest) -> tuple[str, Accuracy, Accuracy]:
    """The name of a metric; good against bad answers; good against themselves."""
    if request.param in ("cer", "wer"):
        pytest.importorskip("rapidfuzz", reason="needs the extra `text`")
    task = TASKS[request.param]
    shape = ", ".join(["N", *map(str, np.shape(task.good)[1:])])
    kind = "string" if task.good.dtype == object else "float"
    good, bad = (
        builders.model(
            f"g ({kind}[{shape}] good, {kind}[{shape}] bad) => ({kind}[{shape}] y) {{ y = Identity ({one}) }}"
        )
        for one in ("good", "bad")
    )
    data = Arrays({"good": task.good, "bad": task.bad}, task.labels)
    spec = AccuracySpec(metric=request.param)
    worse, same = (
        accuracy.evaluate({"original": good, "compressed": other}, data, [spec], seed=1) for other in (bad, good)
    )
    return request.param, worse, same


def test_every_metric_of_a_field_is_tried() -> None:
    classes_and_numbers = {"top1", "topk", "f1", "mae", "rmse", "r2", "cosine", "spearman", "python"}
    assert {word for word in MEASURABLE if word not in classes_and_numbers} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_resamples_at_once_are_those_one_by_one(name: str) -> None:
    if name in ("cer", "wer"):
        pytest.importorskip("rapidfuzz", reason="needs the extra `text`")
    one, task = formula(AccuracySpec(metric=name)), TASKS[name]
    columns = one.keep(task.bad, np.asarray(task.labels))
    rows = np.random.default_rng(3).integers(0, SAMPLES, (6, SAMPLES))
    expected = [float(one.value(columns[row])) for row in rows]
    assert one.value(columns[rows]) == pytest.approx(expected)
    if one.resampled is not None:
        counts = np.array([np.bincount(row, minlength=SAMPLES) for row in rows], float)
        assert one.resampled(columns, counts) == pytest.approx(expected)


def test_worse_is_worse_with_a_paired_interval(measured: tuple[str, Accuracy, Accuracy]) -> None:
    name, worse, same = measured
    (change,) = worse.changes
    assert change.low is not None
    assert change.high is not None
    assert change.low <= change.difference <= change.high
    assert change.high < 0 if change.higher_is_better else change.low > 0
    assert (same.changes[0].low, same.changes[0].high) == pytest.approx((0, 0), abs=0.12)  # Newcombe's has a width
    row = next(row for row in table.rows(reports.report(accuracy=worse)) if row.label.startswith("accuracy, "))
    assert row.tone == "worse"
    assert MEASURABLE[name].label in row.label


def test_gates_fail_on_what_is_worse(measured: tuple[str, Accuracy, Accuracy]) -> None:
    name, worse, same = measured
    about = MEASURABLE[name]
    comparison = "max_drop" if about.better == "higher" else "max_increase"
    unit = {"share": " pp", "decibel": " dB"}.get(about.kind, "")
    lost = abs(worse.changes[0].difference) * (100 if about.kind == "share" else 1)
    for limit, found, outcome in ((0.9 * lost, worse, "fail"), (1.1 * lost, worse, "pass"), (0, same, "pass")):
        one = Gate.model_validate({"metric": about.name, comparison: f"{limit:.6f}{unit}"})
        assert gates.judge([one], reports.report(accuracy=found))[0].verdict == outcome


def test_a_search_sees_what_is_lost(measured: tuple[str, Accuracy, Accuracy]) -> None:
    name, worse, same = measured
    about = MEASURABLE[name]
    comparison = "max_drop" if about.better == "higher" else "max_increase"
    unit = {"share": " pp", "decibel": " dB"}.get(about.kind, "")
    judge = tuning.judge(tuning.gate(about.name, **{comparison: f"0.1{unit}"}), goal=about.name)
    original, trial = tuning.trial("original", accuracy=same), tuning.trial(accuracy=worse)
    (bound,), goal = yardsticks(judge, original)
    assert bound.bound == pytest.approx(0.001 if about.kind == "share" else 0.1)
    for one in (bound, goal):
        read = one.read(judge.report(trial))
        assert read is not None
        assert read[0] == pytest.approx(abs(worse.changes[0].difference))
        assert read[1] > 0
    assert [breach.metric for breach in judge.breaches(trial)] == [about.name]
    assert judge.value(trial) > judge.value(original)  # type: ignore[operator]
