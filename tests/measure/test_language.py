"""Perplexity against closed forms and the plain sum of the definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError, MeasurementError
from lepton_cli.measure import accuracy, language
from lepton_cli.measure.metrics import formula
from lepton_cli.measure.spec import AccuracySpec
from tests.measure import builders


def value(output: NDArray[Any], labels: NDArray[Any], **spec: Any) -> float:
    one = formula(AccuracySpec(metric="perplexity", **spec))
    return float(one.value(one.keep(output, labels)))


def by_hand(scores: NDArray[Any], labels: NDArray[Any], left_out: tuple[int, ...] = (-100,)) -> float:
    """e ** -(mean of ln p), where p = e ** score / sum of e ** scores."""
    told = []
    for rows, tokens in zip(scores.tolist(), labels.tolist(), strict=True):
        for row, token in zip(rows, tokens, strict=True):
            if token not in left_out:
                told.append(math.log(math.exp(row[token]) / math.fsum(map(math.exp, row))))
    return math.exp(-math.fsum(told) / len(told))


def test_equal_scores_are_as_perplexing_as_there_are_tokens() -> None:
    assert value(np.zeros((2, 3, 7), np.float32), np.zeros((2, 3), int)) == pytest.approx(7)


def test_a_coin_and_a_certainty() -> None:
    """Probabilities 1/2 and 1 of the two tokens: the geometric mean is 1 / sqrt 2."""
    scores = np.array([[[0.0, 0.0, -np.inf], [-np.inf, 5.0, -np.inf]]], np.float32)
    assert value(scores, np.array([[0, 1]])) == pytest.approx(math.sqrt(2))


@given(st.integers(0, 2**32 - 1))
def test_the_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.normal(0, 3, (3, 4, 6))
    labels = generator.integers(0, 6, (3, 4))
    labels[generator.random(labels.shape) < 0.3] = -100
    labels[0, 0] = 2
    assert value(scores, labels) == pytest.approx(by_hand(scores, labels))
    assert value(np.moveaxis(scores, -1, 1), labels) == pytest.approx(by_hand(scores, labels))
    kept = value(scores, labels, ignore_index=5)
    assert kept == pytest.approx(by_hand(scores, labels, (-100, 5)))


@given(st.integers(0, 2**32 - 1), st.floats(-1e4, 1e4))
def test_what_is_added_to_all_scores_of_a_position_changes_nothing(seed: int, much: float) -> None:
    """Also where e to the power of it is too large for any float; after a softmax it is the same."""
    generator = np.random.default_rng(seed)
    scores, labels = generator.normal(0, 2, (2, 3, 5)), generator.integers(0, 5, (2, 3))
    expected = by_hand(scores, labels)
    assert value(scores + much, labels) == pytest.approx(expected, rel=1e-9)
    shares = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    assert value(shares, labels) == pytest.approx(expected)
    assert value(np.log(shares), labels) == pytest.approx(expected)


def test_samples_count_by_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample of 3 tokens with p = 1/4, one of a single token with p = 1/2: (4 * 4 * 4 * 2) ** (1/4). In blocks."""
    monkeypatch.setattr(language, "_BLOCK", 8)
    shares = np.array([[[0.25, 0.25, 0.25, 0.25]] * 3, [[0.5, 0.5, 0, 0]] * 3], np.float32)
    labels = np.array([[0, 1, 2], [1, -100, -100]])
    assert value(shares, labels) == pytest.approx(128 ** (1 / 4))
    model = builders.identity("N, 3, 4")
    data = Arrays({"x": shares}, labels, batch=1)
    measured = accuracy.evaluate({"original": model, "compressed": model}, data, [AccuracySpec(metric="perplexity")])
    (found,) = measured.values["original"]
    assert found.value == pytest.approx(128 ** (1 / 4))
    assert not found.higher_is_better
    assert measured.fidelity[0].agreement == 1, "the same token comes next"
    score = accuracy.score(model, data, [AccuracySpec(metric="perplexity")])
    assert score == pytest.approx(128 ** (-1 / 4))


def test_half_precision_is_summed_in_double() -> None:
    """50,000 scores of 10 in float16: e ** 10 is 22,026, and the sum of all is beyond its range."""
    assert value(np.full((1, 1, 50_000), 10, np.float16), np.array([[3]])) == pytest.approx(50_000)


@pytest.mark.parametrize(
    ("output", "labels", "said", "option"),
    [
        (np.zeros((1, 2, 4), np.float32), np.array([[0, 4]]), "label 4 is none", ("ignore_index",)),
        (np.zeros((1, 2, 4), np.float32), np.array([[0, -1]]), "label -1 is none", ("ignore_index",)),
        (np.zeros((1, 2, 4), np.float32), np.array([[0, 1, 2]]), "do not fit", ()),
        (np.zeros((1, 2), np.float32), np.array([[0, 1]]), "scores of every token", ("output",)),
        (np.zeros((1, 2, 4), np.int64), np.array([[0, 1]]), "scores of every token", ("output",)),
    ],
)
def test_labels_that_are_no_tokens(output: NDArray[Any], labels: NDArray[Any], said: str, option: Any) -> None:
    with pytest.raises(DataError, match=said) as caught:
        value(output, labels)
    assert tuple(caught.value.option) == option


def test_without_a_token_there_is_no_perplexity() -> None:
    data = Arrays({"x": np.zeros((2, 3, 4), np.float32)}, np.full((2, 3), -100))
    with pytest.raises(MeasurementError, match="not defined") as caught:
        accuracy.evaluate({"original": builders.identity("N, 3, 4")}, data, [AccuracySpec(metric="perplexity")])
    assert "no label is a token" in (caught.value.cause or "")
