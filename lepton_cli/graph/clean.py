"""Removing what does nothing: dead nodes, identities, duplicates. Every function edits the model in place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from lepton_cli.graph.edit import array_of, bypass, is_constant
from lepton_cli.model.external import blocks


def remove_no_ops(model: ir.Model, allowed: set[str]) -> list[tuple[ir.Node, str]]:
    """Bypass nodes that return their input as it is.

    Identities too: onnx-ir's IdentityEliminationPass knows no excluded nodes and says nothing of what it removed.
    """
    removed: list[tuple[ir.Node, str]] = []
    for node in list(model.graph):
        rule = _NO_OPS.get(node.op_type) if node.domain == "" else None
        reason = rule(node) if rule is not None and node.name in allowed else None
        if reason is None or not node.inputs or node.inputs[0] is None or node.outputs[0].is_graph_output():
            continue
        if any(output.uses() for output in node.outputs[1:]):
            continue
        bypass(node)
        removed.append((node, reason))
    return removed


def remove_unused(model: ir.Model) -> list[tuple[ir.Node, str]]:
    """Nodes and initializers no output depends on."""
    before = list(model.graph)
    common.RemoveUnusedNodesPass()(model)
    for graph in model.graphs():  # the pass leaves those of subgraphs
        if graph is not model.graph:
            for value in list(graph.initializers.values()):
                if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                    del graph.initializers[value.name or ""]
    after = set(model.graph)
    return [(node, "no output depends on it") for node in before if node not in after]


def merge_equal(model: ir.Model, allowed: set[str]) -> list[tuple[ir.Node, str]]:
    """Nodes that compute the same from the same inputs become one, unless one of the model's nodes is excluded."""
    if any(node.name not in allowed for node in model.graph):
        return []
    before = list(model.graph)
    common.CommonSubexpressionEliminationPass()(model)
    after = set(model.graph)
    return [(node, "computes the same as another node") for node in before if node not in after]


def share_initializers(model: ir.Model, least: int = 0) -> list[str]:
    """Initializers with equal content and at least `least` values become one; returns the names of those removed.

    Not onnx-ir's DeduplicateHashedInitializersPass: it maps whole files into memory, copies equal tensors to compare
    them, raises for strings and for arrays that are not contiguous, and does not say what it removed.
    """
    removed: list[str] = []
    for graph in model.graphs():
        kept: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if (
                tensor is None
                or tensor.size < least
                or tensor.dtype == ir.DataType.STRING
                or not is_constant(value)
                or value.is_graph_output()
            ):
                continue
            digest = hashlib.sha256()
            for block in blocks(tensor):
                digest.update(block)
            first = kept.setdefault((tensor.dtype, tuple(tensor.shape.numpy()), digest.digest()), value)
            if first is not value:
                value.replace_all_uses_with(first)
                del graph.initializers[value.name or ""]
                removed.append(value.name or "")
    return removed


def fix_default_inputs(model: ir.Model) -> list[str]:
    """Initializers that are also inputs (as IR version 3 demanded) become plain initializers; returns their names."""
    names = [value.name or "" for value in model.graph.inputs if value.is_initializer()]
    if names:
        common.RemoveInitializersFromInputsPass()(model)
        model.ir_version = max(model.ir_version, 4)
    return names


def _identity(node: ir.Node) -> str | None:
    return "passes its input on"


def _dropout(node: ir.Node) -> str | None:
    mode = array_of(node, 2)
    if len(node.inputs) > 2 and node.inputs[2] is not None and (mode is None or mode):
        return None
    return "Dropout does nothing in inference"


def _cast(node: ir.Node) -> str | None:
    source = node.inputs[0]
    target = node.attributes["to"]
    if source is None or source.dtype is None or target.type != ir.AttributeType.INT:
        return None
    return "casts to the type it already has" if source.dtype == target.as_int() else None


def _transpose(node: ir.Node) -> str | None:
    order = node.attributes.get_ints("perm")
    return "permutes nothing" if order is not None and list(order) == list(range(len(order))) else None


def _concat(node: ir.Node) -> str | None:
    return "joins a single tensor" if len(node.inputs) == 1 else None


def _pad(node: ir.Node) -> str | None:
    if "pads" in node.attributes:
        return "pads by zero everywhere" if not any(node.attributes["pads"].as_ints()) else None
    pads = array_of(node)
    return "pads by zero everywhere" if pads is not None and not np.any(pads) else None


_NO_OPS: dict[str, Callable[[ir.Node], str | None]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Concat": _concat,
    "Pad": _pad,
}
