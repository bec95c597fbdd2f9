"""Attention as the one operator that ONNX has for it since opset 23: onnxruntime has a kernel for the whole.

Exporters write Reshape and Transpose on every side, two products, a scale, a mask and a Softmax. The products of two
activations stay float here in any case; as one operator nothing is turned around in memory on the way to them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph import clean, opset, shapes
from lepton_cli.graph.edit import Editor
from lepton_cli.graph.feeds import default_feeds
from lepton_cli.graph.settle import settle
from lepton_cli.step import Decision

#: The opset that brought the operator.
OPSET = 23
#: Axes of `[batch, length, heads, size]` as the products want them; the keys turned for the first one too.
_HEADS_FIRST, _TURNED = (0, 2, 1, 3), (0, 2, 3, 1)
#: Measured: 1.22 does not load the opset, 1.23 computes the same.
NEEDS = "onnxruntime 1.23 or later"
#: Samples and open axes to look at a graph with: what is read from it must be the same for both.
_LOOKS: tuple[tuple[int, int | None], ...] = ((2, None), (3, 24))
#: Numbers that are moved through a graph to see where they come out.
_MOST = 1 << 24
_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_MOVING = _RESHAPING | {"Transpose", "Slice", "Split", "Gather"}


def join(model: ir.Model, excluded: Collection[str]) -> ir.Model:
    """A copy with attention over `[batch, length, heads * size]` as Attention, or `model` where there is none.

    Attention that holds a node of `excluded`, or whose parts are read elsewhere, stays as it is.
    """
    if not any(node.op_type == "Softmax" for node in model.graph) or not _found(model, excluded):
        return model
    modern = opset.raised(model, OPSET)
    if modern is None:
        return model
    editor = Editor(modern)
    parts: dict[ir.Value, Sequence[ir.Value]] = {}
    for one in _found(modern, excluded):
        inputs: list[ir.Value] = [_whole(side, one.last, editor, parts) for side in (one.query, one.keys, one.values)]
        inputs += [] if one.mask is None else [_mask(one.mask, one, editor)]
        attributes = {"q_num_heads": one.query.heads, "kv_num_heads": one.query.heads, "scale": one.scale}
        made = ir.node("Attention", inputs, attributes, name=f"{one.softmax.name}/attention")
        if one.flat:
            editor.put(one.last, [made])
        else:
            editor.insert_before(one.last, [made])
            one.last.replace_input_with(0, made.outputs[0])
    clean.remove_unused(modern)
    shapes.annotate(modern)
    return modern


def decisions(model: ir.Model, before: Collection[str]) -> list[Decision]:
    """What `join` made, where the nodes were called `before`."""
    made = [node for node in model.graph if node.op_type == "Attention" and not node.domain and node.name not in before]
    reason = f"attention as one operator of opset {OPSET}, which {NEEDS} has; exclude its Softmax to keep it in parts"
    return [Decision(node=node.name or "", op="Attention", action="rewritten", reason=reason) for node in made]


def _whole(side: _Side, before: ir.Node, editor: Editor, parts: dict[ir.Value, Sequence[ir.Value]]) -> ir.Value:
    """`[batch, length, heads * size]` of the side; `parts`: what was split already."""
    if side.count == 1:
        return side.source
    if side.source not in parts:
        split = ir.node("Split", [side.source], {"axis": 2, "num_outputs": side.count}, num_outputs=side.count)
        editor.insert_before(before, [split])
        parts[side.source] = split.outputs
    return parts[side.source][side.part]


def _mask(mask: ir.Value, one: _Attention, editor: Editor) -> ir.Value:
    """The mask, with a row for every query: onnxruntime's kernel spreads it over samples and heads only."""
    if one.spread is None:
        return mask
    length = ir.node("Shape", [one.query.source], {"start": 1, "end": 2})
    before, after = (
        editor.constant(f"{one.softmax.name}/{name}", np.ones(count, np.int64))
        for name, count in (("before", one.spread), ("after", 1))
    )
    target = ir.node("Concat", [before, length.outputs[0], after], {"axis": 0})
    rows = ir.node("Expand", [mask, target.outputs[0]])
    editor.insert_before(one.last, [length, target, rows])
    return rows.outputs[0]


@dataclasses.dataclass(frozen=True)
class _Look:
    """Sizes of values, and small values, that follow from the sizes of the inputs."""

    sizes: shapes.Shapes
    values: dict[str, NDArray[Any]]

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """`()` where it is not known."""
        if value is None:
            return ()
        return tuple(value.const_value.shape.numpy()) if value.const_value else self.sizes.get(value.name or "", ())

    def numbers(self, value: ir.Value | None) -> NDArray[Any] | None:
        """What the value is, where that follows from sizes."""
        if value is None:
            return None
        return value.const_value.numpy() if value.const_value is not None else self.values.get(value.name or "")


@dataclasses.dataclass(frozen=True)
class _Side:
    """One side of a product: number `part` of `count` equal parts of `source`, `[batch, length, count * heads * size]`,
    with the axes in `order`, times `scale`.
    """

    source: ir.Value
    part: int
    count: int
    heads: int
    order: tuple[int, ...]
    scale: float


@dataclasses.dataclass(frozen=True)
class _Attention:
    """`last`: the Reshape behind it, back to `[batch, length, heads * size]` where that is `flat`. `spread`: how many
    axes the mask has before the queries, where it is one row for all of them.
    """

    query: _Side
    keys: _Side
    values: _Side
    mask: ir.Value | None
    spread: int | None
    scale: float
    softmax: ir.Node
    last: ir.Node
    flat: bool


def _found(model: ir.Model, excluded: Collection[str]) -> list[_Attention]:
    looks = [_Look(*settle(model, default_feeds(model, batch, other))) for batch, other in _LOOKS]
    softmaxes = [node for node in model.graph if node.op_type == "Softmax" and not node.domain]
    found = []
    for softmax in softmaxes:
        seen = [_attention(softmax, look, excluded) for look in looks]
        if seen[0] is not None and all(one == seen[0] for one in seen):
            found.append(seen[0])
    return found


def _attention(softmax: ir.Node, look: _Look, excluded: Collection[str]) -> _Attention | None:
    scores, axis = softmax.inputs[0], softmax.attributes.get_int("axis", -1)
    second = _only_reader(softmax)
    if scores is None or axis not in (-1, 3) or second is None or second.op_type != "MatMul":
        return None
    mixed = _only_reader(second) if second.inputs[0] is softmax.outputs[0] else None
    last = None if mixed is None or mixed.op_type != "Transpose" else _only_reader(mixed)
    if mixed is None or last is None or last.op_type != "Reshape" or _order(mixed) != _HEADS_FIRST:
        return None
    product, mask, scale, nodes = _product(scores, look)
    if product is None:
        return None
    nodes += [softmax, second, mixed, last, product]
    sides = [_side(value, look, nodes) for value in (*product.inputs, second.inputs[1])]
    query, keys, values = sides
    if query is None or keys is None or values is None or values.scale != 1:
        return None
    scale *= query.scale * keys.scale
    batch, length, heads, size = (*look.shape(mixed.outputs[0]), 0, 0, 0, 0)[:4]
    if (
        (query.order, keys.order, values.order) != (_HEADS_FIRST, _TURNED, _HEADS_FIRST)
        or not query.heads == keys.heads == values.heads == heads
        or scale <= 0  # the kernel spreads its root over query and keys
        or (mask is not None and not _fits(mask, look.shape(scores), look))
        or any(node.name in excluded for node in nodes)
    ):
        return None
    flat = look.shape(last.outputs[0]) == (batch, length, heads * size)
    given = look.shape(mask)
    spread = len(given) - 2 if given and given[-2] != length else None
    return _Attention(query, keys, values, mask, spread, scale, softmax, last, flat)


def _product(scores: ir.Value, look: _Look) -> tuple[ir.Node | None, ir.Value | None, float, list[ir.Node]]:
    """The first product, what is added to it, what it is multiplied by before, and the nodes that do so."""
    node = _made_here(scores)
    if node is None or node.op_type != "Add":
        product, scale, nodes = _scaled(scores, look)
        return product, None, scale, nodes
    for value, mask in (node.inputs, node.inputs[::-1]):
        product, scale, nodes = _scaled(value, look)
        if product is not None:
            return product, mask, scale, [node, *nodes]
    return None, None, 1.0, []


def _scaled(value: ir.Value | None, look: _Look) -> tuple[ir.Node | None, float, list[ir.Node]]:
    node, scale, nodes = _made_here(value), 1.0, []
    while node is not None and (step := _factor(node, look)) is not None:
        nodes.append(node)
        node, scale = _made_here(step[0]), scale * step[1]
    return (node, scale, nodes) if node is not None and node.op_type == "MatMul" else (None, 1.0, [])


def _side(value: ir.Value | None, look: _Look, seen: list[ir.Node]) -> _Side | None:
    """What the value is made of; the nodes on the way are added to `seen`."""
    scale = 1.0
    moves: list[tuple[ir.Node, int]] = []
    while value is not None and (node := value.producer()) is not None and not node.domain:
        seen.append(node)
        if (step := _factor(node, look)) is not None:
            value, scale = step[0], scale * step[1]
            continue
        if node.op_type not in _MOVING:
            return None
        moves.insert(0, (node, value.index() or 0))
        value = node.inputs[0]
        if value is not None and len(look.shape(value)) == 3 and (made := _read(value, moves, look)) is not None:
            return dataclasses.replace(made, scale=scale)
    return None


def _read(source: ir.Value, moves: Sequence[tuple[ir.Node, int]], look: _Look) -> _Side | None:
    """What the moves make of `source`, found by moving the numbers 0, 1, 2, ... instead of its values."""
    shape = look.shape(source)
    count = int(np.prod(shape))
    if not 0 < count <= _MOST:
        return None
    start = np.arange(count).reshape(shape)
    end: NDArray[Any] | None = start
    for node, index in moves:
        end = None if end is None else _moved(end, node, index, look)
    if end is None or end.ndim != len(_TURNED):
        return None
    for order in (_HEADS_FIRST, _TURNED):
        laid = end.transpose(np.argsort(order))  # [batch, length, heads, size]
        width = laid.shape[2] * laid.shape[3]
        if laid.shape[:2] != shape[:2] or shape[2] % width or int(end.flat[0]) % width:
            continue
        part = int(end.flat[0]) // width
        if np.array_equal(laid.reshape(*shape[:2], width), start[:, :, part * width : (part + 1) * width]):
            return _Side(source, part, shape[2] // width, laid.shape[2], order, 1.0)
    return None


def _moved(given: NDArray[Any], node: ir.Node, index: int, look: _Look) -> NDArray[Any] | None:
    """What the node makes of an array, where it only moves; `None` where that is not known."""
    made = look.shape(node.outputs[index])
    if node.op_type in _RESHAPING:
        return given.reshape(made) if int(np.prod(made)) == given.size else None
    if node.op_type == "Transpose":
        order = _order(node)
        return given.transpose(order) if len(order) == given.ndim else None
    axis = node.attributes.get_int("axis", 0)
    if node.op_type == "Gather":
        places = look.numbers(node.inputs[1])
        return None if places is None else np.take(given, places, axis)
    if node.op_type == "Split":
        ends = np.cumsum([(*look.shape(value), 0)[axis] for value in node.outputs])
        return np.split(given, ends[:-1], axis)[index] if ends[-1] == given.shape[axis] else None
    numbers = [look.numbers(value) for value in node.inputs[1:]]
    if len(numbers) < 2 or any(array is None for array in numbers):
        return None
    starts, stops, *rest = (np.ravel(array).tolist() for array in numbers if array is not None)
    axes, steps = (*rest, None, None)[:2]
    cut = [slice(None)] * given.ndim
    for place, where in enumerate(axes or range(len(starts))):
        cut[where] = slice(starts[place], stops[place], steps[place] if steps else 1)
    return given[tuple(cut)]


def _factor(node: ir.Node, look: _Look) -> tuple[ir.Value, float] | None:
    """What is multiplied or divided by one number, and by how much it grows."""
    if node.op_type not in ("Mul", "Div") or node.domain:
        return None
    for value, number in (node.inputs, node.inputs[::-1]) if node.op_type == "Mul" else (node.inputs,):
        held = look.numbers(number)
        if value is None or look.numbers(value) is not None or held is None or held.size != 1 or held.ndim > 1:
            continue
        factor = float(held.item())
        if factor:
            return value, factor if node.op_type == "Mul" else 1 / factor
    return None


def _fits(mask: ir.Value, scores: tuple[int, ...], look: _Look) -> bool:
    """No kernel spreads a mask over the keys."""
    own = look.shape(mask)
    return 2 <= len(own) <= len(scores) and own[-1] == scores[-1] and mask.dtype in (None, ir.DataType.FLOAT)


def _only_reader(node: ir.Node) -> ir.Node | None:
    result = node.outputs[0]
    readers = list(result.uses())
    alone = len(readers) == 1 and not result.is_graph_output() and readers[0].node.graph is node.graph
    return readers[0].node if alone and not readers[0].node.domain else None


def _made_here(value: ir.Value | None) -> ir.Node | None:
    """What makes the value, where nothing else reads it."""
    node = None if value is None else value.producer()
    return node if node is not None and not node.domain and _only_reader(node) is not None else None


def _order(node: ir.Node) -> tuple[int, ...]:
    return tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else ()
