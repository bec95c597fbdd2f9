"""Editing a graph in place: constants with names that are free, nodes in the place of others, weights read and set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

#: What an initializer is made of.
Held = NDArray[Any] | ir.TensorProtocol


class Editor:
    """Edits of one model that need names: each is one that no value and no node of the model has, subgraphs included.

    The names in use are collected once, so a model is edited through one editor at a time. A name that is taken gets
    a number: the same edits of the same model give the same names.
    """

    def __init__(self, model: ir.Model, apart: Collection[ir.Graph] = ()) -> None:
        """`apart`: graphs inside nodes of the model whose names do not count as taken."""
        self.model = model
        self._taken = {"", *(name for graph in model.graphs() if graph not in apart for name in _names(graph))}
        self._numbers: dict[str, int] = {}

    def name(self, wanted: str) -> str:
        """`wanted` where it is free, else with a number behind it; taken from now on."""
        name = wanted
        while name in self._taken:
            self._numbers[wanted] = self._numbers.get(wanted, 0) + 1
            name = f"{wanted}_{self._numbers[wanted]}"
        self._taken.add(name)
        return name

    def constant(self, wanted: str, held: Held) -> ir.Value:
        """A new initializer of the main graph, which subgraphs can read too."""
        value = initializer(self.name(wanted), held)
        self.model.graph.register_initializer(value)
        return value

    def give(self, node: ir.Node, index: int, held: Held, wanted: str) -> ir.Value:
        """A new initializer as input number `index` of the node: an own one, as the old one may have other readers."""
        value = self.constant(wanted, held)
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)
        return value

    def freeze(self, value: ir.Value, held: Held) -> None:
        """Turn a node's result, no graph output, into an initializer of the same name; nothing reads the node then."""
        producer, name = value.producer(), value.name or ""
        assert producer is not None
        assert isinstance(producer.graph, ir.Graph)
        value.name = self.name(f"{name}/folded")
        constant = initializer(name, held)
        constant.metadata_props.update(value.metadata_props)
        producer.graph.register_initializer(constant)
        value.replace_all_uses_with(constant)

    def put(self, node: ir.Node, made: Sequence[ir.Node], also: Sequence[ir.Node] = ()) -> None:
        """Put the nodes `made` in the place of `node` (and of `also`, which nothing else reads).

        The last one gives the node's results, under their names, with their types and shapes, graph outputs included.
        The made nodes may have the names of those they replace; other names are as free ones allow.
        """
        graph, last = node.graph, made[-1]
        assert graph is not None
        self._settle(made, {old.name for old in (node, *also)}, set(last.outputs[: len(node.outputs)]))
        ir.convenience.replace_nodes_and_values(graph, node, [node], made, node.outputs, last.outputs)
        for old in also:
            assert old.graph is not None
            old.graph.remove(old, safe=True)

    def insert_before(self, node: ir.Node, made: Sequence[ir.Node]) -> None:
        """Put the nodes `made` before `node`, in its graph; names are as free ones allow."""
        assert node.graph is not None
        self._settle(made, set(), set())
        node.graph.insert_before(node, made)

    def _settle(self, made: Sequence[ir.Node], own: set[str | None], results: set[ir.Value]) -> None:
        """Free names for new nodes and their outputs; not for nodes named as in `own`, and not for `results`."""
        for part in made:
            if part.name not in own:
                part.name = self.name(part.name or part.op_type)
            for value in part.outputs:
                if value not in results and value.name != "":  # the empty name: an optional output that is not there
                    value.name = self.name(value.name or f"{part.name}.out")


def _names(graph: ir.Graph) -> Iterator[str]:
    for value in (*graph.inputs, *graph.initializers.values(), *graph.outputs):
        yield value.name or ""
    for node in graph:
        yield node.name or ""
        yield from (value.name or "" for value in node.outputs)


def rename_apart(model: ir.Model, graph: ir.Graph) -> None:
    """Give the nodes and values of an inner graph, and of those inside it, names that nothing else in the model has.

    Graphs side by side may use the same names, as long as none becomes part of what is around them.
    """
    graphs = [graph, *graph.subgraphs()]
    editor = Editor(model, apart=graphs)
    for one in graphs:
        for value in dict.fromkeys((*one.inputs, *one.initializers.values())):
            name = editor.name(value.name or "")
            if name != value.name and value.const_value is not None:
                value.const_value = _renamed(value.const_value, name)  # the old one may be another model's too
            value.name = name
        for node in one:
            node.name = editor.name(node.name or node.op_type)
            for value in node.outputs:
                value.name = editor.name(value.name) if value.name else value.name


def initializer(name: str, held: Held) -> ir.Value:
    """A constant of no graph yet; its tensor is one of its own, as writing a model renames those it holds."""
    if isinstance(held, np.ndarray | np.generic):  # arithmetic turns arrays without axes into numpy's scalars
        array = np.asarray(held, order="C")
        # `ir.tensor` finds out what it was given, which takes longer than all else where a graph gets many constants.
        plain = array.dtype.kind in "biuf"
        tensor: ir.TensorProtocol = ir.Tensor(array, name=name) if plain else ir.tensor(array, name=name)
    else:
        tensor = _renamed(held, name)
    kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    return ir.Value(name=name, const_value=tensor, type=kind, shape=shape)


def _renamed(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The same content as a tensor of its own: writing a model gives tensors the names of their initializers."""
    if isinstance(tensor, ir.ExternalTensor):
        place = (tensor.location, tensor.offset, tensor.length, tensor.dtype)
        return ir.ExternalTensor(*place, shape=tensor.shape, name=name, base_dir=tensor.base_dir)
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(tensor.numpy(), name=name)
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)


def is_constant(value: ir.Value | None) -> bool:
    """Is this an initializer whose value no caller can override?"""
    return value is not None and value.const_value is not None and value.is_initializer() and not value.is_graph_input()


def weight_of(node: ir.Node, index: int = 1) -> ir.Value | None:
    """Input number `index` of a node where it is a constant that no caller can override, else `None`."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return value if is_constant(value) else None


def array_of(node: ir.Node, index: int = 1) -> NDArray[Any] | None:
    """The values of `weight_of`."""
    value = weight_of(node, index)
    return None if value is None or value.const_value is None else value.const_value.numpy()


def set_weight(value: ir.Value, array: NDArray[Any]) -> None:
    """Give an initializer another array, for all its readers: type and shape follow, the name stays."""
    tensor = ir.tensor(np.asarray(array, order="C"), name=value.name)
    value.const_value, value.type = tensor, ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(array.shape)


def bypass(node: ir.Node, index: int = 0) -> None:
    """Let the readers of a node's first output read its input number `index` instead, and remove the node.

    Where that output is a graph output, the input takes its name, type and shape. Raises ValueError where it cannot:
    when it is an input, an initializer or an output of a graph itself, or stands outside the node's graph.
    """
    source, result = node.inputs[index], node.outputs[0]
    assert source is not None
    assert node.graph is not None
    if result.is_graph_output():
        producer = source.producer()
        if producer is None or producer.graph is not node.graph or source.is_graph_output():
            raise ValueError(f"`{source.name}` cannot be the graph output that `{result.name}` is")
        source.name, source.type, source.shape = result.name, result.type, result.shape
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)


def read_nothing(nodes: Iterable[ir.Node]) -> None:
    """Let nodes that are not wanted read nothing: whatever they read would count them as readers."""
    for node in nodes:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


def inner_graphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs of a node's attributes: branches, or the body of a loop."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def captured(node: ir.Node) -> list[ir.Value]:
    """Values of the node's own graph that its subgraphs read."""
    values: dict[ir.Value, None] = {}
    for graph in inner_graphs(node):
        inside = {output for inner in graph.all_nodes() for output in inner.outputs}
        used = [v for inner in graph.all_nodes() for v in inner.inputs if v is not None] + list(graph.outputs)
        values.update(dict.fromkeys(v for v in used if v not in inside and v.graph is node.graph))
    return list(values)
