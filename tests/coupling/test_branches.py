"""A branch of zeros can be dropped without a change; what else needs a value keeps it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lepton_cli.coupling import branches
from lepton_cli.graph import edit
from tests.coupling.networks import Network, analysed, run


def zeroed(model: ir.Model, branch: branches.Branch) -> ir.Model:
    """The last layer of the branch made zero: weights and bias."""
    copy = model.clone()
    by_name = {node.name: node for node in copy.graph}
    end = by_name[branch.add].inputs[branch.side].producer()
    while not any(v.is_initializer() and len(v.const_value.shape) > 1 for v in end.inputs if v is not None):
        for value in end.inputs:
            if value.is_initializer():
                edit.set_weight(value, 0 * value.const_value.numpy())
        end = next(v.producer() for v in end.inputs if v.producer() is not None)
    for value in end.inputs:
        if value.is_initializer():
            edit.set_weight(value, 0 * value.const_value.numpy())
    return copy


def assert_droppable(model: ir.Model, count: int, other: int = 8) -> None:
    prepared, coupling = analysed(model, other=other)
    found = branches.find(prepared, coupling.facts)
    assert len(found) == count
    for chosen in ([found[0]], [found[-1]], list(found)):
        before = prepared
        for branch in chosen:
            before = zeroed(before, branch)
        after, _ = branches.drop(prepared, chosen)
        onnx.checker.check_model(ir.to_proto(after))
        assert len(list(after.graph)) < len(list(prepared.graph))
        for batch in (1, 3):
            for one, two in zip(run(before, batch, other), run(after, batch, other), strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def residual(blocks: int = 3, tail: str = "Relu") -> ir.Model:
    n = Network()
    x = n.node("Relu", n.conv(n.input("x", "batch", 3, 8, 8), 3, 8))
    for _ in range(blocks):
        inner = n.node("Relu", n.conv(x, 8, 6))
        x = n.node(tail, n.node("Add", n.conv(inner, 6, 8), x))
    return n.model(n.node("GlobalAveragePool", x))


@pytest.mark.parametrize("tail", ["Relu", "Identity"])
def test_residual_blocks(tail: str) -> None:
    assert_droppable(residual(tail=tail), 3)


def test_transformer_blocks() -> None:
    n = Network()
    x = n.linear(n.input("x", "batch", "other", 6), 6, 16)
    for _ in range(2):
        normed = n.node("LayerNormalization", x, n.weight(16), n.weight(16), axis=-1)
        x = n.node("Add", x, n.linear(n.node("Relu", n.linear(normed, 16, 32)), 32, 16))
    assert_droppable(n.model(n.linear(x, 16, 4)), 2)


def test_a_shortcut_with_weights_stays_and_the_larger_side_goes() -> None:
    n = Network()
    x = n.node("Relu", n.conv(n.input("x", "batch", 3, 8, 8), 3, 8))
    main = n.conv(n.node("Relu", n.conv(x, 8, 8, stride=2)), 8, 12)
    model = n.model(n.node("Relu", n.node("Add", n.conv(x, 8, 12, kernel=1, stride=2), main)))
    prepared, coupling = analysed(model)
    (found,) = branches.find(prepared, coupling.facts)
    assert len(found.nodes) == 3
    left, stand_ins = branches.drop(prepared, [found])
    assert [node.op_type for node in left.graph] == ["Conv", "Relu", "Conv", "Relu"]
    assert stand_ins == {"Add_6_out"}


def test_what_is_needed_elsewhere_stays() -> None:
    n = Network()
    x = n.node("Relu", n.conv(n.input("x", "batch", 3, 8, 8), 3, 8))
    inner = n.node("Relu", n.conv(x, 8, 8))
    total = n.node("Relu", n.node("Add", x, n.conv(inner, 8, 8)))
    prepared, coupling = analysed(n.model(n.node("GlobalAveragePool", total), inner))
    (found,) = branches.find(prepared, coupling.facts)
    assert len(found.nodes) == 1
    left, _ = branches.drop(prepared, [found])
    assert [node.op_type for node in left.graph].count("Conv") == 2


def test_broadcast_sums_outputs_and_tables_are_no_branches() -> None:
    n = Network()
    x = n.conv(n.input("x", "batch", 3, 8, 8), 3, 8)
    gate = n.conv(n.node("GlobalAveragePool", x), 8, 8, kernel=1)
    prepared, coupling = analysed(n.model(n.node("Add", n.node("Relu", n.node("Add", gate, x)), n.conv(x, 8, 8))))
    found = branches.find(prepared, coupling.facts)
    assert [branch.nodes for branch in found] == [
        tuple(node.name for node in prepared.graph if "Pool" in node.op_type or node.name == "Conv_2")
    ]


def test_values_take_the_name_of_what_they_stand_for() -> None:
    prepared, coupling = analysed(residual(2))
    first, _ = branches.find(prepared, coupling.facts)
    left, stand_ins = branches.drop(prepared, [first])
    total = next(node for node in prepared.graph if node.name == first.add).outputs[0]
    after = next(user for user, _ in total.uses()).outputs[0]
    assert stand_ins == {total.name, after.name}
    assert next(node for node in left.graph).outputs[0].name == total.name


def test_two_outputs_of_one_node_are_not_each_others_branch() -> None:
    n = Network()
    n.node("Split", n.conv(n.input("x", "batch", 3, 8, 8), 3, 8), n.literal(4, 4), outputs=2, axis=1)
    total = n.node("Add", "Split_1_out", "Split_1_1_out")
    prepared, coupling = analysed(n.model(n.node("Relu", total)))
    assert branches.find(prepared, coupling.facts) == ()


def test_an_output_that_stands_for_a_sum_keeps_its_name() -> None:
    n = Network()
    x = n.conv(n.input("x", "batch", 3, 8, 8), 3, 8)
    inner = n.conv(n.node("Relu", n.conv(n.input("y", "batch", 3, 8, 8), 3, 8)), 8, 8)
    prepared, coupling = analysed(n.model(x, n.node("Relu", n.node("Add", x, inner))))
    (found,) = branches.find(prepared, coupling.facts)
    left, stand_ins = branches.drop(prepared, [found])
    assert [value.name for value in left.graph.outputs] == [value.name for value in prepared.graph.outputs]
    assert stand_ins == set()
