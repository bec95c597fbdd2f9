"""How close two models are: decisions, parts with ranges of their own, infinities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lepton_cli.measure.fidelity import Tracker
from lepton_cli.measure.results import Fidelity
from lepton_cli.probe.parts import Segments


def compared(reference: np.ndarray, other: np.ndarray, *ways: Segments) -> Fidelity:
    tracker = Tracker("compressed", "y", None, ways)
    for rows in np.array_split(np.arange(len(reference)), 2):
        tracker.add(reference[rows], other[rows], len(rows))
    return tracker.result()


def test_parts_weigh_alike_and_the_whole_is_their_mean_error() -> None:
    """Boxes 100 and off by one: 40 dB. Scores 0.1 and off by 0.03: 10.46 dB. All squares alike: 39.96 dB."""
    reference = np.ones((6, 5, 8)) * ([100.0] * 4 + [0.1] * 4)
    other = reference + np.array([1.0] * 4 + [0.03] * 4)
    found = compared(reference, other, Segments(2, (0, 4, 8)))
    assert [(part.where, part.sqnr_db) for part in found.parts] == [
        ("[:, :, 0:4]", pytest.approx(40)),
        ("[:, :, 4:8]", pytest.approx(20 * math.log10(0.1 / 0.03))),
    ]
    assert found.sqnr_db == pytest.approx(-10 * math.log10((1e-4 + 0.09) / 2))
    assert found.max_abs_error == pytest.approx(1)


def test_an_output_of_one_kind_has_no_parts() -> None:
    reference = np.random.default_rng(0).normal(size=(8, 40))
    found = compared(reference, reference * 1.01)
    assert found.parts == ()
    assert found.sqnr_db == pytest.approx(40)
    assert found.agreement is None
    assert found.n == 8


def test_an_infinity_where_the_original_has_a_number_is_an_error() -> None:
    """It has no size, and must not be left out: it counts as the largest float32."""
    reference = np.ones((4, 40))
    other = reference.copy()
    other[2, 7] = np.inf
    found = compared(reference, other)
    assert found.sqnr_db == pytest.approx(10 * math.log10(160 / float(np.finfo(np.float32).max) ** 2), abs=1e-6)
    assert found.max_abs_error > 3e38


def test_infinities_of_the_original_say_nothing() -> None:
    reference = np.ones((4, 40))
    reference[:, 0] = -np.inf
    other = reference * 1.1
    other[1, 0] = -3.4e38
    found = compared(reference, other)
    assert found.sqnr_db == pytest.approx(20)


def test_decisions_of_each_sample_are_counted_alike() -> None:
    tracker = Tracker("compressed", "y", lambda scores: scores.argmax(axis=-1))
    reference = np.eye(4)[None, [0, 1, 2, 3]].repeat(2, axis=0)
    other = reference.copy()
    other[0, 0] = [0, 0, 0, 1]
    tracker.add(reference, other, 2)
    assert tracker.result().agreement == pytest.approx((0.75 + 1) / 2)


def test_whole_numbers_are_decisions_by_themselves() -> None:
    tracker = Tracker("compressed", "y", lambda values: values)
    tracker.add(np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]]), 2)
    found = tracker.result()
    assert (found.agreement, found.sqnr_db, found.cosine) == (0.75, None, None)


def test_words_are_compared_too() -> None:
    tracker = Tracker("compressed", "y", lambda values: values)
    tracker.add(np.array(["cat", "dog"], object), np.array(["cat", "cow"], object), 2)
    assert (tracker.result().agreement, tracker.result().sqnr_db) == (0.5, None)


def test_n_counts_samples_wherever_their_axis_is() -> None:
    """Six samples in batches of four and two: states with layers first, positions of all pictures, one number."""
    random = np.random.default_rng(0)
    states = random.normal(size=(3, 6, 5))
    noisy = states + 0.1 * random.normal(size=states.shape)
    batches = [slice(0, 4), slice(4, 6)]

    def followed(*pairs: tuple[np.ndarray, np.ndarray]) -> Fidelity:
        tracker = Tracker("compressed", "y", None)
        for (reference, other), rows in zip(pairs, batches, strict=True):
            tracker.add(reference, other, rows.stop - rows.start)
        return tracker.result()

    found = followed(*((states[:, rows], noisy[:, rows]) for rows in batches))
    assert found.n == 6
    own = [float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(
        states.swapaxes(0, 1), noisy.swapaxes(0, 1), strict=True)]  # fmt: skip
    assert found.cosine == pytest.approx(np.mean(own))
    boxes = random.normal(size=(9600, 4))
    assert followed((boxes[:6400], boxes[:6400]), (boxes[6400:], boxes[6400:])).n == 6
    assert followed((np.float32(3), np.float32(3)), (np.float32(4), np.float32(5))).n == 6


def test_positions_are_no_samples_of_an_interval() -> None:
    """The interval of agreement is that of six samples, though 9,600 positions decide."""
    decisions = np.zeros((9600,), np.int64)
    other = decisions.copy()
    other[:960] = 1
    tracker = Tracker("compressed", "y", lambda values: values)
    tracker.add(decisions, other, 6)
    found = tracker.result()
    assert (found.n, found.agreement) == (6, pytest.approx(0.9))
    p, n, z = 0.9, 6, 1.959964
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert found.agreement_low == pytest.approx((p + z * z / (2 * n)) / (1 + z * z / n) - half, abs=1e-5)
