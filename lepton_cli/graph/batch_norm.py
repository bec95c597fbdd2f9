"""Folding BatchNormalization into the Conv, ConvTranspose or Gemm before it."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph.edit import Editor, array_of, bypass, is_constant, weight_of
from lepton_cli.graph.fold import ALLOWED_GROWTH

#: Operators that a normalisation after them can be folded into.
LINEAR = ("Conv", "ConvTranspose", "Gemm")

_Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Folded:
    """What was folded, what was left and why, and |gamma| per channel by the name of the layer folded into."""

    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    left: list[tuple[ir.Node, str]] = dataclasses.field(default_factory=list)
    scales: dict[str, _Floats] = dataclasses.field(default_factory=dict)


def fold_batch_norm(model: ir.Model, allowed: set[str] | None = None) -> Folded:
    """Fold every BatchNormalization that follows a linear node (edited in place); `allowed`: names of nodes, else all.

    With y = gamma (x - mean) / sqrt(var + eps) + beta, the weight of output channel c is multiplied by
    s = gamma / sqrt(var + eps) and the bias becomes (b - mean) s + beta.
    """
    editor, found = Editor(model), Folded()
    for norm in [node for node in model.graph if node.op_type == "BatchNormalization" and node.domain == ""]:
        reason = _excluded(norm, allowed) or _refused(norm) or _fold(editor, norm, found.scales)
        if reason is None:
            found.nodes.append(norm)
        else:
            found.left.append((norm, reason))
    return found


def _excluded(norm: ir.Node, allowed: set[str] | None) -> str | None:
    linear = _before(norm)
    if allowed is None or (norm.name in allowed and (linear is None or linear.name in allowed)):
        return None
    return "excluded" if linear is None or norm.name not in allowed else f"`{linear.name}` before it is excluded"


def _before(norm: ir.Node) -> ir.Node | None:
    """The linear node whose result this one normalises."""
    node = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    return node if node is not None and node.domain == "" and node.op_type in LINEAR else None


def _refused(norm: ir.Node) -> str | None:
    """Why the graph around a node does not allow folding it, or `None`."""
    linear = _before(norm)
    # Until opset 14, further outputs are what turns training on, read or not.
    if norm.attributes.get_int("training_mode", 0) or any(output.name for output in norm.outputs[1:]):
        return "it is in training mode"
    if not norm.attributes.get_int("spatial", 1):
        return "it normalises every position on its own"
    if linear is None:
        return "no Conv, ConvTranspose or Gemm before it"
    source = linear.outputs[0]
    if len(source.uses()) > 1 or source.is_graph_output():
        return f"the output of `{linear.name}` is used elsewhere too"
    weight, bias = weight_of(linear), linear.inputs[2] if len(linear.inputs) > 2 else None
    constant = all(weight_of(norm, index) is not None for index in range(1, 5)) and (bias is None or is_constant(bias))
    if weight is None or weight.const_value is None or not constant:
        return "a weight is not constant"
    if weight.const_value.nbytes > ALLOWED_GROWTH and len(weight.uses()) > 1:
        return f"the weight of `{linear.name}` is shared with other nodes"
    if any(linear.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "Gemm with alpha or beta"
    return None


def _fold(editor: Editor, norm: ir.Node, scales: dict[str, _Floats]) -> str | None:
    """Fold one node that is not refused; the reason when its numbers do not allow it."""
    linear = _before(norm)
    assert linear is not None
    weight, bias = array_of(linear), array_of(linear, 2)
    assert weight is not None
    gamma, beta, mean, variance = (np.asarray(array_of(norm, index), np.float64) for index in range(1, 5))
    channels = (_channels(linear, weight.shape),)
    if any(array.shape != channels for array in (gamma, beta, mean, variance)):
        return "its parameters are not one value per channel"
    shift = np.zeros(channels) if bias is None else np.asarray(bias, np.float64)
    if not _per_channel(linear, shift.shape, channels):
        return "the bias is not one value per channel"
    with np.errstate(all="ignore"):
        factor = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
        new = (weight.astype(np.float64) * _along_output(linear, factor, weight.shape)).astype(weight.dtype)
        new_bias = ((shift - mean) * factor + beta).astype(weight.dtype)
        if not (np.isfinite(new).all() and np.isfinite(new_bias).all()):
            return "folding would give non-finite weights"
    old = [*norm.inputs[1:5], *linear.inputs[1:3]]
    editor.give(linear, 1, new, f"{linear.name}/weight_folded")
    editor.give(linear, 2, new_bias, f"{linear.name}/bias_folded")
    bypass(norm)
    _drop_unread(editor.model, old)
    scales[linear.name or ""] = np.abs(gamma)
    return None


def _channels(linear: ir.Node, shape: tuple[int, ...]) -> int:
    """Output channels of a linear node with a weight of this shape."""
    if linear.op_type == "Gemm":
        return shape[0 if linear.attributes.get_int("transB", 0) else 1]
    return shape[0] if linear.op_type == "Conv" else shape[1] * linear.attributes.get_int("group", 1)


def _per_channel(linear: ir.Node, bias: tuple[int, ...], channels: tuple[int]) -> bool:
    """Does a bias add the same to all positions of a channel? Gemm spreads its own over rows, and over columns."""
    if linear.op_type != "Gemm":
        return bias == channels
    return len(bias) <= 2 and bias[-1:] in ((), (1,), channels)


def _along_output(linear: ir.Node, factor: _Floats, shape: tuple[int, ...]) -> _Floats:
    """`factor` shaped to multiply the output channels of a weight of this shape."""
    if linear.op_type == "Gemm":
        return factor[:, None] if linear.attributes.get_int("transB", 0) else factor[None, :]
    kernel = (1,) * (len(shape) - 2)
    if linear.op_type == "Conv":
        return factor.reshape(-1, 1, *kernel)
    # ConvTranspose: [in, out / group, ...]; group g of the inputs makes group g of the outputs.
    groups = linear.attributes.get_int("group", 1)
    return np.repeat(factor.reshape(groups, -1), shape[0] // groups, axis=0).reshape(*shape[:2], *kernel)


def _drop_unread(model: ir.Model, values: list[ir.Value | None]) -> None:
    """Remove those of the constants that nothing reads any more: whoever counts weights would count them."""
    for value in dict.fromkeys(values):
        if value is not None and not value.uses() and not value.is_graph_output():
            del model.graph.initializers[value.name or ""]
