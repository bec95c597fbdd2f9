"""Removing channels from a graph: weights are sliced, and everything that names a width is brought up to date."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling.layout import integer, optional, padding, slice_ranges, source, target_dims
from lepton_cli.coupling.links import Coupling, Ids, Links
from lepton_cli.graph.edit import Editor, set_weight
from lepton_cli.model import io


def cut(model: ir.Model, coupling: Coupling, removed: Collection[int] | Ids) -> ir.Model:
    """A copy of the analysed model without the channels whose labels are in `removed`.

    `model` must be the prepared model that `coupling` was made from (weights may have other values).
    """
    copy = io.clone(model)
    surgery = _Surgery(copy, coupling, np.asarray(sorted(int(label) for label in removed), np.int64))
    for node in list(copy.graph):
        fix = _FIXES.get(node.op_type)
        if fix is not None:
            fix(surgery, node)
    surgery.slice_weights()
    forget_shapes(copy)
    return copy


def forget_shapes(model: ir.Model) -> None:
    """Drop stale shapes of inner values; inputs and outputs keep theirs."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


class _Surgery:
    """One cut: what every fix needs to know."""

    def __init__(self, model: ir.Model, coupling: Coupling, removed: Ids) -> None:
        self.model = model
        self.editor = Editor(model)
        self.coupling = coupling
        self.removed = removed
        self.links = Links(model, coupling.facts)

    def keep(self, value: ir.Value, axis: int) -> NDArray[np.bool_] | None:
        """Mask of the positions of an axis that stay; `None` when all do."""
        rank = len(self.links.shape(value) or ())
        return self.coupling.keep((value.name or "", axis % max(rank, 1)), self.removed)

    def width(self, value: ir.Value, axis: int) -> int:
        """Size of an axis after the cut."""
        mask = self.keep(value, axis)
        return (self.links.shape(value) or ())[axis] if mask is None else int(mask.sum())

    def touches(self, value: ir.Value) -> bool:
        """Does any axis of this value get shorter?"""
        return any(self.keep(value, axis) is not None for axis in range(len(self.links.shape(value) or ())))

    def set_input(self, node: ir.Node, index: int, numbers: list[int]) -> None:
        """A new literal int64 input of the node."""
        self.editor.give(node, index, np.array(numbers, np.int64), f"{node.name}__{index}")

    def slice_weights(self) -> None:
        """Take the kept positions of every initializer."""
        for name, value in self.model.graph.initializers.items():
            if value.const_value is None:
                continue
            array: NDArray[Any] | None = None
            for axis in range(len(value.const_value.shape)):
                mask = self.coupling.keep((name, axis), self.removed)
                if mask is not None:
                    array = np.compress(mask, value.const_value.numpy() if array is None else array, axis)
            if array is not None:
                set_weight(value, array)


def _group(surgery: _Surgery, node: ir.Node) -> None:
    """Depthwise convolutions have as many groups as channels; other grouped ones keep their groups."""
    x, w = source(node), source(node, 1)
    group = integer(node, "group", 1)
    if group > 1 and (surgery.links.shape(w) or (0, 0))[1] == 1:
        node.attributes["group"] = ir.AttrInt64("group", surgery.width(x, 1))


def _reshape(surgery: _Surgery, node: ir.Node) -> None:
    """A literal shape with the new widths."""
    y = node.outputs[0]
    if not surgery.touches(y) and not surgery.touches(source(node)):
        return
    dims = target_dims(surgery.links, node)
    if dims is not None:
        surgery.set_input(node, 1, [d if d <= 0 else surgery.width(y, axis) for axis, d in enumerate(dims)])


def _split(surgery: _Surgery, node: ir.Node) -> None:
    """Explicit sizes of the parts."""
    x = source(node)
    axis = integer(node, "axis", 0)
    if surgery.keep(x, axis) is None:
        return
    axis %= len(surgery.links.shape(x) or ())
    sizes = [surgery.width(output, axis) for output in node.outputs]
    version = node.version or surgery.model.graph.opset_imports.get("", 13)
    if version < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
    else:
        node.attributes.pop("num_outputs", None)
        surgery.set_input(node, 1, sizes)


def _slice(surgery: _Surgery, node: ir.Node) -> None:
    """The range that holds the kept positions of the old one."""
    x = source(node)
    ranges = slice_ranges(surgery.links, node)
    if ranges is None or all(surgery.keep(x, axis) is None for axis in ranges):
        return
    starts, ends, axes, steps = [], [], [], []
    for axis, (start, stop, step) in ranges.items():
        mask = surgery.keep(x, axis)
        if mask is not None:
            start, stop = int(mask[:start].sum()), int(mask[:stop].sum())
        elif step < 0 and stop < 0:
            stop = -(2**31)
        starts.append(start)
        ends.append(stop)
        axes.append(axis)
        steps.append(step)
    if "starts" in node.attributes:
        for name, numbers in (("starts", starts), ("ends", ends), ("axes", axes)):
            node.attributes[name] = ir.AttrInt64s(name, numbers)
    else:
        for index, numbers in enumerate((starts, ends, axes, steps), start=1):
            surgery.set_input(node, index, numbers)


def _gather(surgery: _Surgery, node: ir.Node) -> None:
    """Literal positions, renumbered."""
    x, indices = source(node), source(node, 1)
    shape = surgery.links.shape(x) or ()
    axis = integer(node, "axis", 0) % max(len(shape), 1)
    literal, mask = surgery.links.constant(indices), surgery.keep(x, axis)
    if literal is None or mask is None:
        return
    old = literal % shape[axis]
    renumbered = np.cumsum(mask) - 1
    surgery.set_input(node, 1, [int(renumbered[position]) for position in np.ravel(old) if mask[position]])


def _pad(surgery: _Surgery, node: ir.Node) -> None:
    """Fewer new positions where they belonged to removed channels."""
    x, y = source(node), node.outputs[0]
    pads = padding(surgery.links, node)
    shape = surgery.links.shape(x) or ()
    if pads is None or all(surgery.keep(y, axis) is None for axis in pads):
        return
    before, after = [], []
    for axis in range(len(shape)):
        front, back = pads.get(axis, (0, 0))
        mask = surgery.keep(y, axis)
        if mask is not None and (front or back):
            front, back = int(mask[:front].sum()), int(mask[front + shape[axis] :].sum())
        before.append(front)
        after.append(back)
    if "pads" in node.attributes:
        node.attributes["pads"] = ir.AttrInt64s("pads", before + after)
    else:
        if optional(node, 3) is not None:
            node.replace_input_with(3, None)
        surgery.set_input(node, 1, before + after)


def _expand(surgery: _Surgery, node: ir.Node) -> None:
    """The target's widths follow."""
    y = node.outputs[0]
    target = surgery.links.constant(optional(node, 1))
    if target is None or not surgery.touches(y):
        return
    shift = len(surgery.links.shape(y) or ()) - len(target)
    dims = [int(d) if d == 1 else surgery.width(y, axis + shift) for axis, d in enumerate(np.ravel(target))]
    surgery.set_input(node, 1, dims)


def _resize(surgery: _Surgery, node: ir.Node) -> None:
    """Literal target sizes follow."""
    y = node.outputs[0]
    sizes = surgery.links.constant(optional(node, 3))
    if sizes is not None and surgery.touches(y) and "axes" not in node.attributes:
        surgery.set_input(node, 3, [surgery.width(y, axis) for axis in range(len(np.ravel(sizes)))])


_FIXES: dict[str, Callable[[_Surgery, ir.Node], None]] = {
    "Conv": _group,
    "FusedConv": _group,
    "ConvTranspose": _group,
    "Reshape": _reshape,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Expand": _expand,
    "Resize": _resize,
}
