"""Batch normalisation folded into the layer before it, so that ranking and recovery see one linear layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling.cut import replace_weight


def fold(model: ir.Model) -> dict[str, NDArray[np.float64]]:
    """Fold every foldable BatchNormalization, in place; returns |scale| per channel by the layer folded into."""
    scales: dict[str, NDArray[np.float64]] = {}
    for node in list(model.graph):
        if node.op_type == "BatchNormalization" and len(node.outputs) == 1:
            layer = _layer(node)
            if layer is not None:
                scales[layer.name or ""] = _fold(model, layer, node)
    return scales


def _layer(norm: ir.Node) -> ir.Node | None:
    """The convolution that only this normalisation reads, with constant parameters all of its own."""
    x = norm.inputs[0]
    layer = x.producer() if x is not None else None
    if layer is None or layer.op_type not in ("Conv", "ConvTranspose", "Gemm") or x is None:
        return None
    if len(x.uses()) != 1 or x.is_graph_output() or norm.outputs[0].is_graph_output():
        return None
    parameters = [*norm.inputs[1:5], *layer.inputs[1:3]]
    if any(
        value is None or not value.is_initializer() or value.is_graph_input()
        for value in parameters
        if value is not None
    ):
        return None
    weight = layer.inputs[1]
    if (
        weight is None
        or weight.dtype != ir.DataType.FLOAT
        or any(v is not None and len(v.uses()) != 1 for v in layer.inputs[1:3])
    ):
        return None
    if layer.op_type == "Gemm" and any(
        layer.attributes[k].as_float() != 1.0 for k in ("alpha", "beta") if k in layer.attributes
    ):
        return None
    if layer.op_type == "ConvTranspose" and "group" in layer.attributes and layer.attributes["group"].as_int() != 1:
        return None
    return layer


def _array(value: ir.Value | None) -> NDArray[np.float64]:
    if value is None or value.const_value is None:
        return np.zeros(0)
    return np.asarray(value.const_value.numpy(), np.float64)


def _fold(model: ir.Model, layer: ir.Node, norm: ir.Node) -> NDArray[np.float64]:
    scale, shift, mean, variance = (_array(value) for value in norm.inputs[1:5])
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    factor = scale / np.sqrt(variance + epsilon)
    weight = layer.inputs[1]
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    array = _array(weight)
    across = "transB" in layer.attributes and bool(layer.attributes["transB"].as_int())
    axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if across else 1}[layer.op_type]
    shape = [-1 if a == axis else 1 for a in range(array.ndim)]
    replace_weight(model, (weight.name or "") if weight else "", (array * factor.reshape(shape)).astype(np.float32))
    folded = ((_array(bias) if bias is not None else 0.0) - mean) * factor + shift
    name = f"{layer.name}__folded_bias"
    tensor = ir.tensor(folded.astype(np.float32), name=name)
    value = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype)
    )
    model.graph.register_initializer(value)
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    layer.replace_input_with(2, value)
    ir.convenience.replace_all_uses_with(norm.outputs[0], layer.outputs[0])
    model.graph.remove(norm, safe=True)
    return np.abs(scale)
