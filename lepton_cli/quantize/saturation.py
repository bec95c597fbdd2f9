"""What the int8 model would lose on x86 without VNNI: there two uint8 x int8 products are added in 16 bits.

Such machines multiply with VPMADDUBSW, which adds neighbouring products and cuts the sum at +-32767. Here the sums are
formed as that instruction does, on calibration data, with the weights and ranges of the finished plan.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.data.dataset import Dataset
from lepton_cli.graph.edit import array_of
from lepton_cli.probe.activations import Activations, batches
from lepton_cli.probe.clipping import Range
from lepton_cli.quantize.moments import LONGEST_ROW, row_length, rows_of
from lepton_cli.quantize.qdq import Scheme
from lepton_cli.step import Context

#: Input rows (positions of a Conv) and output channels looked at per layer: a share needs no more.
ROWS = 48
OUTPUTS = 128
#: Rows multiplied at once.
CHUNK = 4
_MOST = 32767


@dataclasses.dataclass(frozen=True)
class Saturation:
    """One layer: share of pair sums cut, and the SQNR of its results from that alone, in dB."""

    node: str
    op: str
    share: float
    sqnr_db: float


def simulate(model: ir.Model, plan: Scheme, data: Dataset, context: Context) -> list[Saturation]:
    """The layers of `plan` where sums saturate, worst first."""
    nodes = [node for node in model.graph if node.name in plan.choice.anchors and _measurable(node, plan)]
    batch = next(iter(batches(model, data, 2)), None)
    if not nodes or batch is None:
        return []
    names = sorted({_input(node) for node in nodes})
    values = Activations(model, names, context.workdir, context.threads).run(batch.feeds)
    random = np.random.default_rng(context.seed)
    found = [_layer(node, values[_input(node)], plan, random) for node in nodes]
    return sorted((entry for entry in found if entry.share), key=lambda entry: entry.sqnr_db)


def _measurable(node: ir.Node, plan: Scheme) -> bool:
    return row_length(node) <= LONGEST_ROW and _input(node) in plan.ranges


def _input(node: ir.Node) -> str:
    value = node.inputs[0]
    return (value.name if value is not None else "") or ""


def _layer(node: ir.Node, values: NDArray[np.float32], plan: Scheme, random: np.random.Generator) -> Saturation:
    rows = rows_of(node, values, random)[:, :ROWS]
    codes, zero = _activation_codes(rows, plan.ranges[_input(node)])
    weights = _weight_codes(node, plan, groups=len(rows))
    cut = pairs = 0
    signal = noise = 0.0
    for start in range(0, codes.shape[1], CHUNK):
        part = codes[:, start : start + CHUNK, None, :] * weights[:, None]
        sums = part[..., 0::2] + part[..., 1::2]
        clipped = np.clip(sums, -_MOST - 1, _MOST)
        cut += int((sums != clipped).sum())
        pairs += sums.size
        # The zero point is taken off after the sums: what counts as signal is the result without it.
        exact = sums.sum(axis=-1) - zero * weights.sum(axis=-1)[:, None]
        signal += float(np.square(exact, dtype=np.float64).sum())
        noise += float(np.square((sums - clipped).sum(axis=-1), dtype=np.float64).sum())
    ratio = 10 * math.log10(max(signal, 1e-30) / noise) if noise else math.inf
    return Saturation(node.name or "", node.op_type, cut / max(pairs, 1), ratio)


def _activation_codes(rows: NDArray[np.float32], ends: Range) -> tuple[NDArray[np.int32], int]:
    """uint8 codes [groups, n, K], K made even, and the code of zero."""
    scale = (ends[1] - ends[0]) / 255 or 1.0
    zero = int(np.rint(-ends[0] / scale))
    codes = np.clip(np.rint(rows / scale) + zero, 0, 255).astype(np.int32)
    return np.pad(codes, ((0, 0), (0, 0), (0, codes.shape[2] % 2))), zero


def _weight_codes(node: ir.Node, plan: Scheme, groups: int) -> NDArray[np.int32]:
    """int8 codes [groups, outputs per group, K], K made even; a part of the outputs where they are many."""
    weight = array_of(node)
    assert weight is not None
    across = node.op_type != "Conv" and node.attributes.get_int("transB", 0) == 0
    matrix = weight.T if across else weight.reshape(len(weight), -1)
    value = node.inputs[1]
    known = plan.scales.get((value.name if value is not None else "") or "")
    scale = known[1] if known is not None else np.abs(matrix).max(axis=1) / 127
    codes = np.clip(np.rint(matrix / np.where(scale == 0, 1, scale)[:, None]), -127, 127).astype(np.int32)
    grouped = codes.reshape(groups, -1, codes.shape[1])[:, :OUTPUTS]
    return np.pad(grouped, ((0, 0), (0, 0), (0, grouped.shape[2] % 2)))
