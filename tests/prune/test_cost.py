"""What widths cost, against counting in models that were really cut."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_cli.coupling import cut
from lepton_cli.coupling.links import Coupling, Group
from lepton_cli.graph import cost as node_cost
from lepton_cli.graph import shapes
from lepton_cli.prune import cost
from lepton_cli.prune.cost import Widths
from tests.coupling.networks import Network, analysed
from tests.prune.context import redundant


def separable() -> ir.Model:
    """Depthwise convolutions, a Concat, and an inner product whose features are channels times positions."""
    n = Network(1)
    x = n.node("Relu", n.conv(n.input("x", 2, 3, 8, 8), 3, 6))
    deep = n.conv(n.node("Relu", n.conv(x, 6, 6, group=6)), 6, 4, kernel=1, stride=2)
    wide = n.conv(x, 6, 5, stride=2)
    both = n.node("Concat", deep, wide, axis=1)
    flat = n.node("Flatten", n.node("AveragePool", both, kernel_shape=[2, 2], strides=[2, 2]))
    return n.model(n.node("Gemm", flat, n.weight(36, 7), n.weight(7)))


def attention() -> ir.Model:
    """Products of two activations: over the features of queries and keys, and with the values."""
    n = Network(2)
    x = n.input("x", 2, 8, 6)
    queries, keys, values = n.linear(x, 6, 12), n.linear(x, 6, 12), n.linear(x, 6, 10)
    scores = n.node("Softmax", n.node("MatMul", queries, n.node("Transpose", keys, perm=[0, 2, 1])), axis=-1)
    return n.model(n.linear(n.node("MatMul", scores, values), 10, 5))


MODELS = {"residual": redundant, "separable": separable, "attention": attention}


@functools.cache
def prepared(name: str) -> tuple[ir.Model, Coupling, tuple[Group, ...]]:
    model, found = analysed(MODELS[name]())
    groups = tuple(group for group in found.groups if group.frozen is None)
    assert len(groups) >= 2
    return model, found, groups


def reduced(name: str, widths: Widths) -> ir.Model:
    model, found, groups = prepared(name)
    gone = [group.atoms[: group.channels - width] for group, width in zip(groups, widths, strict=True)]
    return cut.cut(model, found, np.concatenate(gone))


def counted(name: str, model: ir.Model) -> tuple[float, float, float]:
    """Multiply-accumulates, elements and bytes."""
    shape = {"x": (2, 8, 6) if name == "attention" else (2, 3, 8, 8)}
    arrays = [value.const_value.numpy() for value in model.graph.initializers.values()]
    macs = sum(node_cost.macs(model, shapes.concrete(model, shape)).values())
    return float(macs), float(sum(array.size for array in arrays)), float(sum(array.nbytes for array in arrays))


def prices(name: str) -> tuple[cost.CostModel, cost.CostModel, cost.CostModel]:
    model, found, groups = prepared(name)
    return (
        cost.macs(model, found, groups),
        cost.parameters(model, found, groups),
        cost.parameters(model, found, groups, as_bytes=True, base=1000.0),
    )


def drawn(name: str, seed: int) -> Widths:
    random = np.random.default_rng(seed)
    return np.array([random.integers(1, group.channels + 1) for group in prepared(name)[2]])


@pytest.mark.parametrize("name", MODELS)
@given(st.integers(0, 9999))
@settings(max_examples=10)
def test_widths_cost_what_the_cut_model_has(name: str, seed: int) -> None:
    widths = drawn(name, seed)
    macs, elements, size = counted(name, reduced(name, widths))
    found = [price(widths) for price in prices(name)]
    assert found == pytest.approx([macs, elements, size + 1000], rel=1e-9)


@pytest.mark.parametrize("name", MODELS)
@given(st.integers(0, 9999))
@settings(max_examples=10)
def test_a_varied_group_costs_what_its_widths_cost(name: str, seed: int) -> None:
    widths = drawn(name, seed)
    for price in prices(name):
        for number, group in enumerate(prepared(name)[2]):
            levels = np.arange(group.channels, -1, -1)
            each = [np.where(np.arange(len(widths)) == number, level, widths) for level in levels]
            found = price.table(widths, number, levels)
            np.testing.assert_allclose(found, [price(trial) for trial in each], rtol=1e-9)
            assert price.without(widths)[number] == pytest.approx(price(each[-1]))
        assert len(price.without(widths)) == len(widths)


def test_bytes_follow_the_type_of_each_weight() -> None:
    n = Network()
    hidden = n.node("Relu", n.node("MatMul", n.input("x", 2, 3), n.weight(3, 4)))
    half = n.weight(values=np.ones((4, 5), np.float16))
    last = n.node("MatMul", n.node("Cast", hidden, to=10), half)
    n.weight(values=np.zeros((0, 3), np.float32))
    model, found = analysed(n.model(n.node("Cast", last, to=1)))
    groups = [group for group in found.groups if group.frozen is None]
    assert len(groups) == 1
    assert cost.parameters(model, found, groups, as_bytes=True)(np.array([3])) == 3 * 3 * 4 + 3 * 5 * 2
    assert cost.parameters(model, found, groups)(np.array([3])) == 3 * 3 + 3 * 5


@pytest.mark.parametrize("between", [False, True])
def test_a_table_that_is_read_turned_is_one_unless_channels_of_one_reader_go(between: bool) -> None:
    """Rows of 6 for 50 words; the last layer reads them turned, or what another layer makes of them."""
    n = Network()
    table = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    x = n.node("Gather", n.weight(values=table), n.node("Cast", n.input("x", 2), to=7))
    x = n.node("Relu", n.node("MatMul", x, n.weight(6, 6)) if between else x)
    model, found = analysed(n.model(n.node("MatMul", x, n.weight(values=table.T.copy()))))
    groups = [group for group in found.groups if group.frozen is None]
    price = cost.parameters(model, found, groups)
    assert price(np.full(len(groups), 4)) == (50 * 6 + 6 * 4 + 4 * 50 if between else 50 * 6)
    assert len(groups) == between


def test_without_groups_everything_is_fixed() -> None:
    model, found, _ = prepared("residual")
    none: NDArray[np.int64] = np.zeros(0, np.int64)
    macs, elements, size = counted("residual", model)
    assert cost.macs(model, found, ())(none) == macs
    assert cost.parameters(model, found, ())(none) == elements
    assert cost.parameters(model, found, (), as_bytes=True)(none) == size
    assert cost.macs(model, found, ()).without(none).tolist() == []


def test_terms_are_products_of_lengths() -> None:
    """7 + 2 (1 + 3 a) (4 b) + 5 (2 + a + b)."""
    fixed = np.array([[1.0, 0.0], [2.0, 1.0]])
    entries = [(1, 1, 4.0), (0, 0, 3.0), (1, 2, 1.0), (0, 2, 1.0)]
    price = cost.sparse(7.0, np.array([2.0, 5.0]), fixed, entries)
    assert price(np.array([2, 3])) == 7 + 2 * 7 * 12 + 5 * 7
    assert price.table(np.array([2, 3]), 0, np.array([4, 0])).tolist() == [7 + 2 * 13 * 12 + 5 * 9, 7 + 2 * 12 + 5 * 5]
    assert price.without(np.array([2, 3])).tolist() == [7 + 2 * 12 + 5 * 5, 7 + 5 * 4]


def test_several_costs_are_one() -> None:
    """7 + 2 (1 + 3 a) (4 b), 5 + 3 a, and 1 + 10 a where a is filled up to 4 or stays below 3, as 2 a."""
    product = cost.sparse(7.0, np.array([2.0]), np.array([[1.0, 0.0]]), [(1, 1, 4.0), (0, 0, 3.0)])
    line = cost.sparse(5.0, np.array([3.0]), np.array([[0.0]]), [(0, 0, 1.0)])
    forms = cost.Forms(np.array([[4.0]]), np.array([[3.0]]), np.zeros(1), np.array([2.0]))
    filled = cost.CostModel(1.0, np.array([10.0]), np.zeros((1, 1)), *map(np.array, ([0], [0], [1.0])), forms)

    def wanted(a: int, b: int) -> float:
        return 7 + 2 * (1 + 3 * a) * (4 * b) + 5 + 3 * a + 1 + (2 * a if a < 3 else 10 * 4 * -(-a // 4))

    for order in ((product, line, filled), (filled, product, line), (line, filled, product)):
        whole = cost.total(order)
        assert [whole(np.array([a, b])) for a in range(6) for b in (1, 3)] == [
            wanted(a, b) for a in range(6) for b in (1, 3)
        ]
        assert whole.table(np.array([2, 3]), 0, np.arange(6)).tolist() == [wanted(a, 3) for a in range(6)]
        assert whole.table(np.array([2, 3]), 1, np.arange(6)).tolist() == [wanted(2, b) for b in range(6)]
    assert cost.total([product, line]).forms is None
