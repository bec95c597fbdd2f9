"""Concrete shapes of every tensor for given input shapes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from lepton_cli.errors import LeptonError
from lepton_cli.graph import io

Shapes = dict[str, tuple[int, ...]]


def infer(model: ir.Model) -> ir.Model:
    """A copy with the shapes and types that ONNX's own inference finds; symbolic dimensions stay symbolic."""
    copy = io.clone(model)
    for node in copy.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy).model


def concrete(model: ir.Model, feeds: Mapping[str, Sequence[int]], *, run: bool = True) -> Shapes:
    """Shape of every value of the main graph when the inputs have the shapes `feeds`.

    What inference leaves open is found by running the model once on zeros (`run=False`: left out of the result).
    Initializers are included.
    """
    copy = io.clone(model)
    for value in copy.graph.inputs:
        if value.name in feeds:
            value.shape = ir.Shape([int(d) for d in feeds[value.name or ""]])
    for value in copy.graph.outputs:
        value.shape = None
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


def default_feeds(model: ir.Model, batch: int = 1, other: int = 16, known: Mapping[str, Sequence[int]] | None = None) -> Shapes:
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
    zeros = {info.name: np.zeros(feeds[info.name], _dtype(info.dtype)) for info in io.inputs(model) if info.name in feeds}
    try:
        with tempfile.TemporaryDirectory() as folder:
            session = runtime.Session(io.payload(copy, Path(folder)), threads=1, optimise=False)
            results = session.run(zeros, wanted)
    except LeptonError:
        return {}
    return {name: tuple(value.shape) for name, value in results.items() if isinstance(value, np.ndarray)}


def _dtype(name: str) -> np.dtype:  # type: ignore[type-arg]
    return np.dtype(object) if name == "str" else np.dtype(name)


def opset(model: ir.Model) -> int:
    """Version of the standard operator set the model uses (0: none)."""
    return int(model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 0)))


NEWEST_OPSET = onnx.defs.onnx_opset_version()
