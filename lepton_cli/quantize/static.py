"""`quantize.static`: from a float model and calibration data to the best int8 model for the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from lepton_cli.data.dataset import Dataset
from lepton_cli.errors import DataError
from lepton_cli.graph.select import select
from lepton_cli.quantize import choose, guard, qdq, ranges, refine, remembered, speed, tables, targets
from lepton_cli.quantize.fidelity import Fidelity
from lepton_cli.quantize.prepare import matmul_to_gemm, prepare, unshare
from lepton_cli.steps.base import Context, Decision, Outcome

if TYPE_CHECKING:
    from lepton_cli.steps.quantize_static import Params


def quantize(model: ir.Model, params: Params, context: Context) -> Outcome:
    """The quantized model with decisions per node.

    Raises ModelError for models that are quantized already, DataError without usable calibration data.
    """
    target = targets.resolve(params.target, context.provider)
    prepared = prepare(model, context)
    work = prepared.model
    allowed = select(prepared.names, params.include, params.exclude)
    matmul_to_gemm(work)
    choice = choose.candidates(work, allowed)
    unshare(work, choice.anchors)
    if context.dry or not choice.anchors:
        details = {"target": target.name, "why": target.why}
        summary = f"{len(choice.anchors)} of {len(choice.anchors) + len(choice.kept)} matrix operators to int8"
        count = len(choice.anchors) if context.dry else 0
        return Outcome(model, count, _decisions(work, choice, target), summary, details, prepared.warnings)
    found = ranges.collect(work, choose.activations(work, choice), _data(context), context)
    choice = choose.refine(work, choice, found.limits("minmax"), found.masked())
    if not choice.anchors:
        summary = "nothing to quantize is left"
        return Outcome(model, 0, _decisions(work, choice, target), summary, {"target": target.name, "why": target.why})
    return _Run(work, choice, found, target, params, context).outcome(allowed, prepared.warnings)


def _data(context: Context) -> Dataset:
    if context.calibration is None:
        raise DataError(
            "data.missing",
            "static quantization needs calibration data",
            hint="give `data: {calibration: ...}` in the recipe, or use `quantize.dynamic`, which needs none",
        )
    return context.calibration


class _Run:
    """One quantization: speed first (which nodes), then accuracy (ranges and weights), then the guards."""

    def __init__(
        self,
        model: ir.Model,
        choice: choose.Choice,
        found: ranges.Ranges,
        target: targets.Target,
        params: Params,
        context: Context,
    ) -> None:
        self.model, self.choice, self.found = model, choice, found
        self.target, self.params, self.context = target, params, context
        self.fidelity = Fidelity(model, context)
        self.warnings: list[str] = []
        self.details: dict[str, Any] = {"target": target.name, "why": target.why}

    def outcome(self, allowed: set[str], warnings: tuple[str, ...]) -> Outcome:
        """Quantize, and say all that happened."""
        if self.params.speed_guard:
            self._spare_slow_layers()
            if not self.choice.anchors:
                decisions = _decisions(self.model, self.choice, self.target)
                return Outcome(self.model, 0, decisions, "int8 pays nowhere", self.details, (*warnings, *self.warnings))
        best = refine.best(
            self.model,
            self.choice,
            self.found,
            self.target,
            self.params,
            self.fidelity,
            _data(self.context),
            self.context,
        )
        made = best.write(self.choice)
        if self.params.accuracy_guard is not None:
            made = self._hold_accuracy(best)
        made, stored = tables.shrink(made, allowed)
        self.details |= best.details
        self.details["sqnr_db"] = round(self.fidelity.sqnr(made), 2)
        self.details["placement"] = placed = speed.placement(made, self.context)
        self._warn(placed)
        decisions = (*_decisions(self.model, self.choice, self.target), *stored)
        kept = sum(1 for decision in decisions if decision.action == "kept")
        summary = (
            f"{len(self.choice.anchors)} matrix operators in int8, {kept} kept in float, "
            f"fidelity {self.details['sqnr_db']} dB"
        )
        changed = len(self.choice.nodes) + len(stored)
        return Outcome(made, changed, decisions, summary, self.details, (*warnings, *self.warnings))

    def _write(self, choice: choose.Choice) -> ir.Model:
        """A quick version: speed depends on the nodes chosen, not on their values."""
        limits = self.found.limits("minmax")
        return qdq.write(self.model, qdq.Plan(self.target, choice, limits, activations=self.params.activations))

    def _spare_slow_layers(self) -> None:
        reason = targets.runs_here(self.target)
        if reason is not None:
            self.warnings.append(f"speed not measured: {reason}")
            return
        feeds = next(iter(ranges.calibration_batches(self.model, _data(self.context), self.context.batch))).feeds
        with self.context.progress.stage("speed of int8 layers") as stage:
            self.choice, measured = remembered.decide(
                self.model,
                self.choice,
                self.target,
                self.context,
                lambda: speed.faster_choice(self.model, self.choice, self._write, feeds, self.context),
            )
            stage.note(f"{measured['speedup']}x")
        self.details["speed"] = measured
        if measured["speedup"] < 1:
            self.warnings.append(
                f"int8 does not pay here: {measured['speedup']}x the speed of float at batch {self.context.batch}; "
                "keep the float model, or try `quantize.dynamic` or `quantize.weights` for size alone"
            )

    def _hold_accuracy(self, best: refine.Best) -> ir.Model:
        score, wanted = self.context.score, self.params.accuracy_guard
        assert wanted is not None
        if score is None:
            raise DataError(
                "data.labels-missing",
                "`accuracy_guard` needs labelled evaluation data",
                hint="give `data: {evaluation: {path: …, labels: …}}` in the recipe",
                option=("accuracy_guard",),
            )
        ranking = guard.sensitivity(self.model, self.choice, best.write, self.fidelity, self.context)
        self.details["sensitivity"] = [
            {"node": ", ".join(entry.nodes), "op": entry.op, "sqnr_db": round(entry.sqnr_db, 2)} for entry in ranking
        ]
        self.choice, made, self.details["accuracy_guard"] = guard.hold(
            self.model, self.choice, best.write, ranking, score, wanted.max_drop
        )
        if not self.details["accuracy_guard"]["holds"]:
            self.warnings.append(f"accuracy_guard: no choice of layers loses at most {wanted.max_drop}")
        return made

    def _warn(self, placed: dict[str, Any]) -> None:
        if not self.target.int8_kernels:
            self.warnings.append(
                f"target `{self.target.name}`: {self.target.why}; these nodes fall back to the CPU: use `convert.fp16`"
            )
        if self.target.name == "x86-vnni":
            self.details["portability"] = "saturates on x86 without VNNI: use `target: x86` for such machines"
        float_ones = {d.node for d in self.choice.kept}
        if placed["float"] > len(float_ones) and targets.runs_here(self.target) is None:
            self.warnings.append(
                f"onnxruntime runs {placed['float']} matrix operators in float although {len(float_ones)} were left so"
            )


def _decisions(model: ir.Model, choice: choose.Choice, target: targets.Target) -> tuple[Decision, ...]:
    quantized = [
        Decision(node=node.name or "", op=node.op_type, action="quantized", reason=_why(node, choice, target))
        for node in model.graph
        if node.name in choice.nodes
    ]
    return (*quantized, *choice.kept)


def _why(node: ir.Node, choice: choose.Choice, target: targets.Target) -> str:
    if node.name in choice.anchors:
        return f"{target.activation} activations, int8 weights per channel"
    return "keeps the int8 region around it together"
