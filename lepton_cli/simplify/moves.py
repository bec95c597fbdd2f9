"""Chains of operators that only move values, as the fewest that move them the same way.

Exporters write the shuffled channels of a ShuffleNet, or one axis more for a convolution in one dimension, as three to
five operators. Where all sizes are known, numbers sent through the chain show what it comes to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph.edit import array_of, is_constant, read_nothing
from lepton_cli.simplify.found import Found, before, held, only_reader

_SHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_MOVING = _SHAPING | {"Transpose", "Gather", "Slice"}
#: Values up to which numbers are sent through a chain.
_MOST = 4_000_000
#: Operators of a chain that are looked at.
_LONGEST = 6
_END = 2**31 - 1


def joined(_: ir.Model, node: ir.Node) -> Found | None:
    """Two or more moves in a row as one Reshape, one Slice, or nothing; one Reshape whose sizes are known."""
    if node.op_type not in _MOVING or not node.outputs[0].name:
        return None
    chain = [node]
    while len(chain) < _LONGEST and (first := before(chain[0])) is not None and first.op_type in _MOVING:
        chain.insert(0, first)
    for start in range(len(chain)):
        part = chain[start:]
        made = _one(part)
        if made is not None and (len(part) > 1 or made.op_type == "Identity" or _computes_size(node)):
            return Found([made], part)
        read_nothing([] if made is None else [made])
    return None


def _computes_size(node: ir.Node) -> bool:
    """Is this a Reshape to sizes that the graph computes?"""
    return node.op_type == "Reshape" and not is_constant(node.inputs[1])


def _one(chain: Sequence[ir.Node]) -> ir.Node | None:
    """One operator that does what the chain does."""
    source, result = chain[0].inputs[0], chain[-1].outputs[0]
    if source is None or source.shape is None or result.shape is None:
        return None
    if all(_keeps_order(node) for node in chain):
        return _shaped(source, result)
    given, wanted = ([d for d in shape if isinstance(d, int)] for shape in (source.shape, result.shape))
    if len(given) < len(source.shape) or len(wanted) < len(result.shape) or not 0 < math.prod(given) <= _MOST:
        return None
    numbers = np.arange(math.prod(given), dtype=np.int64).reshape(given)
    moved = numbers
    for node in chain:
        after = _moved(node, moved)
        if after is None:
            return None
        moved = after
    if list(moved.shape) != wanted:
        return None
    if moved.size == numbers.size and np.array_equal(moved.ravel(), numbers.ravel()):
        return _shaped(source, result)
    return _sliced(source, numbers, moved)


def _keeps_order(node: ir.Node) -> bool:
    """Does it only shape, or turn axes of which all but the moved ones have one element?"""
    if node.op_type != "Transpose":
        return node.op_type in _SHAPING
    shape, order = node.inputs[0].shape if node.inputs[0] is not None else None, node.attributes.get_ints("perm")
    if shape is None or order is None:
        return False
    long = [axis for axis in order if shape[axis] != 1]
    return long == sorted(long)


def _shaped(source: ir.Value, result: ir.Value) -> ir.Node | None:
    assert source.shape is not None
    assert result.shape is not None
    if _same(source.shape, result.shape):
        return ir.node("Identity", [source])
    sizes = [d if isinstance(d, int) else -1 for d in result.shape]
    same = [at for at, size in enumerate(sizes) if size == -1 and at < len(source.shape)
            and _same(source.shape[at : at + 1], result.shape[at : at + 1])]  # fmt: skip
    if 0 in sizes or sizes.count(-1) > 1 + len(same):
        return None
    for at in same[: sizes.count(-1) - 1]:
        sizes[at] = 0  # as large as the axis of that number was
    return ir.node("Reshape", [source, held(f"{result.name}/shape", np.array(sizes, np.int64))])


def _same(one: Iterable[object], other: Iterable[object]) -> bool:
    """Are two shapes equal for certain? Sizes without a name are not."""
    first, second = ([d.value if isinstance(d, ir.SymbolicDim) else d for d in shape] for shape in (one, other))
    return first == second and None not in first


def _moved(node: ir.Node, values: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """What an operator makes of the values; `None` where that is not known."""
    if node.op_type in _SHAPING:
        shape = node.outputs[0].shape
        sizes = [d for d in shape or () if isinstance(d, int)]
        known = shape is not None and len(sizes) == len(shape) and math.prod(sizes) == values.size
        return values.reshape(sizes) if known else None
    if node.op_type == "Transpose":
        return values.transpose(node.attributes.get_ints("perm", tuple(range(values.ndim))[::-1]))
    if node.op_type == "Gather":
        index, axis = array_of(node), node.attributes.get_int("axis", 0)
        if (
            index is None
            or not values.ndim
            or np.any(index >= values.shape[axis])
            or np.any(index < -values.shape[axis])
        ):
            return None
        return np.take(values, index, axis)
    cut = slice_ranges(node)
    if cut is None:
        return None
    where = [slice(None)] * values.ndim
    for axis, (start, end, step) in cut.items():
        if step < 1:
            return None
        where[axis] = slice(start, end, step)
    return values[tuple(where)]


def _sliced(source: ir.Value, numbers: NDArray[np.int64], moved: NDArray[np.int64]) -> ir.Node | None:
    """A Slice along one axis, if that is all."""
    axes = [
        axis for axis in range(numbers.ndim) if numbers.ndim == moved.ndim and numbers.shape[axis] != moved.shape[axis]
    ]
    if len(axes) != 1 or not moved.size:
        return None
    axis = axes[0]
    size, kept = numbers.shape[axis], moved.shape[axis]
    below = math.prod(numbers.shape[axis + 1 :])
    start = int(moved.ravel()[0]) // below % size
    step = int(np.take(moved, 1, axis).ravel()[0] - moved.ravel()[0]) // below if kept > 1 else 1
    if step < 1:
        return None
    where = [slice(None)] * numbers.ndim
    where[axis] = slice(start, start + (kept - 1) * step + 1, step)
    if not np.array_equal(numbers[tuple(where)], moved):
        return None
    return _slice(source, {axis: (start, start + (kept - 1) * step + 1, step)})


def _slice(source: ir.Value, cut: dict[int, tuple[int, int, int]]) -> ir.Node:
    starts, ends, steps = (np.array([part[i] for part in cut.values()], np.int64) for i in range(3))
    named = {"starts": starts, "ends": ends, "axes": np.array(list(cut), np.int64), "steps": steps}
    return ir.node("Slice", [source, *(held(f"{source.name}/{name}", array) for name, array in named.items())])


def slice_ranges(node: ir.Node) -> dict[int, tuple[int, int, int]] | None:
    """Start, end and step by axis of a Slice whose inputs are constant and whose axes are counted from the front."""
    starts, ends = array_of(node, 1), array_of(node, 2)
    count = 0 if starts is None else starts.size
    axes = array_of(node, 3) if len(node.inputs) > 3 and node.inputs[3] is not None else np.arange(count)
    steps = array_of(node, 4) if len(node.inputs) > 4 and node.inputs[4] is not None else np.ones(count, np.int64)
    if starts is None or ends is None or axes is None or steps is None:
        return None
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if (axes < 0).any() and shape is None:
        return None
    places = [int(axis) + (len(shape) if axis < 0 and shape is not None else 0) for axis in axes]
    parts = zip(starts.tolist(), ends.tolist(), steps.tolist(), strict=True)
    return dict(zip(places, parts, strict=True))


def nothing_cut(_: ir.Model, node: ir.Node) -> Found | None:
    """A Slice from the first to the last."""
    cut = slice_ranges(node) if node.op_type == "Slice" else None
    if cut is None:
        return None
    shape = node.inputs[0].shape if node.inputs[0] is not None else None

    def whole(axis: int, start: int, end: int, step: int) -> bool:
        size = shape[axis] if shape is not None and axis < len(shape) else None
        return step == 1 and start == 0 and end >= (size if isinstance(size, int) else _END)

    if not all(whole(axis, *part) for axis, part in cut.items()):
        return None
    return Found([ir.node("Identity", [node.inputs[0]])], [node])


def slices(_: ir.Model, node: ir.Node) -> Found | None:
    """A Slice of a Slice along other axes."""
    first = before(node)
    if node.op_type != "Slice" or first is None or first.op_type != "Slice" or first.inputs[0] is None:
        return None
    one, other = slice_ranges(first), slice_ranges(node)
    if one is None or other is None or set(one) & set(other) or first.inputs[0].shape is None:
        return None
    kinds = {
        value.dtype for part in (first, node) for value in itertools.islice(part.inputs, 1, None) if value is not None
    }
    if kinds - {ir.DataType.INT64, ir.DataType.INT32}:
        return None
    return Found([_slice(first.inputs[0], one | other)], [first, node])


def concats(_: ir.Model, node: ir.Node) -> Found | None:
    """A Concat of Concats along the same axis that nothing else reads."""
    if node.op_type != "Concat" or any(value is None for value in node.inputs):
        return None
    rank = next((len(value.shape) for value in node.inputs if value is not None and value.shape is not None), 0)
    axis = node.attributes.get_int("axis", 0)
    inputs: list[ir.Value | None] = []
    inner = []
    for index, value in enumerate(node.inputs):
        one = before(node, index)
        same = (
            one is not None
            and one.op_type == "Concat"
            and axis in (at := one.attributes.get_int("axis", 0), at + rank, at - rank)
        )
        if one is not None and same and only_reader(one):
            inner.append(one)
            inputs += one.inputs
        else:
            inputs.append(value)
    return Found([ir.node("Concat", inputs, {"axis": axis})], [*inner, node]) if inner else None
