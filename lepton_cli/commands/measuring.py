"""Measuring models side by side: what goes into the report's variants and tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from lepton_cli import metrics, scratch
from lepton_cli.cache import Cache
from lepton_cli.commands import apart
from lepton_cli.commands.apart import Apart
from lepton_cli.commands.assemble import variant
from lepton_cli.commands.job import Job
from lepton_cli.errors import Interrupted, LeptonError
from lepton_cli.measure import accuracy, cost, energy, latency, memory, meters, nvml, size
from lepton_cli.measure.arms import InputNames, NewOutputs
from lepton_cli.measure.results import Accuracy, CostTable, EnergyTable, LatencyTable, Size, Skipped
from lepton_cli.measure.spec import LatencySpec
from lepton_cli.model import io
from lepton_cli.probe import parts
from lepton_cli.probe.comparable import searched
from lepton_cli.progress import Progress
from lepton_cli.report.model import Bought, Variant
from lepton_cli.runtime import provider_name
from lepton_cli.step import Context


@dataclasses.dataclass
class Measured:
    """All measurements of a run, filled in as they are made: what an interrupt leaves is in it."""

    variants: tuple[Variant, ...] = ()
    accuracy: Accuracy | None = None
    latency: LatencyTable | None = None
    energy: EnergyTable | None = None
    skipped: tuple[Skipped, ...] = ()
    cost: CostTable | None = None
    bought: tuple[Bought, ...] = ()

    def parts(self) -> dict[str, object]:
        """What was measured, as fields of a report."""
        return {field.name: value for field in dataclasses.fields(self) if (value := getattr(self, field.name))}


def measure(
    models: Mapping[str, io.LoadedModel],
    job: Job,
    progress: Progress,
    *,
    seed: int,
    input_names: InputNames | None = None,
    found: Measured | None = None,
    beside: Sequence[Apart] = (),
    new: NewOutputs | None = None,
) -> Measured:
    """Measure models of the same task, the reference first. Raises MeasurementError, Interrupted.

    `beside`: what parts of the steps made, measured with them as far as speed and accuracy go.
    `input_names`: of models whose inputs are named otherwise than the data, by variant: input -> name in the data.
    `new`: outputs that steps made, by variant and by name of a part.
    `found` is filled and returned: whoever gives it has what was measured when an error ends the rest.
    """
    found = found if found is not None else Measured()
    spec = job.spec.evaluate
    renamed = input_names or {}
    found.variants = tuple(_variant(name, loaded, job, renamed.get(name)) for name, loaded in models.items())
    if not job.runs:
        large = "the model is large and was not run: name data, `evaluate: accuracy` or `latency` in the recipe"
        reason = "made-up inputs do not fit the model: give data, or shapes with --shape" if job.misfit else large
        found.skipped += tuple(Skipped(what=what, reason=reason) for what in ("agreement", "latency", "memory"))
        return found
    paths = {name: loaded.payload for name, loaded in models.items()}
    try:
        judged = {part.name: part.loaded for part in beside if not part.equal}
        close = _accuracy({**models, **judged}, job, progress, input_names, new)
        found.accuracy = apart.only(close, models)
        times: LatencyTable | None = None
        if spec.latency:
            more = {part.name: part.loaded.payload for part in beside}
            times = latency.compare(
                paths, job.timed, spec.latency, progress=progress, seed=seed, input_names=input_names, beside=more
            )
            found.latency = apart.only_timed(times, models)
        found.bought = tuple(part.bought(close, times) for part in beside)
        _energy(paths, job, spec.latency, progress, input_names, found)
    except Interrupted as stop:
        if isinstance(stop.partial, Accuracy):
            found.accuracy = apart.only(stop.partial, models)
        if isinstance(stop.partial, LatencyTable):
            found.latency = apart.only_timed(stop.partial, models)
        raise
    if spec.cost is not None and found.latency is not None:
        found.cost = cost.cost(found.latency, spec.cost)
    if spec.memory:
        found.variants = tuple(
            _with_memory(one, models[one.name].payload, job, found, renamed.get(one.name)) for one in found.variants
        )
    return found


def _accuracy(
    models: Mapping[str, io.LoadedModel],
    job: Job,
    progress: Progress,
    input_names: InputNames | None,
    new: NewOutputs | None,
) -> Accuracy:
    """Accuracy and fidelity; where outputs are found by a search, the fidelity of what is searched."""
    beside = {name: searched(loaded.model) for name, loaded in models.items()}
    own = next(iter(beside.values()))
    chosen = {name: made.only(own.searched) if made and own else None for name, made in beside.items()}
    own = own if all(chosen.values()) else None
    with scratch.folder() as folder:
        return accuracy.evaluate(
            {name: io.payload(made, folder) if own and made else models[name].payload for name, made in chosen.items()},
            job.evaluation or job.check,
            job.spec.evaluate.accuracy,
            threads=job.threads,
            progress=progress,
            allow_code=job.allow_code,
            base=job.recipe.base,
            input_names=input_names,
            ways=parts.segments(own.model if own else next(iter(models.values())).model),
            searched=dict.fromkeys(own.found, own.searched) if own else None,
            new=new,
            groups=job.evaluation.groups if job.evaluation else None,
        )


def _energy(
    paths: Mapping[str, bytes | Path],
    job: Job,
    spec: LatencySpec | Literal[False],
    progress: Progress,
    input_names: InputNames | None,
    found: Measured,
) -> None:
    """Joules per inference; where they cannot be measured a notice, if the recipe or a gate asks for them."""
    wanted = job.spec.evaluate.energy
    if not wanted:
        return
    asked = wanted is True or any(metrics.of(gate.metric).source == "energy" for gate in job.spec.gates)
    if not spec:
        if asked:
            found.skipped += (Skipped(what="energy", reason="it is measured beside the latency"),)
        return
    counters: dict[str, meters.Meter] = {}
    for provider in dict.fromkeys(result.provider for result in (found.latency.results if found.latency else ())):
        reason = ""
        try:
            if (meter := meters.of(provider)) is not None:
                counters[provider] = meter
            elif asked:
                reason = "this machine shows no meter for it (/sys/class/powercap, NVML; virtual machines have none)"
        except meters.Unreadable as error:
            reason = str(error)
        if reason:
            found.skipped += (Skipped(what=f"energy {provider}", reason=reason),)
    if not counters:
        return
    try:
        found.energy = energy.compare(
            paths, job.timed, spec, counters, progress=progress, seed=job.spec.seed, input_names=input_names
        )
    except meters.Unreadable as error:  # it could be read a moment ago
        found.skipped += (Skipped(what="energy", reason=str(error)),)


def _variant(name: str, loaded: io.LoadedModel, job: Job, names: Mapping[str, str] | None) -> Variant:
    return variant(name, loaded, job.macs(loaded.model, names))


def _with_memory(
    variant: Variant, model: bytes | Path, job: Job, found: Measured, names: Mapping[str, str] | None
) -> Variant:
    """With its peak memory, in a process of its own; on a device with memory of its own, that too."""
    feeds = job.feeds(1)
    feeds = {own: feeds[source] for own, source in names.items()} if names else feeds
    try:
        used = memory.measure(model, feeds, threads=job.threads)
        if (device := _device(found)) is not None:
            on_device = memory.measure(model, feeds, provider=device, threads=job.threads).device
            used = used.model_copy(update={"device": on_device})
    except LeptonError as error:
        found.skipped += (Skipped(what=f"memory {variant.name}", reason=error.cause or error.message),)
        return variant
    return variant.model_copy(update={"memory": used})


def _device(found: Measured) -> str | None:
    """The first provider with memory of its own that latency was measured on."""
    used = [result.provider for result in (found.latency.results if found.latency else ())]
    return next((name for name in used if nvml.runs(provider_name(name))), None)


def structure(loaded: io.LoadedModel, job: Job, names: Mapping[str, str] | None = None) -> Size:
    """Size and structure of one model. `names`: its inputs -> the data's, where they differ."""
    return size.measure(loaded.stored, loaded.given or loaded.model, macs=job.macs(loaded.model, names))


def scorer(job: Job, workdir: Path) -> Callable[[ir.Model], float] | None:
    """Accuracy of a model on the evaluation data as one number; `None` without labelled evaluation data."""
    data = job.evaluation
    if data is None or not data.label_names:
        return None

    def score(model: ir.Model) -> float:
        there = {info.name for info in io.outputs(model)}
        specs = [spec for spec in job.spec.evaluate.accuracy if spec.output is None or spec.output in there]
        return accuracy.score(
            io.payload(model, workdir),
            data,
            specs or job.spec.evaluate.accuracy,  # before a head is added there may be none
            threads=job.threads,
            allow_code=job.allow_code,
            base=job.recipe.base,
        )

    return score


def context(job: Job, scratch: Path, progress: Progress, cache: Cache | None = None) -> Context:
    """What steps may use in a real run; `scratch` is removed at its end. `cache`: default: this user's."""
    latency_spec = job.spec.evaluate.latency
    return Context(
        calibration=job.calibration,
        evaluation=job.evaluation,
        training=job.training,
        base=job.recipe.base,
        check=job.check,
        original=job.loaded.model,
        score=scorer(job, scratch),
        provider=latency_spec.providers[0].name if latency_spec else "cpu",
        batch=latency_spec.batch[0] if latency_spec else 1,
        threads=job.threads,
        seed=job.spec.seed,
        progress=progress,
        workdir=scratch,
        cache=cache or Cache.usual(),
    )
