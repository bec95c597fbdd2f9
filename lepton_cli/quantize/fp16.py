"""`convert.fp16`: float32 to float16 by onnxruntime's converter, with what leaves float16's range kept in float32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from lepton_cli.errors import ModelError, StepError
from lepton_cli.graph.fold import lift_constants
from lepton_cli.graph.held import holders
from lepton_cli.graph.select import select
from lepton_cli.model import io
from lepton_cli.probe import calibration
from lepton_cli.probe.distances import Reference
from lepton_cli.probe.histogram import MASK
from lepton_cli.quantize.details import ConvertFp16Details
from lepton_cli.quantize.spec import ConvertFp16
from lepton_cli.quantize.targets import resolve
from lepton_cli.runtime import one_line, onnxruntime, quiet
from lepton_cli.step import Context, Decision, Outcome

#: Greatest finite float16; a margin is kept because other data reach further than the samples seen.
GREATEST = 65504.0
MARGIN = 4.0
#: Below this fidelity, operators that overflow inside are searched for; so many kinds may go back to float32.
LEAST_DB = 30.0
MOST_REPAIRS = 3


def convert(model: ir.Model, options: ConvertFp16, context: Context) -> Outcome:
    """The float16 model. Raises ModelError when there is nothing in float32, StepError when the converter fails."""
    model = io.clone(model)
    lift_constants(model)
    names = [node.name or "" for node in model.graph.all_nodes()]
    chosen = select(names, options.include, options.exclude)
    floats = sum(
        value.const_value.dtype == ir.DataType.FLOAT
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    blocked = {name: "left out by include/exclude" for name in names if name not in chosen}
    blocked |= _beyond_range(model, context)
    kept = [
        Decision(node=node.name or "", op=node.op_type, action="kept", reason=blocked[node.name or ""])
        for node in model.graph.all_nodes()
        if node.name in blocked
    ]
    if not floats:
        return Outcome(model, 0, tuple(kept), "nothing in float32 to convert")
    if context.dry:
        told = (*kept, *_converted_weights(model, kept))
        return Outcome(model, len(names) - len(blocked), told, f"{floats} tensors to float16")
    made, score, repaired = _repaired(model, blocked, options.keep_io, context)
    kept += [
        Decision(
            node=node.name or "", op=node.op_type, action="kept", reason="float16 ruins the outputs here (measured)"
        )
        for node in model.graph.all_nodes()
        if node.op_type in repaired and node.name not in blocked
    ]
    halves = sum(t.const_value.dtype == ir.DataType.FLOAT16 for t in made.graph.initializers.values() if t.const_value)
    return Outcome(
        made,
        changed=len(names) - len(kept),
        decisions=(*kept, *_converted_weights(model, kept)),
        summary=f"{halves} tensors in float16, {len(kept)} operators kept in float32",
        details=ConvertFp16Details(sqnr_db=None if score is None else round(score, 2), kept=len(kept)),
        warnings=_warnings(options.keep_io, score, context),
    )


def _converted_weights(model: ir.Model, kept: list[Decision]) -> list[Decision]:
    """All other nodes that hold weights; the rest of the operators is too many to name."""
    stay = {decision.node for decision in kept}
    return [
        Decision(node=node.name or "", op=node.op_type, action="converted", reason="weights in float16")
        for node in (holder.node for holder in holders(model))
        if node.name not in stay
    ]


def _repaired(
    model: ir.Model, blocked: dict[str, str], keep_io: bool, context: Context
) -> tuple[ir.Model, float | None, set[str]]:
    """The converted model, its fidelity in dB, and the operators kept in float32 because float16 ruined the outputs."""
    made = _converted(model, sorted(blocked), keep_io)
    if not keep_io:
        return made, None, set()
    fidelity = Reference(model, context, most=16, batch=4)
    score = fidelity.sqnr(made)
    repaired: set[str] = set()
    kinds = sorted({node.op_type for node in model.graph if node.name not in blocked})
    while score < LEAST_DB and len(repaired) < MOST_REPAIRS:
        trials = []
        for kind in kinds:
            names = {node.name or "" for node in model.graph if node.op_type in repaired | {kind}}
            try:
                trial = _converted(model, sorted(names | set(blocked)), keep_io)
            except StepError:
                continue  # the converter cannot keep this kind: it declares a cast twice
            trials.append((fidelity.sqnr(trial), kind, trial))
        if not trials:
            break
        best, kind, trial = max(trials, key=lambda entry: entry[0])
        if best <= score:
            break
        score, made = best, trial
        repaired.add(kind)
    return made, score, repaired


def _warnings(keep_io: bool, score: float | None, context: Context) -> tuple[str, ...]:
    found = []
    if score is not None and score < LEAST_DB:
        found.append(f"float16 changes the outputs much: {score:.1f} dB")
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


def _converted(model: ir.Model, blocked: list[str], keep_io: bool) -> ir.Model:
    onnxruntime()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if io.weight_bytes(model) >= io.EXTERNAL_ABOVE:
        raise ModelError("model.too-large", "models above 1.8 GB cannot be converted to float16 yet")
    try:
        with quiet(), np.errstate(all="ignore"):
            proto = convert_float_to_float16(
                onnx.shape_inference.infer_shapes(io.to_proto(model)),
                keep_io_types=keep_io,
                disable_shape_infer=True,
                node_block_list=blocked,
                min_positive_val=5.97e-08,
                max_finite_val=GREATEST,
            )
            made: ir.Model = ir.from_proto(proto)
    except Exception as error:  # the converter raises whatever its protobuf code raises
        raise StepError(
            "fp16.converter", "onnxruntime's float16 converter cannot convert this graph", cause=one_line(error)
        ) from error
    _join_casts(made)
    made.graph.sort()
    return made


def _join_casts(model: ir.Model) -> None:
    """The converter casts around every float32 node: between two of them the value would squeeze through float16."""
    for node in list(model.graph.all_nodes()):
        source = node.inputs[0] if node.op_type == "Cast" else None
        before = source.producer() if source is not None else None
        if source is None or before is None or before.op_type != "Cast" or before.inputs[0] is None:
            continue
        kinds = [cast.attributes.get_int("to", 0) for cast in (before, node)]
        if kinds != [ir.DataType.FLOAT16, ir.DataType.FLOAT]:
            continue
        if node.outputs[0].is_graph_output():
            node.replace_input_with(0, before.inputs[0])  # a cast to its own type: the output keeps its name
        else:
            ir.convenience.replace_all_uses_with(node.outputs[0], before.inputs[0])
    common.RemoveUnusedNodesPass()(model)


def _beyond_range(model: ir.Model, context: Context) -> dict[str, str]:
    """Nodes whose weights or results do not fit float16, by name. Mask constants are cut to float16's range instead."""
    found: dict[str, str] = {}
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.const_value is not None and _is_float(value):
                largest = float(np.abs(value.const_value.numpy()).max(initial=0.0))
                if GREATEST < largest < MASK:
                    found[node.name or ""] = f"constant `{value.name}` reaches {largest:.3g}, beyond float16"
    if context.dry:
        return found
    names = [value.name or "" for node in model.graph for value in node.outputs if _is_float(value)]
    seen = calibration.collect(model, names, context.calibration or context.check, context)
    for node in model.graph:
        for value in (*node.inputs, *node.outputs):
            histogram = seen.histograms.get(value.name or "") if value is not None else None
            if value is None or histogram is None or histogram.empty:
                continue
            largest = max(-histogram.low, histogram.high)
            if largest * MARGIN > GREATEST:
                found.setdefault(node.name or "", f"`{value.name}` reaches {largest:.3g}, float16 ends at 65504")
    return found
