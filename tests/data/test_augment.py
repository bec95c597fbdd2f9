"""Augmentations against closed forms and brute force, and what they promise for every batch, seed and step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli.data.augment import Augmented, SampleKind, augment, kind
from lepton_cli.data.preprocess import Raw
from lepton_cli.data.spec import Augmentation, Preprocess
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, (40, 6, 5, 3), np.uint8)
GREY = RNG.integers(0, 256, (40, 6, 5), np.uint8)
TABLE = RNG.normal(size=(40, 4)) * (1, 10, 100, 1000)
#: One of each, to be tried on any batch that it fits.
EVERY_IMAGE: tuple[dict[str, Any], ...] = (
    {"flip": "both"},
    {"crop": {"pad": 2}},
    {"crop": {"random": [0.25, 1]}},
    {"colour": {"brightness": 0.2, "contrast": 0.2}},
    {"noise": 0.1},
    {"mixup": 0.4},
)


def run(
    given: Raw | dict[str, Raw],
    *how: dict[str, Any],
    kinds: SampleKind | dict[str, SampleKind] = "images",
    seed: int = 0,
    step: int = 0,
) -> Augmented:
    inputs = given if isinstance(given, dict) else {"x": given}
    known = kinds if isinstance(kinds, dict) else dict.fromkeys(inputs, kinds)
    return augment(inputs, known, [Augmentation.model_validate(one) for one in how], seed, step)


def only(*arguments: Any, **options: Any) -> Any:
    return run(*arguments, **options).inputs["x"]


@pytest.mark.parametrize(("how", "axes"), [("horizontal", (2,)), ("vertical", (1,)), ("both", (1, 2))])
@pytest.mark.parametrize("images", [IMAGES, GREY, IMAGES.astype(np.float32)], ids=["colour", "grey", "float"])
def test_flip_mirrors_some_images_and_twice_is_the_identity(how: str, axes: tuple[int, ...], images: Any) -> None:
    found = only(images, {"flip": how})
    forms = [images, *(np.flip(images, axis) for axis in axes), np.flip(images, axes)]
    seen = {next(n for n, form in enumerate(forms) if np.array_equal(one, form[row])) for row, one in enumerate(found)}
    assert seen == set(range(4 if how == "both" else 2))
    assert found.dtype == images.dtype
    assert np.array_equal(only(found, {"flip": how}), images), "the same seed and step flip the same images"


def test_half_of_the_images_are_flipped() -> None:
    many = np.tile(np.arange(2, dtype=np.uint8).reshape(1, 1, 2, 1), (4000, 1, 1, 1))
    flipped = int((only(many, {"flip": "horizontal"})[:, 0, 0, 0] == 1).sum())
    assert abs(flipped - 2000) < 5 * np.sqrt(1000)


@pytest.mark.parametrize("images", [IMAGES, GREY], ids=["colour", "grey"])
def test_a_padded_crop_is_a_window_of_the_padded_image(images: Any) -> None:
    """By brute force: every result is one of the 25 windows, and each window is somewhere."""
    found = only(np.concatenate([images] * 10), {"crop": {"pad": 2}})
    seen = set()
    for row, one in enumerate(found):
        padded = np.pad(images[row % len(images)], [(2, 2), (2, 2), (0, 0)][: one.ndim])
        windows = {(y, x): padded[y : y + 6, x : x + 5] for y in range(5) for x in range(5)}
        places = [place for place, window in windows.items() if np.array_equal(window, one)]
        assert places
        seen.update(places)
    assert len(seen) == 25


@pytest.mark.parametrize("value", [0, 7, 255, np.float32(0.1), np.float64(1 / 3), np.float16(0.7)])
def test_a_random_crop_of_a_constant_image_is_constant(value: Any) -> None:
    images = np.full((8, 9, 7, 3), value, np.uint8 if isinstance(value, int) else value.dtype)
    assert np.array_equal(only(images, {"crop": {"random": [0.1, 1]}}), images)


def test_a_random_crop_shows_its_share_and_stays_inside() -> None:
    """On a ramp the bilinear window is a ramp too, whose slope is the window's share of the axis."""
    ramp = np.broadcast_to(np.arange(100, dtype=np.float64), (60, 100, 100)).copy()
    both = np.stack([ramp, ramp.transpose(0, 2, 1)], axis=3)
    found = only(both, {"crop": {"random": [0.3, 0.5], "aspect": [1 / 2, 2]}})
    assert found.min() >= 0
    assert found.max() <= 99
    wide, high = found[:, 50, 51, 0] - found[:, 50, 50, 0], found[:, 51, 50, 1] - found[:, 50, 50, 1]
    area, aspect = wide * high, wide / high
    assert (area > 0.28).all()
    assert (area < 0.52).all()
    assert (aspect > 0.48).all()
    assert (aspect < 2.1).all()
    assert area.std() > 0.04, "windows differ"


def test_the_whole_image_is_left_alone() -> None:
    assert np.array_equal(only(IMAGES[:, :5], {"crop": {"random": [1, 1], "aspect": [1, 1]}}), IMAGES[:, :5])


def test_bilinear_by_hand() -> None:
    """Half of the area of two pixels is one pixel; the quarter of a row of 4 pixels is read at its middle."""
    row = np.array([[[0.0, 4.0, 8.0, 12.0]]])
    found = only(row, {"crop": {"random": [0.5, 0.5], "aspect": [2, 2]}})  # a window of 1 x 2
    start = found[0, 0, 0]
    assert start in (0.0, 4.0, 8.0)
    np.testing.assert_allclose(found[0, 0], start + np.array([0, 1, 3, 4]))


def factors(change: dict[str, float], images: Any) -> Any:
    return only(images, {"colour": change}).astype(np.float64)


def test_brightness_multiplies() -> None:
    images = RNG.random((50, 4, 4, 3)) + 0.1
    factor = factors({"brightness": 0.2}, images) / images
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:, :1, :1, :1], factor.shape), rtol=1e-6)
    assert factor.min() >= 0.8
    assert factor.max() <= 1.2
    assert factor.std() > 0.08, "uniform from 0.8 to 1.2: 0.115"


def test_contrast_keeps_the_mean_grey_and_scales_around_it() -> None:
    images = RNG.random((20, 4, 4))
    found, mean = factors({"contrast": 0.5}, images), images.mean(axis=(1, 2), keepdims=True)
    factor = (found - mean) / (images - mean)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), mean[:, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:, :1, :1], factor.shape), rtol=1e-5)
    assert 0.5 <= factor.min() < factor.max() <= 1.5


def test_saturation_keeps_each_grey_and_scales_around_it() -> None:
    images, weights = RNG.random((20, 4, 4, 3)), np.array([0.299, 0.587, 0.114])
    found, grey = factors({"saturation": 0.5}, images), (images @ weights)[..., None]
    np.testing.assert_allclose(found @ weights, images @ weights, rtol=1e-6)
    factor = (found - grey) / (images - grey)
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:, :1, :1, :1], factor.shape), rtol=1e-4)


def test_bytes_are_rounded_and_stay_in_range() -> None:
    images = np.broadcast_to(np.array([100, 250], np.uint8).reshape(2, 1), (200, 2, 1))
    found = only(images, {"colour": {"brightness": 0.5}})
    assert found.dtype == np.uint8
    low, high = found[:, 0, 0].astype(int), found[:, 1, 0].astype(int)
    assert (np.abs(high - np.minimum(2.5 * low, 255)) <= 2).all()
    assert low.max() > 130


def test_noise_is_measured_in_deviations_of_each_column() -> None:
    table = RNG.normal(5, 1, (5000, 3)) * (1, 100, 0)
    moved = only(table, {"noise": 0.1}, kinds="numbers") - table
    np.testing.assert_allclose(moved.std(axis=0), (0.1, 10, 0), rtol=0.05)
    assert abs(moved[:, 0].mean()) < 0.01
    images = (RNG.normal(128, 20, (50, 16, 16, 3)) * (1, 0.5, 0)).astype(np.float32)
    np.testing.assert_allclose((only(images, {"noise": 0.5}) - images).std(axis=(0, 1, 2)), (10, 5, 0), rtol=0.05)


def test_noise_leaves_missing_values_missing() -> None:
    table = TABLE.copy()
    table[3, 1] = np.nan
    table[:, 2] = np.nan
    found = only(table, {"noise": 0.1}, kinds="numbers")
    assert np.array_equal(np.isnan(found), np.isnan(table))
    assert np.isfinite(found[:, 0]).all()
    one = only(TABLE[:1], {"noise": 0.1}, kinds="numbers")
    assert not np.array_equal(one, TABLE[:1]), "a batch of one has a deviation too: its own"


@pytest.mark.parametrize("shape", [(300, 10), (300, 3, 10)])
def test_shift_moves_along_the_last_axis_and_zeros_follow(shape: tuple[int, ...]) -> None:
    signal = RNG.normal(size=shape)
    found, seen = only(signal, {"shift": "20 %"}, kinds="numbers"), set()
    for one, was in zip(found, signal, strict=True):
        padded = np.pad(was, [(0, 0)] * (was.ndim - 1) + [(2, 2)])
        moves = [move for move in range(5) if np.array_equal(padded[..., move : move + 10], one)]
        assert len(moves) == 1
        seen.update(moves)
    assert seen == set(range(5))


def test_dropped_tokens_are_neither_hidden_nor_first() -> None:
    ids = np.arange(1, 50 * 40 + 1).reshape(50, 40)
    left, right = np.arange(40) >= 10, np.arange(40) < 25
    mask = np.where(np.arange(50)[:, None] % 2, left, right).astype(np.int64)
    inputs: dict[str, Raw] = {"x": ids, "attention_mask": mask}
    found = run(
        inputs, {"drop_tokens": {"share": "30 %", "token": 7000}}, kinds={"x": "tokens", "attention_mask": "mask"}
    )
    ids_now = found.inputs["x"]
    assert isinstance(ids_now, np.ndarray)
    changed = ids_now != ids
    assert (ids_now[changed] == 7000).all()
    assert not changed[mask == 0].any()
    assert not changed[::2, 0].any()
    assert not changed[1::2, 10].any()
    free = int(mask.sum()) - 50
    assert abs(int(changed.sum()) - 0.3 * free) < 5 * np.sqrt(0.21 * free)
    assert found.inputs["attention_mask"] is mask


def test_token_lists_of_different_lengths() -> None:
    ids: list[Any] = [np.arange(1, 1 + length) for length in (1, 5, 60)]
    found = only(ids, {"drop_tokens": "50 %"}, kinds="tokens")
    assert [one.shape for one in found] == [one.shape for one in ids]
    assert all(now[0] == was[0] for now, was in zip(found, ids, strict=True))
    assert (found[2] == 0).sum() > 10


def test_mixup_is_the_formula() -> None:
    samples = RNG.random((64, 3, 2))
    found = run(samples, {"mixup": 0.3}, kinds="numbers")
    assert found.partners is not None
    assert found.share is not None
    assert sorted(found.partners) == list(range(64))
    share = found.share[:, None, None]
    np.testing.assert_allclose(found.inputs["x"], share * samples + (1 - share) * samples[found.partners], rtol=1e-12)


def test_shares_of_mixup_are_of_the_beta_distribution() -> None:
    found = run(np.zeros((20000, 1)), {"mixup": 0.5}, kinds="numbers")
    assert found.share is not None
    assert abs(found.share.mean() - 0.5) < 0.02
    assert abs(found.share.var() - 0.125) < 0.01, "1 / (4 (2 a + 1))"


def test_mixup_mixes_all_inputs_alike_and_leaves_what_is_shared() -> None:
    inputs: dict[str, Raw] = {"a": IMAGES, "b": TABLE, "rate": np.full(40, 16000)}
    found = run(inputs, {"mixup": 1}, kinds={"a": "images", "b": "numbers", "rate": "other"})
    assert found.partners is not None
    assert found.share is not None
    share = found.share[:, None]
    np.testing.assert_allclose(found.inputs["b"], share * TABLE + (1 - share) * TABLE[found.partners], rtol=1e-12)
    assert np.array_equal(found.inputs["rate"], inputs["rate"])
    inputs["rate"] = np.arange(40)
    with pytest.raises(DataError, match="no mixture for input `rate`"):
        run(inputs, {"mixup": 1}, kinds={"a": "images", "b": "numbers", "rate": "other"})


def test_all_images_of_a_sample_change_alike_and_nothing_else_does() -> None:
    inputs: dict[str, Raw] = {"left": IMAGES, "table": TABLE, "right": IMAGES.copy()}
    found = run(
        inputs, {"flip": "both"}, {"crop": {"pad": 2}}, kinds={"left": "images", "table": "numbers", "right": "images"}
    )
    assert np.array_equal(found.inputs["left"], found.inputs["right"])
    assert found.inputs["table"] is TABLE


def test_images_of_different_sizes_change_one_by_one() -> None:
    images: list[Any] = [RNG.integers(0, 256, (size, 12, 3), np.uint8) for size in (8, 9, 10)]
    found = run(images, *EVERY_IMAGE[:5]).inputs["x"]
    assert [one.shape for one in found] == [one.shape for one in images]
    flipped = only(images, {"flip": "both"})
    alone = only(np.stack([image[:8] for image in images]), {"flip": "horizontal"})
    assert [one.shape for one in flipped] == [one.shape for one in images]
    assert len(alone) == 3
    with pytest.raises(DataError, match="samples of one shape"):
        run(images, {"mixup": 0.2})


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.sampled_from(EVERY_IMAGE), st.sampled_from([IMAGES, GREY]))
def test_seed_and_step_decide_alone(seed: int, step: int, how: dict[str, Any], images: Any) -> None:
    before = images.copy()
    first = run(images, how, seed=seed, step=step)
    run(IMAGES, *EVERY_IMAGE, seed=step, step=seed)
    again = run(images, how, seed=seed, step=step)
    assert np.array_equal(first.inputs["x"], again.inputs["x"])
    assert np.array_equal(images, before), "what was given is left as it was"
    found = first.inputs["x"]
    assert isinstance(found, np.ndarray)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)


def test_steps_seeds_and_positions_differ() -> None:
    how = {"crop": {"pad": 2}}
    found = [only(IMAGES, how, seed=seed, step=step) for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({one.tobytes() for one in found}) == 4
    twice = only(IMAGES, how, how)
    assert not np.array_equal(twice, only(found[0], how)), "the second in a list has a stream of its own"


@pytest.mark.parametrize(
    ("how", "kinds", "samples"),
    [
        ({"flip": "both"}, "numbers", TABLE),
        ({"crop": {"pad": 1}}, "tokens", TABLE),
        ({"colour": {"contrast": 0.1}}, "other", TABLE),
        ({"noise": 0.1}, "tokens", TABLE),
        ({"shift": "10 %"}, "images", IMAGES),
        ({"shift": "10 %"}, "numbers", TABLE),
        ({"shift": "10 %"}, "numbers", TABLE[:, 0]),
        ({"drop_tokens": "10 %"}, "mask", TABLE),
        ({"mixup": 0.2}, "tokens", TABLE),
    ],
)
def test_what_fits_no_input_is_named(how: dict[str, Any], kinds: SampleKind, samples: Any) -> None:
    with pytest.raises(DataError, match=f"`{next(iter(how))}` fits none of the inputs") as raised:
        run(samples, how, kinds=kinds)
    assert raised.value.option == ("data", "training", "augment", 0, next(iter(how)))


@pytest.mark.parametrize(
    ("how", "samples", "said"),
    [
        ({"crop": {"pad": 60000}}, IMAGES, "images of 6x5 can leave nothing"),
        ({"crop": {"pad": 5}}, IMAGES, "can leave nothing"),
        ({"colour": {"saturation": 0.2}}, GREY, "`colour` needs images with 3 channels"),
        ({"colour": {"brightness": 0.2}}, np.repeat(GREY[..., None], 4, axis=3), "these have 4"),
    ],
)
def test_what_cannot_be_done_with_these_images(how: dict[str, Any], samples: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        run(samples, how)


def test_a_token_that_the_stored_type_cannot_hold() -> None:
    with pytest.raises(DataError, match="does not fit into the stored type uint8"):
        run(np.zeros((2, 4), np.uint8), {"drop_tokens": {"share": "10 %", "token": 256}}, kinds="tokens")


@pytest.mark.parametrize(
    ("shape", "stored", "info", "preprocess", "expected"),
    [
        ((2, 8, 8, 3), "uint8", ("x", "float32"), {}, "images"),
        ((2, 8, 8, 3), "float32", ("x", "float32"), {}, "images"),
        ((2, 8, 8, 3), "uint8", ("x", "uint8"), {}, "images"),
        ((2, 3, 8, 8), "uint8", ("x", "float32"), {}, "numbers"),
        ((2, 8, 8, 13), "float32", ("x", "float32"), {"layout": "nchw"}, "images"),
        ((2, 8, 8), "uint8", ("x", "float32"), {}, "images"),
        ((2, 8, 8), "float32", ("x", "float32"), {}, "numbers"),
        ((2, 8, 8), "float32", ("x", "float32"), {"layout": "nchw"}, "images"),
        ((2, 16000), "int16", ("x", "float32"), {}, "numbers"),
        ((2, 9), "float64", ("input_ids", "int64"), {}, "tokens"),
        ((2, 9), "int64", ("attention_mask", "int64"), {}, "mask"),
        ((2, 9), "float32", ("attention_mask", "float32"), {}, "mask"),
        ((2, 9), "bool", ("mask", "bool"), {}, "mask"),
        ((2, 9), "int64", ("token_type_ids", "int64"), {}, "other"),
        ((2, 9), "int64", ("position_ids", "int32"), {}, "other"),
        ((2,), "int64", ("sr", "int64"), {}, "other"),
        ((2,), "U4", ("text", "str"), {}, "other"),
    ],
)
def test_what_samples_are(
    shape: tuple[int, ...], stored: str, info: tuple[str, str], preprocess: dict[str, Any], expected: str
) -> None:
    array = np.zeros(shape, stored)
    tensor, how = TensorInfo(*info, None), Preprocess.model_validate(preprocess)
    assert kind(array, tensor, how) == expected
    assert array.ndim == 1 or kind(list(array), tensor, how) == expected
