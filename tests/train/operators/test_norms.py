"""Normalizations against the standard's cases, onnxruntime and finite differences."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase

from lepton_cli.train.operators import norms
from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator, call_of
from tests.train.operators.oracle import agrees, cases, slopes
from tests.train.operators.runtime import matches

STANDARD: dict[str, TorchOperator] = {
    "BatchNormalization": norms.batch_normalization,
    "GroupNormalization": norms.group_normalization,
    "InstanceNormalization": norms.instance_normalization,
    "LRN": norms.lrn,
    "LayerNormalization": norms.layer_normalization,
    "LpNormalization": norms.lp_normalization,
    "MeanVarianceNormalization": norms.mean_variance_normalization,
    "RMSNormalization": norms.rms_normalization,
}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def node(name: str, inputs: str, outputs: str = "y", domain: str = "", **attributes: object) -> onnx.NodeProto:
    """Names separated by commas; an empty one is left out."""
    return helper.make_node(name, inputs.split(","), outputs.split(","), domain=domain, **attributes)


@pytest.mark.parametrize(
    ("function", "case"),
    [pytest.param(function, case, id=case.name) for name, function in STANDARD.items() for case in cases()[name]],
)
def test_computes_the_cases_of_the_standard(function: TorchOperator, case: TestCase) -> None:
    agrees(function, case)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4), (2, 3, 2, 3)])
def test_normalizes_a_batch(shape: tuple[int, ...]) -> None:
    made = node("BatchNormalization", "x,s,b,m,v", epsilon=1e-3)
    arrays = random(*shape), random(3), random(3), random(3), random(3) ** 2
    matches(norms.batch_normalization, made, *arrays)
    mean, variance = (torch.tensor(array).double() for array in arrays[3:])
    slopes(lambda call, *given: norms.batch_normalization(call, *given, mean, variance), made, *arrays[:3])


def test_normalizes_a_batch_by_its_own_statistics() -> None:
    x, scale, bias, mean = (torch.tensor(random(*shape)) for shape in ((4, 3, 2), (3,), (3,), (3,)))
    variance = mean**2
    given = mean.clone(), variance.clone()
    call = OperatorCall({"momentum": 0.8}, 18)
    y, running_mean, running_variance = norms.batch_normalization(call, x, scale, bias, mean, variance, train=True)
    found, spread = x.mean((0, 2)), x.var((0, 2), unbiased=False)
    torch.testing.assert_close(running_mean, 0.8 * mean + 0.2 * found)
    torch.testing.assert_close(running_variance, 0.8 * variance + 0.2 * spread)
    normal = (x - found[:, None]) / (spread[:, None] + 1e-5).sqrt()
    torch.testing.assert_close(y, normal * scale[:, None] + bias[:, None])
    assert torch.equal(mean, given[0])
    assert torch.equal(variance, given[1])

    def differentiable(*tensors: torch.Tensor) -> torch.Tensor:
        made = norms.batch_normalization(call, *tensors, mean.double(), variance.double(), train=True)
        return made[0]

    assert torch.autograd.gradcheck(differentiable, [one.double().requires_grad_() for one in (x, scale, bias)])


@pytest.mark.parametrize("call", [OperatorCall({"spatial": 0}, 7), OperatorCall({}, 9, outputs=5)])
def test_refuses_old_statistics(call: OperatorCall) -> None:
    one = torch.ones(1)
    with pytest.raises(NotInTorch, match="BatchNormalization"):
        norms.batch_normalization(call, torch.ones(2, 1, 2), one, one, one, one)


@pytest.mark.parametrize(("axis", "shape"), [(-1, (4,)), (1, (3, 4)), (1, (4,)), (1, (3, 1))])
@pytest.mark.parametrize("outputs", ["y", "y,m,d"])
def test_normalizes_a_layer(axis: int, shape: tuple[int, ...], outputs: str) -> None:
    made = node("LayerNormalization", "x,s,b", outputs, axis=axis, epsilon=1e-3)
    arrays = random(2, 3, 4), random(*shape), random(*shape)
    matches(norms.layer_normalization, made, *arrays)
    slopes(norms.layer_normalization, made, *arrays)


@pytest.mark.parametrize("inputs", ["x,s", "x,s,b"])
def test_normalizes_a_layer_without_bias(inputs: str) -> None:
    arrays = (random(2, 3, 4), random(4), random(4))[: len(inputs.split(","))]
    matches(norms.layer_normalization, node("LayerNormalization", inputs), *arrays)


@pytest.mark.parametrize("outputs", ["y", "y,,,a"])
@pytest.mark.parametrize("skip", [(2, 3, 4), (1, 3, 4), (3, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_normalizes_a_sum(skip: tuple[int, ...], bias: bool, outputs: str) -> None:
    arrays = random(2, 3, 4), random(*skip), random(4), random(4), random(4) if bias else None
    made = node("SkipLayerNormalization", "x,k,s,h,b" if bias else "x,k,s,h,", outputs, "com.microsoft", epsilon=1e-3)
    matches(norms.skip_layer_normalization, made, *arrays)
    short = node(
        "SkipSimplifiedLayerNormalization", "x,k,s,b" if bias else "x,k,s,", outputs, "com.microsoft", epsilon=1e-3
    )
    matches(norms.skip_rms_normalization, short, *arrays[:3], arrays[4])
    if bias:
        slopes(norms.skip_layer_normalization, made, *arrays)
        slopes(norms.skip_rms_normalization, short, *arrays[:3], arrays[4])


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("places", [True, False])
def test_normalizes_embeddings(segments: bool, mask: bool, places: bool) -> None:
    tokens, kinds = np.array([[1, 2, 0], [3, 4, 4]], np.int32), np.array([[0, 1, 1], [0, 0, 1]], np.int32)
    arrays = [
        tokens,
        kinds if segments else None,
        random(5, 4),
        random(6, 4),
        random(2, 4) if segments else None,
        random(4),
        random(4),
        np.array([[1, 1, 0], [1, 1, 1]], np.int32) if mask else None,
        np.array([[2, 3, 4], [5, 0, 0]], np.int32) if places else None,
    ]
    names = ",".join("" if array is None else f"i{index}" for index, array in enumerate(arrays))
    made = node("EmbedLayerNormalization", names, "y,m,a", "com.microsoft", epsilon=1e-3)
    matches(norms.embed_layer_normalization, made, *arrays)
    if segments and mask and places:
        slopes(norms.embed_layer_normalization, made, *(array for array in arrays if array is not None))


@pytest.mark.parametrize("axis", [-1, 1])
def test_normalizes_by_root_mean_squares(axis: int) -> None:
    shape = (2, 3, 4)[axis:]
    rms = node("RMSNormalization", "x,s", axis=axis, epsilon=1e-3)
    matches(norms.rms_normalization, rms, random(2, 3, 4), random(*shape), opset=23)
    for outputs in ("y", "y,d"):
        made = node("SimplifiedLayerNormalization", "x,s", outputs, axis=axis, epsilon=1e-3)
        matches(norms.rms_normalization, made, random(2, 3, 4), random(*shape))
        slopes(norms.rms_normalization, made, random(2, 3, 4), random(*shape))
    slopes(norms.rms_normalization, made, random(2, 3, 4), random(4))


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 4, 3, 2), (1, 4, 1)])
def test_normalizes_instances_and_groups(shape: tuple[int, ...]) -> None:
    made = node("InstanceNormalization", "x,s,b", epsilon=1e-2)
    matches(norms.instance_normalization, made, random(*shape), random(4), random(4))
    slopes(norms.instance_normalization, made, random(*shape), random(4), random(4))
    for opset, size in ((18, 2), (21, 4)):
        made = node("GroupNormalization", "x,s,b", num_groups=2, epsilon=1e-2)
        matches(norms.group_normalization, made, random(*shape), random(size), random(size), opset=opset)
        slopes(norms.group_normalization, made, random(*shape), random(size), random(size), opset=opset)


@pytest.mark.parametrize("attributes", [{}, {"axis": 0, "p": 1}, {"axis": 1, "p": 2}])
def test_normalizes_by_a_norm(attributes: dict[str, object]) -> None:
    x = random(3, 4)
    slopes(norms.lp_normalization, node("LpNormalization", "x", **attributes), x)
    x[0] = 0
    matches(norms.lp_normalization, node("LpNormalization", "x", **attributes), x)
    zero = torch.zeros(2, 3, requires_grad=True)
    made = norms.lp_normalization(OperatorCall(attributes, 18), zero)
    assert isinstance(made, torch.Tensor)
    made.sum().backward()
    assert zero.grad is not None
    assert bool(zero.grad.isfinite().all())


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", [(2, 6, 3, 2), (1, 4, 1, 5)])
def test_normalizes_by_neighbours(size: int, shape: tuple[int, ...]) -> None:
    made = node("LRN", "x", size=size, alpha=0.3, beta=0.6, bias=1.5)
    matches(norms.lrn, made, random(*shape))
    slopes(norms.lrn, made, random(*shape))


@pytest.mark.parametrize("axes", [[0, 2, 3], [2, 3]])
def test_normalizes_mean_and_variance(axes: list[int]) -> None:
    made = node("MeanVarianceNormalization", "x", axes=axes)
    matches(norms.mean_variance_normalization, made, random(2, 3, 4, 5), opset=13)
    slopes(norms.mean_variance_normalization, made, random(2, 2, 3, 2))


def test_fuses_bias_and_activation() -> None:
    for name, inputs, function in (
        ("BiasGelu", "x,b", norms.bias_gelu),
        ("FastGelu", "x,b", norms.fast_gelu),
        ("FastGelu", "x", norms.fast_gelu),
        ("QuickGelu", "x", norms.quick_gelu),
    ):
        made = node(name, inputs, domain="com.microsoft")
        arrays = (random(2, 3, 4), random(4))[: len(inputs.split(","))]
        matches(function, made, *arrays)
        slopes(function, made, *arrays)


@pytest.mark.parametrize("autocast", [False, True])
def test_computes_in_bfloat16(autocast: bool) -> None:
    kind = torch.float32 if autocast else torch.bfloat16
    x, scale = torch.randn(2, 4, 4, dtype=torch.bfloat16), torch.ones(4, dtype=kind)
    for function, made in (
        (norms.layer_normalization, node("LayerNormalization", "x,s,b")),
        (norms.group_normalization, node("GroupNormalization", "x,s,b", num_groups=2)),
        (norms.instance_normalization, node("InstanceNormalization", "x,s,b")),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = function(call_of(ir.from_proto(made), 21), x, scale, scale)
        assert isinstance(y, torch.Tensor)
        assert y.dtype in ((torch.bfloat16, torch.float32) if autocast else (torch.bfloat16,))
    for wide in (scale, scale.float()):
        y = norms.batch_normalization(OperatorCall({}, 18), x, wide, wide, wide, wide)
        assert isinstance(y, torch.Tensor)
        trained = norms.batch_normalization(OperatorCall({}, 18), x, wide, wide, wide, wide, train=True)
        assert y.dtype == trained[0].dtype == torch.bfloat16
        assert trained[1].dtype == trained[2].dtype == wide.dtype
