"""Arithmetic, comparisons, logic and types: the standard's cases, finite differences, old versions in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase

from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator
from lepton_cli.train.operators.table import OPERATORS
from tests.train.operators.oracle import as_onnxruntime, cases, holds, slopes, standard

UNARY = [
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Log"),
    *("Neg", "Reciprocal", "Round", "Sign", "Sin", "Sinh", "Sqrt", "Tan"),
]
NAMES = [
    *UNARY,
    *[
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Mod",
        "Min",
        "Max",
        "Sum",
        "Mean",
        "Clip",
        "Cast",
        "CastLike",
        "IsInf",
        "IsNaN",
        "Where",
    ],
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not"),
    *("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"),
]
#: torch has no arithmetic of these types, no strings, and no floats of 8 bits or integers below.
WIDE = ("uint16", "uint32", "uint64")
REFUSED = {
    *(f"test_{name}_{kind}" for name in ("add", "sub", "div", "mod", "min", "max", "less", "greater") for kind in WIDE),
    *(f"test_{name}_equal_{kind}" for name in ("less", "greater") for kind in WIDE),
    *(f"test_bitshift_{way}_{kind}" for way in ("left", "right") for kind in WIDE),
    "test_bitwise_not_3d",
    "test_equal_string",
    "test_equal_string_broadcast",
    *(
        case.name
        for name in ("Cast", "CastLike")
        for case in cases()[name]
        if any(kind in case.name for kind in ("FLOAT8", "FLOAT4", "INT4", "INT2"))
    ),
}


@standard(NAMES, REFUSED)
def test_the_standards_cases(function: TorchOperator, case: TestCase, refuses: bool) -> None:
    holds(function, case, refuses)


SMOOTH = set(UNARY) - {"Acos", "Acosh", "Asin", "Atanh"}


@pytest.mark.parametrize("name", UNARY)
def test_slopes_of_one_input(name: str) -> None:
    places = np.array([[0.3, 0.6], [0.7, 1.7]]) if name in SMOOTH else np.array([[0.3, -0.6], [0.7, -0.2]])
    slopes(OPERATORS["", name], helper.make_node(name, ["x"], ["y"]), places + (2 if name == "Acosh" else 0))


@pytest.mark.parametrize("name", ["Add", "Sub", "Mul", "Div", "Min", "Max", "Mean", "Sum", "Mod", "Pow"])
def test_slopes_of_two_inputs_that_broadcast(name: str) -> None:
    node = helper.make_node(name, ["x", "y"], ["z"], **({"fmod": 1} if name == "Mod" else {}))
    slopes(OPERATORS["", name], node, np.array([[0.3, 1.2, 2.5], [1.9, 3.4, 0.8]]), np.array([[1.1], [2.2]]))


def test_slopes_of_a_whole_power() -> None:
    """A number on the CPU goes another way than a tensor; the base may be negative."""
    slopes(OPERATORS["", "Pow"], helper.make_node("Pow", ["x", "y"], ["z"]), np.array([-1.5, 0.4]), np.array(3))


@pytest.mark.parametrize("bounds", [(-0.5, 0.5), (None, 0.5), (-0.5, None), (None, None)])
def test_slopes_of_clip(bounds: tuple[float | None, float | None]) -> None:
    node = helper.make_node("Clip", ["x", "low", "high"], ["y"])
    call = OperatorCall({}, 18)
    low, high = (None if bound is None else torch.tensor(bound, dtype=torch.float64) for bound in bounds)
    x = torch.tensor([-1.0, -0.2, 0.3, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: OPERATORS["", "Clip"](call, x, low, high), x)
    if None not in bounds:
        slopes(OPERATORS["", "Clip"], node, x.detach().numpy(), np.array(bounds[0]), np.array(bounds[1]))


def test_slopes_of_a_bound_that_learns() -> None:
    """Beside one that is only a number."""
    low = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([-1.0, -0.2, 0.3, 0.9], dtype=torch.float64, requires_grad=True)
    clip, high = OPERATORS["", "Clip"], torch.tensor(0.5)
    assert torch.autograd.gradcheck(lambda x, low: clip(OperatorCall({}, 18), x, low, high), (x, low))


def test_slopes_of_where() -> None:
    node = helper.make_node("Where", ["c", "x", "y"], ["z"])
    slopes(OPERATORS["", "Where"], node, np.array([True, False]), np.array([[1.0], [2.0]]), np.array([3.0, 4.0]))


X = np.array([[-2.5, -0.5, 0.0], [0.5, 1.5, 9.0]], dtype=np.float32)


@pytest.mark.parametrize("limits", [{"min": -1.0, "max": 1.0}, {"min": -1.0}, {"max": 1.0}, {}])
def test_clip_by_attributes(limits: dict[str, float]) -> None:
    as_onnxruntime(helper.make_node("Clip", ["x"], ["y"], **limits), X, opset=10)


@pytest.mark.parametrize("kinds", [(np.int32, np.float32), (np.float32, np.int64), (np.int64, np.int64)])
def test_pow_has_the_type_of_its_base(kinds: tuple[type, type]) -> None:
    node = helper.make_node("Pow", ["x", "y"], ["z"])
    as_onnxruntime(node, np.array([1, 2, 3], kinds[0]), np.array([2], kinds[1]), opset=15)
    as_onnxruntime(node, np.array([1, 2, 3], kinds[0]), np.array([2, 1, 3], kinds[1]), opset=15)


def test_integers_divide_towards_zero() -> None:
    x, y = np.array([-7, 7, -7, 7], np.int64), np.array([2, 2, -2, -2], np.int64)
    as_onnxruntime(helper.make_node("Div", ["x", "y"], ["z"]), x, y, opset=13)


@pytest.mark.parametrize(
    "to", [onnx.TensorProto.INT32, onnx.TensorProto.UINT8, onnx.TensorProto.BOOL, onnx.TensorProto.FLOAT16]
)
def test_cast_of_floats(to: int) -> None:
    """Truncated on the way to integers."""
    x = np.array([0.0, 0.4, 1.5, 2.9, 200.7], np.float32)
    as_onnxruntime(helper.make_node("Cast", ["x"], ["y"], to=to), x, opset=13)


@pytest.mark.parametrize("low", [0, 1])
@pytest.mark.parametrize("high", [0, 1])
def test_is_inf(low: int, high: int) -> None:
    node = helper.make_node("IsInf", ["x"], ["y"], detect_negative=low, detect_positive=high)
    as_onnxruntime(node, np.array([-np.inf, np.inf, 1, np.nan], np.float32), opset=13)


@pytest.mark.parametrize("name", ["Add", "Sub", "Mul", "Div", "Equal", "And"])
def test_broadcasting_by_attributes_is_refused(name: str) -> None:
    x = torch.ones(2)
    with pytest.raises(NotInTorch, match="before opset 7"):
        OPERATORS["", name](OperatorCall({"broadcast": 1, "axis": 0}, 6), x, x)
    OPERATORS["", name](OperatorCall({}, 6), x, x)


@pytest.mark.parametrize("name", ["Abs", "Add", "Mul", "Max", "Sum", "Clip", "Where", "Pow", "Div"])
def test_channels_last_stays(name: str) -> None:
    x = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    weight = torch.rand(3, 1, 1)
    given = {
        "Abs": (x,),
        "Clip": (x, torch.tensor(0.1), torch.tensor(0.6)),
        "Where": (x > 0.5, x, weight),
        "Pow": (x, torch.tensor(2.0)),
    }.get(name, (x, weight))
    made = OPERATORS["", name](OperatorCall({}, 18), *given)
    assert isinstance(made, torch.Tensor)
    assert made.is_contiguous(memory_format=torch.channels_last)
