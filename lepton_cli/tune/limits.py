"""Trials against limits and goal: how far each limit is, which is broken by how much, and which trial is better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from lepton_cli import metrics
from lepton_cli.measure.results import Environment, Memory, Size
from lepton_cli.recipe.schema import Gate
from lepton_cli.recipe.tuning import Objective
from lepton_cli.report import facts
from lepton_cli.report.model import FileFacts, Margin, Nearest, Report, Variant
from lepton_cli.report.trial import Trial
from lepton_cli.tune.nearby import nearby
from lepton_cli.tune.readings import Reading, read

_T = TypeVar("_T")


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

    def margins(self, trial: Trial) -> tuple[Margin, ...]:
        """How far every limit is that can be judged by what was measured, one for each number that it bounds.

        `found` is in what the limit compares; `room` in shares of the limit, of at least a point where it is one.
        """
        return tuple(margin for reading in self._read(trial) if (margin := reading.margin) is not None)

    def breaches(self, trial: Trial) -> tuple[Breach, ...]:
        """Limits that what was measured does not hold, the worst first. See `Reading.excess` for what counts."""
        return self._once(trial, ("breaches",), lambda: self._breaches(trial))

    def _breaches(self, trial: Trial) -> tuple[Breach, ...]:
        partial = trial.reached == "proxy"
        found = [
            Breach(reading.gate.metric, excess, reading.breach, reading.index)
            for reading in self._read(trial)
            if (excess := reading.excess(partial=partial))
        ]
        return tuple(sorted(found, key=lambda breach: -breach.excess))

    def _read(self, trial: Trial) -> tuple[Reading, ...]:
        return self._once(trial, ("read",), lambda: read(self.report(trial), self.limits))

    def _once(self, trial: Trial, question: tuple[object, ...], answer: Callable[[], _T]) -> _T:
        if not trial.elapsed:  # not finished, or not measured here
            return answer()
        key = (trial.key, trial.elapsed, *question)
        if key not in self._said:
            self._said[key] = answer()
        found: _T = self._said[key]
        return found

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
        broken = [(self.breaches(trial), trial) for trial in trials if _measured(trial)]
        usable = [(sum(breach.excess for breach in breaches), trial) for breaches, trial in broken if breaches]
        return min(usable, key=lambda pair: (pair[0], pair[1].name))[1] if usable else None

    def nearest_by_limit(self, trials: Iterable[Trial]) -> tuple[Nearest, ...]:
        """Where no trial is within all limits: for each, the trial nearest to it of those that hold the others."""
        known = list(trials)
        if any(self.feasible(trial) for trial in known):
            return ()
        return nearby(self.limits, [(trial, self._read(trial)) for trial in known if _measured(trial)])

    def needs(self, source: metrics.Measurement) -> bool:
        """Whether limits or goal cannot be judged without that measurement."""
        return any(metrics.of(metric).source == source for metric in self.named)

    @property
    def named(self) -> tuple[str, ...]:
        """What limits and goal name."""
        return self.goal.metric, *(gate.metric for gate in self.limits)


def _measured(trial: Trial) -> bool:
    """Whether more is known than its size."""
    return trial.reached in ("accuracy", "latency", "proxy")
