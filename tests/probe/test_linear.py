"""Layers as rows of features times a matrix: against plain loops, and against what onnxruntime computes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from lepton_cli import runtime
from lepton_cli.model import io
from lepton_cli.probe import linear
from lepton_cli.probe.linear import Linear
from tests.coupling.networks import Network

Array = NDArray[Any]


def random_array(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def outputs(model: ir.Model, x: Array) -> Array:
    return next(iter(runtime.Session(io.to_bytes(model), threads=1).run({"x": x}).values()))


def only(model: ir.Model) -> Linear:
    (layer,) = linear.find(model).values()
    return layer


def conv_model(channels: int, size: Sequence[int], kernel: Sequence[int], **attributes: Any) -> ir.Model:
    n = Network()
    return n.model(n.node("Conv", n.input("x", "batch", channels, *size), n.weight(4, channels, *kernel), **attributes))


def loop_features(x: Array, kernel: Sequence[int], attributes: Mapping[str, Any]) -> Array:
    """Windows by plain loops, padding by asking whether a position exists; the ONNX text's rule for `auto_pad`."""
    dims = len(kernel)
    strides = attributes.get("strides", [1] * dims)
    dilations = attributes.get("dilations", [1] * dims)
    pads = list(attributes.get("pads", [0] * 2 * dims))
    auto = attributes.get("auto_pad", "NOTSET")
    counts = []
    for i in range(dims):
        span = (kernel[i] - 1) * dilations[i] + 1
        if auto.startswith("SAME"):
            out = int(np.ceil(x.shape[2 + i] / strides[i]))
            total = max((out - 1) * strides[i] + span - x.shape[2 + i], 0)
            pads[i] = total // 2 if auto == "SAME_UPPER" else (total + 1) // 2
            pads[i + dims] = total - pads[i]
        counts.append((x.shape[2 + i] + pads[i] + pads[i + dims] - span) // strides[i] + 1)
    rows = []
    for sample in x:
        for where in itertools.product(*map(range, counts)):
            row = []
            for channel in sample:
                for tap in itertools.product(*map(range, kernel)):
                    at = tuple(
                        w * s + t * d - p
                        for w, s, t, d, p in zip(where, strides, tap, dilations, pads[:dims], strict=True)
                    )
                    inside = all(0 <= a < size for a, size in zip(at, channel.shape, strict=True))
                    row.append(channel[at] if inside else 0.0)
            rows.append(row)
    return np.array(rows, np.float32)


CONVOLUTIONS = {
    "1-D": ((7,), (3,), {}),
    "1-D with everything": ((11,), (3,), {"strides": [2], "dilations": [3], "pads": [1, 4]}),
    "1-D same upper": ((6,), (3,), {"strides": [2], "auto_pad": "SAME_UPPER"}),
    "1-D same lower": ((6,), (3,), {"strides": [2], "auto_pad": "SAME_LOWER"}),
    "pointwise": ((3, 4), (1, 1), {}),
    "padded": ((5, 4), (3, 2), {"pads": [1, 1, 1, 1]}),
    "strides": ((7, 8), (3, 2), {"strides": [2, 3]}),
    "dilations": ((7, 8), (3, 2), {"dilations": [2, 3]}),
    "pads of one side": ((5, 5), (2, 3), {"pads": [0, 2, 1, 0]}),
    "pads after alone": ((4, 4), (2, 2), {"pads": [0, 0, 0, 1]}),
    "everything": ((8, 7), (3, 2), {"strides": [2, 3], "dilations": [2, 1], "pads": [1, 0, 3, 2]}),
    "same upper": ((7, 6), (3, 2), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same lower": ((7, 6), (2, 3), {"strides": [1, 2], "auto_pad": "SAME_LOWER"}),
    "same, kernel below stride": ((5, 8), (1, 2), {"strides": [3, 4], "auto_pad": "SAME_UPPER"}),
    "valid": ((6, 6), (3, 2), {"strides": [2, 1], "auto_pad": "VALID"}),
    "3-D": ((4, 5, 3), (2, 3, 1), {"strides": [2, 1, 2], "dilations": [1, 2, 1], "pads": [1, 0, 0, 0, 2, 1]}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_features_of_convolutions_are_those_of_loops_and_give_what_onnxruntime_gives(name: str) -> None:
    size, kernel, attributes = CONVOLUTIONS[name]
    model = conv_model(2, size, kernel, **attributes)
    layer, x = only(model), random_array(2, 2, *size)
    found = layer.features(x)
    np.testing.assert_array_equal(found, loop_features(x, kernel, attributes))
    expected = np.moveaxis(outputs(model, x), 1, -1).reshape(-1, 4)
    weight = model.graph.initializers["w0"].const_value
    assert weight is not None
    np.testing.assert_allclose(found @ weight.numpy().reshape(4, -1).T, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found @ linear.matrix_of(model, layer), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer.rows(outputs(model, x)), expected)


@settings(max_examples=25)
@given(
    size=st.integers(1, 9), kernel=st.integers(1, 4), stride=st.integers(1, 4), dilation=st.integers(1, 3),
    auto=st.sampled_from(["SAME_UPPER", "SAME_LOWER"]),
)  # fmt: skip
def test_same_padding_of_any_size(size: int, kernel: int, stride: int, dilation: int, auto: str) -> None:
    attributes = {"strides": [stride], "dilations": [dilation], "auto_pad": auto}
    layer, x = only(conv_model(1, [size], [kernel], **attributes)), random_array(1, 1, size)
    np.testing.assert_array_equal(layer.features(x), loop_features(x, [kernel], attributes))


def test_rows_are_picked_of_all_there_are() -> None:
    asked: list[int] = []

    def pick(total: int) -> NDArray[np.int64]:
        asked.append(total)
        return np.array([5, 0, 3])

    conv = only(conv_model(2, (4, 3), (2, 2)))
    x = random_array(2, 2, 4, 3)
    np.testing.assert_array_equal(conv.features(x, pick), loop_features(x, (2, 2), {})[[5, 0, 3]])
    y = random_array(2, 4, 3, 2)
    flat = [y[b, :, i, j] for b in range(2) for i in range(3) for j in range(2)]
    np.testing.assert_array_equal(conv.rows(y, pick), np.array(flat)[[5, 0, 3]])
    dense = only(gemm())
    x = random_array(2, 3, 6)
    np.testing.assert_array_equal(dense.features(x, pick), x.reshape(6, 6)[[5, 0, 3]])
    np.testing.assert_array_equal(dense.features(x), x.reshape(6, 6))
    np.testing.assert_array_equal(dense.rows(x, pick), x.reshape(6, 6)[[5, 0, 3]])
    np.testing.assert_array_equal(dense.rows(x), x.reshape(6, 6))
    assert asked == [12, 12, 6, 6]
    for rows in (conv.features(y[:, :2].astype(np.float64)), conv.rows(y.astype(np.float64))):
        assert rows.dtype == np.float32
    assert dense.features(x.astype(np.float64)).dtype == dense.rows(x.astype(np.float16)).dtype == np.float32


def gemm(across: bool = False, bias: bool = True, **attributes: Any) -> ir.Model:
    n = Network()
    x = n.input("x", "batch", 6)
    weights = [n.weight(4, 6) if across else n.weight(6, 4), *([n.weight(4)] if bias else [])]
    return n.model(n.node("Gemm", x, *weights, **({"transB": 1} if across else {}), **attributes))


def product(bias: bool = True) -> ir.Model:
    n = Network()
    x = n.input("x", "batch", 5, 6)
    return n.model(n.linear(x, 6, 4) if bias else n.node("MatMul", x, n.weight(6, 4)))


def convolution(bias: bool = True) -> ir.Model:
    n = Network()
    x = n.input("x", "batch", 3, 5, 4)
    weights = [n.weight(4, 3, 2, 3), *([n.weight(4)] if bias else [])]
    return n.model(n.node("Conv", x, *weights, pads=[1, 0, 0, 1]))


LAYERS: dict[str, tuple[Callable[[bool], ir.Model], tuple[int, ...]]] = {
    "Conv": (convolution, (3, 3, 5, 4)),
    "Gemm": (lambda bias: gemm(False, bias), (3, 6)),
    "transposed Gemm": (lambda bias: gemm(True, bias), (3, 6)),
    "MatMul": (product, (3, 5, 6)),
}


def with_channels_last(layer: Linear, y: Array) -> Array:
    return (np.moveaxis(y, 1, -1) if layer.op == "Conv" else y).reshape(-1, 4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_matrix_and_bias_give_the_layers_outputs(name: str, bias: bool) -> None:
    make, shape = LAYERS[name]
    model = make(bias)
    layer, x = only(model), random_array(*shape)
    matrix, vector = linear.matrix_of(model, layer), linear.bias_of(model, layer)
    assert matrix.dtype == np.float64
    if name == "MatMul" and not bias:
        assert vector is None
        vector = np.zeros(4)
    assert vector is not None
    assert vector.shape == (4,)
    assert bias == bool(vector.any())
    expected = with_channels_last(layer, outputs(model, x))
    np.testing.assert_allclose(layer.features(x) @ matrix + vector, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_stored_is_what_runs(name: str, bias: bool) -> None:
    make, shape = LAYERS[name]
    model = make(bias)
    layer, x = only(model), random_array(*shape)
    features = layer.features(x)
    matrix = random_array(features.shape[1], 4, seed=2).astype(np.float64)
    vector = random_array(4, seed=3).astype(np.float64)
    linear.store(model, layer, matrix, vector)
    kept = name != "MatMul" or bias  # a product without an Add has no place for a bias
    expected = features @ matrix + (vector if kept else 0)
    np.testing.assert_allclose(with_channels_last(layer, outputs(model, x)), expected, rtol=1e-4, atol=1e-4)
    fresh = only(model)
    np.testing.assert_array_equal(linear.matrix_of(model, fresh), matrix)
    assert (fresh.bias is not None) == kept
    if kept:
        np.testing.assert_array_equal(linear.bias_of(model, fresh), vector)
    linear.store(model, fresh, 2 * matrix, None)
    np.testing.assert_array_equal(linear.matrix_of(model, fresh), 2 * matrix)
    if kept:
        np.testing.assert_array_equal(linear.bias_of(model, fresh), vector)


def test_a_created_bias_takes_an_input_that_was_left_empty() -> None:
    n = Network()
    model = n.model(n.node("Conv", n.input("x", "batch", 3, 4, 4), n.weight(2, 3, 1, 1), ""))
    layer = only(model)
    assert layer.bias is None
    assert layer.can_add_bias
    np.testing.assert_array_equal(linear.bias_of(model, layer), [0.0, 0.0])
    before = outputs(model, random_array(1, 3, 4, 4))
    linear.store(model, layer, linear.matrix_of(model, layer), np.array([1.0, -2.0]))
    (node,) = model.graph
    assert len(node.inputs) == 3
    name = only(model).bias
    assert name is not None
    assert model.graph.initializers[name].shape == [2]
    shift = np.array([1.0, -2.0]).reshape(1, 2, 1, 1)
    np.testing.assert_allclose(outputs(model, random_array(1, 3, 4, 4)), before + shift, rtol=1e-5, atol=1e-5)


def test_a_created_bias_goes_to_its_own_node() -> None:
    n = Network()
    x = n.input("x", "batch", 3)
    model = n.model(n.node("Gemm", n.node("Gemm", x, n.weight(3, 3)), n.weight(3, 3)))
    first, second = linear.find(model).values()
    linear.store(model, second, linear.matrix_of(model, second), np.ones(3))
    assert [layer.bias is not None for layer in linear.find(model).values()] == [False, True]
    linear.store(model, first, linear.matrix_of(model, first), np.zeros(3))
    biases = [linear.bias_of(model, layer) for layer in linear.find(model).values()]
    np.testing.assert_array_equal(biases, [[0, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_keep_their_type(dtype: type, bias: bool) -> None:
    n = Network()
    x = n.node("Cast", n.input("x", "batch", 3), to=10 if dtype is np.float16 else 11)
    arrays = [random_array(3, 2).astype(dtype), *([random_array(2).astype(dtype)] if bias else [])]
    model = n.model(n.node("Cast", n.node("Gemm", x, *(n.weight(values=array) for array in arrays)), to=1))
    layer = only(model)
    linear.store(model, layer, np.ones((3, 2)) / 4, np.ones(2) / 2)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        assert value.const_value.numpy().dtype == dtype
    assert layer.features(np.ones((1, 3), dtype)).dtype == np.float32


def test_a_weight_comes_back_from_its_matrix() -> None:
    for model in (convolution(), gemm(True), gemm(False), product()):
        layer = only(model)
        tensor = model.graph.initializers[layer.weight].const_value
        assert tensor is not None
        weight = tensor.numpy()
        back = layer.weight_from(layer.matrix(weight), weight.astype(np.float16).astype(np.float64))
        assert back.dtype == np.float64
        assert back.flags.c_contiguous
        np.testing.assert_array_equal(back, weight)
        assert layer.matrix(weight).flags.c_contiguous


def test_fields_say_where_channels_and_biases_are() -> None:
    conv, across, plain, matmul = (only(model) for model in (convolution(), gemm(True), gemm(False), product()))
    assert [(layer.op, layer.in_axis, layer.out_axis) for layer in (conv, across, plain, matmul)] == [
        ("Conv", 1, 0), ("Gemm", 1, 0), ("Gemm", 0, 1), ("MatMul", 0, 1),
    ]  # fmt: skip
    assert [layer.per_channel for layer in (conv, across, plain, matmul)] == [6, 1, 1, 1]
    assert [layer.channel_axis for layer in (conv, across, plain, matmul)] == [1, -1, -1, -1]
    assert [layer.bias for layer in (conv, across, plain, matmul)] == ["w1"] * 4
    assert [layer.weight for layer in (conv, across, plain, matmul)] == ["w0"] * 4
    assert {layer.can_add_bias for layer in (conv, across, plain, matmul)} == {False}
    assert [only(make(False)).can_add_bias for make, _ in LAYERS.values()] == [True, True, True, False]
    assert [only(make(False)).bias for make, _ in LAYERS.values()] == [None] * 4
    assert (conv.input, conv.output, conv.biased, conv.node) == ("x", "Conv_0_out", "Conv_0_out", "Conv_0")
    assert (plain.input, plain.output, plain.biased, plain.node) == ("x", "Gemm_0_out", "Gemm_0_out", "Gemm_0")
    assert (matmul.output, matmul.biased, matmul.node) == ("MatMul_0_out", "Add_1_out", "MatMul_0")
    assert only(product(False)).biased == "MatMul_0_out"


def test_the_add_of_a_product_may_read_its_bias_first() -> None:
    n = Network()
    model = n.model(n.node("Add", n.weight(4), n.node("MatMul", n.input("x", "batch", 6), n.weight(6, 4))))
    layer = only(model)
    assert (layer.weight, layer.bias, layer.biased) == ("w1", "w0", "Add_1_out")
