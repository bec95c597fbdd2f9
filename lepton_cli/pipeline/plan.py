"""`lepton plan`: what a recipe would do, without measuring and without writing."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from lepton_cli.errors import LeptonError
from lepton_cli.graph import io
from lepton_cli.pipeline import runner
from lepton_cli.pipeline.job import Job, prepare
from lepton_cli.progress import Progress
from lepton_cli.recipe.load import LoadedRecipe
from lepton_cli.report.model import DataFacts, StepRecord
from lepton_cli.steps.base import Context


@dataclasses.dataclass(frozen=True)
class Plan:
    """What would happen. `sizes`: bytes of the model before the first and after every planned step."""

    steps: tuple[StepRecord, ...]
    sizes: tuple[int, ...]
    data: tuple[DataFacts, ...]
    providers: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def plan(model: Path, recipe: LoadedRecipe, progress: Progress, *, allow_code: bool = False) -> Plan:
    """Dry-run every step on the real model. Raises LeptonError where the recipe cannot work."""
    job = prepare(model, recipe, allow_code=allow_code)
    records: list[StepRecord] = []
    with tempfile.TemporaryDirectory(prefix="lepton-plan-") as folder:
        context = _context(job, Path(folder), progress)
        current = runner.reference(job.loaded.model, context)
        sizes = [len(io.to_bytes(job.loaded.model)) if job.loaded.bytes < io.EXTERNAL_ABOVE else job.loaded.bytes]
        try:
            for index, params in enumerate(job.spec.steps):
                current, record = runner.run_step(current, params, index, context, None)
                records.append(record)
                sizes.append(io.weight_bytes(current.model))
        except LeptonError as error:
            raise job.locate(error) from error
    latency = job.spec.evaluate.latency
    providers = tuple(
        (p.name, "found" if _found(p.name) else "missing, skipped") for p in (latency.providers if latency else ())
    )
    warnings = (*job.warnings, *(warning for record in records for warning in record.warnings))
    return Plan(tuple(records), tuple(sizes), job.data_facts(), providers, warnings)


def _found(provider: str) -> bool:
    from lepton_cli import runtime

    try:
        runtime.provider_name(provider)
    except LeptonError:
        return False
    return True


def _context(job: Job, workdir: Path, progress: Progress) -> Context:
    latency = job.spec.evaluate.latency
    return Context(
        calibration=job.calibration,
        evaluation=job.evaluation,
        check=job.check,
        original=job.loaded.model,
        score=None,
        provider=latency.providers[0].name if latency else "cpu",
        batch=latency.batch[0] if latency else 1,
        threads=job.threads,
        seed=job.spec.seed,
        progress=progress,
        workdir=workdir,
        cache=None,
        dry=True,
    )
