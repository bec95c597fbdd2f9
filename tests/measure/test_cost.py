"""Money from throughput."""

from __future__ import annotations

import pytest

from lepton_cli.measure.cost import cost
from lepton_cli.measure.results import Latency, LatencyTable
from lepton_cli.measure.spec import CostSpec


def test_cost_per_million() -> None:
    latency = Latency(
        variant="original", provider="cpu", batch=8, threads=2, median=0.01, low=0.01, high=0.01, n=9, throughput=800.0
    )
    found = cost(LatencyTable(results=(latency,)), CostSpec(per_hour="0.36 USD"))
    assert (found.currency, found.per_hour) == ("USD", 0.36)
    (entry,) = found.entries
    assert (entry.variant, entry.provider, entry.batch) == ("original", "cpu", 8)
    # 0.0001 USD a second; a million samples take 1250 s.
    assert entry.per_million == pytest.approx(0.125)
