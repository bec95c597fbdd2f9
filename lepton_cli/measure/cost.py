"""What a million inferences cost at the measured throughput. Light: no numpy here."""

from __future__ import annotations

from lepton_cli.measure.results import Cost, CostTable, LatencyTable
from lepton_cli.measure.spec import CostSpec


def cost(table: LatencyTable, spec: CostSpec) -> CostTable:
    """Cost per million samples of every measured variant, provider and batch size, on a fully used machine.

    The price is for the whole machine running this model alone with the measured number of threads.
    """
    amount, currency = spec.per_hour.split(" ")
    per_second = float(amount) / 3600
    entries = [
        Cost(
            variant=result.variant,
            provider=result.provider,
            batch=result.batch,
            threads=result.threads,
            per_million=1e6 * per_second / result.throughput,
        )
        for result in table.results
    ]
    return CostTable(per_hour=float(amount), currency=currency, entries=tuple(entries))
