"""What the nodes that read an input tell about it: the table that it points into, the axis of its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from lepton_cli.tensors import Dim

#: What indices pass through unchanged on their way to a table, as the first input,
_PASSING = frozenset(
    {
        "Cast",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
#: and as any input of a kind.
_JOINING = frozenset({"Concat", "Where"})
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool"})
#: What leaves every axis where it is: of one input, and of one beside stored numbers.
_IN_PLACE = frozenset(
    {"BatchNormalization", "Cast", "Clip", "Elu", "Identity", "LeakyRelu", "Pad", "Relu", "Sigmoid", "Slice", "Tanh"}
)
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
#: What takes positions along one axis of its first input as its second.
_INDEXED = frozenset({"Gather", "GatherElements", "ScatterElements"})


def held(value: ir.Value) -> Sequence[Dim] | None:
    """The shape of a stored tensor."""
    return None if value.const_value is None else value.const_value.shape.numpy()


def tables(indices: ir.Value) -> Iterator[tuple[ir.Value, int]]:
    """Every table that is read at these indices, with the axis they count along."""
    waiting, seen = [indices], {indices}
    while waiting:
        for node, position in waiting.pop().uses():
            table = node.inputs[0]
            if position == 1 and table is not None and node.op_type in _INDEXED:
                yield table, node.attributes.get_int("axis", 0)
            elif position == 1 and table is not None and node.op_type in ("GatherND", "ScatterND"):
                yield table, node.attributes.get_int("batch_dims", 0)
            elif (node.op_type in _PASSING and position == 0) or (node.op_type in _JOINING):
                new = [output for output in node.outputs if output not in seen]
                seen.update(new)
                waiting += new


def rows(indices: ir.Value, shape_of: Callable[[ir.Value], Sequence[Dim] | None]) -> int | None:
    """Rows of the shortest table of known height that is read at these indices."""
    found: list[int] = []
    for table, axis in tables(indices):
        shape = shape_of(table)
        if shape and -len(shape) <= axis < len(shape) and isinstance(size := shape[axis], int):
            found.append(size)
    return min(found, default=None)


def batch_axis(value: ir.Value) -> int | None:
    """The axis that a convolution or a recurrent layer takes for the samples, where axes only change places before it.

    -1: the model adds that axis itself, a feed is one sample.
    """
    if value.shape is None:
        return None
    waiting: list[tuple[ir.Value, list[int | None]]] = [(value, list(range(len(value.shape))))]
    seen = {value}
    while waiting:
        current, axes = waiting.pop()
        for node, position in current.uses():
            if node.op_type in RECURRENT and position in (0, 5, 6) and len(axes) == 3:
                first = node.attributes.get_int("layout", 0) == 1
                found = axes[0 if first else 1]
                return -1 if found is None else found
            if node.op_type in _CONVOLUTIONS and position == 0 and len(axes) > 2:
                return -1 if axes[0] is None else axes[0]
            moved = _moved(node, position, axes) if node.outputs[0] not in seen else None
            if moved is not None:
                seen.add(node.outputs[0])
                waiting.append((node.outputs[0], moved))
    return None


def _moved(node: ir.Node, position: int, axes: list[int | None]) -> list[int | None] | None:
    """Where the axes of this input are behind a node that only moves them, or computes in place."""
    if node.op_type in _ARITHMETIC:
        others = [held(value) for at, value in enumerate(node.inputs) if at != position and value is not None]
        return axes if all(shape is not None and len(shape) <= len(axes) for shape in others) else None
    if position != 0:
        return None
    if node.op_type in _IN_PLACE:
        return axes
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", None) or range(len(axes))[::-1]
        return [axes[axis] for axis in order] if len(order) == len(axes) else None
    if node.op_type not in ("Unsqueeze", "Squeeze"):
        return None
    chosen = node.attributes.get_ints("axes", None)
    if chosen is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = node.inputs[1].const_value
        chosen = None if tensor is None else [int(axis) for axis in tensor.numpy().reshape(-1)]
    if chosen is None:
        return None
    if node.op_type == "Squeeze":
        gone = {axis % len(axes) for axis in chosen} if axes else set()
        return [axis for place, axis in enumerate(axes) if place not in gone]
    total = len(axes) + len(chosen)
    added = {axis % total for axis in chosen}
    kept = iter(axes)
    return [None if place in added else next(kept, None) for place in range(total)]
