"""Trials against limits and goal: which limit is broken by how much, and which trial is better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from lepton_cli import gates, metrics
from lepton_cli.errors import RecipeError
from lepton_cli.measure.results import Environment, Memory, Size
from lepton_cli.recipe.schema import Gate
from lepton_cli.recipe.tuning import Objective
from lepton_cli.report import facts, words
from lepton_cli.report.facts import BoundedValue, Fact
from lepton_cli.report.model import FileFacts, Report, Variant
from lepton_cli.report.trial import Trial

_T = TypeVar("_T")
_UPPER = ("max", "max_ratio", "max_drop", "max_increase")
#: Differences in time that a trial cannot tell.
_BLUR = 0.01


@dataclasses.dataclass(frozen=True)
class Breach:
    """A limit that a trial does not hold. `excess` is relative to the limit: 0.1 is 10 % beyond it."""

    metric: str
    excess: float
    text: str
    #: The gate that is broken, by its position.
    index: int

    @property
    def quality(self) -> bool:
        """Whether less compression would help."""
        return metrics.of(self.metric).quality

    @property
    def sized(self) -> bool:
        """Whether fewer parameters would help."""
        return metrics.of(self.metric).sized


@dataclasses.dataclass(frozen=True)
class Judge:
    """The limits and the goal, and the original that ratios and drops compare with."""

    limits: tuple[Gate, ...]
    goal: Objective
    original: Size
    environment: Environment
    #: Of the original, where limits or goal need it.
    memory: Memory | None = None
    #: What was said about finished trials: a search looks at all of them before each new one.
    _said: dict[tuple[object, ...], Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def report(self, trial: Trial) -> Report:
        """The trial as a report, which is what gates and facts read."""
        file = FileFacts(path="", sha256="")
        variants = [Variant(name="original", file=file, size=self.original, memory=self.memory)]
        if trial.size is not None:
            variants.append(Variant(name="compressed", file=file, size=trial.size, memory=trial.memory))
        return Report(
            command="tune",
            status="ok",
            complete=trial.complete,
            headline="",
            created="",
            environment=self.environment,
            variants=tuple(variants),
            accuracy=trial.accuracy,
            latency=trial.latency,
            cost=trial.cost,
        )

    def breaches(self, trial: Trial) -> tuple[Breach, ...]:
        """Limits that what was measured does not hold, the worst first.

        Times are as good as the limit when they are within 1 % of it; accuracy on a part of the samples counts by
        its whole interval.
        """
        return self._once(trial, ("breaches",), lambda: self._breaches(trial))

    def _once(self, trial: Trial, question: tuple[object, ...], answer: Callable[[], _T]) -> _T:
        if not trial.elapsed:  # not finished, or not measured here
            return answer()
        key = (trial.key, trial.elapsed, *question)
        if key not in self._said:
            self._said[key] = answer()
        found: _T = self._said[key]
        return found

    def _breaches(self, trial: Trial) -> tuple[Breach, ...]:
        report, found = self.report(trial), []
        for index, gate in enumerate(self.limits):
            if gate.level != "error" or gate.against != "original":
                continue
            for fact in facts.find(report, gate.metric, **gate.scope):
                breach = _breach(gate, fact, index, partial=trial.reached == "proxy")
                if breach is not None:
                    found.append(breach)
        return tuple(sorted(found, key=lambda breach: -breach.excess))

    def value(self, trial: Trial, goal: Objective | None = None) -> float | None:
        """The goal as a number that is better when lower; for times the paired ratio to the original."""
        goal = goal or self.goal
        question = ("value", goal.metric, *goal.scope.items())
        return self._once(trial, question, lambda: self._value(trial, goal))

    def _value(self, trial: Trial, goal: Objective) -> float | None:
        found = facts.find(self.report(trial), goal.metric, **goal.scope)
        if not found:
            return None
        fact = found[0]
        number = fact.ratio.value if fact.about.varies and fact.ratio else fact.value.value
        return -number if fact.about.better == "higher" else number

    def feasible(self, trial: Trial) -> bool:
        """Measured to the end and within every limit."""
        return trial.complete and not self.breaches(trial)

    def best(self, trials: Iterable[Trial]) -> Trial | None:
        """The best trial within the limits; equal ones by size, then name, so that the order of trials is no matter."""
        found = [(self.value(trial), trial) for trial in trials if self.feasible(trial)]
        usable = [(value, trial) for value, trial in found if value is not None and not math.isnan(value)]
        if not usable:
            return None
        return min(usable, key=lambda pair: (pair[0], pair[1].size.file if pair[1].size else 0, pair[1].name))[1]

    def nearest(self, trials: Iterable[Trial]) -> Trial | None:
        """The trial that breaks the limits least, of those that were measured furthest."""
        broken = [
            (self.breaches(trial), trial) for trial in trials if trial.reached in ("accuracy", "latency", "proxy")
        ]
        usable = [(sum(breach.excess for breach in breaches), trial) for breaches, trial in broken if breaches]
        return min(usable, key=lambda pair: (pair[0], pair[1].name))[1] if usable else None

    def needs(self, source: metrics.Measurement) -> bool:
        """Whether limits or goal cannot be judged without that measurement."""
        named = (self.goal.metric, *(gate.metric for gate in self.limits))
        return any(metrics.of(metric).source == source for metric in named)


def _breach(gate: Gate, fact: Fact, index: int, *, partial: bool) -> Breach | None:
    observed = gates.compared(gate.comparison, fact)
    if observed is None:
        return None
    limit, upper = float(gate.limit), gate.comparison in _UPPER
    uncertain = partial and fact.about.quality
    value = (observed.low if upper else observed.high) if uncertain else observed.value
    if fact.about.varies:
        value *= 1 - _BLUR if upper else 1 + _BLUR
    beyond = (value - limit) if upper else (limit - value)
    if not beyond > 1e-12 * max(1.0, abs(limit)) and not math.isnan(beyond):
        return None
    scale = max(abs(limit), 0.01 if fact.kind == "share" else 1e-12)
    shown = _shown(gate.comparison, observed, fact)
    return Breach(gate.metric, beyond / scale, f"{gate.metric}: {gate.comparison} {gate.limit}, found {shown}", index)


def _shown(comparison: str, observed: BoundedValue, fact: Fact) -> str:
    if comparison.endswith("_ratio"):
        return words.significant(observed.value)
    if comparison in ("max_drop", "max_increase") and fact.kind == "share":
        return words.points(observed.value, sign=False)
    return words.value(observed.value, fact.kind, fact.unit)


def check_contradictions(limits: Sequence[Gate], judge: Judge, original: Trial) -> None:
    """Limits that no model can hold together. Raises RecipeError naming both. `original`: the original, measured."""
    report = judge.report(original)
    bounds: dict[tuple[object, ...], dict[bool, tuple[float, int]]] = {}
    for index, gate in enumerate(limits):
        for fact in facts.find(report, gate.metric, **gate.scope):
            key = (gate.metric, *sorted(fact.scope.items()))
            upper, bound = _absolute(gate, fact.value.value)
            known = bounds.setdefault(key, {}).get(upper)
            if known is None or (bound < known[0] if upper else bound > known[0]):
                bounds[key][upper] = (bound, index)
    for sides in bounds.values():
        if True in sides and False in sides and sides[False][0] > sides[True][0]:
            low, high = limits[sides[False][1]], limits[sides[True][1]]
            raise RecipeError(
                "tune.limits-contradict",
                f"no model can hold both `{low.comparison} {low.limit}` and `{high.comparison} {high.limit}` "
                f"of `{low.metric}`",
                cause=_why(low, high, sides[False][0], sides[True][0]),
                hint="widen one of the two",
                option=("tune", "limits", sides[True][1]),
            )


def _absolute(gate: Gate, original: float) -> tuple[bool, float]:
    """Whether the gate bounds from above, and the bound in the metric's own unit."""
    limit = float(gate.limit)
    match gate.comparison:
        case "max_ratio" | "min_ratio":
            bound = limit * original
        case "max_increase":
            bound = original + limit
        case "max_drop":
            # A drop bounds from below: the value must stay above.
            return False, original - limit
        case _:
            bound = limit
    return gate.comparison in _UPPER, bound


def _why(low: Gate, high: Gate, least: float, most: float) -> str:
    kind = metrics.of(low.metric).kind
    return f"with this original they mean at least {words.value(least, kind)} and at most {words.value(most, kind)}"
