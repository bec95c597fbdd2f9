"""What channel analysis must know before it starts: concrete shapes, open dimensions, shape arithmetic made literal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lepton_cli import scratch
from lepton_cli.coupling import targets
from lepton_cli.coupling.targets import Looks
from lepton_cli.errors import LeptonError
from lepton_cli.graph import fold, shapes
from lepton_cli.graph.edit import Editor, is_constant, weight_of
from lepton_cli.graph.settle import settle
from lepton_cli.graph.sized import SHAPE_INPUTS, from_data, steering
from lepton_cli.model import io

LONGEST_AXIS = 10_000_000


@dataclasses.dataclass(frozen=True)
class KnownShapes:
    """Concrete shapes for one input size, and which (value, axis) positions change with another size."""

    shapes: Mapping[str, tuple[int, ...]]
    open: frozenset[tuple[str, int]]

    def with_weights(self, model: ir.Model) -> KnownShapes:
        """The same, and the shapes of initializers that the model has by now."""
        held = {name: value.const_value for name, value in model.graph.initializers.items()}
        made = {name: tuple(tensor.shape.numpy()) for name, tensor in held.items() if tensor is not None}
        return dataclasses.replace(self, shapes={**self.shapes, **_followed(made)})


def prepare(model: ir.Model, feeds: Mapping[str, Sequence[int]], *, run: bool = True) -> tuple[ir.Model, KnownShapes]:
    """A copy with constants as initializers and size-independent shape arithmetic as literals, and its facts.

    `feeds` are input shapes to look at the model with. Open dimensions are found by a second look at other sizes.
    `run=False`: the model is not run just for that; what follows from the sizes alone is known all the same.
    """
    copy = io.clone(model)
    fold.expose_weights(copy)
    _own_biases(copy)
    wanted = _computed_shape_inputs(copy)
    first, second = dict(feeds), _other_sizes(copy, feeds, run)
    here, one = _looked(copy, first, wanted, run)
    there, two = _looked(copy, second, wanted, run) if second else (here, one)
    if wanted:
        editor, computed = Editor(copy), {o.name: o for node in copy.graph for o in node.outputs}
        for name in wanted:
            if name in one and (not second or (name in two and np.array_equal(one[name], two[name]))):
                _make_literal(editor, computed[name], one[name])
        RemoveUnusedNodesPass()(copy)
    here = _followed(here)
    if targets.write(copy, Looks(here, there, _all_changed(copy, first, second))):
        RemoveUnusedNodesPass()(copy)
    opened = {
        (name, axis)
        for name, shape in here.items()
        if len(there.get(name, ())) == len(shape)
        for axis, size in enumerate(shape)
        if there[name][axis] != size
    }
    return copy, KnownShapes(here, frozenset(opened))


def _own_biases(model: ir.Model) -> None:
    """A bias for every layer that reads one, in place: exporters store equal ones (zeros) once for layers that share
    nothing else, and for normalisations. Layers that share their weights keep what they share.
    """
    editor = Editor(model)
    for name, value in list(model.graph.initializers.items()):
        tensor, uses = value.const_value, list(value.uses())
        if len(uses) < 2 or tensor is None or not is_constant(value) or len(tensor.shape) != 1:
            continue
        layers = [(node, index, weight) for node, index in uses if (weight := _weight_beside(node, index)) is not None]
        if len({weight for *_, weight in layers}) == len(layers):
            for node, index, _ in layers[len(layers) == len(uses) :]:
                editor.give(node, index, tensor, f"{name}__{node.name}")


def _weight_beside(node: ir.Node, index: int) -> ir.Value | None:
    """The weight of the layer to which this input is a bias."""
    if node.op_type == "Add" and len(node.inputs) == 2:
        other = node.inputs[1 - index]
        producer = None if other is None else other.producer()
        return weight_of(producer) if producer is not None and producer.op_type == "MatMul" else None
    return weight_of(node) if node.op_type in ("Conv", "ConvTranspose", "Gemm") and index == 2 else None


def _looked(
    model: ir.Model, feeds: Mapping[str, Sequence[int]], wanted: Sequence[str], run: bool
) -> tuple[shapes.Shapes, dict[str, NDArray[Any]]]:
    """Shapes for these inputs, and the wanted values."""
    if not run:
        known, values = settle(model, feeds)
        return known, {name: values[name] for name in wanted if name in values}
    return shapes.concrete(model, feeds), _values(model, feeds, wanted) if wanted else {}


def _followed(found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Every position of an axis is followed: shapes with an absurd length, as attackers write, stay unknown."""
    return {name: shape for name, shape in found.items() if max(shape, default=0) <= LONGEST_AXIS}


def _computed_shape_inputs(model: ir.Model) -> list[str]:
    """Names of values that steer shapes and are computed by nodes, from sizes and constants alone.

    What follows from the data that is fed (a number of samples to take, positions found by NonZero) is no literal.
    """
    fed = from_data(model).values
    wanted = (value for node in model.graph for value in steering(node) if value.producer() and value not in fed)
    return list(dict.fromkeys(value.name for value in wanted if value.name))


def _other_sizes(model: ir.Model, feeds: Mapping[str, Sequence[int]], run: bool) -> dict[str, tuple[int, ...]] | None:
    """Input shapes that differ from `feeds` in every open dimension the model really accepts; `None` without any.

    Axes of one name stay equal. Larger sizes are tried first, then shorter lengths (a table may end where the data
    does); where the model does not run with all of them changed, each is tried for itself.
    """
    places: dict[object, list[tuple[str, int]]] = {}
    for info in io.inputs(model):
        if info.name in feeds and info.shape is not None and len(info.shape) == len(feeds[info.name]):
            for axis, dim in enumerate(info.shape):
                if not isinstance(dim, int):
                    places.setdefault(dim or (info.name, axis), []).append((info.name, axis))

    batch = {name for name, held in places.items() if any(axis == 0 for _, axis in held)}

    def changed(names: Iterable[object], smaller: Collection[object] = ()) -> dict[str, tuple[int, ...]]:
        sizes = {name: list(shape) for name, shape in feeds.items()}
        for name in names:
            for held, axis in places[name]:
                size = sizes[held][axis]
                # Twice and one where it can be a number of samples: half of it is another number too.
                sizes[held][axis] = max(1, size // 2) if name in smaller else 2 * size + (name in batch)
        return {name: tuple(shape) for name, shape in sizes.items()}

    if not places or not run or _runs(model, changed(places)):
        return changed(places) if places else None
    lengths = places.keys() - batch
    if lengths and _runs(model, changed(places, lengths)):
        return changed(places, lengths)
    accepted: list[object] = []
    smaller: set[object] = set()
    for name in places:
        if _runs(model, changed([*accepted, name], smaller)):
            accepted.append(name)
        elif _runs(model, changed([*accepted, name], {*smaller, name})):
            accepted.append(name)
            smaller.add(name)
    return changed(accepted, smaller) if accepted else None


def _all_changed(
    model: ir.Model, first: Mapping[str, Sequence[int]], second: Mapping[str, Sequence[int]] | None
) -> bool:
    """Does every size that is open differ between these feeds?"""
    return second is not None and all(
        isinstance(dim, int) or first[info.name][axis] != second[info.name][axis]
        for info in io.inputs(model)
        if info.name in first and info.shape is not None
        for axis, dim in enumerate(info.shape)
    )


def _runs(model: ir.Model, feeds: Mapping[str, Sequence[int]]) -> bool:
    return bool(_values(model, feeds, [model.graph.outputs[0].name or ""]))


def _values(model: ir.Model, feeds: Mapping[str, Sequence[int]], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Values of `names` for inputs of zeros; empty when the model does not run at these sizes."""
    from lepton_cli import runtime

    if any(math.prod(shape) > shapes.MOST_VALUES for shape in feeds.values()):
        return {}
    copy = io.clone(model)
    produced = {o.name: o for node in copy.graph for o in node.outputs}
    present = {value.name for value in copy.graph.outputs}
    copy.graph.outputs.extend(produced[name] for name in names if name not in present)
    zeros = {
        info.name: np.zeros(tuple(feeds[info.name]), object if info.dtype == "str" else info.dtype)
        for info in io.inputs(model)
        if info.name in feeds
    }
    try:
        with scratch.folder() as folder:
            session = runtime.Session(io.payload(copy, folder), threads=1, optimise=False)
            return dict(session.run(zeros, names))
    except LeptonError:
        return {}


def _make_literal(editor: Editor, value: ir.Value, array: NDArray[Any]) -> None:
    """Let the inputs that steer shapes read `array` in place of the computed value; other readers keep it."""
    literal = editor.constant(f"{value.name}__literal", array)
    for node, index in list(value.uses()):
        if index in SHAPE_INPUTS.get(node.op_type, ()):
            node.replace_input_with(index, literal)
