"""Weights in 4 bits: the nearest codes, the kernels that run them, and what keeps 8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from lepton_cli.model import io
from lepton_cli.quantize import int4
from lepton_cli.runtime import Session
from lepton_cli.train.quantized import QuantizedNetwork
from tests.quantize.builders import Graph, images, residual_net
from tests.quantize.builders import run as answers
from tests.quantize.test_static import quick


def test_the_nearest_codes_are_the_best_there_are() -> None:
    """Against every scale on a fine grid, whatever share of the largest weight it is."""
    weight = np.random.default_rng(1).standard_t(3, (3, 40)).astype(np.float32)
    codes, scale = int4.nearest(weight, 0)
    assert codes.min() >= -8
    assert codes.max() <= 7
    for channel in range(3):
        error = np.square(codes[channel] * scale[channel] - weight[channel]).sum()
        tried = np.abs(weight[channel]).max() / 7 * np.linspace(0.3, 1.2, 400)
        best = min(np.square(np.clip(np.rint(weight[channel] / s), -8, 7) * s - weight[channel]).sum() for s in tried)
        assert error <= 1.03 * best


def test_a_tensor_of_zeros_and_one_scale_for_all() -> None:
    codes, scale = int4.nearest(np.zeros((2, 3), np.float32), None)
    assert not codes.any()
    assert scale.shape == (1, 1)
    assert (scale > 0).all()
    weight = np.array([[-8.0, 7.0], [3.0, 1.0]], np.float32)
    codes, scale = int4.nearest(weight, None)
    np.testing.assert_allclose(codes * scale, weight, atol=0.2)


def layers(model: ir.Model) -> set[str]:
    return {node.name or "" for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")}


def test_convolutions_stay_the_int8_kernels_that_they_were(tmp_path: Path) -> None:
    """The graph that onnxruntime makes of the file has the same kernels, and computes what the codes say."""
    model = quick(residual_net(), tmp_path, images(16)).model
    made, decisions = int4.narrowed(model, layers(model))
    assert made is not None
    made = QuantizedNetwork(made).written()
    assert {one.node for one in decisions} <= layers(model)
    assert len(decisions) >= 5
    kernels = []
    for number, one in enumerate((model, made)):
        path = tmp_path / f"{number}.onnx"
        Session(io.to_bytes(one), threads=1, optimised_path=path)
        kernels.append(sorted(node.op_type for node in onnx.load(path).graph.node if "Conv" in node.op_type))
    assert kernels[0] == kernels[1]
    assert "Conv" not in kernels[1]
    assert len(io.to_bytes(made)) < len(io.to_bytes(model))
    plain = answers(spelled_out(made), images(16))
    noise = np.square(answers(made, images(16)) - plain).mean() / np.square(plain).mean()
    assert noise < 1e-3


def spelled_out(model: ir.Model) -> ir.Model:
    """The same codes in initializers of 8 bits: an oracle without the type and without Cast."""
    proto = io.to_proto(model)
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in [node for node in proto.graph.node if node.op_type == "Cast" and node.input[0] in held]:
        codes = onnx.numpy_helper.to_array(held[node.input[0]]).astype(np.int8)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(codes, node.output[0]))
        proto.graph.node.remove(node)
    return io.from_proto(proto)


def test_only_what_is_allowed_has_four_bits(tmp_path: Path) -> None:
    model = quick(residual_net(), tmp_path, images(16)).model
    some = sorted(layers(model))[1]
    made, decisions = int4.narrowed(model, {some})
    assert made is not None
    assert [one.node for one in decisions] == [some]
    kinds = [value.dtype for value in made.graph.initializers.values()]
    assert kinds.count(ir.DataType.INT4) == 1


def test_ends_of_a_model_and_small_kernels_keep_eight_bits(tmp_path: Path) -> None:
    graph = Graph()
    first = graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 16)
    depthwise = graph.conv(first, 16, 16, group=16)
    inner = graph.conv(depthwise, 16, 16)
    last = graph.linear(graph.op("Flatten", graph.op("GlobalAveragePool", inner)), 16, 4)
    model = quick(graph.model(graph.op("Softmax", last)), tmp_path, images(16)).model
    assert layers(model) - int4.eight_bits(model) == {"Conv_4"}


def test_an_end_that_holds_most_of_the_weights_has_four_bits(tmp_path: Path) -> None:
    """A classifier of many classes is what a small network weighs."""
    graph = Graph()
    inner = graph.conv(graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 16), 16, 16)
    model = graph.model(graph.linear(graph.op("Flatten", graph.op("GlobalAveragePool", inner)), 16, 1000))
    made = quick(model, tmp_path, images(16)).model
    assert layers(made) - int4.eight_bits(made) == {"Conv_2", "Gemm_6"}
