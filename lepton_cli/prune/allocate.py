"""Which width for which group: the least loss under a budget, by dynamic programming over sensitivity tables."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lepton_cli.prune.cost import Widths

Losses = NDArray[np.float64]
#: Steps the budget is divided into.
BINS = 2_000
#: Groups up to which the exact methods are used.
MANY = 200
#: Weights tried for each of several costs, from none to all.
BLENDS = 5
#: Weights of a sweep lie between 2 to minus this power and 2 to half of it; so many widths of it on either side of the
#: budgets are fitted to them.
SPAN, STARTS = 24, 2
#: Weights are no closer than by two to this power.
FINEST = 0.25


class Price(Protocol):
    """What widths cost: multiply-accumulates, parameters, bytes (`cost.CostModel`) or measured time (`times.Times`)."""

    def __call__(self, widths: Widths) -> float:
        """Cost of these widths."""
        ...

    def table(self, widths: Widths, group: int, levels: Widths) -> Losses:
        """Cost at every level of one group, the others as in `widths`."""
        ...


@dataclasses.dataclass(frozen=True)
class Limits:
    """Several costs as one: the share of its budget that the tightest takes, so that all hold at 1 and below."""

    parts: Sequence[tuple[Price, float]]

    def __call__(self, widths: Widths) -> float:
        """Largest share of a budget that is used."""
        return max(self.shares(widths))

    def shares(self, widths: Widths) -> list[float]:
        """Of every budget."""
        return [price(widths) / budget for price, budget in self.parts]

    def table(self, widths: Widths, group: int, levels: Widths) -> Losses:
        """The same at every level of one group, the others as in `widths`."""
        shares = [price.table(widths, group, levels) / budget for price, budget in self.parts]
        return np.asarray(np.max(shares, axis=0))

    def blends(self) -> list[Blend]:
        """Weighted means of the shares, which add up over groups where their maximum does not."""
        steps = BLENDS - 1 if len(self.parts) > 1 else 1
        mixes = itertools.product(range(steps + 1), repeat=len(self.parts))
        return [Blend(self.parts, [part / steps for part in mix]) for mix in mixes if sum(mix) == steps]


@dataclasses.dataclass(frozen=True)
class Blend:
    """A weighted mean of the shares that several costs take of their budgets."""

    parts: Sequence[tuple[Price, float]]
    weights: Sequence[float]

    def __call__(self, widths: Widths) -> float:
        """Mean share."""
        return sum(w * price(widths) / budget for w, (price, budget) in zip(self.weights, self.parts, strict=True))

    def table(self, widths: Widths, group: int, levels: Widths) -> Losses:
        """The same at every level of one group, the others as in `widths`."""
        shares = [price.table(widths, group, levels) / budget for price, budget in self.parts]
        return np.asarray(np.tensordot(self.weights, shares, 1))


@dataclasses.dataclass(frozen=True)
class Table:
    """Levels of one group, widest first, and the loss at each; level 0 stands for the whole branch dropped."""

    levels: Widths
    loss: Losses


def levels(channels: int, least: int, round_to: int, most: int = 96) -> Widths:
    """Widths to choose from: the full one, then multiples of `round_to` down to `least`, at most about `most`."""
    step = round_to * max(1, -(-(channels - least) // (most * round_to)))
    lower = [width for width in range((channels - 1) // step * step, 0, -step) if width >= least]
    floor = -(-least // round_to) * round_to
    if floor < channels and floor not in lower:
        lower.append(floor)
    return np.array([channels, *lower], np.int64)


def narrowest(tables: Sequence[Table]) -> Widths:
    """Every group at its least width."""
    return np.array([table.levels[-1] for table in tables], np.int64)


def fastest(tables: Sequence[Table], cost: Price) -> Widths:
    """Every group at the level that costs least, which need not be the narrowest where cost is time."""
    widths = narrowest(tables)
    for _ in range(3):
        before = widths.copy()
        for g, table in enumerate(tables):
            widths[g] = table.levels[int(np.argmin(cost.table(widths, g, table.levels)))]
        if np.array_equal(before, widths):
            break
    return widths


def choose(tables: Sequence[Table], limits: Limits, scope: str) -> Widths:
    """Widths of least summed loss that hold all limits; with the scope `layer` the same share of channels everywhere.

    Where no widths hold them all, some of the nearest.
    """
    if scope == "layer":
        return _uniform(tables, limits, 1.0)
    found = _Best(tables, limits, 1.0)
    for blend in limits.blends():
        widths = best(tables, blend, 1.0)
        if limits(widths) > 1:
            many = len(tables) > MANY
            widths = _priced(tables, limits, 1.0, halvings=10) if many else _fit(tables, limits, widths)
        found.offer(widths)
    return widths if found.widths is None else found.widths


class Sweep:
    """Widths for many budgets of the same prices: those that minimise loss + weight x cost, summed over the prices, for
    weights of each that spread its cost evenly. What loses least lies between them (Everett, Generalized Lagrange
    multiplier method for solving problems of optimum allocation of resources, 1963)."""

    def __init__(self, tables: Sequence[Table], prices: Sequence[Price], steps: int) -> None:
        """`steps`: weights of each price, besides none."""
        self.tables, self.prices = tables, prices
        full = np.array([table.levels[0] for table in tables], np.int64)
        self._found: dict[bytes, Widths] = {full.tobytes(): full}
        parts = [(price, max(price(full), 1e-12)) for price in prices]
        weights = [[0.0, *self._spread(part, steps)] for part in parts]
        for chosen in itertools.product(*weights) if len(parts) > 1 else ():
            full = self._add(_weighed(tables, Blend(parts, chosen), 1.0, full if chosen[-1] else None))
        self._widths = list(self._found.values())
        self._losses = np.array([total(tables, widths) for widths in self._widths])
        self._costs = np.array([[price(widths) for price in prices] for widths in self._widths])

    def _add(self, widths: Widths) -> Widths:
        return self._found.setdefault(widths.tobytes(), widths)

    def _spread(self, part: tuple[Price, float], steps: int) -> list[float]:
        """Weights at which the cost falls in even steps, of those tried from nothing to the least widths."""

        def at(power: float) -> float:
            return part[0](self._add(_weighed(self.tables, Blend([part], [2.0**power]), 1.0)))

        costs = {power: at(power) for power in np.arange(-SPAN, SPAN / 2 + 1, FINEST * 2**4).tolist()}
        step = abs(costs[-SPAN] - costs[SPAN / 2]) / steps
        while True:
            powers = sorted(costs)
            between = [
                (low + high) / 2
                for low, high in itertools.pairwise(powers)
                if high - low > FINEST and abs(costs[low] - costs[high]) > step
            ]
            if not between:
                break
            costs.update((power, at(power)) for power in between)
        wanted = np.linspace(costs[-SPAN], costs[SPAN / 2], steps + 1)[1:]
        return sorted({2.0 ** min(powers, key=lambda power: abs(costs[power] - cost)) for cost in wanted})

    def within(self, budgets: Sequence[float]) -> Widths | None:
        """What loses least and holds all budgets: the nearest of the sweep, made narrower until they hold, and wider
        while they do; `None`: nothing holds them."""
        shares = np.max(self._costs / np.maximum(budgets, 1e-12), axis=1)
        held, missed = np.flatnonzero(shares <= 1), np.flatnonzero(shares > 1)
        starts = [
            *held[np.argsort(self._losses[held], kind="stable")][:STARTS],
            *missed[np.argsort(shares[missed], kind="stable")][:STARTS],
        ]
        limits = Limits(list(zip(self.prices, budgets, strict=True)))
        fitted = [_fit(self.tables, limits, self._widths[start]) for start in starts]
        fitting = [widths for widths in fitted if limits(widths) <= 1]
        return min(fitting, key=lambda widths: total(self.tables, widths), default=None)


def best(tables: Sequence[Table], cost: Price, budget: float) -> Widths:
    """Widths of least summed loss with `cost <= budget` (the caller has checked that the narrowest widths fit).

    Costs of neighbouring groups multiply, so each is tabulated with the others held at the last solution, and the
    knapsack is solved again until nothing improves. Beyond `MANY` groups a price alone decides: the rest takes time
    that grows with the square of their number and more.
    """
    found, limits = _Best(tables, cost, budget), Limits([(cost, budget)])
    widths = found.offer(_uniform(tables, cost, budget))
    if len(tables) > MANY:
        widths = found.offer(_priced(tables, cost, budget, halvings=10))
        return widths if found.widths is None else found.widths
    # Offered as they are too: widening a group that would better go as a whole loses more.
    for start in (widths, found.offer(_priced(tables, cost, budget))):
        widths = found.offer(_fit(tables, limits, start))
    widths = found.offer(fastest(tables, cost)) if found.widths is None else found.widths
    goal = budget
    for _ in range(12):
        costs = [_relative(cost.table(widths, g, table.levels)) for g, table in enumerate(tables)]
        least = cost(widths) - sum(
            float(c[np.flatnonzero(t.levels == w)[0]]) for c, t, w in zip(costs, tables, widths, strict=True)
        )
        chosen = _knapsack([table.loss for table in tables], costs, goal - least)
        proposal = np.array([table.levels[c] for table, c in zip(tables, chosen, strict=True)], np.int64)
        spent = cost(found.offer(proposal))
        widths = found.offer(_fit(tables, limits, proposal))
        goal *= 1 + 0.7 * (budget - spent) / max(spent, 1e-9)
    return widths if found.widths is None else found.widths


class _Best:
    """The widths of least loss, of those offered that hold the budget."""

    def __init__(self, tables: Sequence[Table], cost: Price, budget: float) -> None:
        self._tables, self._cost, self._budget = tables, cost, budget
        self._loss = np.inf
        self.widths: Widths | None = None

    def offer(self, widths: Widths) -> Widths:
        """Remember these if they are better; returns them."""
        loss = total(self._tables, widths)
        if loss < self._loss and self._cost(widths) <= self._budget:
            self._loss, self.widths = loss, widths
        return widths


def _priced(tables: Sequence[Table], cost: Price, budget: float, halvings: int = 40) -> Widths:
    """Widths that minimise loss + price x cost, group by group, at the price where the budget just holds."""

    low, high = -30.0, 15.0
    unit = 1 / max(cost(np.array([table.levels[0] for table in tables], np.int64)), 1e-9)
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(_weighed(tables, cost, 2.0**middle * unit)) <= budget else (middle, high)
    return _weighed(tables, cost, 2.0**high * unit)


def _weighed(tables: Sequence[Table], cost: Price, price: float, start: Widths | None = None) -> Widths:
    """Widths that minimise loss + price x cost, group by group until nothing changes; from the full ones by default."""
    widths = np.array([table.levels[0] for table in tables], np.int64) if start is None else start.copy()
    for _ in range(4):
        before = widths.copy()
        for g, table in enumerate(tables):
            widths[g] = table.levels[int(np.argmin(table.loss + price * cost.table(widths, g, table.levels)))]
        if np.array_equal(before, widths):
            break
    return widths


def _relative(costs: Losses) -> Losses:
    return np.asarray(costs - costs.min())


def total(tables: Sequence[Table], widths: Widths) -> float:
    """Summed loss of these widths."""
    return float(
        sum(table.loss[np.flatnonzero(table.levels == width)[0]] for table, width in zip(tables, widths, strict=True))
    )


def _knapsack(losses: Sequence[Losses], costs: Sequence[Losses], budget: float) -> list[int]:
    """Level of every group with the least loss within the budget (costs rounded up to bins)."""
    if budget <= 0:
        return [len(loss) - 1 for loss in losses]
    unit = budget / BINS
    value = np.zeros(BINS + 1)
    choices = []
    for loss, cost in zip(losses, costs, strict=True):
        bins = np.ceil(cost / unit - 1e-9).astype(np.int64)
        options = np.full((len(loss), BINS + 1), np.inf)
        for level, size in enumerate(bins):
            if size <= BINS:
                options[level, size:] = value[: BINS + 1 - size] + loss[level]
        choices.append((np.argmin(options, axis=0), bins))
        value = options.min(axis=0)
    place = BINS
    chosen = []
    for choice, bins in reversed(choices):
        level = int(choice[place])
        chosen.append(level)
        place -= int(min(bins[level], place))
    return chosen[::-1]


def _fit(tables: Sequence[Table], limits: Limits, start: Widths) -> Widths:
    """Narrow the cheapest group step by step until the limits hold, then widen again what still fits."""
    place = np.array([np.flatnonzero(t.levels == w)[0] for t, w in zip(tables, start, strict=True)])
    _walk(tables, limits, place, +1)
    _walk(tables, limits, place, -1)
    return np.array([table.levels[at] for table, at in zip(tables, place, strict=True)], np.int64)


def _walk(tables: Sequence[Table], limits: Limits, place: NDArray[np.int64], direction: int) -> None:
    """Move one group by one level (`place`, in place) at a time, which loses least for what it saves: narrower (+1)
    until the limits hold, or wider (-1) while they do.

    What a step is worth falls as others are made, so that of those known only the best is looked at again (Minoux,
    Accelerated greedy algorithms for maximizing submodular set functions, 1978).
    """
    narrower, made = direction > 0, 0
    widths = np.array([table.levels[at] for table, at in zip(tables, place, strict=True)], np.int64)

    def used() -> tuple[float, bool]:
        """What a step should save or spend little of, and whether the limits hold."""
        shares = limits.shares(widths)
        return sum(max(share - 1, 0.0) for share in shares) if narrower else sum(shares), max(shares) <= 1

    now, held = used()

    def worth(group: int) -> float | None:
        """What the next step of a group loses for each unit; `None`: it cannot be made."""
        to, table = place[group] + direction, tables[group]
        if not 0 <= to < len(table.levels):
            return None
        before, widths[group] = widths[group], table.levels[to]
        after, holds = used()
        widths[group] = before
        changed = direction * (now - after)
        if not narrower and not holds:
            return None
        if narrower and changed <= 0:
            return np.inf
        return float(table.loss[to] - table.loss[place[group]]) / max(changed, 1e-30)

    def add(group: int) -> None:
        value = worth(group)
        if value is not None:
            heapq.heappush(queue, (value, group, made))

    queue: list[tuple[float, int, int]] = []
    for group in range(len(tables)) if held != narrower else ():
        add(group)
    while queue:
        value, group, seen = heapq.heappop(queue)
        if seen == made:
            if value == np.inf:
                break
            place[group] += direction
            widths[group] = tables[group].levels[place[group]]
            (now, held), made = used(), made + 1
            if narrower and held:
                break
        add(group)


def _uniform(tables: Sequence[Table], cost: Price, budget: float) -> Widths:
    """The same share in every group, as wide as the budget allows."""
    full = np.array([table.levels[0] for table in tables], np.int64)
    if cost(full) <= budget:
        return full
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(_share(tables, middle)) <= budget else (low, middle)
    return _share(tables, low)


def _share(tables: Sequence[Table], share: float) -> Widths:
    """The widest level of every group that is at most `share` of its channels (or its narrowest)."""
    chosen = []
    for table in tables:
        fitting = table.levels[table.levels <= share * table.levels[0] + 1e-9]
        chosen.append(fitting[0] if len(fitting) else table.levels[-1])
    return np.array(chosen, np.int64)
