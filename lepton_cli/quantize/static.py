"""`quantize.static`: from a float model and calibration data to the best int8 model for the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from lepton_cli.data.dataset import Dataset
from lepton_cli.errors import DataError
from lepton_cli.graph.select import select
from lepton_cli.quantize import choose, limits, qdq, ranges, targets
from lepton_cli.quantize.fidelity import Fidelity
from lepton_cli.quantize.prepare import prepare
from lepton_cli.steps.base import Context, Decision, Outcome

if TYPE_CHECKING:
    from lepton_cli.steps.quantize_static import Params


def quantize(model: ir.Model, params: Params, context: Context) -> Outcome:
    """The quantized model with decisions per node.

    Raises ModelError for models that are quantized already, DataError without usable calibration data.
    """
    target = targets.resolve(params.target, context.provider)
    prepared = prepare(model, context)
    work = prepared.model
    choice = choose.candidates(work, select(prepared.names, params.include, params.exclude))
    if context.dry or not choice.anchors:
        return _outcome(
            model, work, choice, target, prepared.warnings, {}, changed=len(choice.anchors) if context.dry else 0
        )
    found = ranges.collect(work, choose.activations(work, choice), _data(context), context)
    choice = choose.refine(work, choice, found.limits("minmax"), found.masked())
    if not choice.anchors:
        return _outcome(model, work, choice, target, prepared.warnings, {}, changed=0)
    fidelity = Fidelity(work, context)
    best, details = _best_ranges(work, target, choice, found, params, fidelity)
    return _outcome(best, work, choice, target, prepared.warnings, details, changed=len(choice.nodes))


def _data(context: Context) -> Dataset:
    if context.calibration is None:
        raise DataError(
            "data.missing",
            "static quantization needs calibration data",
            hint="give `data: {calibration: ...}` in the recipe, or use `quantize.dynamic`, which needs none",
        )
    return context.calibration


def _best_ranges(
    model: ir.Model,
    target: targets.Target,
    choice: choose.Choice,
    found: ranges.Ranges,
    params: Params,
    fidelity: Fidelity,
) -> tuple[ir.Model, dict[str, Any]]:
    """The calibration method asked for, or the one whose quantized model has the least output error."""
    methods: tuple[limits.Method, ...] = (
        (params.calibration,) if params.calibration else ("minmax", "percentile", "mse")
    )
    tried: dict[str, float] = {}
    best: ir.Model | None = None
    for method in methods:
        levels = 65536 if params.activations == "int16" else 256
        plan = qdq.Plan(target, choice, found.limits(method, levels), activations=params.activations)
        made = qdq.write(model, plan)
        tried[method] = fidelity.sqnr(made)
        if best is None or tried[method] > max(value for name, value in tried.items() if name != method):
            best = made
    assert best is not None
    chosen = max(tried, key=lambda name: tried[name])
    return best, {"calibration": chosen, "sqnr_db": round(tried[chosen], 2), "tried": tried}


def _outcome(
    model: ir.Model,
    floats: ir.Model,
    choice: choose.Choice,
    target: targets.Target,
    warnings: tuple[str, ...],
    details: dict[str, Any],
    changed: int,
) -> Outcome:
    quantized = [
        Decision(node=node.name or "", op=node.op_type, action="quantized", reason=_why(node, choice, target))
        for node in floats.graph
        if node.name in choice.nodes
    ]
    return Outcome(
        model,
        changed,
        decisions=(*quantized, *choice.kept),
        summary=f"{len(choice.anchors)} matrix operators in int8, {len(choice.kept)} kept in float",
        details={"target": target.name, "why": target.why, **details},
        warnings=warnings,
    )


def _why(node: ir.Node, choice: choose.Choice, target: targets.Target) -> str:
    if node.name in choice.anchors:
        return f"{target.activation} activations, int8 weights per channel"
    return "keeps the int8 region around it together"
