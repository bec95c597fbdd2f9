"""What trials are expected to measure: an outlook for every yardstick, from the trials so far."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_cli.report.trial import Band, Forecast, Trial, Value
from lepton_cli.tune.candidate import Point
from lepton_cli.tune.known import Figures, Proposal
from lepton_cli.tune.limits import Judge
from lepton_cli.tune.outlook import Features, Observation, Outlook
from lepton_cli.tune.yardsticks import Yardstick, comparison

#: What a point holds besides choices: where the candidate lies by tables or its draft.
PLACED = ("loss", "time", "bytes", "parameters", "macs")
#: Choices that may change what a candidate measures, besides precision and training.
_OPTIONS = ("fuse", "importance", "round_to", "branches", "guard", "calibration", "prefer", "block_size")
#: Standard errors of figures, relatively: of widths by tables, of a precision before its draft.
_BY_TABLES, _GUESSED = 0.02, 0.3
#: How far what is counted on a draft may be from what trials found; beyond it, the standard error of what they correct
#: it to, as a share of the correction.
_EXACT, _DOUBT = 0.01, 0.3
#: Losses of quality are compared with this many times what matters, where nothing is known yet.
_MANY = 5.0


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Of one proposal. `gain`: how much better than the best it is expected to be where it holds, as a share of it."""

    figures: Figures
    chance: float
    gain: float


class Forecasts:
    """Outlooks of limits and goal."""

    def __init__(self, judge: Judge, bounds: Sequence[Yardstick], goal: Yardstick) -> None:
        self.judge, self.bounds, self.goal = judge, bounds, goal
        self._outlooks: dict[Yardstick, Outlook] = {}
        self._learnt: tuple[str, ...] | None = None
        self._ratios: dict[tuple[Value, Yardstick], list[float]] = {}

    def learn(self, trials: Sequence[Trial]) -> None:
        """Take in the trials, where there are new ones."""
        keys = tuple(f"{trial.key} {trial.reached}" for trial in trials)
        if keys == self._learnt:
            return
        self._learnt = keys
        self._ratios = {}
        placed = [(trial, _features(trial.point)) for trial in trials if "loss" in trial.point]
        for one in {*self.bounds, self.goal}:
            seen = []
            for trial, features in placed:
                read = one.read(self.judge.report(trial))
                if read is not None and math.isfinite(read[0]):
                    seen.append(Observation(features, *read))
                    foretold = features.bytes if one.counted == "bytes" else features.time
                    varies = one.counted in ("", "bytes") and not one.about.quality
                    if foretold > 0 and varies:
                        self._ratios.setdefault((features.precision, one), []).append(read[0] / foretold)
            if not one.counted:
                self._outlooks[one] = Outlook(one.quantity, seen)

    def off(self, precision: Value, one: Yardstick) -> float:
        """How much more than its draft a candidate of that precision takes, by the trials: a guard leaves layers in
        float, which a draft does not know."""
        found = statistics.median(self._ratios.get((precision, one), [1.0]))
        return 1.0 if one.counted and abs(found - 1) < _EXACT else found

    def found(self, trial: Trial, one: Yardstick) -> float | None:
        """What a trial has of a yardstick."""
        read = one.read(self.judge.report(trial))
        return None if read is None else read[0]

    def settled(self, trial: Trial, one: Yardstick) -> float | None:
        """The same, of a time together with all that is known: one that a busy machine made look short is no mark that
        others have to beat."""
        value = self.found(trial, one)
        if value is None or one not in self._outlooks or not one.about.varies or "loss" not in trial.point:
            return value
        return max(value, float(self._outlooks[one].expect([_features(trial.point)]).mean[0]))

    def written(self, proposal: Proposal, figures: Figures) -> dict[str, Value]:
        """Where a candidate lies, as its point holds it."""
        macs = figures.macs if proposal.prospect is None else proposal.prospect.macs
        parameters = figures.parameters if proposal.prospect is None else proposal.prospect.parameters
        loss = 0.0 if proposal.prospect is None else figures.loss
        numbers = (loss, figures.time, figures.bytes, parameters, macs)
        return {name: float(f"{number:.5g}") for name, number in zip(PLACED, numbers, strict=True)}

    def predict(self, proposals: Sequence[tuple[Proposal, Figures]], best: float | None) -> list[Prediction]:
        """What is expected of each. `best`: the goal so far."""
        if not proposals:
            return []
        figures = [found for _, found in proposals]
        features = [self._placed(*one) for one in proposals]
        chances = np.ones(len(proposals))
        for one in self.bounds:
            chances *= self._held(one, features, figures)
        gains = self._gained(features, figures, best)
        zipped = zip(figures, chances, gains, strict=True)
        return [Prediction(found, float(chance), float(gain)) for found, chance, gain in zipped]

    def forecast(self, proposal: Proposal, prediction: Prediction) -> Forecast:
        """The same for a report, with what is expected of every limit."""
        limits: list[Band | None] = [None] * len(self.judge.limits)
        for one in self.bounds:
            if one.index is not None:
                limits[one.index] = one.shown(
                    self._band(one, proposal, prediction.figures), comparison(self.judge, one)
                )
        goal = self.goal.shown(self._band(self.goal, proposal, prediction.figures), None)
        return Forecast(chance=round(prediction.chance, 4), goal=goal, limits=tuple(limits))

    def _band(self, one: Yardstick, proposal: Proposal, figures: Figures) -> Band:
        if one.counted:
            (value,), (error,) = self._counted(one, [self._placed(proposal, figures)], [figures])
            return Band(value=value, low=value - 1.96 * error, high=value + 1.96 * error)
        expected = self._outlooks[one].expect([self._placed(proposal, figures)])
        value, low = float(expected.mean[0]), float(expected.low[0])
        if one.about.kind == "decibel":  # an error is not below zero
            value, low = value + float(expected.gain(0.0)[0]), max(low, 0.0)
        return Band(value=value, low=low, high=float(expected.high[0]))

    def _placed(self, proposal: Proposal, figures: Figures) -> Features:
        return _features({**proposal.point, **self.written(proposal, figures)}, pruned=proposal.prospect is not None)

    def _counted(
        self, one: Yardstick, features: Sequence[Features], figures: Sequence[Figures]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What follows from the graph, and its standard error: exact of a draft that trials have not contradicted."""
        off = np.array([self.off(place.precision, one) for place in features])
        values = off * [getattr(found, one.counted) for found in figures]
        doubt = [0.0 if found.drafted else _BY_TABLES if found.told else _GUESSED for found in figures]
        return values, values * np.hypot(doubt, _DOUBT * np.log(off))

    def _held(self, one: Yardstick, features: Sequence[Features], figures: Sequence[Figures]) -> NDArray[np.float64]:
        """The chance that each holds a limit."""
        if one.counted:
            pairs = zip(*self._counted(one, features, figures), strict=True)
            return np.array([_below(one.bound, value, error) for value, error in pairs])
        return self._outlooks[one].expect(features).below(one.bound)

    def _gained(
        self, features: Sequence[Features], figures: Sequence[Figures], best: float | None
    ) -> NDArray[np.float64]:
        """How much better than the best each is expected to be, as a share of it; of a quality in units that matter."""
        goal = self.goal
        if goal.about.quality:
            unit = getattr(goal.quantity, "unit", 1.0)
            reference, scale = (_MANY * unit, unit) if best is None else (best, unit)
        else:
            reference = scale = 1.0 if best is None else best
        if goal.counted:
            return np.asarray(np.maximum(reference - self._counted(goal, features, figures)[0], 0.0) / scale)
        return self._outlooks[goal].expect(features).gain(reference) / scale


def _features(point: Point, *, pruned: bool = True) -> Features:
    def number(name: str, otherwise: float) -> float:
        value = point.get(name)
        return float(value) if isinstance(value, (int, float)) else otherwise

    loss = number("loss", 0.0)
    unpruned = not loss or not pruned
    options = tuple(
        (name, point.get(name))
        for name in _OPTIONS
        if not (unpruned and name in ("importance", "round_to", "branches"))
    )
    return Features(
        precision=str(point["precision"]),
        loss=loss,
        time=number("time", 1.0),
        bytes=number("bytes", 1.0),
        trained=0.0 if unpruned else number("distill", 0.0),
        options=options,
    )


def _below(bound: float, value: float, error: float) -> float:
    if error <= 0:
        return float(value <= bound * (1 + 1e-9))
    return 0.5 * math.erfc((value - bound) / error / math.sqrt(2))
