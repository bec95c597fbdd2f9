"""Measuring models side by side: what goes into the report's variants and tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from lepton_cli.errors import LeptonError
from lepton_cli.graph import io
from lepton_cli.measure import accuracy, cost, latency, memory, size
from lepton_cli.measure.arms import InputNames
from lepton_cli.measure.results import Accuracy, LatencyTable, Size, Skipped
from lepton_cli.pipeline.job import Job, cache_folder
from lepton_cli.progress import Progress
from lepton_cli.report.model import FileFacts, Variant
from lepton_cli.steps.base import Context


@dataclasses.dataclass(frozen=True)
class Measured:
    """All measurements of a run."""

    variants: tuple[Variant, ...]
    accuracy: Accuracy | None
    latency: LatencyTable | None
    skipped: tuple[Skipped, ...]
    cost: dict[str, object]


def measure(
    models: Mapping[str, io.Loaded],
    job: Job,
    progress: Progress,
    *,
    seed: int,
    input_names: InputNames | None = None,
) -> Measured:
    """Measure models of the same task, the reference first. Raises MeasurementError.

    `input_names`: of models whose inputs are named otherwise than the data, by variant: input -> name in the data.
    """
    spec = job.spec.evaluate
    paths: dict[str, bytes | Path] = {name: loaded.path for name, loaded in models.items()}
    found_accuracy = accuracy.evaluate(
        paths,
        job.evaluation or job.check,
        spec.accuracy,
        threads=job.threads,
        progress=progress,
        allow_code=job.allow_code,
        base=job.recipe.base,
        input_names=input_names,
    )
    skipped: list[Skipped] = []
    table = None
    if spec.latency:
        table = latency.compare(paths, job.feeds, spec.latency, progress=progress, seed=seed, input_names=input_names)
    renamed = input_names or {}
    variants = tuple(_variant(name, loaded, job, skipped, renamed.get(name)) for name, loaded in models.items())
    costs: dict[str, object] = {}
    if spec.cost is not None and table is not None:
        costs = dict(cost.cost(table, spec.cost))
    return Measured(variants, found_accuracy, table, tuple(skipped), costs)


def _variant(
    name: str, loaded: io.Loaded, job: Job, skipped: list[Skipped], names: Mapping[str, str] | None
) -> Variant:
    peak = None
    if job.spec.evaluate.memory:
        try:
            feeds = job.feeds(1)
            if names:
                feeds = {own: feeds[source] for own, source in names.items()}
            peak = memory.measure(loaded.path, feeds, threads=job.threads)
        except LeptonError as error:
            skipped.append(Skipped(what=f"memory {name}", reason=error.cause or error.message))
    facts = FileFacts(path=str(loaded.path), sha256=loaded.sha256, name=loaded.model.graph.name or "")
    return Variant(name=name, file=facts, size=structure(loaded, job, names), memory=peak)


def structure(loaded: io.Loaded, job: Job, names: Mapping[str, str] | None = None) -> Size:
    """Size and structure of one model. `names`: its inputs -> the data's, where they differ."""
    return size.measure(loaded.path, loaded.model, macs=job.macs(loaded.model, names))


def scorer(job: Job, workdir: Path) -> Callable[[ir.Model], float] | None:
    """Accuracy of a model on the evaluation data as one number; `None` without labelled evaluation data."""
    data = job.evaluation
    if data is None or not data.label_names:
        return None

    def score(model: ir.Model) -> float:
        return accuracy.score(
            io.payload(model, workdir),
            data,
            job.spec.evaluate.accuracy,
            threads=job.threads,
            allow_code=job.allow_code,
            base=job.recipe.base,
        )

    return score


def context(job: Job, scratch: Path, progress: Progress) -> Context:
    """What steps may use in a real run; `scratch` is removed at its end."""
    latency_spec = job.spec.evaluate.latency
    return Context(
        calibration=job.calibration,
        evaluation=job.evaluation,
        check=job.check,
        original=job.loaded.model,
        score=scorer(job, scratch),
        provider=latency_spec.providers[0].name if latency_spec else "cpu",
        batch=latency_spec.batch[0] if latency_spec else 1,
        threads=job.threads,
        seed=job.spec.seed,
        progress=progress,
        workdir=scratch,
        cache=cache_folder(),
    )
