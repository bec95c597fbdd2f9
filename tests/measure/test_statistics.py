"""Intervals against published and independently computed values, and their coverage by simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli.measure import statistics

counts = st.integers(0, 200)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
        (81, 263, 0.2552885198782742, 0.3662095769828),
        (15, 148, 0.0623864, 0.1604872),
        (0, 20, 0.0, 0.1611252),
        (29, 29, 0.8830302, 1.0),
    ],
)
def test_wilson_matches_reference(successes: int, n: int, low: float, high: float) -> None:
    assert statistics.wilson(successes, n) == pytest.approx((low, high), abs=1e-6)


def test_wilson_of_nothing_says_nothing() -> None:
    assert statistics.wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_proportion(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = statistics.wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = statistics.wilson(n - successes, n)
    assert (low, high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low), abs=1e-12)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Newcombe 1998, table II, method 10, signs turned (first minus second there).
        ((36, 12, 2, 0), -0.3404, -0.0569),
        ((20, 12, 2, 16), -0.3292, -0.0562),
        ((0, 0, 0, 54), -0.0664, 0.0664),
    ],
)
def test_paired_difference_matches_newcombe(table: tuple[int, int, int, int], low: float, high: float) -> None:
    estimate = statistics.paired_difference(*table)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.0002)


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [
        (0, 0, 1),
        (1, 0, 1),
        (3, 3, 1),
        (5, 0, Fraction(2, 32)),
        (0, 10, Fraction(2, 1024)),
        # 1 + 8 of 256, on both sides.
        (7, 1, Fraction(18, 256)),
        (2, 10, Fraction(2 * (1 + 12 + 66), 4096)),
    ],
)
def test_mcnemar_by_hand(lost: int, won: int, p: Fraction) -> None:
    assert statistics.mcnemar(lost, won) == pytest.approx(float(p), rel=1e-12)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_whole_binomial_tail(lost: int, won: int) -> None:
    """Counted in whole numbers: all ways to part so many samples that are as unequal, or more."""
    n, gap = lost + won, abs(lost - won)
    ways = sum(math.comb(n, count) for count in range(n + 1) if abs(n - 2 * count) >= gap)
    assert statistics.mcnemar(lost, won) == pytest.approx(float(Fraction(ways, 2**n)), rel=1e-9)


def test_mcnemar_takes_many_samples() -> None:
    # Far beyond what a float holds, and near one half of a million.
    assert statistics.mcnemar(5000, 10) == 0
    assert statistics.mcnemar(500_000, 499_000) == pytest.approx(math.erfc(999 / math.sqrt(2 * 999_000)), rel=1e-3)


def test_holm_by_hand() -> None:
    # In order 0.01, 0.02, 0.03, 0.4: times 4, 3, 2, 1, and none below one before it.
    assert statistics.holm([0.03, 0.01, 0.4, 0.02]) == pytest.approx([0.06, 0.04, 0.4, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1, 1]
    assert statistics.holm([]) == []


@pytest.mark.parametrize("count", [1, 2, 10, 1000])
def test_simultaneous_intervals_share_five_per_cent(count: int) -> None:
    outside = math.erfc(statistics.simultaneous(count) / math.sqrt(2))
    assert count * outside == pytest.approx(0.05, rel=1e-9)


def test_a_wider_quantile_is_a_wider_interval_of_the_same_difference() -> None:
    usual, wide = (statistics.paired_difference(20, 12, 2, 16, z) for z in (1.959964, 2.807034))
    # Newcombe's table again; and by its formulas with z = 2.807: Wilson's ends of 32 and 22 of 50, joined by phi.
    assert (usual.low, usual.high) == pytest.approx((-0.3292, -0.0562), abs=0.0002)
    low = [(p + z2 / 100 - math.sqrt(z2 * (p * (1 - p) + z2 / 200) / 50)) / (1 + z2 / 50) for p, z2 in ENDS]
    high = [(p + z2 / 100 + math.sqrt(z2 * (p * (1 - p) + z2 / 200) / 50)) / (1 + z2 / 50) for p, z2 in ENDS]
    phi = (20 * 16 - 12 * 2 - 25) / math.sqrt(32 * 18 * 22 * 28)
    below, above = (0.44 - low[1], high[0] - 0.64), (high[1] - 0.44, 0.64 - low[0])
    ends = [math.sqrt(a * a - 2 * phi * a * b + b * b) for a, b in (below, above)]
    assert (wide.low, wide.high) == pytest.approx((-0.2 - ends[0], -0.2 + ends[1]), abs=1e-9)


#: Proportions of the table above, and the square of the wider quantile.
ENDS = ((0.64, 2.807034**2), (0.44, 2.807034**2))


@given(counts, counts, counts, counts)
def test_paired_difference_is_antisymmetric_and_bounded(a: int, b: int, c: int, d: int) -> None:
    forward, backward = statistics.paired_difference(a, b, c, d), statistics.paired_difference(a, c, b, d)
    assert -1 <= forward.low <= forward.value <= forward.high <= 1
    assert forward.value == pytest.approx(-backward.value)
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low), abs=1e-9)


def test_paired_difference_covers_the_truth() -> None:
    """2,000 simulated pairs of models, 92 % and 91 % accurate and agreeing on 97 % of 400 samples."""
    shares = np.array([0.90, 0.02, 0.01, 0.07])
    tables = np.random.default_rng(0).multinomial(400, shares, size=2000)
    found = [statistics.paired_difference(*map(int, table)) for table in tables]
    covered = np.mean([low <= -0.01 <= high for _, low, high in found])
    assert 0.935 <= covered <= 0.985


def test_paired_difference_agrees_with_mcnemar() -> None:
    """11 against 29 discordant pairs: McNemar's exact p is 0.0064, so 0 is outside; 18 against 22: p 0.64."""
    assert statistics.paired_difference(900, 29, 11, 60).high < 0
    low, high = statistics.paired_difference(900, 22, 18, 60)[1:]
    assert low < 0 < high


def test_bootstrap_of_a_mean_matches_theory() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = statistics.bootstrap(lambda rows: values[rows].mean(axis=1), 400, seed=0, resamples=2000)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.25 * half)
    assert (low, high) == statistics.bootstrap(lambda rows: values[rows].mean(axis=1), 400, seed=0, resamples=2000)


def test_bootstrap_without_finite_values_has_no_interval() -> None:
    low, high = statistics.bootstrap(lambda rows: np.full(len(rows), np.nan), 5, seed=0)
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(("lost", "gained", "n"), [(0.03, 0.01, 400), (0.05, 0.05, 1000), (0.4, 0.1, 200)])
def test_width_of_a_paired_difference(lost: float, gained: float, n: int) -> None:
    """Against the spread of differences that are drawn."""
    drawn = np.random.default_rng(0).multinomial(n, [lost, gained, 1 - lost - gained], size=40_000)
    spread = 1.959964 * ((drawn[:, 0] - drawn[:, 1]) / n).std()
    assert statistics.paired_half_width(lost - gained, lost + gained, n) == pytest.approx(spread, rel=0.02)


@pytest.mark.parametrize(
    ("difference", "discordant"), [(0.01, 0.02), (0.005, 0.02), (0.01, 0.01), (0.1, 0.5), (0.9, 0.9)]
)
def test_samples_that_tell_a_difference(difference: float, discordant: float) -> None:
    least = statistics.samples_to_tell(difference, discordant)
    assert statistics.paired_half_width(difference, discordant, least) <= difference
    assert least == 1 or statistics.paired_half_width(difference, discordant, least - 1) > difference
    assert statistics.samples_to_tell(0.01, 0.02) == 765
