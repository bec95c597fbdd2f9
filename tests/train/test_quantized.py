"""A quantized graph in torch: what onnxruntime computes, what is written back, gradients of codes and scales."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.train.quantized import QuantizedNetwork
from tests.quantize.builders import Graph

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(16, 6)).astype(np.float32)
CODES = RANDOM.integers(-127, 128, (6, 4)).astype(np.int8)
SCALES = np.array([0.01, 0.02, 0.005, 0.03], np.float32)
BIAS = RANDOM.integers(-3000, 3000, 4).astype(np.int32)
INPUT = np.float32(0.03)


class Quantized(Graph):
    """A graph with quantized values."""

    def through(self, value: str, scale: str, zero: str) -> str:
        codes = self.op("QuantizeLinear", value, scale, zero)
        return str(self.op("DequantizeLinear", codes, scale, zero))

    def weight(self, codes: NDArray[np.int8], scale: NDArray[np.float32], axis: int) -> str:
        zero = self.constant(np.zeros(scale.shape, codes.dtype))
        return str(self.op("DequantizeLinear", self.constant(codes), self.constant(scale), zero, axis=axis))


def linear(codes: NDArray[np.int8] = CODES) -> ir.Model:
    """`x` in steps of INPUT, times CODES, plus BIAS in steps of both."""
    graph = Quantized()
    scale, zero = graph.constant(INPUT), graph.constant(np.uint8(128))
    x = graph.through(graph.take("x", ["b", 6]), scale, zero)
    w = graph.weight(codes, SCALES, 1)
    b = graph.op("DequantizeLinear", graph.constant(BIAS), graph.constant(INPUT * SCALES), axis=0)
    return graph.model(graph.op("Gemm", x, w, b))


def held(model: ir.Model, name: str) -> NDArray[np.float32]:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return np.asarray(value.numpy())


def run(model: ir.Model, optimise: bool = True, x: NDArray[np.float32] = X) -> NDArray[np.float32]:
    session = Session(io.to_bytes(model), threads=1, optimise=optimise)
    return np.asarray(session.run({"x": x})[session.outputs[0].name])


def torch_run(network: QuantizedNetwork, x: NDArray[np.float32] = X) -> NDArray[np.float32]:
    with torch.no_grad():
        return network.run({"x": torch.from_numpy(x)})[network.outputs[0]].numpy()


def rounded(x: NDArray[np.float32], scale: np.float32) -> NDArray[np.float32]:
    """Through uint8 of the zero point 128."""
    return (np.clip(np.rint(x / scale) + 128, 0, 255) - 128).astype(np.float32) * scale


def test_the_graph_is_computed_as_its_integers_say() -> None:
    expected = rounded(X, INPUT) @ (CODES * SCALES) + BIAS * (INPUT * SCALES)
    network = QuantizedNetwork(linear())
    np.testing.assert_allclose(torch_run(network), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(linear()), expected, rtol=1e-4, atol=1e-5)


def test_what_was_not_trained_is_written_as_it_was() -> None:
    before, after = linear(), QuantizedNetwork(linear()).written()
    assert io.to_bytes(after) == io.to_bytes(before)


def test_codes_scales_and_biases_are_written_as_they_became() -> None:
    network = QuantizedNetwork(linear())
    codes, scale, step, bias = "w3", "w4", "w0", "w5"
    assert set(network.parameters) == {codes, scale, step, bias}
    assert network.exponents == {scale, step}
    shift = {name: RANDOM.normal(size=one.shape).astype(np.float32) * 0.1 for name, one in network.state().items()}
    start = network.state()
    network.load({name: np.asarray(start[name] + by, np.float32) for name, by in shift.items()})
    made = network.written()
    steps = SCALES * np.exp(shift[scale])
    first = INPUT * np.exp(shift[step])
    np.testing.assert_allclose(held(made, scale), steps, rtol=1e-6)
    np.testing.assert_allclose(held(made, step), first, rtol=1e-6)
    exact = (CODES * SCALES + shift[codes]) / steps
    near = np.abs(exact - np.rint(exact)) < 0.49
    np.testing.assert_array_equal(held(made, codes)[near], np.clip(np.rint(exact), -127, 127)[near])
    assert held(made, codes).dtype == np.int8
    wanted = (BIAS * (INPUT * SCALES) + shift[bias]) / (first * steps)
    np.testing.assert_allclose(held(made, bias), wanted, atol=0.51)
    np.testing.assert_allclose(held(made, "w6"), first * steps, rtol=1e-6)
    np.testing.assert_allclose(run(made), torch_run(network), rtol=1e-4, atol=1e-4)


def test_gradients_of_codes_and_scales() -> None:
    """Esser et al. 2020, equation 3, for the exponent: the scale times `round(w/s) - w/s`, at an end that end."""
    graph = Quantized()
    start = np.array([[10, -20, 30, 127], [5, 6, -127, 8]], np.int8)
    scales = np.array([0.5, 0.25, 0.125, 1], np.float32)
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 2]), graph.weight(start, scales, 1)))
    network = QuantizedNetwork(model)
    moved = (start + np.array([[0.3, 0.2, -0.4, 9], [0.1, -0.3, -7, 0.2]])) * scales
    network.load({"w1": moved.astype(np.float32), "w2": np.zeros(4, np.float32)})
    upstream = np.array([[1.0, -2.0, 3.0, 0.5], [2.0, 1.0, -1.0, 4.0]], np.float32)
    made = network.run({"x": torch.eye(2)})[network.outputs[0]]
    made.backward(torch.from_numpy(upstream))
    inside = np.abs(moved / scales) <= 127
    wanted = np.where(inside, (np.rint(moved / scales) - moved / scales) * scales, np.sign(moved) * 127 * scales)
    scale, codes = network.parameters["w2"].grad, network.parameters["w1"].grad
    assert scale is not None
    assert codes is not None
    np.testing.assert_allclose(scale.numpy(), (upstream * wanted).sum(0), rtol=1e-4)
    np.testing.assert_array_equal(codes.numpy(), upstream * inside)


def test_activations_give_their_scale_a_gradient() -> None:
    graph = Quantized()
    x = graph.through(graph.take("x", ["b", 2]), graph.constant(np.float32(0.5)), graph.constant(np.uint8(0)))
    network = QuantizedNetwork(graph.model(x))
    numbers = np.array([[0.3, 200.0], [1.6, -4.0]], np.float32)
    network.run({"x": torch.from_numpy(numbers)})[network.outputs[0]].sum().backward()
    grad = network.parameters["w0"].grad
    assert grad is not None
    assert grad.item() == pytest.approx((1 - 0.6) * 0.5 + 255 * 0.5 + (3 - 3.2) * 0.5 + 0, rel=1e-5)


def test_scales_that_have_to_be_equal_stay_so() -> None:
    """Of what only moves numbers, onnxruntime's integer kernels need the scale on both sides to be one."""
    graph = Quantized()
    zero = graph.constant(np.uint8(0))
    first = graph.through(graph.take("x", ["b", 1, 4, 4]), graph.constant(np.float32(0.1)), zero)
    pooled = graph.op("MaxPool", first, kernel_shape=[2, 2])
    last = graph.through(pooled, graph.constant(np.float32(0.1)), zero)
    network = QuantizedNetwork(graph.model(graph.through(last, graph.constant(np.float32(0.2)), zero)))
    assert set(network.exponents) == {"w1", "w3"}
    network.load({"w1": np.array(0.5, np.float32), "w3": np.array(-0.5, np.float32)})
    made = network.written()
    assert held(made, "w1") == held(made, "w2") == np.float32(np.float32(0.1) * np.exp(np.float32(0.5)))
    assert held(made, "w3") == pytest.approx(0.2 * np.exp(-0.5))


def test_numbers_that_were_stored_once_learn_apart() -> None:
    graph = Quantized()
    scale, zero = graph.constant(np.float32(0.1)), graph.constant(np.int8(0))
    x = graph.through(graph.take("x", ["b", 6]), scale, zero)
    w = graph.op("DequantizeLinear", graph.constant(CODES), scale, zero)
    network = QuantizedNetwork(graph.model(graph.op("MatMul", x, w)))
    assert len(network.exponents) == 2
    shared, own = sorted(network.exponents, key=len)
    network.load(network.state() | {shared: np.array(0.3, np.float32), own: np.array(-0.2, np.float32)})
    np.testing.assert_allclose(run(network.written()), torch_run(network), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("most", "bound"), [(64, 64), (65, 127)])
def test_weights_of_seven_bits_stay_so(most: int, bound: int) -> None:
    codes = np.clip(CODES, -most, most)
    network = QuantizedNetwork(linear(codes))
    network.load(network.state() | {"w3": np.full((6, 4), 100, np.float32)})
    assert held(network.written(), "w3").max() == bound


def test_what_was_pruned_stays_zero() -> None:
    codes = CODES.copy()
    codes[::2] = 0
    network = QuantizedNetwork(linear(codes))
    network.load(network.state() | {"w3": np.full((6, 4), 0.1, np.float32)})
    network.mask()
    made = held(network.written(), "w3")
    assert not made[::2].any()
    assert made[1::2].all()


def test_only_the_layers_asked_for_train() -> None:
    graph = Quantized()
    zero = graph.constant(np.uint8(128))
    x = graph.through(graph.take("x", ["b", 6]), graph.constant(np.float32(0.1)), zero)
    x = graph.op("MatMul", x, graph.weight(CODES, SCALES, 1))
    x = graph.through(x, graph.constant(np.float32(0.2)), zero)
    model = graph.model(graph.op("MatMul", x, graph.weight(CODES.T.copy(), np.resize(SCALES, 6), 1)))
    (last,) = [node.name for node in model.graph if node.op_type == "MatMul"][1:]
    names = set(QuantizedNetwork(model, {last or ""}).parameters)
    assert names == {"w5", "w7", "w8"}
    assert not QuantizedNetwork(model, ()).parameters


def test_layers_left_in_float_train_too() -> None:
    graph = Quantized()
    x = graph.through(graph.take("x", ["b", 6]), graph.constant(np.float32(0.1)), graph.constant(np.uint8(128)))
    x = graph.op("MatMul", x, graph.weight(CODES, SCALES, 1))
    model = graph.model(graph.op("MatMul", x, graph.constant(np.ones((4, 2), np.float32))))
    network = QuantizedNetwork(model)
    (free,) = [name for name, one in network.parameters.items() if one.shape == (4, 2)]
    network.load(network.state() | {free: np.full((4, 2), 3, np.float32)})
    assert (held(network.written(), free) == 3).all()


def test_weights_whose_codes_do_not_begin_at_zero() -> None:
    """uint8, as other tools write them, with a zero point for each channel."""
    graph, zeros = Quantized(), np.array([128, 120, 7, 255], np.uint8)
    codes = RANDOM.integers(0, 256, (6, 4)).astype(np.uint8)
    values = [graph.constant(one) for one in (codes, SCALES, zeros)]
    weight = graph.op("DequantizeLinear", *values, axis=1)
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 6]), weight))
    network = QuantizedNetwork(model)
    exact = (codes.astype(np.float32) - zeros) * SCALES
    np.testing.assert_allclose(network.state()["w0"], exact, rtol=1e-6)
    np.testing.assert_allclose(torch_run(network), X @ exact, rtol=1e-4, atol=1e-4)
    assert io.to_bytes(network.written()) == io.to_bytes(model)
    moved = exact + (RANDOM.integers(-9, 10, (6, 4)) + 0.2) * SCALES
    network.load(network.state() | {"w0": moved.astype(np.float32)})
    np.testing.assert_array_equal(
        held(network.written(), "w0"), np.clip(np.rint(moved / SCALES) + zeros, 0, 255).astype(np.uint8)
    )
