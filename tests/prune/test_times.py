"""Time as a cost: what is measured together is told apart, and what meets in one node is not counted twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli.coupling import branches
from lepton_cli.graph import cost as node_cost
from lepton_cli.graph import shapes
from lepton_cli.prune import depth, plan, times
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


def measured(model: ir.Model) -> tuple[depth.Columns, times.Times, Clock, list[NDArray[np.int64]]]:
    found = plan.analysed(model, PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})
    columns = depth.columns(found, branches.find(found.model, found.coupling.facts))
    levels = [np.arange(group.channels, 1, -2) for group in found.groups]
    levels = [np.append(level, 0) if k in columns.branches else level for k, level in enumerate(levels)]
    clock = Clock(found.model)
    trials = times.trials(columns, levels)
    ratios, errors = times.measure(columns, trials, clock, lambda: None)  # type: ignore[arg-type]
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


def test_layers_alike_are_timed_once() -> None:
    found = plan.analysed(redundant(), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})
    columns = depth.columns(found, branches.find(found.model, found.coupling.facts))
    levels = [
        np.array([group.channels, 4, 0] if k in columns.branches else [group.channels, 4])
        for k, group in enumerate(found.groups)
    ]
    trials = times.trials(columns, levels)
    inner = [trial for trial in trials if set(trial.members) <= columns.branches.keys()]
    assert [(len(trial.members), trial.width) for trial in inner] == [(2, 4), (2, 0)]


def test_noise_is_weighed_against_the_work_saved() -> None:
    assert times._weighed(0.5, 1e-6, 0.1) == pytest.approx(0.5)
    assert times._weighed(0.5, 10.0, 0.1) == pytest.approx(0.1, abs=0.001)
    assert 0.1 < times._weighed(0.2, 0.05, 0.1) < 0.2
    assert times._weighed(0.2, 0.1, 0.0) == 0.0


@pytest.mark.parametrize(("most", "run"), [(1, 0.0), (times.MODELS, 60.0)])
def test_few_trials_measure_the_narrowest_width(most: int, run: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "MODELS", most)
    found = plan.analysed(redundant(), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})
    columns = depth.columns(found, ())
    trials = times.trials(columns, [np.array([group.channels, 6, 4, 2]) for group in found.groups], run)
    assert {trial.width for trial in trials} == {2}
