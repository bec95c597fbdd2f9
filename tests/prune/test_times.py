"""Time as a cost: what is measured together is told apart, and what meets in one node is not counted twice."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli.coupling import branches
from lepton_cli.coupling.links import Group, Port
from lepton_cli.graph import cost as node_cost
from lepton_cli.graph import shapes
from lepton_cli.machine import machine
from lepton_cli.prune import analysis, depth, times
from lepton_cli.prune.spec import PruneChannels
from tests.coupling.networks import Network
from tests.prune.context import redundant


class Clock:
    """Takes a model's multiply-accumulates for its time."""

    def __init__(self, model: ir.Model) -> None:
        self.whole = self.count(model)
        self.noise = 1e-4

    def count(self, model: ir.Model) -> float:
        return float(sum(node_cost.macs(model, shapes.concrete(model, {"x": (1, 3, 8, 8)})).values()))

    def ratios(
        self, candidates: Sequence[Callable[[], ir.Model]], seconds: float, done: Callable[[], object]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        found = np.array([self.count(candidate()) / self.whole for candidate in candidates])
        return found, np.full(len(found), self.noise)


@pytest.fixture
def any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose vector blocks hold one channel."""
    monkeypatch.setattr(times, "block", lambda group: 1)


def measured(model: ir.Model) -> tuple[depth.Columns, times.Times, Clock, list[NDArray[np.int64]]]:
    found = analysis.analysed(model, PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})
    columns = depth.columns(found, branches.find(found.model, found.coupling.facts))
    levels = [np.arange(group.channels, 1, -2) for group in found.groups]
    levels = [np.append(level, 0) if k in columns.branches else level for k, level in enumerate(levels)]
    clock = Clock(found.model)
    trials = times.trials(columns)
    ratios, errors = times.measure(columns, trials, clock, lambda: None, 7.0)  # type: ignore[arg-type]
    return columns, times.fitted(columns, trials, ratios, errors), clock, levels


def test_predictions_of_residual_networks() -> None:
    columns, cost, clock, levels = measured(redundant())
    random = np.random.default_rng(0)
    orders = [np.arange(group.channels) for group in columns.plan.groups]
    for _ in range(20):
        widths = np.array([random.choice(level) for level in levels])
        assert cost(widths) == pytest.approx(clock.count(columns.cut(widths, orders)) / clock.whole, rel=0.03)
    for column, level in enumerate(levels):
        table = cost.table(widths, column, level)
        trial = widths.copy()
        for value, width in zip(table, level, strict=True):
            trial[column] = width
            assert value == pytest.approx(cost(trial))


def test_neighbours_that_share_a_node() -> None:
    n = Network()
    x = n.input("x", "batch", 3, 8, 8)
    for before, after in ((3, 16), (16, 16), (16, 16), (16, 4)):
        x = n.node("Relu", n.conv(x, before, after))
    columns, cost, clock, _ = measured(n.model(n.node("GlobalAveragePool", x)))
    widths = columns.full // 2
    orders = [np.arange(group.channels) for group in columns.plan.groups]
    assert cost(widths) == pytest.approx(clock.count(columns.cut(widths, orders)) / clock.whole, rel=0.02)


def test_layers_alike_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "block", lambda group: 4)
    found = analysis.analysed(redundant(), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})
    columns = depth.columns(found, branches.find(found.model, found.coupling.facts))
    trials = times.trials(columns)
    inner = [trial for trial in trials if set(trial.members) <= columns.branches.keys()]
    assert [(len(trial.members), trial.width) for trial in inner] == [(2, 8), (2, 4), (2, 1), (2, 0)]


def test_noise_is_weighed_against_the_work_saved() -> None:
    """Both by their precision: half of the guess is doubted, and the measurement by its error."""
    assert times._weighed(0.5, 0.1, 0.4) == pytest.approx((0.5 * 0.2**2 + 0.4 * 0.1**2) / (0.2**2 + 0.1**2))
    assert times._weighed(0.2, 0.3, -0.4) == pytest.approx((0.2 * 0.2**2 - 0.4 * 0.3**2) / (0.2**2 + 0.3**2))
    assert times._weighed(0.5, 0.0, 0.4) == pytest.approx(0.5)
    assert times._weighed(0.5, 1e9, 0.4) == pytest.approx(0.4)
    assert times._weighed(0.2, 0.1, 0.0) == 0.0
    assert times._weighed(0.2, 0.0, 0.0) == 0.0


def known() -> times.Times:
    """Three nodes; two columns meet in the second; the second column's branch is the second and third."""
    return times.Times(
        1.0,
        np.array([0.2, 0.4, 0.4]),
        np.array([[True, False, False, False], [True, True, True, False], [False, True, False, False]]),
        {1: np.array([False, True, True])},
        [
            (np.array([2, 4]), np.array([0.3, 0.0])),
            (np.array([0, 1, 2]), np.array([0.6, 0.2, 0.0])),
            (np.array([1, 2]), np.array([0.5, 0.0])),
            (np.array([1, 2]), np.array([0.05, 0.0])),
        ],
    )


@pytest.mark.parametrize(
    ("widths", "wanted"),
    [
        ((4, 2, 2, 2), 1.0),
        ((2, 2, 2, 2), 0.7),
        ((3, 2, 2, 2), 0.85),
        ((4, 1, 2, 2), 0.8),
        # Half and three quarters are left: 0.5 of the first node, 0.375 of the second, 0.75 of the third.
        ((2, 1, 2, 2), 0.2 * 0.5 + 0.4 * 0.375 + 0.4 * 0.75),
        # The branch goes, saves 0.6 and not the 0.8 that its nodes take; half of the first node is left.
        ((4, 0, 2, 2), 0.4),
        ((2, 0, 2, 2), 0.4 - 0.1),
        # More is saved than the only node takes: that node is gone, and the rest comes on top.
        ((4, 2, 1, 2), 0.5),
        ((2, 2, 1, 2), 0.2 * 0.5 + 0.4 * 0 + 0.4 - 0.1),
        # No node of its own.
        ((4, 2, 2, 1), 0.95),
        ((2, 2, 1, 1), 0.4 - 0.05),
        ((2, 0, 1, 1), 0.4 - 0.1 - 0.1 - 0.05),
    ],
)
def test_savings_multiply_where_columns_meet_and_add_up_elsewhere(widths: tuple[int, ...], wanted: float) -> None:
    cost = known()
    assert cost(np.array(widths)) == pytest.approx(wanted)
    for column, (choice, _) in enumerate(cost.saved):
        trial = np.array(widths)
        for level, value in zip(choice, cost.table(np.array(widths), column, choice), strict=True):
            trial[column] = level
            assert value == pytest.approx(cost(trial))


class Straight:
    """Time as a sum over layers, a share of each by its output channels; remembers the widths that it was asked for."""

    def __init__(self, model: ir.Model, first: float = 1.0, error: float = 0.0) -> None:
        self.full = self.sizes(model)
        self.first, self.error = first, error
        self.seconds = 0.0
        self.asked: list[dict[str, int]] = []

    def sizes(self, model: ir.Model) -> dict[str, int]:
        return {node.name: node.inputs[1].const_value.shape[0] for node in model.graph if node.op_type == "Conv"}

    def share(self, model: ir.Model) -> float:
        now = self.sizes(model)
        return 1 - sum(0.1 * (1 - now.get(name, 0) / size) for name, size in self.full.items())

    def ratios(
        self, candidates: Sequence[Callable[[], ir.Model]], seconds: float, done: Callable[[], object]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        models = [candidate() for candidate in candidates]
        self.asked, self.seconds = [self.sizes(model) for model in models], seconds
        done()
        return self.first * np.array([self.share(model) for model in models]), np.full(len(models), self.error)


def straight(first: float = 1.0, error: float = 0.0) -> tuple[depth.Columns, list[times.Timed], Straight, times.Times]:
    found = analysis.analysed(redundant(), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})
    columns = depth.columns(found, branches.find(found.model, found.coupling.facts))
    clock = Straight(found.model, first, error)
    trials = times.trials(columns)
    ratios, errors = times.measure(columns, trials, clock, lambda: None, 7.0)  # type: ignore[arg-type]
    return columns, trials, clock, times.fitted(columns, trials, ratios, errors)


def test_each_trial_narrows_its_columns_and_nothing_else() -> None:
    columns, trials, clock, _ = straight()
    assert clock.seconds == 7.0
    assert clock.asked[0] == clock.full
    names = [{port.node for port in group.producers} for group in columns.plan.groups]
    for trial, sizes in zip(trials, clock.asked[1:], strict=True):
        if trial.width == 0:
            gone = {node for column in trial.members for node in columns.branches[column].nodes}
            assert sizes == {name: size for name, size in clock.full.items() if name not in gone}
        else:
            inside = set().union(*(names[column] for column in trial.members))
            assert sizes == {name: trial.width if name in inside else size for name, size in clock.full.items()}


@pytest.mark.parametrize("first", [1.0, 0.8])
def test_without_noise_one_column_alone_is_recovered_exactly(first: float) -> None:
    """Also of the two branches alike, that were timed together, and between the widths that were timed."""
    columns, _, clock, cost = straight(first)
    orders = [np.arange(group.channels) for group in columns.plan.groups]
    assert cost(columns.full) == pytest.approx(first)
    for column, size in enumerate(columns.full):
        for width in ([] if column == 0 else [0]) + list(range(1, size + 1)):
            widths = columns.full
            widths[column] = width
            assert cost(widths) == pytest.approx(first * clock.share(columns.cut(widths, orders))), (column, width)


def test_noisy_ratios_are_weighed_with_the_multiply_accumulates_saved() -> None:
    """For a member of a trial both the saving and its error, of the trial's and the first ratio, are divided."""
    columns, trials, clock, cost = straight(0.8, 0.03)
    orders = [np.arange(group.channels) for group in columns.plan.groups]
    macs = Clock(columns.plan.model)
    found = {}
    for trial in trials:
        widths = columns.full
        widths[list(trial.members)] = trial.width
        measured = 0.8 * (1 - clock.share(columns.cut(widths, orders))) / len(trial.members)
        widths = columns.full
        widths[trial.members[0]] = trial.width
        guess = 0.8 * (1 - macs.count(columns.cut(widths, orders)) / macs.whole)
        doubt, noise = (guess / 2) ** 2, (0.8 * 0.03) ** 2 * 2 / len(trial.members) ** 2
        found[trial.members[0], trial.width] = (measured * doubt + guess * noise) / (doubt + noise)
    for (column, width), gain in found.items():
        widths, gains = cost.saved[column]
        assert gains[widths.tolist().index(width)] == pytest.approx(gain)
    np.testing.assert_array_equal(cost.saved[1][1], cost.saved[2][1])


def test_nodes_of_a_branch_take_what_dropping_it_saves() -> None:
    columns, _, _, cost = straight()
    assert len(columns.branches) == 2
    for column in columns.branches:
        assert cost.nodes[cost.gone[column]].sum() == pytest.approx(cost.saved[column][1][0]) == 0.2
    others = ~np.any(list(cost.gone.values()), axis=0)
    macs = node_cost.macs(columns.plan.model, columns.plan.coupling.facts.shapes)
    share = np.array(list(macs.values())) / sum(macs.values())
    np.testing.assert_allclose(cost.nodes[others], share[others])


def test_layers_alike_that_meet_in_a_node_are_not_timed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "block", lambda group: 8)
    n = Network()
    x = n.input("x", "batch", 3, 8, 8)
    for before, after in ((3, 16), (16, 16), (16, 16), (16, 16), (16, 16), (16, 4)):
        x = n.node("Relu", n.conv(x, before, after))
    found = analysis.analysed(
        n.model(n.node("GlobalAveragePool", x)), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)}
    )
    columns = depth.columns(found, ())
    trials = times.trials(columns)
    assert [trial.members for trial in trials] == [(0,)] * 2 + [(1, 3)] * 2 + [(4,)] * 2
    assert [trial.width for trial in trials] == [8, 1] * 3
    ratios = np.array([1.0, 0.9, 0.85, 0.8, 0.7, 0.95, 0.9])
    cost = times.fitted(columns, trials, ratios, np.zeros(7))
    assert [widths.tolist() for widths, _ in cost.saved] == [[1, 8, 16]] * 5
    assert [gains[1] for _, gains in cost.saved] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05])
    assert [gains[0] for _, gains in cost.saved] == pytest.approx([0.15, 0.15, 0.15, 0.15, 0.1])
    assert [touched.sum() for touched in cost.touches.T] == [2] * 5


@pytest.mark.parametrize(
    ("models", "run", "wanted"),
    [
        (72, 0.0, [1, 5, 8, 12, 15, 19]),
        (10, 0.0, [1, 5, 10, 15, 19]),
        (9, 0.0, [1, 7, 13, 19]),
        (72, 1.0, [1, 5, 8, 12, 15, 19]),
        (72, 2.9, [1, 10, 19]),
        (72, 3.1, [1, 19]),
        (4, 2.9, [1, 19]),
        (72, 1000.0, [1]),
    ],
)
def test_widths_to_time_are_spread_over_the_channels(
    models: int, run: float, wanted: list[int], monkeypatch: pytest.MonkeyPatch, any_width: None
) -> None:
    """Two kinds share the models. In three minutes a model of 2.9 seconds goes 6 times through its 10 visits."""
    monkeypatch.setattr(times, "SECONDS", 60.0)
    monkeypatch.setattr(times, "MODELS", models)
    n = Network()
    x = n.input("x", "batch", 3, 8, 8)
    for before, after in ((3, 20), (20, 20), (20, 4)):
        x = n.node("Relu", n.conv(x, before, after))
    found = analysis.analysed(
        n.model(n.node("GlobalAveragePool", x)), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)}
    )
    trials = times.trials(depth.columns(found, ()), run)
    assert [(trial.members, trial.width) for trial in trials] == [
        (members, width) for members in ((0,), (1,)) for width in wanted[::-1]
    ]


@pytest.mark.parametrize(
    ("vector", "channels", "each", "wanted"),
    [
        (16, 40, 1, [32, 16, 1]),
        (16, 32, 1, [16, 1]),
        (16, 31, 1, [24, 16, 8, 1]),
        (16, 16, 1, [8, 1]),
        (16, 8, 1, [1]),
        (16, 1, 1, []),
        (8, 16, 1, [8, 1]),
        (16, 12, 8, [10, 8, 6, 4, 2, 1]),
        (16, 3, 8, [2, 1]),
        (16, 4, 64, [3, 2, 1]),
        (16, 400, 1, [*range(384, 0, -16), 4]),
        (16, 1601, 1, [*range(1600, 16, -16), 17]),
    ],
)
def test_widths_worth_timing_fill_vector_blocks(
    vector: int, channels: int, each: int, wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a block where there are not two, and the least hundredth. `each`: features of a channel, as in heads."""
    monkeypatch.setattr(
        times, "machine", lambda: dataclasses.replace(machine(), instructions=("avx512f",) if vector == 16 else ())
    )
    port = Port("node", "weight", 0, "output", "value", 1)
    slices = {("weight", 0): np.arange(channels * each).reshape(channels, each)}
    group = Group("group", np.arange(channels), slices, (port,), ())
    assert times._narrower(group).tolist() == wanted


def test_fewer_seconds_time_fewer_models(any_width: None) -> None:
    """A model of a second takes 10 visits: in 20 seconds (three times as many at most) six models are timed."""
    found = analysis.analysed(redundant(), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})
    columns = depth.columns(found, ())
    assert len(times.trials(columns, 1.0, 20.0)) == 6
    assert len(times.trials(columns, 0.5, 20.0, setup=5.0)) == 6
    assert len(times.trials(columns, 1.0)) == 12


@pytest.mark.parametrize(("count", "wanted"), [(25, 2), (24, 3), (12, 6), (11, 6)])
def test_at_most_72_models_are_timed(count: int, wanted: int, any_width: None) -> None:
    """Of 25 kinds each gets two widths: three would be 75."""
    n = Network()
    x = n.input("x", "batch", 8)
    for k in range(count):
        x = n.node("Relu", n.node("Gemm", x, n.weight(k + 8, k + 9), n.weight(k + 9)))
    model = n.model(n.node("Gemm", x, n.weight(count + 8, 2), n.weight(2)))
    found = analysis.analysed(model, PruneChannels(step="prune.channels"), {"x": (2, 8)})
    columns = depth.columns(found, ())
    assert columns.count == count
    assert len(times.trials(columns)) == count * wanted


@pytest.mark.parametrize(("most", "run"), [(1, 0.0), (times.MODELS, 60.0)])
def test_few_trials_measure_the_narrowest_width(most: int, run: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "MODELS", most)
    found = analysis.analysed(redundant(), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})
    columns = depth.columns(found, ())
    assert {trial.width for trial in times.trials(columns, run)} == {1}


def test_branches_without_a_group_are_timed_by_dropping_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """One group is left of the plan; two branches alike have columns of their own and share no node: one trial."""
    found = analysis.analysed(redundant(), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})
    monkeypatch.setattr(times, "block", lambda group: 4)
    first = dataclasses.replace(found, groups=found.groups[:1])
    columns = depth.columns(first, branches.find(found.model, found.coupling.facts))
    assert columns.full.tolist() == [8, 1, 1]
    trials = times.trials(columns)
    assert trials == [times.Timed((0,), 4), times.Timed((0,), 1), times.Timed((1, 2), 0)]
    cost = times.fitted(columns, trials, np.array([1.0, 0.75, 0.7, 0.4]), np.zeros(4))
    assert [(widths.tolist(), gains.tolist()) for widths, gains in cost.saved] == [
        ([1, 4, 8], pytest.approx([0.3, 0.25, 0.0])),
        ([0, 1], pytest.approx([0.3, 0.0])),
        ([0, 1], pytest.approx([0.3, 0.0])),
    ]
    assert cost(np.array([8, 0, 1])) == cost(np.array([8, 1, 0])) == pytest.approx(0.7)
    assert cost(np.array([8, 0, 0])) == pytest.approx(0.4)
    assert not cost.touches[:, 1:].any()


def test_one_kind_alone_gets_all_the_models(monkeypatch: pytest.MonkeyPatch, any_width: None) -> None:
    monkeypatch.setattr(times, "MODELS", 4)
    found = analysis.analysed(redundant(), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})
    columns = depth.columns(dataclasses.replace(found, groups=found.groups[:1]), ())
    assert [trial.width for trial in times.trials(columns)] == [7, 5, 3, 1]


def test_a_branch_that_multiplies_nothing_takes_no_time_from_its_nodes() -> None:
    nodes, gone = np.array([0.5, 0.0]), {0: np.array([False, True])}
    saved = [(np.array([0, 1]), np.array([0.2, 0.0]))]
    assert times._balanced(nodes, gone, saved).tolist() == [0.5, 0.0]
    saved = [(np.array([0, 1]), np.array([-0.2, 0.0]))]
    assert times._balanced(nodes, {0: np.array([True, False])}, saved).tolist() == [0.5, 0.0]


def by_hand(cost: times.Times, widths: Sequence[int]) -> float:
    """One column and one node after the other."""
    left = [1.0] * len(cost.nodes)
    beyond = 0.0
    for column, width in enumerate(widths):
        known_widths, gains = cost.saved[column]
        for (low, at_low), (high, at_high) in itertools.pairwise(zip(known_widths, gains, strict=True)):
            if low <= width <= high:
                gain = at_low + (at_high - at_low) * (width - low) / (high - low)
        mine = [bool(w) for w in (cost.gone[column] if width == 0 else cost.touches[:, column])]
        own = sum(time for time, touched in zip(cost.nodes, mine, strict=True) if touched)
        share = 1.0 if width == 0 else 0.0 if own == 0 else min(1.0, gain / own)
        for node, touched in enumerate(mine):
            left[node] *= 1 - share if touched else 1.0
        beyond += gain - share * own
    return cost.full - sum(time * (1 - rest) for time, rest in zip(cost.nodes, left, strict=True)) - beyond


@pytest.mark.parametrize("seed", range(5))
def test_tables_are_what_a_plain_loop_finds(seed: int) -> None:
    """Of random nodes and columns: also slower where narrower, saving more than there is, touching nothing, dropped."""
    random = np.random.default_rng(seed)
    nodes, columns = 9, 6
    touches = random.random((nodes, columns)) < 0.3
    touches[:, 4] = False
    gone = {column: random.random(nodes) < 0.4 for column in (1, 3)}
    gone[1] |= touches[:, 1]
    saved = []
    for column in range(columns):
        widths = np.unique([0 if column in gone else 1, *random.integers(2, 30, 4), 32])
        gains = np.append(random.normal(0.05, 0.1, len(widths) - 1), 0.0)
        saved.append((widths, gains))
    cost = times.Times(1.1, random.dirichlet(np.ones(nodes)), touches, gone, saved)
    for _ in range(20):
        widths = np.array([random.choice([w[0], w[-1], random.integers(w[0], w[-1] + 1)]) for w, _ in saved])
        assert cost(widths) == pytest.approx(by_hand(cost, widths.tolist()), abs=1e-12)
        for column, (known_widths, _) in enumerate(saved):
            levels = np.arange(known_widths[-1], known_widths[0] - 1, -1)
            wanted = [by_hand(cost, [*widths[:column], level, *widths[column + 1 :]]) for level in levels]
            np.testing.assert_allclose(cost.table(widths, column, levels), wanted, rtol=0, atol=1e-12)
