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

from lepton_cli.graph import clean
from lepton_cli.graph.edit import Editor, array_of
from lepton_cli.model import io
from lepton_cli.probe.channels import Channels
from lepton_cli.probe.clipping import Range
from lepton_cli.quantize.choose import Choice

#: How much of the difficulty moves from activations to weights; all are tried.
STRENGTHS = (0.65, 0.8, 0.95)
#: Tensors whose widest channel is less than this many times the median one gain nothing.
LEAST_SPREAD = 3.0


def readers(model: ir.Model, choice: Choice) -> dict[str, list[ir.Node]]:
    """Chosen MatMuls by the name of the float tensor they read.

    Not those by a table that is looked up too: its rows would have to be stored a second time, as they were.
    """
    found: dict[str, list[ir.Node]] = defaultdict(list)
    tables = clean.turned_tables(model)
    for node in model.graph:
        chosen = node.name in choice.anchors and node.op_type == "MatMul" and node.inputs[1] not in tables
        source = node.inputs[0] if chosen else None
        producer = source.producer() if source is not None else None
        if source is not None and producer is not None and producer.name not in choice.nodes:
            found[source.name or ""].append(node)
    return dict(found)


def smooth(
    model: ir.Model, choice: Choice, ends: Mapping[str, Channels], strength: float
) -> tuple[ir.Model, dict[str, Range]]:
    """A copy that computes the same with evened-out inputs, and the full range of every new tensor."""
    copy = io.clone(model)
    editor = Editor(copy)
    made: dict[str, Range] = {}
    for name, nodes in readers(copy, choice).items():
        if name not in ends or not _uneven(ends[name]):
            continue
        weights = [weight for node in nodes if (weight := array_of(node)) is not None]
        wide = ends[name].widest
        if any(weight.shape[0] != wide.size for weight in weights):
            continue
        rows = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
        scale = np.maximum(wide, 1e-5) ** strength / np.maximum(rows, 1e-5) ** (1 - strength)
        scale = (scale / np.exp(np.mean(np.log(scale)))).astype(np.float32)
        tensor = _insert(editor, name, nodes, weights, scale)
        made[tensor] = float((ends[name].low / scale).min()), float((ends[name].high / scale).max())
    copy.graph.sort()
    return copy, made


def _uneven(ends: Channels) -> bool:
    wide = ends.widest
    return bool(np.isfinite(wide).all() and wide.max() > LEAST_SPREAD * max(float(np.median(wide)), 1e-12))


def _insert(
    editor: Editor, name: str, nodes: list[ir.Node], weights: list[NDArray[np.float32]], scale: NDArray[np.float32]
) -> str:
    source = nodes[0].inputs[0]
    factor = editor.constant(f"{name}.smooth", (1 / scale).astype(np.float32))
    even = ir.node("Mul", [source, factor], name=f"{name}.smoothing")
    even.outputs[0].name = f"{name}.smoothed"
    if source is not None:
        even.outputs[0].type, even.outputs[0].shape = source.type, source.shape
    editor.insert_before(nodes[0], [even])
    for node, weight in zip(nodes, weights, strict=True):
        node.replace_input_with(0, even.outputs[0])
        editor.give(node, 1, weight * scale[:, None], f"{node.name}.smooth_weight")
    return even.outputs[0].name or ""
