"""Moving elements: the standard's cases, finite differences, old versions and odd corners in onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.backend.test.case.test_case import TestCase

from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator
from lepton_cli.train.operators.table import OPERATORS
from tests.train.operators.oracle import as_onnxruntime, holds, slopes, standard

NAMES = [
    *("Compress", "Concat", "ConstantOfShape", "DepthToSpace", "Expand", "EyeLike", "Flatten", "Identity", "NonZero"),
    *("Pad", "Range", "Reshape", "ReverseSequence", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze"),
    *("Tile", "Transpose", "Trilu", "Unique", "Unsqueeze"),
]
#: Values that are no tensors.
REFUSED = {"test_identity_sequence", "test_identity_opt"}
X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
PICTURE = np.random.default_rng(0).normal(size=(1, 4, 4, 2)).astype(np.float32)


@standard(NAMES, REFUSED)
def test_the_standards_cases(function: TorchOperator, case: TestCase, refuses: bool) -> None:
    holds(function, case, refuses)


#: One input, attributes alone; the last opset that has them so.
BY_ATTRIBUTES: list[tuple[str, int, dict[str, Any], np.ndarray]] = [
    ("Squeeze", 12, {"axes": [0, -1]}, X[:1, :, :1]),
    ("Squeeze", 10, {}, X[:1, :, :1]),
    ("Unsqueeze", 12, {"axes": [-1, 0]}, X),
    ("Slice", 9, {"starts": [1, -2], "ends": [1000, 4]}, X),
    ("Slice", 9, {"starts": [0, -1], "ends": [-1, 9], "axes": [2, 0]}, X),
    ("Pad", 10, {"pads": [0, 1, 0, 0, 0, 2], "value": 1.5}, X),
    ("Pad", 10, {"pads": [0, -1, 0, 0, 0, 2]}, X),
    ("Pad", 10, {"pads": [0, 1, 2, 0, 0, 3], "mode": "reflect"}, X),
    ("Pad", 10, {"pads": [0, 0, 2, 1, 0, 0, 3, 1], "mode": "reflect"}, PICTURE),
    ("Pad", 10, {"pads": [0, 0, 2, 1, 0, 0, 5, 1], "mode": "edge"}, PICTURE),
    ("Pad", 10, {"pads": [1, 0, 2, 0, 0, 3], "mode": "edge"}, X),
    ("Flatten", 13, {"axis": 0}, X),
    ("Flatten", 13, {"axis": 3}, X),
    ("Flatten", 13, {"axis": -1}, X),
    ("Transpose", 13, {}, X),
    ("Transpose", 13, {"perm": [1, 2, 0]}, X),
    ("DepthToSpace", 13, {"blocksize": 2}, PICTURE),
    ("DepthToSpace", 13, {"blocksize": 2, "mode": "CRD"}, PICTURE),
    ("SpaceToDepth", 13, {"blocksize": 2}, PICTURE),
    ("Trilu", 14, {"upper": 0}, X),
    ("Identity", 13, {}, X),
]


@pytest.mark.parametrize(("name", "opset", "attributes", "x"), BY_ATTRIBUTES)
def test_by_attributes(name: str, opset: int, attributes: dict[str, Any], x: np.ndarray) -> None:
    node = helper.make_node(name, ["x"], ["y"], **attributes)
    as_onnxruntime(node, x, opset=opset)
    slopes(OPERATORS["", name], node, x, opset=opset)


INT_MAX = np.iinfo(np.int64).max
#: One input with a gradient and others of integers.
BY_INPUTS: list[tuple[str, dict[str, Any], list[Any]]] = [
    ("Squeeze", {}, [[1]]),
    ("Unsqueeze", {}, [[0, -1, 2]]),
    ("Reshape", {}, [[0, -1]]),
    ("Reshape", {}, [[4, 0, 2]]),
    ("Expand", {}, [[5, 2, 1, 4]]),
    ("Expand", {}, [[1]]),
    ("Tile", {}, [[2, 1, 3]]),
    ("Slice", {}, [[0], [INT_MAX], [-1], [3]]),
    ("Slice", {}, [[-1], [-INT_MAX], [2], [-1]]),
    ("Slice", {}, [[100, 1], [-100, 2], [2, 1], [-2, 1]]),
    ("Slice", {}, [[3], [0], [2], [-2]]),
    ("Slice", {}, [[-100], [-1000], [2], [-1]]),
    ("Slice", {}, [[2, 0], [1, INT_MAX]]),
    ("Trilu", {}, [1]),
    ("Trilu", {"upper": 0}, [-2]),
    ("Compress", {"axis": 1}, [np.array([True, False, True])]),
    ("Compress", {}, [np.array([True, False, True])]),
]


@pytest.mark.parametrize(("name", "attributes", "others"), BY_INPUTS)
def test_by_inputs(name: str, attributes: dict[str, Any], others: list[Any]) -> None:
    x = X[:, :1] if name in ("Squeeze", "Expand") else X
    node = helper.make_node(name, ["x", *"abcd"[: len(others)]], ["y"], **attributes)
    given = [np.array(other) for other in others]
    made = as_onnxruntime(node, x, *given, opset=15)
    if made[0].size:
        slopes(OPERATORS["", name], node, x, *given)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    ("pads", "axes"),
    [
        ([1, 2, 3, 1], [1, -1]),
        ([0, 1], [2]),
        ([0, 0, 0, 0], [0, 1]),
        ([-1, 0, -1, -2], [1, 2]),
        ([-1, 1, 2, -1], [2, 1]),
    ],
)
def test_pad_by_inputs(mode: str, pads: list[int], axes: list[int]) -> None:
    if mode == "reflect":
        pads = [min(number, 2) for number in pads]
    given = (X, np.array(pads), np.array(2.5, np.float32), np.array(axes))
    node = helper.make_node("Pad", ["x", "pads", "value", "axes"], ["y"], mode=mode)
    as_onnxruntime(node, *given, opset=19)

    def function(call: OperatorCall, x: torch.Tensor) -> Any:
        return OPERATORS["", "Pad"](call, x, torch.tensor(pads), None, torch.tensor(axes))

    slopes(function, node, X)


@pytest.mark.parametrize("kind", [np.int64, np.bool_])
def test_pad_of_no_floats(kind: type) -> None:
    x = np.array([[1, 0], [1, 1]]).astype(kind)
    as_onnxruntime(helper.make_node("Pad", ["x", "p"], ["y"]), x, np.array([0, 1, 1, 0]), opset=13)


def test_pad_of_another_mode_is_refused() -> None:
    with pytest.raises(NotInTorch, match="mode other"):
        OPERATORS["", "Pad"](OperatorCall({"mode": "other"}, 19), torch.ones(2), torch.tensor([1, 1]))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    node = helper.make_node("Concat", ["x", "y"], ["z"], axis=axis)
    as_onnxruntime(node, X, X + 1, opset=13)
    slopes(OPERATORS["", "Concat"], node, X, X + 1)


def test_split_of_all_versions() -> None:
    slopes(OPERATORS["", "Split"], helper.make_node("Split", ["x"], ["a", "b"], axis=2), X, opset=11)
    as_onnxruntime(helper.make_node("Split", ["x"], ["a", "b"], axis=2), X, opset=11)
    as_onnxruntime(helper.make_node("Split", ["x"], ["a", "b"], axis=-1, split=[1, 3]), X, opset=11)
    as_onnxruntime(helper.make_node("Split", ["x", "s"], ["a", "b"], axis=1), X, np.array([1, 2]), opset=13)
    as_onnxruntime(helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2), X, opset=18)


@pytest.mark.parametrize("numbers", [(0, 5, 2), (5, 0, -2), (3, 3, 1), (0.0, 1.0, 0.3)])
def test_range(numbers: tuple[float, float, float]) -> None:
    kind = np.float32 if isinstance(numbers[0], float) else np.int64
    node = helper.make_node("Range", ["start", "limit", "delta"], ["y"])
    as_onnxruntime(node, *(np.array(number, kind) for number in numbers), opset=13)


def test_constant_of_shape() -> None:
    value = helper.make_tensor("v", TensorProto.INT64, [1], [7])
    as_onnxruntime(helper.make_node("ConstantOfShape", ["s"], ["y"], value=value), np.array([2, 0, 3]), opset=13)
    as_onnxruntime(helper.make_node("ConstantOfShape", ["s"], ["y"]), np.array([2, 3]), opset=13)


def test_eye_like_of_no_type_of_torch_is_refused() -> None:
    with pytest.raises(NotInTorch, match="STRING"):
        OPERATORS["", "EyeLike"](OperatorCall({"dtype": TensorProto.STRING}, 13), torch.ones(2, 2))


@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
def test_reverse_sequence(axes: tuple[int, int]) -> None:
    node = helper.make_node("ReverseSequence", ["x", "n"], ["y"], time_axis=axes[0], batch_axis=axes[1])
    lengths = np.array([1, 2, 2] if axes[1] else [2, 3])
    as_onnxruntime(node, X, lengths, opset=13)
    slopes(OPERATORS["", "ReverseSequence"], node, X, lengths)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_unique(axis: int | None, order: int) -> None:
    x = np.array([[3, 1, 3], [2, 2, 2], [3, 1, 3], [0, 1, 0]], np.float32)
    node = helper.make_node(
        "Unique", ["x"], ["v", "first", "inverse", "n"], sorted=order, **({} if axis is None else {"axis": axis})
    )
    as_onnxruntime(node, x, opset=13)


def test_tile_of_one_axis_is_refused() -> None:
    with pytest.raises(NotInTorch, match="before opset 6"):
        OPERATORS["", "Tile"](OperatorCall({}, 5), torch.ones(2), torch.tensor([2]), torch.tensor([0]))


def test_channels_last_stays() -> None:
    x = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    made = OPERATORS["", "Concat"](OperatorCall({"axis": 1}, 13), x, x)
    assert isinstance(made, torch.Tensor)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_views_where_torch_has_them() -> None:
    x = torch.rand(2, 3, 4)
    for name, attributes, others in (
        ("Transpose", {}, ()),
        ("Flatten", {}, ()),
        ("Reshape", {}, (torch.tensor([6, -1]),)),
        ("Slice", {}, (torch.tensor([1]), torch.tensor([2]))),
        ("Expand", {}, (torch.tensor([5, 2, 3, 4]),)),
    ):
        made = OPERATORS["", name](OperatorCall(attributes, 13), x, *others)
        assert isinstance(made, torch.Tensor)
        assert made.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
