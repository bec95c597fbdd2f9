"""First and second moments of what a layer's weights multiply: the basis of rounding and bias correction.

For a Conv the rows are im2col patches. One pass over some calibration samples, a random part of the positions,
accumulated in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.data.dataset import Dataset
from lepton_cli.graph.edit import array_of
from lepton_cli.model import io
from lepton_cli.probe.calibration import calibration_batches, with_outputs
from lepton_cli.quantize.choose import Choice
from lepton_cli.runtime import Session
from lepton_cli.step import Context

#: Layers with longer rows than this are left alone: their matrix would not fit a modest machine.
LONGEST_ROW = 2400
#: Rows used in all, per weight of a row.
ROWS_PER_WEIGHT = 12
SAMPLES = 96
BATCH = 4


@dataclasses.dataclass
class Moments:
    """Sums over rows: `second` [groups, K, K], `first` [groups, K], and their number."""

    second: NDArray[np.float64]
    first: NDArray[np.float64]
    count: int = 0

    def add(self, rows: NDArray[np.float32]) -> None:
        """Add rows [groups, n, K]."""
        self.second += np.matmul(rows.transpose(0, 2, 1), rows)
        self.first += rows.sum(axis=1, dtype=np.float64)
        self.count += rows.shape[1]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean row per group, [groups, K]."""
        return self.first / max(self.count, 1)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Covariance per group, [groups, K, K]: what an adjusted bias cannot make up for."""
        return self.second / max(self.count, 1) - self.mean[:, :, None] * self.mean[:, None, :]


def collect(model: ir.Model, choice: Choice, data: Dataset, context: Context) -> dict[str, Moments]:
    """Moments of the input rows of every chosen anchor, by node name."""
    nodes = [node for node in model.graph if node.name in choice.anchors and _row_length(node) <= LONGEST_ROW]
    inputs = {value.name for value in model.graph.inputs}
    names = sorted({node.inputs[0].name or "" for node in nodes if node.inputs[0] is not None} - inputs)
    session = Session(io.payload(with_outputs(model, names), context.workdir), threads=context.threads)
    random = np.random.default_rng(context.seed)
    found: dict[str, Moments] = {}
    seen = 0
    with context.progress.stage("weight statistics", min(SAMPLES, data.count)) as stage:
        for batch in calibration_batches(model, data, BATCH):
            values = session.run(batch.feeds, names) if names else {}
            shared: dict[str, NDArray[np.float32]] = {}
            for node in nodes:
                name = (node.inputs[0].name if node.inputs[0] is not None else "") or ""
                if node.op_type != "Conv" and name in shared:
                    continue  # its moments are those of the layer that read the same tensor before
                rows = rows_of(node, values[name] if name in values else batch.feeds[name], random)
                shared[name] = rows
                key = node.name or ""
                if key not in found:
                    groups, _, length = rows.shape
                    found[key] = Moments(np.zeros((groups, length, length)), np.zeros((groups, length)))
                found[key].add(rows)
            count = max((len(array) for array in batch.feeds.values() if array.ndim), default=1)
            stage.advance(count)
            seen += count
            if seen >= SAMPLES:
                break
    first = {node.inputs[0].name: node.name for node in reversed(nodes) if node.op_type != "Conv" and node.inputs[0]}
    for node in nodes:
        if node.name not in found and node.inputs[0] is not None:
            found[node.name or ""] = found[first[node.inputs[0].name] or ""]
    return found


def _row_length(node: ir.Node) -> int:
    weight = array_of(node)
    if weight is None:
        return LONGEST_ROW + 1
    if node.op_type == "Conv":
        return int(np.prod(weight.shape[1:]))
    return int(weight.shape[1 if node.attributes.get_int("transB", 0) == 1 else 0])


def rows_of(node: ir.Node, values: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """What the node multiplies its weights with, [groups, n, K]; a random part of it."""
    if node.op_type != "Conv":
        flat = values.reshape(-1, values.shape[-1])
        return flat[_some(len(flat), flat.shape[1], random)][None]
    return _patches(node, values, random)


def _some(total: int, length: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Which of `total` rows of one batch to use."""
    wanted = min(total, max(128, ROWS_PER_WEIGHT * length * BATCH // SAMPLES))
    return np.sort(random.choice(total, wanted, replace=False))


def _patches(node: ir.Node, values: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    weight = array_of(node)
    assert weight is not None
    kernel = weight.shape[2:]
    groups = node.attributes.get_int("group", 1)
    strides = tuple(node.attributes.get_ints("strides", [1] * len(kernel)))
    dilations = tuple(node.attributes.get_ints("dilations", [1] * len(kernel)))
    padded = np.pad(values, [(0, 0), (0, 0), *_pads(node, values.shape[2:], kernel, strides, dilations)])
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    axes = tuple(range(2, 2 + len(kernel)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    cuts: tuple[Any, ...] = tuple(slice(None, None, step) for step in (1, 1, *strides, *dilations))
    windows = windows[cuts]
    spatial = windows.shape[2 : 2 + len(kernel)]
    total = int(np.prod((windows.shape[0], *spatial)))
    chosen = _some(total, int(np.prod(weight.shape[1:])), random)
    at = np.unravel_index(chosen, (windows.shape[0], *spatial))
    rows = windows[(at[0], slice(None), *at[1:])]  # [n, channels, *kernel]
    count, channels = rows.shape[:2]
    return np.ascontiguousarray(
        rows.reshape(count, groups, channels // groups * int(np.prod(kernel))).transpose(1, 0, 2)
    )


def _pads(
    node: ir.Node,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> Iterator[tuple[int, int]]:
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    given = node.attributes.get_ints("pads", [0] * (2 * len(kernel)))
    for i, (length, k, s, d) in enumerate(zip(size, kernel, strides, dilations, strict=True)):
        if mode == "NOTSET":
            yield given[i], given[i + len(kernel)]
        elif mode == "VALID":
            yield 0, 0
        else:
            missing = max((-(-length // s) - 1) * s + (k - 1) * d + 1 - length, 0)
            less, more = missing // 2, missing - missing // 2
            yield (less, more) if mode == "SAME_UPPER" else (more, less)
