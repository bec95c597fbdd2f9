"""`lepton evaluate`: the accuracy of one model on the recipe's evaluation data; no step is run."""

from __future__ import annotations

from lepton_cli import metrics
from lepton_cli.commands.assemble import broken, recipe_facts, variant
from lepton_cli.commands.job import Job
from lepton_cli.commands.run import Arguments, Run
from lepton_cli.errors import DataError, Interrupted, LeptonError
from lepton_cli.measure import accuracy
from lepton_cli.measure.results import Accuracy
from lepton_cli.progress import Progress
from lepton_cli.report import words
from lepton_cli.report.model import Report


def evaluate(job: Job, progress: Progress, *, run: Run | None = None) -> Report:
    """Measure the job's model. Ctrl-C ends in a report of the samples until then. `run`: how it was asked for.

    Raises DataError without labelled data, MeasurementError when it cannot be measured.
    """
    run = run or Run(Arguments.of("evaluate", job.loaded.path, job.recipe, allow_code=job.allow_code))
    stopped = False
    try:
        found = measure(job, progress)
    except Interrupted as stop:
        if not isinstance(stop.partial, Accuracy):
            raise
        found, stopped = stop.partial, True
    report = run.report(
        recipe=recipe_facts(job.recipe),
        data=job.data_facts(),
        variants=(variant("original", job.loaded, job.macs(job.loaded.model)),),
        accuracy=found,
        warnings=job.warnings,
    )
    if stopped:
        return broken(report, None).model_copy(update={"headline": f"INTERRUPTED, partial: {headline(report)}"})
    return report.model_copy(update={"headline": headline(report)})


def measure(job: Job, progress: Progress) -> Accuracy:
    """The accuracy of the job's model. Raises what `evaluate` raises, and Interrupted with the accuracy so far."""
    data = job.evaluation
    if data is None:
        raise DataError(
            "data.no-evaluation",
            "there is no evaluation data to measure accuracy on",
            where=job.recipe.source.key_place(("data",)) or str(job.recipe.path or ""),
            hint="add `data: {evaluation: {path: …, labels: …}}`",
        )
    if not data.label_names:
        raise DataError(
            "data.no-labels",
            "the evaluation data has no labels to measure accuracy with",
            where=job.recipe.source.place(("data", "evaluation")),
            hint="add `labels: NAME` to it; without labels `lepton compare` measures agreement of two models",
        )
    spec = job.spec.evaluate
    try:
        return accuracy.evaluate(
            {"original": job.loaded.payload},
            data,
            spec.accuracy,
            threads=job.threads,
            progress=progress,
            allow_code=job.allow_code,
            base=job.recipe.base,
        )
    except LeptonError as error:
        job.locate(error)
        raise


def headline(report: Report) -> str:
    """The metrics in words: `91.80 % top-1 (n = 5,000)`."""
    values = report.accuracy.values.get("original", ()) if report.accuracy else ()
    said = []
    for value in values:
        metric = metrics.accuracy(value.metric)
        of = f" of {value.output}" if len({one.output for one in values}) > 1 else ""
        said.append(f"{words.value(value.value, metric.kind)} {metric.label}{of} (n = {value.n:,})")
    return ", ".join(said)
