"""Turns the parameter-free shortcuts of CIFAR ResNets, strided Slices and a Pad of channels, into a 1x1 convolution.

Both compute the same: every weight is 0 or 1. onnxruntime runs Slice and Pad one after another, and Pad in float; the
convolution is one int8 kernel between int8 neighbours, and 1 is exact in int8 too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from lepton_cli.graph import shapes

Shapes = Mapping[str, tuple[int | None, ...] | None]

#: Channels in and out at most: beyond, the multiplications cost more than moving the values.
MOST_CHANNELS = 512


def to_convolutions(model: ir.Model, allowed: Collection[str]) -> int:
    """Rewrite in place; returns the number of shortcuts. Only where all nodes are in `allowed`."""
    pads = [node for node in model.graph if node.op_type == "Pad" and node.name in allowed and _channel_padding(node)]
    known = {name: found.shape for name, found in shapes.infer(model).items()} if pads else {}
    done = sum(_replace(model, node, allowed, known) for node in pads)
    if done:
        common.RemoveUnusedNodesPass()(model)
    return done


def _replace(model: ir.Model, pad: ir.Node, allowed: Collection[str], known: Shapes) -> bool:
    padding = _channel_padding(pad)
    value = pad.inputs[0]
    strides = {2: 1, 3: 1}
    while value is not None and (producer := value.producer()) is not None and producer.op_type == "Slice":
        steps = _strides(producer, known) if producer.name in allowed and len(value.uses()) == 1 else None
        if steps is None:
            break
        strides = {axis: step * steps.get(axis, 1) for axis, step in strides.items()}
        value = producer.inputs[0]
    if padding is None or value is None or max(strides.values()) == 1:
        return False
    shape = known.get(value.name or "")
    if shape is None or len(shape) != 4 or (channels := shape[1]) is None:
        return False
    before, after = padding
    if not 0 < before + channels + after <= MOST_CHANNELS:
        return False
    _put(model, pad, value, np.pad(np.eye(channels, dtype=np.float32), ((before, after), (0, 0))), strides)
    return True


def _put(model: ir.Model, pad: ir.Node, source: ir.Value, weight: np.ndarray, strides: dict[int, int]) -> None:
    array = np.ascontiguousarray(weight[:, :, None, None])
    name = f"{pad.name}.copies"
    made = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(array, name=name),
    )
    model.graph.register_initializer(made)
    attributes = {"kernel_shape": [1, 1], "strides": [strides[2], strides[3]]}
    conv = ir.node("Conv", [source, made], attributes, name=pad.name)
    old, new = pad.outputs[0], conv.outputs[0]
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(model.graph, pad, [pad], [conv], [old], [new])


def _constant(node: ir.Node, position: int) -> list[int] | None:
    """A constant input as whole numbers, an empty list when it is not given, `None` when it is computed."""
    value = node.inputs[position] if len(node.inputs) > position else None
    if value is None:
        return []
    return None if value.const_value is None else [int(x) for x in value.const_value.numpy().reshape(-1)]


def _channel_padding(pad: ir.Node) -> tuple[int, int] | None:
    """Zeros before and after the channels, when nothing else is padded."""
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    zero = value is None or (value.const_value is not None and not value.const_value.numpy().any())
    pads = _constant(pad, 1)
    if pad.attributes.get_string("mode", "constant") != "constant" or not zero or not pads or len(pads) != 8:
        return None
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        return None
    others = pads[:1] + pads[2:5] + pads[6:]
    return (pads[1], pads[5]) if not any(others) and min(pads) >= 0 else None


def _strides(node: ir.Node, known: Shapes) -> dict[int, int] | None:
    """Step per axis of a Slice that takes every n-th row or column of the whole picture."""
    starts, ends, axes, steps = (_constant(node, position) for position in (1, 2, 3, 4))
    source = node.inputs[0]
    shape = known.get((source.name if source is not None else "") or "")
    if not starts or not ends or axes is None or steps is None or shape is None or len(shape) != 4:
        return None
    axes = axes or list(range(len(starts)))
    steps = steps or [1] * len(starts)
    found = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = axis % 4
        size = shape[axis]
        whole = end >= (1 << 31) - 1 or (size is not None and end >= size)
        if start != 0 or not whole or step < 1 or (axis < 2 and step > 1):
            return None
        found[axis] = step
    return found
