"""`quantize.weights`: MatMul, Gemm and embedding weights in 4 or 8 bits by blocks (MatMulNBits, GatherBlockQuantized).

With 8 bits, weights of other operators too, stored so and computed with in float (`stored.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import onnx_ir as ir

from lepton_cli.graph import clean, fold
from lepton_cli.graph.edit import Editor
from lepton_cli.graph.held import LEAST_VALUES
from lepton_cli.graph.select import select
from lepton_cli.model import io
from lepton_cli.probe.distances import Reference
from lepton_cli.probe.rewrites import kept, strayed
from lepton_cli.quantize import blocks, fates, guard, stored
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.details import QuantizeWeightsDetails, Sensitivity
from lepton_cli.quantize.prepare import LEAST_SHARED, STORED_SMALL, refuse_quantized
from lepton_cli.quantize.spec import QuantizeWeights
from lepton_cli.quantize.store import Shared, WeightStore
from lepton_cli.step import Context, Decision, Outcome

#: Above this many bytes of weights, results go to a file in the work folder instead of memory.
SPILL_ABOVE = 256_000_000


def quantize(model: ir.Model, options: QuantizeWeights, context: Context) -> Outcome:
    """The model with weights in fewer bits. Raises ModelError where all of them are quantized already."""
    allowed = select((node.name or "" for node in model.graph.all_nodes()), options.include, options.exclude)
    copy = io.clone(model)
    fold.expose_weights(copy, growth=STORED_SMALL)
    clean.tie_tables(copy)
    clean.share_initializers(copy, LEAST_SHARED, across=True)  # what stays float for one stays so for all: `_spared`
    decisions = _decided(copy, allowed, options)
    names = _quantized(decisions)
    details = QuantizeWeightsDetails(
        bits=options.bits, block_size=options.block_size, method=options.method, symmetric=options.symmetric
    )
    if not names:
        refuse_quantized(model)
        return Outcome(model, 0, tuple(decisions), f"0 weights to {options.bits} bits", details)
    store = WeightStore(context.workdir if io.weight_bytes(model) > SPILL_ABOVE else None, empty=context.dry)
    with context.progress.stage("quantize.weights", len(names)) as stage:
        made, errors = _written(copy, names, options, store, stage.advance)
    if context.dry:
        return Outcome(made, len(names), tuple(decisions), f"{len(names)} weights to {options.bits} bits", details)
    warnings: tuple[str, ...] = ()
    left_because = ""
    if store.path is None:  # no second run of what fills the memory
        if wrong := strayed(copy, made, names, context):
            decisions = _spared(copy, kept(decisions, wrong))
            names = _quantized(decisions)
            made, errors = _written(copy, names, options, store)
        if names and context.check.count:
            made, returned, measured, warnings = _held(copy, made, names, options, store, context)
            decisions, details = _spared(copy, kept(decisions, returned)), details.model_copy(update=measured)
            if names - returned.keys() != (names := _quantized(decisions)):
                made, errors = _written(copy, names, options, store)
            left_because = "" if names else f"{options.bits} bits cost too much everywhere"
    details = details.model_copy(update={"sensitivity": tuple(error for error in errors if error.node in names)})
    summary = f"{len(names)} weights to {options.bits} bits in blocks of {options.block_size}"
    return Outcome(
        made if names else model,
        len(names),
        tuple(decisions),
        left_because or summary,
        details,
        warnings,
        left_because=left_because,
    )


def _quantized(decisions: Sequence[Decision]) -> set[str]:
    return {decision.node for decision in decisions if decision.action == "quantized"}


def _held(
    model: ir.Model,
    made: ir.Model,
    names: set[str],
    options: QuantizeWeights,
    store: WeightStore,
    context: Context,
) -> tuple[ir.Model, dict[str, str], dict[str, Any], tuple[str, ...]]:
    """Where the outputs of `made` are too far off, what has fewer weights in 8 bits, and those returned, with a reason.

    Also what was measured, and warnings. 4 bits are a choice for size: they stay where they are asked for.
    """
    fidelity = Reference(model, context)
    came = fidelity.closeness(made)
    insists = context.calibration is None or not options.fidelity_guard
    if options.bits != 8 or insists or came.assured_db >= guard.FLOOR_DB:
        warnings = guard.far(came, context) if options.bits == 8 else ()
        return made, {}, guard.told(came), warnings

    def write(choice: Choice) -> ir.Model:
        return _written(model, choice.anchors, options, store)[0]

    before = Choice(frozenset(names), frozenset(), ())
    few = fidelity.first(guard.NORMAL.few)
    choice, made, told = guard.hold_fidelity(
        model,
        before,
        write,
        lambda: guard.sensitivity(model, before, write, few, context),
        fidelity,
        "8 bits",
        first=(made, came),
    )
    holds = fidelity.closeness(made)
    warnings = (*guard.many_returned(before, choice, came, "weights", "8 bits"), *guard.far(holds, context))
    measured = {"fidelity_guard": told, **guard.told(holds)}
    return made, {decision.node: decision.reason for decision in choice.kept}, measured, warnings


def _written(
    model: ir.Model,
    names: Collection[str],
    options: QuantizeWeights,
    store: WeightStore,
    advance: Callable[[], None] = lambda: None,
) -> tuple[ir.Model, list[Sensitivity]]:
    """A copy in which the weights of the nodes `names` are stored in fewer bits, and the error of each."""
    copy = io.clone(model)
    editor, errors = Editor(copy), []
    shared: Shared = {}
    chosen = [(node, _form(node, options)) for node in copy.graph.all_nodes() if node.name in names]
    for node, form in chosen:
        if form == "blocks":
            ratio = blocks.replace(editor, node, options, store, shared)
            copy.graph.opset_imports[blocks.MICROSOFT] = 1
        else:
            ratio = stored.replace(editor, node, store, shared)
        errors.append(Sensitivity(node=node.name or "", op=node.op_type, sqnr_db=round(ratio, 2)))
        advance()
    clean.remove_unused(copy)
    return copy, errors


def _decided(model: ir.Model, allowed: set[str], options: QuantizeWeights) -> list[Decision]:
    decisions = []
    for node in model.graph.all_nodes():
        blocked = node.op_type in blocks.BLOCKS and not node.domain
        places = stored.places(node)
        reason = blocks.refused(node, options) if blocked else stored.refused(node)
        if not (blocked or places or reason):
            continue
        form = _form(node, options)
        if places and not blocked:
            reason = f"4 bits are for {', '.join(blocks.BLOCKS)}; `bits: 8` takes it"
        if node.name not in allowed:
            form, reason = None, "left out by include/exclude"
        if form is not None:
            reason = "stored in 8 bits, one scale per channel, computed in float"
            if form == "blocks":
                reason = f"{options.bits} bits, blocks of {blocks.block_size(node, options)}"
        action = "kept" if form is None else "quantized"
        decisions.append(Decision(node=node.name or "", op=node.op_type, action=action, reason=reason or ""))
    decisions = _spared(model, decisions)
    takes = "4 bits are for MatMul, Gemm and Gather" if options.bits == 4 else "8 bits are for weights that are summed"
    return [*decisions, *fates.left_alone(model, decisions, takes, {})]


def _form(node: ir.Node, options: QuantizeWeights) -> Literal["blocks", "stored"] | None:
    """How the node's weights are stored. All who look up and multiply by one table do it in the same way."""
    in_blocks = blocks.refused(node, options) is None
    if options.bits == 4 or not stored.places(node):
        return "blocks" if in_blocks else None
    return (
        "blocks"
        if in_blocks and all(blocks.refused(user, options) is None for user in blocks.lookups(node))
        else "stored"
    )


def _spared(model: ir.Model, decisions: list[Decision]) -> list[Decision]:
    """The decisions where a weight that stays float for one of its readers stays so for all: it would be held twice."""
    while True:
        names = {decision.node for decision in decisions if decision.action == "quantized"}
        wrong: dict[str, str] = {}
        for node in [node for node in model.graph.all_nodes() if node.name in names]:
            for value in {stored.behind(value)[0] for value in node.inputs}:
                tensor = None if value is None else value.const_value
                if value is None or tensor is None or tensor.size < LEAST_VALUES:
                    continue
                other = _float_reader(value, names)
                if other is not None:
                    wrong[node.name or ""] = f"{other} reads its weight in float too: the file would grow"
        if not wrong:
            return decisions
        decisions = kept(decisions, wrong)


def _float_reader(value: ir.Value, names: Collection[str]) -> str | None:
    """What reads a weight and is none of the nodes `names`, in words."""
    if value.is_graph_output():
        return f"the output `{value.name}`"
    for user, _ in value.uses():
        turned = [other for out in user.outputs for other, _ in out.uses() if stored.behind(out)[0] is value]
        for reader in turned or [user]:
            if reader.name not in names:
                return f"`{reader.name}`"
    return None
