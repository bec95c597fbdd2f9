"""`lepton compress`: check, run the steps, measure, judge, write."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import yaml

from lepton_cli import gates
from lepton_cli.cache import Cache
from lepton_cli.commands import measuring, runner, workspace
from lepton_cli.commands.apart import Trail
from lepton_cli.commands.assemble import broken, recipe_facts, variant
from lepton_cli.commands.job import NOTHING, Job, must_run, place_text, prepare
from lepton_cli.commands.judge import check_baseline, judged
from lepton_cli.commands.resume import Kept
from lepton_cli.commands.run import Arguments, Run
from lepton_cli.errors import (
    DiskFullError,
    LeptonError,
    MeasurementError,
    RecipeError,
    ReportError,
    StepError,
    disk_full,
)
from lepton_cli.model import io
from lepton_cli.progress import Progress
from lepton_cli.recipe.load import LoadedRecipe, write
from lepton_cli.report import baseline as baselines
from lepton_cli.report import render, store
from lepton_cli.report.model import Report, StepRecord
from lepton_cli.step import Context
from lepton_cli.version import __version__

if TYPE_CHECKING:
    from lepton_cli.data.memory import Arrays


@dataclasses.dataclass(frozen=True)
class Compressed:
    """What a run made: the report, the files written in order of interest, and the model, unless it broke off."""

    report: Report
    files: tuple[Path, ...]
    error: LeptonError | None = None
    model: ir.Model | None = None


def compress(
    model: Path | io.LoadedModel,
    recipe: LoadedRecipe,
    output: Path | None,
    progress: Progress,
    *,
    arrays: Mapping[str, Arrays] = NOTHING,
    cache: Cache | None = None,
    allow_code: bool = False,
    strict: bool = False,
    baseline: Path | None = None,
    run: Run | None = None,
    resume: bool = False,
    given: Mapping[str, tuple[int, ...]] | None = None,
) -> Compressed:
    """Run a recipe. Errors before any work raise; errors during work end in a partial report with `error` set.

    `given`: shapes of inputs, batch included, where the recipe has no data.
    `output`: the folder that receives model and reports; `None` writes nothing. `arrays`: see `prepare`. `run`: how it
    was asked for, where that is not by these arguments. `resume`: go on after the last step that an interrupted run of
    the same recipe, model and data finished.
    """
    if recipe.recipe.only_tunes:
        raise RecipeError(
            "recipe.only-tunes",
            "this recipe says what to search for (`tune:`), and has no steps to run",
            where=recipe.source.key_place(("tune",)),
            hint="lepton tune MODEL -r RECIPE -o DIR   then compress with DIR/recipe.best.yaml",
        )
    file = model if isinstance(model, Path) else model.path
    if run is None:
        options = {"output": output, "baseline": baseline, "strict": strict, "allow_code": allow_code}
        run = Run(Arguments.of("compress", file, recipe, **options))
    if output is not None:
        workspace.check(output, file if isinstance(model, Path) or model.files else None)
    check_baseline(recipe.recipe.gates, baseline, recipe.source)
    job = prepare(
        model,
        recipe,
        arrays=arrays,
        allow_code=allow_code,
        shapes_given=given,
        run=lambda loaded: bool(arrays) or must_run(loaded, recipe.recipe),
    )
    folder = workspace.use(output, resume=resume) if output is not None else workspace.temporary()
    with folder as scratch:
        context = measuring.context(job, scratch, progress, cache)
        return _Compression(job, output, progress, strict, baseline, run).execute(context, resume)


def run_steps(
    job: Job,
    context: Context,
    kept: Kept,
    records: list[StepRecord],
    start: ir.Model,
    failed: Path | None = None,
    trail: Trail | None = None,
) -> ir.Model:
    """Run the recipe's steps behind those that `records` holds, each checked; `records` grows.

    `failed`: folder for the model that made a step fail. `trail`: what keeps the models between the steps.
    """
    steps = job.spec.steps
    current = runner.reference(start, context) if job.runs else runner.Checked(start, None)
    current = dataclasses.replace(current, answers=kept.answers())
    for index in range(len(records), len(steps)):
        current, record = runner.run_step(current, steps[index], index, context, failed)
        records.append(record)
        for warning in record.warnings:
            context.progress.warn(f"{steps[index].step}: {warning}")
        current = kept.keep(current, records)
        if trail is not None and job.runs and record.changed and index < len(steps) - 1:
            trail.keep(index, current.model)
    return current.model


class _Compression:
    """The order of things."""

    def __init__(
        self, job: Job, output: Path | None, progress: Progress, strict: bool, baseline: Path | None, run: Run
    ) -> None:
        self.job = job
        self.output = output
        self.progress = progress
        self.strict = strict
        self.baseline = baseline
        self.run = run
        self.run.warnings += job.warnings
        self.name = job.recipe.name
        self.records: list[StepRecord] = []

    def execute(self, context: Context, resume: bool) -> Compressed:
        """Steps, then measurements, then verdicts; whatever happens, a report."""
        kept = Kept(self.output, self.job, context)
        try:
            trail = Trail(self.job, context, kept)
            compressed = self._steps(context, kept, resume, trail)
            saved = self._save(compressed, context)
            beside = trail.parts(self.records)
            changed = [record.index for record in self.records if record.changed]
            steps = {"compressed": changed, **{part.name: part.steps for part in beside}}
            measuring.measure(
                {"original": self.job.loaded, "compressed": saved},
                self.job,
                self.progress,
                seed=self.job.spec.seed,
                found=self.run.measured,
                beside=beside,
                new={name: self.job.new_outputs(done) for name, done in steps.items()},
            )
        except KeyboardInterrupt:
            self._partial(None)
            self._say_kept(kept)
            raise
        except Exception as error:
            if (full := disk_full(error, self.output, None)) is not None:
                self._say_kept(kept)
                return self._partial(full)
            if not isinstance(error, LeptonError):
                raise
            self.job.locate(error)
            if isinstance(error, (StepError, MeasurementError)):
                return self._partial(error)
            raise
        report = self.run.report(**self._parts())
        refused: LeptonError | None = None
        try:
            report = self._judge(report)
        except ReportError as error:
            # A gate that cannot be judged must not cost the measurements.
            report, refused = broken(report, error), error
        files = saved.files[:1] if self.output is not None else ()
        held = io.held(saved.model, context.workdir)
        try:
            result = Compressed(report, (*files, *self._write(report)), refused, held)
        except DiskFullError as full:
            return Compressed(report, files, full, held)
        kept.clear()
        return result

    def _say_kept(self, kept: Kept) -> None:
        if kept.count:
            steps = "1 finished step is" if kept.count == 1 else f"{kept.count} finished steps are"
            self.progress.say(f"{steps} kept: the same command with --resume goes on")

    def _steps(self, context: Context, kept: Kept, resume: bool, trail: Trail) -> ir.Model:
        model = self.job.loaded.model
        if resume and (found := kept.latest()) is not None:
            model, self.records = found
            self.progress.say(f"resumed: {len(self.records)} of {len(self.job.spec.steps)} steps were done")
        elif resume:
            self.progress.say("nothing to resume for this model, recipe and data: starting with the first step")
        failed = self.output / workspace.FAILED if self.output is not None else None
        return run_steps(self.job, context, kept, self.records, model, failed, trail)

    def _save(self, model: ir.Model, context: Context) -> io.LoadedModel:
        metadata = {
            "lepton.version": __version__,
            "lepton.recipe_sha256": self.job.recipe.sha256,
            workspace.PROVENANCE: self.job.loaded.sha256,
        }
        if self.output is None:
            return io.reopened(io.stamped(model, metadata), context.workdir)
        path = self.output / f"{self.name}.onnx"
        io.save(model, path, metadata=metadata)
        return io.load(path)

    def _parts(self) -> dict[str, Any]:
        """What the report holds besides measurements."""
        loaded = self.job.loaded
        if not self.run.measured.variants:
            self.run.measured.variants = (variant("original", loaded, self.job.macs(loaded.model)),)
        return {
            "recipe": recipe_facts(self.job.recipe),
            "data": self.job.data_facts(),
            "steps": tuple(self.records),
            "warnings": [f"{record.step}: {warning}" for record in self.records for warning in record.warnings],
        }

    def _judge(self, report: Report) -> Report:
        source = self.job.recipe.source
        verdicts = gates.judge(
            self.job.spec.gates,
            report,
            baseline=baselines.load(self.baseline, report) if self.baseline is not None else None,
            places=lambda index: place_text(source.place(("gates", index))),
            strict=self.strict,
        )
        return judged(report, verdicts)

    def _partial(self, error: LeptonError | None) -> Compressed:
        """Keep what is known when a run breaks off; without an error it was interrupted."""
        report = self.run.partial(error, **self._parts())
        try:
            return Compressed(report, self._write(report), error)
        except DiskFullError:
            return Compressed(report, (), error)

    def _write(self, report: Report) -> tuple[Path, ...]:
        """The reports asked for, `report.json` always, and the recipe as it was run."""
        if self.output is None:
            return ()
        resolved = yaml.safe_load(self.job.recipe.resolved_yaml())
        _rebase(resolved, self.job.recipe.base, self.output)
        text = self.job.recipe.resolved_yaml() if not resolved else _dump(resolved)
        store.write_text(text, self.output / "recipe.resolved.yaml")
        written = []
        for kind in dict.fromkeys((*self.job.spec.output.reports, "json")):
            path = self.output / render.FILES[kind]
            store.write_text(render.render(report, kind), path)
            written.append(path)
        return tuple(written)


def _dump(resolved: dict[str, Any]) -> str:
    header = "# The recipe as it was run: every option, defaults included.\n"
    return header + write(resolved)


def _rebase(resolved: dict[str, Any], base: Path, output: Path) -> None:
    """Make the data paths relative to the folder that `recipe.resolved.yaml` lies in."""
    for source in (resolved.get("data") or {}).values():
        for key in ("path", "loader"):
            if isinstance(source, dict) and source.get(key):
                source[key] = os.path.relpath(base / source[key], output)
