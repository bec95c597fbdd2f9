"""First and second moments of what a layer's weights multiply: the basis of rounding and bias correction.

For a Conv the rows are im2col patches. One pass over some calibration samples, a random part of the positions,
accumulated in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.data.dataset import Dataset
from lepton_cli.graph.edit import array_of
from lepton_cli.probe import linear
from lepton_cli.probe.activations import Activations, batches
from lepton_cli.probe.blas import one_thread
from lepton_cli.probe.moments import Moments
from lepton_cli.quantize.choose import Choice
from lepton_cli.step import Context

#: Layers with longer rows than this are left alone: their matrix would not fit a modest machine.
LONGEST_ROW = 2400
#: Rows used in all, per weight of a row.
ROWS_PER_WEIGHT = 12
SAMPLES = 96
BATCH = 4


@one_thread()
def collect(model: ir.Model, choice: Choice, data: Dataset, context: Context) -> dict[str, Moments]:
    """Moments of the input rows of every chosen anchor, by node name."""
    nodes = [node for node in model.graph if node.name in choice.anchors and row_length(node) <= LONGEST_ROW]
    names = sorted({node.inputs[0].name or "" for node in nodes if node.inputs[0] is not None})
    inner = Activations(model, names, context.workdir, context.threads)
    random = np.random.default_rng(context.seed)
    found: dict[str, Moments] = {}
    seen = 0
    with context.progress.stage("weight statistics", min(SAMPLES, data.count)) as stage:
        for batch in batches(model, data, BATCH):
            values = inner.run(batch.feeds)
            shared: dict[str, NDArray[np.float32]] = {}
            for node in nodes:
                name = (node.inputs[0].name if node.inputs[0] is not None else "") or ""
                if node.op_type != "Conv" and name in shared:
                    continue  # its moments are those of the layer that read the same tensor before
                rows = rows_of(node, values[name], random, batch.count)
                shared[name] = rows
                key = node.name or ""
                if key not in found:
                    groups, _, length = rows.shape
                    found[key] = Moments(np.zeros((groups, length, length)), np.zeros((groups, length)))
                found[key].add(rows)
            stage.advance(batch.count)
            seen += batch.count
            if seen >= SAMPLES:
                break
    first = {node.inputs[0].name: node.name for node in reversed(nodes) if node.op_type != "Conv" and node.inputs[0]}
    for node in nodes:
        if node.name not in found and node.inputs[0] is not None:
            found[node.name or ""] = found[first[node.inputs[0].name] or ""]
    return found


def row_length(node: ir.Node) -> int:
    """Weights that one output is the sum of; beyond the longest where the weight is computed."""
    weight = array_of(node)
    if weight is None:
        return LONGEST_ROW + 1
    if node.op_type == "Conv":
        return int(np.prod(weight.shape[1:]))
    return int(weight.shape[1 if node.attributes.get_int("transB", 0) == 1 else 0])


def rows_of(
    node: ir.Node, values: NDArray[np.float32], random: np.random.Generator, samples: int = BATCH
) -> NDArray[np.float32]:
    """What the node multiplies its weights with in so many samples, [groups, n, K]; a random part of it."""
    if node.op_type != "Conv":
        flat = values.reshape(-1, values.shape[-1])
        return flat[_some(len(flat), flat.shape[1], random, samples)][None]
    return _patches(node, values, random, samples)


def _some(total: int, length: int, random: np.random.Generator, samples: int) -> NDArray[np.int64]:
    """Which of the `total` rows of a batch of so many samples to use."""
    wanted = min(total, max(32 * samples, ROWS_PER_WEIGHT * length * samples // SAMPLES))
    return np.sort(random.choice(total, wanted, replace=False))


def _patches(
    node: ir.Node, values: NDArray[np.float32], random: np.random.Generator, samples: int
) -> NDArray[np.float32]:
    weight = array_of(node)
    assert weight is not None
    kernel = weight.shape[2:]
    groups = node.attributes.get_int("group", 1)
    dims = len(kernel)
    seen = linear.windows(
        values,
        kernel,
        node.attributes.get_ints("strides", [1] * dims),
        node.attributes.get_ints("dilations", [1] * dims),
        node.attributes.get_ints("pads", [0] * (2 * dims)),
        node.attributes.get_string("auto_pad", "NOTSET"),
    )
    spatial = seen.shape[2 : 2 + len(kernel)]
    total = int(np.prod((seen.shape[0], *spatial)))
    chosen = _some(total, int(np.prod(weight.shape[1:])), random, samples)
    at = np.unravel_index(chosen, (seen.shape[0], *spatial))
    index: tuple[Any, ...] = (at[0], slice(None), *at[1:])
    rows = seen[index]  # [n, channels, *kernel]
    count, channels = rows.shape[:2]
    return np.ascontiguousarray(
        rows.reshape(count, groups, channels // groups * int(np.prod(kernel))).transpose(1, 0, 2)
    )
