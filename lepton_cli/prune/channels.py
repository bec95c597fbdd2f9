"""`prune.channels`: analyse, rank, allocate, cut, repair; the order of things and what is said about them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling import branches
from lepton_cli.coupling.branches import Branch
from lepton_cli.coupling.cut import cut
from lepton_cli.coupling.links import Group
from lepton_cli.errors import DataError, StepError
from lepton_cli.graph import clean, fold, shapes
from lepton_cli.graph import cost as node_cost
from lepton_cli.machine import machine
from lepton_cli.model import external, io
from lepton_cli.probe import linear
from lepton_cli.prune import allocate, latency, norms, proof, ranking, recover
from lepton_cli.prune import cost as cost_model
from lepton_cli.prune.analysis import Analysis, analysed, feeds, survey
from lepton_cli.prune.cost import CostModel, Widths
from lepton_cli.prune.decisions import decisions, details
from lepton_cli.prune.details import ReachedTarget
from lepton_cli.prune.hessian import Ranking
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.quantize.draft import drafter
from lepton_cli.quantize.prepare import refuse_quantized
from lepton_cli.step import Context, Outcome
from lepton_cli.train import steps as training

__all__ = ["prune", "survey"]

PREPARING = "preparing the graph for pruning"


@dataclasses.dataclass(frozen=True)
class Goal:
    """What remains at most: `share` of the original's `metric`, of which it has `whole`; `price` is that of widths."""

    metric: str
    share: float
    price: CostModel
    whole: float

    @property
    def part(self) -> tuple[CostModel, float]:
        """The price, and what may be spent."""
        return self.price, self.share * self.whole

    def of(self, widths: Widths) -> float:
        """Share of the original's that these widths cost; nothing of nothing is nothing."""
        return self.price(widths) / self.whole if self.whole else 0.0

    def holds(self, widths: Widths) -> bool:
        """Whether these widths cost no more than that."""
        return self.price(widths) <= self.share * self.whole


def prune(model: ir.Model, options: PruneChannels, context: Context) -> Outcome:
    """Remove channels until the targets hold; times are those of models in the precision of `timed_as`.

    Where that is not float and time is no target, widths are chosen that save time too.

    Raises StepError when the targets cannot be reached, ModelError for models that are quantized already.
    """
    refuse_quantized(model, weights_only=True)
    kinds = _recoveries(options, context)
    folding = "batch_norm" not in kinds or "least_squares" in kinds
    looked_at = not context.dry or shapes.runnable(model)
    plan = analysed(model, options, feeds(model, context), folding=folding, run=looked_at)
    if not plan.groups:
        text = f"no channel can be removed: {_why_nothing(plan)}"
        return Outcome(model, 0, decisions(plan, None), text, details(plan, None, [], []))
    _check_finite(plan.model)
    fast = options.target.latency
    goals = [
        _goal(plan, metric, share, context) for metric, share in options.target.shares.items() if metric != "latency"
    ]
    levels = [_levels(group, options) for group in plan.groups]
    floors = np.array([level[-1] for level in levels])
    if fast is None and not all(goal.holds(floors) for goal in goals):  # whole blocks are no target
        options = options.model_copy(update={"timed_as": "float"})
        levels = [_levels(group, options) for group in plan.groups]
        floors = np.array([level[-1] for level in levels])
    for goal in goals:
        if not goal.holds(floors):
            raise _unreachable(plan, goal.metric, goal.share, goal.of(floors))
    full = np.array([group.channels for group in plan.groups])
    if fast is None and all(goal.holds(full) for goal in goals):
        within = " and ".join(f"{goal.metric} within {goal.share:.1%}" for goal in goals)
        text = f"already there: {within} of the original"
        told = decisions(plan, None), text, details(plan, None, [], [])
        # What is folded to look at the graph may be what it takes: tables of which a few rows are read.
        if all(_spent(goal.metric, model, plan) <= goal.share * goal.whole for goal in goals):
            return Outcome(model, 0, *told, left_because=text)
        if not context.dry:
            proof.same(model, plan.model, PREPARING, context)
        return Outcome(plan.model, 1, *told)
    if context.dry:
        reach = [f"{goal.metric} can go down to {goal.of(floors):.1%}" for goal in goals]
        if fast is not None:
            whole = len(latency.droppable(plan, options, context))
            reach.append(f"{whole} residual branches can go as a whole; latency is measured when the step runs")
        text = f"{len(plan.groups)} groups can lose channels; {'; '.join(reach)}"
        if options.training is not None:
            text += f"; distill: {training.distill(model, options.training, context).summary}"
        return Outcome(model, len(plan.groups), decisions(plan, None), text, details(plan, None, [], []))
    proof.same(model, plan.model, PREPARING, context)
    warnings: list[str] = []
    rankings, tables = ranking.ranked_groups(plan, options, context, levels, warnings)
    parts = [goal.part for goal in goals if goal.whole]
    dropped: tuple[Branch, ...] = ()
    time: float | None = None
    reached: list[ReachedTarget] = []
    if options.timed:
        choice = latency.choose(plan, options, parts, context, rankings, tables, drafter(options.timed_as, context))
        if choice.widths is None:
            raise _unreachable(plan, "latency", float(fast or 1), choice.ratio)
        widths, dropped = choice.widths, choice.dropped
        if fast is not None:
            reached.append(
                ReachedTarget(metric="latency", target=float(fast), reached=choice.ratio, predicted=choice.predicted)
            )
        else:
            time = round(choice.ratio, 3)
    else:
        widths = allocate.choose(tables, allocate.Limits(parts), options.scope)
    leaving = _leaving(plan, rankings, widths)
    removed = np.concatenate([group.atoms[channels] for group, channels in leaving])
    thinner = cut(plan.model, plan.coupling, removed)
    proof.same(proof.zeroed(plan.model, leaving), thinner, "removing channels", context)
    thinner, stand_ins = branches.drop(thinner, dropped)
    result, repairs = _recover(thinner, plan, removed, stand_ins, kinds, context, warnings)
    clean.remove_unused(result)  # dropped branches leave their weights
    clean.tie_tables(result)
    trained = None if options.training is None else training.distill(result, options.training, context)
    result = result if trained is None else trained.model
    reached += [
        ReachedTarget(
            metric=goal.metric, target=goal.share, reached=_spent(goal.metric, result, plan) / (goal.whole or 1)
        )
        for goal in goals
    ]
    cuts, gone = int(np.sum(widths < full)), int(np.sum(full - widths))
    text = f"{gone} of {int(full.sum())} channels removed in {cuts} groups"
    text += f" and {len(dropped)} {'branch' if len(dropped) == 1 else 'branches'}" if dropped else ""
    text += "; " + ", ".join(f"{one.metric} {one.reached:.1%}" for one in reached) + " of the original"
    text += "" if time is None else f", {time:.0%} of its time in {options.timed_as}"
    changed = cuts + len(dropped) + len(plan.rewritten)
    found = details(plan, widths, repairs, reached, dropped)
    if time is not None:
        found = found.model_copy(update={"timed_as": options.timed_as, "time": time})
    if trained is not None:
        text += f"; distill: {trained.summary}"
        found = found.model_copy(update={"training": trained.details})
    return Outcome(result, changed, decisions(plan, widths, dropped), text, found, tuple(warnings))


def _why_nothing(plan: Analysis) -> str:
    if not plan.frozen:
        return "the main graph has no convolution or product with stored weights"
    first = plan.frozen[0]
    return f"all {len(plan.frozen)} groups are frozen (`{first.name}`: {first.frozen})"


def _leaving(plan: Analysis, rankings: Sequence[Ranking], widths: Widths) -> list[tuple[Group, NDArray[np.int64]]]:
    """The channels that go, by group."""
    zipped = zip(plan.groups, rankings, widths, strict=True)
    return [(group, ranking.order[: group.channels - width]) for group, ranking, width in zipped]


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


def _levels(group: Group, options: PruneChannels) -> Widths:
    """Widths a group may have. For time they fill the machine's vector blocks, half a block for narrow layers."""
    least = max(1, int(np.ceil(float(options.min_width) * group.channels)))
    multiple = options.round_to
    if multiple is None:
        block = machine().vector_block if options.timed else 1
        each = max(group.slices[(port.weight, port.axis)].shape[1] for port in group.producers)
        narrow = group.channels * each < 2 * block
        multiple = max(1, (block // 2 if narrow else block) // each)
    return allocate.levels(group.channels, least, multiple)


def _goal(plan: Analysis, metric: str, share: float, context: Context) -> Goal:
    if metric == "macs":
        price = cost_model.macs(plan.model, plan.coupling, plan.groups)
    else:
        as_bytes = metric == "size"
        rest = float(len(io.to_bytes(plan.model)) - io.weight_bytes(plan.model)) if as_bytes else 0.0
        price = cost_model.parameters(plan.model, plan.coupling, plan.groups, as_bytes=as_bytes, base=rest)
    return Goal(metric, share, price, _spent(metric, context.original, plan))


def _spent(metric: str, model: ir.Model, plan: Analysis) -> float:
    """Multiply-accumulates at the analysed input size, float parameters, or bytes of a whole model."""
    if metric == "size":
        return float(len(io.to_bytes(model)))
    lifted = io.clone(model)
    fold.lift_constants(lifted)
    if metric == "params":
        weights = [value.const_value for value in lifted.graph.initializers.values() if value.const_value is not None]
        return float(sum(w.size for w in weights if w.dtype.is_floating_point()))
    seen = {value.name or "": plan.coupling.facts.shapes.get(value.name or "", ()) for value in plan.model.graph.inputs}
    counted = node_cost.macs(lifted, shapes.concrete(lifted, {name: shape for name, shape in seen.items() if shape}))
    return float(sum(counted.values()))


def _unreachable(plan: Analysis, metric: str, share: float, lowest: float) -> StepError:
    # Only a measured time may be above its target, and be reached.
    alone = metric == "latency" and lowest <= share * (1 + latency.CLOSE)
    missed = "but not while the other targets hold" if alone else f"not to {share:.1%}"
    return StepError(
        "prune.target-unreachable",
        f"{metric} can go down to {lowest:.1%} of the original, {missed}",
        cause=f"{len(plan.groups)} groups can lose channels, {len(plan.frozen)} are frozen; each keeps its least width",
        hint="raise the target, lower `min_width`, or exclude less; `lepton plan` lists the frozen groups",
        option=("target", metric),
    )


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
