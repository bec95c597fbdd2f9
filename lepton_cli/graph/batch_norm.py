"""Folding BatchNormalization into the Conv, ConvTranspose or Gemm before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lepton_cli.graph.fold import ALLOWED_GROWTH, is_constant

#: Operators that a normalisation after them can be folded into.
LINEAR = ("Conv", "ConvTranspose", "Gemm")


def fold_batch_norm(model: ir.Model, allowed: set[str]) -> tuple[list[ir.Node], list[tuple[ir.Node, str]]]:
    """Fold every BatchNormalization that follows a linear node (edited in place).

    Returns (folded nodes, nodes left with the reason). With y = gamma (x - mean) / sqrt(var + eps) + beta, the
    weight of output channel c is multiplied by s = gamma / sqrt(var + eps) and the bias becomes (b - mean) s + beta.
    """
    folded: list[ir.Node] = []
    left: list[tuple[ir.Node, str]] = []
    for node in [node for node in model.graph if node.op_type == "BatchNormalization" and node.domain == ""]:
        reason = "excluded" if node.name not in allowed else _fold(model, node, allowed)
        if reason is None:
            folded.append(node)
        else:
            left.append((node, reason))
    return folded, left


def _fold(model: ir.Model, norm: ir.Node, allowed: set[str]) -> str | None:
    """Fold one node; the reason when it cannot be."""
    if norm.attributes.get_int("training_mode", 0) or any(_used(output) for output in norm.outputs[1:]):
        return "it is in training mode"
    if not norm.attributes.get_int("spatial", 1):
        return "it normalises every position on its own"
    source, parameters = norm.inputs[0], [_constant(value) for value in norm.inputs[1:5]]
    linear = source.producer() if source is not None else None
    if source is None or linear is None or linear.domain != "" or linear.op_type not in LINEAR:
        return "no Conv, ConvTranspose or Gemm before it"
    if linear.name not in allowed:
        return f"`{linear.name}` before it is excluded"
    if len(source.uses()) > 1 or source.is_graph_output():
        return f"the output of `{linear.name}` is used elsewhere too"
    weight = _constant(linear.inputs[1])
    bias = linear.inputs[2] if len(linear.inputs) > 2 else None
    if weight is None or any(value is None for value in parameters) or (bias is not None and not is_constant(bias)):
        return "a weight is not constant"
    if weight.nbytes > ALLOWED_GROWTH and linear.inputs[1] is not None and len(linear.inputs[1].uses()) > 1:
        return f"the weight of `{linear.name}` is shared with other nodes"
    if linear.op_type == "Gemm" and (_float(linear, "alpha", 1.0) != 1.0 or _float(linear, "beta", 1.0) != 1.0):
        return "Gemm with alpha or beta"
    gamma, beta, mean, variance = (_array(tensor) for tensor in parameters if tensor is not None)
    held = _constant(bias)
    shift = np.zeros_like(beta) if held is None else _array(held)
    if shift.shape != beta.shape:
        return "the bias is not one value per channel"
    kind = weight.dtype.numpy()
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + _float(norm, "epsilon", 1e-5))
        new = (_array(weight) * _along_output(linear, scale, weight)).astype(kind)
        new_bias = ((shift - mean) * scale + beta).astype(kind)
        if not (np.isfinite(new).all() and np.isfinite(new_bias).all()):
            return "folding would give non-finite weights"
    _store(model, linear, 1, "weight", new, weight.dtype)
    _store(model, linear, 2, "bias", new_bias, weight.dtype)
    output = norm.outputs[0]
    if output.is_graph_output():
        _take_over_output(source, output)
    else:
        output.replace_all_uses_with(source)
    model.graph.remove(norm, safe=True)
    return None


def _used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _take_over_output(source: ir.Value, output: ir.Value) -> None:
    """`source` becomes the graph output that `output` was, name and all."""
    name = output.name
    output.name = f"{name}/before_folding"
    source.name, source.type, source.shape = name, output.type, output.shape
    output.replace_all_uses_with(source, replace_graph_outputs=True)


def _along_output(linear: ir.Node, scale: np.ndarray, weight: ir.TensorProtocol) -> np.ndarray:
    """`scale` shaped to multiply the output channels of the weight."""
    shape = tuple(weight.shape.numpy())
    if linear.op_type == "Gemm":
        return scale[:, None] if linear.attributes.get_int("transB", 0) else scale[None, :]
    kernel = (1,) * (len(shape) - 2)
    if linear.op_type == "Conv":
        return scale.reshape(-1, 1, *kernel)
    # ConvTranspose: [in, out / group, ...]; group g of the inputs makes group g of the outputs.
    groups = linear.attributes.get_int("group", 1)
    return np.repeat(scale.reshape(groups, -1), shape[0] // groups, axis=0).reshape(*shape[:2], *kernel)


def _store(model: ir.Model, node: ir.Node, index: int, what: str, array: np.ndarray, dtype: ir.DataType) -> None:
    """Give `node` a new initializer of its own: the old one may be shared."""
    name = f"{node.name}/{what}_folded"
    while name in model.graph.initializers:
        name += "_"
    tensor = ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))
    model.graph.register_initializer(value)
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return value.const_value if value is not None and is_constant(value) else None


def _array(tensor: ir.TensorProtocol) -> np.ndarray:
    return tensor.numpy().astype(np.float64)


def _float(node: ir.Node, name: str, default: float) -> float:
    return float(node.attributes.get_float(name, default))
