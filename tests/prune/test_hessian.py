"""Optimal-brain ranking against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lepton_cli.prune import hessian
from lepton_cli.prune.hessian import Side


def problem(channels: int, each: int, seed: int = 0) -> Side:
    random = np.random.default_rng(seed)
    size = channels * each
    x = random.normal(size=(500, size)) @ random.normal(size=(size, size)) / size
    rows = np.concatenate([x, np.ones((500, 1))], axis=1)
    return Side(rows.T @ rows, random.normal(size=(size + 1, 4)), np.arange(size).reshape(channels, each))


def loss(side: Side, gone: tuple[int, ...]) -> float:
    """Least squared error of the layer's output without these channels, as a share of its variance."""
    keep = np.ones(len(side.gram), bool)
    keep[side.blocks[list(gone)].ravel()] = False
    fitted = hessian.refit(side.gram, side.weight, keep)
    change = side.weight.copy()
    change[keep] -= fitted
    return float(np.sum(change * (side.gram @ change))) / hessian.energy(side.gram, side.weight)


@pytest.mark.parametrize("each", [1, 3])
def test_first_removal_is_the_cheapest(each: int) -> None:
    side = problem(6, each)
    ranking = hessian.rank([side], 1)
    costs = [loss(side, (channel,)) for channel in range(6)]
    assert costs[ranking.order[0]] <= 1.2 * min(costs)
    assert ranking.loss[0] == pytest.approx(min(costs), rel=0.2, abs=1e-3)


def test_greedy_is_close_to_the_best_subset() -> None:
    side = problem(7, 2)
    ranking = hessian.rank([side], 3)
    best = min(loss(side, gone) for gone in itertools.combinations(range(7), 4))
    assert loss(side, tuple(ranking.order[:4])) <= 1.5 * best
    assert ranking.loss[3] == pytest.approx(loss(side, tuple(ranking.order[:4])), rel=0.2)


def test_removal_in_shares_agrees_with_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    side = problem(40, 1)
    one = hessian.rank([side], 10)
    monkeypatch.setattr(hessian, "ONE_BY_ONE", 8)
    many = hessian.rank([side], 10)
    assert loss(side, tuple(many.order[:30])) <= 1.2 * loss(side, tuple(one.order[:30]))


def test_consumers_are_weighed_together() -> None:
    first, second = problem(5, 1, 0), problem(5, 1, 1)
    costs = [loss(first, (channel,)) + loss(second, (channel,)) for channel in range(5)]
    assert hessian.rank([first, second], 4).order[0] == int(np.argmin(costs))
