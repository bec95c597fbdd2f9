"""Where samples lie in a value, held to numpy's own stacking."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lepton_cli.graph.stacked import SampleAxis as At
from lepton_cli.graph.stacked import found, reshaped, same

RANDOM = np.random.default_rng(5)


def samples(*shape: int, count: int = 3) -> list[np.ndarray]:
    return [RANDOM.normal(size=shape).astype(np.float32) for _ in range(count)]


def test_samples_lie_one_behind_the_other_or_in_turns() -> None:
    parts = samples(2, 4, 3)
    np.testing.assert_array_equal(At(1, 4).stack(parts), np.concatenate(parts, 1))
    turns = np.stack(parts, 2).reshape(2, 12, 3)
    np.testing.assert_array_equal(At(1, 1).stack(parts), turns)
    pairs = np.concatenate([part[:, rows] for rows in (slice(0, 2), slice(2, 4)) for part in parts], 1)
    np.testing.assert_array_equal(At(1, 2).stack(parts), pairs)


@pytest.mark.parametrize(
    "place",
    [At(0, 2), At(0, 1), At(1, 4), At(1, 2), At(1, 1), At(2, 3)],
)
def test_a_place_is_found_by_what_is_there(place: At) -> None:
    parts = samples(2, 4, 3)
    assert found(parts, place.stack(parts)) == (place, "")


def test_a_likely_place_is_tried_first() -> None:
    """Zeros tell nothing."""
    zeros = [np.zeros((4, 2), np.float32)] * 2
    assert found(zeros, np.zeros((8, 2), np.float32))[0] == At(0, 4)
    assert found(zeros, np.zeros((8, 2), np.float32), [None, At(1, 2), At(0, 1)])[0] == At(0, 1)


def test_what_is_not_there_is_said() -> None:
    one, two = samples(1, 4, count=2)
    assert "mixes" in found([one, two], np.concatenate([two, one]))[1]
    assert "one result" in found([one, two], one + two)[1]
    assert "[3, 4]" in found([one, two], np.zeros((3, 4), np.float32))[1]
    assert "[8]" in found([one, two], np.zeros(8, np.float32))[1]
    assert "data" in found([one, two[:, :3]], np.zeros((2, 4), np.float32))[1]


@pytest.mark.parametrize(
    ("place", "shape", "target", "wanted"),
    [
        (At(0, 1), (1, 6, 4), (1, 24), At(0, 1)),
        (At(0, 1), (1, 6, 4), (6, 4), At(0, 6)),
        (At(0, 6), (6, 4), (1, 6, 4), At(0, 1)),
        (At(1, 1), (5, 1, 8), (5, 8), At(0, 1)),
        (At(1, 1), (5, 1, 8), (5, 2, 1, 4), At(1, 2)),
        (At(1, 1), (1, 1, 8), (1, 1, 8), At(1, 1)),
        (At(0, 1), (1, 1, 8), (1, 1, 8), At(0, 1)),
    ],
)
def test_reshaped_samples_keep_their_order(
    place: At, shape: tuple[int, ...], target: tuple[int, ...], wanted: At
) -> None:
    """All places are right, no other is, and the wanted one is among the first."""
    parts = samples(*shape)
    together = place.stack(parts)
    right = {
        At(axis, inner)
        for axis, size in enumerate(target)
        for inner in range(1, size + 1)
        if size % inner == 0
        and np.array_equal(At(axis, inner).stack([part.reshape(target) for part in parts]).ravel(), together.ravel())
    }
    places = reshaped(place, shape, target)
    assert set(places) == right
    assert wanted in places[:2]


@pytest.mark.parametrize("shape", [shape for shape in itertools.product((1, 2, 6), repeat=3) if math.prod(shape) == 12])
def test_no_place_is_made_up(shape: tuple[int, ...]) -> None:
    parts = samples(1, 12)
    for place in reshaped(At(0, 1), (1, 12), shape):
        stacked = place.stack([part.reshape(shape) for part in parts])
        np.testing.assert_array_equal(stacked.ravel(), np.concatenate(parts).ravel())


def test_results_are_one_up_to_rounding() -> None:
    one = np.array([1.0, -100.0, np.inf, np.nan], np.float32)
    assert same(one, one + np.float32(1e-3))
    assert not same(one, one + np.float32(1e-2))
    assert same(one, one + np.float32(1e-2), 1e-3)
    assert not same(one, np.array([1.0, -100.0, np.inf, 0.0], np.float32))
    assert not same(np.zeros(2, np.float32), np.array([0.0, np.nan], np.float32))
    assert not same(one, one.astype(np.float64))
    assert not same(one, one[:3])
    tiny = np.array([6e-8, 1.2e-7], np.float32)
    assert same(tiny, tiny[::-1], 1e-4)
    assert not same(tiny, tiny[::-1])
    assert not same(tiny, tiny[::-1], 0.0)
    assert not same(tiny, tiny + np.float32(2e-6), 1e-4)
    whole = np.arange(1000)
    turned = np.where(whole == 3, 7, whole)
    assert not same(whole, turned)
    assert same(whole, turned, 1e-4)
    assert same((whole % 100).astype(np.uint8), (turned % 100).astype(np.uint8))
    assert not same((whole % 100).astype(np.uint8), (whole % 90).astype(np.uint8))


def test_an_axis_of_samples_alone_is_plain() -> None:
    assert At(1, 1).plain((4, 1, 2))
    assert At(0, 4).plain((4, 2))
    assert not At(0, 1).plain((4, 2))
    assert not At(1, 2).plain((4, 2))
