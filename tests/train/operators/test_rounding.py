"""Quantization: numbers against the standard, onnxruntime and numpy; gradients against the paper, by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase

from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator
from lepton_cli.train.operators.rounding import rounded
from lepton_cli.train.operators.table import OPERATORS
from tests.train.operators.oracle import as_onnxruntime, computed, holds, standard

QUANTIZE, DEQUANTIZE = OPERATORS["", "QuantizeLinear"], OPERATORS["", "DequantizeLinear"]
SMALL = ("e4m3fn", "e5m2", "uint4", "int4", "uint2", "int2", "float4e2m1")


def _whole(function: TorchOperator, case: TestCase) -> None:
    """The numbers of the standard, as floats; those that are integers there are whole."""
    for made, expected in computed(function, case):
        for one, other in zip(made, expected, strict=True):
            assert one.dtype == np.float32
            np.testing.assert_array_equal(one, other.astype(np.float32))


@standard(
    ["DequantizeLinear"],
    {f"test_dequantizelinear_{kind}" for kind in (*SMALL, "e4m3fn_float16", "e4m3fn_zero_point")},
)
def test_the_standards_cases_of_dequantize(function: TorchOperator, case: TestCase, refuses: bool) -> None:
    holds(function, case, refuses)


@standard(["QuantizeLinear", "DynamicQuantizeLinear"], {f"test_quantizelinear_{kind}" for kind in SMALL})
def test_the_standards_cases_of_quantize(function: TorchOperator, case: TestCase, refuses: bool) -> None:
    if refuses:
        holds(function, case, refuses)
    else:
        _whole(function, case)


RANGES = {np.int8: (-128, 127), np.uint8: (0, 255), np.int16: (-32768, 32767), np.uint16: (0, 65535)}


def _by_onnxruntime(node: onnx.NodeProto, *inputs: np.ndarray, opset: int = 21) -> np.ndarray:
    """What onnxruntime makes, as floats."""
    zero = next((array for array in inputs[2:]), np.zeros((), np.uint8))
    kind = helper.np_dtype_to_tensor_dtype(zero.dtype)
    back = helper.make_node("Cast", [node.output[0]], ["whole"], to=onnx.TensorProto.FLOAT)
    graph = helper.make_graph(
        [node, back],
        "two",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(node.input, inputs, strict=True)
        ],
        [helper.make_tensor_value_info("whole", onnx.TensorProto.FLOAT, None)],
        value_info=[helper.make_tensor_value_info(node.output[0], kind, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(zip(node.input, inputs, strict=True)))[0])


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_quantized_as_by_numpy(kind: type, axis: int | None) -> None:
    """Half to even, and cut at both ends."""
    random = np.random.default_rng(0)
    low, high = RANGES[kind]
    shape, count = (6, 5, 4), 1 if axis is None else (6, 5, 4)[axis]
    zero = random.integers(low, high, count).astype(kind)
    scale = random.choice([0.5, 0.25, 0.013], count).astype(np.float32)
    spread = [1, 1, 1]
    if axis is not None:
        spread[axis] = -1
    steps = random.integers(2 * (low - high), 2 * (high - low), shape) / 2  # halves, so ties
    x = (steps * scale.reshape(spread)).astype(np.float32)
    expected = np.clip(np.rint(x / scale.reshape(spread)) + zero.reshape(spread).astype(np.float32), low, high)
    if axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **({} if axis is None else {"axis": axis}))
    call = OperatorCall({} if axis is None else {"axis": axis}, 21)
    made = QUANTIZE(call, *(torch.from_numpy(np.array(array)) for array in (x, scale, zero)))
    assert isinstance(made, torch.Tensor)
    assert made.dtype == torch.float32
    np.testing.assert_array_equal(made.numpy(), expected)
    np.testing.assert_array_equal(made.numpy(), _by_onnxruntime(node, x, scale, zero))


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32])
@pytest.mark.parametrize("attributes", [{}, {"axis": 0}, {"axis": 1, "block_size": 3}])
def test_dequantized(kind: type, attributes: dict[str, int]) -> None:
    random = np.random.default_rng(0)
    least = max(np.iinfo(kind).min, -(1 << 20))
    x = random.integers(least, min(np.iinfo(kind).max, 1 << 20), (4, 6)).astype(kind)
    shape = () if not attributes else (4, 2) if "block_size" in attributes else (4,)
    scale = random.uniform(0.01, 1, shape).astype(np.float32)
    zero = np.zeros(shape, kind) if kind == np.int32 else random.integers(0, 100, shape).astype(kind)
    node = helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["y"], **attributes)
    (expected,) = as_onnxruntime(node, x, scale, zero, opset=21, rtol=1e-6)
    given = (torch.from_numpy(np.array(array)) for array in (x.astype(np.float32), scale, zero.astype(np.float32)))
    floats = DEQUANTIZE(OperatorCall(attributes, 21), *given)
    assert isinstance(floats, torch.Tensor)
    np.testing.assert_allclose(floats.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("kind", "low", "high"), [("INT4", -8, 7), ("UINT4", 0, 15), ("INT16", -32768, 32767)])
def test_the_type_by_attribute(kind: str, low: int, high: int) -> None:
    call = OperatorCall({"output_dtype": onnx.TensorProto.DataType.Value(kind)}, 21)
    made = QUANTIZE(call, torch.tensor([-1e6, -1.5, 2.5, 1e6]), torch.tensor(1.0))
    assert isinstance(made, torch.Tensor)
    assert made.tolist() == [low, max(low, -2), 2, high]


def test_without_a_zero_point() -> None:
    """To uint8; back to the type of the scale, or another that is named."""
    x, scale = torch.tensor([-1.0, 1.5, 2.5, 300]), torch.tensor(1.0)
    whole = QUANTIZE(OperatorCall({}, 13), x, scale)
    assert isinstance(whole, torch.Tensor)
    assert whole.tolist() == [0, 2, 2, 255]
    back = DEQUANTIZE(OperatorCall({"output_dtype": onnx.TensorProto.FLOAT16}, 23), whole, scale)
    assert isinstance(back, torch.Tensor)
    assert back.dtype == torch.float16
    with pytest.raises(NotInTorch, match="FLOAT8E5M2"):
        DEQUANTIZE(OperatorCall({"output_dtype": onnx.TensorProto.FLOAT8E5M2}, 23), whole, scale)


def test_types_of_no_range_are_refused() -> None:
    with pytest.raises(NotInTorch, match="FLOAT8E5M2"):
        QUANTIZE(OperatorCall({"output_dtype": onnx.TensorProto.FLOAT8E5M2}, 21), torch.ones(1), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("x", "by_x", "by_scale"),
    [
        (0.3, 1, 1 - 0.6),  # 0.6 steps, rounded to 1
        (-0.6, 1, -1 + 1.2),
        (1.0, 1, 0.0),
        (3.5, 1, 0.0),  # the upper end itself, 7 steps
        (3.7, 0, 7.0),  # beyond, though it rounds there
        (50.0, 0, 7.0),
        (-4.0, 1, 0.0),  # the lower end itself
        (-4.1, 0, -8.0),
    ],
)
@pytest.mark.parametrize("zero", [0, 3])
def test_gradients_of_the_paper(x: float, by_x: int, by_scale: float, zero: int) -> None:
    """Esser et al. 2020, equations 3 and 5: of -8 ... 7 in steps of a half. A zero point moves the range."""
    value = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    place = torch.tensor(zero)
    made = DEQUANTIZE(OperatorCall({}, 21), rounded(value, scale, place, -8 + zero, 7 + zero), scale, place)
    assert isinstance(made, torch.Tensor)
    made.backward()
    assert value.grad is not None
    assert scale.grad is not None
    assert value.grad.item() == pytest.approx(by_x)
    assert scale.grad.item() == pytest.approx(by_scale)


def test_gradients_of_each_channel() -> None:
    """A channel's scale collects what its numbers give."""
    x = torch.tensor([[0.3, 50.0], [0.25, 1.0]], requires_grad=True)
    scale = torch.tensor([0.5, 2.0], requires_grad=True)
    zero = torch.zeros(2, dtype=torch.int8)
    call = OperatorCall({"axis": 0}, 13)
    made = DEQUANTIZE(call, QUANTIZE(call, x, scale, zero), scale, zero)
    assert isinstance(made, torch.Tensor)
    made.sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    assert x.grad.tolist() == [[1, 1], [1, 1]]
    np.testing.assert_allclose(scale.grad, [(1 - 0.6) + (100 - 100), (0 - 0.125) + (0 - 0.5)], atol=1e-5)


def test_a_range_of_nothing() -> None:
    made = OPERATORS["", "DynamicQuantizeLinear"](OperatorCall({}, 11, 3), torch.zeros(3))
    assert [one.tolist() for one in made if one is not None] == [[0, 0, 0], 1, 0]


def test_dynamic_ranges_have_gradients() -> None:
    """Half of the numbers' own, and through the scale by the largest and the least."""
    x = torch.tensor([-1.0, 0.2, 0.7, 1.0], requires_grad=True)
    whole, scale, zero = OPERATORS["", "DynamicQuantizeLinear"](OperatorCall({}, 11, 3), x)
    assert whole is not None
    ((whole - zero) * scale).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    assert x.grad[1:3].tolist() == [1, 1]
