"""Operators without an int8 kernel, written as those that have one.

The float model keeps them: they are the shorter form, and what is returned to float stays as it was. Only the quantized
copy gets the longer one. A hard-sigmoid is an addition whose grid ends at 0 and 1; multiplying by a number takes no
kernel at all, as the same codes are read with another scale.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph.edit import Editor, array_of
from lepton_cli.probe.clipping import Range

#: A hard-swish is the input times this hard-sigmoid of it.
SLOPE, OFFSET = 1 / 6, 0.5


def factor(node: ir.Node) -> tuple[int, float] | None:
    """Which input a Mul or Div by one positive number multiplies, and by how much; `None` for every other node."""
    for index in (0, 1) if node.op_type == "Mul" else (0,) if node.op_type == "Div" else ():
        number = array_of(node, 1 - index)
        if number is None or number.dtype != np.float32 or number.size != 1 or number.ndim > 1:
            continue
        value = float(number.item())
        times = value if node.op_type == "Mul" else 1 / value if value else 0.0
        if 0 < times < float("inf"):
            return index, times
    return None


def over_positions(node: ir.Node) -> bool:
    """Whether a ReduceMean is a GlobalAveragePool of images."""
    data = node.inputs[0]
    if data is None or data.shape is None or len(data.shape) != 4:
        return False
    given = array_of(node, 1)
    axes = node.attributes.get_ints("axes", []) if given is None else given.tolist()
    return sorted(axis % 4 for axis in axes) == [2, 3]


def expand(node: ir.Node, editor: Editor, ranges: dict[str, Range], *, limits: bool) -> list[ir.Node]:
    """Write a node as others, in place; the nodes that stand there now, and in `ranges` what is known of their results.

    `limits`: whether a grid can end at 0, as a hard-sigmoid needs it.
    """
    source = node.inputs[0]
    assert source is not None
    result = node.outputs[0].name or ""
    if node.op_type == "Div" and (found := factor(node)) is not None:
        return _put(node, editor, [_float("Mul", source, editor.constant(f"{node.name}_factor", _number(found[1])))])
    if node.op_type == "ReduceMean":
        made = [_float("GlobalAveragePool", source)]
        if not node.attributes.get_int("keepdims", 1):
            made.append(_float("Flatten", made[0].outputs[0]))
        _put(node, editor, made)
        ranges[made[0].outputs[0].name or ""] = ranges[result]
        return made
    if node.op_type in ("HardSigmoid", "HardSwish") and limits:
        swish = node.op_type == "HardSwish"
        slope = SLOPE if swish else node.attributes.get_float("alpha", 0.2)
        offset = OFFSET if swish else node.attributes.get_float("beta", 0.5)
        if slope <= 0:
            return [node]
        names = {"slope": slope, "offset": offset, "zero": 0.0, "one": 1.0}
        held = {name: editor.constant(f"{node.name}_{name}", _number(number)) for name, number in names.items()}
        alone = len(source.uses()) == 1 and not source.is_graph_output()
        scaled = _float("Mul", source, held["slope"])
        moved = _float("Add", scaled.outputs[0], held["offset"])
        limited = _float("Clip", moved.outputs[0], held["zero"], held["one"])
        more = [_float("Mul", source, limited.outputs[0])] if swish else []
        _put(node, editor, [scaled, moved, limited, *more])
        gate = limited.outputs[0].name or ""
        ranges[gate] = ranges[moved.outputs[0].name or ""] = ranges.get(gate, (0.0, 1.0))
        if alone and source.name in ranges:
            low, high = ranges[source.name]
            ends = (-offset / slope, high if swish else min(high, (1 - offset) / slope))
            ranges[source.name] = (max(low, min(ends[0], 0.0)), max(ends[1], 0.0))
        return [scaled, moved, limited, *more]
    return [node]


def _put(node: ir.Node, editor: Editor, made: list[ir.Node]) -> list[ir.Node]:
    for number, part in enumerate(made):
        part.name = node.name if part is made[-1] else f"{node.name}_{number}"
    editor.put(node, made)
    return made


def _number(value: float) -> NDArray[np.float32]:
    return np.array(value, np.float32)


def _float(op: str, *inputs: ir.Value) -> ir.Node:
    node = ir.node(op, list(inputs))
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node
