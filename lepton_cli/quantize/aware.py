"""`quantize.aware`: codes and scales of a quantized model learn to answer as the float model does."""

from __future__ import annotations

import onnx_ir as ir

from lepton_cli.errors import ModelError
from lepton_cli.graph.select import select
from lepton_cli.quantize import int4
from lepton_cli.quantize.spec import QuantizeAware
from lepton_cli.step import Context, Decision, Outcome
from lepton_cli.train import steps


def aware(model: ir.Model, options: QuantizeAware, context: Context) -> Outcome:
    """The model with trained codes and scales: all else stays. Raises LeptonError where something is missing."""
    samples, holdout = steps.needed(context.training, options)
    if context.dry:
        return Outcome(model, 1, (), f"all codes and scales, with {samples.count:,} samples")
    if not any(node.op_type == "DequantizeLinear" for node in model.graph):
        raise ModelError(
            "train.not-quantized",
            "the model holds no QuantizeLinear and DequantizeLinear: there is nothing for `quantize.aware` to train",
            hint="put `quantize.static` before it",
        )
    from lepton_cli.train import course
    from lepton_cli.train.distill import beside
    from lepton_cli.train.quantized import QuantizedNetwork
    from lepton_cli.train.teacher import Teacher
    from lepton_cli.train.together import WeightedTask
    from lepton_cli.train.train import teacher, train

    start, narrow = model, list[Decision]()
    if options.weight_bits == 4:
        layers = select((node.name or "" for node in model.graph.all_nodes()), options.include, options.exclude)
        start, narrow = _narrowed(model, layers, options)
        start = QuantizedNetwork(start, layers).written()  # biases in steps of the new scales
    original = teacher(options, context)
    learnt, made = train(
        start,
        options,
        context,
        samples,
        holdout,
        lambda network, made: [WeightedTask(Teacher(original, network, made.first))],
        kind=QuantizedNetwork,
    )
    found = course.outcome(model, learnt, beside(original, start, learnt, made, options, context))
    if not narrow:
        return found
    summary = f"{len(narrow)} layers of 4-bit weights: {found.summary}"
    return Outcome(learnt.model, found.changed + len(narrow), (*narrow, *found.decisions), summary, found.details)


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
