"""Moves the spread between the channels of a MatMul's input into its weights (SmoothQuant; Xiao et al., 2022).

A few channels of LayerNorm and GELU outputs are ten times wider than the rest; one scale for all then loses the rest.
Dividing each channel by `s` and multiplying the weight's row by `s` computes the same and evens the input out. The
division is one Mul on the way into the quantizer, shared by all MatMuls that read the tensor; the float tensor itself,
which residual branches read, stays as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.data.dataset import Dataset
from lepton_cli.graph import io
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.ranges import calibration_batches, with_outputs
from lepton_cli.runtime import Session
from lepton_cli.steps.base import Context

#: How much of the difficulty moves from activations to weights.
STRENGTH = 0.5
#: Tensors whose widest channel is less than this many times the median one gain nothing.
LEAST_SPREAD = 4.0

Channels = Mapping[str, NDArray[np.float32]]


def readers(model: ir.Model, choice: Choice) -> dict[str, list[ir.Node]]:
    """Chosen MatMuls by the name of the float tensor they read."""
    found: dict[str, list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        source = node.inputs[0] if node.name in choice.anchors and node.op_type == "MatMul" else None
        producer = source.producer() if source is not None else None
        if source is not None and producer is not None and producer.name not in choice.nodes:
            found[source.name or ""].append(node)
    return dict(found)


def channel_maxima(model: ir.Model, names: list[str], data: Dataset, context: Context) -> dict[str, NDArray[np.float32]]:
    """Greatest magnitude of every channel (last axis) of the tensors `names`."""
    found: dict[str, NDArray[np.float32]] = {}
    if not names:
        return found
    session = Session(io.payload(with_outputs(model, names), context.workdir), threads=context.threads)
    with context.progress.stage("channel ranges", data.count) as stage:
        for batch in calibration_batches(model, data, 8):
            for name, values in session.run(batch.feeds, names).items():
                magnitude = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0, initial=0)
                found[name] = np.maximum(found[name], magnitude) if name in found else magnitude
            stage.advance(max((len(values) for values in batch.feeds.values() if values.ndim), default=1))
    return found


def smooth(model: ir.Model, choice: Choice, maxima: Channels) -> tuple[ir.Model, list[str]]:
    """A copy that computes the same with evened-out inputs, and the tensors that were evened out."""
    copy = io.clone(model)
    done = []
    for name, nodes in readers(copy, choice).items():
        wide = maxima.get(name)
        if wide is None or not np.isfinite(wide).all() or wide.max() < LEAST_SPREAD * max(float(np.median(wide)), 1e-12):
            continue
        weights = [node.inputs[1].const_value.numpy() for node in nodes]  # type: ignore[union-attr]
        if any(weight.shape[0] != wide.size for weight in weights):
            continue
        rows = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
        scale = np.maximum(wide, 1e-5) ** STRENGTH / np.maximum(rows, 1e-5) ** (1 - STRENGTH)
        scale = (scale / np.exp(np.mean(np.log(scale)))).astype(np.float32)
        _insert(copy, name, nodes, weights, scale)
        done.append(name)
    copy.graph.sort()
    return copy, done


def _insert(
    model: ir.Model, name: str, nodes: list[ir.Node], weights: list[NDArray[np.float32]], scale: NDArray[np.float32]
) -> None:
    source = nodes[0].inputs[0]
    factor = _constant(model, f"{name}.smooth", (1 / scale).astype(np.float32))
    even = ir.node("Mul", [source, factor], name=f"{name}.smooth")
    even.outputs[0].name = f"{name}.smoothed"
    if source is not None:
        even.outputs[0].type, even.outputs[0].shape = source.type, source.shape
    model.graph.insert_before(nodes[0], even)
    for node, weight in zip(nodes, weights, strict=True):
        node.replace_input_with(0, even.outputs[0])
        node.replace_input_with(1, _constant(model, f"{node.name}.smooth_weight", weight * scale[:, None]))


def _constant(model: ir.Model, name: str, array: NDArray[np.float32]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value
