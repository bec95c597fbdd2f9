"""Activations: the standard's cases, finite differences away from kinks, old versions in onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase

from lepton_cli.train.operators.call import OperatorCall, TorchOperator
from lepton_cli.train.operators.table import OPERATORS
from tests.train.operators.oracle import as_onnxruntime, holds, slopes, standard

#: With attributes that are not the defaults.
PLAIN: dict[str, tuple[dict[str, Any], ...]] = {
    "Celu": ({}, {"alpha": 2.0}),
    "Elu": ({}, {"alpha": 2.0}),
    "Gelu": ({}, {"approximate": "tanh"}),
    "HardSigmoid": ({}, {"alpha": 1 / 6}, {"alpha": 0.4, "beta": 0.3}),
    "HardSwish": ({},),
    "LeakyRelu": ({}, {"alpha": 0.3}),
    "Mish": ({},),
    "Relu": ({},),
    "Selu": ({}, {"alpha": 2.0, "gamma": 3.0}),
    "Shrink": ({}, {"bias": 0.2, "lambd": 1.1}),
    "Sigmoid": ({},),
    "Softplus": ({},),
    "Softsign": ({},),
    "Swish": ({}, {"alpha": 1.5}),
    "Tanh": ({},),
    "ThresholdedRelu": ({}, {"alpha": 0.4}),
}
VARIANTS = [(name, attributes) for name, all_attributes in PLAIN.items() for attributes in all_attributes]
SOFT = ("Softmax", "LogSoftmax", "Hardmax")
#: They draw random numbers.
REFUSED = {f"test_training_dropout{end}" for end in ("", "_default", "_mask", "_default_mask")}


@standard([*PLAIN, *SOFT, "PRelu", "Dropout"], REFUSED)
def test_the_standards_cases(function: TorchOperator, case: TestCase, refuses: bool) -> None:
    holds(function, case, refuses)


@pytest.mark.parametrize(("name", "attributes"), VARIANTS)
def test_slopes(name: str, attributes: dict[str, Any]) -> None:
    places = np.array([[-3.6, -1.4, -0.7], [0.3, 0.9, 3.7]])
    slopes(OPERATORS["", name], helper.make_node(name, ["x"], ["y"], **attributes), places)


@pytest.mark.parametrize(("name", "attributes"), [one for one in VARIANTS if one[0] not in ("Swish", "Shrink")])
def test_attributes(name: str, attributes: dict[str, Any]) -> None:
    x = np.linspace(-9, 30, 157, dtype=np.float32)
    as_onnxruntime(helper.make_node(name, ["x"], ["y"], **attributes), x, opset=20)


def test_gelu_of_onnxruntime() -> None:
    x = np.linspace(-4, 4, 31, dtype=np.float32)
    as_onnxruntime(helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft"), x, opset=17)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (3, 1, 1), (5,), (3, 4, 5), (2, 1, 1, 1), (1, 3, 1, 1)])
def test_slopes_of_prelu(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    x, slope = random.normal(size=(2, 3, 4, 5)).astype(np.float32), random.uniform(size=shape).astype(np.float32)
    node = helper.make_node("PRelu", ["x", "slope"], ["y"])
    as_onnxruntime(node, x, slope, opset=16)
    slopes(OPERATORS["", "PRelu"], node, x[:, :, :2], slope if 4 not in shape else slope[:, :2])


def test_slopes_of_prelu_of_a_row() -> None:
    node = helper.make_node("PRelu", ["x", "slope"], ["y"])
    x, slope = np.array([[-1, 2, -3], [-4, 5, 6]], np.float32), np.array([0.1, 0.2, 0.3], np.float32)
    as_onnxruntime(node, x, slope, opset=16)
    slopes(OPERATORS["", "PRelu"], node, x, slope)


@pytest.mark.parametrize("opset", [9, 11, 13])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
@pytest.mark.parametrize("name", SOFT)
def test_softmax_then_and_now(name: str, axis: int | None, opset: int) -> None:
    """Before opset 13 all axes from the given one on count as one."""
    if axis == -1 and opset == 9:
        return  # not yet in the standard
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    node = helper.make_node(name, ["x"], ["y"], **({} if axis is None else {"axis": axis}))
    as_onnxruntime(node, x, opset=opset)
    if name != "Hardmax":
        slopes(OPERATORS["", name], node, x, opset=opset)


def test_the_first_of_equals_is_the_largest() -> None:
    as_onnxruntime(helper.make_node("Hardmax", ["x"], ["y"]), np.array([[1, 3, 3], [2, 2, 2]], np.float32), opset=13)


@pytest.mark.parametrize("opset", [7, 10, 12])
def test_dropout_hands_on(opset: int) -> None:
    """The mask is of floats at first, then of truth values."""
    x = torch.rand(2, 3)
    made = OPERATORS["", "Dropout"](OperatorCall({"ratio": 0.5} if opset < 12 else {}, opset, 2), x)
    assert made[0] is x
    assert made[1] is not None
    assert made[1].dtype == (torch.float32 if opset < 10 else torch.bool)
    assert bool((made[1] == 1).all())


@pytest.mark.parametrize("name", [*PLAIN, "PRelu"])
def test_channels_last_stays(name: str) -> None:
    x = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    made = OPERATORS["", name](OperatorCall({}, 20), *((x, torch.rand(3, 1, 1)) if name == "PRelu" else (x,)))
    assert isinstance(made, torch.Tensor)
    assert made.is_contiguous(memory_format=torch.channels_last)
