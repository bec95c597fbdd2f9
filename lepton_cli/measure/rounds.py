"""What a latency comparison timed, and the statistics of it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lepton_cli.measure import statistics
from lepton_cli.measure.case import Case
from lepton_cli.measure.results import Latency, LatencyChange
from lepton_cli.measure.spec import LatencySpec

#: Seconds per run, shape (pairs, arms).
Times = NDArray[np.float64]
#: Most raw times kept for drawing.
_DRAWN = 200


class Rounds:
    """Times by round, and what follows from them: `times` and `device` hold one array per round."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.times: list[Times] = []
        self.device: list[Times] = []
        self.created = 0

    def ratio(self, arm: int) -> statistics.Estimate:
        """Paired ratio of an arm to the reference: centre of the rounds' medians, on a log scale."""
        medians = [float(np.median(np.log(round_[:, arm] / round_[:, 0]))) for round_ in self.times]
        return _exp(statistics.centre(np.array(medians)))

    def absolute(self, arm: int) -> statistics.Estimate:
        """Median of all times of an arm; the interval is that of the rounds' medians."""
        spread = _exp(statistics.centre(np.array([np.log(np.median(round_[:, arm])) for round_ in self.times])))
        value = float(np.median(np.concatenate([round_[:, arm] for round_ in self.times])))
        return statistics.Estimate(value, min(value, spread.low), max(value, spread.high))

    def half_width(self) -> float:
        """Relative half-width of the widest ratio's interval; of the time itself when there is one arm only."""
        arms = len(self.case.arms)
        estimates = [self.ratio(arm) for arm in range(1, arms)] or [self.absolute(0)]
        return max((estimate.high - estimate.low) / 2 / estimate.value for estimate in estimates)

    def latencies(self) -> list[Latency]:
        """One result per arm."""
        case, results = self.case, []
        for arm, name in enumerate(case.arms):
            estimate = self.absolute(arm)
            times = np.concatenate([round_[:, arm] for round_ in self.times])
            device = np.concatenate([round_[:, arm] for round_ in self.device]) if self.device else None
            results.append(
                Latency(
                    variant=name,
                    provider=case.provider,
                    batch=case.batch,
                    threads=case.threads,
                    median=estimate.value,
                    low=estimate.low,
                    high=estimate.high,
                    p90=statistics.percentile(times, 0.9),
                    p99=statistics.percentile(times, 0.99),
                    n=len(times),
                    throughput=case.batch / estimate.value,
                    device_median=None if device is None else float(np.median(device)),
                    times=tuple(float(t) for t in times[:: max(1, math.ceil(len(times) / _DRAWN))]),
                    placement=case.placement[name],
                )
            )
        return results

    def changes(self) -> list[LatencyChange]:
        """One paired comparison per arm after the first."""
        case = self.case
        return [
            LatencyChange(
                provider=case.provider,
                batch=case.batch,
                threads=case.threads,
                original=self.absolute(0).value,
                compressed=self.absolute(arm).value,
                ratio=ratio.value,
                low=ratio.low,
                high=ratio.high,
                pairs=sum(len(round_) for round_ in self.times),
                variant=name,
                rounds=len(self.times),
            )
            for arm, name in enumerate(case.arms)
            if arm > 0
            for ratio in [self.ratio(arm)]
        ]

    def warnings(self, spec: LatencySpec) -> list[str]:
        """What a reader of these numbers must know."""
        case, found = self.case, []
        where = f"latency on {case.provider}, batch {case.batch}"
        if (width := self.half_width()) > spec.precision:
            found.append(f"{where}: ±{100 * width:.2g} % after {spec.time}, wanted ±{spec.precision}: measure longer")
        if self.created == 1:
            found.append(f"{where}: starting the models takes too long to start them anew in each round")
        for name, nodes in case.fallback.items():
            if nodes:
                shown = ", ".join(nodes[:5]) + (", …" if len(nodes) > 5 else "")
                total = sum(case.placement[name].values())
                found.append(f"{where}: `{name}` ran {len(nodes)} of {total} nodes elsewhere: {shown}")
        return found


def _exp(estimate: statistics.Estimate) -> statistics.Estimate:
    return statistics.Estimate(*(math.exp(min(value, 700.0)) for value in estimate))
