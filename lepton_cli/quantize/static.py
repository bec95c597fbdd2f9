"""`quantize.static`: from a float model and calibration data to the best int8 model for the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from lepton_cli.data.dataset import Dataset
from lepton_cli.errors import DataError
from lepton_cli.graph.select import select
from lepton_cli.probe import activations, calibration
from lepton_cli.probe.clipping import Range
from lepton_cli.probe.distances import Closeness, Reference
from lepton_cli.quantize import (
    alternatives,
    attention,
    choose,
    cpu,
    fates,
    forms,
    guard,
    kernels,
    profiling,
    qdq,
    refine,
    saturation,
    speed,
    tables,
    targets,
)
from lepton_cli.quantize.details import (
    Guard,
    Placement,
    Portability,
    QuantizeStaticDetails,
    Saturated,
    Speed,
)
from lepton_cli.quantize.effort import EFFORTS
from lepton_cli.quantize.prepare import cleaned, prepare, refuse_quantized, share
from lepton_cli.quantize.spec import QuantizeStatic
from lepton_cli.runtime import Values
from lepton_cli.step import Context, Decision, Outcome

#: A layer that would lose this much on another machine is worth a warning.
POOR_DB = 30.0


def quantize(model: ir.Model, options: QuantizeStatic, context: Context) -> Outcome:
    """The quantized model with decisions per node.

    Raises ModelError for models with int8 activations (one step takes all of them) and where nothing is left in float,
    DataError without usable calibration data.
    """
    if options.accuracy_guard is not None and context.score is None and not context.dry:
        raise DataError(
            "data.labels-missing",
            "`accuracy_guard` needs labelled evaluation data",
            hint="give `data: {evaluation: {path: …, labels: …}}` in the recipe",
            option=("accuracy_guard",),
        )
    target = targets.resolve(options.target, context.provider)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.all_nodes()):
        refuse_quantized(model)
    allowed = select((node.name or "" for node in model.graph.all_nodes()), options.include, options.exclude)
    if not context.dry and context.calibration is None:
        anchors = choose.candidates(clean := cleaned(model), allowed).anchors
        if anchors:
            _data(context, dynamic=any(node.name in anchors and node.op_type != "Conv" for node in clean.graph))
    excluded = forms.names(model) - allowed
    prepared = prepare(model, context, *forms.rewrites(excluded, target))
    work = prepared.model
    # What preparation makes of allowed nodes is allowed too.
    allowed = forms.names(work) - excluded
    choice = choose.candidates(work, allowed)
    told = QuantizeStaticDetails(target=target.name, why=target.why)

    def written(ranges: Mapping[str, Range]) -> tuple[ir.Model, list[Decision]]:
        """What `choice` makes of it, but for what loses time in int8 and for repairs."""
        made = qdq.write(work, qdq.Scheme(target, choice, ranges, activations=options.activations))
        return _stored(kernels.fit(made, target, larger=options.prefer != "size"), allowed)

    if context.dry or not choice.anchors:
        summary = f"{len(choice.anchors)} of {len(choice.anchors) + len(choice.kept)} matrix operators to int8"
        if not choice.anchors:
            refuse_quantized(model)
        made_up = {name: (-1.0 - n / 100, 1.0) for n, name in enumerate(choose.activations(work, choice))}  # none alike
        planned, stored = written(made_up) if choice.anchors else (model, [])
        count = len(choice.nodes) + len(stored)
        decisions = (*_decisions(work, choice, target), *stored)
        return _complete(Outcome(planned, count, decisions, summary, told, prepared.warnings), work)
    rewritten = attention.decisions(work, forms.names(model))
    if cpu.suits(target):
        work, softened = cpu.soften_masks(work, context)
        rewritten += softened
    found, apart = _ranges(work, choose.activations(work, choice), options, context)
    choice = choose.refine(work, choice, found.limits("minmax"), found.masked())
    if not choice.anchors:
        summary = "the ranges of its tensors forbid int8"
        decisions = _decisions(work, choice, target)
        return _complete(Outcome(model, 0, decisions, summary, told, prepared.warnings, left_because=summary), work)
    if context.draft:
        return Outcome(written(found.limits("minmax"))[0], len(choice.nodes))
    made = _Quantization(model, work, choice, found, apart, target, options, context)
    outcome = made.outcome(allowed, prepared.warnings)
    if outcome.changed:
        outcome = dataclasses.replace(outcome, decisions=(*outcome.decisions, *rewritten))
    return _complete(outcome, work)


def _stored(model: ir.Model, allowed: set[str]) -> tuple[ir.Model, list[Decision]]:
    """With tables in 8 bits, and once what several nodes read: each had got weights of its own to be rounded."""
    made, decisions = tables.shrink(model, allowed)
    share(made)
    return made, decisions


def _complete(outcome: Outcome, model: ir.Model) -> Outcome:
    """With a decision for every other node that holds weights."""
    rest = fates.left_alone(model, outcome.decisions, "static int8 is for Conv, Gemm and MatMul", fates.STATIC)
    return dataclasses.replace(outcome, decisions=(*outcome.decisions, *rest))


def _ranges(
    model: ir.Model, names: Sequence[str], options: QuantizeStatic, context: Context
) -> tuple[calibration.Ranges, calibration.Ranges | None]:
    """Ranges over all calibration data, and those without what a guard may judge by: together one pass."""
    fit, judging = guard.split(context)
    if judging is None or options.accuracy_guard is not None or not options.fidelity_guard:
        return calibration.collect(model, names, _data(context), context), None
    apart = calibration.collect(model, names, _data(fit), context)
    whole = calibration.collect(model, names, judging, context)
    whole.join(apart)
    return whole, apart


def _data(context: Context, dynamic: bool = False) -> Dataset:
    """`dynamic`: there is something that the other way to int8 could take."""
    if context.calibration is None:
        other = ", or use `quantize.dynamic`, which needs none" if dynamic else ""
        raise DataError(
            "data.missing",
            "static quantization needs calibration data",
            hint=f"give `data: {{calibration: ...}}` in the recipe{other}",
        )
    return context.calibration


class _Quantization:
    """One quantization: speed first (which nodes), then accuracy (ranges and weights), then the guards."""

    def __init__(
        self,
        given: ir.Model,
        model: ir.Model,
        choice: choose.Choice,
        found: calibration.Ranges,
        apart: calibration.Ranges | None,
        target: targets.Target,
        options: QuantizeStatic,
        context: Context,
    ) -> None:
        #: `given` is the user's model, `model` the same prepared for int8.
        self.given, self.model, self.choice, self.found, self.apart = given, model, choice, found, apart
        self.target, self.options, self.context = target, options, context
        self.effort = EFFORTS[options.effort]
        self.fidelity = Reference(model, context)
        self.warnings: list[str] = []
        self.ranking: list[guard.GroupSensitivity] | None = None
        self.speed: Speed | None = None
        self.accuracy_guard: Guard | None = None
        self.fidelity_guard: Guard | None = None

    def outcome(self, allowed: set[str], warnings: tuple[str, ...]) -> Outcome:
        """Quantize, and say all that happened."""
        if self.options.speed_guard and self.options.prefer != "size":
            self._spare_slow_layers()
            if not self.choice.anchors:
                return self._as_it_was("int8 pays nowhere on this machine", warnings)
        best = self._best(self.found, self.fidelity, self.context)
        made = best.write(self.choice)
        if self.options.sensitivity or self.options.accuracy_guard is not None:
            self._rank(best)
        if self.options.accuracy_guard is not None:
            made = self._hold_accuracy(best)
        elif self.options.fidelity_guard:
            made = self._hold_fidelity(best, made)
        if not self.choice.anchors:
            return self._as_it_was("int8 costs too much everywhere", warnings)
        made, stored = _stored(made, allowed)
        came = self.fidelity.closeness(made)
        placed = profiling.placement(made, self.context)
        portability = self._portability(best) if self.target.name == "x86-vnni" else None
        self._warn(placed)
        self.warnings += guard.far(came, self.context)
        told = self._told(best, came=came, placement=placed, portability=portability)
        decisions = (*_decisions(self.model, self.choice, self.target), *stored)
        kept = sum(1 for decision in decisions if decision.action == "kept")
        summary = (
            f"{len(self.choice.anchors)} matrix operators in int8, {kept} kept in float, fidelity {came.sqnr_db:.2f} dB"
        )
        changed = len(self.choice.nodes) + len(stored)
        speedup = None if self.speed is None else self.speed.speedup
        return Outcome(made, changed, decisions, summary, told, (*warnings, *self.warnings), speedup=speedup)

    def _as_it_was(self, why: str, warnings: tuple[str, ...]) -> Outcome:
        """What a guard made of it that returned every layer: the model that was given."""
        decisions = _decisions(self.model, self.choice, self.target)
        said = (*warnings, *self.warnings)
        return Outcome(self.given, 0, decisions, why, self._told(), said, left_because=why)

    def _told(
        self,
        best: refine.Best | None = None,
        *,
        came: Closeness | None = None,
        placement: Placement | None = None,
        portability: Portability | None = None,
    ) -> QuantizeStaticDetails:
        """What the report says."""
        return QuantizeStaticDetails(
            target=self.target.name,
            why=self.target.why,
            **({} if best is None else dict(best.details)),
            speed=self.speed,
            accuracy_guard=self.accuracy_guard,
            fidelity_guard=self.fidelity_guard,
            sensitivity=() if self.ranking is None else guard.table(self.ranking, self._rates()),
            **({} if came is None else guard.told(came)),
            placement=placement,
            portability=portability,
        )

    def _write(self, choice: choose.Choice) -> ir.Model:
        """A quick version: speed depends on the nodes chosen, not on their values."""
        limits = self.found.limits("minmax")
        made = qdq.write(self.model, qdq.Scheme(self.target, choice, limits, activations=self.options.activations))
        return kernels.fit(made, self.target)

    def _spare_slow_layers(self) -> None:
        reason = targets.runs_here(self.target)
        if reason is not None:
            self.warnings.append(f"speed not measured: {reason}")
            return
        with self.context.progress.stage("speed of int8 layers") as stage:
            self.choice, self.speed = speed.decided_once(
                self.model,
                self.choice,
                self.target.name,
                self.options.activations,
                self.context,
                self._measure_speed,
                self.effort.prefixes,
                self.options.prefer,
            )
            stage.note(f"{self.speed.speedup}x")
        if self.speed.verdict:
            self.warnings.append(f"{self.speed.verdict}; the int8 model is kept for its size")

    def _measure_speed(self) -> speed.Decided:
        """The layers that pay, and, where even these do not, what the other ways would bring."""
        feeds = self._feeds()
        choice, measured = speed.faster_choice(
            self.model,
            self.choice,
            self._write,
            feeds,
            self.context,
            self.effort.prefixes,
            self.given,
            self.options.prefer == "balance",
        )
        if measured.speedup >= 1:
            return choice, measured
        found = alternatives.measure(self.given, feeds, self.context)
        verdict = (
            f"int8 does not pay here ({measured.speedup}x at batch {self.context.batch}), "
            f"best is {alternatives.best(found)}"
        )
        return choice, measured.model_copy(update={"alternatives": found, "verdict": verdict})

    def _feeds(self) -> Values:
        """What speed is measured with."""
        return next(iter(activations.batches(self.model, _data(self.context), self.context.batch))).feeds

    def _rates(self) -> dict[str, tuple[float | None, float | None]]:
        """GMAC/s of the layers, in int8 and in float, where they were timed."""
        layers = () if self.speed is None else self.speed.layers
        return profiling.rates(self.model, layers, self._feeds()) if layers else {}

    def _hold_accuracy(self, best: refine.Best) -> ir.Model:
        score, wanted = self.context.score, self.options.accuracy_guard
        assert wanted is not None
        assert score is not None
        self.choice, made, self.accuracy_guard = guard.hold(
            self.model,
            self.choice,
            best.write,
            lambda: self._rank(best),
            score,
            wanted.max_drop,
            wide_first=wanted.fallback == "int16",
            effort=self.effort,
        )
        return made

    def _best(
        self, found: calibration.Ranges, fidelity: Reference, context: Context, repairs: frozenset[str] | None = None
    ) -> refine.Best:
        """The repairs that help, judged by `fidelity` unless they are named, fitted to the context's data."""
        data = _data(context)
        return refine.best(self.model, self.choice, found, self.target, self.options, fidelity, data, context, repairs)

    def _rank(self, best: refine.Best) -> list[guard.GroupSensitivity]:
        """Every layer alone, worst first; measured once. For the order alone few samples will do."""
        if self.ranking is None:
            fidelity = self.fidelity if self.options.sensitivity else self.fidelity.first(self.effort.few)
            write, context = best.write, self.context
            self.ranking = guard.sensitivity(self.model, self.choice, write, fidelity, context, self.effort)
        return self.ranking

    def _hold_fidelity(self, best: refine.Best, made: ir.Model) -> ir.Model:
        """Outputs far from the float model's: as many layers go back as that takes, the worst first.

        What is written is fitted to all samples, and has to hold on them. Near the floor that says too little: a fit
        without some of the samples has to hold on these first, with the same layers.
        """
        came, before = self.fidelity.closeness(made), self.choice
        if came.assured_db >= guard.FLOOR_DB + guard.OPTIMISM_DB:
            return made
        fit, judging = guard.split(self.context)
        if judging is None or self.apart is None:
            self.warnings.append(guard.too_few(_data(self.context)))
        else:
            # By the repairs that helped on all samples: to try the others again costs more than it tells.
            judge = Reference(self.model, fit, data=judging)
            self._return_layers(best, self._best(self.apart, judge, fit, best.repairs), judge)
        if self.choice.anchors:
            made = self._return_layers(best, best, self.fidelity, (made, came) if self.choice is before else None)
        self.warnings += guard.many_returned(before, self.choice, came, "matrix operators", "int8")
        return made if self.choice.anchors else self.model

    def _return_layers(
        self, best: refine.Best, fit: refine.Best, fidelity: Reference, first: tuple[ir.Model, Closeness] | None = None
    ) -> ir.Model:
        """What `fit` writes once `fidelity` holds. `first`: what it writes before, and how close that comes."""
        choice, made, told = guard.hold_fidelity(
            self.model, self.choice, fit.write, lambda: self._rank(best), fidelity, "int8", self.effort, first
        )
        if choice.anchors != self.choice.anchors:
            self.choice, self.fidelity_guard = choice, told
        return made

    def _warn(self, placed: Placement) -> None:
        if not self.target.int8_kernels:
            self.warnings.append(
                f"target `{self.target.name}`: {self.target.why}; these nodes fall back to the CPU: use `convert.fp16`"
            )
        # Counted over the whole graph as the kernels are: also operators that are never int8, and products of two
        # activations.
        left = sum(node.op_type in profiling.MATRIX for node in self.model.graph) - len(self.choice.anchors)
        if placed.in_float > left and targets.runs_here(self.target) is None:
            self.warnings.append(
                f"onnxruntime runs {placed.in_float} matrix operators in float although {left} were left so"
            )

    def _portability(self, best: refine.Best) -> Portability:
        """What the same file would lose on an x86 machine without VNNI, simulated."""
        plan = dataclasses.replace(best.plan, choice=self.choice)
        cut = saturation.simulate(best.floats(self.choice), plan, _data(self.context), self.context)
        if not cut or self.options.activations == "int16":
            return Portability(without_vnni="no sum saturated on calibration data")
        worst = cut[0]
        said = (
            f"sums of {len(cut)} layers saturate, worst in `{worst.node}` ({100 * worst.share:.2g} % of the sums, "
            f"{worst.sqnr_db:.0f} dB): use `target: x86` for such machines"
        )
        if worst.sqnr_db < POOR_DB:
            self.warnings.append(f"on x86 without VNNI {said}")
        layers = [Saturated(node=one.node, share=round(one.share, 6), sqnr_db=round(one.sqnr_db, 1)) for one in cut]
        return Portability(without_vnni=said, layers=tuple(layers))


def _decisions(model: ir.Model, choice: choose.Choice, target: targets.Target) -> tuple[Decision, ...]:
    quantized = [
        Decision(node=node.name or "", op=node.op_type, action="quantized", reason=_why(node, choice, target))
        for node in model.graph
        if node.name in choice.nodes
    ]
    return (*quantized, *choice.kept)


def _why(node: ir.Node, choice: choose.Choice, target: targets.Target) -> str:
    if node.name in choice.wide:
        return "16-bit activations by accuracy_guard, int8 weights per channel"
    if node.name in choice.anchors:
        return f"{target.activation} activations, int8 weights per channel"
    return "keeps the int8 region around it together"
