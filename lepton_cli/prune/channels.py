"""`prune.channels`: analyse, rank, allocate, cut, repair; the order of things and what is said about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.errors import DataError, StepError
from lepton_cli.graph import cost as node_cost
from lepton_cli.graph import coupling_facts, io, select, shapes
from lepton_cli.graph.coupling import Coupling, Group, analyse
from lepton_cli.graph.cut import cut
from lepton_cli.prune import allocate, fold, importance, kept, linear, recover, sensitivity
from lepton_cli.prune import cost as cost_model
from lepton_cli.prune.allocate import Table
from lepton_cli.prune.cost import Cost, Widths
from lepton_cli.prune.hessian import Ranking
from lepton_cli.steps.base import Context, Decision, Outcome

if TYPE_CHECKING:
    from lepton_cli.steps.prune_channels import Params


@dataclasses.dataclass(frozen=True)
class Plan:
    """An analysed model and what may be pruned in it."""

    model: ir.Model
    coupling: Coupling
    #: Groups that may lose channels.
    groups: tuple[Group, ...]
    #: Groups that may not, with the reason filled in.
    frozen: tuple[Group, ...]
    #: |scale| of folded normalisations by layer.
    scales: Mapping[str, NDArray[np.float64]]


def prune(model: ir.Model, params: Params, context: Context) -> Outcome:
    """Remove channels until the target holds. Raises StepError when it cannot be reached."""
    kinds = _recoveries(params, context)
    plan = analysed(
        model, params, _feeds(model, context), folding="batch_norm" not in kinds or "least_squares" in kinds
    )
    if not plan.groups:
        return Outcome(model, 0, _decisions(plan, None), "no channel can be removed", _details(plan, None, [], {}))
    _check_finite(plan.model)
    name, share = _target(params)
    price, budget = _budget(plan, name, share, context)
    least = _least(plan.groups, params)
    floors = np.array(
        [allocate.levels(g.channels, low, _round(params))[-1] for g, low in zip(plan.groups, least, strict=True)]
    )
    _check_reachable(price, floors, budget, name, share, plan)
    if context.dry:
        summary = (
            f"{len(plan.groups)} groups can lose channels; {name} can go down to {price(floors) / budget * share:.1%}"
        )
        return Outcome(model, len(plan.groups), _decisions(plan, None), summary, _details(plan, None, [], {}))
    full = np.array([group.channels for group in plan.groups])
    if price(full) <= budget:
        return Outcome(
            model, 0, _decisions(plan, None), f"{name} is already within {share:.1%}", _details(plan, None, [], {})
        )
    warnings: list[str] = []
    rankings, tables = _ranked(plan, params, context, least, warnings)
    chooser = allocate.best if params.scope == "global" else allocate.uniform
    widths = chooser(tables, price, budget)
    removed = np.concatenate(
        [
            group.atoms[ranking.order[: group.channels - width]]
            for group, ranking, width in zip(plan.groups, rankings, widths, strict=True)
        ]
    )
    result = cut(plan.model, plan.coupling, removed)
    repairs = _recover(result, plan, removed, kinds, context, warnings)
    reached = price(widths) / budget * share
    details = _details(plan, widths, repairs, {"metric": name, "target": share, "reached": reached})
    cuts = int(np.sum(widths < full))
    summary = f"{int(np.sum(full - widths))} of {int(full.sum())} channels removed in {cuts} groups; {name} {reached:.1%} of the original"
    return Outcome(result, cuts, _decisions(plan, widths), summary, details, tuple(warnings))


def analysed(model: ir.Model, params: Params, feeds: Mapping[str, Sequence[int]], *, folding: bool = True) -> Plan:
    """The prepared model and its groups under `include` and `exclude`."""
    chosen = select.select([node.name or "" for node in model.graph.all_nodes()], params.include, params.exclude)
    prepared, facts = coupling_facts.prepare(model, feeds)
    scales = fold.fold(prepared) if folding else {}
    coupling = analyse(prepared, facts)
    groups: list[Group] = []
    frozen: list[Group] = []
    for group in coupling.groups:
        outside = next((port.node for port in group.producers if port.node not in chosen), None)
        if group.frozen is None and outside is not None:
            group = dataclasses.replace(group, frozen="left out by include/exclude", node=outside)
        if group.frozen is None and group.channels < 2:
            group = dataclasses.replace(group, frozen="a single channel", node=group.name)
        (groups if group.frozen is None else frozen).append(group)
    return Plan(prepared, coupling, tuple(groups), tuple(frozen), scales)


def survey(model: ir.Model, feeds: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """Facts about every channel group, without data: for `inspect --channels` and `plan`."""
    from lepton_cli.steps.prune_channels import Params

    plan = analysed(model, Params(step="prune.channels"), feeds)
    groups = (*plan.groups, *plan.frozen)
    macs = cost_model.macs(plan.model, plan.coupling, groups)
    size = cost_model.parameters(plan.model, plan.coupling, groups)
    full = np.array([group.channels for group in groups], np.int64)
    found = []
    for index, group in enumerate(groups):
        none = full.copy()
        none[index] = 0
        found.append(
            {
                "name": group.name,
                "channels": group.channels,
                "nodes": [port.node for port in group.producers],
                "consumers": [port.node for port in group.consumers],
                "macs_share": 1 - macs(none) / max(macs(full), 1.0),
                "params": round(size(full) - size(none)),
                "frozen": group.frozen,
                "node": group.node,
            }
        )
    return found


def _feeds(model: ir.Model, context: Context) -> dict[str, tuple[int, ...]]:
    """Input shapes of a real batch, of two samples where the model's batch is open."""
    batch = next(iter(context.check.batches(None, None)), None)
    feeds = batch.feeds if batch is not None else {}
    known = {name: array.shape for name, array in feeds.items() if hasattr(array, "shape")}
    result = {}
    for info in io.inputs(model):
        shape = list(known.get(info.name) or info.concrete(2, 16))
        if info.shape and not isinstance(info.shape[0], int):
            shape[0] = 2
        result[info.name] = tuple(shape)
    return result


def _recoveries(params: Params, context: Context) -> tuple[str, ...]:
    if context.calibration is None:
        if params.recover:
            raise DataError(
                "data.missing",
                f"recovery ({', '.join(params.recover)}) needs calibration data, and the recipe gives none",
                hint="add `data: {calibration: {path: ...}}`, or `recover: []`",
                option=("recover",),
            )
        if params.importance in ("hessian", "activation"):
            raise DataError(
                "data.missing",
                f"importance `{params.importance}` needs calibration data, and the recipe gives none",
                hint="add `data: {calibration: {path: ...}}`, or choose `l2`",
                option=("importance",),
            )
        return ()
    return ("least_squares", "bias") if params.recover is None else params.recover


def _target(params: Params) -> tuple[str, float]:
    for name in ("macs", "params", "size", "latency"):
        share = getattr(params.target, name)
        if share is not None:
            return name, float(share)
    raise StepError("prune.no-target", "no target is given", option=("target",))


def _round(params: Params) -> int:
    return params.round_to or 1


def _budget(plan: Plan, name: str, share: float, context: Context) -> tuple[Cost, float]:
    """The price of widths and what may be spent: a share of what the run's original model costs."""
    original = io.clone(context.original)
    coupling_facts.lift_constants(original)
    if name == "macs":
        seen = {
            value.name or "": plan.coupling.facts.shapes.get(value.name or "", ()) for value in plan.model.graph.inputs
        }
        counted = node_cost.macs(original, shapes.concrete(original, {k: v for k, v in seen.items() if v}))
        price = cost_model.macs(plan.model, plan.coupling, plan.groups)
        return price, share * float(sum(counted.values()))
    as_bytes = name == "size"
    weights = [v.const_value for v in original.graph.initializers.values() if v.const_value is not None]
    if not as_bytes:
        price = cost_model.parameters(plan.model, plan.coupling, plan.groups)
        return price, share * float(sum(w.size for w in weights if w.dtype.is_floating_point()))
    rest = len(io.to_bytes(plan.model)) - io.weight_bytes(plan.model)
    price = cost_model.parameters(plan.model, plan.coupling, plan.groups, as_bytes=True, base=float(rest))
    return price, share * float(len(io.to_bytes(context.original)))


def _least(groups: Sequence[Group], params: Params) -> list[int]:
    return [max(1, int(np.ceil(float(params.min_width) * group.channels))) for group in groups]


def _check_reachable(price: Cost, floors: Widths, budget: float, name: str, share: float, plan: Plan) -> None:
    lowest = price(floors)
    if lowest > budget:
        raise StepError(
            "prune.target-unreachable",
            f"{name} can go down to {lowest / budget * share:.1%} of the original, not to {share:.1%}",
            cause=f"{len(plan.groups)} groups can lose channels, {len(plan.frozen)} are frozen; every group keeps its least width",
            hint="raise the target, lower `min_width`, or exclude less; `lepton plan` lists the frozen groups",
            option=("target", name),
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
            and not np.isfinite(np.asarray(tensor.numpy(), np.float32)).all()
        ):
            raise StepError(
                "prune.non-finite",
                f"the weights `{name}` of node `{users[0]}` are not finite",
                hint="the model is damaged",
            )


def _source(context: Context) -> recover.Source | None:
    data = context.calibration
    return None if data is None else recover.Source(data, context.workdir, context.threads, context.seed, data.count)


def _ranked(
    plan: Plan, params: Params, context: Context, least: Sequence[int], warnings: list[str]
) -> tuple[list[Ranking], list[Table]]:
    """The order of removal and the loss at every level, for every group."""
    source = _source(context)
    kind = params.importance or ("hessian" if source is not None else "l2")
    if source is None:
        warnings.append(
            "no calibration data: channels are ranked by their weights and nothing is repaired; expect to lose accuracy"
        )
    data = None if source is None else (source.data.fingerprint, source.samples)
    names = [group.name for group in plan.groups]
    name = kept.key(plan.model, kind, params.recover != (), names, list(least), data, context.seed)
    ranked = kept.load(context.cache, name, names)
    if not ranked:
        ranked = _rank(plan, params, context, least, kind)
        kept.save(context.cache, name, ranked)
    tables = []
    for group, low in zip(plan.groups, least, strict=True):
        levels = allocate.levels(group.channels, low, _round(params))
        tables.append(Table(levels, ranked[group.name][1][group.channels - levels]))
    return [ranked[group.name][0] for group in plan.groups], tables


def _rank(plan: Plan, params: Params, context: Context, least: Sequence[int], kind: str) -> kept.Ranked:
    """The order of removal and its loss, group by group: the long part, and the same for every target."""
    layers = linear.find(plan.model)
    rankings: dict[str, Ranking] = {}
    curves: dict[str, NDArray[np.float64]] = {}
    source = _source(context)
    low = dict(zip((group.name for group in plan.groups), least, strict=True))
    if source is not None:
        total = cost_model.macs(plan.model, plan.coupling, plan.groups)(np.array([g.channels for g in plan.groups]))
        samples = next(
            (s[0] for s in (plan.coupling.facts.shapes.get(i.name, ()) for i in io.inputs(plan.model)) if s), 1
        )
        trial = sensitivity.prepare(
            plan.model, plan.coupling, source, len(plan.groups) * len(sensitivity.LEVELS), total / max(samples, 1)
        )
    with context.progress.stage("ranking channels", len(plan.groups)) as stage:
        for chunk in importance.chunks(plan.groups, layers, plan.model):
            needs = source is not None and (kind in ("hessian", "activation") or params.recover != ())
            grams = importance.grams(plan.model, chunk, layers, source) if needs and source is not None else {}
            for group in chunk:
                readers = importance.consumers(group, layers)
                if kind in ("hessian", "activation") and readers:
                    rankings[group.name] = importance.with_data(kind, plan.model, group, layers, grams, low[group.name])
                else:
                    fallback = "l2" if kind in ("hessian", "activation") else kind
                    scores = importance.data_free(fallback, plan.model, group, plan.scales)
                    rankings[group.name] = importance.by_scores(scores, low[group.name])
                curve = rankings[group.name]
                curves[group.name] = (
                    sensitivity.curve(trial, group, curve, layers, grams)
                    if source is not None
                    else np.concatenate([[0.0], curve.loss])
                )
                stage.advance()
    return {group.name: (rankings[group.name], curves[group.name]) for group in plan.groups}


def _recover(
    result: ir.Model,
    plan: Plan,
    removed: NDArray[np.int64],
    kinds: Sequence[str],
    context: Context,
    warnings: list[str],
) -> list[recover.Repair]:
    """Repair layer after layer, in place."""
    source = _source(context)
    if source is None or not {"least_squares", "bias"} & set(kinds):
        return []
    repairs: list[recover.Repair] = []
    layers = recover.after_the_cut(result, plan.coupling, removed)
    with context.progress.stage("repairing layers", len(layers)) as stage:
        for together in recover.stages(layers):
            now = linear.find(result)
            fresh = [now[layer.node] for layer in together]
            repairs += recover.repair(result, plan.model, fresh, plan.coupling, removed, source, kinds)
            stage.advance(len(together))
        stage.note(f"{sum(r.kept for r in repairs)} of {len(repairs)} repairs kept")
    scarce = [repair.node for repair in repairs if repair.scarce]
    if scarce:
        warnings.append(
            f"{source.samples} calibration samples are few for {len(scarce)} layers (first: `{scarce[0]}`): "
            "their repair leans on the original weights"
        )
    return repairs


def _decisions(plan: Plan, widths: Widths | None) -> tuple[Decision, ...]:
    operators = {node.name: node.op_type for node in plan.model.graph}
    found: dict[str, Decision] = {}
    for index, group in enumerate(plan.groups):
        for port in group.producers:
            if widths is None:
                action, reason = "prunable", f"{group.channels} channels"
            elif widths[index] < group.channels:
                action, reason = "pruned", f"{group.channels} -> {widths[index]} channels"
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


def _details(
    plan: Plan, widths: Widths | None, repairs: Sequence[recover.Repair], goal: Mapping[str, Any]
) -> dict[str, Any]:
    kept = [group.channels for group in plan.groups] if widths is None else [int(width) for width in widths]
    groups = [
        {"name": g.name, "channels": g.channels, "kept": k, "frozen": False, "reason": "", "node": ""}
        for g, k in zip(plan.groups, kept, strict=True)
    ]
    groups += [
        {"name": g.name, "channels": g.channels, "kept": g.channels, "frozen": True, "reason": g.frozen, "node": g.node}
        for g in plan.frozen
    ]
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    for group, width in zip((*plan.groups, *plan.frozen), [*kept, *(g.channels for g in plan.frozen)], strict=True):
        for port in group.producers:
            each = group.slices[(port.weight, port.axis)].shape[1]
            before[port.node] = before.get(port.node, 0) + group.channels * each
            after[port.node] = after.get(port.node, 0) + width * each
    return {
        "widths": [{"node": node, "before": before[node], "after": after[node]} for node in before],
        "groups": groups,
        "recovery": recover.facts(repairs),
        **goal,
    }
