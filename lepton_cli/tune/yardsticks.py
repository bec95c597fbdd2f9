"""What limits and goal look at, each as one number that is better when lower.

A quality is counted as what it lost: 0 at the original, in the metric's own unit. Decibels of the original's answers
over what differs are counted as that error, a share of them. Everything else is a ratio to the original: 1 there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from lepton_cli import metrics
from lepton_cli.recipe.tuning import Objective
from lepton_cli.report import facts
from lepton_cli.report.facts import BoundedValue, Fact
from lepton_cli.report.model import Report
from lepton_cli.report.trial import Band, Trial
from lepton_cli.tune.contradictions import bound_of
from lepton_cli.tune.limits import Judge
from lepton_cli.tune.outlook import Drop, Features, Quantity, Ratio, memory_share, time_share
from lepton_cli.tune.readings import binding

#: Deviations from the middle to either end of a 95 % interval.
_Z = 1.96
#: A drop that matters where no limit says one: of a share, in dB, and of other numbers as a share of the original's.
_POINT, _DECIBEL, _PART = 0.01, 0.1, 0.02
#: Metrics that follow from a graph by counting.
COUNTED = {"size.file": "bytes", "parameters": "parameters", "macs": "macs"}


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """One number of a trial that a limit bounds (`index`: which), or that is the goal (`None`)."""

    metric: str
    scope: tuple[tuple[str, str | int], ...]
    index: int | None
    #: Of the original, in the metric's own unit.
    original: float
    #: What a limit allows at most, in this yardstick's unit.
    bound: float = math.inf
    #: Whether it is read beside the original. A level of the worst class is not: another class may be the worst there.
    paired: bool = True
    #: The recipe says that lower is better, whatever the table does.
    lower: bool = False

    @property
    def about(self) -> metrics.Metric:
        return metrics.of(self.metric, lower=self.lower)

    @property
    def close(self) -> bool:
        """Whether it is decibels of the original's answers: infinitely many at the original."""
        return self.about.kind == "decibel" and self.about.source == "agreement"

    @property
    def counted(self) -> str:
        """What of a candidate's figures it is, where it follows from the graph; else empty."""
        return COUNTED.get(self.metric, "")

    def of(self, value: BoundedValue, fact: Fact | None = None) -> BoundedValue:
        """A value of the metric in this yardstick's unit; `fact`: with what is known of it beside the original."""
        about = self.about
        if self.close:
            error = [10 ** (-one / 20) for one in (value.value, value.high, value.low)]
            return BoundedValue(*error)
        if about.quality:
            paired = fact.difference if fact is not None and self.paired else None
            less = value.minus(BoundedValue.exact(self.original)) if paired is None else paired
            return less if about.better == "lower" else BoundedValue(-less.value, -less.high, -less.low)
        paired = fact.ratio if fact is not None else None
        ratio = value.over(BoundedValue.exact(self.original)) if paired is None else paired
        return ratio if about.better == "lower" else ratio.inverse()

    def read(self, report: Report) -> tuple[float, float] | None:
        """The number and its standard error; `None` where it was not measured."""
        found = facts.find(report, self.metric, **dict(self.scope))
        if not found:
            return None
        seen = self.of(found[0].value, found[0])
        return seen.value, (seen.high - seen.low) / 2 / _Z

    def shown(self, band: Band, comparison: str | None) -> Band:
        """A band of this unit in what a limit of that comparison looks at; `None`: as the judge counts the goal."""
        ends = sorted(self._shown(value, comparison) for value in (band.low, band.high))
        return Band(value=self._shown(band.value, comparison), low=ends[0], high=ends[1])

    def _shown(self, value: float, comparison: str | None) -> float:
        about = self.about
        lower = about.better == "lower"
        if self.close:
            own = -20 * math.log10(max(value, 1e-9))
        elif about.quality:
            own = self.original + (value if lower else -value)
        else:
            own = self.original * (value if lower else 1 / max(value, 1e-9))
        if comparison is None:
            relative = about.varies and bool(self.original)
            own = own / self.original if relative else own
            return own if lower else -own
        if comparison.endswith("_ratio"):
            return own / self.original if self.original else own
        if comparison == "max_drop":
            return self.original - own
        return own - self.original if comparison == "max_increase" else own

    @property
    def quantity(self) -> Quantity:
        """How it is foretold."""
        about = self.about
        if about.quality:
            if 0 < self.bound < math.inf:
                unit = self.bound
            else:
                own = _DECIBEL if about.kind == "decibel" else max(_PART * abs(self.original), 1e-9)
                unit = _POINT if about.kind == "share" or self.close else own
            all_of_it = self.original if about.better == "higher" else 1 - self.original
            return Drop(unit, most=max(all_of_it, unit) if about.kind == "share" else math.inf)
        return Ratio(_SHARES.get(self.metric, time_share))


def _bytes(features: Features) -> float:
    return features.bytes


_SHARES: dict[str, Callable[[Features], float]] = {
    "memory.peak": memory_share,
    **dict.fromkeys(("size.file", "size.gzip", "size.external", "nonzeros", "parameters"), _bytes),
}


def yardsticks(judge: Judge, original: Trial) -> tuple[list[Yardstick], Yardstick]:
    """What the limits bound, and the goal. `original`: the original, measured beside itself."""
    report, found = judge.report(original), []
    for index, gate in binding(judge.limits):
        for fact in facts.find(report, gate.metric, **gate.scope):
            upper, most = bound_of(gate, fact.value.value)
            if upper != (fact.about.better == "lower"):
                continue  # a least size is for the judge
            level = fact.about.by_class and gate.comparison in ("min", "max")
            scope = tuple(fact.scope.items())
            one = Yardstick(gate.metric, scope, index, fact.value.value, paired=not level, lower=fact.lower)
            found.append(dataclasses.replace(one, bound=one.of(BoundedValue.exact(most)).value))
    return found, _of_goal(judge.goal, report)


def _of_goal(goal: Objective, report: Report) -> Yardstick:
    fact = facts.find(report, goal.metric, **goal.scope)[0]
    level, scope = fact.about.by_class, tuple(fact.scope.items())
    return Yardstick(goal.metric, scope, None, fact.value.value, paired=not level, lower=fact.lower)


def comparison(judge: Judge, one: Yardstick) -> str | None:
    """What the limit looks at; `None` for the goal."""
    return None if one.index is None else judge.limits[one.index].comparison
