"""Convolutions and matrix products against the standard's cases, onnxruntime and finite differences."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase

from lepton_cli.train.operators import layers
from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator, call_of
from tests.train.operators.oracle import agrees, cases, slopes
from tests.train.operators.runtime import matches

STANDARD: dict[str, TorchOperator] = {
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Gemm": layers.gemm,
    "MatMul": layers.matmul,
}
FUSED: dict[str, TorchOperator] = {
    "FusedConv": layers.fused_conv,
    "FusedGemm": layers.fused_gemm,
    "FusedMatMul": layers.fused_matmul,
}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def node(name: str, inputs: int, **attributes: object) -> onnx.NodeProto:
    domain = "com.microsoft" if name in FUSED else ""
    return helper.make_node(name, [f"i{k}" for k in range(inputs)], ["y"], domain=domain, **attributes)


@pytest.mark.parametrize(
    ("function", "case"),
    [pytest.param(function, case, id=case.name) for name, function in STANDARD.items() for case in cases()[name]],
)
def test_computes_the_cases_of_the_standard(function: TorchOperator, case: TestCase) -> None:
    agrees(function, case)


CONVOLUTIONS = [
    ((2, 4, 9), (6, 4, 3), {"pads": [2, 1], "strides": [2]}),
    ((1, 4, 8, 7), (6, 2, 3, 2), {"group": 2, "dilations": [2, 1], "pads": [1, 2, 1, 2]}),
    ((1, 4, 8, 7), (4, 1, 3, 3), {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((1, 4, 8, 7), (2, 4, 2, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    ((1, 4, 8, 7), (2, 4, 3, 3), {"auto_pad": "VALID"}),
    ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"pads": [0, 1, 1, 1, 1, 1]}),
]


@pytest.mark.parametrize(("shape", "kernel", "attributes"), CONVOLUTIONS)
def test_convolves(shape: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, object]) -> None:
    made = node("Conv", 3, **attributes)
    arrays = random(*shape), random(*kernel), random(kernel[0])
    matches(layers.conv, made, *arrays)
    slopes(layers.conv, made, *arrays)


TRANSPOSED = [
    ((1, 3, 4), (3, 2, 3), {"strides": [2], "pads": [0, 1]}),
    ((1, 4, 4, 3), (4, 2, 3, 2), {"group": 2, "strides": [2, 2], "output_padding": [1, 1], "pads": [1, 0, 1, 0]}),
    ((1, 2, 3, 3), (2, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 3, 3), (2, 3, 4, 4), {"strides": [3, 3], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 3, 3), (2, 3, 3, 3), {"strides": [2, 2], "output_shape": [6, 6]}),
    ((1, 2, 3, 3), (2, 3, 3, 3), {"strides": [2, 2], "output_shape": [6, 6], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 3, 3), (2, 3, 2, 2), {"dilations": [2, 2], "pads": [1, 1, 0, 0]}),
    ((1, 2, 2, 3, 2), (2, 2, 2, 2, 2), {"strides": [2, 1, 2]}),
]


@pytest.mark.parametrize(("shape", "kernel", "attributes"), TRANSPOSED)
def test_convolves_transposed(shape: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, object]) -> None:
    made = node("ConvTranspose", 3, **attributes)
    arrays = random(*shape), random(*kernel), random(kernel[1] * int(str(attributes.get("group", 1))))
    matches(layers.conv_transpose, made, *arrays)
    slopes(layers.conv_transpose, made, *arrays)


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        (3, {"activation": "Relu"}),
        (4, {"activation": "Relu"}),
        (3, {"activation": "Sigmoid"}),
        (3, {"activation": "Tanh"}),
        (3, {"activation": "LeakyRelu", "activation_params": [0.1]}),
        (3, {"activation": "Clip", "activation_params": [-0.5, 0.5]}),
        (3, {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]}),
    ],
)
def test_convolves_fused(inputs: int, attributes: dict[str, object]) -> None:
    arrays = random(1, 4, 6, 6), random(4, 4, 3, 3), random(4), random(1, 4, 6, 6)
    made = node("FusedConv", inputs, kernel_shape=[3, 3], pads=[1, 1, 1, 1], **attributes)
    matches(layers.fused_conv, made, *arrays[:inputs])
    slopes(layers.fused_conv, made, *arrays[:inputs])


def test_keeps_channels_last() -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    last = x.to(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last)
    for attributes in ({"pads": [1, 1, 1, 1]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}):
        y = layers.conv(OperatorCall(attributes, 18), *last)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, layers.conv(OperatorCall(attributes, 18), x, weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("c", [(3,), (2, 1), (), (1, 3), None])
@pytest.mark.parametrize("attributes", [{}, {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 0.25}])
def test_multiplies_in_gemm(c: tuple[int, ...] | None, attributes: dict[str, object]) -> None:
    a, b = (random(4, 2), random(3, 4)) if attributes else (random(2, 4), random(4, 3))
    arrays = (a, b) if c is None else (a, b, random(*c))
    made = node("Gemm", len(arrays), **attributes)
    matches(layers.gemm, made, *arrays)
    slopes(layers.gemm, made, *arrays)


@pytest.mark.parametrize(
    "attributes",
    [
        {"activation": "Relu"},
        {"activation": "LeakyRelu", "activation_alpha": 0.3},
        {"activation": "Tanh", "transB": 1, "alpha": 0.5},
    ],
)
def test_multiplies_in_gemm_fused(attributes: dict[str, object]) -> None:
    made = node("FusedGemm", 3, **attributes)
    arrays = random(2, 3), random(3, 3), random(3)
    matches(layers.fused_gemm, made, *arrays)
    slopes(layers.fused_gemm, made, *arrays)


@pytest.mark.parametrize(("a", "b"), [((4,), (4, 2)), ((2, 1, 3, 4), (5, 4, 2)), ((3, 4), (4,))])
def test_multiplies_with_broadcasting(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    matches(layers.matmul, node("MatMul", 2), random(*a), random(*b))
    slopes(layers.matmul, node("MatMul", 2), random(*a), random(*b))


@pytest.mark.parametrize(
    ("a", "b", "attributes"),
    [
        ((2, 3, 4), (2, 4, 5), {"alpha": 0.5}),
        ((2, 4, 3), (2, 4, 5), {"transA": 1}),
        ((2, 3, 4), (2, 5, 4), {"transB": 1}),
        ((4,), (4, 3), {"transA": 1}),
        ((3, 2, 4), (2, 4, 5), {"transBatchA": 1}),
        ((4, 2, 6, 3), (2, 6, 4, 5), {"transBatchA": 1, "transA": 1}),
        ((2, 3, 4), (4, 2, 5), {"transBatchB": 1}),
        ((2, 3, 4), (5, 2, 4), {"transBatchB": 1, "transB": 1}),
    ],
)
def test_multiplies_transposed(a: tuple[int, ...], b: tuple[int, ...], attributes: dict[str, object]) -> None:
    made = node("FusedMatMul", 2, **attributes)
    matches(layers.fused_matmul, made, random(*a), random(*b))
    slopes(layers.fused_matmul, made, random(*a), random(*b))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("made", "shapes"),
    [
        (node("Conv", 3), [(1, 2, 4, 4), (3, 2, 3, 3), (3,)]),
        (node("Conv", 3, auto_pad="SAME_UPPER"), [(1, 2, 4, 4), (3, 2, 2, 2), (3,)]),
        (node("ConvTranspose", 3, pads=[0, 0, 1, 1]), [(1, 2, 4, 4), (2, 3, 3, 3), (3,)]),
        (node("Gemm", 3, alpha=0.5), [(2, 3), (3, 4), (4,)]),
        (node("MatMul", 2), [(2, 3), (3, 4)]),
        (node("FusedMatMul", 2, alpha=0.5), [(2, 3), (3, 4)]),
    ],
)
def test_computes_in_bfloat16(made: onnx.NodeProto, shapes: list[tuple[int, ...]], autocast: bool) -> None:
    function = {**STANDARD, **FUSED}[made.op_type]
    kind = torch.float32 if autocast else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = function(call_of(ir.from_proto(made), 18), *(torch.ones(shape, dtype=kind) for shape in shapes))
    assert isinstance(y, torch.Tensor)
    assert y.dtype == torch.bfloat16


def test_refuses_what_torch_has_no_kernel_for() -> None:
    with pytest.raises(NotInTorch, match="4 spatial axes"):
        layers.conv(OperatorCall({}, 18), torch.ones(1, 1, 2, 2, 2, 2), torch.ones(1, 1, 1, 1, 1, 1))
    with pytest.raises(NotInTorch, match="the activation Swish"):
        layers.activation("Swish")
