"""What pruning can leave: figures against counts of models that are cut, choices against trying everything."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.graph import cost as node_cost
from lepton_cli.graph import shapes
from lepton_cli.prune import allocate, given, prospects, ranking
from lepton_cli.prune.prospects import Prospects
from lepton_cli.prune.spec import PruneChannels
from tests.coupling.networks import Network
from tests.prune.context import context, images, redundant
from tests.prune.foreseen import looked_at


def weights(model: ir.Model) -> int:
    """Elements of all float tensors."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(one.size for one in tensors if one is not None and one.dtype == ir.DataType.FLOAT)


def work(model: ir.Model) -> int:
    """Multiply-accumulates of two samples."""
    size = {"x": (2, *map(int, model.graph.inputs[0].shape[1:]))}  # type: ignore[index]
    return sum(node_cost.macs(model, shapes.concrete(model, size)).values())


@pytest.mark.parametrize("name", ["convolutions", "residual", "nested", "mlp", "transformer"])
def test_figures_are_those_of_the_model_that_is_cut(name: str, tmp_path: Path) -> None:
    found, around = looked_at(name, tmp_path)
    random = np.random.default_rng(2)
    for _ in range(4):
        widths = np.array([random.choice(table.levels) for table in found.tables])
        prospect = found.prospect(widths)
        made = found.cut(prospect)
        assert prospect.macs == pytest.approx(work(made) / work(around.original))
        # Biases of the last layer of a branch that goes are counted as staying.
        assert prospect.parameters == pytest.approx(weights(made) / weights(around.original), rel=0.01)
        assert prospect.loss == pytest.approx(
            sum(
                table.loss[table.levels.tolist().index(width)]
                for table, width in zip(found.tables, widths, strict=True)
            )
        )
        again = found.prospect(found.widths(prospect))
        assert again.key == prospect.key
        assert (again.macs, again.parameters) == (prospect.macs, prospect.parameters)


def test_nothing_is_named_that_stays(tmp_path: Path) -> None:
    found, around = looked_at("residual", tmp_path)
    prospect = found.prospect(prospects.full(found))
    assert (prospect.widths, prospect.dropped, prospect.loss) == ({}, (), 0.0)
    assert (prospect.parameters, prospect.macs) == (1.0, 1.0)
    assert weights(found.cut(prospect)) == weights(around.original)


def test_groups_inside_a_dropped_branch_are_not_named(tmp_path: Path) -> None:
    found, _ = looked_at("residual", tmp_path)
    column, branch = next(iter(found.columns.branches.items()))
    widths = prospects.full(found)
    widths[column] = 0
    prospect = found.prospect(widths)
    assert (prospect.widths, prospect.dropped) == ({}, (branch.add,))
    assert {node.name for node in found.cut(prospect).graph}.isdisjoint(branch.nodes)


def test_the_step_leaves_what_was_foreseen(tmp_path: Path) -> None:
    found, _ = looked_at("residual", tmp_path)
    widths = np.array([table.levels[1] for table in found.tables])
    widths[max(found.columns.branches)] = 0
    prospect = found.prospect(widths)
    options = prospect.options("l1")
    assert options == PruneChannels.model_validate(
        {"widths": dict(prospect.widths), "drop_branches": prospect.dropped, "importance": "l1"}
    )
    assert found.prospect(prospects.full(found)).options(None) == PruneChannels.model_validate({"widths": {}})
    chosen = given.chosen(found.plan, options)
    assert chosen.widths.tolist() == found.columns.kept(widths).tolist()
    assert [branch.add for branch in chosen.dropped] == list(prospect.dropped)


class Level:
    """A cost that grows with the square of every width, and adds up."""

    def __init__(self, *factors: float) -> None:
        self.factors = np.array(factors)

    def __call__(self, widths: allocate.Widths) -> float:
        return float(np.sum(self.factors * np.square(widths.astype(float))))

    def table(self, widths: allocate.Widths, group: int, levels: allocate.Widths) -> np.ndarray:
        return self(widths) + self.factors[group] * (np.square(levels.astype(float)) - float(widths[group]) ** 2)


def few(found: Prospects, levels: int = 6) -> Prospects:
    """With some levels of each column only."""
    tables = []
    for table in found.tables:
        places = np.unique(np.linspace(0, len(table.levels) - 1, levels).round().astype(int))
        tables.append(allocate.Table(table.levels[places], table.loss[places]))
    return Prospects(found.plan, found.columns, tables, found._context)


@pytest.mark.parametrize("bounds", [(0.5, 9.0), (9.0, 0.4), (0.5, 0.45), (0.2, 0.3)])
def test_of_what_holds_every_budget_about_the_least_is_lost(bounds: tuple[float, float], tmp_path: Path) -> None:
    found = few(looked_at("convolutions", tmp_path)[0])
    full = prospects.full(found)
    costs = [Level(1, 2, 0.5, 3), Level(5, 1, 1, 1)]
    parts = [(cost, share * cost(full)) for cost, share in zip(costs, bounds, strict=True)]
    chosen = found.choose(parts)
    assert chosen is not None
    widths = found.widths(chosen)
    assert all(cost(widths) <= budget for cost, budget in parts)
    everything = (np.array(one) for one in itertools.product(*(table.levels.tolist() for table in found.tables)))
    losses = [allocate.total(found.tables, w) for w in everything if all(cost(w) <= budget for cost, budget in parts)]
    assert min(losses) <= chosen.loss <= 1.25 * min(losses)


def test_what_nothing_holds_is_no_prospect(tmp_path: Path) -> None:
    found = few(looked_at("convolutions", tmp_path)[0])
    cost = Level(1, 1, 1, 1)
    narrow = np.array([table.levels[-1] for table in found.tables])
    assert found.least(cost) == cost(narrow)
    assert found.choose([(cost, 0.99 * cost(narrow))]) is None
    held = found.choose([(cost, cost(narrow))])
    assert held is not None
    assert found.widths(held).tolist() == narrow.tolist()


def test_without_channels_that_can_go_there_is_nothing(tmp_path: Path) -> None:
    n = Network()
    model = n.model(n.node("Gemm", n.input("x", "batch", 4), n.weight(4, 3), n.weight(3)))
    data = Arrays({"x": np.zeros((8, 4), np.float32)})
    assert prospects.prospects(model, PruneChannels(importance="l2"), context(model, tmp_path, check=data)) is None


def test_rankings_are_kept_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are those of the ranking, with a dropped branch as the last level; the second time nothing is ranked."""
    model, data = redundant(), images(32)
    options = PruneChannels(importance="l2")
    around = context(model, tmp_path, data, cache=tmp_path / "cache")
    found = prospects.prospects(model, options, around)
    assert found is not None
    levels = [np.arange(group.channels, 0, -1) for group in found.plan.groups]
    _, ranked = ranking.ranked_groups(found.plan, options, around, levels, [])
    for column, (table, alone) in enumerate(zip(found.tables, ranked, strict=True)):
        assert (table.levels[-1] == 0) == (column in found.columns.branches)
        for level, loss in zip(table.levels, table.loss, strict=True):
            assert level == 0 or loss == alone.loss[alone.levels.tolist().index(level)]

    def fail(*_: object, **__: object) -> None:
        pytest.fail("ranked again")

    monkeypatch.setattr(ranking, "_rank", fail)
    again = prospects.prospects(model, options, around)
    assert again is not None
    for one, two in zip(found.tables, again.tables, strict=True):
        assert one.levels.tolist() == two.levels.tolist()
        np.testing.assert_allclose(one.loss, two.loss)
