"""Rewrites that keep onnxruntime's CPU provider off its slow paths; around int8 layers these would eat the gain.

Masks: attention adds -3.4e38 to the scores of padding. The softmax of such a score is a denormal number, and x86 cores
take a hundred times longer for those: softmax over a padded sentence took six times as long as over a full one. A mask
of -65 gives weights below 1e-28, which vanish beside 1 in float32 just the same, and are normal numbers.

Sums: onnxruntime joins Add and LayerNormalization into a kernel that is three times slower than the two. It does not
do so for Sum, the same operator under another name. It joins MatMul and Add into Gemm too, also where what is added is
no row of constants: no int8 kernel takes that, and the product would be computed in float from rounded numbers.

GELU: onnxruntime has one kernel for x (1 + erf(x / sqrt 2)) 0.5, and does not know it where the half is the sum's.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from lepton_cli.graph.edit import Editor, set_weight
from lepton_cli.model import io
from lepton_cli.probe.distances import Reference
from lepton_cli.probe.histogram import MASK
from lepton_cli.quantize.targets import Target
from lepton_cli.step import Context, Decision

#: exp(-65) is 6e-29: nothing beside 1, and normal (above 1.2e-38) even when divided by a long row's sum.
SOFT = -65.0
#: The float model must compute the same with the softer mask, to this precision.
SAME_DB = 80.0
#: Where ONNX's Attention takes its mask.
_MASK = 3
#: What a mask passes on its way to the scores.
_CARRYING = frozenset(
    {"Where", "Mul", "Add", "Expand", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Slice", "Identity", "Cast"}
)


def suits(target: Target) -> bool:
    """Whether the model is meant for the CPU provider."""
    return target.name in ("x86-vnni", "x86", "arm")


def soften_masks(model: ir.Model, context: Context) -> tuple[ir.Model, list[Decision]]:
    """A copy with softer attention masks and a decision for each, or `model` itself where that would change results.

    A draft's results are not looked at.
    """
    copy = io.clone(model)
    decisions = []
    for value in list(copy.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or value.is_graph_output() or not _masks(tensor):
            continue
        ends = _readers(value)
        if not ends:
            continue
        softer = np.maximum(tensor.numpy(), np.float32(SOFT))
        set_weight(value, softer)
        node = next(iter(value.uses())).node
        reason = f"attention mask {float(tensor.numpy().min()):.3g} is {SOFT:.0f} now: denormal numbers in the softmax"
        decisions.append(Decision(node=node.name or "", op=node.op_type, action="rewritten", reason=reason))
    if not decisions:
        return model, []
    same = context.draft or Reference(model, context, most=16, batch=4).sqnr(copy) >= SAME_DB
    return (copy, decisions) if same else (model, [])


def _masks(tensor: ir.TensorProtocol) -> bool:
    """A constant of nothing but huge negative values and values near zero."""
    if tensor.size > 1 << 22:
        return False
    array = tensor.numpy()
    return bool((array <= -MASK).any() and not np.isnan(array).any() and (array[array > -MASK] <= 1).all())


def _readers(value: ir.Value) -> set[str]:
    """Softmax and Attention nodes that the tensor's values end in; empty when any of them ends elsewhere."""
    found: set[str] = set()
    waiting, seen = [value], set()
    while waiting:
        tensor = waiting.pop()
        if tensor.name in seen:
            continue
        seen.add(tensor.name)
        if tensor.is_graph_output() or not tensor.uses():
            return set()
        for user, index in tensor.uses():
            if not user.domain and (user.op_type == "Softmax" or (user.op_type == "Attention" and index == _MASK)):
                found.add(user.name or "")
            elif user.op_type in _CARRYING and not user.domain and not _scales(user, tensor):
                waiting += user.outputs
            else:
                return set()
    return found


def _scales(node: ir.Node, mask: ir.Value) -> bool:
    """Would -65 be multiplied by a constant, and perhaps be too little then? Calibration data need not show that."""
    return node.op_type == "Mul" and any(value is not mask and _constant(value) for value in node.inputs)


def spare_slow_sums(model: ir.Model) -> None:
    """Write Add before LayerNormalization as Sum, in place."""
    editor = Editor(model)
    for node in list(model.graph):
        if node.op_type != "LayerNormalization" or node.inputs[0] is None:
            continue
        add = node.inputs[0].producer()
        if add is None or add.op_type != "Add" or add.domain or any(_constant(value) for value in add.inputs):
            continue
        editor.put(add, [ir.node("Sum", list(add.inputs), name=add.name)])


def order_gelu(model: ir.Model) -> None:
    """Multiply GELU by its half last, in place: the numbers are the same to the bit."""
    editor = Editor(model)
    for node in list(model.graph):
        for x, half in (node.inputs, node.inputs[::-1]) if node.op_type == "Mul" and not node.domain else ():
            inner = _made(half, "Mul")
            if x is None or inner is None or inner.graph is not node.graph or _shared(inner):
                continue
            for number, value in (inner.inputs, inner.inputs[::-1]):
                total = _made(value, "Add")
                held = None if number is None else number.const_value
                if (
                    value is None
                    or held is None
                    or held.size != 1
                    or float(held.numpy().item()) != 0.5
                    or total is None
                ):
                    continue
                if any(_argument(_made(part, "Erf")) is x for part in total.inputs):
                    first = ir.node("Mul", [x, value], name=inner.name)
                    editor.put(node, [first, ir.node("Mul", [first.outputs[0], number], name=node.name)], also=[inner])
                    first.outputs[0].type, first.outputs[0].shape = x.type, x.shape
                    break
            else:
                continue
            break


def _made(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator and not node.domain else None


def _shared(node: ir.Node) -> bool:
    return len(node.outputs[0].uses()) != 1 or node.outputs[0].is_graph_output()


def _argument(erf: ir.Node | None) -> ir.Value | None:
    """What an Erf is computed of, before it is divided by sqrt 2."""
    scaled = None if erf is None or erf.inputs[0] is None else erf.inputs[0].producer()
    return scaled.inputs[0] if scaled is not None and scaled.op_type == "Div" else None


def spare_products(model: ir.Model, names: Collection[str]) -> None:
    """Write Add behind the MatMuls `names` as Sum, in place, where onnxruntime would make one Gemm of the two."""
    editor = Editor(model)
    for node in list(model.graph):
        result = node.outputs[0]
        if node.op_type != "MatMul" or node.name not in names or len(result.uses()) != 1 or result.is_graph_output():
            continue
        add, data = next(iter(result.uses())).node, node.inputs[0]
        if add.op_type != "Add" or add.domain or add.graph is not node.graph or data is None or data.shape is None:
            continue
        others = [value for value in add.inputs if value is not result]
        row = bool(others) and others[0] is not None and others[0].shape is not None and len(others[0].shape) == 1
        if len(data.shape) == 2 or (row and all(isinstance(dim, int) for dim in data.shape)):
            editor.put(add, [ir.node("Sum", list(add.inputs), name=add.name)])


def _constant(value: ir.Value | None) -> bool:
    return value is None or value.const_value is not None
