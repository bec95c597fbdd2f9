"""How channels pass through operators that only move data, and what to mend when some are cut: by operator family."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling import targets
from lepton_cli.coupling.links import Links
from lepton_cli.coupling.surgery import Surgery
from lepton_cli.coupling.targets import Entry, segments


def source(node: ir.Node, index: int = 0) -> ir.Value:
    """A required input (the checker has made sure it is there)."""
    value = node.inputs[index]
    if value is None:
        raise LookupError(f"input {index} of {node.name} is missing")
    return value


def optional(node: ir.Node, index: int) -> ir.Value | None:
    """An input that may be left out."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return value if value is not None and value.name else None


def transpose(links: Links, node: ir.Node) -> None:
    """Axes permute."""
    x, y = source(node), node.outputs[0]
    rank = len(links.shape(x) or ())
    order = node.attributes.get_ints("perm", range(rank)[::-1])
    for place, axis in enumerate(order):
        links.join(x, axis, y, place)


def squeeze(links: Links, node: ir.Node) -> None:
    """Axes of size 1 come or go; the others keep their order."""
    x, y = source(node), node.outputs[0]
    before = [axis for axis, size in enumerate(links.shape(x) or ()) if size > 1]
    after = [axis for axis, size in enumerate(links.shape(y) or ()) if size > 1]
    for one, two in zip(before, after, strict=True):
        links.join(x, one, y, two)


def reshape(links: Links, node: ir.Node) -> None:
    """Axes that stay whole join; a split or merged axis joins in blocks with the factor that carries channels."""
    x, y = source(node), node.outputs[0]
    dims = target(links, node) if node.op_type == "Reshape" else []
    if dims is None:
        return
    for axis, dim in enumerate(dims):
        if isinstance(dim, ir.Value):
            links.freeze(y, axis, "Reshape fixes this axis", node.name or "")
    for inside, outside in segments(links.shape(x) or (), links.shape(y) or ()):
        if len(inside) == len(outside) == 1:
            links.join(x, inside[0], y, outside[0])
        elif len(inside) == 1 and outside:
            _blocks(links, x, inside[0], y, outside, _split_factor(links, node, inside[0], outside))
        elif len(outside) == 1 and inside:
            _blocks(links, y, outside[0], x, inside, _merged_factor(links, x, inside))
        elif len(inside) == len(outside) == 2:
            _regroup(links, (x, inside), (y, outside))
            _regroup(links, (y, outside), (x, inside))


def _regroup(links: Links, one: tuple[ir.Value, list[int]], two: tuple[ir.Value, list[int]]) -> None:
    """Samples and heads in one axis: `[batch, heads * size]` beside `[batch * heads, size]`."""
    (apart, (samples, whole)), (merged, (both, size)) = one, two
    before, after = links.shape(apart) or (), links.shape(merged) or ()
    heads, left = divmod(before[whole], after[size])
    if left or before[samples] * heads != after[both]:
        return
    rows = links.ids(merged, both).reshape(before[samples], heads)
    blocks = links.ids(apart, whole).reshape(heads, after[size])
    links.link(rows, np.broadcast_to(rows[0], rows.shape))
    links.link(blocks, np.broadcast_to(rows[0][:, None], blocks.shape))
    links.merge((merged, both), (before[samples], heads), 1)
    links.spread((apart, whole), (merged, both))


def _blocks(links: Links, whole: ir.Value, axis: int, parts: ir.Value, factors: list[int], chosen: int) -> None:
    """Join an axis with one of the factors it consists of; the other factors stay frozen."""
    sizes = [(links.shape(parts) or ())[factor] for factor in factors]
    ids = links.ids(whole, axis).reshape(sizes)
    place = factors.index(chosen)
    line = links.ids(parts, chosen).reshape([-1 if k == place else 1 for k in range(len(sizes))])
    links.link(ids, np.broadcast_to(line, ids.shape))
    links.merge((whole, axis), tuple(sizes), place)
    links.spread((whole, axis), (parts, chosen))


def _merged_factor(links: Links, x: ir.Value, factors: list[int]) -> int:
    """Which of the axes that become one is pruned: one that carries channels; samples only where there is no other."""
    live = [axis for axis in factors if links.is_live(x, axis)]
    fixed = [axis for axis in factors if axis and (x.name or "", axis) not in links.facts.open]
    return [*live, *fixed, *factors][0]


def _split_factor(links: Links, node: ir.Node, axis: int, factors: list[int]) -> int:
    """Which factor of a split channel axis is pruned: heads (the outer one), except in a channel shuffle.

    What was merged before is split as it was merged.
    """
    sizes = tuple((links.shape(node.outputs[0]) or ())[factor] for factor in factors)
    place = links.merged(source(node), axis, sizes)
    if place is not None:
        return factors[place]
    users = [user for user, _ in node.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type == "Transpose" and len(factors) == 2:
        order = list(users[0].attributes.get_ints("perm", []))
        swapped = list(range(len(order)))
        if order:
            swapped[factors[0]], swapped[factors[1]] = factors[1], factors[0]
        after = [user for user, _ in users[0].outputs[0].uses()]
        if order == swapped and len(after) == 1 and after[0].op_type == "Reshape":
            return factors[1]
    if links.taken_apart(node.outputs[0], factors[0]):
        return factors[1]
    # What the number of samples changes is no head.
    return next((axis for axis in factors if (node.outputs[0].name or "", axis) not in links.facts.open), factors[0])


def target(links: Links, node: ir.Node) -> list[Entry] | None:
    """What a Reshape makes of its input, entry by entry; `None` where that is not known for every input size."""
    return targets.entries(node, links.facts.shapes)


def mend_reshape(surgery: Surgery, node: ir.Node) -> None:
    """A target with the new widths; entries that are no widths stay."""
    y = node.outputs[0]
    if not surgery.touches(y) and not surgery.touches(source(node)):
        return
    dims = target(surgery.links, node)
    if dims is not None:
        new = [surgery.width(y, axis) if isinstance(d, int) and d > 0 else d for axis, d in enumerate(dims)]
        targets.give(surgery.editor, node, new)


def concat(links: Links, node: ir.Node) -> None:
    """Inputs lie behind one another along one axis."""
    y = node.outputs[0]
    rank = len(links.shape(y) or ())
    axis = node.attributes.get_int("axis", 1) % max(rank, 1)
    out, start = links.ids(y, axis), 0
    for value in node.inputs:
        if value is None:
            continue
        ids = links.ids(value, axis)
        links.link(ids, out[start : start + len(ids)])
        links.spread((value, axis), (y, axis))
        start += len(ids)
        _pass_others(links, value, y, {axis})


def _pass_others(links: Links, x: ir.Value, y: ir.Value, but: set[int]) -> None:
    for axis in range(len(links.shape(x) or ())):
        if axis not in but:
            links.join(x, axis, y, axis)


def split(links: Links, node: ir.Node) -> None:
    """Outputs are consecutive parts of one axis."""
    x = source(node)
    sizes = optional(node, 1)
    if sizes is not None and links.constant(sizes) is None:
        return
    axis = node.attributes.get_int("axis", 0) % max(len(links.shape(x) or ()), 1)
    ids, start = links.ids(x, axis), 0
    for output in node.outputs:
        part = links.ids(output, axis)
        links.link(part, ids[start : start + len(part)])
        links.spread((x, axis), (output, axis))
        start += len(part)
        _pass_others(links, x, output, {axis})


def mend_split(surgery: Surgery, node: ir.Node) -> None:
    """Explicit sizes of the parts."""
    x = source(node)
    axis = node.attributes.get_int("axis", 0)
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


def slice_ranges(links: Links, node: ir.Node) -> dict[int, tuple[int, int, int]] | None:
    """Axis -> (start, stop, step) of a Slice with constant positions; `None` when they are computed."""
    rank = len(links.shape(source(node)) or ())
    parts: list[NDArray[Any] | None]
    if "starts" in node.attributes:
        parts = [
            np.array(node.attributes[name].as_ints()) if name in node.attributes else None
            for name in ("starts", "ends", "axes")
        ]
        parts.append(None)
    else:
        values = [optional(node, index) for index in (1, 2, 3, 4)]
        parts = [links.constant(value) for value in values]
        if any(value is not None and part is None for value, part in zip(values, parts, strict=True)):
            return None
    starts, ends, axes, steps = parts
    if starts is None or ends is None:
        return None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), int) if steps is None else steps
    size = links.shape(source(node)) or ()
    ranges = {}
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes.tolist(), steps.tolist(), strict=True):
        ranges[axis % rank] = slice(start, end if end >= -size[axis] else None, step).indices(size[axis % rank])
    return ranges


def slice_(links: Links, node: ir.Node) -> None:
    """A constant sub-range joins position by position (step 1 on a channel axis); other axes pass."""
    x, y = source(node), node.outputs[0]
    ranges = slice_ranges(links, node)
    if ranges is None:
        return
    _pass_others(links, x, y, set(ranges))
    for axis, (start, stop, step) in ranges.items():
        opened = (x.name or "", axis) in links.facts.open
        if step == 1 and not opened:
            links.link(links.ids(x, axis)[start:stop], links.ids(y, axis))
            links.spread((x, axis), (y, axis))


def mend_slice(surgery: Surgery, node: ir.Node) -> None:
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


def gather(links: Links, node: ir.Node) -> None:
    """Constant positions join one by one; positions from data freeze the gathered axis only."""
    x, indices, y = source(node), source(node, 1), node.outputs[0]
    shape, index_shape = links.shape(x) or (), links.shape(indices) or ()
    axis = node.attributes.get_int("axis", 0) % max(len(shape), 1)
    literal = links.constant(indices)
    for other in range(len(shape)):
        if other != axis:
            links.join(x, other, y, other if other < axis else other + len(index_shape) - 1)
    if literal is not None and len(index_shape) == 1 and shape[axis] > 1:
        links.link(links.ids(x, axis)[literal % shape[axis]], links.ids(y, axis))
        links.spread((x, axis), (y, axis))
    elif literal is None:
        for place in range(len(index_shape)):
            links.join(indices, place, y, axis + place)


def mend_gather(surgery: Surgery, node: ir.Node) -> None:
    """Literal positions, renumbered."""
    x, indices = source(node), source(node, 1)
    shape = surgery.links.shape(x) or ()
    axis = node.attributes.get_int("axis", 0) % max(len(shape), 1)
    literal, mask = surgery.links.constant(indices), surgery.keep(x, axis)
    if literal is None or mask is None:
        return
    old = literal % shape[axis]
    renumbered = np.cumsum(mask) - 1
    surgery.set_input(node, 1, [int(renumbered[position]) for position in np.ravel(old) if mask[position]])


def padding(links: Links, node: ir.Node) -> dict[int, tuple[int, int]] | None:
    """Axis -> (before, after) of a Pad with constant amounts; `None` when they are computed."""
    rank = len(links.shape(source(node)) or ())
    axes: list[int] = list(range(rank))
    if "pads" in node.attributes:
        pads = list(node.attributes.get_ints("pads"))
    else:
        given, chosen = links.constant(optional(node, 1)), optional(node, 3)
        if given is None or (chosen is not None and links.constant(chosen) is None):
            return None
        pads = [int(p) for p in np.ravel(given)]
        literal = links.constant(chosen)
        if literal is not None:
            axes = [int(axis) % rank for axis in np.ravel(literal)]
    return {axis: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}


def pad(links: Links, node: ir.Node) -> None:
    """Old positions keep their order between the new ones, which belong to nobody yet."""
    x, y = source(node), node.outputs[0]
    pads = padding(links, node)
    if pads is None:
        return
    constant = node.attributes.get_string("mode", "constant") == "constant"
    for axis, size in enumerate(links.shape(x) or ()):
        before, after = pads.get(axis, (0, 0))
        if before == after == 0:
            links.join(x, axis, y, axis)
        elif constant and before >= 0 and after >= 0 and (x.name or "", axis) not in links.facts.open:
            links.link(links.ids(x, axis), links.ids(y, axis)[before : before + size])
            links.spread((x, axis), (y, axis))


def mend_pad(surgery: Surgery, node: ir.Node) -> None:
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


def expand(links: Links, node: ir.Node) -> None:
    """Axes that keep their size pass; where one position becomes many, they are equal, and as many as anyone wants."""
    x, y = source(node), node.outputs[0]
    if links.constant(optional(node, 1)) is None:
        return
    shift = len(links.shape(y) or ()) - len(links.shape(x) or ())
    for axis in range(len(links.shape(y) or ())):
        if axis >= shift and (links.shape(x) or ())[axis - shift] > 1:
            links.join(x, axis - shift, y, axis)
        else:
            links.ids(y, axis)


def mend_expand(surgery: Surgery, node: ir.Node) -> None:
    """The target's widths follow."""
    y = node.outputs[0]
    target = surgery.links.constant(optional(node, 1))
    if target is None or not surgery.touches(y):
        return
    shift = len(surgery.links.shape(y) or ()) - len(target)
    dims = [int(d) if d == 1 else surgery.width(y, axis + shift) for axis, d in enumerate(np.ravel(target))]
    surgery.set_input(node, 1, dims)


def tile(links: Links, node: ir.Node) -> None:
    """Axes that are not repeated pass."""
    x, y = source(node), node.outputs[0]
    if links.constant(optional(node, 1)) is None:
        return
    for axis, (before, after) in enumerate(zip(links.shape(x) or (), links.shape(y) or (), strict=True)):
        if before == after and before > 1:
            links.join(x, axis, y, axis)
