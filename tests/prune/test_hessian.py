"""Optimal-brain removal against least squares on the rows themselves.

The Gram matrix with a ridge is that of rows with a few more below them, so every cost here is what `lstsq` leaves.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_cli.prune import hessian
from lepton_cli.prune.hessian import Side

Floats = NDArray[np.float64]


def problem(channels: int, each: int, seed: int = 0, outputs: int = 4) -> tuple[Side, Floats]:
    """A consumer whose features are correlated, of uneven size and in no order, and the rows that it sees."""
    random = np.random.default_rng(seed)
    size = channels * each
    x = random.normal(0.3, 1, (200, size)) @ random.normal(size=(size, size)) * random.uniform(0.3, 2, size) / size
    rows = np.concatenate([x, np.ones((200, 1))], axis=1)
    blocks = random.permutation(size).reshape(channels, each)
    return Side(rows.T @ rows, random.normal(size=(size + 1, outputs)), blocks), rows


def with_ridge(rows: Floats, constant: bool = True) -> Floats:
    """The rows, and below them those whose squares are the ridge: a thousandth of the mean square per feature."""
    size = rows.shape[1] - 1
    ridge = np.sqrt(0.001 * np.square(rows[:, :-1]).sum(axis=0).mean()) * np.eye(size, size + 1)
    tiny = np.sqrt(1e-9 * len(rows)) * np.eye(1, size + 1, size)
    return np.concatenate([rows, ridge, tiny] if constant else [rows, ridge])


def fitted(rows: Floats, weight: Floats, keep: NDArray[np.bool_]) -> Floats:
    return np.linalg.lstsq(rows[:, keep], rows @ weight, rcond=None)[0]


def spread(rows: Floats, weight: Floats) -> float:
    return float(np.square(rows @ weight - (rows @ weight).mean(axis=0)).sum())


def loss(side: Side, rows: Floats, gone: list[int] | tuple[int, ...]) -> float:
    """What the best weights without these channels miss, as a share of the outputs' variance."""
    keep = np.ones(len(side.weight), bool)
    keep[side.blocks[list(gone)].ravel()] = False
    tall = with_ridge(rows)
    missed = tall @ side.weight - tall[:, keep] @ fitted(tall, side.weight, keep)
    return float(np.square(missed).sum()) / spread(rows, side.weight)


def greedy(
    sides: list[tuple[Side, Floats]], together: int | None = None, most: int | None = None
) -> tuple[list[int], list[float]]:
    """The plain loop: refit without each channel, take the cheapest (or a 24th of them), until `most` went."""
    channels = len(sides[0][0].blocks)
    most = channels - 1 if most is None else most
    gone: list[int] = []
    losses = [0.0]
    while len(gone) < most:
        left = [c for c in range(channels) if c not in gone]
        before = losses[-1]
        costs = [sum(loss(*side, [*gone, c]) for side in sides) for c in left]
        count = 1 if together is None else max(1, len(left) // together)
        gone += [left[k] for k in np.argsort(costs, kind="stable")[:count]]
        after = sum(loss(*side, gone) for side in sides)
        losses += [before + (after - before) * (k + 1) / count for k in range(count)]
    return gone, losses[1:]


@pytest.mark.parametrize(("channels", "each"), [(9, 1), (6, 3), (8, 2)])
def test_channels_go_as_refitting_without_each_says(channels: int, each: int) -> None:
    side, rows = problem(channels, each)
    found = hessian.rank([side])
    order, losses = greedy([(side, rows)])
    assert found.order.tolist() == [*order, *({*range(channels)} - {*order})]
    assert found.loss == pytest.approx(losses, rel=1e-6)


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 999))
@settings(max_examples=25)
def test_the_loss_is_what_the_best_weights_of_the_rest_miss(channels: int, each: int, seed: int) -> None:
    side, rows = problem(channels, each, seed)
    found = hessian.rank([side])
    assert sorted(found.order) == list(range(channels))
    assert len(found.loss) == channels - 1
    for count in range(1, channels):
        assert found.loss[count - 1] == pytest.approx(loss(side, rows, found.order[:count].tolist()), rel=1e-6)


def test_greedy_is_close_to_the_best_subset() -> None:
    side, rows = problem(7, 2)
    found = hessian.rank([side])
    best = min(loss(side, rows, gone) for gone in itertools.combinations(range(7), 4))
    assert loss(side, rows, tuple(found.order[:4])) <= 1.5 * best


def test_one_of_two_that_say_the_same_goes_first_however_large() -> None:
    """By size the third channel would go: it is the only one that nothing can stand for."""
    random = np.random.default_rng(0)
    shared, alone = random.normal(size=(2, 200, 1))
    rows = np.concatenate([shared, shared + 1e-3 * random.normal(size=(200, 1)), alone, np.ones((200, 1))], axis=1)
    side = Side(rows.T @ rows, np.array([[5.0], [6.0], [0.8], [0.0]]), np.arange(3)[:, None])
    found = hessian.rank([side])
    assert set(found.order[:1].tolist()) <= {0, 1}
    assert found.order[1] == 2
    assert found.loss[0] < 0.002


def test_losses_of_several_consumers_add_up_each_relative_to_its_outputs() -> None:
    first, second = problem(6, 1, 0), problem(6, 2, 1)
    second[0].weight *= 100
    found = hessian.rank([first[0], second[0]])
    order, losses = greedy([first, second])
    assert found.order[:-1].tolist() == order
    assert found.loss == pytest.approx(losses, rel=1e-6)


def test_many_go_in_shares_of_a_24th(monkeypatch: pytest.MonkeyPatch) -> None:
    side, rows = problem(50, 1, outputs=2)
    monkeypatch.setattr(hessian, "ONE_BY_ONE", 50)
    found = hessian.rank([side])
    order, losses = greedy([(side, rows)], 24)
    assert found.order[:-1].tolist() == order
    assert found.loss == pytest.approx(losses, rel=1e-5)
    assert losses[0] == pytest.approx(losses[1] / 2), "the first two went together"


def test_blocks_go_in_shares_too(monkeypatch: pytest.MonkeyPatch) -> None:
    side, rows = problem(49, 2, outputs=2)
    monkeypatch.setattr(hessian, "ONE_BY_ONE", 20)
    found = hessian.rank([side])
    order, losses = greedy([(side, rows)], 24, most=2)
    assert found.order[:2].tolist() == order
    assert found.loss[:2] == pytest.approx(losses, rel=1e-6)


def test_up_to_the_limit_channels_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    side, rows = problem(50, 1, outputs=2)
    monkeypatch.setattr(hessian, "ONE_BY_ONE", 51)
    found = hessian.rank([side])
    order, losses = greedy([(side, rows)], most=4)
    assert found.order[:4].tolist() == order
    assert found.loss[:4] == pytest.approx(losses, rel=1e-6)


def test_the_largest_consumer_decides_whether_channels_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = problem(50, 1)[0], problem(50, 2)[0]
    monkeypatch.setattr(hessian, "ONE_BY_ONE", 60)
    found = hessian.rank([small, large])
    assert found.loss[0] == pytest.approx(found.loss[1] / 2)


def test_rows_of_channels_that_went_are_dropped_and_nothing_changes() -> None:
    """Past a quarter of the features the matrices are made smaller; indices move with them."""
    side, rows = problem(16, 1)
    state = hessian._State(side)
    left, gone = list(range(16)), []
    for _ in range(12):
        costs = state.costs(np.array(left))
        before = loss(side, rows, gone) if gone else 0.0
        assert costs == pytest.approx([loss(side, rows, [*gone, c]) - before for c in left], rel=1e-4, abs=1e-9)
        gone.append(left.pop(3))
        assert state.remove(np.array(gone[-1:])) == pytest.approx(loss(side, rows, gone) - before, rel=1e-4)
    assert len(state.inverse) == len(state.weight) < 9


def test_the_inverse_is_that_of_the_gram_matrix_with_its_ridge() -> None:
    side, rows = problem(5, 2)
    tall = with_ridge(rows)
    np.testing.assert_allclose(hessian.inverse(side.gram) @ (tall.T @ tall), np.eye(11), atol=1e-8)
    other = side.gram + np.diag([*[0.5 * np.diag(side.gram)[:-1].mean()] * 10, 1e-9 * 200])
    np.testing.assert_allclose(hessian.inverse(side.gram, 0.5) @ other, np.eye(11), atol=1e-9)


def test_inputs_that_are_nothing_or_next_to_it_have_an_inverse() -> None:
    np.testing.assert_allclose(hessian.inverse(np.zeros((4, 4))), np.diag([1e15, 1e15, 1e15, 1e18]))
    gram = np.diag([2e-14, 3e-14, 1e-10])
    np.testing.assert_allclose(np.diag(hessian.inverse(gram)), [1 / 2.1e-14, 1 / 3.1e-14, 1 / (1e-10 + 1e-18)])


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 999))
@settings(max_examples=25)
def test_energy_is_the_variance_of_the_outputs(count: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = np.concatenate([random.normal(2, 1, (count, size)), np.ones((count, 1))], axis=1)
    weight = random.normal(size=(size + 1, 3))
    assert hessian.energy(rows.T @ rows, weight) == pytest.approx(spread(rows, weight), rel=1e-6, abs=1e-9)


def test_outputs_that_never_change_have_next_to_no_energy() -> None:
    rows = np.array([[3.0, 1.0]])
    assert hessian.energy(rows.T @ rows, np.array([[2.0], [1.0]])) == 1e-12
    assert hessian.energy(np.zeros((3, 3)), np.ones((3, 1))) == 1e-12


@pytest.mark.parametrize("gone", [[0], [1, 4], [0, 2, 3, 5]])
def test_refit_is_least_squares_with_a_ridge(gone: list[int]) -> None:
    side, rows = problem(6, 1)
    keep = ~np.isin(np.arange(7), gone)
    tall = with_ridge(rows, constant=False)
    np.testing.assert_allclose(hessian.refit(side.gram, side.weight, keep), fitted(tall, side.weight, keep), atol=1e-9)


def test_refit_of_inputs_next_to_nothing() -> None:
    """The ridge has a floor: beside squares of 1e-14 it is not a thousandth but a tenth of them."""
    gram = np.array([[1e-14, 5e-15, 0], [5e-15, 1e-14, 0], [0, 0, 10.0]])
    found = hessian.refit(gram, np.array([[1.0], [2.0], [3.0]]), np.array([True, False, True]))
    np.testing.assert_allclose(found, [[1 + 2 * 0.5 / 1.1], [3.0]])
