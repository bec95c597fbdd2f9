"""`lepton plan`: what a recipe would do, without measuring and without writing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from lepton_cli import scratch
from lepton_cli.cache import Cache
from lepton_cli.commands import measuring, runner
from lepton_cli.commands.job import prepare
from lepton_cli.errors import LeptonError
from lepton_cli.graph import shapes
from lepton_cli.model import io
from lepton_cli.progress import Progress
from lepton_cli.recipe.load import LoadedRecipe
from lepton_cli.report.model import DataFacts, StepRecord


@dataclasses.dataclass(frozen=True)
class Plan:
    """What would happen. `sizes`: bytes of the model before the first and after every planned step.

    `error`: that of a step that would change nothing, with which `compress` would end.
    """

    steps: tuple[StepRecord, ...]
    sizes: tuple[int, ...]
    data: tuple[DataFacts, ...]
    providers: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    error: LeptonError | None = None


def plan(
    model: Path,
    recipe: LoadedRecipe,
    progress: Progress,
    *,
    allow_code: bool = False,
    given: Mapping[str, tuple[int, ...]] | None = None,
) -> Plan:
    """Dry-run every step on the real model. `given`: shapes of inputs, batch included, where the recipe has no data.

    Raises LeptonError where the recipe cannot work.
    """
    job = prepare(model, recipe, allow_code=allow_code, shapes_given=given, run=_runs)
    records: list[StepRecord] = []
    with scratch.folder() as folder:
        context = dataclasses.replace(measuring.context(job, folder, progress), score=None, cache=Cache(None), dry=True)
        small = _runs(job.loaded.model)
        runs = small and not job.misfit
        current = runner.reference(job.loaded.model, context) if runs else runner.Checked(job.loaded.model, None)
        sizes = [len(io.to_bytes(job.loaded.model)) if small else job.loaded.bytes]
        refused: LeptonError | None = None
        try:
            for index, options in enumerate(job.spec.steps):
                before = current.model
                current, record = runner.run_step(current, options, index, context, None)
                records.append(record)
                # A step that rewrites shows its size; of what is pruned only the target is known, where it is a size.
                share = options.kept_share or _size(current.model, small) / max(1, _size(before, small))
                sizes.append(round(sizes[-1] * share))
                if (refused := runner.no_effect(before, options, record)) is not None:
                    refused.option = ("steps", index)
                    job.locate(refused)
                    break
        except LeptonError as error:
            job.locate(error)
            raise
    latency = job.spec.evaluate.latency
    providers = tuple(
        (p.name, "found" if _found(p.name) else "missing, skipped") for p in (latency.providers if latency else ())
    )
    large = () if small else ("the model is large: this plan was made without running it",)
    only = ("the recipe has no steps but `tune:`: lepton tune chooses them",) if job.spec.only_tunes else ()
    warnings = (*job.warnings, *only, *large, *(warning for record in records for warning in record.warnings))
    return Plan(tuple(records), tuple(sizes), job.data_facts(), providers, warnings, refused)


#: Nodes up to which a plan runs the model: onnxruntime's own preparation takes quadratic time for some wide graphs.
MOST_NODES = 2000


def _runs(model: ir.Model) -> bool:
    return shapes.runnable(model) and sum(1 for _ in model.graph.all_nodes()) <= MOST_NODES


def _size(model: ir.Model, small: bool) -> int:
    return len(io.to_bytes(model)) if small else io.weight_bytes(model)


def _found(provider: str) -> bool:
    from lepton_cli import runtime

    try:
        runtime.provider_name(provider)
    except LeptonError:
        return False
    return True
