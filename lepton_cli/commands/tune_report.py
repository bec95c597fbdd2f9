"""What `lepton tune` writes: the best model so far with its recipe and reports, complete at every moment."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from lepton_cli import gates, metrics
from lepton_cli.commands import measuring
from lepton_cli.commands.assemble import INTERRUPTED, recipe_facts
from lepton_cli.commands.job import Job, place_text
from lepton_cli.commands.run import Run
from lepton_cli.commands.trials import Built, save
from lepton_cli.measure import size
from lepton_cli.measure.spec import EvaluateSpec
from lepton_cli.recipe.load import LoadedRecipe, from_dict, write
from lepton_cli.recipe.schema import Gate
from lepton_cli.recipe.tuning import Objective
from lepton_cli.report import facts, headline, render, store
from lepton_cli.report.facts import Fact
from lepton_cli.report.model import (
    Axes,
    Axis,
    Bound,
    FileFacts,
    Narrowed,
    Report,
    StepRecord,
    TrialRow,
    Tune,
    Variant,
)
from lepton_cli.report.trial import Trial, Value
from lepton_cli.tune import front
from lepton_cli.tune.limits import Judge

RECIPE = "recipe.best.yaml"
_HEADER = "# Found by `lepton tune`: lepton compress MODEL -r recipe.best.yaml -o DIR makes the model again.\n"


@dataclasses.dataclass(frozen=True)
class About:
    """What a search is; the fields are those of the report's section `tune`."""

    search: str
    seed: int
    space: dict[str, tuple[Value, ...]]
    dropped: tuple[str, ...]
    seconds: float | None = None
    overhead: float | None = None


@dataclasses.dataclass
class Publisher:
    """Writes results into the output folder. `limits_at`: where in the recipe the limits stand."""

    job: Job
    judge: Judge
    output: Path
    run: Run
    limits_at: str
    about: About
    #: Shown on the front: what is made small, and what is kept.
    axes: tuple[Objective, Objective]

    def recipe(self, steps: Sequence[Mapping[str, JsonValue]]) -> LoadedRecipe:
        """The recipe with these steps, and the limits as its gates."""
        spec = self.job.spec
        plain = spec.model_dump(mode="json", exclude_defaults=True, include={"seed", "data", "evaluate", "output"})
        for source in (plain.get("data") or {}).values():
            for key in ("path", "loader"):
                if source.get(key):
                    source[key] = os.path.relpath(self.job.recipe.base / source[key], self.output)
        limits = [gate.model_dump(mode="json", exclude_defaults=True) for gate in self.judge.limits]
        made = {"version": 1, "name": self.job.recipe.name, **plain, "steps": list(steps)}
        return from_dict({**made, "gates": limits} if limits else made, "(tuned recipe)")

    def provisional(self, trial: Trial, built: Built, trials: Sequence[Trial], *, interrupted: bool = False) -> Report:
        """The report of the best so far, from its trial; writes model, recipe and reports."""
        sha256 = self._save(trial, built)
        loaded = self.job.loaded
        original = Variant(
            name="original",
            file=FileFacts(path=str(loaded.path), sha256=loaded.sha256, name=loaded.model.graph.name or ""),
            size=self.judge.original,
            memory=self.judge.memory,
        )
        made = FileFacts(path=str(self.path), sha256=sha256, name=loaded.model.graph.name or "")
        found = size.measure(self.path, built.model, macs=self.job.macs(built.model))
        report = self._report(
            trial,
            trials,
            steps=built.records,
            variants=(original, Variant(name="compressed", file=made, size=found, memory=trial.memory)),
            accuracy=trial.accuracy,
            latency=trial.latency,
            cost=trial.cost,
        )
        update: dict[str, Any] = {"complete": False}
        if interrupted:
            update |= {"status": "interrupted", "error": INTERRUPTED}
        return self._write(report.model_copy(update=update))

    def final(
        self, trial: Trial, built: Built, trials: Sequence[Trial], measured: measuring.Measured, ended: str
    ) -> Report:
        """The finished report, from full measurements; writes model, recipe and reports."""
        self._save(trial, built)
        return self._write(self.judged(trial, trials, built.records, measured, ended))

    def judged(
        self,
        trial: Trial,
        trials: Sequence[Trial],
        records: Sequence[StepRecord],
        measured: measuring.Measured,
        ended: str,
    ) -> Report:
        """The report of full measurements, not yet written."""
        variants = measured.variants
        compressed = variants[-1].model_copy(
            update={"file": variants[-1].file.model_copy(update={"path": str(self.path)})}
        )
        return self._report(
            trial,
            trials,
            ended=ended,
            steps=tuple(records),
            **{**measured.parts(), "variants": (*variants[:-1], compressed)},
        )

    @property
    def path(self) -> Path:
        """The model."""
        return self.output / f"{self.job.recipe.name}.onnx"

    def files(self) -> tuple[Path, ...]:
        """What was written, the most interesting first."""
        reports = (self.output / render.FILES[kind] for kind in self._kinds())
        return tuple(path for path in (self.path, self.output / RECIPE, *reports) if path.exists())

    def _kinds(self) -> tuple[render.ReportFormat, ...]:
        return tuple(dict.fromkeys((*self.job.spec.output.reports, "json")))

    def _save(self, trial: Trial, built: Built) -> str:
        from lepton_cli.model import io

        recipe = self.recipe(trial.steps)
        files = save(built.model, self.path, self.job, recipe_sha256=recipe.sha256)
        store.write_text(_HEADER + _yaml(recipe), self.output / RECIPE)
        return io.hash_files(files)

    def _report(self, trial: Trial, trials: Sequence[Trial], *, ended: str = "", **parts: Any) -> Report:
        steps: Sequence[StepRecord] = parts["steps"]
        warnings = [f"{step.step}: {text}" for step in steps for text in step.warnings]
        warnings += self._unmet(trials)
        report = self.run.report(
            environment=self.judge.environment,
            recipe=recipe_facts(self.recipe(trial.steps)),
            data=self.job.data_facts(),
            warnings=warnings,
            tune=self.summary(trial, trials, ended),
            **parts,
        )
        verdicts = gates.judge(
            [gate for gate in self.judge.limits if _measured(gate.metric, report)], report, places=self._place
        )
        return report.model_copy(update={"gates": verdicts, "status": gates.status(verdicts)})

    def _unmet(self, trials: Sequence[Trial]) -> list[str]:
        """What to say when no trial holds the limits."""
        if self.judge.best(trials) is not None:
            return []
        nearest = self.judge.nearest(trials)
        if nearest is None:
            return []
        broken = "; ".join(breach.text for breach in self.judge.breaches(nearest))
        return [f"no candidate meets the limits; the nearest, {nearest.name}, breaks {broken}"]

    def _place(self, index: int) -> str:
        return place_text(self.job.recipe.source.place((*self.limits_at.split("."), index)))

    def summary(self, chosen: Trial, trials: Sequence[Trial], ended: str) -> Tune:
        """The front, every trial in short, and the records that `--from` reads."""
        cost, quality = self.axes
        rows = [self._row(trial) for trial in trials]
        drawn = [
            (index, (row.cost, row.quality))
            for index, row in enumerate(rows)
            if row.cost is not None and row.quality is not None
        ]
        for position in front.pareto([pair for _, pair in drawn]):
            index = drawn[position][0]
            rows[index] = rows[index].model_copy(update={"front": True})
        return Tune(
            **dataclasses.asdict(self.about),
            goal=Narrowed(**self.judge.goal.model_dump()),
            limits=tuple(f"{g.metric} {g.comparison} {g.limit}" for g in self.judge.limits),
            bounds=tuple(self._placed(gate, (chosen, *trials)) for gate in self.judge.limits),
            axes=Axes(cost=axis(cost, self.job.spec.evaluate), quality=axis(quality, self.job.spec.evaluate)),
            best=chosen.key,
            met=self.judge.feasible(chosen),
            ended=ended,
            nearest=self.judge.nearest_by_limit(trials),
            trials=tuple(rows),
            records=tuple(trial for trial in trials if trial.begun),
        )

    def _placed(self, gate: Gate, trials: Sequence[Trial]) -> Bound:
        """The limit, and where it lies on the axis of its metric: by what the first trial that tells has measured."""
        plain = bound(gate)
        if gate.level != "error" or gate.against != "original":
            return plain
        for name, shown in zip(("cost", "quality"), self.axes, strict=True):
            if gate.metric != shown.metric:
                continue
            for trial in trials:
                # What was measured on a part of the samples has another original.
                found = facts.find(self.judge.report(trial), shown.metric, **shown.scope) if _full(trial) else ()
                if found and gate.scope.items() <= found[0].scope.items():
                    at = _on_axis(gate, found[0])
                    return plain if at is None else plain.model_copy(update={"axis": name, "at": at})
        return plain

    def _row(self, trial: Trial) -> TrialRow:
        return TrialRow(
            key=trial.key,
            name=trial.name,
            origin=trial.origin,
            point=trial.point,
            steps=trial.steps,
            reached=trial.reached,
            reason=trial.reason,
            feasible=self.judge.feasible(trial),
            cost=self.judge.value(trial, self.axes[0]),
            quality=self.judge.value(trial, self.axes[1]) if _full(trial) else None,
            file=trial.size.file if trial.size else None,
            seconds=round(trial.seconds, 2),
            front=False,
            why=trial.why,
            forecast=trial.forecast,
            margins=self.judge.margins(trial),
        )

    def _write(self, report: Report) -> Report:
        report = report.model_copy(update={"headline": headline.headline(report)})
        for kind in self._kinds():
            store.write_text(render.render(report, kind), self.output / render.FILES[kind])
        return report


def _measured(metric: str, report: Report) -> bool:
    """Whether a gate on it can be judged: not everything is measured in a trial."""
    return bool(facts.find(report, metric)) or facts.skipped(report, metric) is not None


def _full(trial: Trial) -> bool:
    """Whether its quality was measured on all samples."""
    return trial.reached in ("accuracy", "latency")


def axis(objective: Objective, measured: EvaluateSpec) -> Axis:
    """The side of the front that shows the objective."""
    metric = metrics.of(objective.metric)
    return Axis(
        **objective.model_dump(include={"metric", *metrics.SCOPE}),
        higher_is_better="higher" in measured.directions(objective.metric, objective.output),
        kind="ratio" if metric.varies else metric.kind,
    )


def bound(gate: Gate) -> Bound:
    """The limit as a report holds it, not placed on an axis."""
    scope = gate.model_dump(include={"metric", *metrics.SCOPE})
    return Bound.model_validate({**scope, "comparison": gate.comparison, "limit": float(gate.limit)})


def _on_axis(gate: Gate, fact: Fact) -> float | None:
    """The limit as the axis counts: lower is better, times as ratios to the original."""
    limit, sign = float(gate.limit), -1.0 if fact.about.better == "higher" else 1.0
    original = None if fact.difference is None else fact.value.value - fact.difference.value
    if fact.about.varies and fact.ratio is not None and fact.ratio.value:
        original = fact.value.value / fact.ratio.value
    match gate.comparison:
        case "max" | "min":
            value: float | None = limit
        case "max_ratio" | "min_ratio":
            value = None if original is None else limit * original
        case "max_drop":
            value = None if original is None else original - limit
        case _:
            value = None if original is None else original + limit
    if value is None or (fact.about.varies and not original):
        return None
    return sign * (value / original if fact.about.varies and original else value)


def _yaml(recipe: LoadedRecipe) -> str:
    """The recipe with what differs from the defaults."""
    plain = recipe.recipe.model_dump(mode="json", exclude_defaults=True)
    plain = {"version": 1, "name": recipe.name, **{k: v for k, v in plain.items() if k not in ("version", "name")}}
    return write(plain)
