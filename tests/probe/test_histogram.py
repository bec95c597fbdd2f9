"""The histogram without a range: exact ends, close quantiles, infinities set apart."""

from typing import get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lepton_cli.probe.clipping import Method, limits, quantization_error
from lepton_cli.probe.histogram import Histogram

FLOATS = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-(2.0**66), 2.0**66, width=32))


def made(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


@given(FLOATS)
def test_ends_are_exact_and_every_value_is_counted(values: np.ndarray) -> None:
    histogram = made(values)
    assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))
    assert histogram.counts.sum() == values.size


@given(FLOATS, st.sampled_from(get_args(Method)))
def test_every_range_holds_zero_and_stays_within_what_was_seen(values: np.ndarray, method: str) -> None:
    low, high = limits(made(values), method)
    assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)


@given(FLOATS)
def test_parts_add_up_to_the_whole(values: np.ndarray) -> None:
    parts = Histogram()
    for part in np.array_split(values, 3):
        parts.add(part)
    assert np.array_equal(parts.counts, made(values).counts)


def test_infinities_masks_and_nan_are_set_apart() -> None:
    histogram = made(np.array([1, -2, np.inf, -np.inf, -3.4e38, np.nan], dtype=np.float32))
    assert (histogram.low, histogram.high) == (-2, 1)
    assert (histogram.masked, histogram.nan) == (3, 1)


def test_only_masks_leave_nothing() -> None:
    assert made(np.full(4, -3.4e38, dtype=np.float32)).empty


def test_state_restores() -> None:
    histogram = made(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    again = Histogram.restore(*histogram.state())
    assert np.array_equal(again.counts, histogram.counts)
    assert (again.low, again.high) == (histogram.low, histogram.high)


def test_percentile_is_within_a_bin_of_numpys() -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    low, high = limits(made(values), "percentile")
    expected = np.quantile(values, [0.00005, 0.99995])
    assert np.allclose([low, high], expected, rtol=0.02)


def test_clipping_long_tails_lessens_the_error() -> None:
    values = np.random.default_rng(0).laplace(size=200_000).astype(np.float32)
    histogram = made(values)
    exact = values.astype(np.float64)
    ones = np.ones_like(exact)
    full = quantization_error(exact, ones, *limits(histogram, "minmax"), 256)
    assert quantization_error(exact, ones, *limits(histogram, "mse"), 256) < full / 1.2
    assert limits(histogram, "entropy")[1] < histogram.high
