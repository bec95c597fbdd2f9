"""What `prune.channels` says about a model: decisions by node, and the details the report draws."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_cli.coupling.branches import Branch
from lepton_cli.prune import recover
from lepton_cli.prune.analysis import Analysis
from lepton_cli.prune.cost import Widths
from lepton_cli.prune.details import ChannelGroup, DroppedBranch, PruneChannelsDetails, ReachedTarget, Width
from lepton_cli.step import Decision


def decisions(plan: Analysis, widths: Widths | None, dropped: Sequence[Branch] = ()) -> tuple[Decision, ...]:
    operators = {node.name or "": node.op_type for node in plan.model.graph}
    found: dict[str, Decision] = {}
    for branch in dropped:
        for node in branch.nodes:
            reason = f"the branch into `{branch.add}` goes as a whole"
            found[node] = Decision(node=node, op=operators.get(node, ""), action="dropped", reason=reason)
    for index, group in enumerate(plan.groups):
        for port in group.producers:
            if widths is None:
                action, reason = "prunable", f"{group.channels} channels"
            elif widths[index] < group.channels:
                action, reason = "pruned", f"{group.channels} -> {widths[index]} channels"
            elif port.node in plan.rewritten:
                action, reason = "rewritten", "Slice and Pad as the convolution that they are: faster"
            else:
                action, reason = "kept", "the allocation takes nothing here"
            found.setdefault(
                port.node, Decision(node=port.node, op=operators.get(port.node, ""), action=action, reason=reason)
            )
    for group in plan.frozen:
        where = f" ({group.node})" if group.node else ""
        for port in group.producers:
            reason = f"{group.frozen}{where}"
            found.setdefault(
                port.node, Decision(node=port.node, op=operators.get(port.node, ""), action="frozen", reason=reason)
            )
    return tuple(found.values())


def details(
    plan: Analysis,
    widths: Widths | None,
    repairs: Sequence[recover.Repair],
    targets: Sequence[ReachedTarget],
    dropped: Sequence[Branch] = (),
) -> PruneChannelsDetails:
    """What was removed: a node whose branch was dropped has the width 0."""
    gone = {node for branch in dropped for node in branch.nodes}
    kept = [group.channels for group in plan.groups] if widths is None else [int(width) for width in widths]
    kept = [0 if {port.node for port in g.producers} <= gone else k for g, k in zip(plan.groups, kept, strict=True)]
    groups = [
        ChannelGroup(name=g.name, channels=g.channels, kept=k, frozen=False)
        for g, k in zip(plan.groups, kept, strict=True)
    ]
    groups += [
        ChannelGroup(name=g.name, channels=g.channels, kept=g.channels, frozen=True, reason=g.frozen, node=g.node)
        for g in plan.frozen
    ]
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    for group, width in zip((*plan.groups, *plan.frozen), [*kept, *(g.channels for g in plan.frozen)], strict=True):
        for port in group.producers:
            each = group.slices[(port.weight, port.axis)].shape[1]
            before[port.node] = before.get(port.node, 0) + group.channels * each
            after[port.node] = 0 if port.node in gone else after.get(port.node, 0) + width * each
    return PruneChannelsDetails(
        widths=tuple(Width(node=node, before=before[node], after=after[node]) for node in before),
        groups=tuple(groups),
        branches=tuple(DroppedBranch(add=branch.add, nodes=tuple(branch.nodes)) for branch in dropped),
        recovery=recover.facts(repairs),
        targets=tuple(targets),
    )
