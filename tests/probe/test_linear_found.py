"""Which layers are found as linear ones, and which biases are their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.probe import linear
from lepton_cli.probe.linear import Linear
from tests.coupling.networks import Network
from tests.probe.test_linear import conv_model, convolution, gemm, only, product


def product_and(after: Callable[[Network, str], list[str]]) -> Linear:
    """A product of 4 outputs with something behind it that is no bias of its own."""
    n = Network()
    product = n.node("MatMul", n.input("x", "batch", 4), n.weight(4, 4))
    return linear.find(n.model(*after(n, product)))["MatMul_0"]


@pytest.mark.parametrize(
    "after",
    {
        "another operator": lambda n, y: [n.node("Mul", y, n.weight(4))],
        "a bias of another shape": lambda n, y: [n.node("Add", y, n.weight(1))],
        "a bias of two axes": lambda n, y: [n.node("Add", y, n.weight(1, 4))],
        "an activation": lambda n, y: [n.node("Add", y, n.node("Relu", "x"))],
        "a second reader": lambda n, y: [n.node("Add", y, n.weight(4)), n.node("Relu", y)],
        "an output of the model": lambda n, y: [n.node("Add", y, n.weight(4)), y],
        "itself": lambda n, y: [n.node("Add", y, y)],
        "a bias that others read": lambda n, y: [n.node("Add", y, bias := n.weight(4)), n.node("Mul", "x", bias)],
        "nothing": lambda n, y: [y],
    }.values(),
)
def test_what_is_not_a_products_own_bias_is_left_alone(after: Callable[[Network, str], list[str]]) -> None:
    layer = product_and(after)
    assert layer.bias is None
    assert layer.biased == layer.output == "MatMul_0_out"
    assert not layer.can_add_bias


def build(make: Callable[[Network], Sequence[str]]) -> ir.Model:
    n = Network()
    return n.model(*make(n))


def whole(n: Network) -> str:
    return n.node("Cast", n.input("x", "b", 2), to=7)


NOT_LINEAR: dict[str, Callable[[Network], Sequence[str]]] = {
    "Conv in groups": lambda n: [n.conv(n.input("x", "b", 4, 5, 5), 4, 4, 3, group=2)],
    "Conv with a computed weight": lambda n: [
        n.node("Conv", n.input("x", "b", 3, 4, 4), n.node("Relu", n.weight(2, 3, 1, 1)))
    ],
    "Conv with a shared weight": lambda n: [
        n.node("Conv", x := n.input("x", "b", 3, 4, 4), w := n.weight(3, 3, 1, 1)),
        n.node("Conv", x, w),
    ],
    "Gemm with a computed weight": lambda n: [n.node("Gemm", n.input("x", "b", 3), n.node("Relu", n.weight(3, 2)))],
    "Gemm with a shared weight": lambda n: [
        n.node("Gemm", x := n.input("x", "b", 3), w := n.weight(3, 2)),
        n.node("Gemm", x, w),
    ],
    "Gemm with alpha": lambda n: [n.node("Gemm", n.input("x", "b", 3), n.weight(3, 2), alpha=2.0, beta=1.0)],
    "Gemm with beta": lambda n: [n.node("Gemm", n.input("x", "b", 3), n.weight(3, 2), n.weight(2), beta=0.5)],
    "Gemm with a transposed input": lambda n: [n.node("Gemm", n.input("x", 3, "b"), n.weight(3, 2), transA=1)],
    "Gemm of whole numbers": lambda n: [
        n.node("Cast", n.node("Gemm", whole(n), n.weight(values=np.ones((2, 2), np.int64))), to=1)
    ],
    "MatMul with a computed weight": lambda n: [n.node("MatMul", n.input("x", "b", 3), n.node("Relu", n.weight(3, 2)))],
    "MatMul with a shared weight": lambda n: [
        n.node("MatMul", x := n.input("x", "b", 3), w := n.weight(3, 2)),
        n.node("MatMul", x, w),
    ],
    "MatMul with its weight first": lambda n: [n.node("MatMul", n.weight(2, 3), n.input("x", 3, "b"))],
    "MatMul of a stack": lambda n: [n.node("MatMul", n.input("x", "b", 2, 3), n.weight(2, 3, 3))],
    "MatMul with a vector": lambda n: [n.node("MatMul", n.input("x", "b", 3), n.weight(3))],
    "MatMul of whole numbers": lambda n: [
        n.node("Cast", n.node("MatMul", whole(n), n.weight(values=np.ones((2, 2), np.int64))), to=1)
    ],
    "no weights": lambda n: [n.node("Relu", n.input("x", "b", 3))],
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_what_has_no_weight_of_its_own_to_fit_is_not_found(name: str) -> None:
    assert linear.find(build(NOT_LINEAR[name])) == {}


def test_products_of_other_domains_and_convolutions_of_whole_numbers_are_not_found() -> None:
    model = product()
    next(iter(model.graph)).domain = "custom"
    assert linear.find(model) == {}
    next(iter(model.graph)).domain = "ai.onnx"
    assert len(linear.find(model)) == 1
    model = convolution()
    model.graph.initializers["w0"].dtype = ir.DataType.INT8
    assert linear.find(model) == {}


@pytest.mark.parametrize("make", [convolution, gemm, product])
def test_a_node_without_its_input_or_weight_is_not_found(make: Callable[[], ir.Model]) -> None:
    for index in (0, 1):
        model = make()
        next(iter(model.graph)).replace_input_with(index, None)
        assert linear.find(model) == {}


@pytest.mark.parametrize("make", [convolution, gemm, product])
def test_a_weight_whose_numbers_are_missing_is_not_found(make: Callable[[], ir.Model]) -> None:
    model = make()
    model.graph.initializers["w0"].const_value = None
    assert linear.find(model) == {}


def test_plain_attributes_that_say_the_default_change_nothing() -> None:
    found = only(gemm(alpha=1.0, beta=1.0, transA=0, transB=0))
    assert (found.in_axis, found.out_axis, found.bias) == (0, 1, "w1")
    assert only(conv_model(2, (4, 4), (1, 1), group=1)).kernel == (1, 1)


@pytest.mark.parametrize(
    "bias",
    [
        lambda n: n.weight(1, 4),
        lambda n: n.weight(),
        lambda n: n.weight(1),
        lambda n: n.node("Relu", n.weight(4)),
    ],
    ids=["two axes", "no axis", "one number for all", "computed"],
)
def test_a_gemm_whose_third_input_is_no_stored_vector_has_no_place_for_a_bias(bias: Callable[[Network], str]) -> None:
    n = Network()
    x = n.input("x", "batch", 6)
    model = n.model(n.node("Gemm", x, n.weight(6, 4), bias(n)))
    layer = only(model)
    assert layer.bias is None
    assert not layer.can_add_bias
    assert linear.bias_of(model, layer) is None


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_a_bias_that_another_node_reads_too_is_left_alone(op: str) -> None:
    n = Network()
    x = n.input("x", "batch", 3, *([4, 4] if op == "Conv" else []))
    bias = n.weight(3)
    weight = n.weight(3, 3, 1, 1) if op == "Conv" else n.weight(3, 3)
    model = n.model(n.node(op, x, weight, bias), n.node("Relu", bias))
    layer = only(model)
    assert layer.bias is None
    assert not layer.can_add_bias
    assert linear.bias_of(model, layer) is None


def test_layers_are_found_in_the_order_of_the_graph() -> None:
    n = Network()
    x = n.linear(n.linear(n.input("x", "batch", 3), 3, 4), 4, 5)
    found = linear.find(n.model(n.node("Gemm", x, n.weight(5, 2))))
    assert list(found) == ["MatMul_0", "MatMul_2", "Gemm_4"]
    assert [layer.input for layer in found.values()] == ["x", "Add_1_out", "Add_3_out"]
