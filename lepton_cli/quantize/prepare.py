"""Brings a float model into the shape that quantization expects, without changing what it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes import common

from lepton_cli.errors import ModelError
from lepton_cli.graph import batch_norm, clean, fold, shapes
from lepton_cli.graph.edit import Editor, array_of, weight_of
from lepton_cli.graph.facts import quantized_nodes
from lepton_cli.graph.shapes import opset
from lepton_cli.model import io
from lepton_cli.probe.rewrites import Rewrite, held
from lepton_cli.quantize import half
from lepton_cli.runtime import one_line
from lepton_cli.step import Context

#: Opset that older models are converted to, and the least one that quantized operators work in.
MODERN_OPSET = 13
LEAST_OPSET = 11
#: Without any of these there is nothing to quantize, whatever the opset.
CANDIDATES = frozenset(
    {"Conv", "Gemm", "MatMul", "Gather", "Attention", "LSTM", "ConvTranspose", "EmbedLayerNormalization"}
)
#: Weights kept in float16 behind a Cast are twice as large before they are a fraction of it.
STORED_SMALL = 2
#: Quantized operators that compute in float.
_FLOAT_INSIDE = ("MatMulNBits", "Mul")
#: Tensors with fewer values take no room worth saving.
LEAST_SHARED = 1024
#: Folding one thing uncovers another.
ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A private copy of the model. `names` are the nodes of the model as the user knows them."""

    model: ir.Model
    names: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def refuse_quantized(model: ir.Model, *, weights_only: bool = False) -> None:
    """Raise ModelError when the model holds quantized operators already: for steps that need a float model, and for
    those that find nothing left in float. `weights_only`: operators that compute in float from quantized weights are
    let pass."""
    found = [node for node in quantized_nodes(model) if not weights_only or node.op_type not in _FLOAT_INSIDE]
    if found:
        raise ModelError(
            "model.already-quantized",
            f"the model is quantized already: {len(found)} quantized operators, the first is "
            f"`{found[0].name}` ({found[0].op_type})",
            hint="start from the float model, or put this step before those that quantize",
        )


def prepare(model: ir.Model, context: Context, *further: Rewrite) -> Prepared:
    """A copy with constants computed, dead parts removed and BatchNormalization folded into the layer before it.

    `further` rewrites follow. All are held to compute what the model computes, see `rewrites.held`.
    """
    names = tuple(node.name or "" for node in model.graph.all_nodes())
    norms: list[tuple[ir.Node, str]] = []

    def fold_norms(copy: ir.Model) -> None:
        norms[:] = _fold(copy)
        shapes.annotate(copy)

    def compute(copy: ir.Model) -> None:
        _lift(copy)
        _fold(copy, norms=False)

    first = (
        Rewrite("conversion to opset 13", _modern, needed=True, hint="export the model again with opset 13 or later"),
        Rewrite("constants computed", compute),
        Rewrite("BatchNormalization folded", fold_norms),
    )
    exposed = io.clone(model)
    _lift(exposed)
    wide = half.widen(exposed)
    made, warnings = held(model if wide is exposed else wide, (*first, *further), context)
    warnings += () if wide is exposed else ("float16 became float32: only what is quantized gets smaller",)
    warnings += tuple(f"BatchNormalization `{node.name}` stays unfolded: {reason}" for node, reason in norms[:3])
    return Prepared(made, names, warnings)


def lifted(model: ir.Model) -> ir.Model:
    """A copy of a modern opset whose constants are initializers. Raises ModelError where onnx cannot convert it."""
    copy = _modern(model)
    _lift(copy)
    return half.widen(copy)


def cleaned(model: ir.Model) -> ir.Model:
    """The copy that `prepare` makes, unchecked."""
    copy = lifted(model)
    _fold(copy)
    shapes.annotate(copy)
    return copy


def _lift(model: ir.Model) -> None:
    fold.expose_weights(model, growth=STORED_SMALL)


def _fold(model: ir.Model, norms: bool = True) -> list[tuple[ir.Node, str]]:
    """Compute and fold all that can be, in place; the BatchNormalizations that are left, with reasons."""
    every = {node.name or "" for node in model.graph.all_nodes()}
    left: list[tuple[ir.Node, str]] = []
    for _ in range(ROUNDS):
        count = len(clean.remove_unused(model)) + len(clean.remove_no_ops(model, every))
        count += len(fold.fold_constants(model, every))
        if norms:
            folded = batch_norm.fold_batch_norm(model, every)
            left, count = folded.left, count + len(folded.nodes)
        if not count:
            break
    return left


def _modern(model: ir.Model) -> ir.Model:
    """A copy of at least opset 11: older ones know no QuantizeLinear, and onnxruntime cannot fuse around it."""
    if opset(model) >= LEAST_OPSET or not any(node.op_type in CANDIDATES for node in model.graph.all_nodes()):
        return io.clone(model)
    proto = io.to_proto(model)
    try:
        made = io.from_proto(onnx.version_converter.convert_version(proto, MODERN_OPSET))
    except Exception as error:  # the converter raises whatever its C++ code throws, or leaves an invalid graph
        raise ModelError(
            "model.opset",
            f"opset {opset(model)} is too old for quantized operators, and onnx cannot convert the model",
            cause=one_line(error),
            hint="export the model again with opset 13 or later",
        ) from error
    made.ir_version = max(made.ir_version or 0, 8)
    io.name_nodes(made)
    return made


def matmul_to_gemm(model: ir.Model) -> None:
    """Join MatMul + bias into Gemm, in place; the Gemm keeps the MatMul's name.

    onnxruntime does so by itself, but before it looks for int8, and then finds a Gemm whose bias is not quantized. That
    includes inputs of more dimensions where all are known: it puts a Reshape before and behind, and so does this, also
    where one dimension is open. All that read one tensor read it through one Reshape, to be rounded once.
    """
    editor = Editor(model)
    flat: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        data, weight = (node.inputs[0], node.inputs[1]) if node.op_type == "MatMul" else (None, None)
        result = node.outputs[0]
        if data is None or weight is None or weight.const_value is None or len(result.uses()) != 1:
            continue
        shape = None if data.shape is None else [dim if isinstance(dim, int) else -1 for dim in data.shape]
        if shape is None or len(weight.const_value.shape) != 2 or result.is_graph_output():
            continue
        if len(shape) < 2 or (len(shape) > 2 and (0 in shape or shape[:-1].count(-1) > 1)):
            continue
        add = next(iter(result.uses())).node
        bias = next((value for value in add.inputs if value is not result), None) if add.op_type == "Add" else None
        if bias is None or bias.const_value is None or add.graph is not node.graph:
            continue
        inner, outer = weight.const_value.shape.numpy()
        if tuple(bias.const_value.shape) != (outer,):
            continue
        if len(shape) == 2:
            editor.put(add, [ir.node("Gemm", [data, weight, bias], name=node.name)], also=[node])
            continue
        if data not in flat:
            before = data.producer()
            alone = before is not None and before.op_type == "Reshape" and len(data.uses()) == 1
            source = before.inputs[0] if before is not None and alone and not data.is_graph_output() else data
            assert source is not None
            flat[data] = _reshaped(editor, source, [-1, inner], f"{node.name}_rows")
            rows = flat[data].producer()
            assert rows is not None
            editor.insert_before(node, [rows])
        gemm = ir.node("Gemm", [flat[data], weight, bias], name=node.name)
        gemm.outputs[0].type = result.type
        back = _reshaped(editor, gemm.outputs[0], [*shape[:-1], outer], f"{node.name}_back").producer()
        assert back is not None
        editor.put(add, [gemm, back], also=[node])
        for use in [use for use in back.outputs[0].uses() if use.node.op_type == "Reshape" and use.idx == 0]:
            wanted = array_of(use.node)
            if wanted is not None and 0 not in wanted:
                use.node.replace_input_with(0, gemm.outputs[0])
    common.RemoveUnusedNodesPass()(model)


def _reshaped(editor: Editor, value: ir.Value, shape: list[int], name: str) -> ir.Value:
    """The result of a Reshape that is not in the graph yet."""
    node = ir.node("Reshape", [value, editor.constant(f"{name}_shape", np.array(shape, np.int64))], name=name)
    node.outputs[0].type = value.type
    return node.outputs[0]


def share(model: ir.Model) -> None:
    """Store once, in place, what several nodes read after all: where weights of its own for each came out equal."""
    clean.share_initializers(model, LEAST_SHARED)


def unshare(model: ir.Model, nodes: Collection[str]) -> None:
    """Give each of `nodes` weights of its own, in place: the writer would quantize a shared one for all its readers."""
    editor = Editor(model)
    for node in model.graph:
        if node.name not in nodes:
            continue
        for index, value in enumerate(node.inputs[1:], start=1):
            if value is None or value.const_value is None or len(value.uses()) == 1:
                continue
            editor.give(node, index, value.const_value, f"{value.name}.{node.name}")


def gemm_to_matmul(model: ir.Model, names: set[str]) -> None:
    """Rewrite the Gemms `names` (no transA, no alpha, beta) as MatMul + Add, in place; the MatMul keeps the name."""
    editor = Editor(model)
    for node in list(model.graph):
        weight = weight_of(node)
        if node.name not in names or node.op_type != "Gemm" or weight is None or weight.const_value is None:
            continue
        if node.attributes.get_int("transB", 0):
            weight = editor.constant(f"{weight.name}_{node.name}_T", weight.const_value.numpy().T)
        made = [ir.node("MatMul", [node.inputs[0], weight], name=node.name)]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            made.append(ir.node("Add", [made[0].outputs[0], bias], name=f"{node.name}_bias"))
        product = made[0].outputs[0]
        product.name = f"{node.name}_product"
        product.type, product.shape = node.outputs[0].type, node.outputs[0].shape
        editor.put(node, made)
    common.RemoveUnusedNodesPass()(model)
