"""Metrics against hand-computed and scikit-learn values, and their vectorised form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_cli.errors import DataError
from lepton_cli.measure import metrics
from lepton_cli.measure.spec import AccuracySpec

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.2, 0.2, 0.6], [0.3, 0.4, 0.3]], np.float32)
LABELS = np.array([1, 2, 2, 0])


def value(output: NDArray[Any], labels: NDArray[Any], **spec: Any) -> float:
    formula = metrics.formula(AccuracySpec(**spec))
    return float(formula.value(formula.keep(output, labels)))


@pytest.mark.parametrize(("spec", "expected"), [({"metric": "top1"}, 0.5), ({"metric": "topk", "k": 2}, 1.0)])
def test_top_k(spec: dict[str, Any], expected: float) -> None:
    assert value(SCORES, LABELS, **spec) == expected


def test_ties_count_as_argmax_breaks_them() -> None:
    tied = np.array([[1.0, 1.0]], np.float32)
    assert value(tied, np.array([0]), metric="top1") == 1
    assert value(tied, np.array([1]), metric="top1") == 0


@given(st.integers(0, 2**32 - 1))
def test_top1_is_argmax(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4, (9, 5)).astype(np.float32)
    labels = generator.integers(0, 5, 9)
    assert value(scores, labels, metric="top1") == pytest.approx((scores.argmax(axis=1) == labels).mean())


def test_images_and_tokens_count_the_share_of_right_positions() -> None:
    scores = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    labels = scores.argmax(axis=1)
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 3
    assert value(scores, labels, metric="top1") == pytest.approx(1 - 1 / 32)
    assert value(np.moveaxis(scores, 1, -1), labels, metric="top1") == pytest.approx(1 - 1 / 32)


def test_trailing_ones_after_the_classes_do_not_matter() -> None:
    assert value(SCORES[:, :, None, None], LABELS, metric="top1") == 0.5


def test_single_scores_are_probabilities_or_logits() -> None:
    labels = np.array([0, 1, 1, 0])
    assert value(np.array([0.2, 0.8, 0.4, 0.1]), labels, metric="top1") == 0.75
    assert value(np.array([[-2.0], [3.0], [0.4], [-1.0]]), labels, metric="top1") == 1


def test_predicted_classes_as_whole_numbers() -> None:
    assert value(np.array([1, 2, 2, 2]), LABELS, metric="top1") == 0.75
    with pytest.raises(DataError, match="gives no top-5"):
        value(np.array([1, 2, 2, 2]), LABELS, metric="topk")


@pytest.mark.parametrize(
    # sklearn.metrics.f1_score([0,1,1,2,2,2], [0,1,2,2,2,0], average=...); binary on the labels > 0.
    ("average", "expected"),
    [("macro", 2 / 3), ("micro", 2 / 3)],
)
def test_f1(average: str, expected: float) -> None:
    true, predicted = np.array([0, 1, 1, 2, 2, 2]), np.array([0, 1, 2, 2, 2, 0])
    assert value(predicted, true, metric="f1", average=average) == pytest.approx(expected)


def test_f1_binary_is_of_class_one() -> None:
    true, predicted = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0])
    assert value(predicted, true, metric="f1", average="binary") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("mae", 0.5), ("rmse", np.sqrt(0.375)), ("r2", 0.9486081370449679)],
)
def test_regression(metric: str, expected: float) -> None:
    """The example of scikit-learn's documentation of `r2_score`."""
    assert value(np.array([2.5, 0.0, 2, 8]), np.array([3, -0.5, 2, 7]), metric=metric) == pytest.approx(expected)


def test_regression_on_a_column_and_on_several_values() -> None:
    assert value(np.array([[1.0], [3.0]]), np.array([2.0, 3.0]), metric="mae") == 0.5
    assert value(np.array([[1.0, 2.0]]), np.array([[2.0, 2.0]]), metric="mae") == 0.5
    with pytest.raises(DataError, match="do not fit"):
        value(np.array([[1.0, 2.0]]), np.array([2.0]), metric="mae")


def test_cosine() -> None:
    first, second = np.array([[1.0, 0], [1, 1], [0, 0]]), np.array([[0, 1.0], [2, 2], [0, 0]])
    assert metrics.cosine(first, second) == pytest.approx([0, 1, 1])


def test_spearman_with_ties() -> None:
    """scipy.stats.spearmanr([1,2,2,4,5], [5,6,7,8,7]) = 0.7631578947368421."""
    found = value(np.array([1.0, 2, 2, 4, 5]), np.array([5.0, 6, 7, 8, 7]), metric="spearman")
    assert found == pytest.approx(0.7631578947368421)


def _f1(predicted: NDArray[Any], true: NDArray[Any], one: int) -> float:
    """Twice the hits over all that was found and all that there was; 0 without any."""
    hits = sum(p == t == one for p, t in zip(predicted, true, strict=True))
    both = int((predicted == one).sum() + (true == one).sum())
    return 2 * hits / both if both else 0.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_classes_against_counting(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    scores, labels = generator.standard_normal((11, 5)), generator.integers(0, 5, 11)
    predicted = scores.argmax(axis=1)
    seen = [one for one in range(5) if one in predicted or one in labels]
    assert value(scores, labels, metric="f1") == pytest.approx(np.mean([_f1(predicted, labels, one) for one in seen]))
    assert value(scores, labels, metric="f1", average="micro") == pytest.approx(np.mean(predicted == labels))
    assert value(scores, labels, metric="f1", average="binary") == pytest.approx(_f1(predicted, labels, 1))
    best = np.argsort(-scores, axis=1)[:, :k]
    found = np.mean([label in row for label, row in zip(labels, best, strict=True)])
    assert value(scores, labels, metric="topk", k=k) == pytest.approx(found)


@given(st.integers(0, 2**32 - 1))
def test_regression_against_the_formulas_written_out(seed: int) -> None:
    generator = np.random.default_rng(seed)
    y, found = generator.standard_normal((9, 3)), generator.standard_normal((9, 3))
    assert value(found, y, metric="mae") == pytest.approx(np.mean(np.abs(found - y)))
    assert value(found, y, metric="rmse") == pytest.approx(np.sqrt(np.mean((found - y) ** 2)))
    assert value(found, y, metric="r2") == pytest.approx(1 - np.sum((found - y) ** 2) / np.sum((y - y.mean()) ** 2))
    lengths = np.sqrt((found**2).sum(axis=1) * (y**2).sum(axis=1))
    assert value(found, y, metric="cosine") == pytest.approx(np.mean((found * y).sum(axis=1) / lengths))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
def test_spearman_against_counted_ranks(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, float).T
    ranks = [[np.sum(side < one) + np.sum(side == one) / 2 for one in side] for side in (first, second)]
    found = value(first, second, metric="spearman")
    if first.std() and second.std():
        assert found == pytest.approx(np.corrcoef(ranks)[0, 1])
    else:
        assert np.isnan(found)


def test_numbers_by_hand() -> None:
    """Two classes, one hit of class 0 and two of class 1 in five; errors 1, 2 and 3; 3-4-5 triangles."""
    predicted, true = np.array([0, 1, 1, 1, 0]), np.array([0, 1, 1, 0, 1])
    assert value(predicted, true, metric="f1") == pytest.approx((2 / 4 + 4 / 6) / 2)
    y = np.array([0.0, 3.0, 6.0])
    found = np.array([1.0, 1.0, 9.0])
    assert value(found, y, metric="mae") == pytest.approx(2)
    assert value(found, y, metric="rmse") == pytest.approx(np.sqrt(14 / 3))
    assert value(found, y, metric="r2") == pytest.approx(1 - 14 / 18)
    assert value(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]]), metric="cosine") == pytest.approx(24 / 25)
    assert value(np.array([1.0, 2, 3]), np.array([1.0, 3, 2]), metric="spearman") == pytest.approx(0.5)


@pytest.mark.parametrize("metric", ["top1", "topk", "f1", "mae", "rmse", "r2", "cosine", "spearman"])
def test_every_metric_works_on_many_resamples_at_once(metric: str) -> None:
    generator = np.random.default_rng(3)
    built = metrics.formula(AccuracySpec(metric=metric, k=2))
    if built.takes_classes:
        output, labels = generator.standard_normal((20, 4)), generator.integers(0, 4, 20)
    elif metric == "cosine":
        output, labels = generator.standard_normal((20, 4)), generator.standard_normal((20, 4))
    else:
        output, labels = generator.standard_normal((20, 1)), generator.standard_normal((20, 1))
    columns = built.keep(output, labels)
    rows = generator.integers(0, 20, (6, 20))
    assert built.value(columns[rows]) == pytest.approx([float(built.value(columns[row])) for row in rows])


def test_labels_out_of_range() -> None:
    with pytest.raises(DataError, match="label 3 is none of the output's classes 0 to 2") as caught:
        value(SCORES, np.array([1, 2, 3, 0]), metric="top1")
    assert caught.value.code == "data.label-range"


def test_class_labels_are_unwrapped() -> None:
    one_hot = np.eye(3, dtype=np.float32)[LABELS]
    assert metrics.class_labels(one_hot, SCORES).tolist() == LABELS.tolist()
    assert metrics.class_labels(LABELS[:, None].astype(float), SCORES).tolist() == LABELS.tolist()
    with pytest.raises(DataError, match="not whole numbers"):
        metrics.class_labels(np.array([0.5]), SCORES)
    with pytest.raises(DataError, match="not class numbers"):
        metrics.class_labels(np.array(["cat"]), SCORES)


def test_confidence_is_the_softmax_probability() -> None:
    logits = np.array([[0.0, np.log(3.0)]], np.float32)
    chosen, confidence = metrics.predictions(logits)
    assert (chosen[0], confidence[0]) == (1, pytest.approx(0.75))
    chosen, confidence = metrics.predictions(SCORES)
    assert confidence == pytest.approx(SCORES.max(axis=1))


def _rows(*values: float, count: int = 4) -> np.ndarray:
    return np.array([values] * count, np.float32) * np.linspace(1, 2, count, dtype=np.float32)[:, None]


SOFTMAX = np.full((3, 5, 4), 0.25, np.float32)


@pytest.mark.parametrize(
    ("output", "name", "decisions"),
    [
        (_rows(0.1, 0.5, -2.0), "y", (4,)),  # logits
        (_rows(0.3, 0.2, 0.5, count=1).reshape(1, 3, 1, 1), "y", (1,)),
        (np.float32([[0.1], [0.9]]), "y", (2, 1)),  # one sigmoid
        (np.float32([0.1, 0.9]), "y", (2,)),
        (np.float32([[-3.0], [0.9]]), "y", None),  # a number of any size
        (np.float32([21.0, 35.5]), "temperature", None),
        (_rows(0.6, 0.8, 0.0) / np.linspace(1, 2, 4)[:, None], "y", None),  # vectors of unit length
        (_rows(0.1, 0.5, -2.0), "sentence_embedding", None),
        (_rows(0.1, 0.5, -2.0), "last_hidden_state", None),
        (SOFTMAX, "y", (3, 5)),  # a decision for every position
        (np.moveaxis(SOFTMAX, 2, 1), "y", (3, 5)),  # classes second, as in images
        (SOFTMAX[..., None].transpose(0, 2, 1, 3), "y", (3, 5, 1)),
        (SOFTMAX * 3, "logits", (3, 5)),  # logits of tokens
        (SOFTMAX * 3, "y", None),  # hidden states, boxes
        (SOFTMAX * 3, "boxes", None),
        (np.ones((2, 3, 8, 8), np.float32), "y", None),  # pixels
        (np.array([[1, 2], [3, 4]]), "y", (2, 2)),  # whole numbers
        (np.array(["cat", "dog"], object), "y", (2,)),
        (np.zeros((0, 4), np.float32), "y", None),
        (np.float32(0.5), "y", None),
    ],
)
def test_decisions_are_read_where_an_output_makes_some(
    output: np.ndarray, name: str, decisions: tuple[int, ...] | None
) -> None:
    decide = metrics.decider(output, name=name)
    assert (None if decide is None else decide(output).shape) == decisions


def test_decisions_are_those_of_the_right_axis() -> None:
    scores = np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 5)).astype(np.float32)
    last, second = metrics.decider(scores), metrics.decider(np.moveaxis(scores, 2, 1))
    assert last is not None
    assert second is not None
    np.testing.assert_array_equal(last(scores), scores.argmax(-1))
    np.testing.assert_array_equal(second(np.moveaxis(scores, 2, 1)), scores.argmax(-1))
    one = metrics.decider(np.float32([[0.2], [0.6]]))
    assert one is not None
    assert one(np.float32([[0.2], [0.6]])).tolist() == [[False], [True]]
