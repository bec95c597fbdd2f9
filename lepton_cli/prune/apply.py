"""Taking chosen channels and branches out of a model, and repairing what is left."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling import branches
from lepton_cli.coupling.branches import Branch
from lepton_cli.coupling.cut import cut
from lepton_cli.coupling.links import Group
from lepton_cli.graph import clean
from lepton_cli.probe import linear
from lepton_cli.prune import norms, proof, ranking, recover
from lepton_cli.prune.analysis import Analysis
from lepton_cli.prune.cost import Widths
from lepton_cli.prune.hessian import Ranking
from lepton_cli.step import Context


def apply(
    plan: Analysis,
    rankings: Sequence[Ranking],
    widths: Widths,
    dropped: Sequence[Branch],
    kinds: Sequence[str],
    context: Context,
    warnings: list[str],
) -> tuple[ir.Model, list[recover.Repair]]:
    """The model at these widths of the plan's groups and without these branches, and the repairs (`kinds`) tried.

    Raises StepError where removing channels does not compute what zeroing them does.
    """
    leaving = _leaving(plan, rankings, widths)
    removed = np.concatenate([group.atoms[channels] for group, channels in leaving])
    thinner = cut(plan.model, plan.coupling, removed)
    proof.same(proof.zeroed(plan.model, leaving), thinner, "removing channels", context)
    thinner, stand_ins = branches.drop(thinner, dropped)
    result, repairs = _recover(thinner, plan, removed, stand_ins, kinds, context, warnings)
    clean.remove_unused(result)  # dropped branches leave their weights
    clean.tie_tables(result)
    return result, repairs


def _leaving(plan: Analysis, rankings: Sequence[Ranking], widths: Widths) -> list[tuple[Group, NDArray[np.int64]]]:
    """The channels that go, by group."""
    zipped = zip(plan.groups, rankings, widths, strict=True)
    return [(group, ranking.order[: group.channels - width]) for group, ranking, width in zipped]


def _recover(
    result: ir.Model,
    plan: Analysis,
    removed: NDArray[np.int64],
    stand_ins: frozenset[str],
    kinds: Sequence[str],
    context: Context,
    warnings: list[str],
) -> tuple[ir.Model, list[recover.Repair]]:
    """Repair layer after layer, then the normalisations that are left."""
    source = ranking.source_of(context)
    if source is None or not kinds:
        return result, []
    repairs: list[recover.Repair] = []
    fitting = bool({"least_squares", "bias"} & set(kinds))
    layers = recover.after_the_cut(result, plan.coupling, removed, plan.model, stand_ins) if fitting else []
    with (
        contextlib.closing(recover.Repairer(plan.model, plan.coupling, removed, source, kinds)) as repairer,
        context.progress.stage("repairing layers", len(layers)) as stage,
    ):
        for together in recover.stages(layers):
            now = linear.find(result)
            fresh = [now[layer.node] for layer in together]
            repairs += repairer.together(result, fresh)
            repairs += repairer.repair(result, fresh)
            stage.advance(len(together))
        stage.note(f"{sum(r.kept for r in repairs)} of {len(repairs)} repairs kept")
    if "batch_norm" in kinds:
        result, estimated = norms.reestimate(result, plan.model, source)
        repairs += estimated
    scarce = [repair.node for repair in repairs if repair.scarce]
    if scarce:
        warnings.append(
            f"{source.samples} calibration samples are few for {len(scarce)} layers (first: `{scarce[0]}`): "
            "their repair leans on the weights as they were"
        )
    return result, repairs
