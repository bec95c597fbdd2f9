"""What of a model can be compared value by value with another model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lepton_cli.graph import shapes
from lepton_cli.graph.edit import Editor
from lepton_cli.graph.sized import from_data
from lepton_cli.model import io

_FLOAT = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Searched:
    """A model with more outputs: what is searched beside what is found. All by name.

    A value has an output for each node that reads it: another model may compute it once for each. `searched` names one
    of them.
    """

    model: ir.Model
    found: tuple[str, ...]
    searched: tuple[str, ...]
    #: Those outputs that the model has without it.
    own: tuple[str, ...]

    def only(self, names: Collection[str]) -> ir.Model | None:
        """The model with these of what is searched; `None` where one of them is missing."""
        outputs = {value.name or "": value for value in self.model.graph.outputs}
        if not outputs.keys() >= set(names):
            return None
        self.model.graph.outputs.clear()
        self.model.graph.outputs.extend(outputs[name] for name in (*self.own, *names))
        return self.model


def comparable(model: ir.Model) -> ir.Model:
    """The model, with what is searched in place of what is found.

    Boxes that suppression leaves move up or down with the least change of a score, and then each is compared with
    another one. An output whose size follows from the data gives way to the float values that the search for it reads:
    all boxes, all scores, which are named by the node that reads them. A model without such outputs is returned as it
    is, as is one where no float value leads to them.
    """
    beside = searched(model)
    if beside is None:
        return model
    copy = beside.model
    kept = [value for value in copy.graph.outputs if value.name not in beside.found]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(kept)
    RemoveUnusedNodesPass()(copy)
    return copy


def searched(model: ir.Model) -> Searched | None:
    """A copy that gives what is searched too (see `comparable`); `None` where outputs can be compared as they are."""
    if not set(model.graph.outputs) & from_data(model).sized:
        return None
    copy = io.clone(model)
    known, data = shapes.infer(copy), from_data(copy)
    late = [value for value in copy.graph.outputs if value in data.sized]
    names: dict[str, ir.Value] = {}
    seen, stack = set(late), [*reversed(late)]
    while stack:
        node = stack.pop().producer()
        for index, value in enumerate(() if node is None else node.inputs):
            if node is None or value is None or value in seen or value not in data.values:
                continue
            kind = known.get(value.name or "")
            if value not in data.sized and value.producer() and kind is not None and kind.dtype in _FLOAT:
                names[f"{node.name}.{_formal(node, index)}"] = value
            else:
                seen.add(value)
                stack.append(value)
    if not names:
        return None
    editor, own = Editor(copy), tuple(value.name or "" for value in copy.graph.outputs)
    for name, value in names.items():
        made = ir.node("Identity", [value])
        made.outputs[0].name, made.name = name, editor.name(name)
        made.outputs[0].type = ir.TensorType(known[value.name or ""].dtype or ir.DataType.FLOAT)
        copy.graph.append(made)
        copy.graph.outputs.append(made.outputs[0])
    once = {value: name for name, value in reversed(names.items())}
    return Searched(copy, tuple(value.name or "" for value in late), tuple(reversed(once.values())), own)


def _formal(node: ir.Node, index: int) -> str:
    """What the operator calls this input."""
    try:
        inputs = onnx.defs.get_schema(node.op_type, domain=node.domain).inputs
    except onnx.defs.SchemaError:
        return str(index)
    return inputs[index].name if index < len(inputs) else str(index)
