"""Constant folding: what depends on nothing but constants is computed now, by onnxruntime itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lepton_cli import runtime, scratch
from lepton_cli.errors import LeptonError
from lepton_cli.graph import clean, inner, shapes
from lepton_cli.graph.edit import Editor, is_constant
from lepton_cli.graph.held import stored_in_8_bits
from lepton_cli.model import io

#: A folded tensor may be this large even when what it was made from is smaller.
ALLOWED_GROWTH = 65_536
#: Tensors above this are not computed at all while folding.
LARGEST = 64_000_000

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
#: Quantized weights are meant to stay quantized.
_LEFT = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Identity"}
#: Operators whose output is about as large as their input even where its shape depends on the values.
_BOUNDED = {"NonZero", "Unique", "Compress", "NonMaxSuppression", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Cast"}
#: Sessions that may be spent on finding the nodes which onnxruntime cannot compute.
_ATTEMPTS = 16


def fold_constants(
    model: ir.Model, allowed: set[str], known: dict[str, shapes.Inferred] | None = None
) -> list[tuple[ir.Node, str]]:
    """Replace constant nodes of `model` (edited in place) by initializers.

    `allowed` are the node names that may be folded. Returns the folded nodes with reasons. Shapes that are known
    without running count as constants too. `known`: what was inferred of the model just before.
    """
    lift_constants(model)
    return fold_shapes(model, allowed, known) + _fold(model, allowed, known=known)


def expose_weights(model: ir.Model, growth: float = 1) -> None:
    """Let every weight be an initializer that no caller overrides, in place.

    Constant nodes, defaults of inputs, and what Transpose, Cast, Identity and others make of them; it may become
    `growth` times as large by that. Sizes stay computed: whoever removes channels changes them.
    """
    clean.fix_default_inputs(model)
    lift_constants(model)
    inner.settle(model, growth)
    while True:
        _fold(model, {node.name or "" for node in model.graph if node.op_type not in ("Shape", "Size")}, growth)
        idle = {node.name or "" for node in model.graph if node.inputs and is_constant(node.inputs[0])}
        if not clean.remove_no_ops(model, idle):
            return


def _fold(
    model: ir.Model, allowed: set[str], growth: float = 1, known: dict[str, shapes.Inferred] | None = None
) -> list[tuple[ir.Node, str]]:
    candidates = _candidates(model, allowed, known)
    return [(node, "depends on constants only") for node in _replace(model, candidates, growth)] if candidates else []


def lift_constants(model: ir.Model) -> None:
    """Turn Constant nodes into initializers, in subgraphs too.

    Not onnx-ir's LiftConstantsToInitializersPass: it raises TypeError for a node that names an attribute of a function
    (files with such nodes load), and its initializer shares the tensor with every copy of the model that still has the
    node, so that writing the one renames it in the others.
    """
    editor = Editor(model)
    for graph in model.graphs():
        for node in [node for node in graph if node.op_type == "Constant" and node.domain == ""]:
            output, held = node.outputs[0], _held(node)
            if held is None or output.is_graph_output() or output.name in graph.initializers:
                continue
            editor.freeze(output, held)
            graph.remove(node, safe=True)


def _held(node: ir.Node) -> ir.TensorProtocol | np.ndarray | None:
    """What a Constant node holds; `None` for single strings and for what a function's caller gives."""
    if len(node.attributes) != 1 or not (attribute := next(iter(node.attributes.values()))).name.startswith("value"):
        return None
    if attribute.is_ref():
        return None
    match attribute.type:
        case ir.AttributeType.TENSOR:
            return attribute.as_tensor()
        case ir.AttributeType.INT | ir.AttributeType.INTS:
            return np.array(attribute.value, np.int64)
        case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS:
            return np.array(attribute.value, np.float32)
        case _:
            return None


def _candidates(model: ir.Model, allowed: set[str], known: dict[str, shapes.Inferred] | None) -> list[ir.Node]:
    """Foldable nodes in topological order: all inputs constant, or made by foldable nodes.

    Shapes are inferred where they are not `known`, and only when a node depends on nothing else.
    """
    constant: set[ir.Value] = set()
    found: list[ir.Node] = []
    for node in model.graph:
        if node.name not in allowed or node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM | _LEFT:
            continue
        if stored_in_8_bits(node):
            continue
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            continue
        inputs = [value for value in node.inputs if value is not None]
        if not inputs or not all(is_constant(value) or value in constant for value in inputs):
            continue
        known = known or shapes.infer(model)
        if any(_bytes(known.get(output.name or ""), node) > LARGEST for output in node.outputs if output.name):
            continue
        found.append(node)
        constant.update(node.outputs)
    return found


def _bytes(known: shapes.Inferred | None, node: ir.Node) -> float:
    """Bytes of an output; where its shape is open, infinite unless the operator cannot enlarge its input."""
    if known is None or known.fixed is None:
        return 0 if node.op_type in _BOUNDED else math.inf
    return math.prod(known.fixed) * (known.dtype.itemsize if known.dtype else 4)


def _replace(model: ir.Model, candidates: list[ir.Node], growth: float) -> list[ir.Node]:
    inner = set(candidates)
    wanted = [
        output
        for node in candidates
        for output in node.outputs
        if output.name and not output.is_graph_output() and any(use.node not in inner for use in output.uses())
    ]
    values = _evaluate(model, [output.name or "" for output in wanted])
    editor = Editor(model)
    for output in wanted:
        array = values.get(output.name or "")
        if array is None or array.nbytes > max(ALLOWED_GROWTH, growth * _source_bytes(output)):
            continue
        editor.freeze(output, array)
    RemoveUnusedNodesPass()(model)
    left = set(model.graph)
    return [node for node in candidates if node not in left]


def _source_bytes(value: ir.Value) -> int:
    """Bytes of the initializers a value is computed from."""
    seen: set[ir.Value] = set()
    stack: list[ir.Value] = [value]
    total = 0
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        producer = current.producer()
        if current.const_value is not None:
            total += current.const_value.nbytes
        elif producer is not None:
            stack.extend(v for v in producer.inputs if v is not None)
    return total


def _evaluate(model: ir.Model, names: list[str]) -> dict[str, np.ndarray]:
    """Values of constant tensors, by running just the nodes they need; those that fail are left out."""
    found: dict[str, np.ndarray] = {}
    parts = [names]
    for _ in range(_ATTEMPTS):
        if not parts:
            break
        part = parts.pop()
        results = _run(model, part)
        if results is None and len(part) > 1:
            parts += [part[: len(part) // 2], part[len(part) // 2 :]]
        found.update(results or {})
    return found


def _run(model: ir.Model, names: list[str]) -> dict[str, np.ndarray] | None:
    """`None` when onnxruntime cannot compute one of them."""
    copy = io.clone(model)
    produced = {o.name: o for node in copy.graph for o in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(produced[name] for name in names)
    # Not RemoveUnusedNodesPass: it leaves what a removed If or Loop read from outside.
    needed = _needed(copy.graph.outputs)
    copy.graph.remove([node for node in copy.graph if node not in needed])
    read = {value.name for node in needed for value in node.inputs if value is not None}
    for name in [name for name in copy.graph.initializers if name not in read]:
        copy.graph.initializers.pop(name)
    # Nothing that is computed here reads a graph input.
    copy.graph.inputs.clear()
    try:
        with scratch.folder() as folder:
            results = runtime.Session(io.payload(copy, folder), threads=1, optimise=False).run({}, names)
    except LeptonError:
        return None
    return {name: value for name, value in results.items() if isinstance(value, np.ndarray) and value.dtype != object}


def _needed(values: Sequence[ir.Value]) -> set[ir.Node]:
    """Nodes that the values are computed by."""
    found: set[ir.Node] = set()
    waiting = [value.producer() for value in values]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [value.producer() for value in node.inputs if value is not None]
    return found


def fold_shapes(
    model: ir.Model, allowed: set[str], known: dict[str, shapes.Inferred] | None = None
) -> list[tuple[ir.Node, str]]:
    """`Shape`, `Size` and picks of single dimensions become constants where the dimensions are fixed."""
    if not any(node.op_type in ("Shape", "Size") for node in model.graph):
        return []
    known, editor = known or shapes.infer(model), Editor(model)
    folded: list[tuple[ir.Node, str]] = []
    for node in list(model.graph):
        if node.name not in allowed or not node.outputs or node.outputs[0].is_graph_output():
            continue
        dims = _constant_dims(node, known)
        if dims is not None:
            editor.freeze(node.outputs[0], dims)
            folded.append((node, "its shape is fixed"))
    RemoveUnusedNodesPass()(model)
    return folded


def _constant_dims(node: ir.Node, known: dict[str, shapes.Inferred]) -> np.ndarray | None:
    source = node.inputs[0] if node.inputs and node.domain == "" else None
    if source is None:
        return None
    if node.op_type in ("Shape", "Size"):
        shape = _slice_of_shape(node, known)
        if shape is None or None in shape:
            return None
        dims = np.array(shape, np.int64)
        return np.asarray(dims.prod(), np.int64) if node.op_type == "Size" else dims
    producer, index = source.producer(), node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type != "Gather" or producer is None or producer.op_type != "Shape" or index is None:
        return None
    shape = _slice_of_shape(producer, known)
    if shape is None or not is_constant(index) or index.const_value is None:
        return None
    picks = index.const_value.numpy()
    if not all(-len(shape) <= int(i) < len(shape) and shape[int(i)] is not None for i in picks.flat):
        return None
    return np.array([shape[int(i)] for i in picks.flat], np.int64).reshape(picks.shape)


def _slice_of_shape(node: ir.Node, known: dict[str, shapes.Inferred]) -> tuple[int | None, ...] | None:
    """The dimensions that a Shape node returns."""
    source = known.get(node.inputs[0].name or "") if node.inputs and node.inputs[0] is not None else None
    if source is None or source.shape is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    return source.shape[start:end]
