"""Preprocessing against the same arithmetic written in numpy and Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from lepton_cli.data.preprocess import Fitted, apply, cast, stacked
from lepton_cli.data.spec import Preprocess
from lepton_cli.errors import DataError

IMAGES = hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 4)] * 3, st.just(3)))


def spec(**fields: object) -> Preprocess:
    return Preprocess.model_validate(fields)


@given(IMAGES)
def test_layout_moves_channels_and_nothing_else(images: np.ndarray) -> None:
    result = apply(images, spec(layout="nchw"), "uint8")
    np.testing.assert_array_equal(result.transpose(0, 2, 3, 1), images)
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(apply(images, spec(layout="nhwc"), "uint8"), images)


@given(IMAGES, st.floats(0.001, 4), st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.floats(0.1, 5))
def test_scale_mean_std_follow_one_another(images: np.ndarray, scale: float, mean: list[float], std: float) -> None:
    result = apply(images, spec(scale=scale, mean=mean, std=std), "float32")
    expected = (images.astype(np.float64) * scale - mean) / std
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-3)


@given(IMAGES)
def test_mean_is_in_the_order_of_the_models_channels(images: np.ndarray) -> None:
    result = apply(images, spec(channels="bgr", mean=[104, 117, 123], layout="nchw"), "float32")
    expected = images[..., ::-1].astype(np.float32) - np.float32([104, 117, 123])
    np.testing.assert_array_equal(result, expected.transpose(0, 3, 1, 2))


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(0, 9)), elements=st.floats(0, 9, width=32)))
def test_pad_keeps_the_beginning(rows: np.ndarray) -> None:
    result = apply(rows, spec(pad=6, pad_value=-1), "int64")
    assert result.shape == (len(rows), 6)
    kept = min(6, rows.shape[1])
    np.testing.assert_array_equal(result[:, :kept], np.rint(rows[:, :kept]))
    assert (result[:, kept:] == -1).all()


def test_ragged_lists_are_padded_to_one_length() -> None:
    result = apply([np.array([1.0, 2.0]), np.array([3.0]), np.zeros(0)], spec(pad=3), "int64")
    assert result.tolist() == [[1, 2, 0], [3, 0, 0], [0, 0, 0]]


def test_ragged_lists_without_pad_say_what_to_add() -> None:
    with pytest.raises(DataError, match="different shapes") as caught:
        stacked(apply([np.zeros(2), np.zeros(3)], spec(), "float32"))
    assert caught.value.hint == "add `pad: LENGTH`, or `batch: 1` where the model takes any shape"


def test_images_of_different_sizes_become_one_batch() -> None:
    images = [np.full((8, 12, 3), 7, np.uint8), np.full((20, 10, 3), 9, np.uint8)]
    result = apply(images, spec(resize=8, crop=8, layout="nchw"), "float32")
    assert result.shape == (2, 3, 8, 8)
    assert result[0].max() == 7
    assert result[1].min() == 9


def test_gray_arrays_resize_in_float_like_pillow() -> None:
    digits = np.random.default_rng(0).integers(0, 17, (2, 8, 8)).astype(np.uint8)
    result = apply(digits, spec(resize=[32, 32], layout="nchw"), "float32")
    for image, original in zip(result, digits, strict=True):
        expected = Image.fromarray(original.astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image[0], np.asarray(expected))


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_colour_images_resize_in_uint8_like_pillow(method: str) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, 9, 13, 3)).astype(np.uint8)
    result = apply(images, spec(resize=[5, 7], interpolation=method), "uint8")
    for image, original in zip(result, images, strict=True):
        expected = Image.fromarray(original).resize((7, 5), Image.Resampling[method.upper()])
        np.testing.assert_array_equal(image, np.asarray(expected))


def test_float_images_with_any_number_of_channels_resize_plane_by_plane() -> None:
    images = np.random.default_rng(1).standard_normal((1, 4, 4, 5)).astype(np.float32)
    result = apply(images, spec(resize=[8, 8]), "float32")
    expected = Image.fromarray(np.ascontiguousarray(images[0, :, :, 2])).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(result[0, :, :, 2], np.asarray(expected))


def test_short_side_keeps_the_aspect() -> None:
    assert apply(np.zeros((1, 10, 20, 3), np.uint8), spec(resize=5), "uint8").shape == (1, 5, 10, 3)
    assert apply(np.zeros((1, 20, 10), np.uint8), spec(resize=5), "float32").shape == (1, 10, 5)


def test_one_side_keeps_the_aspect_too() -> None:
    pixels = np.zeros((1, 10, 25, 3), np.uint8)
    assert apply(pixels, spec(resize=[4, "auto"]), "uint8").shape == (1, 4, 10, 3)
    assert apply(pixels, spec(resize=["auto", 50]), "uint8").shape == (1, 20, 50, 3)
    assert apply(pixels, spec(resize=["auto", 1]), "uint8").shape == (1, 1, 1, 3), "no side becomes 0"
    with pytest.raises(ValueError, match="one side is a number"):
        spec(resize=["auto", "auto"])


def test_gray_from_colour_is_pillows_luma() -> None:
    images = np.random.default_rng(2).integers(0, 256, (3, 6, 6, 3)).astype(np.uint8)
    result = apply(images, spec(channels="gray"), "uint8")
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    np.testing.assert_array_equal(result, expected)


def test_colour_from_gray_repeats_the_channel() -> None:
    result = apply(np.arange(4, dtype=np.uint8).reshape(1, 2, 2), spec(channels="rgb", layout="nchw"), "uint8")
    assert result.shape == (1, 3, 2, 2)
    assert (result[:, 0] == result[:, 2]).all()


def test_gray_images_get_a_channel_axis() -> None:
    assert apply(np.zeros((2, 4, 5)), spec(layout="nchw"), "float32").shape == (2, 1, 4, 5)
    assert apply(np.zeros((2, 4, 5)), spec(layout="nhwc"), "float32").shape == (2, 4, 5, 1)


def test_mobilenet_scaling() -> None:
    result = apply(np.array([[0, 255]], np.uint8), spec(scale="1/127.5", mean=1), "float32")
    np.testing.assert_allclose(result, [[-1, 1]], atol=1e-6)


def test_missing_values_are_filled_first() -> None:
    rows = np.array([[np.nan, 2.0]])
    assert apply(rows, spec(fill_missing=1, scale=10), "float32").tolist() == [[10, 20]]
    fitted = Fitted(fill=np.array([5.0, 0.0]))
    assert apply(rows, spec(fill_missing="mean"), "float32", fitted).tolist() == [[5, 2]]


def test_standardise_uses_the_statistics_given() -> None:
    fitted = Fitted(mean=np.array([1.0, 2.0]), std=np.array([2.0, 4.0]))
    assert apply(np.array([[3.0, 2.0]]), spec(standardise=True), "float32", fitted).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("fields", "array", "code"),
    [
        ({"standardise": True}, np.zeros((1, 2)), "data.no-statistics"),
        ({"fill_missing": "mean"}, np.full((1, 2), np.nan), "data.no-statistics"),
        ({"mean": [1, 2, 3]}, np.zeros((1, 4)), "data.channels"),
        ({"layout": "nchw"}, np.zeros((1, 4)), "data.not-images"),
        ({"resize": 3}, np.zeros((1, 4)), "data.not-images"),
        ({"crop": 9}, np.zeros((1, 4, 4)), "data.crop"),
        ({"channels": "bgr"}, np.zeros((1, 4, 4, 2)), "data.channels"),
        ({"shape": [3]}, np.zeros((1, 4)), "data.shape"),
        ({"pad": 3}, np.zeros(1), "data.pad"),
        ({"scale": 2}, np.array(["a"]), "data.not-numbers"),
        ({"resize": [1 << 16, 1 << 16]}, np.zeros((1, 2, 2)), "data.too-large"),
    ],
)
def test_operations_that_do_not_fit(fields: dict[str, object], array: np.ndarray, code: str) -> None:
    with pytest.raises(DataError) as caught:
        apply(array, spec(**fields), "float32")
    assert caught.value.code == code
    assert caught.value.option[0] == "preprocess"


@pytest.mark.parametrize(
    ("array", "dtype", "code"),
    [
        (np.array([256]), "uint8", "data.overflow"),
        (np.array([-1]), "uint64", "data.overflow"),
        (np.array([2**63], np.uint64), "int64", "data.overflow"),
        (np.array([1e30]), "int32", "data.overflow"),
        (np.array([np.nan]), "int64", "data.not-finite"),
        (np.array([1e6]), "float16", "data.overflow"),
        (np.array(["a"]), "float32", "data.not-numbers"),
        (np.array([1]), "tensor(whatever)", "data.dtype"),
    ],
)
def test_casts_that_would_damage_values(array: np.ndarray, dtype: str, code: str) -> None:
    with pytest.raises(DataError) as caught:
        cast(array, dtype)
    assert caught.value.code == code


@given(hnp.arrays(st.sampled_from([np.float32, np.float64]), 5, elements=st.floats(-100, 100, width=32)))
def test_casts_that_fit(array: np.ndarray) -> None:
    np.testing.assert_array_equal(cast(array, "int8"), np.rint(array).astype(np.int8))
    np.testing.assert_array_equal(cast(array, "float16"), array.astype(np.float16))
    np.testing.assert_array_equal(cast(array, "bool"), array != 0)
    assert str(cast(array, "bfloat16").dtype) == "bfloat16"


def test_text_goes_through() -> None:
    result = apply(np.array(["a", "bc"]), spec(), "str")
    assert result.dtype == object
    assert result.tolist() == ["a", "bc"]
