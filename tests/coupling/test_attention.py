"""Heads of ONNX's Attention: what goes together, told by a model whose last product reads zeros from them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.coupling import analyse, cut, links
from lepton_cli.graph import edit
from lepton_cli.model import io
from tests.coupling.networks import Network, analysed, run

SIZE = 3


def network(heads: int, shared: int, *, whole: bool, mask: tuple[int | str, ...] = ()) -> tuple[ir.Model, str]:
    """Attention of `heads` over `shared` heads of keys and values; `whole`: heads and their numbers in one axis."""
    n = Network(opset=23)
    x = n.input("x", "batch", "length", 5)
    parts = [n.linear(x, 5, count * SIZE) for count in (heads, shared, shared)]
    attributes: dict[str, int] = {"q_num_heads": heads, "kv_num_heads": shared} if whole else {}
    if not whole:
        counts = (heads, shared, shared)
        parts = [n.node("Reshape", y, n.literal(0, 0, k, SIZE)) for y, k in zip(parts, counts, strict=True)]
        parts = [n.node("Transpose", y, perm=[0, 2, 1, 3]) for y in parts]
    if mask:
        parts.append(n.input("mask", *mask))
    mixed = n.node("Attention", *parts, **attributes)
    if not whole:
        mixed = n.node("Reshape", n.node("Transpose", mixed, perm=[0, 2, 1, 3]), n.literal(0, 0, heads * SIZE))
    last = n.weight(heads * SIZE, 2)
    return n.model(n.node("MatMul", mixed, last)), last


def only(found: links.Coupling) -> links.Group:
    (group,) = (group for group in found.groups if group.frozen is None)
    return group


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 3), (4, 2)])
def test_heads_go_with_those_that_share_keys_and_values(heads: int, shared: int, whole: bool) -> None:
    model, last = network(heads, shared, whole=whole)
    prepared, found = analysed(model)
    group, each = only(found), heads // shared * SIZE
    assert group.channels == shared
    np.testing.assert_array_equal(group.slices[last, 0], np.arange(heads * SIZE).reshape(shared, each))
    assert sorted(rows.shape[1] for rows in group.slices.values()) == sorted([SIZE] * 4 + [each] * 3)
    after = cut.cut(prepared, found, group.atoms[[1]])
    (node,) = (node for node in after.graph if node.op_type == "Attention")
    told = [node.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads")]
    assert told == ([heads - heads // shared, shared - 1] if whole else [0, 0])
    want = io.clone(model)
    value = want.graph.initializers[last]
    assert value.const_value is not None
    rows = value.const_value.numpy().copy()
    rows[each : 2 * each] = 0
    edit.set_weight(value, rows)
    for batch, length in ((2, 8), (1, 1), (3, 5)):
        (one,), (two,) = run(want, batch, length), run(after, batch, length)
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "free"),
    [
        (("batch", 1, "length", "length"), True),
        (("length", "length"), True),
        (("batch", 4, "length", "length"), False),
        ((4, "length", "length"), False),
    ],
)
def test_a_mask_from_outside_keeps_the_heads_that_it_tells_apart(mask: tuple[int | str, ...], free: bool) -> None:
    found = analysed(network(4, 4, whole=False, mask=mask)[0])[1]
    reasons = {group.frozen for group in found.groups if group.channels == 4}
    assert reasons == {None if free else "`mask` is an input of the model"}


def two_heads(n: Network, x: str) -> str:
    """[batch, 2, length, size] of [batch, length, 5]."""
    two = n.node("Reshape", n.linear(x, 5, 2 * SIZE), n.literal(0, 0, 2, SIZE))
    return n.node("Transpose", two, perm=[0, 2, 1, 3])


@pytest.mark.parametrize("kept", ["none", "past", "scores"])
def test_heads_of_a_cache_go_unless_they_come_or_leave_by_themselves(kept: str) -> None:
    n = Network(opset=23)
    x = n.input("x", "batch", "length", 5)
    query, key, value = (two_heads(n, x) for _ in range(3))
    names = ("old_keys", "old_values")
    if kept == "past":
        past = [n.input(name, "batch", 2, "before", SIZE) for name in names]
    else:
        past = [two_heads(n, n.input(name, "batch", "before", 5)) for name in names]
    mixed = n.node("Attention", query, key, value, "", *past, outputs=4)
    _, present, _, scores = n.nodes[-1].output
    more = [scores] if kept == "scores" else []
    mixed = n.node("Reshape", n.node("Transpose", mixed, perm=[0, 2, 1, 3]), n.literal(0, 0, 2 * SIZE))
    found = analysed(n.model(n.linear(mixed, 2 * SIZE, 2), *more))[1]
    heads = [group for group in found.groups if group.name == "MatMul_0"]
    reason = (
        "`old_keys` is an input of the model" if kept == "past" else f"`{[*more, ''][0]}` is an output of the model"
    )
    assert [(group.frozen, group.channels) for group in heads] == [(None if kept == "none" else reason, 2)]
    assert (len(heads[0].producers), len(heads[0].consumers)) == (3 if kept == "past" else 5, 1)
    np.testing.assert_array_equal(found.labels[present, 1], heads[0].atoms)


def test_the_size_of_a_head_stays() -> None:
    found = analysed(network(4, 4, whole=False)[0])[1]
    assert [group.channels for group in found.groups] == [4, 2]


def test_attention_of_another_domain_or_of_unknown_heads_stays() -> None:
    """onnxruntime's own has the name, and projects its input itself."""
    n = Network(opset=23)
    parts = [n.linear(n.input(name, "batch", "length", 5), 5, 2 * SIZE) for name in ("q", "k", "v")]
    mixed = n.node("Attention", *parts, q_num_heads=2, kv_num_heads=2)
    prepared, found = analysed(n.model(n.linear(mixed, 2 * SIZE, 2)))
    assert next(group.frozen for group in found.groups) is None
    (node,) = (node for node in prepared.graph if node.op_type == "Attention")
    node.domain = "com.microsoft"
    again = analyse.analyse(prepared, found.facts)
    assert next(group.frozen for group in again.groups) == "Attention fixes this axis"
    node.domain = ""
    del node.attributes["kv_num_heads"]
    again = analyse.analyse(prepared, found.facts)
    assert next(group.frozen for group in again.groups) == "Attention fixes this axis"
