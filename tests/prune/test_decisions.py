"""What is said about a model whose groups, branches and frozen parts are known."""

from __future__ import annotations

import dataclasses

import numpy as np

from lepton_cli.coupling import branches
from lepton_cli.prune import analysis, decisions
from lepton_cli.prune.details import DroppedBranch, ReachedTarget
from lepton_cli.prune.recover import Repair
from lepton_cli.prune.spec import PruneChannels
from tests.coupling.networks import Network
from tests.prune.context import redundant


def analysed() -> analysis.Analysis:
    return analysis.analysed(redundant(), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})


def test_nodes_are_pruned_kept_rewritten_or_frozen() -> None:
    found = analysed()
    stem, first, second = ([port.node for port in group.producers] for group in found.groups)
    found = dataclasses.replace(found, rewritten=(second[0],))
    told = {one.node: one for one in decisions.decisions(found, np.array([8, 7, 12]))}
    assert {told[node].action for node in stem} == {"kept"}
    assert (told[first[0]].action, told[first[0]].reason) == ("pruned", "12 -> 7 channels")
    assert told[second[0]].action == "rewritten"
    last = found.frozen[0].producers[0].node
    assert (told[last].action, told[last].op) == ("frozen", "Gemm")
    assert told[last].reason.startswith("`Gemm_")
    assert {one.op for one in told.values()} == {"Conv", "Gemm"}
    assert len(told) == len(stem) + 3


def test_before_widths_are_known_groups_are_prunable() -> None:
    told = decisions.decisions(analysed(), None)
    assert [(one.action, one.reason) for one in told if one.action == "prunable"] == [
        *[("prunable", "8 channels")] * 3,
        *[("prunable", "12 channels")] * 2,
    ]


def test_nodes_of_a_dropped_branch_go_whatever_their_width() -> None:
    found = analysed()
    branch = branches.find(found.model, found.coupling.facts)[0]
    told = {one.node: one for one in decisions.decisions(found, np.array([8, 7, 12]), [branch])}
    assert {told[node].action for node in branch.nodes} == {"dropped"}
    assert {told[node].op for node in branch.nodes} == {"Conv", "Relu"}
    assert told[branch.nodes[0]].reason == f"the branch into `{branch.add}` goes as a whole"
    goal = ReachedTarget(metric="macs", target=0.5, reached=0.4)
    shown = decisions.details(found, np.array([5, 7, 12]), [], [goal], [branch])
    rows = {row.node: (row.before, row.after) for row in shown.widths}
    stem, first, second = ([port.node for port in group.producers] for group in found.groups)
    assert rows[first[0]] == (12, 0)
    assert rows[second[0]] == (12, 12)
    assert {node: rows[node] for node in stem} == {node: (8, 0 if node in branch.nodes else 5) for node in stem}
    assert [group.kept for group in shown.groups] == [5, 0, 12, 10]
    assert shown.branches == (DroppedBranch(add=branch.add, nodes=branch.nodes),)
    assert shown.targets == (goal,)


def test_groups_are_told_with_their_widths_and_reasons() -> None:
    found = analysed()
    shown = decisions.details(found, np.array([5, 7, 12]), [Repair("n", "bias", True, 0.5, 0.25)], [])
    assert [(one.channels, one.kept, one.frozen) for one in shown.groups] == [
        (8, 5, False),
        (12, 7, False),
        (12, 12, False),
        (10, 10, True),
    ]
    assert [one.name for one in shown.groups] == [group.name for group in (*found.groups, *found.frozen)]
    assert shown.groups[-1].reason == found.frozen[0].frozen
    assert shown.recovery[0].node == "n"
    assert shown.branches == ()
    unknown = decisions.details(found, None, [], [])
    assert [one.kept for one in unknown.groups] == [8, 12, 12, 10]
    assert all(row.before == row.after for row in unknown.widths)


def test_widths_of_a_node_add_up_over_its_groups_and_positions() -> None:
    """A product whose features are split in two: three channels of one group and two of another."""
    n = Network()
    x = n.node("Gemm", n.input("x", "batch", 4), n.weight(4, 5), n.weight(5))
    n.weight(values=np.array([3, 2], np.int64))
    left = n.node("Split", x, "w2", outputs=2, axis=1)
    first = n.node("Gemm", left, n.weight(3, 2), n.weight(2))
    second = n.node("Gemm", left.removesuffix("_out") + "_1_out", n.weight(2, 2), n.weight(2))
    found = analysis.analysed(
        n.model(n.node("Add", first, second)), PruneChannels(step="prune.channels"), {"x": (2, 4)}
    )
    assert [group.channels for group in found.groups] == [3, 2]
    shown = decisions.details(found, np.array([2, 1]), [], [])
    rows = {row.node: (row.before, row.after) for row in shown.widths}
    assert rows["Gemm_0"] == (5, 3)
    assert rows["Gemm_2"] == rows["Gemm_3"] == (2, 2)
