"""onnxruntime's fused operators as the standard ones they stand for.

A file that onnxruntime saved after optimising it runs there alone, no other tool knows its operators, and most steps
see no layers in it. onnxruntime makes the same ones again when it loads the plain form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from lepton_cli.graph.shapes import opset
from lepton_cli.simplify.found import Found, held

#: What `fuse` makes; a model that has it is meant to run in onnxruntime.
_MEANT = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention", "EmbedLayerNormalization"})
#: Activations of FusedConv and FusedGemm, with the attributes that their parameters are.
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (), "Sigmoid": (), "Tanh": (), "Softsign": (), "Softplus": (), "LeakyRelu": ("alpha",), "Elu": ("alpha",),
    "ThresholdedRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": (),
}  # fmt: skip


class _Writer:
    """Standard nodes, one after the other."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.node, self.version, self.made = node, opset(model), list[ir.Node]()
        first = next((value.dtype for value in node.inputs if value is not None and value.dtype is not None), None)
        self.dtype = np.dtype(np.float32) if first is None else first.numpy()

    def op(self, kind: str, *inputs: ir.Value | float | None, name: str = "", **attributes: Any) -> ir.Value:
        """One node; numbers become constants."""
        values = [
            held(f"{self.node.name}/number", np.array(one, self.dtype)) if isinstance(one, float) else one
            for one in inputs
        ]
        made = ir.node(kind, values, attributes, name=name or f"{self.node.name}/{kind}")
        made.outputs[0].dtype = ir.DataType.from_numpy(self.dtype)
        self.made.append(made)
        return made.outputs[0]

    def mean(self, value: ir.Value) -> ir.Value:
        """Over the last axis."""
        if self.version >= 18:
            return self.op("ReduceMean", value, held(f"{self.node.name}/axes", np.array([-1], np.int64)))
        return self.op("ReduceMean", value, axes=[-1])

    def found(self, instead: Sequence[tuple[ir.Value, ir.Value]] = ()) -> Found:
        """What stands in the place of the node."""
        return Found(self.made, [self.node], instead)


def plain(model: ir.Model, node: ir.Node) -> Found | None:
    """A fused node as standard ones; `None` where it is none, or asks for what none of them does."""
    write = _WRITERS.get(node.op_type)
    if write is None or (node.domain == "" and (node.op_type not in _ONCE_STANDARD or opset(model) >= 17)):
        return None
    if any(one.op_type in _MEANT and one.domain for one in model.graph):
        return None
    return write(_Writer(model, node))


def _kept(node: ir.Node, *left_out: str) -> dict[str, Any]:
    return {name: attribute for name, attribute in node.attributes.items() if name not in left_out}


def _activated(w: _Writer, value: ir.Value, kind: str, parameters: Sequence[float]) -> ir.Value | None:
    if not kind:
        return value
    if kind == "Clip" and len(parameters) == 2:
        low, high = (float(one) for one in parameters)
        return w.op("Clip", value, low, high) if w.version >= 11 else w.op("Clip", value, min=low, max=high)
    names = _ACTIVATIONS.get(kind)
    if names is None or kind == "Clip" or len(parameters) < len(names):
        return None
    given: dict[str, Any] = dict(zip(names, map(float, parameters), strict=False))
    return w.op(kind, value, **given)


def _conv(w: _Writer) -> Found | None:
    node = w.node
    attributes = _kept(node, "activation", "activation_params")
    inputs = list(node.inputs[:3])
    while inputs and inputs[-1] is None:
        inputs.pop()
    kind = node.attributes.get_string("activation", "") or ""
    if kind and (kind not in _ACTIVATIONS):
        return None
    value = w.op("Conv", *inputs, name=node.name or "", **attributes)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        value = w.op("Add", value, node.inputs[3])
    made = _activated(w, value, kind, node.attributes.get_floats("activation_params", ()) or ())
    return None if made is None else w.found()


def _gemm(w: _Writer) -> Found | None:
    node = w.node
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    parameters = [node.attributes.get_float(name, 0.0) or 0.0 for name in names if name in node.attributes]
    attributes = _kept(node, "activation", *names)
    value = w.op("Gemm", *node.inputs, name=node.name or "", **attributes)
    made = _activated(w, value, node.attributes.get_string("activation", "") or "", parameters)
    return None if made is None else w.found()


def _matmul(w: _Writer) -> Found | None:
    node = w.node
    if any(name in node.attributes and node.attributes[name].as_int() for name in ("transBatchA", "transBatchB")):
        return None
    sides = []
    for value, name in zip(node.inputs, ("transA", "transB"), strict=True):
        if value is not None and node.attributes.get_int(name, 0) == 1:
            if value.shape is None or len(value.shape) < 2:
                return None
            order = [*range(len(value.shape) - 2), len(value.shape) - 1, len(value.shape) - 2]
            value = w.op("Transpose", value, perm=order)
        sides.append(value)
    value = w.op("MatMul", *sides, name=node.name or "")
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha != 1.0 and alpha is not None:
        w.op("Mul", value, float(alpha))
    return w.found()


def _gelu(w: _Writer) -> Found | None:
    value = w.node.inputs[0]
    if len(w.node.inputs) > 1 and w.node.inputs[1] is not None:
        value = w.op("Add", value, w.node.inputs[1])
    tanh = w.node.op_type == "FastGelu"
    if w.version >= 20:
        w.op("Gelu", value, **({"approximate": "tanh"} if tanh else {}))
        return w.found()
    if tanh:
        cubed = w.op("Mul", w.op("Mul", value, value), value)
        inner = w.op("Mul", w.op("Add", value, w.op("Mul", cubed, 0.044715)), math.sqrt(2 / math.pi))
        bent = w.op("Tanh", inner)
    else:
        bent = w.op("Erf", w.op("Div", value, math.sqrt(2)))
    w.op("Mul", w.op("Mul", value, w.op("Add", bent, 1.0)), 0.5)
    return w.found()


def _quick_gelu(w: _Writer) -> Found | None:
    value = w.node.inputs[0]
    alpha = w.node.attributes.get_float("alpha", 1.702) or 0.0
    w.op("Mul", value, w.op("Sigmoid", w.op("Mul", value, float(alpha))))
    return w.found()


def _norm(w: _Writer) -> Found | None:
    """LayerNormalization over the last axis, with what is added before; Simplified: by the root of the mean square."""
    node, kind = w.node, w.node.op_type
    skip = kind.startswith("Skip")
    value = node.inputs[0]
    scale, *shifts = node.inputs[2 if skip else 1 :]
    rank = 0 if value is None or value.shape is None else len(value.shape)
    if value is None or node.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:3]):
        return None
    epsilon = float(node.attributes.get_float("epsilon", 1e-12 if skip else 1e-5) or 0.0)
    simple = "Simplified" in kind
    beta = None if simple or not shifts else shifts[0]
    bias = next((one for one in (shifts if simple else shifts[1:]) if one is not None), None) if skip else None
    instead = []
    if skip:
        value = w.op("Add", value, node.inputs[1])
        if bias is not None:
            value = w.op("Add", value, bias)
        if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
            if node.outputs[3].is_graph_output():
                return None
            instead.append((node.outputs[3], value))
    if w.version >= 17 and not simple:
        w.op("LayerNormalization", value, scale, *([] if beta is None else [beta]), axis=-1, epsilon=epsilon)
        return w.found(instead)
    middle = value if simple else w.op("Sub", value, w.mean(value))
    spread = w.op("Sqrt", w.op("Add", w.mean(w.op("Mul", middle, middle)), epsilon))
    result = w.op("Mul", w.op("Div", middle, spread), scale)
    if beta is not None:
        w.op("Add", result, beta)
    return w.found(instead)


#: Without a domain: onnxruntime knew them before ONNX did.
_ONCE_STANDARD = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
_WRITERS: dict[str, Callable[[_Writer], Found | None]] = {
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "TransposeMatMul": _matmul,
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _gelu,
    "QuickGelu": _quick_gelu,
    "LayerNormalization": _norm,
    "SimplifiedLayerNormalization": _norm,
    "SkipLayerNormalization": _norm,
    "SkipSimplifiedLayerNormalization": _norm,
}
