"""`lepton compress`: check, run the steps, measure, judge, write."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import onnx_ir as ir
import yaml

from lepton_cli import __version__, gates
from lepton_cli.commands import measuring, runner, workspace
from lepton_cli.commands.assemble import broken, recipe_facts, variant
from lepton_cli.commands.job import Job, must_run, place_text, prepare
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
from lepton_cli.recipe.load import LoadedRecipe
from lepton_cli.report import baseline as baselines
from lepton_cli.report import render, store
from lepton_cli.report.model import Report, StepRecord
from lepton_cli.step import Context


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run made: the report, and the files written in order of interest."""

    report: Report
    files: tuple[Path, ...]
    error: LeptonError | None = None


def compress(
    model: Path,
    recipe: LoadedRecipe,
    output: Path,
    progress: Progress,
    *,
    allow_code: bool = False,
    strict: bool = False,
    baseline: Path | None = None,
    run: Run | None = None,
    resume: bool = False,
) -> Result:
    """Run a recipe. Errors before any work raise; errors during work end in a partial report with `error` set.

    `run`: how it was asked for, where that is not by these arguments. `resume`: go on after the last step that an
    interrupted run of the same recipe, model and data finished.
    """
    if recipe.recipe.only_tunes:
        raise RecipeError(
            "recipe.only-tunes",
            "this recipe says what to search for (`tune:`), and has no steps to run",
            where=recipe.source.key_place(("tune",)),
            hint="lepton tune MODEL -r RECIPE -o DIR   then compress with DIR/recipe.best.yaml",
        )
    if run is None:
        run = Run(
            Arguments.of(
                "compress", model, recipe, output=output, baseline=baseline, strict=strict, allow_code=allow_code
            )
        )
    workspace.check(output, model)
    check_baseline(recipe.recipe.gates, baseline, recipe.source)
    job = prepare(model, recipe, allow_code=allow_code, run=lambda loaded: must_run(loaded, recipe.recipe))
    with workspace.use(output, resume=resume) as scratch:
        return _Compression(job, output, progress, strict, baseline, run).execute(scratch, resume)


class _Compression:
    """The order of things."""

    def __init__(
        self, job: Job, output: Path, progress: Progress, strict: bool, baseline: Path | None, run: Run
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

    def execute(self, scratch: Path, resume: bool) -> Result:
        """Steps, then measurements, then verdicts; whatever happens, a report."""
        context = measuring.context(self.job, scratch, self.progress)
        kept = Kept(self.output, self.job, context)
        try:
            compressed = self._steps(context, kept, resume)
            path = self._save(compressed)
            measuring.measure(
                {"original": self.job.loaded, "compressed": io.load(path)},
                self.job,
                self.progress,
                seed=self.job.spec.seed,
                found=self.run.measured,
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
        try:
            result = Result(report, (path, *self._write(report)), refused)
        except DiskFullError as full:
            return Result(report, (path,), full)
        kept.clear()
        return result

    def _say_kept(self, kept: Kept) -> None:
        if kept.count:
            steps = "1 finished step is" if kept.count == 1 else f"{kept.count} finished steps are"
            self.progress.say(f"{steps} kept: the same command with --resume goes on")

    def _steps(self, context: Context, kept: Kept, resume: bool) -> ir.Model:
        steps = self.job.spec.steps
        model = self.job.loaded.model
        if resume and (found := kept.latest()) is not None:
            model, self.records = found
            self.progress.say(f"resumed: {len(self.records)} of {len(steps)} steps were done")
        elif resume:
            self.progress.say("nothing to resume for this model, recipe and data: starting with the first step")
        current = runner.reference(model, context) if self.job.runs else runner.Checked(model, None)
        for index in range(len(self.records), len(steps)):
            current, record = runner.run_step(current, steps[index], index, context, self.output / workspace.FAILED)
            self.records.append(record)
            for warning in record.warnings:
                self.progress.warn(f"{steps[index].step}: {warning}")
            current = kept.keep(current, self.records)
        return current.model

    def _save(self, model: ir.Model) -> Path:
        path = self.output / f"{self.name}.onnx"
        io.save(
            model,
            path,
            metadata={
                "lepton.version": __version__,
                "lepton.recipe_sha256": self.job.recipe.sha256,
                workspace.PROVENANCE: self.job.loaded.sha256,
            },
        )
        return path

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

    def _partial(self, error: LeptonError | None) -> Result:
        """Keep what is known when a run breaks off; without an error it was interrupted."""
        report = self.run.partial(error, **self._parts())
        try:
            return Result(report, self._write(report), error)
        except DiskFullError:
            return Result(report, (), error)

    def _write(self, report: Report) -> tuple[Path, ...]:
        """The reports asked for, `report.json` always, and the recipe as it was run."""
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
    return header + yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _rebase(resolved: dict[str, Any], base: Path, output: Path) -> None:
    """Make the data paths relative to the folder that `recipe.resolved.yaml` lies in."""
    for source in (resolved.get("data") or {}).values():
        for key in ("path", "loader"):
            if isinstance(source, dict) and source.get(key):
                source[key] = os.path.relpath(base / source[key], output)
