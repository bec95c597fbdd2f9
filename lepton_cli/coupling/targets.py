"""Targets of Reshape, written entry by entry: the number where a width is known, else the value that says the size.

Exporters compute a target from sizes and constants. Written so, a cut changes the numbers that it must, and a width
that was only read to be written down again is read no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lepton_cli.graph.edit import Editor, array_of, is_constant

Lengths = tuple[int, ...]
#: A number as Reshape reads it (0: as in the input, -1: what is left), or a value of shape [1] that says it.
Entry = int | ir.Value

#: Operators that return what they are given, with axes of size 1 more or less.
_SAME = frozenset({"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"})


def segments(before: Lengths, after: Lengths) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes with equal products; axes of size 1 are left out."""
    one, two = [a for a, d in enumerate(before) if d != 1], [a for a, d in enumerate(after) if d != 1]
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(one) and j < len(two):
        inside, outside = [one[i]], [two[j]]
        left, right = before[one[i]], after[two[j]]
        i, j = i + 1, j + 1
        while left != right:
            if left < right and i < len(one):
                left, i = left * before[one[i]], i + 1
                inside.append(one[i - 1])
            elif right < left and j < len(two):
                right, j = right * after[two[j]], j + 1
                outside.append(two[j - 1])
            else:
                return found
        found.append((inside, outside))
    return found


def entries(node: ir.Node, shapes: Mapping[str, Lengths]) -> list[Entry] | None:
    """The target of a Reshape, literal or a Concat of numbers and single sizes; `None` where it is anything else."""
    target, after = node.inputs[1] if len(node.inputs) > 1 else None, shapes.get(node.outputs[0].name or "", ())
    if target is None:
        return None
    producer = target.producer()
    joined = producer is not None and producer.op_type == "Concat" and producer.domain in ("", "ai.onnx")
    found: list[Entry] = []
    for part in producer.inputs if joined and producer is not None else [target]:
        if is_constant(part) and part is not None and part.const_value is not None:
            found += [int(number) for number in np.ravel(part.const_value.numpy())]
        elif joined and part is not None and shapes.get(part.name or "") == (1,):
            found.append(part)
    if len(found) != len(after):
        return None
    return [after[axis] if isinstance(one, int) and one > 0 else one for axis, one in enumerate(found)]


def give(editor: Editor, node: ir.Node, dims: list[Entry]) -> ir.Value:
    """Let a Reshape read this target: a literal where it is numbers alone, else a Concat. Returns what it reads."""
    _copying(node, dims)
    wanted = f"{node.name}__1"
    if all(isinstance(one, int) for one in dims):
        return editor.give(node, 1, np.array(dims, np.int64), wanted)
    parts: list[ir.Value] = []
    numbers: list[int] = []
    for one in [*dims, None]:
        if isinstance(one, int):
            numbers.append(one)
            continue
        if numbers:
            parts.append(editor.constant(wanted, np.array(numbers, np.int64)))
            numbers = []
        if one is not None:
            parts.append(one)
    joined = ir.node("Concat", parts, {"axis": 0}, name=f"{node.name}__target")
    editor.insert_before(node, [joined])
    _typed(joined.outputs[0], len(dims))
    node.replace_input_with(1, joined.outputs[0])
    return joined.outputs[0]


def _copying(node: ir.Node, dims: Sequence[Entry | None]) -> None:
    """0 stands for the size of the input."""
    if 0 in dims:
        node.attributes.pop("allowzero", None)


def _typed(value: ir.Value, length: int) -> None:
    value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([length])


@dataclasses.dataclass(frozen=True)
class Looks:
    """Shapes of a model's values at two input sizes. `whole`: every size that is open differs between the two."""

    here: dict[str, Lengths]
    there: Mapping[str, Lengths]
    whole: bool

    def both(self, value: ir.Value | None) -> tuple[Lengths, Lengths] | None:
        """The shapes of a value that has as many axes here and there."""
        name = "" if value is None else value.name or ""
        here, there = self.here.get(name), self.there.get(name)
        return None if here is None or there is None or len(here) != len(there) else (here, there)


def write(model: ir.Model, looks: Looks) -> bool:
    """Write the computed targets of Reshape nodes entry by entry, in place, and note the shapes of what is new.

    Those that keep no width are left alone. Was any written?
    """
    writer = _Writer(Editor(model), looks)
    for node in list(model.graph):
        if node.op_type == "Reshape" and node.domain in ("", "ai.onnx") and len(node.inputs) > 1:
            writer.write(node)
    return writer.any


class _Writer:
    def __init__(self, editor: Editor, looks: Looks) -> None:
        self._editor, self._looks = editor, looks
        self._written: dict[tuple[object, ...], ir.Value] = {}
        self._sizes: dict[tuple[ir.Value, int], ir.Value] = {}

    @property
    def any(self) -> bool:
        """Was a target written?"""
        return bool(self._written)

    def write(self, node: ir.Node) -> None:
        """One Reshape; an equal target that was written before is read again."""
        target, places = node.inputs[1], self._places(node)
        if target is None or places is None:
            return
        known = (target, *places)
        if known in self._written:
            _copying(node, places)
            node.replace_input_with(1, self._written[known])
            return
        dims = [self._entry(node, target, axis) if one is None else one for axis, one in enumerate(places)]
        made = self._written[known] = give(self._editor, node, dims)
        self._note(made, len(dims))

    def _note(self, value: ir.Value, length: int) -> None:
        self._looks.here[value.name or ""] = (length,)

    def _places(self, node: ir.Node) -> list[int | None] | None:
        """Numbers of a target, `None` where only the target itself tells; `None` where it is to stay as it is."""
        x, y, target = self._looks.both(node.inputs[0]), self._looks.both(node.outputs[0]), node.inputs[1]
        if x is None or y is None or target is None or is_constant(target):
            return None
        (before, before_there), (after, after_there) = x, y
        moving = [axis for axis, size in enumerate(after) if size != after_there[axis]]
        kept = [size for (one, two) in (x, y) for size, other in zip(one, two, strict=True) if size == other]
        if not moving or max(kept, default=1) == 1 or self._looks.here.get(target.name or "") != (len(after),):
            return None
        places: list[int | None] = list(after)
        for axis in moving:
            pair = (after[axis], after_there[axis])
            same = axis < len(before) and pair == (before[axis], before_there[axis])
            places[axis] = 0 if same else None
        if not self._looks.whole:  # what did not change now may be open all the same
            fixed = set(range(len(after))).difference(moving)
            places = [None if a in fixed and self._number(target, a) is None else p for a, p in enumerate(places)]
        left = [axis for axis in moving if places[axis] is None]
        if left:  # several axes in one can hold heads: the size follows by itself
            merged = [axis for inside, outside in segments(before, after) if len(inside) > 1 for axis in outside]
            places[next((axis for axis in merged if axis in left), left[0])] = -1
        return places

    def _number(self, target: ir.Value, place: int) -> int | None:
        value, at = _origin(target, place, self._looks.here)
        held = value.const_value if is_constant(value) else None
        return None if held is None else int(np.ravel(held.numpy())[at])

    def _entry(self, node: ir.Node, target: ir.Value, place: int) -> ir.Value:
        """The value that says entry number `place`: read where its size is measured, where that is known."""
        value, at = _origin(target, place, self._looks.here)
        producer = value.producer()
        if producer is None or producer.op_type != "Shape":
            part, at = _origin(target, place, self._looks.here, alone=True)
            if self._looks.here.get(part.name or "") == (1,):
                return part
            value = part
        if (value, at) not in self._sizes:
            index = self._editor.constant(f"{value.name}__{at}", np.array([at], np.int64))
            gathered = ir.node("Gather", [value, index], {"axis": 0}, name=f"{value.name}__size")
            self._editor.insert_before(node, [gathered])
            _typed(gathered.outputs[0], 1)
            self._note(gathered.outputs[0], 1)
            self._sizes[value, at] = gathered.outputs[0]
        return self._sizes[value, at]


def _origin(value: ir.Value, place: int, shapes: Mapping[str, Lengths], *, alone: bool = False) -> tuple[ir.Value, int]:
    """Where an element of a computed vector comes from unchanged; `alone`: no further than a vector of one element."""
    while not (alone and shapes.get(value.name or "") == (1,)):
        node = value.producer()
        before = None if node is None else _before(node, place, shapes)
        if before is None:
            break
        value, place = before
    return value, place


def _before(node: ir.Node, place: int, shapes: Mapping[str, Lengths]) -> tuple[ir.Value, int] | None:
    """The input that holds an element of a node's result, and where."""
    source = node.inputs[0] if node.inputs else None
    if source is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in _SAME:
        return source, place
    if node.op_type == "Concat":
        for part in node.inputs:
            shape = _shape(part, shapes)
            if part is None or shape is None or len(shape) != 1:
                return None
            if place < shape[0]:
                return part, place
            place -= shape[0]
        return None
    shape = _shape(source, shapes)
    if shape is None or len(shape) != 1:
        return None
    if node.op_type == "Gather":
        index = array_of(node)
        return None if index is None else (source, int(np.ravel(index)[place]) % shape[0])
    if node.op_type == "Slice" and len(node.inputs) > 1:
        given = [array_of(node, number) for number in range(1, len(node.inputs))]
        if any(number is None and node.inputs[at] is not None for at, number in enumerate(given, start=1)):
            return None
        starts, ends, _, steps = [*given, None, None, None, None][:4]
        if starts is None or ends is None:
            return None
        taken = range(shape[0])[slice(int(starts[0]), int(ends[0]), 1 if steps is None else int(steps[0]))]
        return source, taken[place]
    return None


def _shape(value: ir.Value | None, shapes: Mapping[str, Lengths]) -> Lengths | None:
    if value is not None and value.producer() is None and value.const_value is not None:
        return tuple(int(size) for size in value.const_value.shape.numpy())
    return None if value is None else shapes.get(value.name or "")
