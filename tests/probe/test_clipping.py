"""Ranges from histograms, against brute force over the raw values."""

import inspect
import math
import struct
from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lepton_cli.model import io
from lepton_cli.probe import clipping
from lepton_cli.probe.histogram import Histogram
from lepton_cli.quantize import choose, qdq
from lepton_cli.quantize.targets import TARGETS
from lepton_cli.runtime import Session
from tests.quantize.builders import Graph

FLOATS = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-(2.0**66), 2.0**66, width=32))
METHODS = get_args(clipping.Method)
KINDS = ("mixed", "positive", "negative", "lopsided", "far from zero", "sparse")


def sample(kind: str, count: int = 4000) -> np.ndarray:
    random = np.random.default_rng(len(kind))
    long = random.laplace(size=count) ** 3
    made = {
        "mixed": long,
        "positive": np.abs(long),
        "negative": -np.abs(long),
        "lopsided": np.where(long < 0, long / 7, long),
        "far from zero": np.abs(100 + long),
        # The greatest value stands at the lower edge of its bin, whose middle lies beyond it.
        "even": np.linspace(-0.5, 1, count),
        "sparse": np.where(np.arange(count) % 7 == 0, long, 0),
    }[kind]
    return made.astype(np.float32)


def histogram(values: np.ndarray) -> Histogram:
    made = Histogram()
    made.add(values)
    return made


def centre(value: float) -> float:
    """The middle of all float32 numbers with the same upper 16 bits; of those around zero, zero."""
    upper = struct.unpack("<I", struct.pack("<f", value))[0] & 0xFFFF0000
    near, far = (struct.unpack("<f", struct.pack("<I", upper | low))[0] for low in (0, 0xFFFF))
    return 0.0 if near == 0 else (near + far) / 2


def binned(values: np.ndarray) -> np.ndarray:
    return np.array([centre(value) for value in values.tolist()])


def error(values: np.ndarray, low: float, high: float, levels: int) -> float:
    """Squared error of an affine quantizer with an integer zero point, the cut-off part included."""
    step = (high - low) / (levels - 1)
    least = -round(-low / step)
    total = 0.0
    for value in values.tolist():
        code = min(max(round(value / step), least), least + levels - 1)
        total += (code * step - value) ** 2
    return total


def full(values: np.ndarray) -> tuple[float, float]:
    return min(float(values.min()), 0.0), max(float(values.max()), 0.0)


@settings(max_examples=25)
@given(FLOATS, st.sampled_from(METHODS))
def test_every_range_holds_zero_and_stays_within_what_was_seen(values: np.ndarray, method: clipping.Method) -> None:
    low, high = clipping.limits(histogram(values), method)
    assert full(values)[0] <= low <= 0 <= high <= full(values)[1]
    assert low < high or not values.any()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_and_zeros_have_no_extent(method: clipping.Method) -> None:
    assert clipping.limits(Histogram(), method) == (0.0, 0.0)
    assert clipping.limits(histogram(np.full(3, -np.inf, np.float32)), method) == (0.0, 0.0)
    assert clipping.limits(histogram(np.zeros(3, np.float32)), method) == (0.0, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_is_the_least_and_the_greatest_value(kind: str) -> None:
    values = sample(kind)
    assert clipping.limits(histogram(values), "minmax") == full(values)


@pytest.mark.parametrize("method", METHODS)
def test_infinities_and_mask_constants_move_no_end(method: clipping.Method) -> None:
    values = sample("mixed", 1000)
    odd = np.array([np.inf, -np.inf, -3.4e38, np.nan], dtype=np.float32)
    expected = clipping.limits(histogram(values), method)
    assert clipping.limits(histogram(np.concatenate([odd, values, odd])), method) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [50, 60_000])
def test_percentile_leaves_out_one_value_in_20000_at_each_end(kind: str, count: int) -> None:
    values = np.sort(sample(kind, count))
    # The first value with at least this share of all at or below it, counted from each end.
    low = values[max(math.ceil(count * 0.00005), 1) - 1]
    high = values[min(math.ceil(count * 0.99995), count) - 1]
    expected = [max(min(centre(low), 0), full(values)[0]), min(max(centre(high), 0), full(values)[1])]
    assert clipping.limits(histogram(values), "percentile") == tuple(expected)


def test_percentile_is_within_a_bin_of_numpys() -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    found = clipping.limits(histogram(values), "percentile")
    assert np.allclose(found, np.quantile(values, [0.00005, 0.99995]), rtol=0.008)


def test_percentile_of_almost_nothing_but_zeros_is_the_full_range() -> None:
    for value in (3.0, -3.0):
        values = np.zeros(100_000, dtype=np.float32)
        values[7] = value
        assert clipping.limits(histogram(values), "percentile") == full(values)


@pytest.mark.parametrize("levels", [4, 16, 256])
@pytest.mark.parametrize("ends", [(-1.0, 3.0), (0.0, 2.0), (-2.0, 0.0), (-0.11, 0.37)])
def test_quantization_error_counts_rounding_and_clipping(ends: tuple[float, float], levels: int) -> None:
    values = np.random.default_rng(1).normal(0, 2, 60)
    counts = np.arange(60) % 4 + 1.0
    expected = error(np.repeat(values, counts.astype(int)), *ends, levels)
    assert clipping.quantization_error(values, counts, *ends, levels) == pytest.approx(expected, rel=1e-9)


def test_quantization_error_by_hand() -> None:
    # Steps of 1 from -1 to 2: 0.25 goes to 0, 5 to 2, -3 to -1.
    found = clipping.quantization_error(np.array([0.25, 5, -3]), np.array([4.0, 1, 2]), -1, 2, 4)
    assert found == 4 * 0.0625 + 9 + 2 * 4


@pytest.mark.parametrize("levels", [16, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_the_best_of_all_pairs_of_cuts(kind: str, levels: int) -> None:
    _check_mse(sample(kind, 250), levels)


@pytest.mark.parametrize(("seed", "levels"), [(8, 16), (44, 8)])
def test_mse_returns_to_the_first_end_where_the_second_has_moved(seed: int, levels: int) -> None:
    # One round over both ends is not enough for these values.
    _check_mse((np.random.default_rng(seed).laplace(size=120) ** 3).astype(np.float32), levels)


def _check_mse(values: np.ndarray, levels: int) -> None:
    low, high = full(values)
    cuts = [(1 - i * 0.8 / 23) ** 1.5 for i in range(24)]
    pairs = [(low * a, high * b) for a in (cuts if low else [1]) for b in (cuts if high else [1])]
    exact = binned(values)
    found = clipping.limits(histogram(values), "mse", levels)
    least = min(_fast_error(exact, *pair, levels) for pair in pairs)
    assert error(exact, *found, levels) == pytest.approx(least, rel=1e-6)
    assert np.isclose([found], pairs, rtol=1e-12, atol=0).all(axis=1).any()


def _fast_error(values: np.ndarray, low: float, high: float, levels: int) -> float:
    step = (high - low) / (levels - 1)
    codes = np.clip(np.rint(values / step), -np.rint(-low / step), levels - 1 - np.rint(-low / step))
    return float(np.square(codes * step - values).sum())


def test_mse_without_anything_to_gain_is_the_full_range() -> None:
    values = np.array([-1, 2] * 50, dtype=np.float32)
    assert clipping.limits(histogram(values), "mse", 4) == (-1, 2)


def test_eight_bits_have_256_levels() -> None:
    assert inspect.signature(clipping.limits).parameters["levels"].default == 256


def divergence(bins: list[float], end: int, steps: int) -> float:
    """Kullback-Leibler divergence of the first `end` bins from themselves in `steps` levels, in plain loops."""
    reference = bins[:end]
    reference[-1] += sum(bins[end:])
    levels: list[list[int]] = [[] for _ in range(steps)]
    for i in range(end):
        if bins[i]:
            levels[i * steps // end].append(i)
    quantized = [0.0] * end
    for members in levels:
        for i in members:
            quantized[i] = sum(bins[j] for j in members) / len(members)
    p, q = sum(reference), sum(quantized)
    return sum(a / p * math.log(a / p / max(b / q, 1e-9)) for a, b in zip(reference, quantized, strict=True) if a)


@pytest.mark.parametrize("end", [16, 23, 40])
def test_divergence_in_plain_loops(end: int) -> None:
    bins = np.random.default_rng(2).poisson(1.5, 40).astype(np.float64)
    bins[end - 1] = 3
    expected = divergence(bins.tolist(), end, 8)
    assert clipping._divergence(bins, end, 8) == pytest.approx(expected, rel=1e-12)


def test_divergence_by_hand() -> None:
    # 1 and 3 share a level, so both become 2; 4 has its own and takes the 2 beyond the end.
    found = clipping._divergence(np.array([1.0, 3, 0, 4, 2]), 4, 2)
    p, q = [0.1, 0.3, 0.6], [0.25, 0.25, 0.5]
    assert found == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def test_divergence_of_nothing_is_infinite() -> None:
    assert clipping._divergence(np.zeros(8), 4, 2) == math.inf


def test_divergence_of_what_lies_beyond_the_end_alone() -> None:
    assert clipping._divergence(np.array([0.0, 0, 0, 0, 5]), 4, 2) == pytest.approx(math.log(1e9))


@pytest.mark.parametrize(
    ("kind", "levels"),
    [("mixed", 256), ("positive", 256), ("lopsided", 64), ("negative", 16), ("even", 256), ("even", 32)],
)
def test_entropy_is_the_best_of_all_ends(kind: str, levels: int) -> None:
    values = sample(kind, 1500)
    largest = float(np.abs(values).max())
    bins = [0.0] * 2048
    for value in binned(values).tolist():
        bins[min(int(abs(value) / largest * 2048), 2047)] += 1
    bins[0] = 0
    steps = max(levels // 2, 16)
    ends = range(steps, 2049, 16)
    found = [divergence(bins, end, steps) for end in ends]
    best = largest * ends[int(np.argmin(found))] / 2048
    low, high = full(values)
    expected = max(low, -best), min(high, best)
    assert clipping.limits(histogram(values), "entropy", levels) == pytest.approx(expected, rel=1e-12)


def _quantizer(model: ir.Model) -> tuple[float, int]:
    node = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    scale, zero = (node.inputs[i].const_value.numpy() for i in (1, 2))  # type: ignore[union-attr]
    return float(scale), int(zero)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_zero_is_exact_in_the_quantized_graph(kind: str, method: clipping.Method) -> None:
    graph = Graph()
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 16]), graph.constant(np.eye(16, dtype=np.float32))))
    choice = choose.candidates(model, {"MatMul_0"})
    ends = clipping.limits(histogram(sample(kind, 500)), method)
    for target, least, most in (("x86", 0, 255), ("arm", -128, 127)):
        made = qdq.write(model, qdq.Scheme(TARGETS[target], choice, {"x": ends}))
        scale, zero = _quantizer(made)
        assert least <= zero <= most
        if target == "x86":
            assert zero == round(-ends[0] / ((ends[1] - ends[0]) / 255))
            assert scale == pytest.approx((ends[1] - ends[0]) / 255, rel=1e-5)
        else:
            assert zero == 0
        feeds = {"x": np.zeros((1, 16), dtype=np.float32)}
        assert not next(iter(Session(io.to_bytes(made), threads=1).run(feeds).values())).any()
