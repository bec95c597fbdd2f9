"""What a trial has of the numbers that limits bound: how far within or beyond them, and how that is said."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from lepton_cli import gates, metrics
from lepton_cli.recipe.schema import Gate
from lepton_cli.report import facts, words
from lepton_cli.report.facts import BoundedValue, Fact
from lepton_cli.report.model import Margin, Report, Verdict
from lepton_cli.report.trial import Band

#: Comparisons that bound from above.
UPPER = ("max", "max_ratio", "max_drop", "max_increase")
#: Differences in time that a trial cannot tell.
_BLUR = 0.01


def binding(limits: Sequence[Gate]) -> Iterator[tuple[int, Gate]]:
    """The limits that a search has to hold, with their positions."""
    return ((index, gate) for index, gate in enumerate(limits) if gate.level == "error" and gate.against == "original")


@dataclasses.dataclass(frozen=True)
class Reading:
    """One number that a limit bounds. `observed`: in what the limit compares, a drop, a ratio or a value."""

    index: int
    gate: Gate
    fact: Fact
    observed: BoundedValue

    @property
    def upper(self) -> bool:
        """Whether the limit bounds from above."""
        return self.gate.comparison in UPPER

    @property
    def scale(self) -> float:
        """What distances to the bound are a share of."""
        return max(abs(float(self.gate.limit)), 0.01 if self.fact.kind == "share" else 1e-12)

    @property
    def room(self) -> float:
        """See `Margin.room`."""
        return -self._beyond(self.observed.value) / self.scale

    @property
    def margin(self) -> Margin | None:
        """The reading for a report; `None` where it is not a finite number, as the SQNR of equal outputs."""
        found = self.observed
        if not all(map(math.isfinite, (found.value, found.low, found.high))):
            return None
        return Margin(
            limit=self.index,
            found=Band(value=found.value, low=found.low, high=found.high),
            room=self.room,
            error=(found.high - found.low) / 2 / self.scale,
        )

    def excess(self, *, partial: bool) -> float:
        """How far beyond the limit it is for certain, as a share of `scale`: 0 within.

        Times are as good as the limit when they are within 1 % of it; quality on a part of the samples (`partial`)
        counts by its whole interval.
        """
        uncertain = partial and self.fact.about.quality
        value = (self.observed.low if self.upper else self.observed.high) if uncertain else self.observed.value
        if self.fact.about.varies:
            value *= 1 - _BLUR if self.upper else 1 + _BLUR
        beyond = self._beyond(value)
        if math.isnan(beyond):
            return math.inf
        return beyond / self.scale if beyond > 1e-12 * max(1.0, abs(float(self.gate.limit))) else 0.0

    def _beyond(self, value: float) -> float:
        limit = float(self.gate.limit)
        return value - limit if self.upper else limit - value

    @property
    def breach(self) -> str:
        """Limit and value, for one that is beyond it."""
        gate = self.gate
        return (
            f"{gate.metric}: {gate.comparison} {gate.limit}, found {_short(gate.comparison, self.observed, self.fact)}"
        )

    @property
    def found(self) -> str:
        """The value in full, and what is allowed."""
        value, fact = self.observed.value, self.fact
        match self.gate.comparison:
            case "max_ratio" | "min_ratio":
                allowed = words.value(float(self.gate.limit), "share")
                return f"{words.value(value, 'share')} of the original's (allowed: {allowed})"
            case "max_drop" | "max_increase" as comparison:
                side = "below" if (comparison == "max_drop") == (value >= 0) else "above"
                amount = abs(value)
                shown = words.points(amount, sign=False) if fact.kind == "share" else words.exact(amount, fact.kind)
                return f"{shown} {side} the original's (allowed: {self.gate.limit})"
            case _:
                return f"{words.exact(value, fact.kind, fact.unit)} (allowed: {self.gate.limit})"


def read(report: Report, limits: Sequence[Gate]) -> tuple[Reading, ...]:
    """Every number of a report's last model that one of the limits bounds, in their order."""
    found = []
    for index, gate in binding(limits):
        for fact in facts.find(report, gate.metric, **gate.scope):
            observed = gates.compared(gate.comparison, fact)
            if observed is not None:
                found.append(Reading(index, gate, fact, observed))
    return tuple(found)


def stands(verdict: Verdict) -> bool:
    """Whether the verdict on a finalist leaves it where its trial put it.

    An open one is a second look at a time that was within. Of classes it is the same look as before, and the value was
    within.
    """
    same = verdict.verdict == "inconclusive" and metrics.of(verdict.metric).by_class
    return same or verdict.verdict in ("pass", "skipped") or verdict.level == "warn"


def clause(gate: Gate) -> str:
    """The limit as a part of a sentence: `size.file` at most 25 % of the original's."""
    comparison, limit = gate.comparison, gate.limit
    side = "at most" if comparison in UPPER else "at least"
    match comparison:
        case "max_ratio" | "min_ratio":
            bound = f"{words.value(float(limit), 'share')} of the original's"
        case "max_drop" | "max_increase":
            bound = f"{limit} {'below' if comparison == 'max_drop' else 'above'} the original's"
        case _:
            bound = f"{limit}"
    return f"{named(gate.metric, gate.scope)} {side} {bound}"


def named(metric: str, scope: dict[str, str | int]) -> str:
    """The metric, and which of its values."""
    return f"`{metric}`" + (f" ({words.scope(scope)})" if scope else "")


def _short(comparison: str, observed: BoundedValue, fact: Fact) -> str:
    if comparison.endswith("_ratio"):
        return words.significant(observed.value)
    if comparison in ("max_drop", "max_increase") and fact.kind == "share":
        return words.points(observed.value, sign=False)
    return words.value(observed.value, fact.kind, fact.unit)
