"""Scores of two classes: counted pairs, and thresholds tried one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError, MeasurementError
from lepton_cli.measure import accuracy
from lepton_cli.measure.metrics import formula
from lepton_cli.measure.spec import AccuracySpec
from tests.measure import builders

METRICS = ("auc", "average_precision", "eer")


def value(metric: str, output: Any, labels: Any) -> float:
    one = formula(AccuracySpec(metric=metric))
    return float(one.value(one.keep(np.asarray(output, np.float32), np.asarray(labels))))


def pairs(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of pairs in order, ties half."""
    won = 0.0
    for one in scores[labels == 1]:
        for other in scores[labels == 0]:
            won += 1.0 if one > other else 0.5 if one == other else 0.0
    return won / ((labels == 1).sum() * (labels == 0).sum())


def precisions(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Sum over thresholds of the precision times the recall that they add."""
    total, known = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        recall = labels[taken].sum() / labels.sum()
        total += labels[taken].mean() * (recall - known)
        known = recall
    return total


def equal_errors(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Bisection along the ROC curve, which is a polygon through the points of all thresholds."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        points.append((float(taken[labels == 0].mean()), float(taken[labels == 1].mean())))
    low, high = 0.0, len(points) - 1.0
    for _ in range(80):
        middle = (low + high) / 2
        start = min(int(middle), len(points) - 2)
        part = middle - start
        false, found = (points[start][axis] * (1 - part) + points[start + 1][axis] * part for axis in (0, 1))
        low, high = (middle, high) if 1 - found > false else (low, middle)
    return false


ORACLES = {"auc": pairs, "average_precision": precisions, "eer": equal_errors}


@pytest.mark.parametrize("metric", METRICS)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 1000]))
def test_counted_one_by_one(metric: str, seed: int, different: int) -> None:
    generator = np.random.default_rng(seed)
    scores, labels = generator.integers(0, different, 13).astype(float), generator.integers(0, 2, 13)
    labels[:2] = 0, 1
    assert value(metric, scores, labels) == pytest.approx(ORACLES[metric](scores, labels))


def test_a_small_example() -> None:
    """Of scikit-learn's documentation: labels 0 0 1 1, scores 0.1 0.4 0.35 0.8."""
    labels, scores = [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]
    assert value("auc", scores, labels) == pytest.approx(0.75)
    assert value("average_precision", scores, labels) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert value("eer", scores, labels) == pytest.approx(0.5)


def test_perfect_reversed_and_no_order() -> None:
    labels = np.array([1, 1, 0, 0, 0])
    assert [value(metric, -np.arange(5), labels) for metric in METRICS] == pytest.approx([1, 1, 0])
    assert value("auc", np.arange(5), labels) == pytest.approx(0)
    assert value("eer", np.arange(5), labels) == pytest.approx(1)
    assert [value(metric, np.zeros(5), labels) for metric in METRICS] == pytest.approx([0.5, 0.4, 0.5])


@given(st.integers(0, 2**32 - 1))
def test_only_the_order_counts_and_the_other_class_turns_it_round(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores, labels = generator.normal(0, 1, 20), np.arange(20) % 2
    for metric in METRICS:
        assert value(metric, np.exp(scores), labels) == pytest.approx(value(metric, scores, labels))
    assert value("auc", -scores, labels) == pytest.approx(1 - value("auc", scores, labels))
    assert value("eer", -scores, 1 - labels) == pytest.approx(value("eer", scores, labels))


def test_two_scores_are_as_their_softmax() -> None:
    generator = np.random.default_rng(0)
    both, labels = generator.normal(0, 1, (30, 2)), np.arange(30) % 2
    softmax = np.exp(both[:, 1]) / np.exp(both).sum(axis=1)
    for metric in METRICS:
        assert value(metric, both, labels) == pytest.approx(ORACLES[metric](softmax, labels))


def test_resamples_at_once_are_those_one_by_one() -> None:
    generator = np.random.default_rng(1)
    scores, labels = generator.integers(0, 6, 15).astype(float), np.arange(15) % 2
    rows = generator.integers(0, 15, (20, 15))
    for metric in METRICS:
        one = formula(AccuracySpec(metric=metric))
        columns = one.keep(scores, labels)
        expected = [ORACLES[metric](scores[row], labels[row]) for row in rows]
        assert one.value(columns[rows]) == pytest.approx(expected)
        counts = np.array([[(row == sample).sum() for sample in range(15)] for row in rows], float)
        assert one.resampled is not None
        assert one.resampled(columns, counts) == pytest.approx(expected)


def test_in_a_report_with_interval_and_answers_that_changed() -> None:
    generator = np.random.default_rng(2)
    labels = np.arange(60) % 2
    scores = (labels + generator.normal(0, 0.6, 60)).astype(np.float32)[:, None]
    data = Arrays({"x": scores}, labels, batch=16)
    arms = {"original": builders.identity("N, 1"), "compressed": builders.identity("N, 1", "y = Neg (x)")}
    found = accuracy.evaluate(arms, data, [AccuracySpec(metric=metric) for metric in METRICS])
    for change in found.changes:
        oracle = ORACLES[change.metric]
        first, second = (oracle(sign * scores[:, 0], labels) for sign in (1, -1))
        assert (change.original, change.compressed) == pytest.approx((first, second))
        assert change.low is not None
        assert change.low < second - first < change.high  # type: ignore[operator]
        assert (change.difference < 0) == change.higher_is_better
    assert found.classes


@pytest.mark.parametrize(
    ("output", "labels", "said", "option"),
    [
        (np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1]), "one or two scores", "output"),
        (np.zeros(4, np.int64), np.array([0, 1, 0, 1]), "not whole numbers", "output"),
        (np.zeros((4, 1), np.float32), np.array([0, 1, 2, 1]), "label 2", "labels"),
        (np.zeros((4, 1), np.float32), np.array([-1, 1, 1, 1]), "label -1", "labels"),
    ],
)
def test_what_is_no_score_of_two_classes(output: NDArray[Any], labels: NDArray[Any], said: str, option: str) -> None:
    one = formula(AccuracySpec(metric="auc"))
    with pytest.raises(DataError, match=said) as caught:
        one.keep(output, labels)
    assert tuple(caught.value.option) == (option,)
    assert caught.value.hint


def test_one_class_alone() -> None:
    data = Arrays({"x": np.arange(8, dtype=np.float32)[:, None]}, np.ones(8, np.int64))
    for metric in METRICS:
        with pytest.raises(MeasurementError, match=f"`{metric}` of `original` is not defined") as caught:
            accuracy.evaluate({"original": builders.identity("N, 1")}, data, [AccuracySpec(metric=metric)])
        assert caught.value.cause == "all labels are of one class, and it takes samples of both"
