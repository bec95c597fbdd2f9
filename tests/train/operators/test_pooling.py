"""Pooling against the standard's cases, onnxruntime and finite differences."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase

from lepton_cli.train.operators import pooling
from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator
from tests.train.operators.oracle import agrees, cases, slopes
from tests.train.operators.runtime import matches

STANDARD: dict[str, TorchOperator] = {
    "AveragePool": pooling.average_pool,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    "LpPool": pooling.lp_pool,
    "MaxPool": pooling.max_pool,
}
WINDOWS = [
    ((1, 2, 9), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    ((1, 2, 9), {"kernel_shape": [2], "strides": [3], "ceil_mode": 1}),
    ((1, 2, 7, 6), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
    ((1, 2, 7, 6), {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2]}),
    ((1, 2, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 2, 1]}),
    ((1, 2, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 7, 6), {"kernel_shape": [2, 3], "strides": [1, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 7, 6), {"kernel_shape": [2, 3], "auto_pad": "VALID"}),
    ((1, 2, 8, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ((1, 2, 8, 6), {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    ((1, 2, 8, 6), {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [0, 1, 1, 1], "ceil_mode": 1}),
    ((1, 2, 8, 6), {"kernel_shape": [2, 3], "dilations": [2, 1], "pads": [1, 0, 1, 1]}),
    ((1, 2, 8, 6), {"kernel_shape": [2, 2], "dilations": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ((1, 2, 4, 5, 4), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 1], "pads": [1, 1, 1, 1, 1, 1]}),
]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def node(name: str, outputs: int = 1, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(name, ["x"], ["y", "places"][:outputs], **attributes)


@pytest.mark.parametrize(
    ("function", "case"),
    [pytest.param(function, case, id=case.name) for name, function in STANDARD.items() for case in cases()[name]],
)
def test_computes_the_cases_of_the_standard(function: TorchOperator, case: TestCase) -> None:
    agrees(function, case)


@pytest.mark.parametrize(("shape", "attributes"), WINDOWS)
def test_takes_the_largest(shape: tuple[int, ...], attributes: dict[str, object]) -> None:
    matches(pooling.max_pool, node("MaxPool", **attributes), random(*shape))
    slopes(pooling.max_pool, node("MaxPool", **attributes), random(*shape))


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize(("shape", "attributes"), WINDOWS)
def test_takes_the_mean(shape: tuple[int, ...], attributes: dict[str, object], include: int) -> None:
    made = node("AveragePool", count_include_pad=include, **attributes)
    for opset in (22,) if "dilations" in attributes else (13, 22):  # dilations came with opset 19
        matches(pooling.average_pool, made, random(*shape), opset=opset)
    slopes(pooling.average_pool, made, random(*shape))


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize(("shape", "attributes"), WINDOWS)
def test_takes_the_norm(shape: tuple[int, ...], attributes: dict[str, object], power: int) -> None:
    made = node("LpPool", p=power, **attributes)
    matches(pooling.lp_pool, made, random(*shape), opset=22)
    slopes(pooling.lp_pool, made, random(*shape))


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 2, 3, 2, 3)])
def test_pools_everything(shape: tuple[int, ...]) -> None:
    for made, function in (
        (node("GlobalAveragePool"), pooling.global_average_pool),
        (node("GlobalMaxPool"), pooling.global_max_pool),
        (node("GlobalLpPool", p=2), pooling.global_lp_pool),
        (node("GlobalLpPool", p=3), pooling.global_lp_pool),
    ):
        matches(function, made, random(*shape))
        slopes(function, made, random(*shape))


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("attributes", [{"pads": [1, 1, 1, 1]}, {"ceil_mode": 1, "strides": [2, 2]}])
def test_says_where_the_largest_stands(order: int, attributes: dict[str, object]) -> None:
    made = node("MaxPool", 2, kernel_shape=[3, 3], storage_order=order, **attributes)
    matches(pooling.max_pool, made, random(2, 3, 6, 7))


def test_refuses_indices_with_uneven_padding() -> None:
    call = OperatorCall({"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, 18, outputs=2)
    with pytest.raises(NotInTorch, match="indices"):
        pooling.max_pool(call, torch.ones(1, 1, 4, 4))


def test_norm_of_zeros_has_no_slope() -> None:
    x = torch.zeros(1, 1, 4, requires_grad=True)
    pooling.lp_pool(OperatorCall({"kernel_shape": [2], "p": 2}, 18), x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[0.0] * 4]]


def test_keeps_channels_last_and_bfloat16() -> None:
    x = torch.randn(2, 4, 8, 8, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    for function in (pooling.max_pool, pooling.average_pool, pooling.lp_pool):
        for pads in ([1, 1, 1, 1], [0, 0, 1, 1]):
            y = function(OperatorCall({"kernel_shape": [2, 2], "strides": [2, 2], "pads": pads}, 18), x)
            assert y.dtype == torch.bfloat16
            assert y.is_contiguous(memory_format=torch.channels_last)
