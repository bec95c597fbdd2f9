"""Dynamic int8 for models too large for onnxruntime's writer: the same operators, weights read and written in slabs.

`MatMul(x, W)` becomes DynamicQuantizeLinear, MatMulInteger, Cast and Mul, which onnxruntime fuses into one kernel.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lepton_cli.graph.edit import Editor
from lepton_cli.model import io
from lepton_cli.quantize import blocks, tables
from lepton_cli.quantize.store import WeightStore


def dynamic(
    model: ir.Model, names: Collection[str], limit: int, store: WeightStore, lookups: Collection[str] = ()
) -> ir.Model:
    """A copy whose MatMuls and Gemms `names` multiply in int8, one scale per output column within [-limit, limit].

    `lookups`: Gathers that may read the codes of such a product, where they look rows up in its weight.
    """
    copy = io.clone(model)
    editor = Editor(copy)
    shared: dict[str, list[ir.Value]] = {}
    for node in list(copy.graph):
        if node.name in names and node.op_type in ("MatMul", "Gemm") and node.inputs[0] is not None:
            source = node.inputs[0]
            if source.name not in shared:
                shared[source.name or ""] = _measured(editor, node, source)
            _replace(editor, node, shared[source.name or ""], limit, store, lookups)
    RemoveUnusedNodesPass()(copy)
    return copy


def _measured(editor: Editor, before: ir.Node, source: ir.Value) -> list[ir.Value]:
    """The tensor quantized while running: codes, scale, zero point."""
    node = ir.Node("", "DynamicQuantizeLinear", [source], num_outputs=3, name=f"{source.name}.quantize")
    for value, suffix in zip(node.outputs, ("codes", "scale", "zero_point"), strict=True):
        value.name = f"{source.name}.{suffix}"
    editor.insert_before(before, [node])
    return list(node.outputs)


def tied(node: ir.Node, lookups: Collection[str]) -> list[ir.Node]:
    """Those Gathers in the weight of a product, where nothing besides them and the product reads it."""
    weight, by_rows = blocks.held(node)
    readers = [user for user, _ in weight.uses()] if weight is not None and by_rows else []
    others = [reader for reader in readers if reader is not node and reader is not node.inputs[1].producer()]  # type: ignore[union-attr]
    return others if all(tables.is_lookup(reader, lookups) for reader in others) else []


def _replace(
    editor: Editor,
    node: ir.Node,
    measured: list[ir.Value],
    limit: int,
    store: WeightStore,
    lookups: Collection[str],
) -> None:
    weight, by_rows = blocks.held(node)
    assert weight is not None
    assert weight.const_value is not None
    codes, scales = _codes(weight.const_value, by_rows, limit, store.empty)
    rows_of = tied(node, lookups)
    if rows_of:
        codes = np.ascontiguousarray(codes.T)
    name = node.name or ""
    inputs = [
        editor.constant(f"{name}.{suffix}", store.keep(array))
        for suffix, array in (("codes", codes), ("scales", scales), ("zero_point", np.zeros((), np.int8)))
    ]
    if rows_of:
        each = tables.scale_each_row(editor, inputs[1])
        for reader in rows_of:
            tables.look_up(editor, reader, inputs[0], each)
        inputs[0] = tables.turned(editor, inputs[0])
    x, x_scale, x_zero = measured
    product = ir.node("MatMulInteger", [x, inputs[0], x_zero, inputs[2]], name=name)
    cast = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.cast")
    factor = ir.node("Mul", [x_scale, inputs[1]], name=f"{name}.factor")
    made = [product, cast, factor, ir.node("Mul", [cast.outputs[0], factor.outputs[0]], name=f"{name}.scale")]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        made.append(ir.node("Add", [made[-1].outputs[0], node.inputs[2]], name=f"{name}.bias"))
    for part in made[:-1]:
        part.outputs[0].name = f"{part.name}.out"
    editor.put(node, made)


def _codes(
    tensor: ir.TensorProtocol, transposed: bool, limit: int, empty: bool
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights [K, N] as int8 and one scale per column, from two passes over slabs of rows; `empty`: only shapes."""
    rows, columns = blocks.dims(tensor)
    if empty:
        inner, outer = (columns, rows) if transposed else (rows, columns)
        return np.zeros((inner, outer), np.int8), np.ones(outer, np.float32)
    widest = np.zeros(rows if transposed else columns, dtype=np.float32)
    for start, slab in blocks.slabs(tensor, 1):
        if transposed:
            widest[start : start + len(slab)] = np.abs(slab).max(axis=1)
        else:
            widest = np.maximum(widest, np.abs(slab).max(axis=0))
    scales = np.where(widest > 0, widest / limit, 1).astype(np.float32)
    codes = np.empty((columns, rows) if transposed else (rows, columns), dtype=np.int8)
    for start, slab in blocks.slabs(tensor, 1):
        if transposed:
            codes[:, start : start + len(slab)] = np.rint(slab / scales[start : start + len(slab), None]).T
        else:
            codes[start : start + len(slab)] = np.rint(slab / scales)
    return codes, scales
