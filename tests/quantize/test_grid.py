"""Scales, zero points and codes: closed forms, and those of onnxruntime's own quantizer bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnxruntime.quantization import quant_utils

from lepton_cli.quantize import grid

CODES = {
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
}
numbers = st.floats(-1e4, 1e4, width=32)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("reduced", [False, True])
@given(ends=st.tuples(numbers, numbers))
@settings(max_examples=40)
def test_grids_are_those_of_onnxruntime(code: Any, symmetric: bool, reduced: bool, ends: tuple[float, float]) -> None:
    low, high = np.float32(min(ends)), np.float32(max(ends))
    least, most = quant_utils.get_qmin_qmax_for_qType(CODES[code], reduced, symmetric)
    zero, scale = quant_utils.compute_scale_zp(low, high, least, most, symmetric)
    made = grid.of_range(float(low), float(high), code, symmetric=symmetric, reduced=reduced)
    assert made.scale.dtype == np.float32
    assert made.zero_point.dtype == np.dtype(code)
    assert made.scale.shape == made.zero_point.shape == ()
    assert (made.scale, made.zero_point) == (scale, zero)


@pytest.mark.parametrize(
    ("code", "low", "high", "scale", "zero"),
    [
        ("uint8", -1.0, 1.55, 0.01, 100),
        ("uint8", 0.5, 2.55, 0.01, 0),
        ("uint8", -2.55, -1.0, 0.01, 255),
        ("int8", -1.0, 1.55, 0.01, -28),
        ("uint16", -1.0, 5.5535, 0.0001, 10000),
        ("uint8", 0.0, 0.0, 1.0, 0),
        ("int8", 0.0, 1e-40, 1.0, 0),
    ],
)
def test_ranges_always_hold_zero(code: Any, low: float, high: float, scale: float, zero: int) -> None:
    made = grid.of_range(low, high, code, symmetric=False)
    assert made.scale == pytest.approx(scale)
    assert made.zero_point == zero


def test_a_range_as_wide_as_float32_has_a_grid() -> None:
    most = float(np.finfo(np.float32).max)
    made = grid.of_range(-most, most, "uint8", symmetric=False)
    assert made.scale == pytest.approx(2 * most / 255)
    assert made.zero_point == 128


def test_codes_are_nearest_half_to_even_and_stay_within_their_type() -> None:
    made = grid.Grid(np.asarray(0.5, np.float32), np.asarray(10, np.uint8))
    values = np.array([0.0, 0.2, 0.25, 0.75, -0.25, 1000, -1000], np.float32)
    assert made.codes(values).tolist() == [10, 10, 10, 12, 10, 255, 0]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("reduced", [False, True])
def test_weights_by_channel_are_those_of_onnxruntime(axis: int, reduced: bool) -> None:
    weight = np.random.default_rng(axis).normal(size=(3, 4, 5)).astype(np.float32)
    weight[(slice(None),) * axis + (1,)] = 0
    scales = grid.per_channel(weight, axis, reduced=reduced)
    codes = grid.Grid(scales, np.zeros(scales.shape, np.int8)).codes(weight, axis)
    assert scales.dtype == np.float32
    assert scales[1] == 1
    for channel, scale in enumerate(scales):
        part = weight.take(channel, axis)
        zero, expected = quant_utils.compute_data_quant_params(
            part.ravel(), TensorProto.INT8, True, reduce_range=reduced
        )
        assert scale == expected
        by = quant_utils.quantize_nparray(TensorProto.INT8, part, expected, zero)
        np.testing.assert_array_equal(codes.take(channel, axis), by)
    assert np.abs(codes.astype(int)).max() == (grid.REDUCED if reduced else 127)


def test_a_bias_that_32_bits_cannot_hold_widens_the_scale_of_its_channel_alone() -> None:
    scales = np.array([1e-3, 1e-9, 1e-3], np.float32)
    step, bias = np.asarray(1e-3, np.float32), np.array([1.0, 100.0, -1.0], np.float32)
    made = grid.holding_bias(scales, step, bias)
    assert made[0] == scales[0]
    assert made[2] == scales[2]
    assert made[1] == pytest.approx(100 * 1.0001 / (2**31 - 1) / 1e-3, rel=1e-6)
    codes = grid.bias_codes(bias, step * made)
    assert codes.dtype == np.int32
    assert codes.tolist()[::2] == [1_000_000, -1_000_000]
    assert codes[1] * float(step) * float(made[1]) == pytest.approx(100, rel=1e-6)


def test_a_bias_of_a_channel_without_steps_is_left_alone() -> None:
    scales = np.array([0.0, 1.0], np.float32)
    made = grid.holding_bias(scales, np.asarray(1.0, np.float32), np.array([5.0, 5.0], np.float32))
    assert made.tolist() == [0.0, 1.0]


def test_biases_beyond_32_bits_end_at_their_limit() -> None:
    codes = grid.bias_codes(np.array([1e30, -1e30, 2.5], np.float32), np.ones(3, np.float32))
    assert codes.tolist() == [2**31 - 1, -(2**31), 2]
