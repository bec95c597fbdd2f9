"""What of a model can be compared value by value with another model's."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lepton_cli.graph import shapes
from lepton_cli.graph.edit import Editor
from lepton_cli.graph.sized import from_data
from lepton_cli.model import io

_FLOAT = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


def comparable(model: ir.Model) -> ir.Model:
    """The model, with what is searched in place of what is found.

    Boxes that suppression leaves move up or down with the least change of a score, and then each is compared with
    another one. An output whose size follows from the data gives way to the float values that the search for it reads:
    all boxes, all scores, which are named by the node that reads them. A model without such outputs is returned as it
    is, as is one where no float value leads to them.
    """
    if not set(model.graph.outputs) & from_data(model).sized:
        return model
    copy = io.clone(model)
    known, data = shapes.infer(copy), from_data(copy)
    late = [value for value in copy.graph.outputs if value in data.sized]
    found: dict[str, ir.Value] = {}
    seen, stack = set(late), [*reversed(late)]
    while stack:
        node = stack.pop().producer()
        for index, value in enumerate(() if node is None else node.inputs):
            if node is None or value is None or value in seen or value not in data.values:
                continue
            kind = known.get(value.name or "")
            if value not in data.sized and value.producer() and kind is not None and kind.dtype in _FLOAT:
                found[f"{node.name}:{index}"] = value
            seen.add(value)
            stack += [] if value in found.values() else [value]
    if not found:
        return model
    editor = Editor(copy)
    kept = [value for value in copy.graph.outputs if value not in data.sized]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(kept)
    for name, value in found.items():
        made = ir.node("Identity", [value])
        made.outputs[0].name, made.name = name, editor.name(name)
        made.outputs[0].type = ir.TensorType(known[value.name or ""].dtype or ir.DataType.FLOAT)
        copy.graph.append(made)
        copy.graph.outputs.append(made.outputs[0])
    RemoveUnusedNodesPass()(copy)
    return copy
