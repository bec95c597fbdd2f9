"""Operators that move values and compute none: whose grid they share, and what may pass them."""

from __future__ import annotations

import onnx_ir as ir

#: Operators whose result has the grid of their input, and the opset from which their kernels take 8 bits.
SHARING = {
    "AveragePool": 1, "DepthToSpace": 1, "Flatten": 1, "Gather": 1, "MaxPool": 12, "Reshape": 1, "Resize": 11,
    "Slice": 1, "SpaceToDepth": 1, "Squeeze": 1, "Transpose": 1, "Unsqueeze": 1,
}  # fmt: skip
#: Those behind which onnxruntime rounds what is rounded before them.
PASSING = frozenset({"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def lets_limits_pass(node: ir.Node | None, source: ir.Value) -> bool:
    """Whether a limit behind a node may as well stand before it, at `source`."""
    moves = node is not None and node.op_type in ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
    return moves and len(readers(source)) == 1 and not source.is_graph_output() and source.producer() is not None


def readers(value: ir.Value) -> set[ir.Node]:
    return {use.node for use in value.uses()}


def pads_with_own(node: ir.Node, opset: int) -> bool:
    """Whether a Pad adds nothing that the grid of its input does not hold."""
    mode = node.attributes.get_string("mode", "constant")
    if mode in ("reflect", "edge", "wrap"):
        return True
    if opset < 11:
        return node.attributes.get_float("value", 0.0) == 0
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return True
    held = value.const_value
    return held is not None and held.size == 1 and float(held.numpy().item()) == 0
