"""Concrete shapes of every tensor for given input shapes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from lepton_cli.errors import LeptonError
from lepton_cli.graph import io

Shapes = dict[str, tuple[int, ...]]


#: Initializers above this many bytes stay out of the message that onnx infers shapes from: it is copied twice.
_LARGE = 1024


def infer(model: ir.Model) -> ir.Model:
    """A copy with the shapes and types that ONNX's own inference finds; symbolic dimensions stay symbolic.

    Shapes stored in the model are dropped first, those of outputs too: exporters leave wrong ones, and nobody enforces
    them. Where inference fails, shapes stay open.
    """
    copy = io.clone(model)
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    light = io.clone(copy)
    for name, value in list(light.graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > _LARGE:
            value.shape, value.dtype = ir.Shape(value.const_value.shape.numpy()), value.const_value.dtype
            value.const_value = None
            light.graph.initializers.pop(name)
            if not value.is_graph_input():
                light.graph.inputs.append(value)
        elif isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=name)
    try:
        found = onnx.shape_inference.infer_shapes(io.to_proto(light), data_prop=True)
    except Exception:  # onnx raises its own and protobuf's types; an open shape is an answer too
        return copy
    types = {info.name: info.type.tensor_type for info in (*found.graph.value_info, *found.graph.output)}
    for node in copy.graph:
        for value in node.outputs:
            kind = types.get(value.name or "")
            if kind is not None and kind.HasField("shape"):
                value.shape = ir.Shape(
                    [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
                )
            if kind is not None and kind.elem_type and value.dtype is None:
                value.dtype = ir.DataType(kind.elem_type)
    return copy


def concrete(model: ir.Model, feeds: Mapping[str, Sequence[int]], *, run: bool = True) -> Shapes:
    """Shape of every value of the main graph when the inputs have the shapes `feeds`.

    What inference leaves open is found by running the model once on zeros (`run=False`: left out of the result).
    Initializers are included.
    """
    copy = io.clone(model)
    for value in copy.graph.inputs:
        if value.name in feeds:
            value.shape = ir.Shape([int(d) for d in feeds[value.name or ""]])
    inferred = infer(copy)
    shapes: Shapes = {}
    missing: list[str] = []
    for name, value in _values(inferred):
        dims = value.const_value.shape if value.const_value is not None else value.shape
        if dims is not None and all(isinstance(d, int) for d in dims):
            shapes[name] = tuple(int(d) for d in dims if isinstance(d, int))
        else:
            missing.append(name)
    if missing and run:
        shapes.update(_by_running(model, feeds, missing))
    return shapes


def default_feeds(
    model: ir.Model, batch: int = 1, other: int = 16, known: Mapping[str, Sequence[int]] | None = None
) -> Shapes:
    """Input shapes to look at a model with: `known` ones (from data), else `batch` and `other` for open dimensions."""
    known = known or {}
    return {info.name: tuple(known.get(info.name) or info.concrete(batch, other)) for info in io.inputs(model)}


def _values(model: ir.Model) -> list[tuple[str, ir.Value]]:
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs]
    return [(value.name, value) for value in values if value.name]


def _by_running(model: ir.Model, feeds: Mapping[str, Sequence[int]], missing: Sequence[str]) -> Shapes:
    from lepton_cli import runtime

    copy = io.clone(model)
    produced = {o.name: o for node in copy.graph for o in node.outputs}
    present = {value.name for value in copy.graph.outputs}
    wanted = [name for name in missing if name in produced]
    copy.graph.outputs.extend(produced[name] for name in wanted if name not in present)
    zeros = {
        info.name: np.zeros(feeds[info.name], _dtype(info.dtype)) for info in io.inputs(model) if info.name in feeds
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            session = runtime.Session(io.payload(copy, Path(folder)), threads=1, optimise=False)
            results = session.run(zeros, wanted)
    except LeptonError:
        return {}
    return {name: tuple(value.shape) for name, value in results.items() if isinstance(value, np.ndarray)}


def _dtype(name: str) -> np.dtype:
    return np.dtype(object) if name == "str" else np.dtype(name)


def opset(model: ir.Model) -> int:
    """Version of the standard operator set the model uses (0: none)."""
    return int(model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 0)))
