"""The centre of a few values against published and independently computed intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lepton_cli.timing import intervals


@pytest.mark.parametrize(("n", "critical"), [(6, 0), (7, 2), (10, 8), (20, 52), (50, 434)])
def test_centre_uses_wilcoxons_critical_values(n: int, critical: int) -> None:
    """Tabulated critical values of the signed-rank sum, two-sided 5 %."""
    values = np.random.default_rng(n).standard_normal(n)
    first, second = np.triu_indices(n)
    walsh = np.sort((values[first] + values[second]) / 2)
    estimate = intervals.centre(values)
    assert (estimate.low, estimate.high) == (walsh[critical], walsh[-1 - critical])


def test_centre_of_few_values_is_students() -> None:
    """scipy.stats.t.interval(0.95, 2, mean, sem) of 1, 2, 4."""
    estimate = intervals.centre(np.array([1.0, 2.0, 4.0]))
    assert estimate == pytest.approx((7 / 3, -1.4612, 6.1279), abs=1e-3)


def test_centre_of_one_value_is_unbounded() -> None:
    assert intervals.centre(np.array([3.0])) == (3.0, -math.inf, math.inf)


@pytest.mark.parametrize("n", [5, 8, 12, 30, 80])
def test_centre_covers_the_truth(n: int) -> None:
    generator = np.random.default_rng(n)
    found = [intervals.centre(generator.standard_t(4, n)) for _ in range(600)]
    assert 0.925 <= np.mean([low <= 0 <= high for _, low, high in found]) <= 0.985


def test_centre_withstands_a_disturbed_round() -> None:
    calm = np.random.default_rng(0).normal(0, 0.01, 12)
    disturbed = np.append(calm, 3.0)
    assert intervals.centre(disturbed).high < 0.05


@pytest.mark.parametrize(
    ("n", "share", "given"), [(35, 0.9, False), (36, 0.9, True), (367, 0.99, False), (368, 0.99, True)]
)
def test_percentiles_only_with_enough_values(n: int, share: float, given: bool) -> None:
    assert (intervals.percentile(np.arange(n, dtype=float), share) is not None) == given


def test_exponentials_keep_the_interval_and_stay_finite() -> None:
    found = intervals.exp(intervals.Estimate(math.log(2), math.log(1), math.log(4)))
    assert found == pytest.approx((2, 1, 4))
    assert found.half_width == pytest.approx(1.5)
    unbounded = intervals.exp(intervals.Estimate(0.0, -math.inf, math.inf))
    assert unbounded.low == 0
    assert math.isfinite(unbounded.high)


@pytest.mark.parametrize("n", [6, 20, 60, 61, 80, 150])
def test_ranks_are_those_of_the_signed_rank_sums_distribution(n: int) -> None:
    """Counted with whole numbers: how many sets of 1 ... n sum to at most r. Beyond 60 values it is approximated."""
    counts = [1]
    for value in range(1, n + 1):
        longer = counts + [0] * value
        for total, ways in enumerate(counts):
            longer[total + value] += ways
        counts = longer
    below, rank = 0, -1
    while (below + counts[rank + 1]) * 1000 <= 25 * 2**n:
        rank += 1
        below += counts[rank]
    values = np.random.default_rng(n).normal(size=n)
    first, second = np.triu_indices(n)
    walsh = np.sort((values[first] + values[second]) / 2)
    used = [k for k in range(len(walsh)) if walsh[k] == intervals.centre(values).low]
    assert any(abs(k - rank) <= (0 if n <= 60 else 2) for k in used)
    mean, deviation = n * (n + 1) / 4, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    if n > 60:
        assert math.floor(mean - 1.959963984540054 * deviation) - 1 in used
