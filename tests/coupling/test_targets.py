"""Targets of Reshape written entry by entry: the model computes the same, and reads no width that it need not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.coupling import known_shapes, targets
from lepton_cli.coupling.targets import Looks, segments
from lepton_cli.graph.edit import Editor, array_of
from lepton_cli.graph.feeds import default_feeds
from tests.coupling.networks import Network, run


def written(model: ir.Model, feeds: dict[str, tuple[int, ...]] | None = None) -> ir.Model:
    """Prepared; whatever was written can be read again."""
    made, facts = known_shapes.prepare(model, feeds or default_feeds(model, 2, 8))
    for node in made.graph:
        assert node.op_type != "Reshape" or targets.entries(node, facts.shapes) is not None
    return made


def told(model: ir.Model, number: int = 0) -> list[int | str]:
    """The target of a Reshape: numbers, and what says an entry: a name, or the place in the Shape of a value."""
    target = [node for node in model.graph if node.op_type == "Reshape"][number].inputs[1]
    assert target is not None
    producer = target.producer()
    parts = [target] if producer is None or producer.op_type != "Concat" else producer.inputs
    found: list[int | str] = []
    for part in parts:
        assert part is not None
        before = part.producer()
        index = None if before is None or before.op_type != "Gather" else array_of(before)
        shape = None if index is None or before is None or before.inputs[0] is None else before.inputs[0].producer()
        if part.const_value is not None:
            found += part.const_value.numpy().tolist()
        elif index is not None and shape is not None and shape.inputs[0] is not None and shape.op_type == "Shape":
            found.append(f"{shape.inputs[0].name}[{index.item()}]")
        else:
            found.append(part.name or "")
    return found


def assert_same(before: ir.Model, after: ir.Model, *sizes: tuple[int, int]) -> None:
    for batch, other in sizes:
        for one, two in zip(run(before, batch, other), run(after, batch, other), strict=True):
            np.testing.assert_array_equal(one, two)


def size(n: Network, value: str, axis: int) -> str:
    return n.node("Gather", n.node("Shape", value), n.literal(axis), axis=0)


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ((2, 3), (2, 3), [([0], [0]), ([1], [1])]),
        ((2, 1, 3), (2, 3, 1), [([0], [0]), ([2], [1])]),
        ((2, 12), (2, 3, 4), [([0], [0]), ([1], [1, 2])]),
        ((3, 4, 5), (12, 5), [([0, 1], [0]), ([2], [1])]),
        ((4, 6), (3, 8), [([0, 1], [0, 1])]),
        ((4, 6, 5), (3, 8, 5), [([0, 1], [0, 1]), ([2], [2])]),
        ((2, 4), (2, 3), [([0], [0])]),
        ((5,), (), []),
        ((2, 2, 2), (8,), [([0, 1, 2], [0])]),
    ],
)
def test_axes_are_paired_in_the_smallest_runs(
    before: tuple[int, ...], after: tuple[int, ...], found: list[tuple[list[int], list[int]]]
) -> None:
    assert segments(before, after) == found


def test_sizes_at_their_old_place_are_copied_and_widths_are_numbers() -> None:
    n = Network()
    x = n.input("x", "batch", "length", 12)
    target = n.node("Concat", size(n, x, 0), size(n, x, 1), n.literal(4), n.literal(3), axis=0)
    model = n.model(n.node("Reshape", x, target, allowzero=1))
    after = written(model)
    assert told(after) == [0, 0, 4, 3]
    (node,) = after.graph
    assert "allowzero" not in node.attributes
    assert_same(model, after, (1, 5), (3, 2), (2, 8), (0, 4))


def test_one_size_that_moves_is_what_is_left() -> None:
    n = Network()
    x = n.node("Transpose", n.input("x", "batch", 4, "length"), perm=[0, 2, 1])
    target = n.node("Concat", size(n, x, 0), n.literal(2), size(n, x, 1), n.literal(2), axis=0)
    model = n.model(n.node("Reshape", x, target))
    after = written(model)
    assert told(after) == [0, 2, -1, 2]
    assert_same(model, after, (1, 5), (3, 2))


def test_of_several_sizes_that_move_the_merged_one_is_what_is_left() -> None:
    """Heads times samples: a cut changes that size; the other says itself."""
    n = Network()
    x = n.input("x", "batch", 4, "length", 3)
    both = n.node("Mul", size(n, x, 0), n.literal(4))
    model = n.model(n.node("Reshape", x, n.node("Concat", both, n.literal(1), size(n, x, 2), n.literal(3), axis=0)))
    after = written(model)
    assert told(after) == [-1, 1, 0, 3]  # in its old place by chance
    n = Network()
    x = n.input("x", "length", "batch", 4, 3)
    both = n.node("Mul", size(n, x, 1), n.literal(4))
    shape = n.node("Concat", n.literal(1), size(n, x, 0), both, n.literal(3), axis=0)
    model = n.model(n.node("Reshape", x, shape))
    after = written(model)
    assert told(after) == [1, "x[0]", -1, 3]
    assert_same(model, after, (1, 5), (3, 2))


def test_a_size_is_read_where_it_is_measured() -> None:
    """Through Slice, Concat, Unsqueeze and Cast to the Shape: what else they carry is read no more."""
    n = Network()
    x = n.input("x", "batch", "length", 6)
    y = n.node("Reshape", x, n.literal(-1, 6))
    shape = n.node("Cast", n.node("Shape", x), to=7)
    front = n.node("Slice", n.node("Concat", shape, shape, axis=0), n.literal(-3), n.literal(2**62), n.literal(0))
    length = n.node("Unsqueeze", n.node("Gather", front, n.weight(values=np.array(-2, np.int64))), n.literal(0))
    batch = n.node("Slice", front, n.literal(2), n.literal(-4), n.literal(0), n.literal(-2))
    target = n.node("Concat", n.node("Slice", batch, n.literal(1), n.literal(2)), length, n.literal(2, 3), axis=0)
    model = n.model(n.node("Reshape", y, target))
    after = written(model)
    assert told(after, 1) == [-1, "x[1]", 2, 3]
    assert {node.op_type for node in after.graph} == {"Reshape", "Shape", "Gather", "Concat"}
    assert_same(model, after, (1, 5), (3, 2))


def test_a_size_that_is_computed_is_taken_from_the_target() -> None:
    n = Network()
    x = n.input("x", "batch", "length", 6)
    y = n.node("Reshape", x, n.literal(-1, 6))
    length = n.node("Gather", n.node("Shape", x), n.weight(values=np.array(1, np.int64)), axis=0)
    half = n.node("Unsqueeze", n.node("Mul", length, n.weight(values=np.array(1, np.int64))), n.literal(0))
    alone = n.node("Concat", size(n, x, 0), half, n.literal(6), axis=0)
    vector = n.node("Mul", n.node("Shape", x), n.literal(1, 1, 1))
    one = n.node("Reshape", y, alone)
    model = n.model(one, n.node("Reshape", y, vector))
    after = written(model)
    assert told(after, 1) == [-1, half, 6]
    gathered = next(value for value in told(after, 2) if isinstance(value, str))
    node = next(node for node in after.graph if node.outputs[0].name == gathered)
    assert (node.op_type, node.inputs[0].producer().op_type) == ("Gather", "Mul")
    assert_same(model, after, (1, 5), (3, 2))


def test_equal_targets_and_sizes_are_written_once() -> None:
    n = Network()
    x = n.input("x", "batch", "length", 6)
    flat = n.node("Reshape", x, n.literal(-1, 6))
    target = n.node("Concat", size(n, x, 0), size(n, x, 1), n.literal(6), axis=0)
    other = n.node("Concat", n.literal(1), size(n, x, 0), size(n, x, 1), n.literal(6), axis=0)
    model = n.model(*(n.node("Reshape", flat, shape) for shape in (target, target, other)))
    after = written(model)
    nodes = [node.inputs[1] for node in after.graph if node.op_type == "Reshape"]
    assert nodes[1] is nodes[2] is not nodes[3]
    assert [node.op_type for node in after.graph].count("Concat") == 2
    assert_same(model, after, (1, 5), (3, 2))


@pytest.mark.parametrize("length", [1, 8])
def test_a_size_that_cannot_be_tried_larger_or_smaller_is_no_number(length: int) -> None:
    """The table of places ends with the data, so that only shorter ones can be looked at, or none."""
    n = Network()
    x = n.input("x", "batch", "length", 6)
    places = n.node("Gather", n.weight(length, 6), n.node("Range", *_range(n, x)), axis=0)
    y = n.node("Add", x, places)
    target = n.node("Concat", size(n, x, 0), size(n, x, 1), n.literal(2, 3), axis=0)
    model = n.model(n.node("Reshape", y, target))
    after = written(model, {"x": (2, length, 6)})
    assert told(after) == [0, 0 if length == 8 else "x[1]", 2, 3]
    assert_same(model, after, (3, length), (1, max(1, length - 3)))


def _range(n: Network, x: str) -> tuple[str, str, str]:
    zero, one = (n.weight(values=np.array(number, np.int64)) for number in (0, 1))
    return zero, n.node("Gather", n.node("Shape", x), n.weight(values=np.array(1, np.int64)), axis=0), one


def test_what_keeps_no_width_stays() -> None:
    n = Network()
    x = n.input("x", "batch", "length")
    target = n.node("Concat", size(n, x, 1), size(n, x, 0), axis=0)
    model = n.model(n.node("Reshape", x, target))
    made = known_shapes.prepare(model, {"x": (2, 8)})[0]
    assert [node.op_type for node in made.graph] == [node.op_type for node in model.graph]


def test_a_literal_target_stays() -> None:
    n = Network()
    model = n.model(n.node("Reshape", n.input("x", "batch", 12), n.literal(-1, 3, 4)))
    assert told(written(model)) == [-1, 3, 4]


def test_without_open_sizes_nothing_is_written() -> None:
    n = Network()
    model = n.model(n.node("Reshape", n.input("x", 2, 12), n.literal(2, 3, 4)))
    same = {"x": (2, 12), "Reshape_0_out": (2, 3, 4)}
    assert not targets.write(model, Looks(dict(same), same, whole=True))


@pytest.mark.parametrize(
    ("dims", "concat"), [([0, 4, -1], None), ([2, "size", 0, -1], [[2], "size", [0, -1]]), (["size", 3], ["size", [3]])]
)
def test_a_target_is_given_as_numbers_or_joined(dims: list[int | str], concat: list[list[int] | str] | None) -> None:
    n = Network()
    x = n.input("x", "batch", 12)
    value = size(n, x, 0)
    n.node("Reshape", x, n.literal(-1, 3, 4), allowzero=1)
    model = n.model(n.nodes[-1].output[0])
    node = model.graph[-1]
    values = {output.name: output for made in model.graph for output in made.outputs}
    made = targets.give(Editor(model), node, [values[value] if isinstance(d, str) else d for d in dims])
    assert node.inputs[1] is made
    assert ("allowzero" in node.attributes) == (0 not in dims)
    if concat is None:
        assert made.const_value is not None
        assert made.const_value.numpy().tolist() == dims
        return
    producer = made.producer()
    assert producer is not None
    parts = [p.const_value.numpy().tolist() if p.const_value else "size" for p in producer.inputs]
    assert (producer.op_type, producer.attributes.get_int("axis"), parts) == ("Concat", 0, concat)
    assert (made.dtype, made.shape) == (ir.DataType.INT64, ir.Shape([len(dims)]))


@pytest.mark.parametrize("kind", ["ends", "steps", "indices", "attributes"])
def test_what_is_taken_at_computed_places_is_not_followed(kind: str) -> None:
    """The places happen to be the first one; another size would have them elsewhere."""
    n = Network(opset=9 if kind == "attributes" else 17)
    x = n.input("x", "batch", "length", 6)
    shape, one = n.node("Shape", x), n.node("Div", size(n, x, 0), size(n, x, 0))
    zero = n.node("Sub", one, one)
    if kind == "indices":
        taken = n.node("Gather", shape, zero, axis=0)
    elif kind == "attributes":
        taken = n.node("Slice", shape, starts=[0], ends=[1])
    else:
        ends = one if kind == "ends" else n.literal(1)
        taken = n.node("Slice", shape, n.literal(0), ends, n.literal(0), *([one] if kind == "steps" else []))
    turned = n.node("Transpose", x, perm=[2, 0, 1])
    target = n.node("Concat", n.literal(1), size(n, x, 1), taken, n.literal(6), axis=0)
    y = n.node("Reshape", turned, target)
    model = n.model(n.node("Relu", x))
    here = {node.outputs[0].name or "": (1,) for node in model.graph} | {shape: (3,), target: (4,)}
    here = {key: (3,) if "Shape" in key else value for key, value in here.items()}
    looks = Looks({**here, turned: (6, 2, 8), y: (1, 8, 2, 6)}, {turned: (6, 5, 16), y: (1, 16, 5, 6)}, whole=True)
    assert targets.write(model, looks)
    assert told(model) == [1, -1, taken, 6]


def test_shapes_are_those_of_both_looks() -> None:
    value, looks = ir.Value(name="x"), Looks({"x": (2, 3), "y": (1,)}, {"x": (5, 3), "z": (1,)}, whole=True)
    assert looks.both(value) == ((2, 3), (5, 3))
    assert looks.both(None) is looks.both(ir.Value(name="y")) is looks.both(ir.Value(name="z")) is None
    assert Looks({"x": (2, 3)}, {"x": (2,)}, whole=True).both(value) is None


def entries_of(n: Network, target: str, rank: int, **shapes: tuple[int, ...]) -> list[targets.Entry] | None:
    n.node("Reshape", n.inputs[0].name, target)
    node = n.model(n.node("Relu", n.inputs[0].name)).graph[-2]
    known = {output: (1,) for made in n.nodes for output in made.output}
    return targets.entries(node, {**known, node.outputs[0].name or "": (5, 6, 7)[:rank], **shapes})


def test_entries_are_numbers_of_the_result_and_single_sizes() -> None:
    n = Network()
    x = n.input("x", "batch", 42)
    assert entries_of(n, n.literal(-1, 6, 0), 3) == [-1, 6, 0]
    assert entries_of(n, n.literal(9, 9), 2) == [5, 6]
    assert entries_of(n, n.literal(9, 9), 3) is None
    one = size(n, x, 0)
    joined = entries_of(n, n.node("Concat", one, n.literal(-1, 9), axis=0), 3)
    assert joined is not None
    assert [getattr(entry, "name", entry) for entry in joined] == [one, -1, 7]


def test_entries_of_another_target_are_unknown() -> None:
    n = Network()
    x = n.input("x", "batch", 42)
    assert entries_of(n, n.node("Shape", x), 2) is None
    assert targets.entries(ir.node("Reshape", [ir.Value(name="x")]), {}) is None
    n = Network()
    joined = n.node("Concat", n.node("Shape", n.input("x", "batch", 42)), n.literal(1), axis=0)
    assert entries_of(n, joined, 2, Shape_0_out=(2,)) is None
