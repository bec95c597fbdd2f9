"""Shortcuts that thin out positions and pad channels (Slice, Pad), written as the 1x1 convolution that they are.

onnxruntime computes convolutions in a blocked layout, and leaves it for every Slice and Pad, and for the additions and
activations behind them. A strided convolution with ones and zeros gives the same numbers and stays in the layout.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from lepton_cli.coupling import known_shapes
from lepton_cli.coupling.known_shapes import KnownShapes
from lepton_cli.coupling.layout import optional, padding, slice_ranges, source
from lepton_cli.coupling.links import Links
from lepton_cli.graph.edit import Editor
from lepton_cli.graph.feeds import default_feeds

#: Channels in and out at most: beyond, the multiplications cost more than moving the values.
MOST_CHANNELS = 512
#: A Slice from 0 that ends here or later takes all of any axis.
_FAR = 2**31 - 1


def facts(model: ir.Model) -> KnownShapes:
    """What shape inference alone knows about a model: enough to recognise such chains."""
    if not any(node.op_type == "Pad" for node in model.graph):
        return KnownShapes({}, frozenset())
    return known_shapes.prepare(model, default_feeds(model, 2, 16), run=False)[1]


def as_convolutions(model: ir.Model, facts: KnownShapes, chosen: Collection[str]) -> list[str]:
    """Replace such chains whose nodes are all in `chosen`, in place. Returns the names of the new convolutions.

    The convolution takes the name of the Pad, and its output the name of the Pad's output.
    """
    links, editor = Links(model, facts), Editor(model)
    made = []
    for pad in list(model.graph):
        if pad.op_type == "Pad" and pad.name in chosen and (found := _chain(links, pad, chosen)) is not None:
            x, strides, slices, before, after = found
            _replace(editor, links, pad, x, strides, before, after)
            for node in slices:
                if not any(output.uses() for output in node.outputs):
                    model.graph.remove(node, safe=True)
            made.append(pad.name or "")
    return made


def _chain(
    links: Links, pad: ir.Node, chosen: Collection[str]
) -> tuple[ir.Value, list[int], list[ir.Node], int, int] | None:
    """Input, strides, the Slices (last first) and channels added before and after; `None` where it is anything else."""
    x = source(pad)
    shape, pads = links.shape(x), padding(links, pad)
    constant = pad.attributes.get_string("mode", "constant") == "constant"
    filling = links.constant(optional(pad, 2))
    filled = optional(pad, 2) is None or (filling is not None and not np.any(filling))
    zero = filled and pad.attributes.get_float("value", 0.0) == 0
    if shape is None or len(shape) != 4 or pads is None or not constant or not zero or not _is_float(x):
        return None
    if any(amounts != (0, 0) for axis, amounts in pads.items() if axis != 1) or min(pads.get(1, (0, 0))) < 0:
        return None
    strides, slices = [1, 1], []
    while (before := x.producer()) is not None and before.op_type == "Slice":
        steps = _steps(links, before)
        if steps is None or before.name not in chosen or x.is_graph_output():
            break
        strides = [a * b for a, b in zip(strides, steps, strict=True)]
        slices.append(before)
        x = source(before)
    front, back = pads.get(1, (0, 0))
    wide = front + shape[1] + back > MOST_CHANNELS
    if not slices or max(strides) == 1 or x.producer() is None or wide or (x.name or "", 1) in links.facts.open:
        return None
    return x, strides, slices, front, back


def _is_float(value: ir.Value | None) -> bool:
    """Is this value float32, by its own type or by that of what it was computed from?"""
    while value is not None and value.dtype is None:
        node = value.producer()
        if node is None or node.op_type == "Cast":
            return False
        weights = [v.dtype for v in node.inputs if v is not None and v.is_initializer()]
        if node.op_type in ("Conv", "Gemm", "BatchNormalization"):
            return weights[:1] == [ir.DataType.FLOAT]
        value = node.inputs[0] if node.inputs else None
    return value is not None and value.dtype == ir.DataType.FLOAT


def _steps(links: Links, node: ir.Node) -> list[int] | None:
    """Steps along height and width of a Slice that only thins out positions, from the first one on."""
    x, ranges = source(node), slice_ranges(links, node)
    shape = links.shape(x)
    if ranges is None or shape is None or len(shape) != 4 or not ranges.keys() <= {2, 3}:
        return None
    starts, ends = (links.constant(optional(node, index)) for index in (1, 2))
    whole = starts is not None and ends is not None and not np.any(starts) and int(np.min(ends)) >= _FAR
    steps = [1, 1]
    for axis, (start, stop, step) in ranges.items():
        opened = (x.name or "", axis) in links.facts.open
        if start != 0 or step < 1 or stop != shape[axis] or (opened and not whole):
            return None
        steps[axis - 2] = step
    return steps


def _replace(
    editor: Editor, links: Links, pad: ir.Node, x: ir.Value, strides: list[int], before: int, after: int
) -> None:
    channels = (links.shape(x) or ())[1]
    weight = np.zeros((before + channels + after, channels, 1, 1), np.float32)
    weight[before + np.arange(channels), np.arange(channels)] = 1.0
    value = editor.constant(f"{pad.name}__weight", weight)
    editor.put(pad, [ir.node("Conv", [x, value], {"kernel_shape": [1, 1], "strides": strides}, name=pad.name)])
