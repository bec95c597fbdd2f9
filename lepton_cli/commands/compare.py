"""`lepton compare`: two models side by side, and what differs between them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lepton_cli import gates
from lepton_cli.commands import adhoc, measuring, workspace
from lepton_cli.commands.assemble import broken, recipe_facts
from lepton_cli.commands.job import Job, place_text
from lepton_cli.commands.judge import check_baseline, judged
from lepton_cli.commands.run import Arguments, Run
from lepton_cli.errors import LeptonError, MeasurementError, OutputError, ReportError
from lepton_cli.graph import diff
from lepton_cli.measure.arms import InputNames
from lepton_cli.model import io
from lepton_cli.progress import Progress
from lepton_cli.recipe.load import LoadedBudget
from lepton_cli.report import baseline as baselines
from lepton_cli.report import render, store
from lepton_cli.report.model import Report


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a comparison made: the report, the files written, the error that ended it early."""

    report: Report
    files: tuple[Path, ...] = ()
    error: LeptonError | None = None


def compare(
    job: Job,
    second: Path,
    progress: Progress,
    *,
    output: Path | None = None,
    budget: LoadedBudget | None = None,
    baseline: Path | None = None,
    strict: bool = False,
    from_recipe: bool = True,
    run: Run | None = None,
) -> Comparison:
    """Compare the job's model (`original` in the report) with another one (`compressed`).

    The gates of `budget`, else those of the recipe, are judged. A measurement that fails ends in a partial report
    with `error` set, Ctrl-C in one that says so. `from_recipe`: the job comes of a recipe file, which the report then
    holds. `run`: how it was asked for. Raises LeptonError for what is wrong before measuring.
    """
    run = run or Run(Arguments("compare", (job.loaded.path, second), recipe=job.recipe.path, output=output))
    if output is not None:
        _check_output(output, (job.loaded.path, second))
    wanted, places = (budget.budget.gates, budget.source) if budget is not None else (job.spec.gates, job.recipe.source)
    check_baseline(wanted, baseline, places)
    other = io.load(second)
    names = adhoc.match_inputs(io.inputs(job.loaded.model), io.inputs(other.model), str(second))
    models = {"original": job.loaded, "compressed": other}
    report, error = _measured(job, models, {"compressed": names} if names else {}, progress, run)
    report = report.model_copy(update={"recipe": recipe_facts(job.recipe) if from_recipe else None})
    if report.complete and wanted:
        try:
            reference = baselines.load(baseline, report) if baseline is not None else None
            verdicts = gates.judge(
                wanted,
                report,
                baseline=reference,
                places=lambda index: place_text(places.place(("gates", index))),
                strict=strict,
            )
            report = judged(report, verdicts)
        except ReportError as refused:
            report, error = broken(report, refused), refused
    return Comparison(report, _write(report, output) if output is not None else (), error)


def _measured(
    job: Job, models: dict[str, io.LoadedModel], names: InputNames, progress: Progress, run: Run
) -> tuple[Report, LeptonError | None]:
    """The report with everything that could be measured, and what stopped it if anything did."""
    error: LeptonError | None = None
    stopped = False
    try:
        measuring.measure(models, job, progress, seed=job.spec.seed, input_names=names, found=run.measured)
    except MeasurementError as failed:
        error = job.locate(failed)
    except LeptonError as wrong:
        raise job.locate(wrong) from wrong
    except KeyboardInterrupt:
        if len(run.measured.variants) < len(models):
            raise
        stopped = True
    run.warnings += job.warnings
    if job.evaluation is None and job.calibration is None:
        run.warnings.append(
            f"without data the outputs are compared on {job.check.count} random inputs: give --data or -r"
        )
    before, after = models["original"], models["compressed"]
    changes = diff.diff(before.model, after.model, *(variant.size.layers for variant in run.measured.variants))
    parts = {"data": job.data_facts(), "diff": changes}
    return (run.partial(error, **parts) if error or stopped else run.report(**parts)), error


def _check_output(folder: Path, models: tuple[Path, ...]) -> None:
    """Raise OutputError where reports would fall on a model's folder or on another command's report."""
    for model in models:
        workspace.check(folder, model)
    earlier = folder / "report.json"
    if earlier.exists() and store.read(earlier).command != "compare":
        raise OutputError(
            "output.not-empty",
            f"{folder} holds the result of another command",
            hint="choose another -o DIR: its report would be lost",
        )


def _write(report: Report, folder: Path) -> tuple[Path, ...]:
    return render.write(report, folder, ("json", "md", "html"))
