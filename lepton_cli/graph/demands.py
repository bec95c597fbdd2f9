"""What nodes ask of the sizes of what they read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph import shapes
from lepton_cli.model import reads
from lepton_cli.tensors import Dim

_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "PRelu", "Where", "And", "Or", "Mod"}
    | {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
)
_BY_CHANNEL = frozenset({"BatchNormalization", "InstanceNormalization"})
_BY_COLUMN = frozenset({"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"})


def equal(node: ir.Node, known: Mapping[str, Sequence[Dim]]) -> Iterator[tuple[Dim, Dim]]:
    """Sizes that a node needs to be equal: one that it reads, then what it is measured by."""
    shape = [() if value is None else tuple(known.get(value.name or "", ())) for value in node.inputs]
    shape += [()] * (2 - len(shape))
    x, w = shape[:2]
    kind = node.op_type
    if kind in ("MatMul", "FusedMatMul", "MatMulInteger", "DynamicQuantizeMatMul") and x and w:
        yield x[-1], w[-2] if len(w) > 1 else w[-1]
    elif kind == "MatMulNBits" and x:
        yield x[-1], node.attributes.get_int("K", 0) or None
    elif kind in ("Gemm", "FusedGemm") and len(x) == len(w) == 2:
        yield x[0 if node.attributes.get_int("transA", 0) else 1], w[1 if node.attributes.get_int("transB", 0) else 0]
    elif kind in ("Conv", "FusedConv", "ConvInteger") and len(x) > 2 and len(w) > 2 and isinstance(w[1], int):
        yield x[1], w[1] * node.attributes.get_int("group", 1)
    elif kind == "ConvTranspose" and len(x) > 2 and w:
        yield x[1], w[0]
    elif kind in reads.RECURRENT and len(x) == len(w) == 3:
        yield x[2], w[2]
        first = node.attributes.get_int("layout", 0) == 1
        for state in shape[5:7]:
            if len(state) == 3:
                directions, samples = (state[1], state[0]) if first else state[:2]
                yield directions, w[0]
                yield samples, x[0 if first else 1]
                yield state[2], shape[2][2] if len(shape[2]) == 3 else None
    elif kind in _BY_CHANNEL and len(x) > 1 and w:
        yield x[1], w[0]
    elif kind == "GroupNormalization" and len(x) > 1 and w and w[0] != node.attributes.get_int("num_groups", 0):
        yield x[1], w[0]  # until opset 21 the scale was one number a group
    elif kind in _BY_COLUMN and x and w:
        yield x[-1], w[-1]
    elif kind in _ELEMENTWISE:
        pairs = itertools.combinations(shape, 2)
        alike = ((one, two) for pair in pairs for one, two in zip(*(each[::-1] for each in pair), strict=False))
        yield from ((one, two) for one, two in alike if 1 not in (one, two))
    elif kind == "Concat" and all(len(part) == len(x) for part in shape):
        axis = node.attributes.get_int("axis", 0) % max(len(x), 1)
        yield from (
            (one, two)
            for part in shape[1:]
            for place, (one, two) in enumerate(zip(x, part, strict=True))
            if place != axis
        )
    elif kind == "Split" and x and len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const_value:
        yield x[node.attributes.get_int("axis", 0)], int(node.inputs[1].const_value.numpy().sum())
    elif kind == "Squeeze" and x:
        yield from ((x[axis], 1) for axis in _axes(node) if -len(x) <= axis < len(x))


def _axes(node: ir.Node) -> Sequence[int]:
    held = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return node.attributes.get_ints("axes", ()) if held is None else [int(axis) for axis in held.numpy().reshape(-1)]


def unmet(node: ir.Node, known: shapes.Shapes, values: Mapping[str, NDArray[np.generic]]) -> list[tuple[int, int]]:
    """Sizes that differ where the node needs them to be equal; one such pair made equal is enough. Empty: it runs.

    `known`: shapes, `values`: small tensors that follow from them (see `settle`).
    """
    if node.op_type == "Reshape":
        return _unmet_reshape(node, known, values)
    if node.op_type in shapes.WINDOWS:
        short = [(have, want) for have, want in _windows(node, known) if have < want]
        if short:
            return short[:1]
    differing = ((one, two) for one, two in equal(node, known) if isinstance(one, int) and isinstance(two, int))
    first = next(((one, two) for one, two in differing if one != two), None)
    return [] if first is None else [first]


def _windows(node: ir.Node, known: shapes.Shapes) -> Iterator[tuple[int, int]]:
    """How long what a window slides over is with its padding, and how long the window."""
    over, kernel = (known.get(value.name or "", ()) if value else () for value in (*node.inputs, None)[:2])
    window = node.attributes.get_ints("kernel_shape", kernel[2:])
    count = len(window)
    if len(over) != count + 2 or node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
        return
    pads = node.attributes.get_ints("pads", (0,) * 2 * count)
    gaps = node.attributes.get_ints("dilations", (1,) * count)
    for axis, (length, gap) in enumerate(zip(window, gaps, strict=True)):
        yield over[axis + 2] + pads[axis] + pads[axis + count], (length - 1) * gap + 1


def _unmet_reshape(
    node: ir.Node, known: shapes.Shapes, values: Mapping[str, NDArray[np.generic]]
) -> list[tuple[int, int]]:
    """The number of elements; with an open size (-1), of the axes before it and behind it, in the order of what is
    likely: `[-1, 2520]` is what follows the first axis."""
    data, target = node.inputs[:2]
    shape = known.get(data.name or "") if data is not None else None
    held = None if target is None else values.get(target.name or "")
    if held is None and target is not None and target.const_value is not None:
        held = target.const_value.numpy()
    if shape is None or held is None or (0 in held and node.attributes.get_int("allowzero", 0) == 1):
        return []
    wanted = [shape[at] if size == 0 and at < len(shape) else int(size) for at, size in enumerate(held.reshape(-1))]
    total, asked = math.prod(shape), math.prod(size for size in wanted if size != -1)
    if -1 not in wanted:
        return [(total, asked)] if total != asked else []
    if asked == 0 or total % asked == 0:
        return []
    place = wanted.index(-1)
    before, behind = math.prod(wanted[:place]), math.prod(wanted[place + 1 :])
    pairs = [(math.prod(shape[:place]), before)] if place else []
    pairs += [(math.prod(shape[start:]), behind) for start in range(place + 1, len(shape))]
    return [(have, want) for have, want in pairs if have != want]
