"""Blocks of 4 and 8 bits: codes, scales and zero points by the formulas, written here as loops over single blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lepton_cli.quantize import blockwise
from lepton_cli.quantize.blockwise import Blocks

BLOCKS = hnp.arrays(np.float32, (3, 2, 16), elements=st.floats(-4, 4, width=32))


def heavy(count: int, seed: int, size: int = 32) -> np.ndarray:
    """Blocks with a few large values: here a search finds better than the plain ends."""
    values = np.random.default_rng(seed).standard_t(2.5, (count, size)) + 0.3
    return values.astype(np.float32)


def error(made: Blocks, blocks: np.ndarray, bits: int) -> np.ndarray:
    """Squared error of each block, from codes, scales and zero points."""
    zero = 2.0 ** (bits - 1) if made.zero_points is None else made.zero_points[..., None].astype(float)
    return np.square((made.codes.astype(float) - zero) * made.scales[..., None].astype(float) - blocks).sum(axis=-1)


def test_the_symmetric_value_of_greatest_magnitude_gets_the_code_0_on_either_side() -> None:
    blocks = np.float32([[-8, 7, 3, 0, -1, 2.4], [8, -7, 3, 0, -1, 2.4]])
    made = blockwise.quantize(blocks, 4, "rtn", True)
    assert made.scales.tolist() == [1.0, -1.0]
    assert made.codes.tolist() == [[0, 15, 11, 8, 7, 10], [0, 15, 5, 8, 9, 6]]
    assert made.zero_points is None
    assert made.codes.dtype == np.uint8
    assert made.scales.dtype == np.float32
    assert made.dequantized(4).tolist() == [[-8, 7, 3, 0, -1, 2], [8, -7, 3, 0, -1, 2]]


def test_symmetric_8_bits_have_their_middle_at_128() -> None:
    made = blockwise.quantize(np.float32([[-64.0, 63.5, 0.5, 0]]), 8, "rtn", True)
    assert made.scales.tolist() == [0.5]
    assert made.codes.tolist() == [[0, 255, 129, 128]]
    assert made.dequantized(8).tolist() == [[-64, 63.5, 0.5, 0]]


def test_symmetric_values_beyond_the_shorter_side_are_cut() -> None:
    made = blockwise.quantize(np.float32([[-8, 8, 7.6]]), 4, "rtn", True)
    assert made.codes.tolist() == [[0, 15, 15]]


@pytest.mark.parametrize(
    ("bits", "block", "scale", "zero", "codes"),
    [
        (4, [-3.0, 12.0, 0.0, 4.4], 1.0, 3, [0, 15, 3, 7]),
        (4, [3.0, 15.0, 6.0, 0.4], 1.0, 0, [3, 15, 6, 0]),
        (4, [-15.0, -3.0, -6.0, -0.4], 1.0, 15, [0, 12, 9, 15]),
        (4, [-30.0, 0.0, -2.0, -4.0], 2.0, 15, [0, 15, 14, 13]),
        (8, [-55.0, 200.0, 0.0, 1.0], 1.0, 55, [0, 255, 55, 56]),
        (8, [0.0, 127.5, 63.0, 1.0], 0.5, 0, [0, 255, 126, 2]),
    ],
)
def test_asymmetric_ends_include_zero(bits: int, block: list[float], scale: float, zero: int, codes: list[int]) -> None:
    made = blockwise.quantize(np.float32([block]), bits, "rtn", False)
    assert made.scales.tolist() == [scale]
    assert made.zero_points is not None
    assert made.zero_points.tolist() == [zero]
    assert made.codes.tolist() == [codes]
    np.testing.assert_array_equal(made.dequantized(bits), (np.float32([codes]) - zero) * scale)


@pytest.mark.parametrize("method", ["rtn", "k_quant"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_zeros_stay_zero(method: str, symmetric: bool, bits: int) -> None:
    made = blockwise.quantize(np.zeros((2, 16), np.float32), bits, method, symmetric)  # type: ignore[arg-type]
    assert not made.scales.any()
    assert not made.dequantized(bits).any()
    if symmetric:
        assert (made.codes == 2 ** (bits - 1)).all()


@given(BLOCKS)
@settings(max_examples=25)
def test_every_value_is_within_half_a_step_but_for_the_cut_of_the_shorter_side(values: np.ndarray) -> None:
    for bits in (4, 8):
        plain = blockwise.quantize(values, bits, "rtn", False)
        assert plain.zero_points is not None
        offset = np.abs((plain.codes.astype(float) - plain.zero_points[..., None]) * plain.scales[..., None] - values)
        assert np.all(offset <= 0.5005 * plain.scales[..., None] + 1e-6)
        even = blockwise.quantize(values, bits, "rtn", True)
        step = even.scales[..., None].astype(float)
        half = 2 ** (bits - 1)
        offset = np.abs((even.codes.astype(float) - half) * step - values)
        cut = np.where(step != 0, values / np.where(step == 0, 1, step), 0) > half - 0.5
        assert np.all(offset[~cut] <= 0.5005 * np.abs(step + 0 * values)[~cut] + 1e-6)
        assert np.all(offset <= 1.001 * np.abs(step) + 1e-6)


@given(BLOCKS)
@settings(max_examples=25)
def test_searching_never_loses(values: np.ndarray) -> None:
    for symmetric in (True, False):
        plain = error(blockwise.quantize(values, 4, "rtn", symmetric), values, 4)
        better = error(blockwise.quantize(values, 4, "k_quant", symmetric), values, 4)
        assert np.all(better <= plain * 1.0001 + 1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_symmetric_search_finds_the_best_of_its_cuts(bits: int) -> None:
    """The plain scale and 17 of 0.7 to 1.1 times it."""
    blocks = heavy(60, 1)
    made = blockwise.quantize(blocks, bits, "k_quant", True)
    half = 2 ** (bits - 1)
    better = 0
    for i, block in enumerate(blocks):
        extreme = block[np.abs(block).argmax()]
        tried = []
        for cut in [1.0] + [0.7 + 0.025 * k for k in range(17)]:
            scale = float(np.float32(extreme * cut / -half))
            codes = np.clip(np.rint(block.astype(float) / scale + half), 0, 2 * half - 1)
            tried.append((np.square((codes - half) * scale - block).sum(), scale))
        least, _ = min(tried)
        assert error(made, blocks, bits)[i] == pytest.approx(least, rel=1e-3)
        assert any(made.scales[i] == pytest.approx(scale, rel=1e-5) for _, scale in tried)
        better += least < tried[0][0]
    assert better > 20


def k_quant(block: np.ndarray, bits: int, nudge: float = 0.0) -> float:
    """Least squared error of llama.cpp's search for one block: stretched scales, each refitted by least squares."""
    top = 2**bits - 1
    low, high = min(float(block.min()), 0.0), max(float(block.max()), 0.0)

    def attempt(scale: float, offset: float) -> tuple[float, np.ndarray]:
        zero = min(max(round(offset / scale), 0), top)
        codes = np.clip(np.rint(block / scale + zero + nudge), 0, top)
        return float(np.square((codes - zero) * scale - block).sum()), codes

    found = [attempt((high - low) / top, -low)[0]]
    for k in range(16):
        scale = (high - low) / (top - 0.5 + 0.1 * k)
        _, codes = attempt(scale, -low)
        slope, intercept = np.linalg.lstsq(np.stack([codes, np.ones(len(codes))], axis=1), block, rcond=None)[0]
        found.append(attempt(float(slope), -float(intercept))[0])
    return min(found)


@pytest.mark.parametrize("bits", [4, 8])
def test_k_quant_of_positive_blocks(bits: int) -> None:
    """The fitted zero point would lie below the codes: it is cut to 0.

    Stretched by half a code, the greatest value lies right between two: either may be taken.
    """
    blocks = np.abs(heavy(40, 6)) + np.float32(0.7)
    made = error(blockwise.quantize(blocks, bits, "k_quant", False), blocks, bits)
    either = [np.array([k_quant(block.astype(float), bits, nudge) for block in blocks]) for nudge in (-1e-5, 1e-5)]
    assert np.all(np.isclose(made, either[0], rtol=2e-3) | np.isclose(made, either[1], rtol=2e-3))


@pytest.mark.parametrize("bits", [4, 8])
def test_k_quant_refits_by_least_squares_and_keeps_the_best(bits: int) -> None:
    blocks = heavy(80, 2)
    made = error(blockwise.quantize(blocks, bits, "k_quant", False), blocks, bits)
    expected = np.array([k_quant(block.astype(float), bits) for block in blocks])
    np.testing.assert_allclose(made, expected, rtol=2e-3)
    plain = error(blockwise.quantize(blocks, bits, "rtn", False), blocks, bits)
    assert (made < 0.99 * plain).mean() > 0.5


@pytest.mark.parametrize("fill", [5.0, -5.0])
def test_k_quant_of_a_constant_block_keeps_the_plain_ends(fill: float) -> None:
    """Without spread there is no slope to fit."""
    blocks = np.full((1, 16), fill, np.float32)
    made = blockwise.quantize(blocks, 4, "k_quant", False)
    np.testing.assert_allclose(made.dequantized(4), blocks, rtol=1e-6)


def test_packing_puts_the_even_index_in_the_low_half() -> None:
    codes = np.array([[1, 2, 15, 0, 7], [0, 1, 2, 3, 4]], np.uint8)
    assert blockwise.pack(codes, 4).tolist() == [[0x21, 0x0F, 0x07], [0x10, 0x32, 0x04]]
    assert blockwise.pack(codes[:, :4], 4).tolist() == [[0x21, 0x0F], [0x10, 0x32]]
    assert blockwise.pack(codes, 8).tolist() == codes.tolist()
    assert blockwise.pack(codes, 4).dtype == np.uint8


@pytest.mark.parametrize("method", ["rtn", "k_quant"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_do_not_know_of_one_another(method: str, symmetric: bool) -> None:
    """As many leading axes as there are: each block gets what it gets alone."""
    blocks = heavy(24, 3, 8).reshape(4, 6, 8)
    together = blockwise.quantize(blocks, 4, method, symmetric)  # type: ignore[arg-type]
    for place in np.ndindex(4, 6):
        alone = blockwise.quantize(blocks[place][None], 4, method, symmetric)  # type: ignore[arg-type]
        np.testing.assert_array_equal(together.codes[place], alone.codes[0])
        assert together.scales[place] == pytest.approx(alone.scales[0], rel=1e-6)
        if alone.zero_points is not None:
            assert together.zero_points is not None
            assert together.zero_points[place] == alone.zero_points[0]
