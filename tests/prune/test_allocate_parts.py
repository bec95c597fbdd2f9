"""The parts of the search for widths, each for itself: levels, the fastest, the knapsack, the last steps, one price."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_cli.prune import allocate
from lepton_cli.prune.allocate import Limits, Price, Table
from lepton_cli.prune.cost import Widths
from tests.prune.test_allocate import Sum, chain, drawn, everything, hull, loss, separate, small


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([4, 96]))
def test_levels_are_multiples_from_the_full_width_to_the_least(
    channels: int, least: int, multiple: int, most: int
) -> None:
    least = min(least, channels)
    step = next(k for k in itertools.count(1) if k * multiple * most >= channels - least) * multiple
    wanted = {width for width in range(step, channels, step) if width >= least}
    floor = next(width for width in itertools.count(multiple, multiple) if width >= least)
    wanted |= {floor} if floor < channels else set()
    found = allocate.levels(channels, least, multiple, most)
    assert found.tolist() == [channels, *sorted(wanted, reverse=True)]
    assert len(found) <= most + 3


def test_levels_of_wide_groups_are_about_a_hundred() -> None:
    assert allocate.levels(20, 5, 8).tolist() == [20, 16, 8]
    assert allocate.levels(97, 1, 1).tolist() == list(range(97, 0, -1))
    assert allocate.levels(98, 1, 1).tolist() == [98, *range(96, 0, -2), 1]


@given(small, st.integers(0, 999))
@settings(max_examples=25)
def test_the_fastest_levels_are_found_where_narrower_can_be_slower(channels: list[int], seed: int) -> None:
    tables, random = drawn(channels, seed), np.random.default_rng(seed)
    cost = Sum(tables, [random.uniform(1, 5, c) for c in channels])
    assert cost(allocate.fastest(tables, cost)) == min(cost(widths) for widths in everything(tables))
    assert allocate.narrowest(tables).tolist() == [1] * len(channels)


def test_the_fastest_levels_are_looked_for_again_when_others_changed() -> None:
    """The first group should be wide only where the second is."""

    class Pair(Sum):
        def __call__(self, widths: Widths) -> float:
            return {(1, 1): 3.0, (2, 1): 4.0, (1, 2): 2.0, (2, 2): 1.0}[int(widths[0]), int(widths[1])]

    tables = drawn([2, 2], 0)
    assert allocate.fastest(tables, Pair(tables, [np.zeros(2)] * 2)).tolist() == [2, 2]


@given(st.integers(1, 4), st.integers(0, 999), st.integers(0, 24))
@settings(max_examples=25)
def test_the_knapsack_is_exact_in_whole_bins(groups: int, seed: int, budget: int) -> None:
    random = np.random.default_rng(seed)
    losses = [np.sort(random.uniform(0, 3, 4)) for _ in range(groups)]
    costs = [np.sort(np.concatenate([[0], random.integers(0, 9, 3)]))[::-1].astype(float) for _ in range(groups)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocate, "BINS", budget)
        found = allocate._knapsack(losses, costs, float(budget))
    if budget == 0:
        assert found == [3] * groups
        return
    options = [
        (sum(loss[c] for loss, c in zip(losses, chosen, strict=True)), chosen)
        for chosen in itertools.product(range(4), repeat=groups)
        if sum(cost[c] for cost, c in zip(costs, chosen, strict=True)) <= budget
    ]
    assert sum(cost[c] for cost, c in zip(costs, found, strict=True)) <= budget
    assert sum(loss[c] for loss, c in zip(losses, found, strict=True)) == pytest.approx(min(options)[0])


def test_the_knapsack_rounds_costs_up() -> None:
    losses = [np.array([0.0, 1.0]), np.array([0.0, 1.5])]
    assert allocate._knapsack(losses, [np.array([0.5, 0.0])] * 2, 1.0) == [0, 0]
    assert allocate._knapsack(losses, [np.array([0.5001, 0.0])] * 2, 1.0) == [1, 0]
    assert allocate._knapsack(losses, [np.array([1.0, 0.0]), np.array([1.01, 0.0])], 1.0) == [0, 1]


def walked(tables: list[Table], cost: Price, budget: float, start: list[int]) -> list[int]:
    """Down while too dear, by the least loss for what is saved of the excess; then up while it fits, by the most loss
    for what is spent."""
    places = [table.levels.tolist().index(width) for table, width in zip(tables, start, strict=True)]

    def at(where: list[int]) -> tuple[float, float]:
        widths = np.array([table.levels[place] for table, place in zip(tables, where, strict=True)])
        return cost(widths), loss(tables, widths)

    for step in (1, -1):
        while step == -1 or at(places)[0] > budget:
            moves = []
            for g, table in enumerate(tables):
                trial = [place + step * (g == k) for k, place in enumerate(places)]
                if not 0 <= trial[g] < len(table.levels):
                    continue
                spent, lost = np.subtract(at(trial), at(places))
                if at(trial)[0] <= budget if step == -1 else spent < 0:
                    used = spent if step == -1 else min(-spent, at(places)[0] - budget)
                    moves.append((lost / max(used, 1e-30), trial))
            if not moves:
                break
            places = min(moves)[1]
    return [int(table.levels[place]) for table, place in zip(tables, places, strict=True)]


@given(small, st.floats(0.01, 1.0), st.integers(0, 999))
@settings(max_examples=100)
def test_the_last_steps_are_the_cheapest(channels: list[int], share: float, seed: int) -> None:
    tables, cost = drawn(channels, seed), chain(channels)
    random = np.random.default_rng(seed)
    start = [int(random.integers(1, c + 1)) for c in channels]
    budget = share * cost(np.array(channels))
    found = allocate._fit(tables, Limits([(cost, budget)]), np.array(start))
    assert found.tolist() == walked(tables, cost, budget, start)


def test_steps_down_take_only_what_is_faster() -> None:
    """The second group's next level is slower and costs no loss; the first's is taken."""
    tables = [Table(np.array([2, 1]), np.array([0.0, 5.0])), Table(np.array([2, 1]), np.array([0.0, 0.0]))]
    cost = Sum(tables, [np.array([2.0, 1.0]), np.array([2.0, 2.5])])
    assert allocate._fit(tables, Limits([(cost, 3.0)]), np.array([2, 2])).tolist() == [1, 2]
    same = Sum(tables, [np.array([2.0, 1.0]), np.array([2.0, 2.0])])
    assert allocate._fit(tables, Limits([(same, 3.0)]), np.array([2, 2])).tolist() == [1, 2]


@given(small, st.floats(0.05, 0.95), st.integers(0, 999))
@settings(max_examples=25)
def test_one_price_for_all_groups_just_holds_the_budget(channels: list[int], share: float, seed: int) -> None:
    tables = drawn(channels, seed)
    cost = separate(tables, seed)
    lowest = cost(np.ones(len(channels), np.int64))
    budget = lowest + share * (cost(np.array(channels)) - lowest)
    found = allocate._priced(tables, cost, budget)
    assert cost(found) <= budget
    assert loss(tables, found) == pytest.approx(hull(tables, cost, budget))
