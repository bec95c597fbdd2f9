"""Reading and writing by index: the standard's cases, finite differences, old versions in onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase

from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator
from lepton_cli.train.operators.table import OPERATORS
from tests.train.operators.oracle import as_onnxruntime, holds, slopes, standard

NAMES = ("Gather", "GatherElements", "GatherND", "Scatter", "ScatterElements", "ScatterND", "OneHot")
X = np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32)


@standard(NAMES)
def test_the_standards_cases(function: TorchOperator, case: TestCase, refuses: bool) -> None:
    holds(function, case, refuses)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("indices", [0, -1, [1], [[0, -2], [2, 2]], []])
def test_gather(axis: int, indices: list[int] | int) -> None:
    node, places = helper.make_node("Gather", ["x", "i"], ["y"], axis=axis), np.array(indices, np.int64)
    as_onnxruntime(node, X, places, opset=13)
    if places.size:
        slopes(OPERATORS["", "Gather"], node, X, places)


def test_slopes_of_gather_elements() -> None:
    node = helper.make_node("GatherElements", ["x", "i"], ["y"], axis=1)
    places = np.array([[[0, -1], [2, 1]]], np.int32)
    as_onnxruntime(node, X, places, opset=13)
    slopes(OPERATORS["", "GatherElements"], node, X, places)


@pytest.mark.parametrize(
    ("batch", "places"),
    [
        (0, [[0, 1], [-1, -2]]),
        (0, [[2], [0]]),
        (0, [[[1, 2, 1]], [[-1, -1, -1]]]),
        (1, [[0], [3], [-1]]),
        (1, [[[0, 1], [1, 2]], [[0, 0], [3, 2]], [[-1, -1], [2, 2]]]),
        (2, [[[k % 3] for k in range(j, j + 4)] for j in range(3)]),
    ],
)
def test_gather_nd(batch: int, places: list[object]) -> None:
    node = helper.make_node("GatherND", ["x", "i"], ["y"], batch_dims=batch)
    as_onnxruntime(node, X, np.array(places, np.int64), opset=13)
    slopes(OPERATORS["", "GatherND"], node, X, np.array(places, np.int64))


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("axis", [0, -1])
def test_scatter_elements(axis: int, reduction: str) -> None:
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=axis, reduction=reduction)
    places = np.array([[[0, 1, 2], [-1, 0, 1]], [[1, 2, 0], [1, -1, 0]]], np.int64)
    updates = np.random.default_rng(1).normal(size=places.shape).astype(np.float32)
    as_onnxruntime(node, X, places, updates, opset=18)
    slopes(OPERATORS["", "ScatterElements"], node, X, places, updates)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("places", [[[0], [2]], [[0, 1], [-1, 3]], [[[0, 1, 2]], [[1, -1, -1]]]])
def test_scatter_nd(places: list[object], reduction: str) -> None:
    node = helper.make_node("ScatterND", ["x", "i", "u"], ["y"], reduction=reduction)
    indices = np.array(places, np.int64)
    shape = indices.shape[:-1] + X.shape[indices.shape[-1] :]
    updates = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    as_onnxruntime(node, X, indices, updates, opset=18)
    slopes(OPERATORS["", "ScatterND"], node, X, indices, updates)


@pytest.mark.parametrize("reduction", ["add", "max"])
def test_scattered_where_indices_meet(reduction: str) -> None:
    node = helper.make_node("ScatterND", ["x", "i", "u"], ["y"], reduction=reduction)
    as_onnxruntime(node, X, np.array([[1], [1]]), X[1:] * 2, opset=18)


def test_another_reduction_is_refused() -> None:
    x = torch.zeros(2)
    with pytest.raises(NotInTorch, match="mean"):
        OPERATORS["", "ScatterElements"](OperatorCall({"reduction": "mean"}, 18), x, torch.tensor([0]), x[:1])


def test_inputs_stay() -> None:
    x = torch.zeros(3)
    for name, places in (("ScatterElements", torch.tensor([1])), ("ScatterND", torch.tensor([[1]]))):
        for reduction in ("none", "add", "mul"):
            OPERATORS["", name](OperatorCall({"reduction": reduction}, 18), x, places, torch.ones(1))
    assert not x.any()


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int) -> None:
    node = helper.make_node("OneHot", ["i", "depth", "values"], ["y"], axis=axis)
    indices, values = np.array([[0, -1], [7, 2]], np.int64), np.array([0.5, 3.0], np.float32)
    as_onnxruntime(node, indices, np.array([4]), values, opset=11)
    slopes(OPERATORS["", "OneHot"], node, indices, np.array([4]), values)
