"""What layers see: sums of products over batches, and rows drawn alike for features, targets and shortcuts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from lepton_cli.errors import StepError
from lepton_cli.probe import moments
from lepton_cli.probe.linear import Linear
from lepton_cli.probe.moments import Aim
from lepton_cli.runtime import Values


def dense(node: str = "dense", **names: str) -> Linear:
    fields = {"input": "x", "output": "y", "biased": "y", "weight": "w", **names}
    return Linear(node=node, op="Gemm", bias="b", can_add_bias=False, in_axis=0, out_axis=1, **fields)


def pointwise(node: str = "conv") -> Linear:
    return Linear(
        node=node, op="Conv", weight="w", input="x", output="y", biased="y", bias=None, can_add_bias=True, in_axis=1,
        out_axis=0, kernel=(1, 1), strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0),
    )  # fmt: skip


def with_ones(x: NDArray[Any]) -> NDArray[np.float64]:
    return np.concatenate([x.astype(np.float64), np.ones((len(x), 1))], axis=1)


def few_rows(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(moments, "ROWS", rows)


@settings(max_examples=25)
@given(rows=st.integers(1, 9), size=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_gram_matrix_is_the_product_with_the_constant_last(rows: int, size: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(-9, 9, (rows, size)).astype(np.float32)
    found = moments.gram(x)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, with_ones(x).T @ with_ones(x))


def test_sums_of_the_constant_do_not_lose_small_values() -> None:
    x = np.array([[2.0**24], [1.0], [1.0], [1.0]], np.float32)
    assert moments.gram(x)[0, 1] == moments.gram(x)[1, 0] == 2**24 + 3


def test_gram_matrices_add_up_over_batches_for_every_layer() -> None:
    random = np.random.default_rng(0)
    batches = [{"in": random.normal(size=(rows, 3))} for rows in (4, 4, 2)]

    def run(feeds: Values) -> Values:
        return {"x": np.stack([feeds["in"], 2 * feeds["in"]], axis=1), "z": feeds["in"] @ np.ones((3, 2)) - 1}

    found = moments.grams([dense("one"), dense("two", input="z")], [3, 2], batches, run, share=1.0, seed=0)
    whole = np.concatenate([batch["in"] for batch in batches])
    expected = {"one": np.concatenate([whole, 2 * whole]), "two": whole @ np.ones((3, 2)) - 1}
    assert found.keys() == expected.keys()
    for node, x in expected.items():
        np.testing.assert_allclose(found[node], with_ones(x).T @ with_ones(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("samples", "rows"), [(8, 50), (4, 80)])
def test_a_batch_of_two_gives_its_share_of_the_rows(samples: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 rows over all samples, of 80 in this batch; features are one-hot, so the diagonal tells which were taken."""
    few_rows(monkeypatch, 200)
    feeds = {"x": np.eye(80).reshape(2, 40, 80)[:, :, :48], "other": np.zeros((7, 1))}
    found = moments.grams([dense()], [48], [feeds], lambda values: values, 2 / samples, 3)["dense"]
    assert found[-1, -1] == rows
    assert set(np.diag(found)[:-1]) <= {0, 1}
    taken = moments.sample([(dense(), Aim("x", None, None, False), 48)], [(feeds, feeds)], 2 / samples, 3)["dense"]
    np.testing.assert_array_equal(found, with_ones(taken.x).T @ with_ones(taken.x))


def test_batches_and_seeds_draw_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows(monkeypatch, 80)
    feeds = {"x": np.eye(40)[None, :, :20]}
    once, twice, other = (
        moments.grams([dense()], [20], [feeds] * count, lambda values: values, 0.25, seed)["dense"]
        for count, seed in ((1, 0), (2, 0), (1, 1))
    )
    assert once[-1, -1] == 20
    assert not np.array_equal(2 * once, twice)
    assert not np.array_equal(once, other)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    good = np.zeros((2, 3), np.float32)
    broken = good.copy()
    broken[1, 2] = bad
    moments.check_finite(dense(), good, good)
    for arrays in ((broken,), (good, broken), (broken, good)):
        with pytest.raises(StepError) as caught:
            moments.check_finite(dense(), *arrays)
        assert caught.value.code == "prune.non-finite"
        assert "`dense`" in str(caught.value)
    with pytest.raises(StepError):
        moments.grams([dense()], [3], [{"x": broken}], lambda values: values, 1.0, 0)


def several(count: int, rows: int = 50) -> Iterable[tuple[Values, Values]]:
    """Batches whose values tell where they come from: input, shortcut and target are the same numbers, shifted."""
    for number in range(count):
        where = np.arange(2 * rows).reshape(2, 1, rows, 1) + 1000.0 * number
        x = np.concatenate([where, where + 0.25], axis=1)
        yield {"x": x, "short": x + 0.5}, {"y": np.concatenate([x, x + 0.125], axis=1), "x": x * np.nan}


def test_sampled_rows_are_the_same_for_features_targets_and_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows(monkeypatch, 120)
    keep = np.array([True, False, False, True])
    found = moments.sample([(pointwise(), Aim("y", "short", keep, False), 2)], several(6), 1 / 6, 0)["conv"]
    assert found.x.shape == found.y.shape == found.offset.shape == (120, 2)
    np.testing.assert_array_equal(found.y, found.x + np.array([0, 0.125]))
    np.testing.assert_array_equal(found.offset, found.x + 0.5)
    np.testing.assert_array_equal(found.x[:, 1], found.x[:, 0] + 0.25)
    assert len(np.unique(found.x[:, 0])) == 120
    assert np.all(np.diff(found.x[:, 0]) > 0)
    np.testing.assert_array_equal(found.x[:, 0] // 1000, np.repeat(np.arange(6), 20))
    places = {tuple(found.x[found.x[:, 0] // 1000 == number, 0] % 1000) for number in range(6)}
    assert len(places) == 6


def test_without_a_shortcut_the_offset_is_zero_and_without_a_mask_every_channel_stays() -> None:
    found = moments.sample([(pointwise(), Aim("y", None, None, False), 2)], several(2), 1 / 2, 0)["conv"]
    assert found.y.shape == (200, 4)
    np.testing.assert_array_equal(found.offset, np.zeros((200, 4)))


def test_every_fourth_batch_is_held_out() -> None:
    layers = [(pointwise(name), Aim("y", None, None, False), 2) for name in ("a", "b")]
    for rows in moments.sample(layers, several(9, 3), 1.0, 0).values():
        np.testing.assert_array_equal(rows.held, np.isin(rows.x[:, 0] // 1000, [3, 7]))


def test_a_mask_is_taken_along_the_last_axis_of_products() -> None:
    y = np.arange(24.0).reshape(2, 3, 4)
    aim = Aim("y", None, np.array([False, True, True, False]), False)
    found = moments.sample([(dense(), aim, 3)], [({"x": np.ones((2, 3, 3))}, {"y": y})], 1.0, 0)["dense"]
    np.testing.assert_array_equal(found.y, y.reshape(6, 4)[:, 1:3])


def drawn(features: int, share: float, total: int, *, seed: int = 0, batch: int = 0, node: str = "dense") -> list[int]:
    return [int(row) for row in moments.picker(dense(node), features, share, seed, batch)(total)]


@pytest.mark.parametrize(
    ("features", "share", "most"),
    [
        (10, 1.0, 65_536),  # as many rows as a layer may have
        (10, 0.25, 16_384),
        (1000, 1.0, 62_500),  # as many bytes: 250 MB of float32
        (15_000, 1.0, 60_000),  # and not fewer than four a feature
        (15_000, 0.5, 30_000),
    ],
)
def test_rows_are_bounded_by_number_and_bytes_but_not_below_four_a_feature(
    features: int, share: float, most: int
) -> None:
    assert drawn(features, share, most) == list(range(most))
    rows = drawn(features, share, most + 1)
    assert len(rows) == len(set(rows)) == most
    assert rows == sorted(rows)
    assert rows[-1] <= most


def test_rows_depend_on_seed_batch_and_layer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows(monkeypatch, 20)
    first = drawn(2, 1.0, 90)
    assert first == drawn(2, 1.0, 90)
    assert all(first != other for other in (drawn(2, 1.0, 90, seed=1), drawn(2, 1.0, 90, batch=1)))
    assert first != drawn(2, 1.0, 90, node="another")
    reached = {row for batch in range(60) for row in drawn(2, 1.0, 90, batch=batch)}
    assert reached == set(range(90))


def test_moments_are_numpys_over_all_rows_of_each_group() -> None:
    random = np.random.default_rng(5)
    parts = [random.normal(1.5, 2, size=(2, count, 3)).astype(np.float32) for count in (4, 1, 7)]
    found = moments.Moments(np.zeros((2, 3, 3)), np.zeros((2, 3)))
    for rows in parts:
        found.add(rows)
    whole = np.concatenate(parts, axis=1).astype(np.float64)
    assert found.count == 12
    np.testing.assert_allclose(found.mean, whole.mean(axis=1), rtol=1e-6)
    for group in range(2):
        np.testing.assert_allclose(
            found.covariance[group], np.cov(whole[group], rowvar=False, bias=True), rtol=1e-4, atol=1e-5
        )


def test_moments_of_nothing_are_zero() -> None:
    found = moments.Moments(np.zeros((1, 2, 2)), np.zeros((1, 2)))
    assert found.mean.tolist() == [[0, 0]]
    assert found.covariance.tolist() == [[[0, 0], [0, 0]]]
