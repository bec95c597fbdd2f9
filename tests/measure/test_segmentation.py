"""Regions against plain loops over pixels and classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError
from lepton_cli.measure import accuracy
from lepton_cli.measure.metrics import formula
from lepton_cli.measure.spec import AccuracySpec
from tests.measure import builders


def value(output: NDArray[Any], labels: NDArray[Any], **spec: Any) -> float:
    one = formula(AccuracySpec(**spec))
    return float(one.value(one.keep(output, labels)))


def scores(classes: NDArray[Any], count: int) -> NDArray[Any]:
    """`[N, classes, ...]` whose largest score is that of the given class."""
    return np.moveaxis(np.eye(count, dtype=np.float32)[classes], -1, 1)


def by_hand(found: NDArray[Any], labels: NDArray[Any], classes: int, ignore: int | None, doubled: bool) -> list[float]:
    """Of each class that occurs: intersection over union, or twice the intersection over both sizes."""
    shares = []
    for one in range(classes):
        both = mine = true = 0
        for guess, label in zip(found.reshape(-1), labels.reshape(-1), strict=True):
            if label == ignore:
                continue
            both += guess == one == label
            mine += guess == one
            true += label == one
        if mine + true:
            shares.append(2 * both / (mine + true) if doubled else both / (mine + true - both))
    return shares


def test_the_union_and_the_sizes_by_hand() -> None:
    """Classes 3 and 4 occur nowhere."""
    labels = np.array([[0, 0, 1, 1], [2, 2, 0, 1]])
    found = np.array([[0, 1, 1, 1], [2, 2, 0, 0]])
    # 0: both 2, sizes 3 and 3; 1: both 2, sizes 3 and 3; 2: both 2, sizes 2 and 2.
    assert value(scores(found, 5), labels, metric="miou") == pytest.approx((2 / 4 + 2 / 4 + 2 / 2) / 3)
    assert value(scores(found, 5), labels, metric="dice") == pytest.approx((4 / 6 + 4 / 6 + 4 / 4) / 3)
    assert value(scores(found, 5), labels, metric="miou", average="micro") == pytest.approx(6 / 10)
    assert value(scores(found, 5), labels, metric="dice", average="micro") == pytest.approx(12 / 16)
    assert value(scores(found, 5), labels, metric="miou", average="binary") == pytest.approx(2 / 4)
    assert value(scores(found, 5), labels, metric="dice", average="binary") == pytest.approx(4 / 6)
    # Without the pixels of class 2.
    assert value(scores(found, 5), labels, metric="miou", ignore_index=2) == pytest.approx((2 / 4 + 2 / 4) / 2)


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 1, 255]), st.booleans())
def test_loops_agree(seed: int, ignore: int | None, doubled: bool) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, (3, 4, 5))
    if ignore == 255:
        labels[generator.random(labels.shape) < 0.3] = 255
    found = generator.integers(0, 5, (3, 4, 5))
    expected = float(np.mean(by_hand(found, labels, 5, ignore, doubled)))
    metric = "dice" if doubled else "miou"
    for output in (scores(found, 5), np.moveaxis(scores(found, 5), 1, -1), found, found[:, None]):
        assert value(output, labels, metric=metric, ignore_index=ignore) == pytest.approx(expected)
    assert value(scores(found, 5), labels[:, None], metric=metric, ignore_index=ignore) == pytest.approx(expected)


@given(st.integers(0, 2**32 - 1))
def test_dice_follows_from_the_union_of_one_class(seed: int) -> None:
    """D = 2 J / (1 + J)."""
    generator = np.random.default_rng(seed)
    labels, found = generator.integers(0, 2, (2, 2, 3, 3))
    labels[0, 0, 0] = 1
    union = value(scores(found, 2), labels, metric="miou", average="binary")
    assert value(scores(found, 2), labels, metric="dice", average="binary") == pytest.approx(2 * union / (1 + union))


def test_one_number_a_pixel_is_a_probability_or_a_logit() -> None:
    labels = np.array([[[0, 1], [1, 1]]])
    for output in ([[0.1, 0.9], [0.8, 0.4]], [[-3.0, 2.0], [1.5, -0.2]]):
        found = np.array(output, np.float32)[None, None]
        assert value(found, labels, metric="miou", average="binary") == pytest.approx(2 / 3)


def test_batches_in_which_not_every_class_occurs() -> None:
    """Classes as whole numbers: how many there are shows only in all batches."""
    model = builders.model("g (int64[N, 2] x) => (int64[N, 2] y) { y = Identity (x) }")
    found = np.array([[0, 1], [0, 0], [4, 4]])
    data = Arrays({"x": found}, np.array([[0, 1], [0, 1], [4, 3]]), batch=1)
    specs = [AccuracySpec(metric="miou"), AccuracySpec(metric="dice")]
    measured = accuracy.evaluate({"original": model}, data, specs)
    union, twice = measured.values["original"]
    assert union.value == pytest.approx((2 / 3 + 1 / 2 + 0 + 1 / 2) / 4)
    assert twice.value == pytest.approx((4 / 5 + 2 / 3 + 0 + 2 / 3) / 4)


def test_the_interval_is_that_of_the_plain_bootstrap() -> None:
    """Resamples drawn alike, each measured by loops."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, (12, 6))
    first, second = (np.where(generator.random(labels.shape) < share, 0, labels) for share in (0.2, 0.5))
    data = Arrays({"a": first, "b": second}, {"labels": labels}, batch=5)
    arms = {
        name: builders.model(f"g (int64[N, 6] a, int64[N, 6] b) => (int64[N, 6] y) {{ y = Identity ({source}) }}")
        for name, source in (("original", "a"), ("compressed", "b"))
    }
    (change,) = accuracy.evaluate(arms, data, [AccuracySpec(metric="miou")], seed=5).changes
    drawn = np.random.default_rng(5).integers(0, 12, size=(1000, 12))
    differences = [
        np.mean(by_hand(second[rows], labels[rows], 3, None, False))
        - np.mean(by_hand(first[rows], labels[rows], 3, None, False))
        for rows in drawn
    ]
    low, high = np.quantile(differences, [0.025, 0.975])
    assert (change.low, change.high) == pytest.approx((low, high))
    assert change.low is not None
    assert change.low <= change.difference <= change.high < 0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("output", "labels", "said"),
    [
        (scores(np.zeros((1, 2, 2), int), 3), np.full((1, 2, 2), 3), "label 3 is none"),
        (scores(np.zeros((1, 2, 2), int), 3), np.full((1, 2, 2), -1), "label -1 is none"),
        (scores(np.zeros((1, 2, 2), int), 3), np.zeros((1, 4, 4), int), "do not fit"),
        (np.full((1, 2), -1), np.zeros((1, 2), int), "label -1 is none"),
    ],
)
def test_labels_that_do_not_fit(output: NDArray[Any], labels: NDArray[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        value(output, labels, metric="miou")


def test_a_wrong_label_points_to_the_option() -> None:
    model = builders.model("g (float[N, 3, 2] x) => (float[N, 3, 2] y) { y = Identity (x) }")
    data = Arrays({"x": np.zeros((2, 3, 2), np.float32)}, np.array([[0, 1], [255, 2]]))
    specs = [AccuracySpec(metric="top1"), AccuracySpec(metric="miou")]
    with pytest.raises(DataError, match="label 255") as caught:
        accuracy.evaluate({"original": model}, data, specs[1:])
    assert caught.value.option == ("evaluate", "accuracy", 0, "ignore_index")
    assert caught.value.hint == "`ignore_index` leaves pixels out"


@pytest.mark.parametrize("metric", ["miou", "dice"])
def test_agreement_is_that_of_pixels(metric: str) -> None:
    """One of eight pixels is decided otherwise: of one number a pixel, and of classes."""
    labels = np.random.default_rng(0).integers(0, 2, (2, 2, 2))
    first = np.where(labels, 2.0, -3.0).astype(np.float32)[:, None]
    second = first.copy()
    second[1, 0, 1, 1] *= -1
    classes = [(one[:, 0] > 0).astype(np.int64) for one in (first, second)]
    for kind, before, after in (("float[N, 1, 2, 2]", first, second), ("int64[N, 2, 2]", *classes)):
        arms = {
            name: builders.model(f"g ({kind} a, {kind} b) => ({kind} y) {{ y = Identity ({source}) }}")
            for name, source in (("original", "a"), ("compressed", "b"))
        }
        found = accuracy.evaluate(arms, Arrays({"a": before, "b": after}, labels), [AccuracySpec(metric=metric)])
        assert found.fidelity[0].agreement == pytest.approx(7 / 8)
        assert found.values["original"][0].value == 1
