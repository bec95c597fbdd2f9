"""Embedding tables in 8 bits: a quarter of the bytes.

By blocks, rows looked up and scaled in one kernel; or, where a product in int8 reads the same table (first and last
layer of a language model), as the codes of that product, with one scale per row.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lepton_cli.graph import clean
from lepton_cli.graph.edit import Editor, is_constant
from lepton_cli.model import io
from lepton_cli.probe.distances import decibel
from lepton_cli.quantize import blocks
from lepton_cli.quantize.store import WeightStore
from lepton_cli.step import Decision

if TYPE_CHECKING:
    from collections.abc import Collection

#: Smaller tables are not worth an operator that few runtimes know.
LEAST_SIZE = 100_000
#: Codes this near to a table are its own, rounded; others have been scaled or equalised.
SAME_DB = 20.0


def shrink(model: ir.Model, allowed: Collection[str]) -> tuple[ir.Model, list[Decision]]:
    """A copy whose float tables are in 8 bits: those of an int8 product, and large ones that a Gather of whole rows
    reads."""
    from lepton_cli.quantize.spec import QuantizeWeights

    options = QuantizeWeights(step="quantize.weights", bits=8, block_size=128)
    copy = io.clone(model)
    clean.tie_tables(copy)
    editor = Editor(copy)
    decisions = _tied(editor, allowed)
    for node in [node for node in copy.graph if node.name in allowed and _large(node)]:
        if blocks.refused(node, options) is not None:
            continue
        size = blocks.block_size(node, options)
        ratio = blocks.replace(editor, node, options, WeightStore(None))
        reason = f"table in 8 bits, blocks of {size} ({ratio:.0f} dB)"
        decisions.append(Decision(node=node.name or "", op="Gather", action="quantized", reason=reason))
        copy.graph.opset_imports[blocks.MICROSOFT] = 1
    RemoveUnusedNodesPass()(copy)
    return copy, decisions


def _large(node: ir.Node) -> bool:
    """A lookup in a large table that nothing else reads."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    held = None if table is None else table.const_value
    return table is not None and held is not None and held.size >= LEAST_SIZE and len(table.uses()) == 1


@dataclasses.dataclass(frozen=True)
class _Codes:
    """A table in int8: `codes` [rows, width], or turned, and one scale per row. `ratio`: signal to noise in dB."""

    codes: ir.Value
    scales: ir.Value
    turned: bool
    ratio: float


def is_lookup(node: ir.Node, allowed: Collection[str]) -> bool:
    """A Gather of whole rows that may be changed."""
    return node.op_type == "Gather" and node.name in allowed and not node.attributes.get_int("axis", 0)


def _tied(editor: Editor, allowed: Collection[str]) -> list[Decision]:
    """Let lookups read the codes of an int8 product with the same table."""
    decisions = []
    tables = {
        node.inputs[0]: None for node in editor.model.graph if node.op_type == "Gather" and is_constant(node.inputs[0])
    }
    for table in tables:
        users = [user for user, _ in table.uses()] if table is not None else []
        lookups = all(
            u.op_type == "Gather" and u.name in allowed and not u.attributes.get_int("axis", 0) for u in users
        )
        found = _codes(editor.model, table) if table is not None and lookups else None
        if found is None:
            continue
        codes, scales = _by_rows(editor, found)
        for node in users:
            look_up(editor, node, codes, scales)
            reason = f"table in 8 bits, one scale per row, stored once with the product by it ({found.ratio:.0f} dB)"
            decisions.append(Decision(node=node.name or "", op="Gather", action="quantized", reason=reason))
    return decisions


def _codes(model: ir.Model, table: ir.Value) -> _Codes | None:
    """What a writer made of the same numbers for a product: by the names that it gives, held to the values."""
    held = table.const_value
    if held is None or held.dtype != ir.DataType.FLOAT or len(held.shape) != 2:
        return None
    exact = held.numpy()
    for value in model.graph.initializers.values():
        if (
            value.dtype != ir.DataType.INT8
            or not (value.name or "").endswith("_quantized")
            or value.const_value is None
        ):
            continue
        scales = model.graph.initializers.get(f"{(value.name or '').removesuffix('_quantized')}_scale")
        codes = value.const_value.numpy()
        for turned, rows in ((False, codes), (True, codes.T)):
            if scales is None or scales.const_value is None or rows.shape != exact.shape:
                continue
            scale = scales.const_value.numpy()
            if scale.shape != exact.shape[:1]:
                continue
            noise = np.square(rows * scale[:, None] - exact).sum(dtype=np.float64)
            ratio = decibel(float(np.square(exact).sum(dtype=np.float64)), float(noise))
            if ratio >= SAME_DB:
                return _Codes(value, scales, turned, ratio)
    return None


def _by_rows(editor: Editor, found: _Codes) -> tuple[ir.Value, ir.Value]:
    """Codes [rows, width] and scales [rows, 1]; those of the product are computed from them, or the other way round."""
    codes, scales = found.codes, scale_each_row(editor, found.scales)
    if found.turned:
        assert codes.const_value is not None
        rows = editor.constant(f"{codes.name}.rows", np.ascontiguousarray(codes.const_value.numpy().T))
        codes.replace_all_uses_with(turned(editor, rows))
        del editor.model.graph.initializers[codes.name or ""]
        codes = rows
    return codes, scales


def turned(editor: Editor, codes: ir.Value) -> ir.Value:
    """Codes [rows, width] as [width, rows]: runtimes compute that once, when they load the model."""
    return _first(editor, ir.node("Transpose", [codes], {"perm": [1, 0]}, name=f"{codes.name}.turned"))


def scale_each_row(editor: Editor, scales: ir.Value) -> ir.Value:
    """Scales [rows] as [rows, 1]."""
    shape = editor.constant(f"{scales.name}.shape", np.array([-1, 1], np.int64))
    return _first(editor, ir.node("Reshape", [scales, shape], name=f"{scales.name}.rows"))


def _first(editor: Editor, node: ir.Node) -> ir.Value:
    editor.insert_before(next(iter(editor.model.graph)), [node])
    return node.outputs[0]


def look_up(editor: Editor, node: ir.Node, codes: ir.Value, scales: ir.Value) -> None:
    """Let a Gather of whole rows pick them from codes [rows, width] and scales [rows, 1]."""
    name, parts = node.name or "", {"codes": codes, "scales": scales}
    picked = [ir.node("Gather", [part, node.inputs[1]], name=f"{name}.{what}") for what, part in parts.items()]
    cast = ir.node("Cast", [picked[0].outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.cast")
    scaled = ir.node("Mul", [cast.outputs[0], picked[1].outputs[0]], name=name)
    editor.put(node, [*picked, cast, scaled])
