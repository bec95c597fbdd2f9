"""The quantized graph: scales, zero points, axes and types by their closed forms, and what keeps reading float."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_cli.errors import StepError
from lepton_cli.model import io
from lepton_cli.probe.clipping import Range
from lepton_cli.quantize import choose, qdq
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.targets import TARGETS
from lepton_cli.runtime import Session
from tests.quantize import peer_writer
from tests.quantize.builders import Graph, chosen, ops, write

VNNI, X86, ARM, TENSORRT = (TARGETS[name] for name in ("x86-vnni", "x86", "arm", "tensorrt"))


def array(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def source(model: ir.Model, name: str, index: int = 0) -> str:
    """Operator that makes the given input of a node, or the input's name where none does."""
    value = node(model, name).inputs[index]
    assert value is not None
    producer = value.producer()
    return value.name or "" if producer is None else producer.op_type


def dense(seed: int = 0, **options: Any) -> ir.Model:
    """Gemm, ReLU, Gemm: x [b, 20] -> t1 [b, 24] -> [b, 16]."""
    graph = Graph(seed=seed, **options)
    x = graph.op("Relu", graph.linear(graph.take("x", ["b", 20]), 20, 24))
    return graph.model(graph.linear(x, 24, 16))


DENSE: dict[str, Range] = {"x": (-1.5, 2.0), "t0": (-3.0, 4.0), "t1": (0.0, 4.0), "t2": (-5.0, 5.0)}


ends = st.floats(0, 100, width=32).filter(lambda end: end == 0 or end > 1e-2)


@given(low=ends, high=ends)
@settings(max_examples=12)
def test_asymmetric_ranges_become_uint8_by_the_closed_form_and_zero_stays_zero(low: float, high: float) -> None:
    if low + high == 0:
        high = 1.0
    made = write(dense(), DENSE | {"x": (-low, high)})
    scale, zero = array(made, "x_scale"), array(made, "x_zero_point")
    assert zero.dtype == np.uint8
    np.testing.assert_allclose(scale, (high + low) / 255, rtol=1e-6)
    assert abs(float(zero) - low / ((high + low) / 255)) <= 0.5 + 1e-3
    assert (np.rint(np.float32(0) / scale) + zero - zero) * scale == 0


@given(low=ends, high=ends)
@settings(max_examples=4)
def test_symmetric_ranges_become_int8_around_a_zero_point_of_0(low: float, high: float) -> None:
    if low + high == 0:
        high = 1.0
    for target in (ARM, TENSORRT, TARGETS["cuda"]):
        made = write(dense(), DENSE | {"x": (-low, high)}, target=target)
        assert array(made, "x_zero_point").dtype == np.int8
        assert array(made, "x_zero_point") == 0
        np.testing.assert_allclose(array(made, "x_scale"), max(low, high) / 127, rtol=1e-6)


@pytest.mark.parametrize(
    ("target", "kind", "scale", "zero"), [(VNNI, np.uint16, 3.5 / 65535, 28086), (ARM, np.int16, 2.0 / 32767, 0)]
)
def test_16_bit_activations_by_the_closed_form(target: Any, kind: Any, scale: float, zero: int) -> None:
    made = write(dense(), DENSE, target=target, activations="int16")
    assert array(made, "x_zero_point").dtype == kind
    assert array(made, "x_zero_point") == zero
    np.testing.assert_allclose(array(made, "x_scale"), scale, rtol=1e-6)
    assert array(made, "w1_quantized").dtype == np.int8, "weights keep 8 bits"


def layers() -> tuple[ir.Model, dict[str, tuple[str, int]]]:
    """Conv, MatMul, Gemm with and without transB, with the axis of their output channels."""
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 4, 4]), 3, 17, relu=False)
    x = graph.op("Flatten", graph.op("Tanh", x))
    weights = [graph.random.normal(size=shape).astype(np.float32) for shape in ((272, 18), (20, 18), (20, 21))]
    bias = graph.constant(graph.random.normal(size=21).astype(np.float32))
    x = graph.op("Tanh", graph.op("MatMul", x, graph.constant(weights[0])))
    x = graph.op("Tanh", graph.op("Gemm", x, graph.constant(weights[1]), transB=1))
    model = graph.model(graph.op("Gemm", x, graph.constant(weights[2]), bias))
    return model, {"w0": ("Conv", 0), "w3": ("MatMul", 1), "w4": ("Gemm", 0), "w5": ("Gemm", 1)}


def every(model: ir.Model, choice: Choice, low: float = -1.0, high: float = 1.0) -> dict[str, Range]:
    return dict.fromkeys(choose.activations(model, choice), (low, high))


@pytest.mark.parametrize(("target", "steps"), [(VNNI, 127), (X86, 64), (ARM, 127)])
def test_weights_have_one_symmetric_scale_per_output_channel(target: Any, steps: int) -> None:
    """Without VNNI the weights span 7 bits: 255 * 64 twice fits 16 bits."""
    model, axes = layers()
    made = write(model, every(model, chosen(model)), target=target)
    for name, (_, axis) in axes.items():
        weight = array(model, name)
        channels = [np.take(weight, channel, axis) for channel in range(weight.shape[axis])]
        scales = np.array([max(abs(float(value)) for value in channel.ravel()) / steps for channel in channels])
        np.testing.assert_allclose(array(made, f"{name}_scale"), scales, rtol=1e-6)
        assert not array(made, f"{name}_zero_point").any()
        codes = array(made, f"{name}_quantized")
        assert codes.dtype == np.int8
        assert np.abs(codes.astype(int)).max() == steps
        for channel, scale in enumerate(scales):
            error = np.take(codes, channel, axis) * scale - channels[channel]
            assert np.abs(error).max() <= 0.501 * scale
        assert node(made, f"{name}_DequantizeLinear").attributes.get_int("axis") == axis


def test_given_scales_are_used_as_they_are() -> None:
    model, axes = layers()
    scales = {
        name: (axis, np.linspace(0.02, 0.09, array(model, name).shape[axis], dtype=np.float32))
        for name, (_, axis) in axes.items()
    }
    made = write(model, every(model, chosen(model)), scales=scales)
    for name, (axis, given_) in scales.items():
        np.testing.assert_array_equal(array(made, f"{name}_scale"), given_)
        assert array(made, f"{name}_zero_point").dtype == np.int8
        assert not array(made, f"{name}_zero_point").any()
        shape = [-1 if at == axis else 1 for at in range(array(model, name).ndim)]
        expected = np.clip(np.rint(array(model, name) / given_.reshape(shape)), -128, 127)
        np.testing.assert_array_equal(array(made, f"{name}_quantized"), expected)
        assert node(made, f"{name}_DequantizeLinear").attributes.get_int("axis") == axis


def test_biases_are_int32_in_steps_of_activation_times_weight() -> None:
    model = dense()
    made = write(model, DENSE)
    for bias, weight, data in (("w0", "w1", "x"), ("w2", "w3", "t1")):
        step = array(made, f"{data}_scale").astype(np.float64) * array(made, f"{weight}_scale")
        codes = array(made, f"{bias}_quantized")
        assert codes.dtype == np.int32
        np.testing.assert_allclose(array(made, f"{bias}_quantized_scale"), step, rtol=1e-6)
        assert np.abs(codes * step - array(model, bias)).max() <= 0.501 * step.max()
        assert not array(made, f"{bias}_quantized_zero_point").any()


@pytest.mark.parametrize(
    ("opset", "activations", "wide", "domain"),
    [
        (12, "int8", False, "com.microsoft"),
        (13, "int8", False, ""),
        (20, "int8", True, "com.microsoft"),
        (21, "int8", True, ""),
        (20, "int16", False, "com.microsoft"),
        (21, "int16", False, ""),
    ],
)
def test_old_opsets_get_the_operators_of_onnxruntime(opset: int, activations: Any, wide: bool, domain: str) -> None:
    """onnx has scales per channel from opset 13 on, 16 bits from opset 21 on."""
    model = dense(opset=opset)
    choice = chosen(model)
    made = write(model, DENSE, choice=choice.widened(choice.anchors) if wide else choice, activations=activations)
    domains = {one.domain for one in made.graph if one.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert domains == {domain}
    assert made.graph.opset_imports.get("com.microsoft") == (1 if domain else None)
    feeds = {"x": np.random.default_rng(0).uniform(-1.5, 2, (4, 20)).astype(np.float32)}
    exact = Session(io.to_bytes(model), threads=1).run(feeds)["t2"]
    found = Session(io.to_bytes(made), threads=1).run(feeds)["t2"]
    assert np.abs(found - exact).max() < 0.1


def test_the_opset_is_that_of_onnx_not_of_other_domains() -> None:
    graph = Graph()
    x = graph.op("Gelu", graph.take("x", ["b", 20]), domain="com.microsoft")
    model = graph.model(graph.linear(x, 20, 24))
    imports = model.graph.opset_imports
    imports[""] = imports.pop("")
    assert list(imports) == ["com.microsoft", ""]
    made = write(model, {"t0": (-1.0, 1.0), "t1": (-1.0, 1.0)})
    assert {one.domain for one in made.graph if one.op_type == "DequantizeLinear"} == {""}


def test_wide_layers_read_and_write_16_bits_through_their_activation_and_others_keep_8() -> None:
    graph = Graph()
    x = graph.take("x", ["b", 20])
    for width in ((20, 24), (24, 28), (28, 16)):
        x = graph.op("Relu", graph.linear(x, *width))
    model = graph.model(x)
    choice = chosen(model)
    made = write(model, every(model, choice), choice=choice.widened(["Gemm_2"]))
    kinds = {name: array(made, f"{name}_zero_point").dtype for name in ("x", "t1", "t3", "t5")}
    assert kinds == {"x": np.uint8, "t1": np.uint16, "t3": np.uint16, "t5": np.uint8}
    np.testing.assert_allclose(array(made, "t3_scale"), 2 / 65535, rtol=1e-6)
    symmetric = write(model, every(model, choice), choice=choice.widened(["Gemm_2"]), target=ARM)
    assert array(symmetric, "t3_zero_point").dtype == np.int16
    assert array(symmetric, "x_zero_point").dtype == np.int8


def test_a_wide_layer_without_a_range_of_its_result_widens_its_input_only() -> None:
    graph = Graph()
    x = graph.op("MatMul", graph.take("x", ["b", 20]), graph.constant(np.eye(20, 24, dtype=np.float32)))
    model = graph.model(graph.op("Tanh", x))
    choice = chosen(model).widened(["MatMul_0"])
    made = write(model, {"x": (-1.0, 1.0)}, choice=choice)
    assert array(made, "x_zero_point").dtype == np.uint16
    assert ops(made).count("QuantizeLinear") == 1


def _conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3, stride 1, padded by one: plain loops over the kernel."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = x.shape[2:]
    result = np.zeros((len(x), len(weight), height, width))
    for i in range(3):
        for j in range(3):
            window = padded[:, :, i : i + height, j : j + width]
            result += np.einsum("bchw,oc->bohw", window, weight[:, :, i, j])
    return result + bias[:, None, None]


class Rounding:
    """Quantization to and fro as the operators' definitions say."""

    def __init__(self, symmetric: bool, steps: int) -> None:
        self.symmetric, self.steps = symmetric, steps

    def step(self, low: float, high: float) -> float:
        return max(-low, high) / 127 if self.symmetric else (high - low) / 255

    def activation(self, x: np.ndarray, low: float, high: float) -> np.ndarray:
        step = self.step(low, high)
        least, most, zero = (-128, 127, 0) if self.symmetric else (0, 255, round(-low / step))
        return (np.clip(np.rint(x / step) + zero, least, most) - zero) * step

    def weight(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Output channels first."""
        flat = weight.reshape(len(weight), -1).astype(np.float64)
        steps = np.abs(flat).max(axis=1) / self.steps
        return (np.rint(flat / steps[:, None]) * steps[:, None]).reshape(weight.shape), steps

    @staticmethod
    def bias(bias: np.ndarray, step: np.ndarray) -> np.ndarray:
        return np.rint(bias / step) * step


@pytest.mark.parametrize(
    ("target", "symmetric", "steps", "optimise"),
    [(VNNI, False, 127, False), (X86, False, 64, False), (ARM, True, 127, False), (X86, False, 64, True)],
)
def test_onnxruntime_computes_what_the_formulas_say(target: Any, symmetric: bool, steps: int, optimise: bool) -> None:
    """Conv, ReLU, Flatten, Gemm in numpy: at most one quantization step apart. 7-bit weights saturate nowhere."""
    graph = Graph(seed=3)
    x = graph.conv(graph.take("x", ["b", 3, 5, 5]), 3, 4)
    model = graph.model(graph.linear(graph.op("Flatten", x), 100, 16))
    feeds = {"x": np.random.default_rng(5).normal(size=(6, 3, 5, 5)).astype(np.float32)}
    x_range, inner, outer = (-3.1, 3.3), (0.0, 4.2), (-6.0, 7.0)
    ranges = {"x": x_range, "t0": (-4.2, 4.2), "t1": inner, "t2": inner, "t3": outer}
    made = write(model, ranges, target=target)
    assert ops(made).count("QuantizeLinear") >= 2

    by = Rounding(symmetric, steps)
    kernel, kernel_steps = by.weight(array(model, "w0"))
    matrix, matrix_steps = by.weight(array(model, "w3"))
    x_bias = by.bias(array(model, "w1"), by.step(*x_range) * kernel_steps)
    bias = by.bias(array(model, "w2"), by.step(*inner) * matrix_steps)
    hidden = np.maximum(_conv(by.activation(feeds["x"], *x_range), kernel, x_bias), 0)
    hidden = by.activation(hidden, *inner)
    expected = hidden.reshape(6, -1) @ matrix.T + bias
    found = Session(io.to_bytes(made), threads=1, optimise=optimise).run(feeds)["t3"]
    # a hidden value on the edge of two codes may fall to either side: one step times its weight
    slack = by.step(*inner) * np.abs(matrix).max()
    np.testing.assert_allclose(found, expected, atol=slack + 1e-4)
    assert np.median(np.abs(found - expected)) < 1e-5


def test_a_float_user_of_a_quantized_float_tensor_reads_the_float_one() -> None:
    graph = Graph()
    x = graph.op("Tanh", graph.take("x", ["b", 20]))
    product = graph.op("MatMul", x, graph.constant(np.eye(20, 20, dtype=np.float32)))
    model = graph.model(graph.op("Add", product, x))
    made = write(model, {"t0": (-1.0, 1.0)})
    assert source(made, "MatMul_1") == "DequantizeLinear"
    assert source(made, "Add_2", 1) == "Tanh"


def test_a_float_user_of_an_int8_result_reads_the_rounded_one_and_of_a_float_capable_one_the_float() -> None:
    """A Conv's kernel returns int8 only; a Gemm's can return float as well."""
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 4, 4]), 3, 16, relu=False)
    y = graph.op("Erf", x)
    model = graph.model(graph.conv(x, 16, 16), y)
    made = write(model, every(model, chosen(model)))
    assert source(made, "Erf_1") == "DequantizeLinear"
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 20]), 20, 24)
    model = graph.model(graph.linear(x, 24, 16), graph.op("Erf", x))
    made = write(model, every(model, chosen(model)))
    assert source(made, "Erf_2") == "Gemm"
    assert source(made, "Gemm_1") == "DequantizeLinear"
    fused = write(model, every(model, chosen(model)), target=TENSORRT)
    assert source(fused, "Erf_2") == "DequantizeLinear", "no kernel of TensorRT returns float here"


def test_a_gemm_at_the_end_returns_float_under_its_own_name() -> None:
    model = dense()
    made = write(model, DENSE)
    (output,) = made.graph.outputs
    assert (output.name, output.producer().op_type) == ("t2", "Gemm")  # type: ignore[union-attr]
    assert output.dtype == ir.DataType.FLOAT
    assert list(output.shape or ()) == ["b", 16]
    assert ops(made).count("QuantizeLinear") == 2
    rounded = write(model, DENSE, target=TENSORRT)
    assert rounded.graph.outputs[0].producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]


def test_the_second_of_two_outputs_keeps_its_place_when_it_becomes_float() -> None:
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 20]), 20, 24)
    model = graph.model(graph.op("Tanh", x), graph.linear(x, 24, 16))
    made = write(model, every(model, chosen(model)))
    assert [output.name for output in made.graph.outputs] == ["t1", "t2"]
    feeds = {"x": np.ones((1, 20), np.float32)}
    assert Session(io.to_bytes(made), threads=1).run(feeds)["t2"].shape == (1, 16)


def test_a_pair_that_nobody_reads_vanishes_and_chosen_readers_keep_theirs() -> None:
    model = dense()
    choice = Choice(frozenset({"Gemm_0"}), frozenset(), ())
    made = write(model, DENSE, choice=choice)
    assert ops(made).count("QuantizeLinear") == 1, "only x: nobody reads the Gemm's result rounded"
    assert source(made, "Relu_1") == "Gemm"
    assert source(made, "Gemm_0") == "DequantizeLinear"


def test_a_tensor_of_unknown_type_is_quantized_and_the_given_model_is_left_alone() -> None:
    """The writer itself passes over those it cannot infer a type of, such as behind onnxruntime's operators."""
    graph = Graph()
    x = graph.op("Gelu", graph.take("x", ["b", 20]), domain="com.microsoft")
    model = graph.model(graph.op("MatMul", x, graph.constant(np.eye(20, dtype=np.float32))))
    inner = node(model, "Gelu_0").outputs[0]
    inner.type = None
    model.producer_name, model.producer_version = "maker", "7"
    before = io.to_bytes(model)
    made = write(model, {"t0": (-1.0, 1.0)})
    assert "t0_scale" in made.graph.initializers
    assert source(made, "MatMul_1") == "DequantizeLinear"
    assert inner.type is None
    assert io.to_bytes(model) == before
    assert (made.producer_name, made.producer_version) == ("maker", "7")


def test_tensors_that_hold_no_float_numbers_are_left_alone() -> None:
    """A Concat of shapes, and a float16 tensor, read by a chosen node."""
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 4, 4]), 3, 16)
    y = graph.op("Reshape", x, graph.constant(np.array([0, -1])))
    model = graph.model(graph.linear(y, 256, 16))
    made = write(model, every(model, chosen(model)))
    assert source(made, "Reshape_2", 1) == "w2"
    assert node(made, "Reshape_2").inputs[1].dtype == ir.DataType.INT64  # type: ignore[union-attr]


def test_a_tensor_without_a_range_is_told() -> None:
    with pytest.raises(StepError, match="`t1` is to be rounded") as caught:
        write(dense(), {name: ends for name, ends in DENSE.items() if name != "t1"})
    assert caught.value.code == "quantize.range"


def test_a_float_output_that_a_chosen_node_reads_too_stays_float() -> None:
    """Only a kernel that returns int8 makes an output rounded: the Tanh does not."""
    graph = Graph()
    x = graph.op("Tanh", graph.take("x", ["b", 20]))
    model = graph.model(x, graph.linear(x, 20, 16))
    made = write(model, every(model, chosen(model)))
    assert [output.name for output in made.graph.outputs] == ["t0", "t1"]
    assert made.graph.outputs[0].producer().op_type == "Tanh"  # type: ignore[union-attr]


def test_an_int8_result_that_is_an_output_is_its_rounded_form_under_its_name() -> None:
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 4, 4]), 3, 16)
    model = graph.model(x, graph.conv(x, 16, 16))
    made = write(model, every(model, chosen(model)))
    assert [output.name for output in made.graph.outputs] == ["t1", "t3"]
    assert [output.producer().op_type for output in made.graph.outputs] == ["DequantizeLinear"] * 2  # type: ignore[union-attr]
    assert [list(output.shape or ()) for output in made.graph.outputs] == [["b", 16, 4, 4]] * 2
    assert "Relu" not in ops(made)


def test_names_that_are_taken_get_a_number() -> None:
    graph = Graph()
    model = graph.model(graph.linear(graph.take("x", ["b", 20]), 20, 16))
    model.graph.outputs[0].name = "x_scale"
    made = write(model, {"x": (-1.0, 1.0), "x_scale": (-2.0, 2.0)})
    assert made.graph.outputs[0].name == "x_scale"
    assert "x_scale_1" in made.graph.initializers
    feeds = {"x": np.ones((1, 20), np.float32)}
    assert Session(io.to_bytes(made), threads=1).run(feeds)["x_scale"].shape == (1, 16)


def _output_before_relu(opset: int) -> ir.Model:
    graph = Graph(opset)
    x = graph.conv(graph.take("x", [2, 3, 8, 8]), 3, 16, relu=False)
    return graph.model(x, graph.conv(graph.op("Relu", x), 16, 16, relu=False))


def _between(opset: int) -> Iterator[tuple[str, ir.Model]]:
    """Every operator that may stand between two convolutions, and what shares tensors there."""

    def around(name: str, middle: Callable[[Graph, str], str], channels: int = 16) -> tuple[str, ir.Model]:
        graph = Graph(opset)
        x = graph.conv(graph.take("x", [2, 3, 8, 8]), 3, 16, relu=False)
        return name, graph.model(graph.conv(middle(graph, x), channels, 16, relu=False))

    def ints(graph: Graph, *values: int) -> str:
        return graph.constant(np.array(values, np.int64))

    def floats(graph: Graph, *values: float) -> str:
        return graph.constant(np.array(values, np.float32))

    def axes(graph: Graph, op: str, x: str) -> str:
        return str(graph.op(op, x, axes=[0]) if opset < 13 else graph.op(op, x, ints(graph, 0)))

    def split(graph: Graph, x: str) -> str:
        parts = graph.op("Split", x, *([] if opset < 13 else [ints(graph, 8, 8)]), outputs=2, axis=1)
        return str(graph.op("Concat", *parts, axis=1))

    yield around("Relu", lambda graph, x: graph.op("Relu", x))
    yield around("Relu twice", lambda graph, x: graph.op("Relu", graph.op("Relu", x)))
    yield around("Clip", lambda graph, x: graph.op("Clip", x, *(graph.constant(np.float32(v)) for v in (0, 6))))
    yield around("MaxPool", lambda graph, x: graph.op("MaxPool", x, kernel_shape=[2, 2]))
    yield around("MaxPool, Relu", lambda graph, x: graph.op("Relu", graph.op("MaxPool", x, kernel_shape=[2, 2])))
    yield around("AveragePool", lambda graph, x: graph.op("AveragePool", x, kernel_shape=[2, 2]))
    yield around("GlobalAveragePool", lambda graph, x: graph.op("GlobalAveragePool", x))
    yield around("LeakyRelu", lambda graph, x: graph.op("LeakyRelu", x, alpha=0.1))
    yield around("silu", lambda graph, x: graph.op("Mul", x, graph.op("Sigmoid", x)))
    yield around("shortcut", lambda graph, x: graph.op("Add", x, graph.conv(x, 16, 16)))
    yield around("constant", lambda graph, x: graph.op("Mul", x, graph.constant(np.float32([[[0.5]], [[-2.0]]] * 8))))
    yield around("Concat", lambda graph, x: graph.op("Concat", x, graph.op("Relu", x), axis=1), channels=32)
    yield around("Split", split)
    yield around("Transpose", lambda graph, x: graph.op("Transpose", x, perm=[0, 1, 3, 2]))
    yield around("Reshape", lambda graph, x: graph.op("Reshape", x, ints(graph, 2, 16, 4, 16)))
    yield around("Slice", lambda graph, x: graph.op("Slice", x, ints(graph, 1), ints(graph, 8), ints(graph, 2)))
    yield around(
        "Resize",
        lambda graph, x: graph.op("Resize", x, floats(graph), floats(graph, 1, 1, 2, 2), mode="nearest"),
    )
    yield around("Squeeze", lambda graph, x: axes(graph, "Squeeze", axes(graph, "Unsqueeze", x)))
    pads = (0, 0, 1, 1, 0, 0, 1, 1)
    yield around("Pad", lambda graph, x: graph.op("Pad", x, ints(graph, *pads)))
    yield around("Pad by edges", lambda graph, x: graph.op("Pad", x, ints(graph, *pads), mode="edge"))
    yield around("Pad by 30", lambda graph, x: graph.op("Pad", x, ints(graph, *pads), graph.constant(np.float32(30))))
    graph = Graph(opset)
    x = graph.conv(graph.take("x", [2, 3, 8, 8]), 3, 16)
    yield "output before a ReLU", _output_before_relu(opset)
    yield "two readers", graph.model(graph.conv(x, 16, 16), graph.conv(x, 16, 20), graph.op("Erf", x))
    yield "linear", dense(opset=opset)


@pytest.mark.parametrize("opset", [12, 17, 21])
@pytest.mark.parametrize(("target", "activations"), [(VNNI, "int8"), (X86, "int8"), (ARM, "int8"), (VNNI, "int16")])
def test_the_numbers_are_those_of_onnxruntimes_writer(opset: int, target: Any, activations: Any) -> None:
    """Bit by bit, without optimisation: the same grids, the same codes, the same tensors rounded."""
    feeds = {
        "image": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32),
        "row": np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32),
    }
    for name, model in _between(opset):
        proto = io.to_proto(model)
        choice = chosen(model)
        inner = [value.name or "" for one in model.graph for value in one.outputs if value.dtype == ir.DataType.FLOAT]
        found = onnx.ModelProto.FromString(proto.SerializeToString())
        found.graph.output.extend(onnx.ValueInfoProto(name=value) for value in inner)
        feed = {"x": feeds["row" if name == "linear" else "image"]}
        values = Session(found.SerializeToString(), threads=1, optimise=False).run(feed, inner) | feed
        ranges = {value: (float(array.min()), float(array.max())) for value, array in values.items()}
        ranges = {value: ranges[value] for value in choose.activations(model, choice)}
        plan = qdq.Scheme(target, choice, ranges, activations=activations)
        ours = Session(io.to_bytes(qdq.write(model, plan)), threads=1, optimise=False).run(feed)
        theirs = Session(peer_writer.write(proto, plan).SerializeToString(), threads=1, optimise=False).run(feed)
        floats = "Erf" if name == "two readers" else ""
        for output, expected in theirs.items():
            made = next(one.op_type for one in model.graph if one.outputs[0].name == output)
            if target.float_outputs and made in ("Gemm", floats):
                continue  # there it is rounded, here it stays float
            np.testing.assert_array_equal(ours[output], expected, err_msg=f"{name}, {output}")


def test_weights_are_8_bit_unless_asked_and_nothing_is_given_by_default() -> None:
    plan = qdq.Scheme(VNNI, Choice(frozenset(), frozenset(), ()), {})
    assert (plan.activations, dict(plan.scales)) == ("int8", {})
    assert dataclasses.replace(plan, activations="int16").activations == "int16"


def test_the_result_of_a_matmul_needs_no_range() -> None:
    """Its kernel returns float, whoever reads it."""
    graph = Graph()
    weights = [graph.constant(graph.random.normal(size=(20, 20)).astype(np.float32)) for _ in range(2)]
    x = graph.op("MatMul", graph.take("x", ["b", 20]), weights[0])
    model = graph.model(graph.op("MatMul", graph.op("Tanh", x), weights[1]))
    made = write(model, {"x": (-1.0, 1.0), "t1": (-1.0, 1.0)})
    assert ops(made).count("QuantizeLinear") == 2
    assert source(made, "Tanh_1") == "MatMul"
