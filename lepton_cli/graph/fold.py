"""Constant folding: what depends on nothing but constants is computed now, by onnxruntime itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from lepton_cli import runtime
from lepton_cli.errors import LeptonError
from lepton_cli.graph import io, shapes

#: A folded tensor may be this large even when what it was made from is smaller.
ALLOWED_GROWTH = 65_536
#: Tensors above this are not computed at all while folding.
LARGEST = 64_000_000

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
#: Quantized weights are meant to stay quantized.
_LEFT = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Identity"}


def fold_constants(model: ir.Model, allowed: set[str]) -> list[tuple[ir.Node, str]]:
    """Replace constant nodes of `model` (edited in place) by initializers.

    `allowed` are the node names that may be folded. Returns the folded nodes with reasons. Shapes that are known
    without running count as constants too.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    folded = fold_shapes(model, allowed)
    candidates = _candidates(model, allowed)
    if candidates:
        folded += [(node, "depends on constants only") for node in _replace(model, candidates)]
    return folded


def is_constant(value: ir.Value | None) -> bool:
    """Is this an initializer whose value no caller can override?"""
    return value is not None and value.const_value is not None and value.is_initializer() and not value.is_graph_input()


def _candidates(model: ir.Model, allowed: set[str]) -> list[ir.Node]:
    """Foldable nodes in topological order: all inputs constant, or made by foldable nodes."""
    inferred = {o.name: o for node in shapes.infer(model).graph for o in node.outputs}
    constant: set[ir.Value] = set()
    found: list[ir.Node] = []
    for node in model.graph:
        if node.name not in allowed or node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM | _LEFT:
            continue
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            continue
        inputs = [value for value in node.inputs if value is not None]
        if not inputs or not all(is_constant(value) or value in constant for value in inputs):
            continue
        if any(_bytes(inferred.get(output.name)) > LARGEST for output in node.outputs):
            continue
        found.append(node)
        constant.update(node.outputs)
    return found


def _bytes(value: ir.Value | None) -> float:
    if value is None or value.shape is None or not all(isinstance(d, int) for d in value.shape):
        return 0
    return prod(d for d in value.shape if isinstance(d, int)) * (value.dtype.itemsize if value.dtype else 4)


def _replace(model: ir.Model, candidates: list[ir.Node]) -> list[ir.Node]:
    inner = set(candidates)
    wanted = [
        output
        for node in candidates
        for output in node.outputs
        if output.name and not output.is_graph_output() and any(use.node not in inner for use in output.uses())
    ]
    values = _evaluate(model, [output.name or "" for output in wanted])
    for output in wanted:
        array = values.get(output.name or "")
        if array is None or array.nbytes > max(ALLOWED_GROWTH, _source_bytes(output)):
            continue
        replace_by_constant(model, output, array)
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


def replace_by_constant(model: ir.Model, value: ir.Value, array: np.ndarray) -> None:
    """Turn a node output into an initializer of the same name; its node becomes dead."""
    name = value.name or ""
    value.name = f"{name}/folded"
    constant = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    constant.shape = ir.Shape(array.shape)
    constant.type = value.type or ir.TensorType(ir.DataType.from_numpy(array.dtype))
    model.graph.register_initializer(constant)
    value.replace_all_uses_with(constant)


def _evaluate(model: ir.Model, names: list[str]) -> dict[str, np.ndarray]:
    """Values of constant tensors, by running just the nodes they need; those that fail are left out."""
    copy = io.clone(model)
    produced = {o.name: o for node in copy.graph for o in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(produced[name] for name in names)
    RemoveUnusedNodesPass()(copy)
    try:
        with tempfile.TemporaryDirectory() as folder:
            # The graph inputs stay declared; nothing that is computed here reads them.
            copy.graph.inputs.clear()
            session = runtime.Session(io.payload(copy, Path(folder)), threads=1, optimise=False)
            results = session.run({}, names)
    except LeptonError:
        return {}
    return {name: value for name, value in results.items() if isinstance(value, np.ndarray) and value.dtype != object}


def fold_shapes(model: ir.Model, allowed: set[str]) -> list[tuple[ir.Node, str]]:
    """`Shape`, `Size` and picks of single dimensions become constants where the dimensions are fixed."""
    inferred = shapes.infer(model)
    known = {v.name: v.shape for v in (*inferred.graph.inputs, *inferred.graph.initializers.values())}
    known |= {o.name: o.shape for node in inferred.graph for o in node.outputs}
    folded: list[tuple[ir.Node, str]] = []
    for node in list(model.graph):
        if node.name not in allowed or node.outputs[0].is_graph_output():
            continue
        dims = _constant_dims(node, known)
        if dims is not None:
            replace_by_constant(model, node.outputs[0], dims)
            folded.append((node, "its shape is fixed"))
    RemoveUnusedNodesPass()(model)
    return folded


def _constant_dims(node: ir.Node, known: dict[str | None, ir.Shape | None]) -> np.ndarray | None:
    if node.op_type in ("Shape", "Size") and node.domain == "" and node.inputs[0] is not None:
        shape = _slice_of_shape(node, known.get(node.inputs[0].name))
        if shape is None or not all(isinstance(d, int) for d in shape):
            return None
        dims = np.array([int(d) for d in shape if isinstance(d, int)], np.int64)
        return np.asarray(dims.prod(), np.int64) if node.op_type == "Size" else dims
    if node.op_type == "Gather" and len(node.inputs) > 1 and is_constant(node.inputs[1]) and node.inputs[0] is not None:
        producer, index = node.inputs[0].producer(), node.inputs[1]
        if producer is None or producer.op_type != "Shape" or producer.inputs[0] is None or index is None:
            return None
        shape = _slice_of_shape(producer, known.get(producer.inputs[0].name))
        picks = index.const_value.numpy() if index.const_value is not None else np.zeros(0)
        if shape is None or not all(-len(shape) <= int(i) < len(shape) for i in picks.flat):
            return None
        if all(isinstance(shape[int(i)], int) for i in picks.flat):
            return np.array([shape[int(i)] for i in picks.flat], np.int64).reshape(picks.shape)
    return None


def _slice_of_shape(node: ir.Node, shape: ir.Shape | None) -> list[int | ir.SymbolicDim] | None:
    if shape is None:
        return None
    start = node.attributes["start"].as_int() if "start" in node.attributes else 0
    end = node.attributes["end"].as_int() if "end" in node.attributes else None
    return list(shape)[start:end]


def names(nodes: Iterable[ir.Node]) -> set[str]:
    """Names of nodes."""
    return {node.name or "" for node in nodes}
