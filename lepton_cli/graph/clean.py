"""Removing what does nothing: dead nodes, identities, duplicates. Every function edits the model in place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from lepton_cli.graph.edit import Editor, array_of, bypass, inner_graphs, is_constant, read_nothing
from lepton_cli.graph.held import FLOATS, LEAST_VALUES
from lepton_cli.model.external import blocks

#: What keeps a graph's equal nodes apart.
_UNMERGEABLE = frozenset({"Bernoulli", "Optional"})


def remove_no_ops(model: ir.Model, allowed: set[str]) -> list[tuple[ir.Node, str]]:
    """Bypass nodes that return their input as it is.

    Identities too: onnx-ir's IdentityEliminationPass knows no excluded nodes and says nothing of what it removed.
    """
    removed: list[tuple[ir.Node, str]] = []
    for node in list(model.graph):
        rule = _NO_OPS.get(node.op_type) if node.domain == "" else None
        reason = rule(node) if rule is not None and node.name in allowed else None
        if reason is None or not node.inputs or node.inputs[0] is None:
            continue
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            continue
        try:
            bypass(node)
        except ValueError:  # an output of the graph that is an input too, or another output
            continue
        removed.append((node, reason))
    return removed


def remove_unused(model: ir.Model) -> list[tuple[ir.Node, str]]:
    """Nodes and initializers no output depends on."""
    before = list(model.graph.all_nodes())
    common.RemoveUnusedNodesPass()(model)
    gone = set(before) - set(model.graph.all_nodes())
    if any(inner_graphs(node) for node in gone):
        read_nothing(gone)  # the pass takes what stands inside removed nodes for readers
        common.RemoveUnusedNodesPass()(model)
    for graph in model.graphs():  # the pass leaves those of subgraphs
        if graph is not model.graph:
            for value in list(graph.initializers.values()):
                if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                    del graph.initializers[value.name or ""]
    after = set(model.graph.all_nodes())
    return [(node, "no output depends on it") for node in before if node not in after]


def merge_equal(model: ir.Model, allowed: set[str]) -> list[tuple[ir.Node, str]]:
    """Nodes that compute the same from the same inputs become one, unless one of the model's nodes is excluded.

    Nor where onnx-ir's pass cannot: it raises TypeError for types as attributes, and takes Bernoulli for no random one.
    """
    if any(node.name not in allowed or node.op_type in _UNMERGEABLE for node in model.graph):
        return []
    before = list(model.graph)
    common.CommonSubexpressionEliminationPass()(model)
    after = set(model.graph)
    return [(node, "computes the same as another node") for node in before if node not in after]


def share_initializers(model: ir.Model, least: int = 0, most: int | None = None, *, across: bool = False) -> list[str]:
    """Initializers with equal content and `least` to `most` values become one; returns the names of those removed.

    `across`: also those of different branches and loop bodies, which then stand in the graph around all of them.

    Not onnx-ir's DeduplicateHashedInitializersPass: it maps whole files into memory, copies equal tensors to compare
    them, raises for strings and for arrays that are not contiguous, and does not say what it removed.
    """
    removed: list[str] = []
    kept: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
    for graph in model.graphs():
        if not across:
            kept = {}
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if (
                tensor is None
                or tensor.size < least
                or (most is not None and tensor.size > most)
                or tensor.dtype == ir.DataType.STRING
                or not is_constant(value)
                or value.is_graph_output()
            ):
                continue
            digest = hashlib.sha256()
            for block in blocks(tensor):
                digest.update(block)
            key = (tensor.dtype, tuple(tensor.shape.numpy()), digest.digest())
            first = kept.setdefault(key, value)
            if first is not value:
                if first.graph not in (graph, model.graph):
                    own, first = first, Editor(model).constant(first.name or "", tensor)
                    own.replace_all_uses_with(first)
                    del own.graph.initializers[own.name or ""]  # type: ignore[union-attr]
                    kept[key] = first
                value.replace_all_uses_with(first)
                del graph.initializers[value.name or ""]
                removed.append(value.name or "")
    return removed


def table_turns(model: ir.Model) -> set[str]:
    """Names of the Transposes of tables that a Gather reads too: computed ahead, they would be a second table."""
    tables = _tables(model)
    return {
        node.name or "" for node in model.graph.all_nodes() if node.op_type == "Transpose" and node.inputs[0] in tables
    }


def tie_tables(model: ir.Model) -> list[str]:
    """Let matrices that are a looked-up table turned be a Transpose of it; returns the names of those removed.

    Language models read one table for the words that go in and those that come out. Exporters and constant folding
    make two of it; runtimes compute the Transpose of a constant once, when they load the model.
    """
    removed: list[str] = []
    editor = Editor(model)
    for value, table in turned_tables(model).items():
        turn = ir.node("Transpose", [table], {"perm": [1, 0]}, name=f"{table.name}.turned")
        turn.outputs[0].type, turn.outputs[0].shape = value.type, value.shape
        editor.insert_before(next(iter(model.graph)), [turn])
        value.replace_all_uses_with(turn.outputs[0])
        del model.graph.initializers[value.name or ""]
        removed.append(value.name or "")
    return removed


def turned_tables(model: ir.Model) -> dict[ir.Value, ir.Value]:
    """Constant matrices that are a looked-up table turned, with that table."""
    tables = _tables(model)
    return {
        value: table
        for table in tables
        for value in model.graph.initializers.values()
        if value not in tables and table.const_value is not None and _is_turned(value, table.const_value)
    }


def _tables(model: ir.Model) -> dict[ir.Value, None]:
    """Constant matrices of the main graph that a Gather looks rows up in."""
    reads = [node.inputs[0] for node in model.graph.all_nodes() if node.op_type == "Gather" and not node.domain]
    return {
        value: None
        for value in reads
        if value is not None and is_constant(value) and value.graph is model.graph and _is_matrix(value)
    }


def _is_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype in FLOATS and len(tensor.shape) == 2 and tensor.size >= LEAST_VALUES


def _is_turned(value: ir.Value, table: ir.TensorProtocol) -> bool:
    if not is_constant(value) or value.is_graph_output() or not _is_matrix(value) or value.const_value is None:
        return False
    tensor = value.const_value
    if tensor is table or tensor.dtype != table.dtype or tuple(tensor.shape)[::-1] != tuple(table.shape):
        return False
    mine, other = tensor.numpy(), table.numpy()
    return np.array_equal(mine[0], other[:, 0]) and np.array_equal(mine, other.T)


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
