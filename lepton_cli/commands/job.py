"""Everything a run needs, opened and checked before any work is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lepton_cli import metrics, runtime
from lepton_cli.data import memory
from lepton_cli.data.batching import fits
from lepton_cli.data.check import check_labels
from lepton_cli.data.dataset import First
from lepton_cli.data.open import open_dataset, synthetic
from lepton_cli.data.reader import CACHE_BYTES, SourceDataset
from lepton_cli.data.spec import TrainingSpec
from lepton_cli.data.training import TrainingData, open_training
from lepton_cli.errors import (
    DataError,
    LeptonError,
    MeasurementError,
    ModelError,
    Place,
    ProviderError,
    RecipeError,
    UsageError,
)
from lepton_cli.graph import cost, feeds
from lepton_cli.graph.held import nothing_to_compress
from lepton_cli.machine import usable_threads
from lepton_cli.measure import accuracy
from lepton_cli.measure.metrics import formula
from lepton_cli.measure.spec import AccuracySpec
from lepton_cli.model import io
from lepton_cli.recipe.load import LoadedRecipe
from lepton_cli.recipe.schema import Recipe
from lepton_cli.report.model import DataFacts
from lepton_cli.tensors import TensorInfo
from lepton_cli.train.spec import TrainingOptions
from lepton_cli.train.steps import needed

if TYPE_CHECKING:
    from lepton_cli.data.dataset import Dataset
    from lepton_cli.data.memory import Arrays

#: Random samples to check with where there is no data.
CHECK_SAMPLES = 16
#: Bytes of weights from which models are run only when there is a reason to.
LARGE = io.EXTERNAL_ABOVE
#: No data in memory.
NOTHING: Mapping[str, Arrays] = {}
#: The largest batch.
MOST_SAMPLES = 100_000
#: What says that an input does not fit a model, and not that the model is broken.
MISFITS = frozenset({"model.run", "data.no-shape", "data.too-large"})
#: Samples that are scored before any work, to find metrics and labels that do not fit.
PROBED = 16


@dataclasses.dataclass(frozen=True)
class Job:
    """A model, a recipe and its data, all found and fitting together."""

    loaded: io.LoadedModel
    recipe: LoadedRecipe
    calibration: Dataset | None
    evaluation: SourceDataset | None
    #: Real samples where there are any, else random ones; none where those do not fit.
    check: Dataset
    threads: int
    allow_code: bool
    warnings: tuple[str, ...] = ()
    #: Why no made-up input runs through the model; empty where one does, or where there is data.
    misfit: str = ""
    training: TrainingData | None = None

    @property
    def spec(self) -> Recipe:
        """The recipe itself."""
        return self.recipe.recipe

    @property
    def runs(self) -> bool:
        """Whether the models are run at all."""
        return not self.misfit and (bool(self.data) or must_run(self.loaded.model, self.spec))

    def new_outputs(self, steps: Iterable[int] | None = None) -> frozenset[str]:
        """Outputs that the steps of these numbers make (default: all): the original has none to compare them with."""
        given = io.outputs(self.loaded.model)
        chosen = self.spec.steps if steps is None else [self.spec.steps[index] for index in steps]
        return frozenset(name for step in chosen for name in step.new_outputs(given))

    def teachers(self) -> dict[str, str]:
        """SHA-256 of the model files that the steps learn from, by name."""
        trained = [step.training for step in self.spec.steps]
        names = [one.teacher for one in trained if isinstance(one, TrainingOptions) and one.teacher is not None]
        paths = {name: self.recipe.base / name for name in names}
        return {name: io.load(path).sha256 for name, path in paths.items() if path.exists()}

    @property
    def data(self) -> dict[str, Dataset]:
        """The data sets that were given, by role."""
        whole = self.training.whole if self.training is not None else None
        roles = {"calibration": self.calibration, "evaluation": self.evaluation, "training": whole}
        return {role: data for role, data in roles.items() if data is not None}

    def feeds(self, batch: int) -> runtime.Values:
        """`batch` samples, repeated when the data holds fewer; as many as the model takes where it fixes them."""
        data = self.evaluation or self.calibration or self.check
        return next(iter(data.batches(size=batch, limit=batch))).sized(data.fixed_batch or batch)

    def timed(self, batch: int) -> runtime.Values:
        """See `Batch.timed`: what latency is measured with."""
        data = self.evaluation or self.calibration or self.check
        return next(iter(data.batches(size=batch, limit=batch))).timed(batch)

    def macs(self, model: ir.Model, names: Mapping[str, str] | None = None) -> dict[str, int]:
        """MACs by node for one sample with the shapes of the data. `names`: the model's input -> the data's."""
        known = self.one_sample_shapes() if not self.misfit else feeds.default_feeds(self.loaded.model)
        if names:
            known = {own: known[source] for own, source in names.items()}
        return cost.count(model, known, run=self.runs)

    def one_sample_shapes(self) -> dict[str, tuple[int, ...]]:
        """Input shapes of a batch of one."""
        return {name: tuple(array.shape) for name, array in self.feeds(1).items()}

    def data_facts(self) -> tuple[DataFacts, ...]:
        """What the report says about the data."""
        return tuple(_facts(role, data) for role, data in (self.data or {"check": self.check}).items())

    def locate(self, error: LeptonError) -> LeptonError:
        """The error with the place in the recipe that its `option` names."""
        if error.option:
            error.at(self.recipe.source.place(error.option))
        return error


def must_run(model: ir.Model, recipe: Recipe) -> bool:
    """Models with weights beyond 1.8 GB are run only for data, a measurement or a gate that the recipe names.

    Running one takes a multiple of its size in memory, where quantizing its weights takes less than a tenth.
    """
    if io.weight_bytes(model) < LARGE:
        return True
    asked = recipe.evaluate
    measured = asked.accuracy or ("latency" in asked.model_fields_set and asked.latency)
    gated = any(metrics.of(gate.metric).source != "structure" for gate in recipe.gates)
    return bool(measured or gated or recipe.data.calibration or recipe.data.evaluation or recipe.data.training)


def _facts(role: str, data: Dataset) -> DataFacts:
    return DataFacts.model_validate(
        {
            "role": role,
            "path": data.path,
            "samples": data.count,
            "fingerprint": data.fingerprint,
            "labelled": bool(data.label_names),
        }
    )


def prepare(
    model: Path | io.LoadedModel,
    recipe: LoadedRecipe,
    *,
    arrays: Mapping[str, Arrays] = NOTHING,
    allow_code: bool = False,
    shapes_given: Mapping[str, tuple[int, ...]] | None = None,
    run: Callable[[ir.Model], bool] = lambda model: True,
    steps: bool = True,
) -> Job:
    """Open model, data and providers. Raises LeptonError (exit code 2) with the place in the recipe.

    `arrays`: data that are in memory already, by role, instead of the recipe's. `run`:
    whether a model is tried on a sample of the data. `steps`: whether those of the recipe will run; training data are
    opened for nothing else.
    """
    loaded = io.load(model) if isinstance(model, Path) else model
    inputs = io.inputs(loaded.model)
    section = recipe.recipe.data
    warnings = [said for said in (loaded.note, nothing_to_compress(loaded.model), *recipe.warnings) if said]
    try:
        opened: dict[str, SourceDataset] = {}
        learned = None
        for name, spec in (("calibration", section.calibration), ("evaluation", section.evaluation)):
            if name in arrays:
                opened[name] = arrays[name].of(inputs, name)
            elif spec is not None:
                opened[name] = open_dataset(
                    spec, inputs, name=name, base=recipe.base, statistics=learned, allow_code=allow_code
                )
            learned = opened["calibration"].statistics if "calibration" in opened else None
        calibration, evaluation = opened.get("calibration"), opened.get("evaluation")
        training = None
        held = arrays.get("training")
        if steps and (section.training is not None or held is not None):
            training = open_training(
                section.training or TrainingSpec(path=memory.PATH),
                inputs,
                seed=recipe.recipe.seed,
                base=recipe.base,
                statistics=learned,
                allow_code=allow_code,
                arrays=held,
            )
        _check_providers(recipe.recipe)
        if steps:
            _check_training(recipe, training)
    except LeptonError as error:
        if error.option and not arrays.keys() & set(error.option[1:2]):
            error.at(recipe.source.place(error.option))
        raise
    if training is not None and not (recipe.recipe.tune or any(step.training for step in recipe.recipe.steps)):
        warnings.append("no step of the recipe trains: `data.training` is not used")
    used = [data for data in (calibration, training.whole if training else None) if data is not None]
    warnings += [note for data in (*used, evaluation) if data is not None for note in data.notes]
    if evaluation is not None:
        warnings += [said for data in used for said in _overlap(data, evaluation)]
    latency = recipe.recipe.evaluate.latency
    samples = max((CHECK_SAMPLES, *(latency.batch if latency else ())))
    if samples > MOST_SAMPLES:
        raise RecipeError(
            "recipe.batch",
            f"a batch of {samples} samples is more than the {MOST_SAMPLES} that can be measured",
            where=recipe.source.place(("evaluate", "latency", "batch")),
        )
    given = shapes_given or {}
    check_shapes(given, inputs)
    real = evaluation or calibration or (training.holdout if training else None)
    check = real or _made_up(loaded.model, recipe.recipe.seed, samples, given)
    threads = latency.threads[0] if latency and latency.threads else usable_threads()
    job = Job(loaded, recipe, calibration, evaluation, check, threads, allow_code, tuple(warnings), training=training)
    if not run(loaded.model):
        return job
    try:
        _check_runs(job, job.new_outputs() if steps else frozenset())
    except LeptonError as error:
        if error.code in MISFITS and real is None and not given:
            return _without_running(job, error)
        job.locate(error)
        raise
    return job


def _check_training(recipe: LoadedRecipe, training: TrainingData | None) -> None:
    """What a step that trains will need, before those in front of it have taken their time."""
    for index, step in enumerate(recipe.recipe.steps):
        trained = step.training
        if not isinstance(trained, TrainingOptions) or step.if_possible:
            continue
        try:
            needed(training, trained)
        except LeptonError as error:
            error.option = error.option or ("steps", index)
            raise
        if trained.teacher is not None and not (recipe.base / trained.teacher).exists():
            option = ("steps", index, "teacher")
            raise ModelError("model.missing", f"{recipe.base / trained.teacher} does not exist", option=option)


def _made_up(model: ir.Model, seed: int, samples: int, given: Mapping[str, tuple[int, ...]]) -> Dataset:
    return synthetic(feeds.sized(model, given), seed=seed, samples=samples, batch=4, shapes=given)


def _without_running(job: Job, error: LeptonError) -> Job:
    """The job where nothing is run: a guess that does not fit is no reason to refuse what needs no data."""
    reason = error.cause or error.message
    _check_metrics(job)
    hint = "give data, or the shapes of its inputs with --shape"
    warning = f"made-up inputs do not fit this model, so it was not run and nothing of it measured ({hint}): {reason}"
    return dataclasses.replace(job, misfit=reason, check=First(job.check, 0), warnings=(*job.warnings, warning))


def check_shapes(given: Mapping[str, tuple[int, ...]], inputs: Sequence[TensorInfo]) -> None:
    """Raise UsageError where `--shape` names no input of the model, or a shape that it does not take."""
    known = {info.name: info for info in inputs}
    for name, shape in given.items():
        if name not in known:
            raise UsageError(
                "usage.shape", f"--shape: the model has no input `{name}`", hint=f"its inputs: {', '.join(known)}"
            )
        wanted = known[name].shape
        if wanted is not None and not fits(shape, wanted):
            raise UsageError("usage.shape", f"--shape {name}={'x'.join(map(str, shape))} does not fit {known[name]}")


def _check_runs(job: Job, new: frozenset[str]) -> None:
    """The float model itself must load and run on the data before anything else is tried."""
    session = runtime.Session(_payload(job.loaded), threads=job.threads)
    batch = next(iter(job.check.batches(size=1, limit=1)), None)
    if batch is None:
        raise DataError("data.empty", "the data set holds no samples")
    outputs = session.run(batch.feeds)
    for name, value in outputs.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size and np.isnan(value).all():
            raise ModelError(
                "model.nan", f"output `{name}` of the original model is NaN everywhere on the first sample",
                hint="check the preprocessing and the model file",
            )  # fmt: skip

    if job.evaluation is not None and job.evaluation.label_names:
        _check_labels(job, outputs, new)
    else:
        _check_metrics(job)


def _check_metrics(job: Job) -> None:
    if job.spec.evaluate.accuracy:
        raise DataError(
            "data.no-labels",
            f"accuracy `{job.spec.evaluate.accuracy[0].metric}` needs labelled evaluation data",
            hint="add `labels:` to `data: evaluation:`, or leave `accuracy:` out: agreement needs no labels",
            option=("evaluate", "accuracy"),
        )


def _check_labels(job: Job, outputs: runtime.Values, new: frozenset[str]) -> None:
    """Metrics and labels must fit the model before any work: a few samples are scored, all cheap labels looked at.

    `new`: outputs that steps will make, of which only the names can be looked at. Raises DataError, RecipeError.
    """
    data, specs = job.evaluation, job.spec.evaluate.accuracy
    if data is None:
        return
    accuracy.check_names(specs, (*outputs, *new), data.label_names)
    first = next(iter(outputs))
    specs = tuple(spec for spec in specs or (AccuracySpec(metric="top1"),) if (spec.output or first) not in new)
    if not specs:
        return
    specs = specs if job.spec.evaluate.accuracy else ()
    feeds = job.feeds(1)
    cheap = data.count * sum(array.nbytes for array in feeds.values()) < CACHE_BYTES
    for spec in specs or (AccuracySpec(metric="top1"),):
        scores = outputs.get(spec.output or next(iter(outputs)))
        if not formula(spec).takes_classes or scores is None or scores.ndim != 2 or scores.shape[1] < 2:
            continue
        name = spec.labels or data.label_names[0]
        batches = data.batches(limit=None if cheap else PROBED)
        labels = np.concatenate([batch.labels[name] for batch in batches])
        if labels.dtype.kind in "biu":
            check_labels(labels, scores.shape[1])
    try:
        accuracy.score(
            _payload(job.loaded),
            data,
            specs,
            threads=job.threads,
            allow_code=job.allow_code,
            base=job.recipe.base,
            limit=PROBED,
        )
    except MeasurementError as error:
        # Of sorted samples the first are alike: whether the others are is seen when all are measured.
        if error.code != "measure.undefined" or data.count <= PROBED:
            raise


def _payload(loaded: io.LoadedModel) -> bytes | Path:
    large = loaded.bytes >= io.EXTERNAL_ABOVE or len(loaded.files) > 1 or loaded.given is not None
    return loaded.payload if large else io.to_bytes(loaded.model)


def _check_providers(recipe: Recipe) -> None:
    latency = recipe.evaluate.latency
    for index, provider in enumerate(latency.providers if latency else ()):
        try:
            runtime.provider_name(provider.name)
        except ProviderError as error:
            if not provider.optional:
                error.option = ("evaluate", "latency", "providers", index)
                raise


def _overlap(data: Dataset, evaluation: Dataset) -> list[str]:
    shared = len(set(data.sample_hashes()) & set(evaluation.sample_hashes()))
    if not shared:
        return []
    return [f"{shared} {data.name} samples are in the evaluation data too: the measured accuracy is too good"]


def place_text(place: Place | None) -> str:
    """`file:line` for reports."""
    return f"{place.file}:{place.line}" if place else ""
