"""Folding BatchNormalization into the Conv, ConvTranspose or Gemm before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lepton_cli.graph.fold import is_constant


def fold_batch_norm(model: ir.Model, allowed: set[str]) -> tuple[list[ir.Node], list[tuple[ir.Node, str]]]:
    """Fold every BatchNormalization that follows a linear node (edited in place).

    Returns (folded nodes, nodes left with the reason). With y = gamma (x - mean) / sqrt(var + eps) + beta, the
    weight of output channel c is multiplied by s = gamma / sqrt(var + eps) and the bias becomes (b - mean) s + beta.
    """
    folded: list[ir.Node] = []
    left: list[tuple[ir.Node, str]] = []
    for node in [node for node in model.graph if node.op_type == "BatchNormalization" and node.domain == ""]:
        reason = "excluded" if node.name not in allowed else _fold(model, node)
        if reason is None:
            folded.append(node)
        else:
            left.append((node, reason))
    return folded, left


def _fold(model: ir.Model, norm: ir.Node) -> str | None:
    """Fold one node; the reason when it cannot be."""
    if len([output for output in norm.outputs if output.uses() or output.is_graph_output()]) > 1:
        return "it is in training mode"
    source = norm.inputs[0]
    linear = source.producer() if source is not None else None
    if source is None or linear is None or linear.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return "no Conv, ConvTranspose or Gemm before it"
    if len(source.uses()) > 1 or source.is_graph_output():
        return f"the output of `{linear.name}` is used elsewhere too"
    weight, bias = linear.inputs[1], linear.inputs[2] if len(linear.inputs) > 2 else None
    parameters = norm.inputs[1:5]
    if not is_constant(weight) or not all(map(is_constant, parameters)) or (bias is not None and not is_constant(bias)):
        return "a weight is not constant"
    if linear.op_type == "Gemm" and (_float(linear, "alpha", 1.0) != 1.0 or _float(linear, "beta", 1.0) != 1.0):
        return "Gemm with alpha or beta"
    gamma, beta, mean, variance = (_array(value) for value in parameters)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + _float(norm, "epsilon", 1e-5))
    old = _array(weight)
    shift = np.zeros_like(beta) if bias is None else _array(bias)
    if shift.shape != beta.shape:
        return "the bias is not one value per channel"
    new = old * _along_output(linear, scale, old)
    new_bias = (shift - mean) * scale + beta
    if not (np.isfinite(new).all() and np.isfinite(new_bias).all()):
        return "folding would give non-finite weights"
    _store(model, linear, 1, weight, new)
    _store(model, linear, 2, bias or parameters[1], new_bias)
    output = norm.outputs[0]
    if output.is_graph_output():
        _take_over_output(model, source, output)
    else:
        output.replace_all_uses_with(source)
    model.graph.remove(norm, safe=True)
    return None


def _take_over_output(model: ir.Model, source: ir.Value, output: ir.Value) -> None:
    name = output.name
    output.name = f"{name}/before_folding"
    source.name, source.type, source.shape = name, output.type, output.shape
    output.replace_all_uses_with(source, replace_graph_outputs=True)


def _along_output(linear: ir.Node, scale: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`scale` shaped to multiply the output channels of the weight."""
    if linear.op_type == "Gemm":
        return scale[:, None] if _int(linear, "transB", 0) else scale[None, :]
    kernel = (1,) * (weight.ndim - 2)
    if linear.op_type == "Conv":
        return scale.reshape(-1, 1, *kernel)
    # ConvTranspose: [in, out / group, ...]; group g of the inputs makes group g of the outputs.
    groups = _int(linear, "group", 1)
    return np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0).reshape(*weight.shape[:2], *kernel)


def _store(model: ir.Model, node: ir.Node, index: int, like: ir.Value | None, array: np.ndarray) -> None:
    """Give `node` a new initializer of its own: the old one may be shared."""
    assert like is not None and like.const_value is not None  # noqa: PT018 - checked by is_constant
    dtype = like.const_value.dtype
    name = f"{node.name}/{'weight' if index == 1 else 'bias'}_folded"
    while name in model.graph.initializers:
        name += "_"
    tensor = ir.tensor(np.ascontiguousarray(array.astype(dtype.numpy())), name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))
    model.graph.register_initializer(value)
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None  # noqa: PT018 - checked by is_constant
    return value.const_value.numpy().astype(np.float64)


def _float(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
