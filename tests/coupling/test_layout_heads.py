"""Heads that share an axis with samples, as older exporters and torch's own attention write them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.coupling.networks import Network, analysed, assert_zeroed_equals_cut


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
