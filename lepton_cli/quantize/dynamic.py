"""`quantize.dynamic`: int8 weights, activations quantized while running; no data needed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from lepton_cli.errors import RecipeError, StepError
from lepton_cli.graph import clean
from lepton_cli.graph.edit import is_constant, weight_of
from lepton_cli.graph.facts import why_computed
from lepton_cli.graph.select import select
from lepton_cli.model import io
from lepton_cli.probe import channels
from lepton_cli.probe.distances import Reference
from lepton_cli.probe.rewrites import Rewrite, held, kept, strayed
from lepton_cli.quantize import aside, attention, blocks, cpu, fates, guard, smooth, streamed, tables, targets, weights
from lepton_cli.quantize.choose import LEAST_SIDE, Choice, inside_subgraphs, more_than_product
from lepton_cli.quantize.details import QuantizeDynamicDetails
from lepton_cli.quantize.prepare import gemm_to_matmul, prepare, refuse_quantized, share
from lepton_cli.quantize.spec import QuantizeDynamic
from lepton_cli.quantize.store import WeightStore
from lepton_cli.runtime import one_line, onnxruntime, quiet
from lepton_cli.step import Context, Decision, Outcome

#: What onnxruntime's writer can quantize dynamically.
SUPPORTED = ("MatMul", "Gemm", "Gather", "Attention", "LSTM", "Conv", "EmbedLayerNormalization")

#: Evening out the inputs costs one multiplication per tensor: worth it for this much.
WORTH_DB = 0.5


def quantize(model: ir.Model, options: QuantizeDynamic, context: Context) -> Outcome:
    """The dynamically quantized model.

    Raises ModelError where all is quantized already, RecipeError for operators that cannot be.
    """
    for index, op in enumerate(options.op_types):
        if op not in SUPPORTED:
            raise RecipeError(
                "recipe.op-type",
                f"`{op}` cannot be quantized dynamically",
                hint=f"choose from {', '.join(SUPPORTED)}",
                option=("op_types", index),
            )
    target = targets.resolve(options.target, context.provider)
    large = io.weight_bytes(model) > weights.SPILL_ABOVE
    every = [node.name or "" for node in model.graph.all_nodes()]
    excluded = set(every) - select(every, options.include, options.exclude)
    prepared = prepare(model, context, *(_faster(excluded, large) if cpu.suits(target) else ()))
    allowed = select(prepared.names, options.include, options.exclude)
    if large:  # tables are not turned ahead, nor held twice
        clean.tie_tables(prepared.model)
    chosen: list[ir.Node] = []
    decisions: list[Decision] = []
    for node in prepared.model.graph:
        if node.op_type not in SUPPORTED or node.op_type == "Gather":
            continue
        reason = _refused(node, options.op_types, large) if node.name in allowed else "left out by include/exclude"
        if reason is None:
            chosen.append(node)
        action, why = ("kept", reason) if reason else ("quantized", "int8 weights, activations measured while running")
        decisions.append(Decision(node=node.name or "", op=node.op_type, action=action, reason=why))
    decisions += inside_subgraphs(prepared.model, set(SUPPORTED) - {"Gather"})
    decisions += attention.decisions(prepared.model, every)
    details = QuantizeDynamicDetails(target=target.name, why=target.why)
    summary = f"{len(chosen)} operators quantized, {len(decisions) - len(chosen)} kept in float"
    names = {node.name or "" for node in chosen}
    if large and any(node.op_type in ("MatMul", "Gemm") for node in chosen):
        lookups = allowed if "Gather" in options.op_types else set()
        matrices = [node for node in chosen if node.op_type in ("MatMul", "Gemm")]
        for reader in dict.fromkeys(reader for node in matrices for reader in streamed.tied(node, lookups)):
            reason = "table in 8 bits, one scale per row, stored once with the product by it"
            decisions.append(Decision(node=reader.name or "", op="Gather", action="quantized", reason=reason))
        decisions += _left_alone(prepared.model, decisions, options)
        return _streamed(prepared.model, matrices, lookups, tuple(decisions), target, details, context)
    ready = prepared.model
    if names and cpu.suits(target) and not context.dry:
        ready, softened = cpu.soften_masks(ready, context)
        decisions += softened
    made, warnings = ready, prepared.warnings
    if names:
        products = Rewrite("Gemm as MatMul and Add", lambda copy: gemm_to_matmul(copy, names), needed=True)
        ready, left = held(ready, [products], context)
        warnings += left
        given, unsmoothed = ready, details

        def write(trial: ir.Model) -> ir.Model:
            return _written(trial, names, options.op_types, target, context.workdir)

        def smoothed() -> tuple[ir.Model, QuantizeDynamicDetails]:
            return _smoothed(given, names, write, unsmoothed, context)

        made, details = smoothed() if context.judged else (write(ready), details)
        if context.judged and (wrong := strayed(given, made, names, context)):
            names -= wrong.keys()
            decisions = kept(decisions, wrong)
            made, details = smoothed() if names else (given, unsmoothed)
    if "Gather" in options.op_types:
        made, stored = tables.shrink(made, allowed)
        decisions += stored
    decisions += _left_alone(prepared.model, decisions, options)
    changed = sum(decision.action == "quantized" for decision in decisions)
    if not changed:
        refuse_quantized(model)
        return Outcome(model, 0, tuple(decisions), summary, details)
    if not context.judged:
        return Outcome(made, changed, tuple(decisions), summary, details)
    if context.check.count:
        came = Reference(model, context).closeness(made)
        details = details.model_copy(update=guard.told(came))
        warnings += guard.far(came, context)
    return Outcome(made, changed, tuple(decisions), summary, details, _warnings(chosen, target, warnings))


def _faster(excluded: set[str], large: bool) -> list[Rewrite]:
    """What keeps the float operators between products from eating the gain. `large`: too large to be converted."""
    sums = Rewrite("Add before LayerNormalization as Sum", cpu.spare_slow_sums)
    joined = Rewrite("attention as one operator", lambda model: attention.join(model, excluded))
    return [sums] if large else [sums, joined]


def _left_alone(model: ir.Model, decisions: list[Decision], options: QuantizeDynamic) -> tuple[Decision, ...]:
    tables = fates.TABLES if "Gather" in options.op_types else {"Gather": "Gather is not among op_types"}
    takes = f"dynamic int8 is for {', '.join(options.op_types)}"
    return fates.left_alone(model, decisions, takes, {**fates.NO_KERNEL, **tables})


def _smoothed(
    model: ir.Model,
    names: set[str],
    write: Callable[[ir.Model], ir.Model],
    details: QuantizeDynamicDetails,
    context: Context,
) -> tuple[ir.Model, QuantizeDynamicDetails]:
    """The quantized model; with calibration data, from evened-out inputs where its outputs come closer so."""
    plain = write(io.clone(model))
    choice = Choice(frozenset(names), frozenset(), ())
    readers = smooth.readers(model, choice)
    if context.calibration is None or not readers:
        return plain, details
    ends = channels.collect(model, dict.fromkeys(readers, -1), context.calibration, context)
    fidelity = Reference(model, context)
    best, made = fidelity.sqnr(plain), plain
    tried: dict[str, float | None] = {"none": round(best, 2)}
    smoothed: int | None = None
    for strength in smooth.STRENGTHS:
        even, tensors = smooth.smooth(model, choice, ends, strength)
        if not tensors:
            break
        trial = write(even)
        score = fidelity.sqnr(trial)
        tried[f"smooth {strength}"] = round(score, 2)
        if score > best + WORTH_DB:
            best, made, smoothed = score, trial, len(tensors)
    return made, details.model_copy(update={"repairs": tried, "smoothed": smoothed})


def _streamed(
    model: ir.Model,
    products: list[ir.Node],
    lookups: set[str],
    decisions: tuple[Decision, ...],
    target: targets.Target,
    details: QuantizeDynamicDetails,
    context: Context,
) -> Outcome:
    """Large models: matrix weights only, tensor by tensor, and no trial run, which would need all of the memory."""
    names = {node.name or "" for node in products}
    limit = 63 if target.reduce_range else 127
    made = streamed.dynamic(model, names, limit, WeightStore(context.workdir, empty=context.dry), lookups)
    return Outcome(made, len(names), decisions, f"{len(names)} operators quantized, tensor by tensor", details)


def _warnings(chosen: list[ir.Node], target: targets.Target, before: tuple[str, ...]) -> tuple[str, ...]:
    found = list(before)
    if any(node.op_type == "Conv" for node in chosen):
        found.append(
            "dynamic quantization makes Conv 5 to 15 times slower in onnxruntime (ConvInteger): use quantize.static"
        )
    if target.name in ("cuda", "tensorrt"):
        found.append(f"`{target.name}` has no dynamic int8 kernels: these operators fall back to the CPU")
    return tuple(found)


def _refused(node: ir.Node, op_types: tuple[str, ...], large: bool) -> str | None:
    """Why the node stays float. `large`: its weight may stand behind a Transpose."""
    if node.op_type not in op_types:
        return f"{node.op_type} is not among op_types" + (
            ": dynamic Conv is slower than float" if node.op_type == "Conv" else ""
        )
    if node.op_type in ("Conv", "LSTM") and weight_of(node) is None:
        return why_computed(node)
    if node.op_type in ("Conv", "LSTM", "EmbedLayerNormalization"):
        return None
    source = node.inputs[1] if not large or node.op_type == "Attention" else blocks.held(node)[0]
    weight = source.const_value.numpy() if is_constant(source) else None  # type: ignore[union-attr]
    if weight is None:
        return why_computed(node)
    if weight.dtype != np.float32 or weight.ndim != 2:
        return f"its weight is {weight.dtype} with {weight.ndim} dimensions"
    if min(weight.shape) < LEAST_SIDE:
        return f"too small for int8: {'x'.join(map(str, weight.shape))}, needs at least {LEAST_SIDE} on both sides"
    return more_than_product(node) if node.op_type == "Gemm" else None


def _written(
    model: ir.Model, nodes: set[str], op_types: tuple[str, ...], target: targets.Target, workdir: Path
) -> ir.Model:
    onnxruntime()
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode, load_model_with_shape_infer

    apart, moved = aside.set_aside(model)
    proto = io.to_proto(apart)
    try:
        # Left to infer shapes itself, the quantizer does so in a folder of its own, which a killed process leaves.
        with quiet(), tempfile.TemporaryDirectory(dir=workdir) as folder:
            path = Path(folder) / "model.onnx"
            onnx.save_model(proto, path, save_as_external_data=True)
            del proto
            quantizer = ONNXQuantizer(
                load_model_with_shape_infer(path),
                per_channel=True,
                reduce_range=target.reduce_range,
                mode=QuantizationMode.IntegerOps,
                static=True,  # else every Gemm is rewritten, chosen or not; set right below
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=None,
                nodes_to_quantize=sorted(aside.renamed(nodes, moved)),
                nodes_to_exclude=[],
                op_types_to_quantize=sorted({*op_types, "MatMul"}),  # what Gemms are by now; `nodes` says which
                # Behind onnxruntime's own operators no shape inference knows a type; what is quantized here is float32.
                extra_options={
                    "WeightSymmetric": True,
                    "MatMulConstBOnly": True,
                    "DefaultTensorType": onnx.TensorProto.FLOAT,
                },
            )
            quantizer.static = False
            made = quantizer.quantize_model()
    except Exception as error:  # the writer raises whatever its numpy and protobuf code raises
        raise StepError(
            "quantize.writer", "onnxruntime's quantizer cannot write this graph", cause=one_line(error)
        ) from error
    result = io.from_proto(made)
    aside.put_back(result, moved)
    result.graph.sort()
    share(result)  # of Gemms that read one weight, each has turned its own
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    return result
