"""Embedding tables in 8 bits by blocks: a quarter of the bytes, rows looked up and scaled in one kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lepton_cli.graph.edit import Editor
from lepton_cli.model import io
from lepton_cli.quantize import weights
from lepton_cli.quantize.store import WeightStore
from lepton_cli.step import Decision

if TYPE_CHECKING:
    from collections.abc import Collection

    from lepton_cli.quantize.spec import QuantizeWeights

#: Smaller tables are not worth an operator that few runtimes know.
LEAST_SIZE = 100_000


def shrink(model: ir.Model, allowed: Collection[str]) -> tuple[ir.Model, list[Decision]]:
    """A copy whose large float tables, read by a Gather of whole rows, are GatherBlockQuantized."""
    copy = io.clone(model)
    editor, decisions = Editor(copy), []
    for node, options in _chosen(copy, allowed):
        ratio = weights.replace(editor, node, options, WeightStore(None))
        decisions.append(_decision(node, f"table in 8 bits, blocks of {options.block_size} ({ratio:.0f} dB)"))
    if decisions:
        RemoveUnusedNodesPass()(copy)
        copy.graph.opset_imports[weights.MICROSOFT] = 1
    return copy, decisions


def _decision(node: ir.Node, reason: str) -> Decision:
    return Decision(node=node.name or "", op="Gather", action="quantized", reason=reason)


def _chosen(model: ir.Model, allowed: Collection[str]) -> list[tuple[ir.Node, QuantizeWeights]]:
    """The lookups, each with the largest block that its rows allow."""
    from lepton_cli.quantize.spec import QuantizeWeights

    found = []
    for node in model.graph:
        table = node.inputs[0] if node.op_type == "Gather" and node.name in allowed else None
        if table is None or table.const_value is None or table.const_value.size < LEAST_SIZE or len(table.uses()) > 1:
            continue
        for block in (128, 64, 32, 16):
            options = QuantizeWeights(step="quantize.weights", bits=8, block_size=block)
            if weights.refused(node, options) is None:
                found.append((node, options))
                break
    return found
