"""Widths under a budget, against trying everything."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_cli.prune import allocate
from lepton_cli.prune.allocate import Limits, Price, Table
from lepton_cli.prune.cost import CostModel, Widths, sparse


def chain(widths: list[int]) -> CostModel:
    """Layers 3 -> a -> b -> ... -> 5: each costs the product of its two widths."""
    groups = len(widths)
    fixed = np.zeros((groups + 1, 2))
    fixed[0, 0], fixed[-1, 1] = 3, 5
    entries = [(g, place, 1.0) for g in range(groups) for place in (2 * g + 1, 2 * g + 2)]
    return sparse(0.0, np.ones(groups + 1), fixed, entries)


class Sum:
    """A cost of its own for every level of every group; they add up."""

    def __init__(self, tables: list[Table], costs: list[np.ndarray], base: float = 0.0) -> None:
        self.by_level = [
            dict(zip(table.levels.tolist(), cost.tolist(), strict=True))
            for table, cost in zip(tables, costs, strict=True)
        ]
        self.base = base

    def __call__(self, widths: Widths) -> float:
        return self.base + sum(known[int(width)] for known, width in zip(self.by_level, widths, strict=True))

    def table(self, widths: Widths, group: int, levels: Widths) -> np.ndarray:
        return np.array([self(np.array([*widths[:group], level, *widths[group + 1 :]])) for level in levels])


def drawn(channels: list[int], seed: int) -> list[Table]:
    """Random losses, rising as groups get narrower."""
    random = np.random.default_rng(seed)
    return [
        Table(np.arange(c, 0, -1), np.concatenate([[0.0], np.cumsum(random.exponential(1, c - 1))])) for c in channels
    ]


def separate(tables: list[Table], seed: int, base: float = 3.0) -> Sum:
    """Random costs that add up, falling as groups get narrower."""
    random = np.random.default_rng(seed + 1000)
    return Sum(tables, [np.sort(random.uniform(1, 5, len(table.levels)))[::-1] for table in tables], base)


def everything(tables: list[Table]) -> Iterator[Widths]:
    return (np.array(widths) for widths in itertools.product(*(table.levels.tolist() for table in tables)))


def loss(tables: list[Table], widths: Widths) -> float:
    return sum(
        float(table.loss[table.levels.tolist().index(width)]) for table, width in zip(tables, widths, strict=True)
    )


def optimum(tables: list[Table], cost: Price, budget: float) -> float:
    return min((loss(tables, w) for w in everything(tables) if cost(w) <= budget), default=np.inf)


small = st.lists(st.integers(2, 6), min_size=1, max_size=3)


@given(small, st.floats(0.05, 0.95), st.integers(0, 999))
@settings(max_examples=25)
def test_costs_that_add_up_are_solved_but_for_the_bins(channels: list[int], share: float, seed: int) -> None:
    """Every group may waste one of the 2000 bins of what lies between the narrowest and the budget."""
    tables = drawn(channels, seed)
    cost = separate(tables, seed)
    lowest = cost(np.ones(len(channels), np.int64))
    budget = lowest + share * (cost(np.array(channels)) - lowest)
    found = allocate.best(tables, cost, budget)
    assert cost(found) <= budget
    assert loss(tables, found) <= optimum(tables, cost, budget - len(channels) * (budget - lowest) / 2000) + 1e-9


@given(st.lists(st.integers(2, 5), min_size=1, max_size=2), st.floats(0.05, 0.95), st.integers(0, 999))
@settings(max_examples=25)
def test_branches_go_as_a_whole_where_that_loses_least(channels: list[int], share: float, seed: int) -> None:
    """Nothing left of a group can lose less than little left of it: losses need not rise all the way."""
    random = np.random.default_rng(seed)
    tables = [
        Table(np.append(table.levels, 0), np.append(table.loss, random.exponential(1)))
        for table in drawn(channels, seed)
    ]
    cost = separate(tables, seed)
    lowest = cost(np.zeros(len(channels), np.int64))
    budget = lowest + share * (cost(np.array(channels)) - lowest)
    found = allocate.best(tables, cost, budget)
    assert cost(found) <= budget
    assert loss(tables, found) <= optimum(tables, cost, budget - len(channels) * (budget - lowest) / 2000) + 1e-9


@given(small, st.floats(0.1, 0.95), st.integers(0, 999))
@settings(max_examples=12)
def test_products_of_widths_hold_the_budget_near_the_best(channels: list[int], share: float, seed: int) -> None:
    tables, cost = drawn(channels, seed), chain(channels)
    budget = max(share * cost(np.array(channels)), cost(np.ones(len(channels), np.int64)))
    found = allocate.best(tables, cost, budget)
    assert cost(found) <= budget
    assert loss(tables, found) <= 1.5 * optimum(tables, cost, budget) + 0.5


def test_products_of_widths_are_mostly_solved() -> None:
    """A heuristic, as each table is made with the others held: here of 12 networks it solves all but two."""
    solved = 0
    for seed in range(12):
        channels = [6, 5, 6]
        tables, cost = drawn(channels, seed), chain(channels)
        budget = (0.25 + 0.05 * seed) * cost(np.array(channels))
        found = allocate.best(tables, cost, budget)
        assert cost(found) <= budget
        solved += loss(tables, found) <= optimum(tables, cost, budget) + 1e-9
    assert solved >= 10


@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.integers(0, 999))
@settings(max_examples=4)
def test_several_limits_hold_together_near_the_best(first: float, second: float, seed: int) -> None:
    channels = [4, 3, 4]
    tables = drawn(channels, seed)
    factor = np.random.default_rng(seed).uniform(0.5, 2, 3)
    time = sparse(1.0, factor, np.zeros((3, 1)), [(g, g, 1.0) for g in range(3)])
    costs = (chain(channels), first), (time, second)
    full, least = np.array(channels), np.ones(3, np.int64)
    parts = [(c, c(least) + share * (c(full) - c(least))) for c, share in costs]
    found = allocate.choose(tables, Limits(parts), "global")
    assert all(price(found) <= budget for price, budget in parts)
    best = min(loss(tables, w) for w in everything(tables) if all(price(w) <= budget for price, budget in parts))
    assert loss(tables, found) <= 1.5 * best + 0.5


def test_of_two_limits_the_tight_one_alone_decides() -> None:
    tables = drawn([6, 6], 3)
    tight, loose = separate(tables, 3), separate(tables, 4)
    budget = 0.6 * tight(np.array([6, 6]))
    best = optimum(tables, tight, budget)
    for parts in ([(tight, budget), (loose, 1e6)], [(loose, 1e6), (tight, budget)]):
        assert loss(tables, allocate.choose(tables, Limits(parts), "global")) == pytest.approx(best)


def test_limits_that_nothing_holds_give_the_narrowest() -> None:
    tables = drawn([4, 3], 0)
    limits = Limits([(separate(tables, 0), 1e-3), (chain([4, 3]), 1e-3)])
    assert allocate.choose(tables, limits, "global").tolist() == [1, 1]
    assert allocate.choose(tables, limits, "layer").tolist() == [1, 1]
    assert allocate.best(tables, separate(tables, 0), 1e-3).tolist() == [1, 1]


def test_where_all_fits_nothing_goes() -> None:
    tables = drawn([4, 3], 0)
    cost = separate(tables, 0)
    for scope in ("global", "layer"):
        assert allocate.choose(tables, Limits([(cost, cost(np.array([4, 3])))]), scope).tolist() == [4, 3]


def test_several_costs_are_the_tightest_and_their_means() -> None:
    first, second = separate(drawn([4, 3], 0), 0), chain([4, 3])
    limits, widths = Limits([(first, 8.0), (second, 20.0)]), np.array([3, 2])
    levels = np.array([4, 2, 1])
    each = np.array([[first(np.array([level, 2])) / 8, second(np.array([level, 2])) / 20] for level in levels])
    assert limits(widths) == max(first(widths) / 8, second(widths) / 20)
    np.testing.assert_allclose(limits.table(widths, 0, levels), each.max(axis=1))
    blends = limits.blends()
    assert sorted(tuple(blend.weights) for blend in blends) == [
        (0, 1),
        (0.25, 0.75),
        (0.5, 0.5),
        (0.75, 0.25),
        (1, 0),
    ]
    for blend in blends:
        assert blend(widths) == pytest.approx(
            blend.weights[0] * first(widths) / 8 + blend.weights[1] * second(widths) / 20
        )
        np.testing.assert_allclose(blend.table(widths, 0, levels), each @ blend.weights)
    assert [blend.weights for blend in Limits([(first, 8.0)]).blends()] == [[1.0]]
    assert len(Limits([(first, 8.0), (second, 20.0), (second, 9.0)]).blends()) == 15


@given(small, st.floats(0.0, 1.0), st.integers(0, 99))
@settings(max_examples=25)
def test_the_scope_layer_gives_every_group_the_largest_share_that_fits(
    channels: list[int], share: float, seed: int
) -> None:
    tables, cost = drawn([2 * c for c in channels], seed), chain(channels)
    full = np.array([2 * c for c in channels])
    budget = max(share * cost(full), cost(np.ones(len(channels), np.int64)))
    shares = sorted({float((w - 1e-9) / c) for c in full for w in range(1, c + 1)} | {1.0}, reverse=True)
    options = [np.maximum(np.floor(full * one + 1.001e-9).astype(int), 1) for one in shares]
    wanted = next(widths for widths in options if cost(widths) <= budget)
    assert allocate.choose(tables, Limits([(cost, budget)]), "layer").tolist() == wanted.tolist()


def test_one_share_takes_the_widest_level_below_it_or_the_narrowest() -> None:
    tables = [Table(np.array([16, 12, 8]), np.zeros(3)), Table(np.array([10, 8, 6, 4, 2]), np.zeros(5))]
    cost = Sum(tables, [table.levels.astype(float) for table in tables])
    for budget, wanted in (
        (26, [16, 10]),
        (25, [12, 10]),
        (21, [12, 8]),
        (19, [12, 6]),
        (18, [12, 6]),
        (17, [8, 6]),
        (13, [8, 4]),
        (10, [8, 2]),
    ):
        assert allocate.choose(tables, Limits([(cost, budget)]), "layer").tolist() == wanted


def test_a_budget_that_only_the_fastest_hold_is_held() -> None:
    """The widest is fast, the narrowest is not, and the way between them leads over slower ones."""
    tables = drawn([4, 4], 1)
    cost = Sum(tables, [np.array([9.0, 5.0, 7.0, 8.0])] * 2)
    assert allocate.best(tables, cost, 10.0).tolist() == [3, 3]


def hull(tables: list[Table], cost: Sum, budget: float, more: float = 0.0) -> float:
    """Loss at the least price (and `more`) where loss + price x cost, minimised group by group, holds the budget."""

    def at(price: float) -> Widths:
        chosen = [int(np.argmin(t.loss + price * spent)) for t, spent in zip(tables, each, strict=True)]
        return np.array([t.levels[c] for t, c in zip(tables, chosen, strict=True)])

    each = [np.array([known[int(level)] for level in t.levels]) for t, known in zip(tables, cost.by_level, strict=True)]
    turns = [0.0]
    for table, spent in zip(tables, each, strict=True):
        for i, j in itertools.combinations(range(len(spent)), 2):
            turns.append((table.loss[j] - table.loss[i]) / (spent[i] - spent[j]))
    turns = sorted(turn for turn in turns if turn >= 0)
    for low, high in zip(turns, [*turns[1:], 2 * turns[-1] + 1], strict=True):
        if cost(at((low + high) / 2)) <= budget:
            return loss(tables, at(max((low + high) / 2, low * (1 + more))))
    raise AssertionError


def test_of_many_groups_a_price_alone_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten halvings of 45 doublings find it up to 3.1 %."""
    monkeypatch.setattr(allocate, "MANY", 5)
    monkeypatch.delattr(allocate, "_knapsack")
    monkeypatch.delattr(allocate, "_fit")
    for seed in range(5):
        channels = [8] * 6
        tables = drawn(channels, seed)
        cost = separate(tables, seed)
        budget = 0.7 * cost(np.array(channels))
        best, near = hull(tables, cost, budget), hull(tables, cost, budget, 2 ** (45 / 2**10) - 1)
        for found in (allocate.best(tables, cost, budget), allocate.choose(tables, Limits([(cost, budget)]), "global")):
            assert cost(found) <= budget
            assert best - 1e-9 <= loss(tables, found) <= near + 1e-9
    with pytest.raises(NameError):
        allocate.best(tables[:5], separate(tables[:5], 0), 12.0)


def test_of_many_groups_one_share_for_all_is_offered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every step loses more than the one before, a price takes all or nothing from groups alike."""
    monkeypatch.setattr(allocate, "MANY", 1)
    levels = np.array([4, 3, 2, 1])
    tables = [Table(levels, np.array([0.0, 2.9, 3.0, 3.1]))] * 2
    cost = Sum(tables, [levels.astype(float)] * 2)
    assert allocate.best(tables, cost, 6.0).tolist() in ([3, 3], [1, 1])
    assert loss(tables, allocate.best(tables, cost, 6.0)) == 5.8


def test_total_is_the_sum_of_the_losses_at_these_widths() -> None:
    tables = [Table(np.array([4, 2]), np.array([0.0, 1.5])), Table(np.array([6, 3, 1]), np.array([0.25, 1.0, 9.0]))]
    assert allocate.total(tables, np.array([2, 3])) == 2.5
    assert allocate.total(tables, np.array([4, 6])) == 0.25


class Scaled:
    """A cost in another unit."""

    def __init__(self, cost: Price, unit: float) -> None:
        self.cost, self.unit = cost, unit

    def __call__(self, widths: Widths) -> float:
        return self.cost(widths) * self.unit

    def table(self, widths: Widths, group: int, levels: Widths) -> np.ndarray:
        return self.cost.table(widths, group, levels) * self.unit


@pytest.mark.parametrize("many", [1, 200])
@pytest.mark.parametrize("unit", [2.0**-28, 2.0**20])
def test_the_unit_of_a_cost_does_not_matter(many: int, unit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers of two: every sum and product is the same but for the exponent."""
    monkeypatch.setattr(allocate, "MANY", many)
    for seed in range(3):
        channels = [5, 4, 6]
        tables, cost = drawn(channels, seed), chain(channels)
        budget = 0.5 * cost(np.array(channels))
        found = allocate.best(tables, cost, budget)
        assert allocate.best(tables, Scaled(cost, unit), unit * budget).tolist() == found.tolist()
        steps = allocate._fit(tables, Limits([(cost, budget)]), np.array(channels))
        scaled = allocate._fit(tables, Limits([(Scaled(cost, unit), unit * budget)]), np.array(channels))
        assert scaled.tolist() == steps.tolist()


def test_small_savings_are_weighed_too() -> None:
    """The first group loses 10 for each unit saved, the second 4 of those needed, though the first step loses less;
    where its saving is enough, it goes."""
    tables = [Table(np.array([2, 1]), np.array([0.0, 1.0])), Table(np.array([2, 1]), np.array([0.0, 2.0]))]
    cost = Sum(tables, [np.array([1.0, 0.9]), np.array([1.0, 0.2])])
    for budget, wanted in ((1.5, [2, 1]), (1.9, [1, 2])):
        assert allocate._fit(tables, Limits([(cost, budget)]), np.array([2, 2])).tolist() == wanted


@given(small, st.floats(0.1, 0.95), st.floats(0.1, 0.95), st.integers(0, 999))
@settings(max_examples=25)
def test_a_sweep_holds_all_budgets_near_the_best(channels: list[int], one: float, two: float, seed: int) -> None:
    """What its weights miss between two costs are few levels, and budgets hold where any widths hold them."""
    tables, cost, other = drawn(channels, seed), chain(channels), separate(drawn(channels, seed), seed)
    full, narrow = np.array(channels), np.ones(len(channels), np.int64)
    budgets = [max(one * cost(full), cost(narrow)), max(two * other(full), other(narrow))]
    limits = Limits(list(zip((cost, other), budgets, strict=True)))
    found = allocate.Sweep(tables, (cost, other), 6).within(budgets)
    assert found is not None
    assert limits(found) <= 1
    least = min(loss(tables, w) for w in everything(tables) if limits(w) <= 1)
    assert least <= loss(tables, found) + 1e-9
    widest = max(table.loss[-1] for table in tables)
    assert loss(tables, found) <= least + widest


def test_a_sweep_loses_little_more_than_the_knapsack() -> None:
    quick = thorough = 0.0
    for seed in range(8):
        channels = [16, 12, 8, 16]
        tables, cost = drawn(channels, seed), chain(channels)
        sweep = allocate.Sweep(tables, (cost,), 16)
        for share in (0.3, 0.4, 0.6):  # one sweep serves them all
            budget = share * cost(np.array(channels))
            best = allocate.choose(tables, Limits([(cost, budget)]), "global")
            found = sweep.within([budget])
            assert found is not None
            assert cost(found) <= budget
            assert cost(best) <= budget
            quick, thorough = quick + loss(tables, found), thorough + loss(tables, best)
    assert quick <= 1.1 * thorough


def test_a_sweep_leaves_what_fits_and_finds_nothing_where_nothing_does() -> None:
    tables, cost = drawn([6, 5, 6], 1), chain([6, 5, 6])
    full, narrow = np.array([6, 5, 6]), np.ones(3, np.int64)
    sweep = allocate.Sweep(tables, (cost,), 8)
    whole, least = sweep.within([cost(full)]), sweep.within([cost(narrow)])
    assert whole is not None
    assert whole.tolist() == [6, 5, 6]
    assert least is not None
    assert least.tolist() == [1, 1, 1]
    assert sweep.within([0.9 * cost(narrow)]) is None
