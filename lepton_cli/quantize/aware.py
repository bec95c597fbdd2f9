"""`quantize.aware`: codes and scales of a quantized model learn to answer as the float model does."""

from __future__ import annotations

import onnx_ir as ir

from lepton_cli.errors import ModelError
from lepton_cli.graph.select import select
from lepton_cli.quantize import int4
from lepton_cli.quantize.spec import QuantizeAware
from lepton_cli.step import Context, Decision, Outcome
from lepton_cli.train import steps


def train(model: ir.Model, options: QuantizeAware, context: Context) -> Outcome:
    """The model with trained codes and scales: all else stays. Raises LeptonError where something is missing."""
    samples, holdout = steps.needed(options, context)
    if context.dry:
        return Outcome(model, 1, (), f"all codes and scales, with {samples.count:,} samples")
    if not any(node.op_type == "DequantizeLinear" for node in model.graph):
        raise ModelError(
            "train.not-quantized",
            "the model holds no QuantizeLinear and DequantizeLinear: there is nothing for `quantize.aware` to train",
            hint="put `quantize.static` before it",
        )
    layers = select((node.name or "" for node in model.graph.all_nodes()), options.include, options.exclude)
    from lepton_cli.train import course
    from lepton_cli.train.distill import taught
    from lepton_cli.train.quantized import QuantizedNetwork

    device = course.device(options)
    with course.settings(context.threads, device):
        start, narrow = (model, []) if options.weight_bits == 8 else _narrowed(model, layers, options)
        if narrow:  # biases in steps of the new scales
            start = QuantizedNetwork(start, layers).written()
        network = QuantizedNetwork(start, layers, device)
        learnt, details = taught(network, options, context, samples, holdout, options.teacher, "float32")
        made = course.outcome(model, learnt, details)
    if narrow:
        summary = f"{len(narrow)} layers of 4-bit weights: {made.summary}"
        return Outcome(learnt.model, made.changed + len(narrow), (*narrow, *made.decisions), summary, made.details)
    return made


def _narrowed(model: ir.Model, layers: set[str], options: QuantizeAware) -> tuple[ir.Model, list[Decision]]:
    kept = options.eight_bits
    wide = int4.eight_bits(model) if isinstance(kept, str) else select(layers, kept, ()) if kept else set()
    made, decisions = int4.narrowed(model, layers - wide)
    if made is None:
        raise ModelError(
            "model.opset",
            "onnx cannot convert the model to operator set 21, which 4-bit weights need",
            hint="use `weight_bits: 8`",
        )
    if not decisions:
        raise ModelError(
            "quantize.nothing",
            "no int8 weight of a Conv, ConvTranspose, Gemm or MatMul can have 4 bits",
            hint="look at `include`, `exclude` and `eight_bits`, or use `weight_bits: 8`",
        )
    return made, decisions
