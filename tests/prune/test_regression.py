"""Least squares for one layer against numpy's solver on a system that says the same with more rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_cli.probe.moments import LayerSample
from lepton_cli.prune.regression import Regression, shifted
from tests.prune.context import rectified_ridge, ridge_solution

Array = NDArray[np.float64]


def problem(
    seed: int = 0, rows: int = 60, size: int = 5, outputs: int = 3, scale: float = 1.0
) -> tuple[LayerSample, Array]:
    """Correlated features off the origin, targets that no layer meets, a pruned shortcut; and start weights."""
    random = np.random.default_rng(seed)
    x = (random.normal(size=(rows, size)) @ random.normal(size=(size, size)) + random.normal(size=size)) * scale
    y, offset = random.normal(0.7, 2, (rows, outputs)), random.normal(-0.4, 1, (rows, outputs))
    y += x @ random.normal(size=(size, outputs))
    y[::7] = 0.0
    held = np.zeros(rows, np.bool_)
    start = random.normal(size=(size + 1, outputs))
    return LayerSample(x.astype(np.float32), y.astype(np.float32), offset.astype(np.float32), held), start


def moments(rows: LayerSample, which: NDArray[np.bool_]) -> Array:
    x = np.concatenate([rows.x[which].astype(np.float64), np.ones((int(which.sum()), 1))], axis=1)
    return x.T @ x


@pytest.mark.parametrize("ridge", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_solution_is_that_of_an_augmented_system(ridge: float, intercept: bool, scale: float) -> None:
    rows, start = problem(scale=scale)
    everything = np.ones(60, np.bool_)
    found = Regression(rows, everything, moments(rows, everything), start, intercept).solve(ridge)
    expected = ridge_solution(rows.x, rows.y - rows.offset.astype(np.float64), start, ridge, intercept)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def test_only_the_chosen_rows_count() -> None:
    rows, start = problem(1)
    which = np.arange(60) % 3 != 0
    found = Regression(rows, which, moments(rows, which), start, True).solve(0.01)
    expected = ridge_solution(rows.x[which], (rows.y - rows.offset)[which], start, 0.01, True)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("intercept", [True, False])
def test_other_targets_replace_the_rows_own_and_their_shortcut(intercept: bool) -> None:
    rows, start = problem(2)
    everything = np.ones(60, np.bool_)
    other = np.random.default_rng(9).normal(3, 1, rows.y.shape).astype(np.float32)
    regression = Regression(rows, everything, moments(rows, everything), start, intercept)
    np.testing.assert_allclose(
        regression.solve(0.1, other), ridge_solution(rows.x, other, start, 0.1, intercept), rtol=2e-4, atol=2e-4
    )


def test_a_huge_ridge_leaves_the_weights_and_still_moves_a_free_bias() -> None:
    rows, start = problem(3)
    everything = np.ones(60, np.bool_)
    free = Regression(rows, everything, moments(rows, everything), start, True).solve(1e9)
    np.testing.assert_allclose(free[:-1], start[:-1], atol=1e-6)
    left = rows.y.astype(np.float64) - rows.offset - rows.x @ start[:-1]
    np.testing.assert_allclose(free[-1], left.mean(axis=0), rtol=1e-5, atol=1e-5)
    fixed = Regression(rows, everything, moments(rows, everything), start, False).solve(1e9)
    np.testing.assert_allclose(fixed, start, atol=1e-6)


def test_features_that_are_always_zero_keep_their_weights() -> None:
    rows, start = problem(4)
    rows.x[:] = 0.0
    everything = np.ones(60, np.bool_)
    found = Regression(rows, everything, moments(rows, everything), start, True).solve(1e-3)
    np.testing.assert_array_equal(found[:-1], start[:-1])
    np.testing.assert_allclose(found[-1], (rows.y - rows.offset).mean(axis=0), rtol=1e-5, atol=1e-6)


def test_an_eigenvalue_below_zero_counts_as_zero() -> None:
    """Sums in float32 make such: taken as it is, it would meet the ridge and the division would have no bounds."""
    random = np.random.default_rng(5)
    x = np.concatenate([random.normal(size=(20, 1)), np.full((20, 1), 0.5)], axis=1).astype(np.float32)
    y = random.normal(size=(20, 1)).astype(np.float32)
    rows = LayerSample(x, y, np.zeros_like(y), np.zeros(20, np.bool_))
    exact = moments(rows, np.ones(20, np.bool_))
    exact[0, 1] = exact[1, 0] = exact[0, 2] * 0.5  # the second feature is constant: no spread at all
    dented = exact.copy()
    dented[1, 1] -= 0.9e-3
    start = np.zeros((3, 1))
    solutions = [Regression(rows, np.ones(20, np.bool_), m, start, True).solve(1e-4) for m in (exact, dented)]
    np.testing.assert_allclose(solutions[1], solutions[0], rtol=1e-4, atol=1e-5)


def one_sided(rows: LayerSample, solution: Array) -> float:
    """What is minimised with a ReLU behind: where the target is at most zero, only values above zero count."""
    value = rows.x @ solution[:-1] + solution[-1] + rows.offset
    return float(np.square(np.where(rows.y > 0, value - rows.y, np.maximum(value, 0))).sum())


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("intercept", [True, False])
def test_each_round_fits_to_targets_that_the_last_one_lowered(rounds: int, intercept: bool) -> None:
    rows, start = problem(6)
    everything = np.ones(60, np.bool_)
    expected = rectified_ridge(rows.x, rows.y, rows.offset, start, 0.05, intercept, rounds)
    found = Regression(rows, everything, moments(rows, everything), start, intercept).rectified(0.05, rounds)
    np.testing.assert_allclose(found, expected, rtol=5e-4, atol=5e-4)


def test_every_round_lowers_the_one_sided_loss() -> None:
    rows, start = problem(7)
    everything = np.ones(60, np.bool_)
    regression = Regression(rows, everything, moments(rows, everything), start, True)
    pull = 0.02 * np.square(rows.x - rows.x.mean(axis=0)).sum() / 5
    losses = []
    for rounds in range(8):
        solution = regression.rectified(0.02, rounds)
        losses.append(one_sided(rows, solution) + pull * np.square(solution[:-1] - start[:-1]).sum())
    assert all(after < before for before, after in itertools.pairwise(losses))


@pytest.mark.parametrize("size", [1, 2])
def test_many_rounds_reach_the_minimum_of_a_grid_search(size: int) -> None:
    """Targets are values before a ReLU: far below zero they say nothing, and plain least squares follows them."""
    random = np.random.default_rng(8)
    x = random.uniform(-1, 1, (200, size)).astype(np.float32)
    true = np.array([[1.3], [-0.6]][:size])
    offset = 0.2 * random.normal(size=(200, 1)).astype(np.float32)
    y = x @ true + offset + 0.02 * random.normal(size=(200, 1))
    y = np.where(y <= 0, y * 8 - 3, y).astype(np.float32)
    rows = LayerSample(x, y, offset, np.zeros(200, np.bool_))
    everything = np.ones(200, np.bool_)
    start = np.zeros((size + 1, 1))
    regression = Regression(rows, everything, moments(rows, everything), start, False)

    def relu_loss(weights: Array) -> Array:
        value = x @ weights.T + offset
        return np.square(np.maximum(value, 0) - np.maximum(y, 0)).sum(axis=0)

    axis = np.linspace(-2, 2, 81)
    grid = np.stack([a.ravel() for a in np.meshgrid(*[axis] * size)], axis=1)
    best = grid[np.argmin(relu_loss(grid))]
    found = regression.rectified(1e-7, 60)[:size]
    np.testing.assert_allclose(found[:, 0], best, atol=0.051)
    assert relu_loss(found.T)[0] <= relu_loss(grid).min()
    assert relu_loss(regression.solve(1e-7)[:size].T)[0] > 4 * relu_loss(found.T)[0]


def test_a_shifted_bias_makes_the_mean_error_zero() -> None:
    rows, start = problem(10)
    before = start.copy()
    which = np.arange(60) % 4 != 1
    moved = shifted(rows, which, start)
    error = rows.x[which] @ moved[:-1] + moved[-1] + rows.offset[which] - rows.y[which]
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=1e-6)
    assert np.abs((rows.x @ moved[:-1] + moved[-1] + rows.offset - rows.y).mean(axis=0)).max() > 1e-3
    np.testing.assert_array_equal(moved[:-1], before[:-1])
    np.testing.assert_array_equal(start, before)


def test_directions_without_spread_do_not_blow_up_the_features_means() -> None:
    """Three rows far off the origin and a tiny ridge: float32 rounding of the mean would be multiplied by it."""
    random = np.random.default_rng(3)
    x = (100 + random.normal(size=(3, 6))).astype(np.float32)
    y = random.normal(size=(3, 2)).astype(np.float32)
    rows = LayerSample(x, y, np.zeros((3, 2), np.float32), np.zeros(3, np.bool_))
    start, everything = np.zeros((7, 2)), np.ones(3, np.bool_)
    exact = moments(rows, everything)
    found = Regression(rows, everything, exact, start, True).solve(1e-5)
    expected = ridge_solution(x, y.astype(np.float64), start, 1e-5, True)
    np.testing.assert_allclose(found[:-1], expected[:-1], atol=5e-3)
