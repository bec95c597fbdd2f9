"""What differs between two models: operators, inputs and outputs, and the layers' widths and types. Pure.

Layers are matched by the name of their node; tools that quantize append `_quant`, which does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import onnx_ir as ir

from lepton_cli.graph.details import GraphDiff, LayerChange
from lepton_cli.model import io
from lepton_cli.tensors import TensorInfo

_SUFFIXES = ("_quant", "_quantized", "_Q4", "_Q8", "_matmul_Q4")


class LayerLike(Protocol):
    """What is compared of a node that carries weights (`measure.results.Layer` is one)."""

    @property
    def node(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def parameters(self) -> int: ...
    @property
    def weight_shape(self) -> tuple[int, ...]: ...


def diff(
    before: ir.Model, after: ir.Model, layers_before: Sequence[LayerLike], layers_after: Sequence[LayerLike]
) -> GraphDiff:
    """Operators, inputs and outputs that differ, and layers that changed, were removed or added."""
    rows = _layers(layers_before, layers_after)
    return GraphDiff(
        nodes=(_node_count(before), _node_count(after)),
        operators=_operators(before, after),
        inputs=_signature(io.inputs(before), io.inputs(after)),
        outputs=_signature(io.outputs(before), io.outputs(after)),
        layers=tuple(rows),
        layers_same=len(layers_before) - sum(row.change != "added" for row in rows),
    )


def _node_count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())


def _operators(before: ir.Model, after: ir.Model) -> dict[str, tuple[int, int]]:
    first, second = (Counter(_operator(node) for node in model.graph.all_nodes()) for model in (before, after))
    return {name: (first[name], second[name]) for name in sorted({*first, *second}) if first[name] != second[name]}


def _operator(node: ir.Node) -> str:
    """The operator with its domain, unless that is ONNX's own."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _signature(before: Sequence[TensorInfo], after: Sequence[TensorInfo]) -> tuple[tuple[str, ...], ...]:
    """Both sides in words where they differ, else nothing."""
    sides = (tuple(map(str, before)), tuple(map(str, after)))
    return sides if sides[0] != sides[1] else ()


def _layers(before: Sequence[LayerLike], after: Sequence[LayerLike]) -> list[LayerChange]:
    """Rows in the order of the first model; what only the second has comes last."""
    second = {_name(layer): layer for layer in after}
    rows = []
    for layer in before:
        match = second.pop(_name(layer), None)
        if match is None or _facts(layer) != _facts(match):
            rows.append(_row(layer, match))
    return [*rows, *(_row(None, layer) for layer in second.values())]


def _name(layer: LayerLike) -> str:
    name = layer.node
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def _facts(layer: LayerLike) -> tuple[object, ...]:
    return layer.op, layer.dtype, tuple(layer.weight_shape), layer.parameters


def _row(before: LayerLike | None, after: LayerLike | None) -> LayerChange:
    named = before or after
    assert named is not None
    return LayerChange(
        node=named.node,
        change="removed" if after is None else "added" if before is None else "changed",
        op=(before and before.op, after and after.op),
        dtype=(before and before.dtype, after and after.dtype),
        shape=(before and tuple(before.weight_shape), after and tuple(after.weight_shape)),
        parameters=(before and before.parameters, after and after.parameters),
    )
