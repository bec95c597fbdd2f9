"""`convert.fp16`: float32 to float16, with what leaves float16's range or costs accuracy kept in float32."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from lepton_cli.errors import ModelError
from lepton_cli.graph import clean, fold, held
from lepton_cli.graph.facts import quantized_nodes
from lepton_cli.graph.held import scales_stored, stored_in_8_bits
from lepton_cli.graph.select import select
from lepton_cli.model import io
from lepton_cli.probe import calibration
from lepton_cli.probe.distances import Closeness, Reference
from lepton_cli.probe.histogram import MASK
from lepton_cli.quantize import guard, half
from lepton_cli.quantize.blocks import LEAST_SIZE
from lepton_cli.quantize.details import ConvertFp16Details
from lepton_cli.quantize.prepare import STORED_SMALL, refuse_quantized
from lepton_cli.quantize.spec import ConvertFp16
from lepton_cli.quantize.store import WeightStore
from lepton_cli.quantize.targets import resolve
from lepton_cli.quantize.weights import SPILL_ABOVE
from lepton_cli.step import Context, Decision, Outcome

#: A margin is kept to the end of float16 because other data reach further than the samples seen.
MARGIN = 4.0
#: Below this fidelity, operators that cost accuracy are searched for; so many kinds may go back to float32.
LEAST_DB = 30.0
MOST_REPAIRS = 3
#: A kind of operator is to blame when without it at most half of the error is left.
WORTH_DB = 6.0


def convert(model: ir.Model, options: ConvertFp16, context: Context) -> Outcome:
    """The float16 model. Raises ModelError for models that are quantized already, in activations too."""
    refuse_quantized(model, weights_only=True)
    names = [node.name or "" for node in model.graph.all_nodes()]
    chosen = select(names, options.include, options.exclude)
    work = io.clone(model)
    fold.expose_weights(work, growth=STORED_SMALL)
    clean.tie_tables(work)
    holders = [n for n in work.graph.all_nodes() if any(map(_is_weight, n.inputs)) and not scales_stored(n)]
    if not holders:
        return Outcome(model, 0, summary="nothing in float32 to convert")
    if quantized_nodes(work) and sum(holder.values for holder in held.holders(work)) < LEAST_SIZE:
        return Outcome(model, 0, summary="the weights are quantized already: casts would take more than is won")
    # Running a model takes a multiple of its size: the largest ones are run only where there is data for it. Without
    # samples no input is known that the model takes.
    looked_at = io.weight_bytes(work) < io.EXTERNAL_ABOVE or context.calibration is not None
    looked_at &= context.check.count > 0
    kept = {name: "left out by include/exclude" for name in names if name not in chosen} | _deadly(work)
    if options.repair:
        kept |= _beyond_range(work, context, run=looked_at and context.judged)
    conversion = _Conversion(work, context)
    came = None
    if looked_at and context.judged:
        came, found = conversion.repaired(kept, options.repair)
        kept |= found
    made = conversion.made(kept, options.keep_io)
    left = sum(node.name in kept for node in work.graph.all_nodes())
    halves = sum(t.const_value.dtype == ir.DataType.FLOAT16 for t in made.graph.initializers.values() if t.const_value)
    return Outcome(
        made,
        changed=sum(1 for _ in work.graph.all_nodes()) - left,
        decisions=_decisions(work, kept),
        summary=f"{halves} tensors in float16, {left} operators kept in float32",
        details=ConvertFp16Details(**({} if came is None else guard.told(came)), kept=left),
        warnings=_warnings(options.keep_io, came, context),
    )


def _decisions(model: ir.Model, kept: dict[str, str]) -> tuple[Decision, ...]:
    """What stays and why, and which nodes have their weights in float16 now."""
    found = []
    for node in model.graph.all_nodes():
        name = node.name or ""
        if name in kept:
            found.append(Decision(node=name, op=node.op_type, action="kept", reason=kept[name]))
        elif any(map(_is_weight, node.inputs)):
            found.append(Decision(node=name, op=node.op_type, action="converted", reason="weights in float16"))
    return tuple(found)


class _Conversion:
    """Float16 versions of one model, and how close they are to it."""

    def __init__(self, model: ir.Model, context: Context) -> None:
        self._model, self._context = model, context
        # Weights in 8 bits are scaled in float32, which costs nothing: runtimes do it when they load the model.
        self._scaled = [node.name or "" for node in model.graph if stored_in_8_bits(node) or scales_stored(node)]
        self._store = WeightStore(context.workdir if io.weight_bytes(model) > SPILL_ABOVE else None)

    def made(self, kept: dict[str, str], keep_io: bool = True) -> ir.Model:
        return half.convert(self._model, {*kept, *self._scaled}, keep_io, self._store.keep)

    def repaired(self, kept: dict[str, str], repair: bool) -> tuple[Closeness, dict[str, str]]:
        """How close it comes, and the nodes kept in float32 because float16 costs too much there, with the reason.

        Inputs and outputs are float32 while this is measured, also where they will not be.
        """
        fidelity = Reference(self._model, self._context, most=16, batch=4)
        nodes = [node for node in self._model.graph.all_nodes() if node.name not in kept]
        found: dict[str, str] = {}
        came = _closeness(fidelity, self.made(kept))
        kinds = {node.op_type for node in nodes} if repair else set()
        for _ in range(MOST_REPAIRS):
            if came.assured_db >= LEAST_DB or not kinds:
                break
            trials = {}
            for kind in sorted(kinds):
                more = {node.name or "": "" for node in nodes if node.op_type == kind}
                trials[kind] = _closeness(fidelity, self.made(kept | found | more))
            best = max(trials, key=lambda kind: trials[kind].sqnr_db)
            reached, before = trials[best].sqnr_db, came.sqnr_db
            if reached < before + WORTH_DB or reached == -math.inf:
                break
            was = "not usable" if before == -math.inf else f"at {before:.0f} dB"
            reason = f"with `{best}` in float32 the outputs are at {reached:.0f} dB, in float16 {was} (measured)"
            found |= {node.name or "": reason for node in nodes if node.op_type == best}
            came = trials[best]
            kinds.discard(best)
        return came, found


def _closeness(fidelity: Reference, made: ir.Model) -> Closeness:
    try:
        return fidelity.closeness(made)
    except ModelError:  # some kernels refuse what the definition of their operator allows
        return Closeness(-math.inf, -math.inf)


def _warnings(keep_io: bool, came: Closeness | None, context: Context) -> tuple[str, ...]:
    found = []
    if came is not None and came.sqnr_db < LEAST_DB:
        found.append(f"float16 changes the outputs much: {came.sqnr_db:.1f} dB")
    if context.provider == "cpu" and resolve("auto").name.startswith("x86"):
        found.append(
            "onnxruntime computes float16 on x86 CPUs in float32 with casts: expect half the size, not more speed"
        )
    if not keep_io:
        found.append("inputs and outputs are float16 now: callers must feed and expect that type")
    return tuple(found)


def _is_float(value: ir.Value) -> bool:
    """A float32 tensor; sequences of such have the same element type and no values to look at."""
    return value.dtype == ir.DataType.FLOAT and not isinstance(value.type, (ir.SequenceType, ir.OptionalType))


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.is_initializer() and _is_float(value)


def _deadly(model: ir.Model) -> dict[str, str]:
    """Transposes that must not return float16, by name.

    Where the first axis moves behind the other batch axes and a MatMul follows (attention with the time first),
    onnxruntime's fusion of the two ends the process on the CPU, when the type changes between them.
    """
    found = {}
    for node in model.graph.all_nodes():
        order = list(node.attributes.get_ints("perm", ()) or ()) if node.op_type == "Transpose" else []
        rest = [*range(1, len(order) - 1)]
        rolled = len(order) > 2 and order in ([*rest, 0, len(order) - 1], [*rest, len(order) - 1, 0])
        if rolled and any(user.op_type == "MatMul" for user, _ in node.outputs[0].uses()):
            found[node.name or ""] = "onnxruntime ends the process where a MatMul follows this in float16 on a CPU"
    return found


def _beyond_range(model: ir.Model, context: Context, run: bool) -> dict[str, str]:
    """Nodes whose weights or results do not fit float16, by name. Mask constants are cut to float16's range instead."""
    found: dict[str, str] = {}
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.const_value is not None and _is_float(value):
                largest = float(np.abs(value.const_value.numpy()).max(initial=0.0))
                if half.GREATEST < largest < MASK:
                    found[node.name or ""] = f"constant `{value.name}` reaches {largest:.3g}, beyond float16"
    if not run:
        return found
    names = [value.name or "" for node in model.graph for value in node.outputs if _is_float(value)]
    seen = calibration.collect(model, names, context.calibration or context.check, context)
    for node in model.graph:
        for value in (*node.inputs, *node.outputs):
            histogram = seen.histograms.get(value.name or "") if value is not None else None
            if value is None or histogram is None or histogram.empty:
                continue
            largest = max(-histogram.low, histogram.high)
            if largest * MARGIN > half.GREATEST:
                found.setdefault(node.name or "", f"`{value.name}` reaches {largest:.3g}, float16 ends at 65504")
    return found
