"""Branches as part of an allocation, and the repair around a dropped one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lepton_cli.coupling import branches
from lepton_cli.prune import depth, plan, recover, sensitivity
from lepton_cli.prune.spec import PruneChannels
from tests.prune.context import context, images, redundant


def analysed() -> plan.Plan:
    return plan.analysed(redundant(), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})


def test_a_branch_is_width_zero_of_the_group_inside_it() -> None:
    found = analysed()
    columns = depth.columns(found, branches.find(found.model, found.coupling.facts))
    assert columns.count == len(found.groups)
    column, branch = next(iter(columns.branches.items()))
    assert found.groups[column].name in branch.nodes
    widths = columns.full
    widths[column] = 0
    assert columns.dropped(widths) == [branch]
    assert columns.kept(widths).tolist() == columns.full.tolist()
    orders = [np.arange(group.channels) for group in found.groups]
    left = columns.cut(widths, orders)
    assert {node.name for node in left.graph}.isdisjoint(branch.nodes)


def test_branches_without_a_group_have_a_column_of_their_own() -> None:
    found = analysed()
    none = plan.Plan(found.model, found.coupling, (), (), {})
    columns = depth.columns(none, branches.find(found.model, found.coupling.facts))
    assert columns.full.tolist() == [1, 1]
    assert len(columns.dropped(np.array([0, 1]))) == 1


def test_refitting_near_a_dropped_branch_helps(tmp_path: Path) -> None:
    found, data = analysed(), images(96)
    given = context(found.model, tmp_path, data)
    source = recover.Source(data, given.workdir, 1, 0, 96)
    trial = sensitivity.prepare(found.model, found.coupling, source, 2, 1e5)
    dropped = branches.find(found.model, found.coupling.facts)
    raw = [trial.error(branches.drop(found.model, [branch])[0]) for branch in dropped]
    refitted = depth.losses(found, dropped, source, trial)
    assert all(after < before for before, after in zip(raw, refitted, strict=True))
    assert refitted == depth.losses(found, dropped, source, trial)
    assert not list(tmp_path.iterdir())


def test_layers_around_a_dropped_branch_are_repaired() -> None:
    found = analysed()
    first, last = branches.find(found.model, found.coupling.facts)
    none = np.zeros(0, np.int64)
    for branch, operators in ((first, ["Conv", "Conv", "Conv", "Gemm"]), (last, ["Conv", "Gemm"])):
        model, stand_ins = branches.drop(found.model, [branch])
        layers = recover.after_the_cut(model, found.coupling, none, found.model, stand_ins)
        assert [layer.op for layer in layers] == operators
