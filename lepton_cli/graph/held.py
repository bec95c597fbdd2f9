"""Which nodes hold the weights of a model, found from the graph alone: no list of operators can be complete."""

from __future__ import annotations

import dataclasses
from math import prod

import onnx_ir as ir

#: A weight has at least so many values, and at least two axes: vectors (bias, scale) are settings of the node.
LEAST_VALUES = 256
#: Other numbers of a graph are shapes and indices.
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


#: What only quantized weights are stored as; floats beside them are their scales.
SMALL = frozenset(
    {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2}
)


@dataclasses.dataclass(frozen=True)
class Holder:
    """A node that computes with stored floats. `tensors`: those with two axes and 256 values or more.

    `values` counts them, and the lists of numbers among the node's attributes (the thresholds of decision trees).
    """

    node: ir.Node
    tensors: tuple[ir.TensorProtocol, ...]
    values: int


def holders(model: ir.Model) -> list[Holder]:
    """Nodes that compute with a large stored tensor, in graph order, subgraphs too.

    A tensor may be an initializer, one that callers can override, a Constant node, or stand behind nodes that depend
    on nothing else (Cast, Transpose): the node holds it that first takes something computed as well.
    """
    behind: dict[ir.Value, tuple[ir.TensorProtocol, ...]] = {}
    found = []
    for node in model.graph.all_nodes():
        read = [behind.get(value, _stored(value)) for value in node.inputs if value is not None]
        constant = all(part is not None for part in read) and not _has_graphs(node)
        tensors = tuple({id(one): one for part in read if part is not None for one in part}.values())
        tensors = tuple(tensor for tensor in tensors if tensor.dtype in SMALL) or tensors
        if constant and not any(value.is_graph_output() for value in node.outputs):
            if node.op_type == "Constant" and not node.domain:
                tensors = _constant(node)
            behind.update((value, tensors) for value in node.outputs)
            continue
        large = tuple(tensor for tensor in tensors if _is_large(tensor))
        values = sum(tensor.size for tensor in large) + _listed(node)
        if values:
            found.append(Holder(node, large, values))
    return found


def stored_in_8_bits(node: ir.Node) -> bool:
    """Is this the Cast that a weight stored in 8 bits begins with? A multiplication by its scales follows."""
    value = node.inputs[0] if node.op_type == "Cast" and not node.domain else None
    return value is not None and value.is_initializer() and value.dtype == ir.DataType.INT8


def scales_stored(node: ir.Node) -> bool:
    """Is this that multiplication?"""
    source = node.inputs[0].producer() if node.op_type == "Mul" and node.inputs[0] is not None else None
    return source is not None and stored_in_8_bits(source)


def nothing_to_compress(model: ir.Model) -> str | None:
    """Why no step can make the model smaller: its numbers are attributes of nodes, as those of decision trees are."""
    held = holders(model)
    if not held or any(holder.tensors for holder in held):
        return None
    operators = ", ".join(sorted({holder.node.op_type for holder in held}))
    return (
        f"nothing in this model can be compressed: its {sum(holder.values for holder in held):,} numbers are "
        f"attributes of {operators}, and lepton prunes and quantizes tensors"
    )


def _stored(value: ir.Value) -> tuple[ir.TensorProtocol, ...] | None:
    """What a value without producer holds; `None` for what is only known while running."""
    return None if value.const_value is None else (value.const_value,)


def _constant(node: ir.Node) -> tuple[ir.TensorProtocol, ...]:
    attribute = node.attributes.get("value")
    if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
        return ()
    return (attribute.as_tensor(),)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    shape = tensor.shape.numpy()
    return tensor.dtype in FLOATS and prod(shape) >= LEAST_VALUES and sum(size > 1 for size in shape) > 1


def _listed(node: ir.Node) -> int:
    """Numbers in attributes."""
    lists = (a.value for a in node.attributes.values() if not a.is_ref() and a.type == ir.AttributeType.FLOATS)
    return sum(len(values) for values in lists if len(values) >= LEAST_VALUES)


def _has_graphs(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())
