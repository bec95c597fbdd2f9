"""Accuracy without training: each known repair is tried, measured on calibration data, and kept where it helps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import onnx_ir as ir

from lepton_cli.data.dataset import Dataset
from lepton_cli.model import io
from lepton_cli.probe import channels, clipping
from lepton_cli.probe.calibration import Ranges
from lepton_cli.probe.calibration import collect as collect_ranges
from lepton_cli.probe.clipping import Range
from lepton_cli.probe.distances import Reference
from lepton_cli.quantize import choose, equalise, kernels, moments, qdq, rounding, smooth
from lepton_cli.quantize.details import EqualiseSkipped, Repaired
from lepton_cli.quantize.effort import EFFORTS
from lepton_cli.quantize.spec import QuantizeStatic
from lepton_cli.quantize.targets import Target
from lepton_cli.step import Context

#: A repair is kept when the outputs come closer by at least this much.
WORTH_DB = 0.2
#: Share of their unevenness that channels lose when they are equalised; the weights keep the rest.
STRENGTH = 0.5
#: Equalised float models must compute the same as before, to this precision.
SAME_DB = 80.0


@dataclasses.dataclass(frozen=True)
class Best:
    """Everything needed to write the quantized model for any subset of nodes; `exact`: the model before rounding."""

    model: ir.Model
    exact: ir.Model
    plan: qdq.Scheme
    details: Repaired
    #: Names of the repairs that it is made by.
    repairs: frozenset[str]
    #: Whether zeros may be added to the weights for speed.
    larger: bool

    def write(self, choice: choose.Choice) -> ir.Model:
        """The quantized model when the nodes of `choice` are int8."""
        floats, plan = self.floats(choice), dataclasses.replace(self.plan, choice=choice)
        made = qdq.write(floats, plan) if floats is self.model else qdq.put(floats, plan)
        return kernels.fit(made, self.plan.target, larger=self.larger)

    def floats(self, choice: choose.Choice) -> ir.Model:
        """The model from which that is written: rounded are the weights of the nodes of `choice` alone."""
        if self.model is self.exact or choice.anchors == self.plan.choice.anchors:
            return self.model
        copy, exact = io.clone(self.model), self.exact.graph.initializers
        for node in copy.graph:
            if node.name in self.plan.choice.anchors - choice.anchors:
                for value in node.inputs[1:]:
                    before = None if value is None else exact.get(value.name or "")
                    if value is not None and before is not None:
                        value.const_value = before.const_value
        return copy


def best(
    model: ir.Model,
    choice: choose.Choice,
    found: Ranges,
    target: Target,
    options: QuantizeStatic,
    fidelity: Reference,
    data: Dataset,
    context: Context,
    repairs: frozenset[str] | None = None,
) -> Best:
    """Equalise, smooth, choose ranges, round: in this order, each judged by the SQNR of the outputs.

    `repairs`: which of them, decided before; then nothing is judged.
    """
    search = _Repairs(model, choice, found, target, options, fidelity, data, context, repairs)
    search.equalise()
    search.smooth()
    search.ranges()
    exact = search.model
    search.round()
    larger = options.prefer != "size"
    return Best(search.model, exact, search.plan(), search.details(), frozenset(search.kept), larger)


class _Repairs:
    def __init__(
        self,
        model: ir.Model,
        choice: choose.Choice,
        found: Ranges,
        target: Target,
        options: QuantizeStatic,
        fidelity: Reference,
        data: Dataset,
        context: Context,
        decided: frozenset[str] | None = None,
    ) -> None:
        self.model, self.choice, self.found = model, choice, found
        self.target, self.options, self.fidelity = target, options, fidelity
        self.data, self.context = data, context
        self.decided, self.kept = decided, set[str]()
        self.levels = 65536 if options.activations == "int16" else 256
        self.method: clipping.Method = options.calibration or "minmax"
        self.limits: dict[str, Range] = found.limits(self.method, self.levels)
        self.scales: dict[str, Any] = {}
        self.score = -math.inf
        self.score = self._score(model, self.limits, self.scales)
        self.repairs: dict[str, float | None] = {"none": round(self.score, 2)}
        self.skipped: EqualiseSkipped | None = None
        self.equalised: int | None = None
        self.smoothed: int | None = None
        self.rounding: str | None = None

    def details(self) -> Repaired:
        """What was tried, and what of it is in the plan."""
        return Repaired(
            repairs=self.repairs,
            equalise_skipped=self.skipped,
            equalised=self.equalised,
            smoothed=self.smoothed,
            calibration=self.method,
            rounding=self.rounding,
        )

    def plan(self) -> qdq.Scheme:
        return qdq.Scheme(self.target, self.choice, self.limits, self.scales, self.options.activations)

    def _score(self, model: ir.Model, ends: dict[str, Range], scales: dict[str, Any], insists: bool = False) -> float:
        """SQNR in dB; of the first samples alone where these settle that it is not worth it, unless it `insists`."""
        if self.decided is not None:
            return math.nan
        plan = qdq.Scheme(self.target, self.choice, ends, scales, self.options.activations)
        wanted = -math.inf if insists else self.score + WORTH_DB
        return self.fidelity.closeness(qdq.write(model, plan), EFFORTS[self.options.effort].few, wanted).sqnr_db

    def _kept(self, name: str, score: float, insists: bool = False) -> bool:
        """Record a trial; whether it is worth keeping, or must be kept."""
        self.repairs[name] = round(score, 2)
        worth = score > self.score + WORTH_DB if self.decided is None else name in self.decided
        if worth or insists:
            self.kept.add(name)
        return worth or insists

    def _dropped(self, *names: str) -> bool:
        """Whether it was decided before to do without all of these."""
        return self.decided is not None and not self.decided & set(names)

    def equalise(self) -> None:
        """Cross-layer equalisation of Conv pairs."""
        if self.options.equalise is False or self._dropped("equalise"):
            return
        pairs = equalise.pairs(self.model, self.choice)
        if clipped := equalise.clipped(self.model, self.choice):
            self.skipped = EqualiseSkipped(
                reason="a clip from above (ReLU6) stands between: one bound for all channels cannot be scaled",
                nodes=tuple(clipped),
            )
        scaled = equalise.between(self.model, pairs)
        axes = {name: 1 for names in scaled.values() for name in names}
        ends = channels.collect(self.model, axes, self.data, self.context)
        if self.options.equalise is None and not any(equalise.uneven(ends[pair.tensor]) for pair in pairs):
            return
        trial, count = equalise.equalise(self.model, pairs, ends, STRENGTH)
        if not count or (self.decided is None and self.fidelity.sqnr(trial) < SAME_DB):
            return
        bounds = self.found.bounds
        made = {
            name: clipping.bounded(reach, bounds.get(name, clipping.EVERYTHING))
            for name, reach in equalise.ranges(scaled, ends, STRENGTH).items()
            if name in self.limits
        }
        insists = self.options.equalise is True
        score = self._score(trial, self.limits | made, {}, insists)
        if self._kept("equalise", score, insists):
            self.model, self.score, self.equalised = trial, score, count
            changed = collect_ranges(trial, list(made), self.data, self.context).histograms
            self.found = dataclasses.replace(self.found, histograms=self.found.histograms | changed)
            self.limits = self.found.limits(self.method, self.levels)

    def smooth(self) -> None:
        """Move the spread of MatMul inputs into the weights."""
        names = smooth.readers(self.model, self.choice)
        strengths = [strength for strength in smooth.STRENGTHS if not self._dropped(f"smooth {strength}")]
        if not names or self.options.equalise is False or not strengths:
            return
        ends = channels.collect(self.model, dict.fromkeys(names, -1), self.data, self.context)
        kept: tuple[ir.Model, dict[str, Range]] | None = None
        for strength in strengths:
            trial, made = smooth.smooth(self.model, self.choice, ends, strength)
            if not made:
                return
            score = self._score(trial, self.limits | made, {})
            if self._kept(f"smooth {strength}", score):
                kept, self.score = (trial, made), score
        if kept is None:
            return
        self.model, made = kept
        self.found.histograms |= collect_ranges(self.model, list(made), self.data, self.context).histograms
        self.limits = self.found.limits(self.method, self.levels)
        self.smoothed = len(made)

    def ranges(self) -> None:
        """The calibration method with the least output error, unless the recipe names one."""
        settled = self.options.calibration or self.levels > 256 or not EFFORTS[self.options.effort].clips
        tried: tuple[clipping.Method, ...] = () if settled else ("percentile", "mse")
        for method in [method for method in tried if not self._dropped(method)]:
            ends = self.found.limits(method, self.levels)
            score = self._score(self.model, ends, {})
            if self._kept(method, score):
                self.method, self.limits, self.score = method, ends, score

    def round(self) -> None:
        """Optimal-brain rounding with bias correction, from the covariance of every layer's input."""
        if self.options.rounding == "nearest" and self.options.bias_correction is False:
            return
        if self._dropped("nearest", "gptq"):
            self.rounding = "nearest"
            return
        known = moments.collect(self.model, self.choice, self.data, self.context)
        made = rounding.apply(
            self.model,
            self.choice,
            known,
            limit=63 if self.target.reduce_range else 127,
            gptq=self.options.rounding != "nearest",
            correct_bias=self.options.bias_correction is not False,
        )
        name = "nearest" if self.options.rounding == "nearest" else "gptq"
        insists = self.options.rounding == "gptq"
        score = self._score(made.model, self.limits, made.scales, insists)
        if self._kept(name, score, insists):
            self.model, self.scales, self.score = made.model, made.scales, score
            self.rounding = name
        else:
            self.rounding = "nearest"
