"""onnxruntime's own QDQ writer on the same choice, ranges and scales: what `qdq.write` is held to."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from lepton_cli.quantize.qdq import Scheme
from lepton_cli.runtime import quiet


def write(proto: onnx.ModelProto, plan: Scheme) -> onnx.ModelProto:
    """The quantized model; `plan.choice.wide` is not for it."""
    target = plan.target
    ranges = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in plan.ranges.items()
    }
    kinds = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
    sixteen = QuantType.QInt16 if target.symmetric_activations else QuantType.QUInt16
    operators = {node.name: node.op_type for node in proto.graph.node}
    opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
    with quiet():
        writer: Any = QDQQuantizer(
            onnx.ModelProto.FromString(proto.SerializeToString()),
            per_channel=True,
            reduce_range=target.reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=sixteen if plan.activations == "int16" else kinds[target.activation],
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=sorted(plan.choice.nodes),
            nodes_to_exclude=[],
            op_types_to_quantize=sorted({operators[name] for name in plan.choice.nodes}),
            extra_options={
                "ActivationSymmetric": target.symmetric_activations,
                "WeightSymmetric": True,
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
                "UseQDQContribOps": opset < 13,
                "DefaultTensorType": onnx.TensorProto.FLOAT,
            },
        )
        made: onnx.ModelProto = writer.quantize_model()
    return made
