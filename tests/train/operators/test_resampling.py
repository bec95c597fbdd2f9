"""Resampling: the standard's cases, finite differences, and onnxruntime over modes, rules and scales."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase

from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator
from lepton_cli.train.operators.table import OPERATORS
from tests.train.operators.oracle import as_onnxruntime, cases, holds, slopes, standard

#: Where onnxruntime rounds sizes down before it aligns corners, the standard does not; we do as onnxruntime does.
OTHERWISE = {f"test_resize_downsample_scales_{mode}_align_corners" for mode in ("linear", "cubic")}
X = np.random.default_rng(0).normal(size=(1, 2, 5, 6)).astype(np.float32)
ONES = [1.0, 1.0]


@standard(["Resize", "Upsample", "GridSample", "AffineGrid"])
def test_the_standards_cases(function: TorchOperator, case: TestCase, refuses: bool) -> None:
    if case.name not in OTHERWISE:
        holds(function, case, refuses)


@pytest.mark.parametrize(
    "case", [case for case in cases()["Resize"] if case.name in OTHERWISE], ids=lambda one: one.name
)
def test_corners_as_in_onnxruntime(case: TestCase) -> None:
    assert case.data_sets
    as_onnxruntime(case.model.graph.node[0], *case.data_sets[0][0], opset=18)


def _node(by: str, **attributes: Any) -> Any:
    return helper.make_node("Resize", ["x", "", *{"scales": ["n"], "sizes": ["", "n"]}[by]], ["y"], **attributes)


RULES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
FACTORS = ([2.0, 2.0], [3.0, 1.0], [0.6, 0.6], [1.7, 0.45], [0.25, 2.0])


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_by_scales(mode: str, rule: str, factors: list[float]) -> None:
    node = _node("scales", mode=mode, coordinate_transformation_mode=rule)
    as_onnxruntime(node, X, np.array(ONES + factors, np.float32), opset=19, rtol=1e-3)


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("near", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
def test_nearest_by_scales(near: str, rule: str, factors: list[float]) -> None:
    node = _node("scales", coordinate_transformation_mode=rule, nearest_mode=near)
    as_onnxruntime(node, X, np.array(ONES + factors, np.float32), opset=19)


@pytest.mark.parametrize(
    ("near", "rule"), [("floor", "half_pixel_symmetric"), ("ceil", "asymmetric"), (None, "half_pixel")]
)
def test_places_near_a_half_or_a_whole(near: str | None, rule: str) -> None:
    """Where the last bit decides, it is onnxruntime's."""
    node = _node("scales", coordinate_transformation_mode=rule, **({} if near is None else {"nearest_mode": near}))
    for length, factor in itertools.product(range(2, 24, 3), (0.6, 0.45, 0.3, 1.7, 1.3, 0.7)):
        if length * factor > 1:
            x = np.arange(length, dtype=np.float32).reshape(1, 1, 1, length)
            as_onnxruntime(node, x, np.array([1, 1, 1, factor], np.float32), opset=19)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("size", [[10, 18], [1, 7], [4, 3]])
def test_by_sizes(mode: str, size: list[int], rule: str) -> None:
    node = _node("sizes", mode=mode, coordinate_transformation_mode=rule)
    as_onnxruntime(node, X, np.array([1, 2, *size]), opset=19, rtol=1e-3)


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("outside", [0, 1])
def test_antialias(mode: str, factors: list[float], outside: int) -> None:
    node = _node("scales", mode=mode, antialias=1, exclude_outside=outside)
    as_onnxruntime(node, X, np.array(ONES + factors, np.float32), opset=18, rtol=1e-3)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
@pytest.mark.parametrize("axes", [[2, 3], [3, 2]])
def test_policies(policy: str, axes: list[int]) -> None:
    node = _node("sizes", mode="linear", keep_aspect_ratio_policy=policy, axes=axes)
    as_onnxruntime(node, X, np.array([7, 13]), opset=18)


@pytest.mark.parametrize("rank", [2, 3, 5])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_other_ranks(mode: str, rank: int) -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 4, 5)[-rank:] if rank < 3 else (1, 2, 3, 4, 5)[:rank])
    factors = np.array([1, 1, 2, 1.5, 0.5][:rank] if rank > 2 else [2, 0.7], np.float32)
    as_onnxruntime(_node("scales", mode=mode), x.astype(np.float32), factors, opset=13)


def test_all_axes() -> None:
    x = X.transpose(0, 2, 3, 1).copy()  # channels stand last
    as_onnxruntime(_node("scales", mode="linear"), x, np.array([1, 2, 1.5, 1], np.float32), opset=13)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_crops(mode: str) -> None:
    node = helper.make_node(
        "Resize",
        ["x", "roi", "", "n"],
        ["y"],
        mode=mode,
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=7.0,
    )
    corners = np.array([0, 0, 0.2, -0.3, 1, 1, 0.7, 1.4], np.float32)
    as_onnxruntime(node, X, corners, np.array([1, 2, 4, 1]), opset=13, rtol=1e-3)
    as_onnxruntime(node, X, corners, np.array([1, 2, 3, 8]), opset=13, rtol=1e-3)


def test_tensorflows_half_pixel() -> None:
    node = helper.make_node(
        "Resize", ["x", "roi", "n"], ["y"], coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor"
    )
    as_onnxruntime(node, X, np.array([], np.float32), np.array([1, 1, 1.7, 0.6], np.float32), opset=11)


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_the_first_version(mode: str, factors: list[float]) -> None:
    node = helper.make_node("Resize", ["x", "scales"], ["y"], mode=mode)
    as_onnxruntime(node, X, np.array(ONES + factors, np.float32), opset=10)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(mode: str) -> None:
    by_input = helper.make_node("Upsample", ["x", "scales"], ["y"], mode=mode)
    as_onnxruntime(by_input, X, np.array([1, 1, 2, 1.5], np.float32), opset=9)
    by_attribute = helper.make_node("Upsample", ["x"], ["y"], mode=mode, scales=[1.0, 1.0, 3.0, 2.0])
    as_onnxruntime(by_attribute, X, opset=8)


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize(
    "attributes", [{}, {"mode": "linear"}, {"mode": "cubic"}, {"mode": "cubic", "antialias": 1, "cubic_coeff_a": -0.5}]
)
def test_slopes(attributes: dict[str, Any], factors: list[float]) -> None:
    given = torch.tensor(ONES + factors)
    node = _node("scales", **attributes)

    def function(call: OperatorCall, x: torch.Tensor) -> Any:
        return OPERATORS["", "Resize"](call, x, None, given)

    slopes(function, node, X[:, :1])


def test_nothing_changes_where_no_size_does() -> None:
    x = torch.rand(1, 2, 2, 3)
    assert OPERATORS["", "Resize"](OperatorCall({"mode": "linear"}, 13), x, None, torch.ones(4)) is x
    as_onnxruntime(_node("scales", mode="linear"), x.numpy(), np.array([1, 1, 1.3, 1.3], np.float32), opset=13)


def test_channels_last_stays() -> None:
    x = torch.rand(2, 8, 4, 5).to(memory_format=torch.channels_last)
    for attributes in ({}, {"mode": "linear"}):
        made = OPERATORS["", "Resize"](OperatorCall(attributes, 13), x, None, torch.tensor([1.0, 1, 2, 2]))
        assert isinstance(made, torch.Tensor)
        assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "change", [{"mode": "odd"}, {"nearest_mode": "odd"}, {"coordinate_transformation_mode": "odd"}]
)
def test_what_is_unknown_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(NotInTorch, match="odd"):
        OPERATORS["", "Resize"](OperatorCall(change, 13), torch.rand(1, 1, 3), None, torch.tensor([1, 1, 1.5]))


def test_nothing_to_go_by_is_refused() -> None:
    with pytest.raises(NotInTorch, match="without scales or sizes"):
        OPERATORS["", "Resize"](OperatorCall({}, 13), torch.rand(1, 1, 3))


def test_integers_have_only_nearest() -> None:
    x, factors = torch.arange(3)[None, None], torch.tensor([1, 1, 1.5])
    as_onnxruntime(_node("scales"), x.int().numpy(), factors.numpy(), opset=13)
    with pytest.raises(NotInTorch, match="integers"):
        OPERATORS["", "Resize"](OperatorCall({"mode": "linear"}, 13), x, None, factors)


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample(mode: str, padding: str, corners: int) -> None:
    grid = np.random.default_rng(1).uniform(-1.3, 1.3, (1, 3, 4, 2)).astype(np.float32)
    attributes = {"padding_mode": padding, "align_corners": corners}
    as_onnxruntime(helper.make_node("GridSample", ["x", "g"], ["y"], mode=mode, **attributes), X, grid, opset=16)
    newer = helper.make_node("GridSample", ["x", "g"], ["y"], mode=mode.removeprefix("bi"), **attributes)
    as_onnxruntime(newer, X, grid, opset=20)
    slopes(OPERATORS["", "GridSample"], newer, X, grid)


def test_grid_sample_of_volumes_is_not_cubic() -> None:
    with pytest.raises(NotInTorch, match="volumes"):
        OPERATORS["", "GridSample"](
            OperatorCall({"mode": "cubic"}, 20), torch.rand(1, 1, 2, 2, 2), torch.rand(1, 1, 1, 1, 3)
        )


def test_slopes_of_affine_grid() -> None:
    node = helper.make_node("AffineGrid", ["theta", "size"], ["grid"])
    theta = np.array([[[1.1, 0.2, 0.3], [-0.2, 0.9, 0.1]]])
    slopes(OPERATORS["", "AffineGrid"], node, theta, np.array([1, 1, 2, 3]))
