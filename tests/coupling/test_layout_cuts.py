"""What a cut changes in operators that move data: zeros go without a change, and sizes and places follow.

There are convolutions before and after, and channels are last where several axes are merged behind.
"""

from __future__ import annotations

import onnx_ir as ir
import pytest

from lepton_cli.coupling import cut, links
from tests.coupling.networks import Network, analysed, assert_zeroed_equals_cut, check, prunable


def last(n: Network, channels: int = 6, x: str = "x") -> str:
    """[batch, 4, 4, channels]."""
    if not any(value.name == x for value in n.inputs):
        n.input(x, "batch", 3, 4, 4)
    return n.node("Transpose", n.conv(x, 3, channels), perm=[0, 2, 3, 1])


def merged(n: Network, x: str, size: int) -> str:
    """The channels are the last of three axes that become one: only what is known to be live is found there."""
    return n.linear(n.node("Reshape", x, n.literal(-1, size)), size, 3)


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


@pytest.mark.parametrize(("rows", "wanted"), [("batch", [0, 64]), ("length", [0, 0, 16])])
def test_shapes_computed_from_sizes_become_literal(rows: str, wanted: list[int]) -> None:
    """An open axis is 0 where it stands at its old place."""
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
        assert literal(made, "Reshape", 1, 1) == [0, 0, 18]
        return
    assert literal(made, "Reshape", 1) == wanted


def test_a_shape_with_two_open_axes_at_new_places_has_no_literal() -> None:
    n = Network()
    x = n.linear(n.input("x", "batch", "length", 4), 4, 6)
    sizes = [n.node("Gather", n.node("Shape", x), n.literal(axis), axis=0) for axis in (0, 1)]
    shape = n.node("Concat", n.literal(2), n.literal(3), *sizes[::-1], axis=0)
    model = n.model(n.node("Reshape", n.node("Transpose", x, perm=[1, 0, 2]), shape))
    assert prunable(model) == {}
