"""Operators that move data: which positions they join, told by where numbered values end up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli import runtime
from lepton_cli.coupling import analyse
from lepton_cli.coupling.known_shapes import KnownShapes
from lepton_cli.coupling.targets import segments
from lepton_cli.model import io
from tests.coupling.networks import Network, analysed

#: Value and axis, value and axis: these hold the same channels.
Pair = tuple[str, int, str, int]
Build = Callable[[Network], tuple[str, ...]]
Parts = set[frozenset[tuple[str, int, int]]]


def moved(model: ir.Model) -> dict[str, NDArray[Any]]:
    """Inputs whose values are all different and not 0, and what becomes of them."""
    feeds, start = {}, 1
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else 2 for dim in value.shape or ()]
        feeds[value.name or ""] = np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)
        start += int(np.prod(shape))
    return {**feeds, **runtime.Session(io.to_bytes(model), threads=1).run(feeds)}


def parted(pairs: list[tuple[tuple[str, int, int], tuple[str, int, int]]]) -> Parts:
    """What is joined with anything, by what it is joined with."""
    sets: dict[tuple[str, int, int], set[tuple[str, int, int]]] = {}
    for one, two in pairs:
        both = sets.setdefault(one, {one}) | sets.setdefault(two, {two})
        for member in both:
            sets[member] = both
    return {frozenset(members) for members in sets.values()}


def expected(arrays: dict[str, NDArray[Any]], joined: list[Pair]) -> Parts:
    """Positions of two axes are joined where values of the one come to lie at the other."""
    found = []
    for x, a, y, b in joined:
        places = {value: place for place, value in np.ndenumerate(arrays[x])}
        for place, value in np.ndenumerate(arrays[y]):
            if value in places:
                found.append(((x, a, places[value][a]), (y, b, place[b])))
    return parted(found)


def linked(model: ir.Model, names: set[str]) -> Parts:
    labels = {key: ids for key, ids in analysed(model, batch=2)[1].labels.items() if key[0] in names}
    at: dict[int, list[tuple[str, int, int]]] = {}
    for (name, axis), ids in labels.items():
        for position, label in enumerate(ids.tolist()):
            at.setdefault(label, []).append((name, axis, position))
    return {frozenset(places) for places in at.values() if len(places) > 1}


def single(op: str, shape: tuple[int | str, ...], *literals: tuple[int, ...] | None, **attributes: Any) -> Build:
    """One node that reads `x` and literal numbers."""

    def build(n: Network) -> tuple[str, ...]:
        x = n.input("x", *shape)
        count = attributes.get("outputs", 1)
        n.node(op, x, *["" if literal is None else n.literal(*literal) for literal in literals], **attributes)
        return tuple(n.nodes[-1].output[:count])

    return build


def pairs(*axes: tuple[int, int]) -> list[tuple[int, int]]:
    return list(axes)


CASES: dict[str, tuple[int, Build, list[tuple[int, int]]]] = {
    "transpose": (17, single("Transpose", (2, 3, 4, 5), perm=[0, 3, 1, 2]), pairs((0, 0), (3, 1), (1, 2), (2, 3))),
    "transpose back to front": (17, single("Transpose", (2, 3, 4)), pairs((0, 2), (1, 1), (2, 0))),
    "squeeze": (17, single("Squeeze", (2, 1, 3, 1, 4), (1, 3)), pairs((0, 0), (2, 1), (4, 2))),
    "unsqueeze": (17, single("Unsqueeze", (2, 3), (0, 2)), pairs((0, 1), (1, 3))),
    "split": (17, single("Split", (2, 7, 3), (2, 1, 4), outputs=3, axis=1), pairs((0, 0), (1, 1), (2, 2))),
    "split by default": (17, single("Split", (6, 3), (2, 4), outputs=2), pairs((0, 0), (1, 1))),
    "split from behind": (18, single("Split", (2, 6), outputs=2, axis=-1, num_outputs=2), pairs((0, 0), (1, 1))),
    "slice": (17, single("Slice", (3, 7, 5), (2, -4), (6, -1), (1, 2)), pairs((0, 0), (1, 1), (2, 2))),
    "slice from behind": (17, single("Slice", (3, 7), (2,), (2**40,), (-1,)), pairs((0, 0), (1, 1))),
    "slice of all": (17, single("Slice", (3, 7), (1, 2), (3, 6)), pairs((0, 0), (1, 1))),
    "slice in steps": (17, single("Slice", (3, 8), (0,), (8,), (1,), (2,)), pairs((0, 0))),
    "slice in steps of one": (17, single("Slice", (3, 8), (1,), (5,), (1,), (1,)), pairs((0, 0), (1, 1))),
    "slice of an open axis": (17, single("Slice", ("batch", 8), (0,), (2,), (0,)), pairs((1, 1))),
    "slice beside an open axis": (17, single("Slice", ("batch", 8), (1,), (4,), (1,)), pairs((0, 0), (1, 1))),
    "old slice": (9, single("Slice", (3, 7, 5), starts=[1, 2], ends=[3, 100]), pairs((0, 0), (1, 1), (2, 2))),
    "old slice axes": (9, single("Slice", (3, 7, 5), starts=[2], ends=[-1], axes=[1]), pairs((0, 0), (1, 1), (2, 2))),
    "gather": (17, single("Gather", (2, 6, 3), (5, -6, 3), axis=1), pairs((0, 0), (1, 1), (2, 2))),
    "gather by default": (17, single("Gather", (5, 3), (4, 2)), pairs((0, 0), (1, 1))),
    "gather from behind": (17, single("Gather", (2, 6), (1, 4), axis=-1), pairs((0, 0), (1, 1))),
    "gather that permutes": (17, single("Gather", (2, 3), (2, 0, 1), axis=-1), pairs((0, 0), (1, 1))),
    "pad": (17, single("Pad", (2, 3, 4), (0, 2, 0, 0, 1, 3)), pairs((0, 0), (1, 1), (2, 2))),
    "pad of axes": (18, single("Pad", (2, 3, 4), (1, 2), None, (-1,)), pairs((0, 0), (1, 1), (2, 2))),
    "pad in front": (17, single("Pad", (2, 3), (0, 2, 0, 0)), pairs((0, 0), (1, 1))),
    "pad behind": (17, single("Pad", (2, 3), (0, 0, 0, 2)), pairs((0, 0), (1, 1))),
    "crop in front": (17, single("Pad", (2, 5), (0, -1, 0, 0)), pairs((0, 0))),
    "crop behind": (17, single("Pad", (2, 5), (0, 0, 0, -1)), pairs((0, 0))),
    "pad of an open axis": (17, single("Pad", ("batch", 3), (1, 0, 0, 0)), pairs((1, 1))),
    "reflecting pad": (17, single("Pad", (2, 3, 4), (0, 0, 1, 0, 0, 1), mode="reflect"), pairs((0, 0), (1, 1))),
    "old pad": (9, single("Pad", (2, 3), pads=[0, 1, 0, 2]), pairs((0, 0), (1, 1))),
    "expand": (17, single("Expand", (3, 1, 4), (5, 3, 2, 4)), pairs((0, 1), (2, 3))),
    "expand with ones": (17, single("Expand", (3, 1, 4), (2, 1)), pairs((0, 0), (2, 2))),
    "tile": (17, single("Tile", (2, 3, 1), (1, 2, 2)), pairs((0, 0))),
    "depth to space": (17, single("DepthToSpace", (2, 12, 2, 3), blocksize=2), pairs((0, 0), (1, 1))),
    "depth to space in columns": (
        17, single("DepthToSpace", (2, 12, 2, 3), blocksize=2, mode="CRD"), pairs((0, 0), (1, 1)),
    ),
    "space to depth": (17, single("SpaceToDepth", (2, 3, 6, 3), blocksize=3), pairs((0, 0), (1, 1))),
    "larger blocks": (17, single("DepthToSpace", (2, 18, 1, 2), blocksize=3), pairs((0, 0), (1, 1))),
    "reshape that splits": (17, single("Reshape", (2, 12, 5), (2, 3, 4, 5)), pairs((0, 0), (1, 1), (2, 3))),
    "reshape that merges": (17, single("Reshape", (2, 3, 4, 5), (2, 12, 5)), pairs((0, 0), (1, 1), (3, 2))),
    "reshape with ones": (17, single("Reshape", (2, 3, 1, 4), (1, 2, 3, 4)), pairs((0, 1), (1, 2), (3, 3))),
    "reshape that mixes": (17, single("Reshape", (2, 6, 4), (2, 4, 6)), pairs((0, 0))),
    "flatten": (17, single("Flatten", (2, 3, 4)), pairs((0, 0), (1, 1))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_positions_are_joined_where_their_values_go(name: str) -> None:
    opset, build, axes = CASES[name]
    network = Network(opset=opset)
    outputs = build(network)
    model = network.model(*outputs)
    wanted = [("x", a, y, b) for y in outputs for a, b in axes]
    assert linked(model, {"x", *outputs}) == expected(moved(model), wanted)


@pytest.mark.parametrize("axis", [None, 1, -2])
def test_concatenated_inputs_lie_behind_one_another(axis: int) -> None:
    network = Network()
    inputs = [network.input(name, 2, size, 4) for name, size in (("a", 3), ("b", 1), ("c", 2))]
    y = network.node("Concat", *inputs, axis=1 if axis is None else axis)
    model = network.model(y)
    wanted = [(x, k, y, k) for x in inputs for k in range(3)]
    assert linked(model, {*inputs, y}) == expected(moved(model), wanted)


def test_a_table_indexed_by_data_passes_the_axes_of_both() -> None:
    """[4, 6, 5] gathered by [2, 3] positions along axis 1: [4, 2, 3, 5]."""
    network = Network()
    x = network.input("x", 4, 6, 5)
    index = network.node("Cast", network.input("i", 2, 3), to=7)
    y = network.node("Gather", x, index, axis=1)
    labels = analysed(network.model(y))[1].labels
    for (one, a), (two, b) in (((x, 0), (y, 0)), ((x, 2), (y, 3)), ((index, 0), (y, 1)), ((index, 1), (y, 2))):
        assert labels[one, a].tolist() == labels[two, b].tolist()
    assert len({label for ids in (labels[y, axis] for axis in range(4)) for label in ids.tolist()}) == 14
    assert set(labels[x, 1].tolist()).isdisjoint(itertools.chain(*(labels[y, axis].tolist() for axis in range(4))))


@pytest.mark.parametrize("axis", [1, -2])
def test_one_position_drops_its_axis(axis: int) -> None:
    network = Network()
    x = network.input("x", 4, 6, 5)
    y = network.node("Gather", x, network.weight(values=np.array(2)), axis=axis)
    model = network.model(y)
    assert linked(model, {x, y}) == expected(moved(model), [(x, 0, y, 0), (x, 2, y, 1)])


@pytest.mark.parametrize("op", ["Split", "Slice", "Pad", "Expand", "Tile", "Reshape"])
def test_nothing_passes_where_sizes_come_with_the_data(op: str) -> None:
    """The batch and the rows are open: two of several could change, so that no literal shape holds either."""
    x, sizes = ir.Value(name="x"), ir.Value(name="s")
    count = 2 if op == "Split" else 1
    node = ir.node(op, [x, sizes, sizes] if op == "Slice" else [x, sizes], num_outputs=count)
    for number, value in enumerate(node.outputs):
        value.name = f"y{number}"
    graph = ir.Graph([x, sizes], node.outputs, nodes=[node], opset_imports={"": 17})
    shapes = {"x": (4, 6), "s": (2,), "y0": (2, 6) if count == 2 else (4, 6), "y1": (2, 6)}
    known = KnownShapes(shapes, frozenset({("y0", 0), ("y0", 1)}))
    found = analyse.analyse(ir.Model(graph, ir_version=9), known).labels
    labels = [label for (name, _), ids in found.items() if name != "s" for label in ids.tolist()]
    assert len(labels) == len(set(labels)) > 0


def test_nothing_passes_a_pad_whose_axes_come_with_the_data() -> None:
    x, pads, axes = (
        ir.Value(name="x"),
        ir.Value(name="p", const_value=ir.tensor(np.array([1, 1]), name="p")),
        ir.Value(name="a"),
    )
    node = ir.node("Pad", [x, pads, None, axes], name="n")
    node.outputs[0].name = "y"
    graph = ir.Graph([x, axes], node.outputs, nodes=[node], initializers=[pads], opset_imports={"": 18})
    known = KnownShapes({"x": (4, 6), "a": (1,), "y": (4, 8)}, frozenset())
    found = analyse.analyse(ir.Model(graph, ir_version=9), known).labels
    assert not set(found["x", 0].tolist()) & set(found["y", 0].tolist())
    assert not set(found["x", 1].tolist()) & set(found["y", 1].tolist())


def test_axes_are_told_apart_by_their_products() -> None:
    assert segments((2, 3, 4), (6, 4)) == [([0, 1], [0]), ([2], [1])]
    assert segments((6, 1, 4), (2, 1, 3, 2, 2)) == [([0], [0, 2]), ([2], [3, 4])]
    assert segments((4, 6), (6, 4)) == [([0, 1], [0, 1])]
    assert segments((5, 4, 6), (5, 3, 8)) == [([0], [0]), ([1, 2], [1, 2])]
    assert segments((5, 4), (5, 3)) == [([0], [0])]
    assert segments((3, 4), (3, 4, 2)) == [([0], [0]), ([1], [1])]
    assert segments((3, 2), (3, 4)) == [([0], [0])]
    assert segments((3, 4), (3, 2)) == [([0], [0])]
    assert segments((), (3,)) == []
    assert segments((1,), ()) == []
