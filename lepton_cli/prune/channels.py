"""`prune.channels`: analyse, rank, allocate, cut, repair; the order of things and what is said about them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from lepton_cli.errors import DataError, StepError
from lepton_cli.graph import shapes
from lepton_cli.model import external
from lepton_cli.prune import given, latency, proof, ranking, targets
from lepton_cli.prune.analysis import Analysis, analysed, feeds, survey
from lepton_cli.prune.apply import apply
from lepton_cli.prune.cost import Widths
from lepton_cli.prune.decisions import decisions, details
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.quantize.prepare import refuse_quantized
from lepton_cli.step import Context, Outcome
from lepton_cli.train import steps as training

__all__ = ["prune", "survey"]

PREPARING = "preparing the graph for pruning"


def prune(model: ir.Model, options: PruneChannels, context: Context) -> Outcome:
    """Remove channels until the targets hold, or down to given widths.

    Times are those of models in the precision of `timed_as`: where that is not float and time is no target, widths are
    chosen that save time too.

    Raises StepError when the targets cannot be reached or the widths are not of this model, ModelError for models that
    are quantized already.
    """
    refuse_quantized(model, weights_only=True)
    kinds = _recoveries(options, context)
    folding = "batch_norm" not in kinds or "least_squares" in kinds
    looked_at = not context.dry or shapes.runnable(model)
    look = partial(analysed, model, options, feeds(model, context), folding=folding, run=looked_at)
    plan = look()
    if options.widths is not None and given.missing(plan, options) and (freer := look(rewriting=True)).rewritten:
        plan = freer
    if not plan.groups:
        text = f"no channel can be removed: {_why_nothing(plan)}"
        return Outcome(model, 0, decisions(plan, None), text, details(plan, None, [], []))
    _check_finite(plan.model)
    full = np.array([group.channels for group in plan.groups])
    if options.widths is not None:
        choice = given.chosen(plan, options)
        if not np.any(choice.widths < full) and not choice.dropped:
            text = "already there: the widths are those of the model"
            return Outcome(model, 0, decisions(plan, None), text, details(plan, None, [], []))
        levels = [np.unique([group.channels, w])[::-1] for group, w in zip(plan.groups, choice.widths, strict=True)]
        reach = [f"{np.sum(choice.widths < full)} become narrower"]
        goals: list[targets.Goal] = []
    else:
        options, goals, levels = _within_reach(plan, options, context)
        if options.target.latency is None and all(goal.holds(full) for goal in goals):
            return _already_there(model, plan, goals, context)
        reach = _reach(plan, options, goals, levels, context)
    if context.dry:
        text = f"{len(plan.groups)} groups can lose channels; {'; '.join(reach)}"
        if options.training is not None:
            text += f"; distill: {training.distill(model, options.training, context).summary}"
        return Outcome(model, len(plan.groups), decisions(plan, None), text, details(plan, None, [], []))
    proof.same(model, plan.model, PREPARING, context)
    warnings: list[str] = []
    rankings, tables = ranking.ranked_groups(plan, options, context, levels, warnings)
    if options.widths is None:
        choice = targets.choose(plan, options, goals, context, rankings, tables)
    result, repairs = apply(plan, rankings, choice.widths, choice.dropped, kinds, context, warnings)
    trained = None if options.training is None else training.distill(result, options.training, context)
    result = result if trained is None else trained.model
    reached = [*choice.reached, *(goal.reached(result, plan) for goal in goals)]
    cuts, gone = int(np.sum(choice.widths < full)), int(np.sum(full - choice.widths))
    text = f"{gone} of {int(full.sum())} channels removed in {cuts} groups"
    text += f" and {len(choice.dropped)} {'branch' if len(choice.dropped) == 1 else 'branches'}" * bool(choice.dropped)
    text += f"; {', '.join(f'{one.metric} {one.reached:.1%}' for one in reached)} of the original" * bool(reached)
    text += "" if choice.time is None else f", {choice.time:.0%} of its time in {options.timed_as}"
    changed = cuts + len(choice.dropped) + len(plan.rewritten)
    found = details(plan, choice.widths, repairs, reached, choice.dropped)
    if choice.time is not None:
        found = found.model_copy(update={"timed_as": options.timed_as, "time": choice.time})
    if trained is not None:
        text += f"; distill: {trained.summary}"
        found = found.model_copy(update={"training": trained.details})
    return Outcome(result, changed, decisions(plan, choice.widths, choice.dropped), text, found, tuple(warnings))


def _within_reach(
    plan: Analysis, options: PruneChannels, context: Context
) -> tuple[PruneChannels, list[targets.Goal], list[Widths]]:
    """The goals but for latency, and the widths to choose from. Raises StepError where even the least are too wide."""
    shares = options.target.shares.items()
    goals = [targets.goal(plan, metric, share, context) for metric, share in shares if metric != "latency"]
    levels = [targets.levels(group, options) for group in plan.groups]
    floors = np.array([level[-1] for level in levels])
    if options.target.latency is None and not all(goal.holds(floors) for goal in goals):  # whole blocks are no target
        options = options.model_copy(update={"timed_as": "float"})
        levels = [targets.levels(group, options) for group in plan.groups]
        floors = np.array([level[-1] for level in levels])
    for goal in goals:
        if not goal.holds(floors):
            raise targets.unreachable(plan, goal.metric, goal.share, goal.of(floors))
    return options, goals, levels


def _already_there(model: ir.Model, plan: Analysis, goals: Sequence[targets.Goal], context: Context) -> Outcome:
    within = " and ".join(f"{goal.metric} within {goal.share:.1%}" for goal in goals)
    text = f"already there: {within} of the original"
    told = decisions(plan, None), text, details(plan, None, [], [])
    # What is folded to look at the graph may be what it takes: tables of which a few rows are read.
    if all(targets.spent(goal.metric, model, plan) <= goal.share * goal.whole for goal in goals):
        return Outcome(model, 0, *told, left_because=text)
    if not context.dry:
        proof.same(model, plan.model, PREPARING, context)
    return Outcome(plan.model, 1, *told)


def _reach(
    plan: Analysis,
    options: PruneChannels,
    goals: Sequence[targets.Goal],
    levels: Sequence[Widths],
    context: Context,
) -> list[str]:
    """How far the costs can go down, in words."""
    floors = np.array([level[-1] for level in levels])
    reach = [f"{goal.metric} can go down to {goal.of(floors):.1%}" for goal in goals]
    if options.target.latency is not None:
        whole = len(latency.droppable(plan, options, context))
        reach.append(f"{whole} residual branches can go as a whole; latency is measured when the step runs")
    return reach


def _why_nothing(plan: Analysis) -> str:
    if not plan.frozen:
        return "the main graph has no convolution or product with stored weights"
    first = plan.frozen[0]
    return f"all {len(plan.frozen)} groups are frozen (`{first.name}`: {first.frozen})"


def _recoveries(options: PruneChannels, context: Context) -> tuple[str, ...]:
    if options.training is not None:
        training.needed(context.training, options.training)
    if context.calibration is None:
        if options.repairs:
            raise DataError(
                "data.missing",
                f"recovery ({', '.join(options.repairs)}) needs calibration data, and the recipe gives none",
                hint="add `data: {calibration: {path: ...}}`, or `recover: []`",
                option=("recover",),
            )
        if options.importance in ("hessian", "activation"):
            raise DataError(
                "data.missing",
                f"importance `{options.importance}` needs calibration data, and the recipe gives none",
                hint="add `data: {calibration: {path: ...}}`, or choose `l2`",
                option=("importance",),
            )
        return ()
    return ("least_squares", "bias", "batch_norm") if options.repairs is None else options.repairs


def _check_finite(model: ir.Model) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        users = [
            node.name
            for node, _ in value.uses()
            if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")
        ]
        if (
            tensor is not None
            and users
            and tensor.dtype.is_floating_point()
            and not all(np.isfinite(np.asarray(piece, np.float32)).all() for piece in external.pieces(tensor))
        ):
            raise StepError(
                "prune.non-finite",
                f"the weights `{name}` of node `{users[0]}` are not finite",
                hint="the model is damaged",
            )
