"""The histogram without a range: bins by float32's own layout, exact ends, infinities set apart."""

import math
import struct
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lepton_cli.probe import histogram as module
from lepton_cli.probe.histogram import Histogram

FLOATS = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-(2.0**66), 2.0**66, width=32))


def made(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


def upper(value: float) -> int:
    """The upper 16 bits of a float32, by the standard library."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0]) >> 16


def edges(number: int) -> tuple[float, float]:
    """Least and greatest magnitude of a bin, with its sign, by IEEE 754: sign, 8 bits of exponent, 7 of mantissa."""
    sign, exponent, mantissa = number >> 15, number >> 7 & 0xFF, number & 0x7F
    share = (1 if exponent else 0) + mantissa / 128
    unit = 2.0 ** (max(exponent, 1) - 127)
    ends = share * unit, (share + (1 - 2.0**-16) / 128) * unit
    return (-ends[0], -ends[1]) if sign else ends


def centre(number: int) -> float:
    """The value that stands for a bin: its middle, and 0 itself for the bins of 0."""
    return 0.0 if number & 0x7FFF == 0 else sum(edges(number)) / 2


def usable_bins() -> list[int]:
    return [number for number in range(1 << 16) if number & 0x7FFF < 0x7F80 and abs(edges(number)[1]) < 1e30]


def test_bins_are_cut_where_the_upper_16_bits_change() -> None:
    finite = [number for number in range(1 << 16) if number & 0x7FFF < 0x7F80]
    assert module.NEAR.shape == module.FAR.shape == (65536,)
    assert module.NEAR[finite].tolist() == [edges(number)[0] for number in finite]
    assert module.FAR[finite].tolist() == [edges(number)[1] for number in finite]


def test_every_usable_bin_stands_once_in_rising_order() -> None:
    assert sorted(module.ORDER.tolist()) == usable_bins()
    values = [centre(number) for number in module.ORDER.tolist()]
    assert values == sorted(values)
    assert [module.CENTRE[number] for number in module.ORDER.tolist()] == values


@settings(max_examples=25)
@given(FLOATS)
def test_ends_are_exact_and_every_value_is_counted_in_its_bin(values: np.ndarray) -> None:
    histogram = made(values)
    assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))
    expected = Counter(upper(value) for value in values.tolist())
    assert dict(zip(*(part.tolist() for part in histogram.state()[:2]), strict=True)) == expected


@settings(max_examples=25)
@given(FLOATS)
def test_sorted_gives_the_occupied_bins_in_rising_order(values: np.ndarray) -> None:
    expected = Counter(upper(value) for value in values.tolist())
    order = sorted(expected, key=lambda number: (centre(number), number >> 15 == 0))
    found, counts = made(values).sorted()
    assert found.tolist() == [centre(number) for number in order]
    if not {0, 0x8000} <= set(expected):
        assert counts.tolist() == [expected[number] for number in order]
    assert counts.sum() == values.size


@settings(max_examples=25)
@given(FLOATS)
def test_parts_add_up_to_the_whole(values: np.ndarray) -> None:
    parts, whole = Histogram(), made(values)
    for part in np.array_split(values, 3):
        parts.add(part)
    assert np.array_equal(parts.counts, whole.counts)
    assert (parts.low, parts.high) == (whole.low, whole.high)


@settings(max_examples=25)
@given(FLOATS, FLOATS)
def test_two_joined_are_that_of_all_values(one: np.ndarray, other: np.ndarray) -> None:
    found, added, whole = made(one), made(other), made(np.concatenate([one, other]))
    found.join(added)
    assert np.array_equal(found.counts, whole.counts)
    assert (found.low, found.high) == (whole.low, whole.high)
    assert added.counts.sum() == other.size, "what is added stays as it is"


@settings(max_examples=25)
@given(FLOATS, FLOATS)
def test_packed_it_holds_the_same_in_few_bytes_and_goes_on(one: np.ndarray, other: np.ndarray) -> None:
    found, whole = made(one), made(np.concatenate([one, other]))
    before = found.counts.copy()
    for _ in range(2):
        found.pack()
        assert np.array_equal(found.counts, before)
    assert sum(part.nbytes for part in found._sparse) <= 16 * one.size
    assert found._dense is None
    found.add(other)
    assert np.array_equal(found.counts, whole.counts)
    again = made(one)
    again.pack()
    again.join(made(other))
    assert np.array_equal(again.counts, whole.counts)


def test_zeros_stand_for_zero_itself() -> None:
    values, counts = made(np.array([0, 0, -0.0, 1.0], dtype=np.float32)).sorted()
    assert values[:-1].tolist() == [0, 0]
    assert counts.sum() == 4


def test_long_arrays_are_counted_to_their_last_element() -> None:
    values = np.random.default_rng(0).normal(size=2 * module.CHUNK + 5).astype(np.float32)
    values[[0, -1]] = -50, 60
    histogram = made(values)
    assert np.array_equal(histogram.counts, np.bincount(values.view(np.uint32) >> 16, minlength=65536))
    assert (histogram.low, histogram.high) == (-50, 60)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_of_any_shape_and_float_type_are_counted_as_float32(dtype: type) -> None:
    grid = (np.arange(24).reshape(2, 3, 4) / 8 - 1).astype(dtype)
    histogram = made(grid[:, ::2].T)
    expected = Counter(upper(float(value)) for value in grid[:, ::2].ravel())
    assert {number: count for number, count in enumerate(histogram.counts.tolist()) if count} == expected
    assert (histogram.low, histogram.high) == (-1, 1.875)


def test_nothing_seen_is_empty() -> None:
    histogram = made(np.empty((0, 3), dtype=np.float32))
    assert histogram.empty
    assert (histogram.low, histogram.high) == (math.inf, -math.inf)
    assert (histogram.masked, histogram.nan) == (0, 0)
    assert [part.size for part in histogram.sorted()] == [0, 0]


def test_one_value_is_not_empty() -> None:
    histogram = made(np.array(3, dtype=np.float32))
    assert not histogram.empty
    assert (histogram.low, histogram.high) == (3, 3)


def test_infinities_masks_and_nan_are_set_apart() -> None:
    quiet = np.array([0x7FC00000, 0xFFC00000, 0x7F810000], dtype=np.uint32).view(np.float32)
    usual = np.array([1, -2, np.inf, -np.inf, -np.inf, -3.4e38, 3e30], dtype=np.float32)
    histogram = made(np.concatenate([usual, quiet]))
    assert (histogram.low, histogram.high) == (-2, 1)
    assert (histogram.masked, histogram.nan) == (5, 3)
    values, counts = histogram.sorted()
    assert values.tolist() == [centre(upper(-2)), centre(upper(1))]
    assert counts.tolist() == [1, 1]


@pytest.mark.parametrize("odd", [np.inf, -np.inf, -3.4e38, 3.4e38, 1e30, -1e30, np.nan])
def test_one_odd_value_does_not_move_the_ends(odd: float) -> None:
    for others in ([5.0, 7.0], [-7.0, -5.0]):
        histogram = made(np.array([others[0], odd, others[1]], dtype=np.float32))
        assert (histogram.low, histogram.high) == tuple(others)
        assert histogram.masked + histogram.nan == 1


def test_huge_values_below_the_mask_are_usable() -> None:
    histogram = made(np.array([-9e29, 9e29], dtype=np.float32))
    assert (histogram.low, histogram.high) == (float(np.float32(-9e29)), float(np.float32(9e29)))
    assert histogram.masked == 0


@pytest.mark.parametrize("odd", [-3.4e38, np.inf, np.nan])
def test_only_odd_values_leave_nothing_and_later_ones_count(odd: float) -> None:
    histogram = made(np.full(4, odd, dtype=np.float32))
    assert histogram.empty
    assert histogram.masked + histogram.nan == 4
    histogram.add(np.array([2], dtype=np.float32))
    assert not histogram.empty
    assert (histogram.low, histogram.high) == (2, 2)


def test_state_restores() -> None:
    histogram = made(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    bins, counts, low, high = histogram.state()
    assert (counts > 0).all()
    again = Histogram.restore(bins, counts, low, high)
    assert np.array_equal(again.counts, histogram.counts)
    assert (again.low, again.high) == (histogram.low, histogram.high)
    again.add(np.array([100], dtype=np.float32))
    assert histogram.counts.sum() == 1000
