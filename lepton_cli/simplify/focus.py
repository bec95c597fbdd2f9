"""A picture cut into every second row and column, and a convolution of the pieces, as one convolution of the picture.

YOLO's focus: four strided Slices side by side are the same numbers as the picture, so that a 3x3 convolution of them is
a 6x6 convolution with stride 2 of the picture: as many multiplications, and nothing is moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lepton_cli.graph.edit import array_of, weight_of
from lepton_cli.simplify.found import Found, before, held, only_reader
from lepton_cli.simplify.moves import slice_ranges


def joined(_: ir.Model, node: ir.Node) -> Found | None:
    """Conv of a Concat of all the strided Slices of one tensor."""
    concat = before(node) if node.op_type == "Conv" else None
    weight = array_of(node)
    if concat is None or concat.op_type != "Concat" or not only_reader(concat) or weight is None or weight.ndim != 4:
        return None
    value = weight_of(node)
    if (
        value is None
        or len(value.uses()) > 1
        or not _plain(node)
        or concat.attributes.get_int("axis", 1) not in (1, -3)
    ):
        return None
    pieces = [before(concat, index) for index in range(len(concat.inputs))]
    found = _offsets([piece for piece in pieces if piece is not None and piece.op_type == "Slice"])
    if found is None or len(found[2]) < len(pieces):
        return None
    source, (high, wide), offsets = found
    assert source.shape is not None
    channels = source.shape[1]
    if not isinstance(channels, int) or weight.shape[1] != channels * len(offsets):
        return None
    made = np.zeros((weight.shape[0], channels, weight.shape[2] * high, weight.shape[3] * wide), weight.dtype)
    for number, (row, column) in enumerate(offsets):
        made[:, :, row::high, column::wide] = weight[:, channels * number : channels * (number + 1)]
    strides = node.attributes.get_ints("strides", (1, 1))
    pads = node.attributes.get_ints("pads", (0, 0, 0, 0))
    attributes = {
        "kernel_shape": made.shape[2:],
        "strides": [one * step for one, step in zip(strides, (high, wide), strict=True)],
        "pads": [one * step for one, step in zip(pads, (high, wide, high, wide), strict=True)],
    }
    inputs = [source, held(f"{node.name}/weight_whole", made), *node.inputs[2:]]
    return Found([ir.node("Conv", inputs, attributes, name=node.name)], [*_once(pieces), concat, node])


def _plain(conv: ir.Node) -> bool:
    """Neither groups nor dilations nor padding that is computed."""
    dilations = conv.attributes.get_ints("dilations", (1, 1))
    padding = conv.attributes.get_string("auto_pad", "NOTSET")
    return conv.attributes.get_int("group", 1) == 1 and set(dilations) == {1} and padding in ("", "NOTSET")


def _offsets(pieces: Sequence[ir.Node]) -> tuple[ir.Value, tuple[int, int], list[tuple[int, int]]] | None:
    """The tensor that is cut, the steps along its height and width, and where each piece starts: one at every place."""
    source = pieces[0].inputs[0] if pieces else None
    if source is None or source.shape is None or len(source.shape) != 4:
        return None
    sizes = source.shape[2:]
    steps: set[tuple[int, int]] = set()
    offsets: list[tuple[int, int]] = []
    for piece in pieces:
        ranges = slice_ranges(piece)
        if piece.inputs[0] is not source or ranges is None:
            return None
        ranges = {axis % 4: one for axis, one in ranges.items()}
        if not ranges.keys() <= {2, 3}:
            return None
        rows, columns = (ranges.get(axis, (0, 2**31, 1)) for axis in (2, 3))
        for (start, end, apart), size in zip((rows, columns), sizes, strict=True):
            if not isinstance(size, int) or apart < 1 or size % apart or not 0 <= start < apart or end < size:
                return None
        steps.add((rows[2], columns[2]))
        offsets.append((rows[0], columns[0]))
    if len(steps) != 1:
        return None
    (step,) = steps
    every = {(row, column) for row in range(step[0]) for column in range(step[1])}
    return (source, step, offsets) if set(offsets) == every and len(offsets) == len(every) > 1 else None


def _once(pieces: Sequence[ir.Node | None]) -> list[ir.Node]:
    return list(dict.fromkeys(piece for piece in pieces if piece is not None))
