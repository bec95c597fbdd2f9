"""Widths that are given instead of a target: the same model on every machine."""

from __future__ import annotations

import difflib

import numpy as np

from lepton_cli.coupling import branches
from lepton_cli.errors import StepError
from lepton_cli.prune.analysis import Analysis
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.prune.targets import Selection


def missing(plan: Analysis, options: PruneChannels) -> list[str]:
    """Groups and branches that the options name and the plan cannot narrow or drop."""
    free = {group.name for group in plan.groups}
    adds = {branch.add for branch in branches.find(plan.model, plan.coupling.facts)}
    return [name for name in options.widths or () if name not in free] + [n for n in _dropped(options) if n not in adds]


def chosen(plan: Analysis, options: PruneChannels) -> Selection:
    """The widths by group. Raises StepError for names that are not there, and widths that are more than there is."""
    asked = options.widths or {}
    if unknown := missing(plan, options):
        raise _unknown(plan, unknown[0], "widths" if unknown[0] in asked else "drop_branches")
    found = branches.find(plan.model, plan.coupling.facts)
    dropped = tuple(branch for branch in found if branch.add in _dropped(options))
    gone = {node for branch in dropped for node in branch.nodes}
    for group in plan.groups:
        if asked.get(group.name, 1) > group.channels:
            raise StepError(
                "prune.too-wide",
                f"group `{group.name}` has {group.channels} channels, and {asked[group.name]} cannot remain",
                hint="the widths are of another model, or of one that earlier steps have narrowed",
                option=("widths", group.name),
            )
    widths = [
        group.channels if {port.node for port in group.producers} <= gone else asked.get(group.name, group.channels)
        for group in plan.groups
    ]
    return Selection(np.array(widths, np.int64), dropped)


def _dropped(options: PruneChannels) -> tuple[str, ...]:
    return () if isinstance(options.drop_branches, bool) else options.drop_branches


def _unknown(plan: Analysis, name: str, option: str) -> StepError:
    frozen = next((group for group in plan.frozen if group.name == name), None)
    if option == "drop_branches":
        known = [branch.add for branch in branches.find(plan.model, plan.coupling.facts)]
        what = f"there is no residual branch into `{name}` that can go as a whole"
    else:
        known = [group.name for group in plan.groups]
        what = f"there is no group of channels `{name}`"
    if frozen is not None:
        what = f"no channel of group `{name}` can be removed: {frozen.frozen}"
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return StepError(
        "prune.unknown-group",
        what,
        cause=f"did you mean `{near[0]}`?" if near else None,
        hint="`lepton inspect --channels` lists the groups, as they are before the steps in front of this one",
        option=(option, name) if option == "widths" else (option,),
    )
