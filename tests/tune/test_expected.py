"""Mixtures of normal distributions against closed forms, integrals and draws."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli.tune.expected import Expected

NORMAL = statistics.NormalDist()


def single(centre: float, spread: float, **given_: object) -> Expected:
    return Expected(np.ones(1), np.array([[centre]]), np.array([[spread]]), **given_)  # type: ignore[arg-type]


def mixture(**given_: object) -> tuple[Expected, np.ndarray]:
    """Three parts at two places, and 400,000 draws [places, draws] from it."""
    weights = np.array([0.5, 0.3, 0.2])
    centres = np.array([[0.1, -0.4], [0.6, 0.2], [1.1, 0.9]])
    spreads = np.array([[0.05, 0.5], [0.2, 0.1], [0.4, 0.3]])
    source = np.random.default_rng(0)
    parts = source.choice(3, size=400_000, p=weights)
    draws = np.stack([source.normal(centres[parts, at], spreads[parts, at]) for at in range(2)])
    return Expected(weights, centres, spreads, **given_), draws  # type: ignore[arg-type]


@pytest.mark.parametrize("score", np.random.default_rng(1).uniform(-8, 8, 50).tolist())
def test_the_normal_distribution_is_that_of_the_standard_library(score: float) -> None:
    found = float(single(2.0, 0.5).below(2.0 + 0.5 * score)[0])
    assert found == pytest.approx(NORMAL.cdf(score), abs=3e-8, rel=1e-4 if score < -3 else None)


def test_one_normal_distribution() -> None:
    one = single(3.0, 0.5)
    assert one.mean == pytest.approx([3.0])
    assert one.low == pytest.approx([3 - 0.5 * 1.959964], abs=1e-6)
    assert one.high == pytest.approx([3 + 0.5 * 1.959964], abs=1e-6)
    assert one.gain(3.0) == pytest.approx([0.5 / math.sqrt(2 * math.pi)], abs=1e-7)
    assert one.gain(10.0) == pytest.approx([7.0], abs=1e-7)
    assert one.gain(-10.0) == pytest.approx([0], abs=1e-12)


def test_one_logarithm() -> None:
    one = single(math.log(2), 0.4, logarithmic=True)
    assert one.mean == pytest.approx([2 * math.exp(0.08)])
    assert one.below(2.0) == pytest.approx([0.5])
    assert one.low == pytest.approx([2 * math.exp(-0.4 * 1.959964)], rel=1e-6)
    assert one.high == pytest.approx([2 * math.exp(0.4 * 1.959964)], rel=1e-6)
    # The integral of what is gained times the density of the logarithm.
    logs = np.linspace(math.log(2) - 4, math.log(1.7), 200_001)
    density = np.exp(-(((logs - math.log(2)) / 0.4) ** 2) / 2) / (0.4 * math.sqrt(2 * math.pi))
    assert one.gain(1.7) == pytest.approx([np.trapezoid((1.7 - np.exp(logs)) * density, logs)], rel=1e-5)
    for nothing in (0.0, -1.0):
        assert one.below(nothing) == one.gain(nothing) == [0]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_mixture_is_as_its_draws(logarithmic: bool) -> None:
    expected, draws = mixture(logarithmic=logarithmic)
    _compare(expected, np.exp(draws) if logarithmic else draws)


def test_what_is_larger_counts_as_the_most() -> None:
    expected, draws = mixture(most=0.8)
    _compare(expected, np.minimum(draws, 0.8))
    assert expected.high == pytest.approx([0.8, 0.8])
    assert expected.below(0.8).tolist() == [1, 1]


def _compare(expected: Expected, draws: np.ndarray) -> None:
    assert expected.mean == pytest.approx(draws.mean(axis=1), rel=0.005, abs=0.004)
    assert expected.low == pytest.approx(np.quantile(draws, 0.025, axis=1), rel=0.01, abs=0.005)
    assert expected.high == pytest.approx(np.quantile(draws, 0.975, axis=1), rel=0.01)
    for limit in (0.15, 0.5, 1.0):
        assert expected.below(limit) == pytest.approx((draws <= limit).mean(axis=1), abs=0.005)
        assert expected.gain(limit) == pytest.approx(np.maximum(limit - draws, 0).mean(axis=1), abs=0.005)


@given(st.floats(-3, 3), st.booleans())
def test_gain_grows_by_the_chance(best: float, logarithmic: bool) -> None:
    """The derivative of the gain by `best` is the chance to lie below it."""
    expected = Expected(
        np.array([0.4, 0.6]), np.array([[0.0], [1.0]]), np.array([[0.5], [0.3]]), logarithmic=logarithmic
    )
    slope = (expected.gain(best + 1e-3) - expected.gain(best - 1e-3)) / 2e-3
    assert slope == pytest.approx(expected.below(best), abs=1e-3)
    assert (expected.gain(best) >= 0).all()
