"""Float32 to float16 and back on the graph itself: node by node, with a cast where the types of neighbours differ.

Which inputs and outputs of an operator may be float16 is read from onnxruntime's own definitions, so that operators
without such a type (Range), with some inputs in float32 for ever (the scales of Resize), and with types of their own
are right by construction. onnxruntime's converter knows a list of names instead, and leaves graphs that do not load.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph import clean, shapes
from lepton_cli.graph.edit import Editor, is_constant
from lepton_cli.model import check, io
from lepton_cli.runtime import onnxruntime, schema

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
#: Greatest finite float16, and the least that is not zero: what would vanish may be a divisor.
GREATEST = 65504.0
LEAST = 5.97e-08
#: Values worked on at once.
_CHUNK = 1 << 20
_NAMES = {FLOAT: "tensor(float)", HALF: "tensor(float16)"}
_SHORT = {FLOAT: "float", HALF: "half"}

#: Operators whose output has the type of an input although the definition does not say so.
_LIKE = ("RandomNormalLike", "RandomUniformLike", "EyeLike", "Bernoulli")

Keep = Callable[[NDArray[Any]], ir.TensorProtocol]


def convert(model: ir.Model, blocked: Collection[str], keep_io: bool, keep: Keep = ir.tensor) -> ir.Model:
    """A copy in float16, but for the nodes `blocked`. `keep` makes tensors of the new weights.

    Constants must be initializers. `keep_io`: inputs and outputs stay float32.
    """
    copy = io.clone(model)
    shapes.annotate(copy)
    _Conversion(copy, FLOAT, HALF, blocked, keep).run(keep_io)
    return copy


def widen(model: ir.Model) -> ir.Model:
    """A copy that computes in float32 where the model does in float16; inputs and outputs stay.

    Constants must be initializers. The model itself where it holds no float16.
    """
    if not any(tensor.dtype == HALF for tensor in check.tensors(model)):
        return model
    copy = io.clone(model)
    shapes.annotate(copy)
    _Conversion(copy, HALF, FLOAT).run(keep_io=True)
    clean.remove_no_ops(copy, {node.name or "" for node in copy.graph if node.op_type == "Cast"})
    return copy


def to_half(array: NDArray[Any]) -> NDArray[np.float16]:
    """Rounded to float16; finite values beyond its range become its ends, and none becomes zero."""
    flat, made = array.reshape(-1), np.empty(array.size, np.float16)
    for start in range(0, array.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        cut = np.where(np.isfinite(part), np.clip(part, -GREATEST, GREATEST), part)
        tiny = (np.abs(part) < LEAST) & (part != 0)
        made[start : start + _CHUNK] = np.where(tiny, np.copysign(LEAST, part), cut)
    return made.reshape(array.shape)


def _in(kind: ir.DataType, array: NDArray[Any]) -> NDArray[Any]:
    return to_half(array) if kind == HALF else array.astype(np.float32)


class _Conversion:
    """One conversion, in place. Values keep their names; their types change where a node returns the new one."""

    def __init__(
        self, model: ir.Model, old: ir.DataType, new: ir.DataType, blocked: Collection[str] = (), keep: Keep = ir.tensor
    ) -> None:
        onnxruntime()
        from onnxruntime.transformers.float16 import ALWAYS_FLOAT_INPUTS, DEFAULT_OP_BLOCK_LIST

        self._model, self._keep, self._old, self._new = model, keep, old, new
        self._blocked = set(blocked)
        #: Operators and inputs that onnxruntime does not run in float16, whatever their definition says.
        self._never, self._fixed = set(_LIKE), {}
        if new == HALF:
            self._never, self._fixed = {*DEFAULT_OP_BLOCK_LIST, *_LIKE}, ALWAYS_FLOAT_INPUTS
        self._editor = Editor(model)
        #: Values that had the old type, and the same in the other: casts for the graph they stand in, weights for all.
        self._own: set[ir.Value] = set()
        self._twins: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._weights: dict[ir.Value, ir.Value] = {}

    def run(self, keep_io: bool) -> None:
        """`keep_io`: inputs and outputs keep the old type."""
        if not keep_io:
            for value in self._model.graph.inputs:
                if _is(value, self._old):
                    value.type = ir.TensorType(self._new)
                    self._own.add(value)
        self._graph(self._model.graph, self._old if keep_io else self._new)
        self._name_weights()

    def _name_weights(self) -> None:
        """Take out weights that nothing reads in the old type any more, inner graphs too; the new get the names."""
        for value, made in self._weights.items():
            if value.uses() or value.is_graph_output():
                continue
            name = value.name
            if value.is_initializer():
                assert isinstance(value.graph, ir.Graph)
                del value.graph.initializers[name or ""]
            if name not in self._model.graph.initializers:
                made.name = name

    def _graph(self, graph: ir.Graph, returned: ir.DataType) -> None:
        """Convert the nodes of a graph; its outputs of the old type are returned in this one."""
        self._own.update(value for value in (*graph.inputs, *graph.initializers.values()) if _is(value, self._old))
        here = dict(self._twins)
        for node in list(graph):
            inner = list(_graphs(node))
            rules = None if inner else _rules(node, self._model)
            self._type(node, rules)
            if rules is None or not self._converts(node):
                rules = None
            for index, value in enumerate(node.inputs):
                if value is not None and value in self._own:
                    allowed = rules is not None and self._allows(_formal(rules.inputs, index))
                    wanted = self._new if allowed and index not in self._fixed.get(node.op_type, ()) else self._old
                    node.replace_input_with(index, self._in(wanted, value, node))
            for one in inner:
                self._inner(node, one)
            if rules is not None:
                self._return_new(node, rules)
        for index, value in enumerate(graph.outputs):
            if value in self._own and value.dtype != returned:
                self._return(graph, index, value, returned)
        self._twins = here  # those of an inner graph are not seen outside

    def _type(self, node: ir.Node, rules: Any | None) -> None:
        """Note which results have the old type; files need not say it."""
        for index, value in enumerate(node.outputs):
            if value.type is None and rules is not None:
                kind = self._returned(node, _formal(rules.outputs, index), rules)
                value.type = None if kind is None else ir.TensorType(kind)
        self._own.update(value for value in node.outputs if _is(value, self._old))

    def _returned(self, node: ir.Node, parameter: Any | None, rules: Any) -> ir.DataType | None:
        """Type that an output has in the model as it was."""
        if node.op_type == "Cast":
            return ir.DataType(node.attributes.get_int("to", 0))
        if parameter is not None and set(parameter.types) == {_NAMES[FLOAT]}:
            return FLOAT
        source = _followed(node, parameter, rules)
        return self._old if source in self._own else None if source is None else source.dtype

    def _inner(self, node: ir.Node, graph: ir.Graph) -> None:
        """Convert the body of a node, whose own inputs and outputs keep their type."""
        for value, given in zip(graph.inputs, node.inputs, strict=False):  # Loop and Scan: one by one
            if value.type is None and given is not None:
                value.type = given.type
        self._graph(graph, self._old)
        # A Loop's body says first whether to go on.
        for value, made in zip(reversed(node.outputs), reversed(graph.outputs), strict=False):
            if value.type is None:
                value.type = made.type
        self._own.update(value for value in node.outputs if _is(value, self._old))

    def _converts(self, node: ir.Node) -> bool:
        """Whether the node computes in the new type: it is let, and reads and returns only tensors of known types."""
        if node.name in self._blocked or node.op_type in self._never:
            return False
        values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
        return all(isinstance(value.type, ir.TensorType) for value in values)

    def _in(self, kind: ir.DataType, value: ir.Value, reader: ir.Node) -> ir.Value:
        """The value in this type: itself, a rounded weight, or a cast before its first reader."""
        if value.dtype == kind:
            return value
        name = f"{value.name}.{_SHORT[kind]}"
        if is_constant(value) and value.const_value is not None:
            if value not in self._weights:
                self._weights[value] = self._editor.constant(name, self._keep(_in(kind, value.const_value.numpy())))
            return self._weights[value]
        if (value, kind) not in self._twins:
            cast = _cast(value, kind, name)
            self._editor.insert_before(reader, [cast])
            self._twins[value, kind] = cast.outputs[0]
        return self._twins[value, kind]

    def _return_new(self, node: ir.Node, rules: Any) -> None:
        if node.op_type in ("Cast", "ConstantOfShape"):
            value = node.outputs[0]
            if value not in self._own:
                return
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(self._new))
            else:
                held = node.attributes.get_tensor("value")
                array = np.zeros(1, np.float32) if held is None else held.numpy()
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_in(self._new, array)))
            value.type = ir.TensorType(self._new)
            return
        for index, value in enumerate(node.outputs):
            source = _followed(node, _formal(rules.outputs, index), rules)
            if value in self._own and source is not None and source.dtype is not None:
                value.type = ir.TensorType(source.dtype)

    def _allows(self, parameter: Any | None) -> bool:
        return parameter is not None and _NAMES[self._new] in parameter.types

    def _return(self, graph: ir.Graph, index: int, value: ir.Value, kind: ir.DataType) -> None:
        """Let the graph return this type under the name it had."""
        name = value.name
        if value.is_graph_input() or is_constant(value):
            return
        cast = _cast(value, kind, name or "")
        value.name = self._editor.name(f"{name}.{_SHORT[self._new if kind == self._old else self._old]}")
        cast.name = self._editor.name(cast.name or "")
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]


def _cast(value: ir.Value, kind: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": int(kind)}, name=f"{name}.cast")
    cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
    cast.outputs[0].type = ir.TensorType(kind)
    return cast


def _is(value: ir.Value, kind: ir.DataType) -> bool:
    """A tensor of this type; sequences have the same element type."""
    return value.dtype == kind and isinstance(value.type, ir.TensorType)


def _graphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
            yield from attribute.as_graphs()


def _rules(node: ir.Node, model: ir.Model) -> Any | None:
    return schema(node.domain, node.op_type, model.graph.opset_imports.get(node.domain))


def _formal(parameters: Any, index: int) -> Any | None:
    """What the definition says of a position; the last one stands for all that follow where it may be repeated."""
    return parameters[min(index, len(parameters) - 1)] if parameters else None


def _followed(node: ir.Node, parameter: Any | None, rules: Any) -> ir.Value | None:
    """An input to which the definition gives the same type as to this output, if there is one."""
    for index, value in enumerate(node.inputs):
        formal = _formal(rules.inputs, index)
        if value is None or formal is None or parameter is None or not isinstance(value.type, ir.TensorType):
            continue
        if formal.typeStr == parameter.typeStr:
            return value
    return None
