"""The analysed model: which groups may lose channels under `include` and `exclude`, and which may not, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling import known_shapes, shortcuts
from lepton_cli.coupling.analyse import analyse
from lepton_cli.coupling.links import Coupling, Group
from lepton_cli.data.batching import layout
from lepton_cli.graph import batch_norm, select
from lepton_cli.graph.feeds import default_feeds
from lepton_cli.model import io
from lepton_cli.prune import cost as cost_model
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.step import Context


@dataclasses.dataclass(frozen=True)
class Analysis:
    """An analysed model and what may be pruned in it."""

    model: ir.Model
    coupling: Coupling
    #: Groups that may lose channels.
    groups: tuple[Group, ...]
    #: Groups that may not, with the reason filled in.
    frozen: tuple[Group, ...]
    #: |scale| of folded normalisations by layer.
    scales: Mapping[str, NDArray[np.float64]]
    #: Convolutions that shortcuts of Slice and Pad were rewritten to, for latency targets.
    rewritten: tuple[str, ...] = ()


def analysed(
    model: ir.Model,
    options: PruneChannels,
    feeds: Mapping[str, Sequence[int]],
    *,
    folding: bool = True,
    run: bool = True,
    rewriting: bool = False,
) -> Analysis:
    """The prepared model and its groups under `include` and `exclude`. `run=False`: only look, as at a large model.

    `rewriting`: shortcuts of Slice and Pad become convolutions, which lose channels, also without a latency target.
    """
    chosen = select.select([node.name or "" for node in model.graph.all_nodes()], options.include, options.exclude)
    prepared, facts = known_shapes.prepare(model, feeds, run=run)
    rewriting = rewriting or options.target.latency is not None
    rewritten = shortcuts.as_convolutions(prepared, facts, chosen) if rewriting else []
    scales = batch_norm.fold_batch_norm(prepared).scales if folding else {}
    coupling = analyse(prepared, facts.with_weights(prepared))
    groups: list[Group] = []
    frozen: list[Group] = []
    for group in coupling.groups:
        outside = next((port.node for port in group.producers if port.node not in chosen), None)
        if group.frozen is None and outside is not None:
            group = dataclasses.replace(group, frozen="left out by include/exclude", node=outside)
        if group.channels < 2:
            group = dataclasses.replace(group, frozen="a single channel", node=group.name)
        (groups if group.frozen is None else frozen).append(group)
    return Analysis(prepared, coupling, tuple(groups), tuple(frozen), scales, tuple(rewritten))


@dataclasses.dataclass(frozen=True)
class GroupFacts:
    """A group of channels, and what of the model it is: what would go with all of them."""

    group: Group
    #: Share of the model's multiply-accumulates.
    macs_share: float
    parameters: int


def survey(model: ir.Model, feeds: Mapping[str, Sequence[int]]) -> list[GroupFacts]:
    """Facts about every channel group, without data: for `inspect --channels` and `tune`."""
    plan = analysed(model, PruneChannels(step="prune.channels"), feeds, run=False)
    groups = (*plan.groups, *plan.frozen)
    macs = cost_model.macs(plan.model, plan.coupling, groups)
    size = cost_model.parameters(plan.model, plan.coupling, groups)
    full = np.array([group.channels for group in groups], np.int64)
    all_macs, all_parameters = macs(full), size(full)
    return [
        GroupFacts(group, 1 - macs_left / max(all_macs, 1.0), round(all_parameters - parameters_left))
        for group, macs_left, parameters_left in zip(groups, macs.without(full), size.without(full), strict=True)
    ]


def feeds(model: ir.Model, context: Context) -> dict[str, tuple[int, ...]]:
    """Input shapes of a real batch, of two samples where the model's batch is open."""
    batch, inputs = next(context.check.batches(None, None), None), io.inputs(model)
    fed = {} if batch is None else batch.sized(layout(inputs).fixed or 2)
    known = {info.name: tuple(fed[info.name].shape) for info in inputs if info.name in fed}
    return default_feeds(model, 2, 16, known)
