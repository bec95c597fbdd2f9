"""Reductions and running sums: the standard's cases, finite differences, old versions in onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase

from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator
from lepton_cli.train.operators.table import OPERATORS
from tests.train.operators.oracle import as_onnxruntime, holds, slopes, standard

KINDS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
REDUCTIONS = [f"Reduce{kind}" for kind in KINDS]
X = np.array([[[0.3, 1.2], [2.5, 0.7]], [[1.9, 3.4], [0.8, 1.1]]], dtype=np.float32)


@standard([*REDUCTIONS, "ArgMax", "ArgMin", "TopK", "CumSum", "CumProd", "Einsum", "Det"])
def test_the_standards_cases(function: TorchOperator, case: TestCase, refuses: bool) -> None:
    holds(function, case, refuses)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("attributes", [{}, {"axes": [1], "keepdims": 0}, {"axes": [-1, 0]}])
def test_reduced_by_attributes(name: str, attributes: dict[str, Any]) -> None:
    node = helper.make_node(name, ["x"], ["y"], **attributes)
    opset = 11 if name == "ReduceSum" else 13
    as_onnxruntime(node, X, opset=opset)
    slopes(OPERATORS["", name], node, X, opset=opset)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("noop", [0, 1])
@pytest.mark.parametrize("axes", [[], [2], [0, -1]])
def test_reduced_by_an_input(name: str, axes: list[int], noop: int) -> None:
    node = helper.make_node(name, ["x", "axes"], ["y"], noop_with_empty_axes=noop)
    as_onnxruntime(node, X, np.array(axes, np.int64), opset=18)
    slopes(OPERATORS["", name], node, X, np.array(axes, np.int64), opset=18)


@pytest.mark.parametrize("name", ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean", "ReduceL2"])
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_integers_stay_integers(name: str, kind: type) -> None:
    if name == "ReduceL2" and kind == np.int64:
        return  # onnxruntime has none
    x = np.array([[3, -4, 7], [1, 2, 5]], kind)
    as_onnxruntime(helper.make_node(name, ["x"], ["y"]), x, opset=12)


@pytest.mark.parametrize("name", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_place_of_equals(name: str, last: int, axis: int) -> None:
    x = np.array([[2, 1, 2], [2, 2, 1]], np.float32)
    node = helper.make_node(name, ["x"], ["y"], select_last_index=last, axis=axis, keepdims=last)
    as_onnxruntime(node, x, opset=13)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_of_equals(largest: int) -> None:
    x = np.random.default_rng(0).integers(0, 5, (3, 40)).astype(np.float32)
    node = helper.make_node("TopK", ["x", "k"], ["values", "places"], largest=largest, axis=1)
    as_onnxruntime(node, x, np.array([30]), opset=11)


def test_top_k_by_attribute() -> None:
    as_onnxruntime(helper.make_node("TopK", ["x"], ["values", "places"], k=2, axis=0), X[0], opset=9)


def test_slopes_of_top_k() -> None:
    node = helper.make_node("TopK", ["x", "k"], ["values", "places"])
    slopes(OPERATORS["", "TopK"], node, X, np.array([1]))


@pytest.mark.parametrize("name", ["CumSum", "CumProd"])
@pytest.mark.parametrize("attributes", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
def test_slopes_of_running_sums(name: str, attributes: dict[str, int]) -> None:
    slopes(OPERATORS["", name], helper.make_node(name, ["x", "axis"], ["y"], **attributes), X, np.array(1))


@pytest.mark.parametrize("equation", ["bij,bjk->bik", "bij , bjk", "...ij,...jk->...ik", "bij,bij->b"])
def test_einsum(equation: str) -> None:
    node = helper.make_node("Einsum", ["x", "y"], ["z"], equation=equation)
    as_onnxruntime(node, X, X + 1, opset=12)
    slopes(OPERATORS["", "Einsum"], node, X, X + 1)


@pytest.mark.parametrize("kind", [torch.int8, torch.int32, torch.int64])
def test_extremes_of_no_integers(kind: torch.dtype) -> None:
    """The ends of the type, as the standard asks."""
    nothing = torch.zeros((2, 0), dtype=kind)
    for name, end in (("ReduceMax", torch.iinfo(kind).min), ("ReduceMin", torch.iinfo(kind).max)):
        made = OPERATORS["", name](OperatorCall({"axes": [1], "keepdims": 0}, 13), nothing)
        assert isinstance(made, torch.Tensor)
        assert made.tolist() == [end, end]
        assert made.dtype == kind


def test_determinants_of_integers_are_refused() -> None:
    with pytest.raises(NotInTorch, match="integers"):
        OPERATORS["", "Det"](OperatorCall({}, 11), torch.eye(2, dtype=torch.int32))


def test_slopes_of_det() -> None:
    slopes(OPERATORS["", "Det"], helper.make_node("Det", ["x"], ["y"]), X)
