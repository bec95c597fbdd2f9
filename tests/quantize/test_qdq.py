"""The quantized graph: scales, zero points, axes and types by their closed forms, and what keeps reading float."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
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
from tests.quantize.builders import Graph, ops

VNNI, X86, ARM, TENSORRT = (TARGETS[name] for name in ("x86-vnni", "x86", "arm", "tensorrt"))


def chosen(model: ir.Model) -> Choice:
    return choose.candidates(model, {node.name or "" for node in model.graph})


def write(model: ir.Model, ranges: dict[str, Range], **options: Any) -> ir.Model:
    plan = qdq.Scheme(options.pop("target", VNNI), options.pop("choice", None) or chosen(model), ranges, **options)
    return qdq.write(model, plan)


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


def three(kind: str, activation: str | None) -> ir.Model:
    """Three layers, named L0 to L2 by their place in the graph, the second with an activation."""
    graph = Graph()
    x = graph.take("x", ["b", 20] if kind == "Gemm" else ["b", 16, 6, 6])
    for number in range(3):
        x = graph.linear(x, 20, 20) if kind == "Gemm" else graph.conv(x, 16, 16, relu=False)
        if number == 1 and activation is not None:
            x = graph.op(activation, x)
    return graph.model(x)


@pytest.mark.parametrize("kind", ["Gemm", "Conv"])
@pytest.mark.parametrize("activation", [None, "Relu", "Tanh"])
def test_a_float_layer_between_int8_ones_is_computed_in_float(
    kind: str, activation: str | None, tmp_path: Path
) -> None:
    model = three(kind, activation)
    names = [node.name or "" for node in model.graph if node.op_type == kind]
    ranges: dict[str, Range] = dict.fromkeys((v.name or "" for n in model.graph for v in n.outputs), (-3.0, 3.0))
    choice = chosen(model).without([names[1]], "", model)
    made = write(model, ranges | {"x": (-3.0, 3.0)}, choice=choice)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 4
    onnxruntime.InferenceSession(io.to_bytes(made), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert found["QLinearConv"] + found["QGemm"] == 2
    assert found[kind] + found[f"Fused{kind}"] == 1
    needed = kind == "Conv" and activation != "Tanh"  # a Gemm leaves float numbers, onnxruntime sees no int8 before
    assert found["Sum"] == needed
    read = {value.name for one in made.graph if one.op_type == kind for value in one.inputs if value is not None}
    assert read & set(model.graph.initializers) == {"w2", "w3"}


def test_nothing_is_copied_where_no_int8_layer_stands_before_or_on_other_targets() -> None:
    model = three("Conv", "Relu")
    ranges: dict[str, Range] = dict.fromkeys(("x", "t0", "t1", "t2", "t3"), (-3.0, 3.0))
    first = chosen(model).without(["Conv_0"], "", model)
    assert "Sum" not in ops(write(model, ranges, choice=first))
    second = chosen(model).without(["Conv_1"], "", model)
    assert "Sum" in ops(write(model, ranges, choice=second, target=ARM))
    assert "Sum" not in ops(write(model, ranges, choice=second, target=TENSORRT))


@pytest.mark.parametrize("moves", ["Reshape", "Transpose", "Squeeze", "MaxPool", "Slice"])
@pytest.mark.parametrize("end", ["read", "output"])
def test_int8_that_is_moved_and_read_in_float_loads_on_x86(moves: str, end: str) -> None:
    """onnxruntime rounds behind the move too; with opset 21 it forgets a type there when it makes uint8 of int8."""
    outputs = {}
    for opset in (20, 21):
        graph = Graph(opset)
        x = graph.conv(graph.take("x", [1, 3, 8, 8]), 3, 16, relu=False)
        given = {"Reshape": [[1, 16, 64]], "Squeeze": [[0]], "Slice": [[0], [4], [2]]}.get(moves, [])
        options: Any = {"Transpose": {"perm": [0, 2, 3, 1]}, "MaxPool": {"kernel_shape": [2, 2]}}.get(moves, {})
        x = graph.op(moves, x, *(graph.constant(np.array(one)) for one in given), **options)
        model = graph.model(graph.op("Tanh", x) if end == "read" else x)
        made = write(model, {"x": (-3.0, 3.0), "t0": (-4.0, 4.0)}, target=ARM)
        assert ops(made).count("QuantizeLinear") == (2 if opset == 20 else 3)
        feed = {"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}
        for optimise in (False, True):
            outputs[opset, optimise] = next(iter(Session(io.to_bytes(made), optimise=optimise).run(feed).values()))
    np.testing.assert_array_equal(outputs[20, False], outputs[21, False])
    np.testing.assert_allclose(outputs[21, True], outputs[21, False], atol=8.1 / 255)


def _rounded(array: np.ndarray, scale: float, zero: int) -> np.ndarray:
    return scale * (np.clip(np.rint(array / np.float32(scale)) + zero, 0, 255) - zero)


def _behind_a_conv(*build: Any, opset: int = 17, ranges: Any = None) -> tuple[ir.Model, dict[str, Any]]:
    """An identity convolution, what is to be looked at, and a 1x1 convolution: the quantized model, and what it reads
    as `seen`, unoptimised. `build` gets the graph and what the first gives (`t0`), and says what the second reads."""
    graph = Graph(opset)
    weight = graph.constant(np.eye(16, dtype=np.float32).reshape(16, 16, 1, 1))
    x = build[0](graph, graph.op("Conv", graph.take("x", [1, 16, 4, 4]), weight))
    channels = build[1] if len(build) > 1 else 16
    second = graph.constant(np.ones((16, channels, 1, 1), np.float32))
    model = graph.model(graph.op("Conv", x, second))
    limits = {value.name or "": (-1.0, 1.0) for one in model.graph for value in one.outputs}
    made = write(model, {"x": (-1.0, 1.0), **limits, **(ranges or {})})
    last = next(one for one in made.graph if one.name == f"Conv_{len(graph.nodes) - 1}")
    proto = io.to_proto(made)
    proto.graph.output.append(onnx.ValueInfoProto(name=last.inputs[0].name))  # type: ignore[union-attr]
    feed = {"x": np.random.default_rng(0).normal(0, 0.5, (1, 16, 4, 4)).astype(np.float32)}
    found = Session(proto.SerializeToString(), optimise=False).run(feed)
    return made, {"x": feed["x"], "seen": found[last.inputs[0].name or ""]}  # type: ignore[union-attr]


STEP = 2 / 255
_ONCE: dict[str, Any] = {"scale": STEP, "zero": 128}


@pytest.mark.parametrize(
    ("op", "channels", "options"),
    [
        ("SpaceToDepth", 64, {"blocksize": 2}),
        ("DepthToSpace", 4, {"blocksize": 2}),
        ("Pad", 16, {}),
        ("Gather", 16, {}),
    ],
)
def test_what_only_moves_values_moves_codes(op: str, channels: int, options: dict[str, Any]) -> None:
    """No second rounding: numbers are those behind the convolution."""

    def build(graph: Graph, x: str) -> str:
        more = {"Pad": np.array([0, 0, 1, 0, 0, 0, 0, 2]), "Gather": np.arange(16)[::-1].copy()}
        extra = [graph.constant(more[op])] if op in more else []
        return str(graph.op(op, x, *extra, **(options | ({"axis": 1} if op == "Gather" else {}))))

    made, found = _behind_a_conv(build, channels)
    rounded = _rounded(_rounded(found["x"], **_ONCE), **_ONCE)
    blocks = rounded.reshape(1, 16, 2, 2, 2, 2)
    expected = {
        "SpaceToDepth": blocks.transpose(0, 3, 5, 1, 2, 4).reshape(1, 64, 2, 2),
        "DepthToSpace": rounded.reshape(1, 2, 2, 4, 4, 4).transpose(0, 3, 4, 1, 5, 2).reshape(1, 4, 8, 8),
        "Pad": np.pad(rounded, [(0, 0), (0, 0), (1, 0), (0, 2)]),
        "Gather": rounded[:, ::-1],
    }[op]
    np.testing.assert_allclose(found["seen"], expected, atol=1e-6)
    direct = op in ("Pad", "SpaceToDepth")
    moving = next(one for one in made.graph if one.op_type == op)
    assert moving.inputs[0].dtype == (ir.DataType.UINT8 if direct else ir.DataType.FLOAT)  # type: ignore[union-attr]


def test_a_limit_behind_a_pad_gets_a_grid_of_its_own() -> None:
    def build(graph: Graph, x: str) -> str:
        return str(graph.op("Relu", graph.op("Pad", x, graph.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])))))

    made, found = _behind_a_conv(build, ranges={"t2": (0.0, 1.0), "t1": (-1.0, 1.0)})
    rounded = np.pad(_rounded(_rounded(found["x"], **_ONCE), **_ONCE), [(0, 0), (0, 0), (1, 1), (1, 1)])
    np.testing.assert_allclose(found["seen"], _rounded(rounded, 1 / 255, 0), atol=1e-6)
    assert "Relu" not in ops(made)


def test_a_limit_behind_moves_stands_before_them() -> None:
    """One grid, which ends at 0."""

    def build(graph: Graph, x: str) -> str:
        x = graph.op("Reshape", x, graph.constant(np.array([1, 16, 2, 8])))
        return str(graph.op("Relu", graph.op("Transpose", x, perm=[0, 1, 3, 2])))

    made, found = _behind_a_conv(build, ranges={"t3": (0.0, 1.0)})
    rounded = _rounded(_rounded(found["x"], **_ONCE), 1 / 255, 0)
    np.testing.assert_allclose(found["seen"], rounded.reshape(1, 16, 2, 8).transpose(0, 1, 3, 2), atol=1e-6)
    assert "Relu" not in ops(made)


@pytest.mark.parametrize(("op", "number", "factor"), [("Mul", 3.0, 3.0), ("Div", 4.0, 0.25)])
def test_a_factor_is_another_scale_of_the_same_codes(op: str, number: float, factor: float) -> None:
    made, found = _behind_a_conv(lambda graph, x: graph.op(op, x, graph.constant(np.float32(number))))
    rounded = _rounded(_rounded(found["x"], **_ONCE), **_ONCE)
    np.testing.assert_allclose(found["seen"], factor * rounded, atol=1e-6)
    assert op not in ops(made)
    assert ops(made).count("QuantizeLinear") == 3, "the input, between the two, the output"


def test_a_factor_before_a_limit_is_computed() -> None:
    def build(graph: Graph, x: str) -> str:
        return str(graph.op("Relu", graph.op("Mul", x, graph.constant(np.float32(3)))))

    made, found = _behind_a_conv(build, ranges={"t2": (0.0, 1.0)})
    assert "Mul" in ops(made)
    rounded = 3 * _rounded(_rounded(found["x"], **_ONCE), **_ONCE)
    np.testing.assert_allclose(found["seen"], _rounded(rounded, 1 / 255, 0), atol=1e-6)


def test_a_hard_swish_is_an_addition_and_a_product() -> None:
    made, found = _behind_a_conv(
        lambda graph, x: graph.op("HardSwish", x), ranges={"t0": (-4.0, 1.0), "t1": (-0.5, 1.0)}
    )
    once = _rounded(_rounded(found["x"], **_ONCE), 4 / 255, 191)
    gate = _rounded(once / 6 + 0.5, 1 / 255, 0)
    np.testing.assert_allclose(found["seen"], _rounded(once * gate, 1.5 / 255, 85), atol=1e-6)
    assert [op for op in ops(made) if op in ("Add", "Mul", "Clip", "HardSwish")] == ["Add", "Mul"]
