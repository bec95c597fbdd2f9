"""Cross-layer equalisation: evens out the channels between two layers without changing what the model computes.

Between Conv -> ReLU -> Conv a channel may be scaled by any positive `s` if the next layer divides it out again (Nagel
et al., 2019). Here `s` comes from the channels' measured maxima, so that narrow channels use all 8 bits; weights have
a scale per output channel, so the first layer and a depthwise second one lose nothing. A depthwise layer between two
others is evened out on both sides, as two pairs. ReLU6 and other clips from above do not scale: such pairs are left
alone (growing channels only up to their measured maximum changes the result on other data: 24 dB on a MobileNet).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph.edit import Editor, array_of, set_weight
from lepton_cli.model import io
from lepton_cli.probe.channels import Channels
from lepton_cli.probe.clipping import Range
from lepton_cli.quantize.choose import Choice

#: Operators that let a positive factor pass, channel by channel.
HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool"})
#: Nearly dead channels grow no further than this.
LARGEST = 64.0
WIDE = 8.0


@dataclasses.dataclass(frozen=True)
class LayerPair:
    """Two layers with only homogeneous operators between them; `tensor` is the last one, read by `second` alone."""

    first: str
    second: str
    tensor: str


def pairs(model: ir.Model, choice: Choice) -> list[LayerPair]:
    """Conv pairs that can be equalised, in graph order."""
    outputs = {value.name for value in model.graph.outputs}
    found = []
    for node in model.graph:
        if node.name not in choice.anchors or node.op_type != "Conv" or not _alone(node, 1):
            continue
        value, user = _next_layer(node, HOMOGENEOUS, outputs)
        if user is not None and user.name in choice.anchors and user.inputs[0] is value and _alone(user, 1):
            found.append(LayerPair(node.name or "", user.name or "", value.name or ""))
    return found


def clipped(model: ir.Model, choice: Choice) -> list[str]:
    """Convolutions that a ReLU6 (or another clip from above) keeps apart from the next one, so that they are skipped.

    A channel scaled by `s` would have to be clipped at `6 s`, and Clip knows one bound for all channels. Taking the
    clip away where calibration never reached it would change results on other data.
    """
    outputs = {value.name for value in model.graph.outputs}
    return [
        node.name or ""
        for node in model.graph
        if node.name in choice.anchors
        and node.op_type == "Conv"
        and _next_layer(node, HOMOGENEOUS, outputs)[1] is None
        and _next_layer(node, HOMOGENEOUS | {"Clip"}, outputs)[1] is not None
    ]


def _next_layer(node: ir.Node, passing: frozenset[str], outputs: set[str | None]) -> tuple[ir.Value, ir.Node | None]:
    """The Conv that alone reads the node's result through operators of `passing`, and the tensor that it reads."""
    value = node.outputs[0]
    while len(uses := value.uses()) == 1 and value.name not in outputs:
        user = next(iter(uses)).node
        if user.op_type == "Conv":
            return value, user
        if user.op_type not in passing:
            break
        value = user.outputs[0]
    return value, None


def between(model: ir.Model, found: list[LayerPair]) -> dict[str, list[str]]:
    """The tensors that are scaled with each pair's own, which is the last of them, by its name."""
    nodes = {node.name: node for node in model.graph}
    scaled: dict[str, list[str]] = {}
    for pair in found:
        value = nodes[pair.first].outputs[0]
        scaled[pair.tensor] = [value.name or ""]
        while value.name != pair.tensor:
            value = next(iter(value.uses())).node.outputs[0]
            scaled[pair.tensor].append(value.name or "")
    return scaled


def uneven(ends: Channels) -> bool:
    """Whether the widest channel is so much wider than the median one that equalising is worth a trial."""
    return float(ends.widest.max()) > WIDE * max(float(np.median(ends.widest)), 1e-12)


def _alone(node: ir.Node, position: int) -> bool:
    value = node.inputs[position]
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def equalise(
    model: ir.Model, found: list[LayerPair], ends: Mapping[str, Channels], strength: float
) -> tuple[ir.Model, int]:
    """A copy with scaled weights, and the number of pairs scaled. `strength` 1: all channels equally wide."""
    copy = io.clone(model)
    nodes, editor = {node.name: node for node in copy.graph}, Editor(copy)
    done = 0
    for pair in found:
        scale = _scale(ends[pair.tensor], strength)
        if scale is None:
            continue
        _multiply_outputs(editor, nodes[pair.first], scale)
        _divide_inputs(editor, nodes[pair.second], scale)
        done += 1
    return copy, done


def ranges(scaled: Mapping[str, list[str]], ends: Mapping[str, Channels], strength: float) -> dict[str, Range]:
    """What the tensors `scaled` (see `between`) reach from and to once they are equalised, by the ends from before."""
    found: dict[str, Range] = {}
    for tensor, names in scaled.items():
        scale = _scale(ends[tensor], strength)
        if scale is not None:
            for name in names:
                found[name] = float((ends[name].low * scale).min()), float((ends[name].high * scale).max())
    return found


def _scale(ends: Channels, strength: float) -> NDArray[np.float64] | None:
    """A factor for each channel; `None` where they have no ends, or no extent."""
    wide = ends.widest.astype(np.float64)
    if not np.isfinite(wide).all() or wide.max() <= 0:
        return None
    made: NDArray[np.float64] = (wide.max() / np.maximum(wide, wide.max() / LARGEST)) ** strength
    return made


def _multiply_outputs(editor: Editor, node: ir.Node, scale: NDArray[np.float64]) -> None:
    weight = array_of(node)
    assert weight is not None
    _set(editor, node, 1, weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
    bias = array_of(node, 2)
    if bias is not None:
        _set(editor, node, 2, bias * scale)


def _divide_inputs(editor: Editor, node: ir.Node, scale: NDArray[np.float64]) -> None:
    weight = array_of(node)
    assert weight is not None
    groups = node.attributes.get_int("group", 1)
    per_group = scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    _set(editor, node, 1, (weight.reshape(groups, -1, *weight.shape[1:]) / per_group).reshape(weight.shape))


def _set(editor: Editor, node: ir.Node, position: int, array: NDArray[np.float64]) -> None:
    """Replace a constant input; a bias that others read too is copied first."""
    value = node.inputs[position]
    assert value is not None
    tensor = array.astype(np.float32)
    if len(value.uses()) == 1:
        set_weight(value, tensor)
    else:
        editor.give(node, position, tensor, f"{node.name}.input{position}")
