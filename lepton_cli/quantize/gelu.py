"""GELU behind a convolution as the one operator that ONNX has for it since opset 20.

onnxruntime joins x (1 + erf(x / sqrt 2)) 0.5 by itself, but not behind an int8 convolution: each of the two readers of
x then has a DequantizeLinear of its own, and five float operators stay.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from lepton_cli.graph import clean, opset, shapes
from lepton_cli.graph.edit import Editor

#: The operator set that brought the operator.
OPSET = 20
#: How near a constant is to what it stands for, relatively.
_NEAR = 1e-5


def join(model: ir.Model, excluded: Collection[str]) -> ir.Model:
    """A copy with Gelu for what its parts compute of a Conv's result, or `model` where there is none."""
    if not any(_found(model, excluded)):
        return model
    modern = opset.raised(model, OPSET)
    if modern is None:
        return model
    editor = Editor(modern)
    for x, last in list(_found(modern, excluded)):
        made = ir.node("Gelu", [x], name=f"{last.name}/gelu")
        editor.put(last, [made])
    clean.remove_unused(modern)
    shapes.annotate(modern)
    return modern


def _found(model: ir.Model, excluded: Collection[str]) -> Iterator[tuple[ir.Value, ir.Node]]:
    """What GELU is computed of, and the node that gives the result."""
    for erf in model.graph:
        if erf.op_type != "Erf" or erf.domain:
            continue
        x = _scaled(erf.inputs[0])
        producer = None if x is None else x.producer()
        if x is None or producer is None or producer.op_type != "Conv":
            continue
        parts = [erf]
        result, factor, seen = erf.outputs[0], 1.0, False
        while (node := _reader(result)) is not None and not (seen and math.isclose(factor, 0.5, rel_tol=_NEAR)):
            other = next((value for value in node.inputs if value is not result), None)
            if len(parts) == 1:
                if node.op_type != "Add" or _number(other) != 1:
                    break
            elif node.op_type != "Mul":
                break
            elif (number := _number(other)) is not None:
                factor *= number
            else:
                share = 1.0 if other is x else _share(other, x)
                if share is None or seen:
                    break
                seen, factor = True, factor * share
            parts.append(node)
            result = node.outputs[0]
        if seen and math.isclose(factor, 0.5, rel_tol=_NEAR) and not {node.name for node in parts} & set(excluded):
            yield x, parts[-1]


def _reader(value: ir.Value) -> ir.Node | None:
    """The only reader."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() and not uses[0].node.domain else None


def _scaled(value: ir.Value | None) -> ir.Value | None:
    """x, where the value is x / sqrt 2."""
    node = None if value is None else value.producer()
    if node is None or node.domain or node.op_type not in ("Div", "Mul"):
        return None
    x, number = node.inputs[0], _number(node.inputs[1])
    if number is None and node.op_type == "Mul":
        x, number = node.inputs[1], _number(node.inputs[0])
    wanted = math.sqrt(2) if node.op_type == "Div" else math.sqrt(0.5)
    return x if number is not None and math.isclose(number, wanted, rel_tol=_NEAR) else None


def _share(value: ir.Value | None, x: ir.Value) -> float | None:
    """The constant that `x` is multiplied by."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Mul" or node.domain or x not in node.inputs:
        return None
    return next((number for one in node.inputs if one is not x and (number := _number(one)) is not None), None)


def _number(value: ir.Value | None) -> float | None:
    held = None if value is None else value.const_value
    return None if held is None or held.size != 1 else float(np.asarray(held.numpy()).item())
