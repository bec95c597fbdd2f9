"""Heads that share an axis with samples, as older exporters and torch's own attention write them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lepton_cli.coupling import cut
from lepton_cli.graph import edit
from lepton_cli.model import io
from tests.coupling.networks import Network, analysed, assert_zeroed_equals_cut, run


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


HEADS, SIZE = 4, 3
WIDTH = HEADS * SIZE


class Exported:
    """Attention over `x` [batch, length, 12] whose shapes are computed as an exporter writes them."""

    def __init__(self, how: str, batch: int | str, length: int | str) -> None:
        self.n, self.how = Network(), how
        self.x = self.n.input("x", batch, length, WIDTH)

    def size(self, value: str, axis: int) -> str:
        """The size of an axis, as a vector of one number."""
        n = self.n
        if self.how == "start and end":
            return n.node("Shape", value, start=axis, end=axis + 1)
        if self.how == "scalars":
            one = n.node("Gather", n.node("Shape", value), n.weight(values=np.array(axis, np.int64)), axis=0)
            return n.node("Unsqueeze", one, n.literal(0))
        return n.node("Slice", n.node("Shape", value), n.literal(axis), n.literal(axis + 1), n.literal(0))

    def number(self, number: int) -> str:
        n = self.n
        if self.how == "scalars":
            return n.node("Unsqueeze", n.weight(values=np.array(number, np.int64)), n.literal(0))
        if self.how == "divided":
            return n.node("Div", n.node("Mul", self.size(self.x, 2), n.literal(number)), n.literal(WIDTH))
        return n.literal(number)

    def reshape(self, y: str, *dims: int) -> str:
        """Batch and length as in the input, and these."""
        n, numbers = self.n, [self.number(dim) for dim in dims]
        if self.how == "batch and length at once":
            both = n.node("Slice", n.node("Shape", self.x), n.literal(0), n.literal(2))
            return n.node("Reshape", y, n.node("Concat", both, n.literal(*dims), axis=0))
        if self.how == "the last is what is left":
            numbers[-1] = n.literal(-1)
        first = n.literal(-1) if self.how == "the batch is what is left" else self.size(self.x, 0)
        target = n.node("Concat", first, self.size(self.x, 1), *numbers, axis=0)
        return n.node("Reshape", y, target, allowzero=1)

    def heads(self, y: str) -> str:
        return self.n.node("Transpose", self.reshape(y, HEADS, SIZE), perm=[0, 2, 1, 3])

    def qkv(self, way: str) -> list[str]:
        """Query, key and value, [batch, heads, length, size]."""
        n = self.n
        if way == "three products":
            return [self.heads(n.linear(self.x, WIDTH, WIDTH)) for _ in range(3)]
        packed = n.linear(self.x, WIDTH, 3 * WIDTH)
        if way == "Split":
            n.node("Split", packed, n.literal(WIDTH, WIDTH, WIDTH), outputs=3, axis=2)
            return [self.heads(part) for part in n.nodes[-1].output]
        if way == "Slice":
            ends = [(WIDTH * k, WIDTH * (k + 1)) for k in range(3)]
            return [self.heads(n.node("Slice", packed, n.literal(a), n.literal(b), n.literal(-1))) for a, b in ends]
        five = n.node("Transpose", self.reshape(packed, 3, HEADS, SIZE), perm=[2, 0, 3, 1, 4])
        return [n.node("Gather", five, n.weight(values=np.array(k, np.int64)), axis=0) for k in range(3)]

    def turned(self, key: str) -> str:
        """Torch's own attention turns keys as matrices, and reads back all the sizes."""
        n = self.n
        if self.how != "sizes read back":
            return n.node("Transpose", key, perm=[0, 1, 3, 2])
        shape = n.node("Shape", key)
        length, size = (n.node("Slice", shape, n.literal(at), n.literal(end)) for at, end in ((-2, -1), (-1, 2**62)))
        rest = n.node("Slice", shape, n.literal(-(2**62)), n.literal(-2))
        flat = n.node("Reshape", key, n.node("Concat", n.literal(-1), length, size, axis=0))
        flat = n.node("Transpose", flat, perm=[0, 2, 1])
        return n.node("Reshape", flat, n.node("Concat", rest, size, length, axis=0))

    def model(self, way: str) -> tuple[ir.Model, str]:
        """The network, and the weight that reads the heads."""
        n = self.n
        query, key, value = self.qkv(way)
        scores = n.node("Softmax", n.node("MatMul", query, self.turned(key)), axis=-1)
        mixed = self.reshape(n.node("Transpose", n.node("MatMul", scores, value), perm=[0, 2, 1, 3]), WIDTH)
        last = n.weight(WIDTH, 5)
        return n.model(n.node("MatMul", mixed, last)), last


def assert_heads_go(model: ir.Model, last: str, sizes: list[tuple[int, int]], size: int = SIZE) -> ir.Model:
    """Without heads 0 and 2 the model is the original whose last product reads zeros from them, at every size."""
    prepared, found = analysed(model)
    (group,) = (group for group in found.groups if group.frozen is None)
    assert group.channels == HEADS
    np.testing.assert_array_equal(group.slices[last, 0], np.arange(HEADS * size).reshape(HEADS, size))
    after = cut.cut(prepared, found, group.atoms[[0, 2]])
    onnx.checker.check_model(ir.to_proto(after))
    want = io.clone(model)
    value = want.graph.initializers[last]
    assert value.const_value is not None
    rows = value.const_value.numpy().copy()
    rows[:size] = rows[2 * size : 3 * size] = 0
    edit.set_weight(value, rows)
    for batch, length in sizes:
        for one, two in zip(run(want, batch, length), run(after, batch, length), strict=True):
            assert one.shape == two.shape
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
    return after


HOWS = (
    "constants",
    "scalars",
    "start and end",
    "divided",
    "batch and length at once",
    "the last is what is left",
    "the batch is what is left",
    "sizes read back",
)


def sizes_of(batch: int | str, length: int | str) -> list[tuple[int, int]]:
    lengths = (1, 20) if length == "length" else (6,)
    return [(count, size) for count in ((1, 3) if batch == "batch" else (2,)) for size in lengths]


@pytest.mark.parametrize("how", HOWS)
def test_heads_go_where_shapes_are_computed(how: str) -> None:
    model, last = Exported(how, "batch", "length").model("three products")
    after = assert_heads_go(model, last, sizes_of("batch", "length"))
    left = [value.const_value.shape.numpy() for value in after.graph.initializers.values() if value.const_value]
    assert sorted(shape for shape in left if len(shape) == 2) == [(6, 5), (12, 6), (12, 6), (12, 6)]


@pytest.mark.parametrize(
    ("how", "batch", "length"),
    [("scalars", "batch", 6), ("scalars", 2, "length"), ("sizes read back", "batch", 6), ("sizes read back", 2, 6)],
)
def test_heads_go_where_one_size_is_open_or_none(how: str, batch: int | str, length: int | str) -> None:
    model, last = Exported(how, batch, length).model("three products")
    assert_heads_go(model, last, sizes_of(batch, length))


@pytest.mark.parametrize(("way", "how"), [("Split", "constants"), ("Slice", "scalars"), ("Gather", "sizes read back")])
def test_heads_of_one_product_go_where_shapes_are_computed(way: str, how: str) -> None:
    model, last = Exported(how, "batch", "length").model(way)
    assert_heads_go(model, last, sizes_of("batch", "length"))


def test_heads_with_samples_and_a_mask_go_where_shapes_are_computed() -> None:
    """As torch exports its own attention: batch times heads, a mask expanded to heads, merged and split again."""
    n = Network()
    x, mask = n.input("x", "batch", "length", WIDTH), n.input("mask", "batch", "length")
    batch, length = (n.node("Slice", n.node("Shape", x), n.literal(k), n.literal(k + 1)) for k in (0, 1))
    both = n.node("Mul", batch, n.literal(HEADS))
    merged, apart = (
        n.node("Concat", *parts, axis=0)
        for parts in ((length, both, n.literal(SIZE)), (batch, n.literal(HEADS), length, n.literal(SIZE)))
    )
    first = n.node("Transpose", x, perm=[1, 0, 2])

    def heads(y: str) -> str:
        turned = n.node("Transpose", n.node("Reshape", y, merged, allowzero=1), perm=[1, 0, 2])
        return n.node("Reshape", turned, apart, allowzero=1)

    query, key, value = (heads(n.linear(first, WIDTH, WIDTH)) for _ in range(3))
    over = n.node("Reshape", mask, n.node("Concat", batch, n.literal(1, 1), length, axis=0))
    over = n.node("Expand", over, n.literal(1, HEADS, 1, 1))
    over = n.node("Reshape", over, n.node("Concat", both, n.literal(1), length, axis=0))
    over = n.node("Reshape", over, n.node("Concat", batch, n.literal(HEADS, -1), length, axis=0))
    scores = n.node("Add", n.node("MatMul", query, n.node("Transpose", key, perm=[0, 1, 3, 2])), over)
    mixed = n.node("MatMul", n.node("Softmax", scores, axis=-1), value)
    flat = n.node("Reshape", n.node("Transpose", mixed, perm=[2, 0, 1, 3]), n.literal(-1, WIDTH))
    last = n.weight(WIDTH, 5)
    y = n.node("Reshape", n.node("MatMul", flat, last), n.node("Concat", length, batch, n.literal(5), axis=0))
    assert_heads_go(n.model(y), last, sizes_of("batch", "length"))
