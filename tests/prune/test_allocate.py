"""Widths under a budget, against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_cli.prune import allocate
from lepton_cli.prune.allocate import Table
from lepton_cli.prune.cost import Cost, sparse


def chain(widths: list[int]) -> Cost:
    """Layers 3 -> a -> b -> ... -> 5: each costs the product of its two widths."""
    groups = len(widths)
    fixed = np.zeros((groups + 1, 2))
    fixed[0, 0], fixed[-1, 1] = 3, 5
    entries = [(g, place, 1.0) for g in range(groups) for place in (2 * g + 1, 2 * g + 2)]
    return sparse(0.0, np.ones(groups + 1), fixed, entries)


@given(st.lists(st.integers(2, 8), min_size=1, max_size=3), st.floats(0.2, 0.95), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_within_budget_and_near_the_best(channels: list[int], share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    tables = [Table(allocate.levels(c, 1, 1), np.cumsum(np.r_[0.0, random.uniform(0, 1, c - 1)])) for c in channels]
    cost = chain(channels)
    budget = max(share * cost(np.array(channels)), cost(allocate.narrowest(tables)))

    def total(widths: tuple[int, ...]) -> float:
        return sum(float(t.loss[np.flatnonzero(t.levels == w)[0]]) for t, w in zip(tables, widths, strict=True))

    found = allocate.best(tables, cost, budget)
    assert cost(found) <= budget
    everything = itertools.product(*(table.levels.tolist() for table in tables))
    best = min(total(widths) for widths in everything if cost(np.array(widths)) <= budget)
    assert total(tuple(found.tolist())) <= 1.5 * best + 0.5


@given(st.floats(0.3, 0.9), st.floats(0.3, 0.9), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_several_limits_hold_together_near_the_best(first: float, second: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    full = np.array([8, 6, 7])
    tables = [Table(allocate.levels(c, 1, 1), np.cumsum(np.r_[0.0, random.uniform(0, 1, c - 1)])) for c in full]
    time = sparse(1.0, random.uniform(0.5, 2, 3), np.zeros((3, 1)), [(g, g, 1.0) for g in range(3)])
    costs = (chain(full.tolist()), first), (time, second)
    least = allocate.narrowest(tables)
    limits = allocate.Limits([(c, max(share * c(full), c(least))) for c, share in costs])
    found = allocate.choose(tables, limits, "global")
    assert limits(found) <= 1
    everything = [np.array(w) for w in itertools.product(*(table.levels.tolist() for table in tables))]
    best = min(allocate.total(tables, widths) for widths in everything if limits(widths) <= 1)
    assert allocate.total(tables, found) <= 1.5 * best + 0.5


def test_tables_agree_with_the_cost() -> None:
    cost, widths = chain([4, 6]), np.array([4, 6])
    levels = np.array([4, 3, 1])
    assert cost.table(widths, 0, levels).tolist() == [cost(np.array([level, 6])) for level in levels]


def test_levels_are_multiples_down_to_the_least() -> None:
    assert allocate.levels(20, 5, 8).tolist() == [20, 16, 8]
    assert allocate.levels(16, 1, 1)[-1] == 1
    assert len(allocate.levels(2000, 100, 8)) < 130


def test_one_share_for_all_layers() -> None:
    tables = [Table(allocate.levels(c, 1, 1), np.zeros(c)) for c in (10, 20)]
    widths = allocate.choose(
        tables, allocate.Limits([(chain([10, 20]), 0.5 * chain([10, 20])(np.array([10, 20])))]), "layer"
    )
    assert abs(widths[0] / 10 - widths[1] / 20) < 0.1


@given(st.lists(st.integers(2, 8), min_size=1, max_size=4))
def test_a_varied_group_costs_what_its_widths_cost(channels: list[int]) -> None:
    cost, full = chain(channels), np.array(channels)
    for group, width in enumerate(channels):
        levels = np.arange(width + 1)
        each = [np.where(np.arange(len(channels)) == group, level, full) for level in levels]
        np.testing.assert_allclose(cost.table(full, group, levels), [cost(widths) for widths in each])
        assert cost.without(full)[group] == cost(each[0])
