"""Operators that move data: which positions they join, told by where numbered values end up, and what a cut changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli import runtime
from lepton_cli.coupling import analyse, cut, links
from lepton_cli.coupling.known_shapes import KnownShapes
from lepton_cli.coupling.layout import segments
from lepton_cli.model import io
from tests.coupling.networks import Network, analysed, assert_zeroed_equals_cut

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


# What a cut changes: convolutions before and after, channels last where several axes are merged behind.


def prunable(model: ir.Model) -> dict[str, int]:
    return {group.name: group.channels for group in analysed(model)[1].groups if group.frozen is None}


def last(n: Network, channels: int = 6, x: str = "x") -> str:
    """[batch, 4, 4, channels]."""
    if not any(value.name == x for value in n.inputs):
        n.input(x, "batch", 3, 4, 4)
    return n.node("Transpose", n.conv(x, 3, channels), perm=[0, 2, 3, 1])


def merged(n: Network, x: str, size: int) -> str:
    """The channels are the last of three axes that become one: only what is known to be live is found there."""
    return n.linear(n.node("Reshape", x, n.literal(-1, size)), size, 3)


def check(n: Network, output: str, channels: dict[str, int], share: float = 0.4) -> ir.Model:
    model = n.model(output)
    assert prunable(model) == channels
    return assert_zeroed_equals_cut(model, share=share)


def literal(model: ir.Model, op: str, index: int, number: int = 0) -> list[int]:
    value = [node for node in model.graph if node.op_type == op][number].inputs[index]
    assert value is not None
    assert value.const_value is not None
    return [int(k) for k in value.const_value.numpy()]


def attribute(model: ir.Model, op: str, name: str) -> list[int]:
    return list(next(node for node in model.graph if node.op_type == op).attributes[name].as_ints())


def only(n: Network, output: str, channels: list[int], number: int = 0) -> ir.Model:
    """Without these channels of one prunable group."""
    prepared, found = analysed(n.model(output))
    group = [group for group in found.groups if group.frozen is None][number]
    return cut.cut(prepared, found, group.atoms[channels])


def first(found: links.Coupling) -> links.Group:
    return next(group for group in found.groups if group.frozen is None)


def test_concatenated_channels_are_found_behind() -> None:
    n = Network()
    x = n.node("Concat", last(n, 4), last(n, 5), axis=-1)
    check(n, merged(n, x, 144), {"Conv_0": 4, "Conv_2": 5})


def test_split_channels_are_found_behind_and_sizes_follow() -> None:
    n = Network()
    n.node("Split", last(n, 7), n.literal(3, 4), outputs=2, axis=-1)
    one, two = n.nodes[-1].output
    output = n.node("Add", merged(n, one, 48), merged(n, two, 64))
    check(n, output, {"Conv_0": 3, "Conv_0#2": 4})
    assert literal(only(n, output, [1]), "Split", 1) == [2, 4]


@pytest.mark.parametrize("axis", [1, -3])
def test_sizes_of_an_old_split_follow(axis: int) -> None:
    n = Network(opset=11)
    n.node("Split", n.conv(n.input("x", "batch", 3, 4, 4), 3, 7), outputs=2, axis=axis, split=[3, 4])
    one, two = n.nodes[-1].output
    output = n.node("Add", n.conv(one, 3, 2), n.conv(two, 4, 2))
    check(n, output, {"Conv_0": 3, "Conv_0#2": 4})
    made = only(n, output, [0])
    assert attribute(made, "Split", "split") == [2, 4]
    assert len(next(node for node in made.graph if node.op_type == "Split").inputs) == 1


def test_from_opset_13_sizes_of_a_split_are_an_input() -> None:
    n = Network(opset=13)
    n.node("Split", n.conv(n.input("x", "batch", 3, 4, 4), 3, 6), outputs=2, axis=1)
    one, two = n.nodes[-1].output
    output = n.node("Add", n.conv(one, 3, 2), n.conv(two, 3, 2))
    assert literal(only(n, output, [0]), "Split", 1) == [2, 3]


def test_a_split_of_another_axis_stays() -> None:
    n = Network()
    n.node("Split", n.conv(n.input("x", "batch", 3, 4, 4), 3, 6), n.literal(1, 3), outputs=2, axis=2)
    one, two = n.nodes[-1].output
    output = n.node("Concat", n.conv(one, 6, 2), n.conv(two, 6, 2), axis=2)
    assert literal(check(n, output, {"Conv_0": 6}), "Split", 1) == [1, 3]


def test_a_slice_of_channels_holds_what_is_kept_of_it() -> None:
    n = Network()
    x = last(n, 8)
    part = n.node("Slice", x, n.literal(2), n.literal(7), n.literal(3))
    output = n.node("Add", merged(n, part, 80), merged(n, x, 128))
    check(n, output, {"Conv_0": 3, "Conv_0#2": 5})
    prepared, found = analysed(n.model(output))
    outside, inside = (group for group in found.groups if group.frozen is None)
    removed = [inside.atoms[1], inside.atoms[4], outside.atoms[0]]
    made = cut.cut(prepared, found, removed)
    assert [literal(made, "Slice", k) for k in (1, 2, 3, 4)] == [[1], [4], [3], [1]]


def test_an_old_slice_follows_in_its_attributes() -> None:
    n = Network(opset=9)
    x = n.conv(n.input("x", "batch", 3, 4, 4), 3, 8)
    part = n.node("Slice", x, starts=[3, 1], ends=[8, 3], axes=[1, 2])
    output = n.conv(part, 5, 2)
    check(n, output, {"Conv_0": 3, "Conv_0#2": 5})
    made = only(n, output, [0, 3], 1)
    assert [attribute(made, "Slice", name) for name in ("starts", "ends", "axes")] == [[3, 1], [6, 3], [1, 2]]
    made = only(n, output, [1])
    assert [attribute(made, "Slice", name) for name in ("starts", "ends", "axes")] == [[2, 1], [7, 3], [1, 2]]


@pytest.mark.parametrize(
    ("start", "end", "step", "kept"), [(3, -9, -1, 4), (3, 0, -2, 2), (2, 0, -2, 1), (-1, -(2**40), -1, 4)]
)
def test_other_ranges_of_a_slice_stay(start: int, end: int, step: int, kept: int) -> None:
    """Backwards along the rows, to the first one and past it, while channels are cut."""
    n = Network()
    x = n.conv(n.input("x", "batch", 3, 4, 4), 3, 6)
    part = n.node("Slice", x, n.literal(1, start), n.literal(5, end), n.literal(1, 2), n.literal(1, step))
    made = check(n, n.node("Add", n.conv(part, 4, 2), n.weight(1, 2, kept, 4)), {"Conv_0": 2, "Conv_0#2": 4})
    assert literal(made, "Slice", 3) == [1, 2]
    assert literal(made, "Slice", 4) == [1, step]


def test_a_slice_along_another_axis_stays() -> None:
    n = Network()
    x = n.conv(n.input("x", "batch", 3, 4, 4), 3, 6)
    made = check(n, n.conv(n.node("Slice", x, n.literal(-3), n.literal(2**40), n.literal(2)), 6, 2), {"Conv_0": 6})
    assert [literal(made, "Slice", k) for k in (1, 2)] == [[-3], [2**40]]


def test_gathered_channels_are_renumbered() -> None:
    n = Network()
    x = n.node("Gather", last(n, 6), n.literal(5, -6, 3, 1), axis=3)
    output = merged(n, x, 64)
    check(n, output, {"Conv_0": 4, "Conv_0#2": 2})
    prepared, found = analysed(n.model(output))
    group = first(found)
    kept = sorted(set(range(6)) - {int(group.slices["w0", 0][1, 0])})
    made = cut.cut(prepared, found, group.atoms[[1]])
    assert literal(made, "Gather", 1) == [kept.index(k) for k in (5, 0, 3, 1) if k in kept]


def test_gathers_of_other_axes_and_of_nothing_cut_stay() -> None:
    n = Network()
    x = n.node("Gather", n.conv(n.input("x", "batch", 3, 4, 4), 3, 6), n.literal(-1, 0), axis=2)
    assert literal(check(n, n.conv(x, 6, 2), {"Conv_0": 6}), "Gather", 1) == [-1, 0]


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("mode", ["channels", "rows"])
def test_padded_channels(opset: int, mode: str) -> None:
    """Channels between two and three new ones; rows are padded beside it or alone."""
    n = Network(opset=opset)
    pads = [0, 2, 1, 0, 0, 3, 0, 0] if mode == "channels" else [0, 0, 1, 0, 0, 0, 2, 0]
    x = n.conv(n.input("x", "batch", 3, 4, 4), 3, 5)
    x = n.node("Pad", x, pads=pads) if opset == 9 else n.node("Pad", x, n.literal(*pads))
    width = 10 if mode == "channels" else 5
    if mode == "channels":
        x = n.node("Add", x, n.conv(n.node("Pad", "x", n.literal(0, 0, 1, 0, 0, 0, 0, 0)), 3, 10)) if opset > 9 else x
    output = n.conv(x, width, 2)
    model = n.model(output)
    prepared, found = analysed(model)
    assert_zeroed_equals_cut(model)
    if opset == 17 and mode == "channels":
        assert [group.channels for group in found.groups if group.frozen is None] == [5, 5]
        new = next(g for g in found.groups if g.channels == 5 and ("w0", 0) not in g.slices)
        made = cut.cut(prepared, found, new.atoms[[0, 3, 4]])
        assert literal(made, "Pad", 1) == [0, 1, 1, 0, 0, 1, 0, 0]
    elif opset == 9:
        made = cut.cut(prepared, found, first(found).atoms[[1]])
        assert attribute(made, "Pad", "pads") == pads


def test_pads_of_chosen_axes_name_all_of_them_after_a_cut() -> None:
    n = Network(opset=18)
    x = n.node("Pad", n.conv(n.input("x", "batch", 3, 4, 4), 3, 4), n.literal(1, 1, 2, 0), "", n.literal(-3, 3))
    output = n.conv(n.node("Add", x, n.conv(n.node("Pad", "x", n.literal(1, 0), "", n.literal(3)), 3, 7)), 7, 2)
    model = n.model(output)
    assert sorted(prunable(model).values()) == [3, 4]
    assert_zeroed_equals_cut(model)
    prepared, found = analysed(model)
    new = next(group for group in found.groups if group.channels == 3)
    made = cut.cut(prepared, found, new.atoms[[0]])
    assert literal(made, "Pad", 1) == [0, 0, 0, 1, 0, 2, 0, 0]


def test_padded_channels_are_found_behind() -> None:
    n = Network()
    x = n.node("Pad", last(n, 4), n.literal(0, 0, 0, 1, 0, 0, 0, 1))
    model = n.model(merged(n, x, 96))
    assert prunable(model)["Conv_0"] == 4
    assert_zeroed_equals_cut(model)


@pytest.mark.parametrize("dims", [(1, 4, 4, 6), (4, 4, 6), (1, 4, 1, 6)])
def test_targets_of_an_expansion_follow(dims: tuple[int, ...]) -> None:
    """Rows of averages are written out again; leading ones and missing axes stay."""
    n = Network()
    x = n.node("ReduceMean", last(n), axes=[1], keepdims=1)
    output = merged(n, n.node("Expand", x, n.literal(*dims)), 96)
    assert literal(check(n, output, {"Conv_0": 6}), "Expand", 1) == [*dims[:-1], 4]


def test_an_expansion_beside_the_cut_stays() -> None:
    n = Network()
    x = n.node("Expand", n.node("ReduceMean", n.input("x", "batch", 3, 4, 4), axes=[2]), n.literal(1, 3, 4, 4))
    target = n.nodes[-1].input[1]
    made = check(n, n.conv(n.conv(x, 3, 6), 6, 2), {"Conv_2": 6})
    assert literal(made, "Expand", 1) == [1, 3, 4, 4]
    assert next(node for node in made.graph if node.op_type == "Expand").inputs[1].name == target


def test_tiled_rows_carry_channels() -> None:
    n = Network()
    check(n, merged(n, n.node("Tile", last(n), n.literal(1, 2, 1, 1)), 192), {"Conv_0": 6})


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_becomes_space_in_either_order(mode: str) -> None:
    n = Network()
    x = n.node("DepthToSpace", n.conv(n.input("x", "batch", 3, 4, 4), 3, 16), blocksize=2, mode=mode)
    check(n, merged(n, n.node("Transpose", x, perm=[0, 2, 3, 1]), 256), {"Conv_0": 4})


def test_space_becomes_depth() -> None:
    n = Network()
    x = n.node("SpaceToDepth", n.conv(n.input("x", "batch", 3, 4, 4), 3, 5), blocksize=2)
    check(n, merged(n, n.node("Transpose", x, perm=[0, 2, 3, 1]), 80), {"Conv_0": 5})


def test_axes_of_one_come_and_go() -> None:
    n = Network()
    x = n.node("Squeeze", n.node("Unsqueeze", last(n), n.literal(1)), n.literal(1))
    check(n, merged(n, x, 96), {"Conv_0": 6})


def test_merged_axes_without_a_weights_channels_keep_the_first() -> None:
    """A reshape and back of the input, in front of the layers."""
    n = Network()
    x = n.node("Reshape", n.input("x", "batch", 3, 4, 4), n.literal(-1, 48))
    check(n, n.linear(n.linear(x, 48, 6), 6, 2), {"MatMul_1": 6})


@pytest.mark.parametrize(
    ("perm", "back", "channels"),
    [([0, 2, 1, 3, 4], True, 3), ([0, 2, 1, 3, 4], False, 2), ([0, 3, 1, 2, 4], True, 2), ([0, 1, 2, 4, 3], True, 2)],
)
def test_a_channel_shuffle_goes_by_the_inner_factor(perm: list[int], back: bool, channels: int) -> None:
    """Six channels as two times three: swapped and merged again is a shuffle; else the outer two are heads."""
    n = Network()
    x = n.node("Reshape", n.conv(n.input("x", "batch", 3, 4, 4), 3, 6), n.literal(-1, 2, 3, 4, 4))
    x = n.node("Transpose", x, perm=perm)
    if not back:
        x = n.node("Relu", x)
    found = analysed(n.model(n.node("Reshape", x, n.literal(-1, 96))))[1]
    labels = found.labels["Reshape_1_out", 2 if channels == 3 else 1].tolist()
    convolution = found.labels["Conv_0_out", 1].tolist()
    assert convolution == (labels * 2 if channels == 3 else [label for label in labels for _ in range(3)])


def test_literal_shapes_follow_the_widths() -> None:
    """0 and -1 stay; a shape without them gets them where the batch is."""
    n = Network()
    x = n.node("Reshape", last(n), n.literal(0, 16, -1))
    x = n.node("Reshape", x, n.literal(-1, 4, 4, 6))
    model = check(n, merged(n, x, 96), {"Conv_0": 6})
    assert [literal(model, "Reshape", 1, k) for k in range(3)] == [[0, 16, -1], [-1, 4, 4, 4], [-1, 64]]


def test_shapes_beside_the_cut_stay() -> None:
    n = Network()
    x = n.node("Reshape", n.input("x", "batch", 48), n.literal(-1, 3, 4, 4))
    model = check(n, n.conv(n.conv(x, 3, 6), 6, 2), {"Conv_1": 6})
    before = n.model(n.nodes[-1].output[0])
    assert literal(model, "Reshape", 1) == [-1, 3, 4, 4]
    assert [node.inputs[1].name for node in model.graph if node.op_type == "Reshape"] == [
        node.inputs[1].name for node in before.graph if node.op_type == "Reshape"
    ]


@pytest.mark.parametrize(("rows", "wanted"), [("batch", [-1, 64]), ("length", [0, -1, 16])])
def test_shapes_computed_from_sizes_become_literal(rows: str, wanted: list[int]) -> None:
    """One open axis is -1; of several all but the last are 0, where they stand at their old place."""
    n = Network()
    if rows == "batch":
        x = last(n)
        size = n.node("Gather", n.node("Shape", x), n.literal(0), axis=0)
        output = n.linear(n.node("Reshape", x, n.node("Concat", size, n.literal(96), axis=0)), 96, 3)
        made = check(n, output, {"Conv_0": 6})
    else:
        x = n.linear(n.input("x", "batch", "length", 4), 4, 24)
        size = n.node("Slice", n.node("Shape", x), n.literal(0), n.literal(2))
        x = n.node("Reshape", x, n.node("Concat", size, n.literal(4, 6), axis=0))
        x = n.node("Relu", x)
        output = n.linear(n.node("Reshape", x, n.node("Concat", size, n.literal(24), axis=0)), 24, 3)
        made = check(n, output, {"MatMul_0": 4}, share=0.25)
        assert literal(made, "Reshape", 1, 1) == [0, -1, 18]
        return
    assert literal(made, "Reshape", 1) == wanted


def test_a_shape_with_two_open_axes_at_new_places_has_no_literal() -> None:
    n = Network()
    x = n.linear(n.input("x", "batch", "length", 4), 4, 6)
    sizes = [n.node("Gather", n.node("Shape", x), n.literal(axis), axis=0) for axis in (0, 1)]
    shape = n.node("Concat", n.literal(2), n.literal(3), *sizes[::-1], axis=0)
    model = n.model(n.node("Reshape", n.node("Transpose", x, perm=[1, 0, 2]), shape))
    assert prunable(model) == {}


def attention(batch: int | str, first: bool) -> ir.Model:
    """Four heads of 3 numbers, samples and heads in one axis: as older exporters and torch's own attention have it."""
    n = Network()
    x = n.input("x", batch, 6, 12) if first else n.input("x", 6, batch, 12)
    count = 4 * batch if isinstance(batch, int) else -1

    def merged(y: str) -> str:
        if not first:
            return n.node("Transpose", n.node("Reshape", y, n.literal(6, count, 3)), perm=[1, 0, 2])
        apart = n.node("Transpose", n.node("Reshape", y, n.literal(0, 6, 4, 3)), perm=[0, 2, 1, 3])
        return n.node("Reshape", apart, n.literal(count, 6, 3))

    query, key, value = (merged(n.node("MatMul", x, n.weight(12, 12))) for _ in range(3))
    scores = n.node("Softmax", n.node("MatMul", query, n.node("Transpose", key, perm=[0, 2, 1])), axis=-1)
    mixed = n.node("MatMul", scores, value)
    if first:
        four = n.node("Reshape", mixed, n.literal(batch if isinstance(batch, int) else -1, 4, 6, 3))
        flat = n.node("Reshape", n.node("Transpose", four, perm=[0, 2, 1, 3]), n.literal(0, 6, 12))
    else:
        flat = n.node("Reshape", n.node("Transpose", mixed, perm=[1, 0, 2]), n.literal(6, -1, 12))
    return n.model(n.node("MatMul", flat, n.weight(12, 5)))


@pytest.mark.parametrize(("batch", "first"), [(1, False), (2, False), ("batch", False), (1, True), ("batch", True)])
def test_heads_that_share_an_axis_with_samples_go_whole(batch: int | str, first: bool) -> None:
    model = attention(batch, first)
    (group,) = (group for group in analysed(model)[1].groups if group.frozen is None)
    assert (group.channels, len(group.producers), len(group.consumers)) == (4, 3, 1)
    after = assert_zeroed_equals_cut(model, share=0.5)
    shapes = [value.const_value.shape.numpy() for value in after.graph.initializers.values()]
    assert sorted(shape for shape in shapes if len(shape) == 2) == [(6, 5), (12, 6), (12, 6), (12, 6)]


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_heads_of_torchs_own_attention(batch: int | str) -> None:
    """One product for query, key and value, taken apart by Unsqueeze, Transpose, Squeeze and Gather."""
    n = Network()
    count = 4 * batch if isinstance(batch, int) else -1
    five = n.node("Reshape", n.node("MatMul", n.input("x", 6, batch, 12), n.weight(12, 36)), n.literal(6, -1, 3, 12))
    five = n.node("Transpose", n.node("Unsqueeze", five, n.literal(0)), perm=[3, 1, 2, 0, 4])
    three = n.node("Squeeze", five, n.literal(3))
    parts = [n.node("Gather", three, n.weight(values=np.array(at, np.int64)), axis=0) for at in range(3)]
    query, key, value = (
        n.node("Transpose", n.node("Reshape", part, n.literal(6, count, 3)), perm=[1, 0, 2]) for part in parts
    )
    scores = n.node("Softmax", n.node("MatMul", query, n.node("Transpose", key, perm=[0, 2, 1])), axis=-1)
    mixed = n.node("Transpose", n.node("MatMul", scores, value), perm=[1, 0, 2])
    model = n.model(n.node("MatMul", n.node("Reshape", mixed, n.literal(6, -1, 12)), n.weight(12, 5)))
    (group,) = (group for group in analysed(model)[1].groups if group.frozen is None)
    assert group.channels == 4
    assert_zeroed_equals_cut(model, share=0.5)
