"""Writes the quantized graph with onnxruntime's own QDQ writer, from our choice of nodes, ranges and weight scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from lepton_cli.errors import StepError
from lepton_cli.graph.edit import Editor
from lepton_cli.model import io
from lepton_cli.probe.clipping import Range
from lepton_cli.quantize import aside
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.targets import Target
from lepton_cli.runtime import one_line, onnxruntime, quiet

#: onnx has per-channel DequantizeLinear from this opset on; older graphs get onnxruntime's own operator.
PER_CHANNEL_OPSET = 13
#: The same for 16 bits.
WIDE_OPSET = 21
MICROSOFT = "com.microsoft"


@dataclasses.dataclass(frozen=True)
class Scheme:
    """All that decides how a quantized graph looks. Weights are symmetric, with one scale per output channel."""

    target: Target
    choice: Choice
    ranges: Mapping[str, Range]
    #: Weight initializer -> (axis, one scale per channel). Weights not named get the greatest magnitude's scale.
    scales: Mapping[str, tuple[int, NDArray[np.float32]]] = dataclasses.field(default_factory=dict)
    activations: Literal["int8", "int16"] = "int8"

    def renamed(self, moved: Mapping[str, str]) -> Scheme:
        """The same for a model in which names have changed."""
        choice = self.choice
        choice = dataclasses.replace(
            choice,
            anchors=aside.renamed(choice.anchors, moved),
            between=aside.renamed(choice.between, moved),
            wide=aside.renamed(choice.wide, moved),
        )
        ranges = {moved.get(name, name): found for name, found in self.ranges.items()}
        scales = {moved.get(name, name): found for name, found in self.scales.items()}
        return dataclasses.replace(self, choice=choice, ranges=ranges, scales=scales)


def write(model: ir.Model, plan: Scheme) -> ir.Model:
    """The quantized copy of `model`. Raises StepError when onnxruntime's writer refuses."""
    apart, moved = aside.set_aside(_typed(model, plan))
    plan = plan.renamed(moved)
    proto = io.to_proto(apart)
    try:
        with quiet():
            made = _quantizer(proto, plan).quantize_model()
    except Exception as error:  # the writer raises whatever its numpy and protobuf code raises
        raise StepError(
            "quantize.writer", "onnxruntime's quantizer cannot write this graph", cause=one_line(error)
        ) from error
    result = io.from_proto(made)
    spare_float_users(result, plan.choice, _float_results(apart, plan))
    aside.put_back(result, moved)
    result.graph.sort()
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    return result


def _typed(model: ir.Model, plan: Scheme) -> ir.Model:
    """A copy that names the type of every tensor with a range: the writer passes over tensors it has no type of."""
    copy = io.clone(model)
    for node in copy.graph:
        for value in node.outputs:
            if value.name in plan.ranges and value.dtype is None:
                value.type = ir.TensorType(ir.DataType.FLOAT)
    return copy


def _quantizer(proto: onnx.ModelProto, plan: Scheme) -> Any:
    onnxruntime()
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    ranges = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in plan.ranges.items()
    }
    operators = {node.name: node.op_type for node in proto.graph.node}
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    kinds = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
    wide = QuantType.QInt16 if plan.target.symmetric_activations else QuantType.QUInt16
    return QDQQuantizer(
        proto,
        per_channel=True,
        reduce_range=plan.target.reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=wide if plan.activations == "int16" else kinds[plan.target.activation],
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=sorted(plan.choice.nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({operators[name] for name in plan.choice.nodes}),
        extra_options={
            "ActivationSymmetric": plan.target.symmetric_activations,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],  # no range of theirs is known: nobody needs it
            "TensorQuantOverrides": _overrides(plan) | {name: [{"quant_type": wide}] for name in _wide(proto, plan)},
            "UseQDQContribOps": opset < (WIDE_OPSET if plan.choice.wide else PER_CHANNEL_OPSET),
            "DefaultTensorType": onnx.TensorProto.FLOAT,
        },
    )


def _overrides(plan: Scheme) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [
            {"axis": axis, "scale": np.float32(scale), "zero_point": np.int8(0)}
            if i == 0
            else {"scale": np.float32(scale), "zero_point": np.int8(0)}
            for i, scale in enumerate(scales)
        ]
        for name, (axis, scales) in plan.scales.items()
    }


def _wide(proto: onnx.ModelProto, plan: Scheme) -> list[str]:
    """Activations that the anchors with 16 bits read and write, through an activation function behind them too."""
    found: dict[str, None] = {}
    for node in proto.graph.node:
        follows = node.op_type in ("Relu", "Clip") and node.name in plan.choice.nodes and node.input[0] in found
        if node.name in plan.choice.wide or follows:
            found |= dict.fromkeys(name for name in (node.input[0], *node.output) if name in plan.ranges)
    return list(found)


def is_pair(node: ir.Node) -> bool:
    """Whether a DequantizeLinear directly follows its QuantizeLinear."""
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    return node.op_type == "DequantizeLinear" and producer is not None and producer.op_type == "QuantizeLinear"


def _float_results(model: ir.Model, plan: Scheme) -> set[str]:
    """Results of chosen MatMuls and Gemms; the writer renames one whose ReLU it merged into the rounding."""
    if not plan.target.float_outputs:
        return set()
    return {
        node.outputs[0].name or ""
        for node in model.graph
        if node.name in plan.choice.anchors and node.op_type in ("MatMul", "Gemm")
    }


def spare_float_users(model: ir.Model, choice: Choice, float_results: set[str]) -> None:
    """Give float operators the float tensor again where one exists; pairs that nobody reads then vanish.

    The writer lets every reader of a tensor see its rounded values, residual branches and graph outputs included.
    A tensor exists in float when a float operator makes it, or a kernel that can return float (`float_results`).
    """
    editor = Editor(model)
    for node in list(model.graph):
        quantize = node.inputs[0].producer() if is_pair(node) and node.inputs[0] is not None else None
        source = quantize.inputs[0] if quantize is not None else None
        if source is None:
            continue
        rounded, producer = node.outputs[0], source.producer()
        if rounded.is_graph_output() and rounded.name in float_results:
            _return_float(editor, rounded, source)
        if producer is not None and producer.name in choice.nodes and source.name not in float_results:
            continue
        for user, index in tuple(rounded.uses()):
            if user.name not in choice.nodes:
                user.replace_input_with(index, source)
    common.RemoveUnusedNodesPass()(model)


def _return_float(editor: Editor, rounded: ir.Value, source: ir.Value) -> None:
    """Make the float tensor the model's output, under the name that the writer gave to its rounded copy."""
    name = rounded.name
    source.type, source.shape = rounded.type, rounded.shape
    outputs = editor.model.graph.outputs
    outputs[list(outputs).index(rounded)] = source
    rounded.name, source.name = editor.name(f"{name}_rounded"), name
