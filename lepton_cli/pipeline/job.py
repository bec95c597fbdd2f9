"""Everything a run needs, opened and checked before any work is done."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lepton_cli import runtime
from lepton_cli.data.open import open_dataset, synthetic
from lepton_cli.errors import DataError, LeptonError, ModelError, Place, ProviderError
from lepton_cli.graph import cost, io, shapes
from lepton_cli.recipe.load import LoadedRecipe
from lepton_cli.recipe.schema import Recipe
from lepton_cli.report.model import DataFacts

if TYPE_CHECKING:
    from lepton_cli.data.dataset import Dataset

#: Samples of the data sets that are compared for overlap.
CHECK_SAMPLES = 16


@dataclasses.dataclass(frozen=True)
class Job:
    """A model, a recipe and its data, all found and fitting together."""

    loaded: io.Loaded
    recipe: LoadedRecipe
    calibration: Dataset | None
    evaluation: Dataset | None
    #: Real samples where there are any, else random ones.
    check: Dataset
    threads: int
    allow_code: bool
    warnings: tuple[str, ...] = ()

    @property
    def spec(self) -> Recipe:
        """The recipe itself."""
        return self.recipe.recipe

    def feeds(self, batch: int) -> runtime.Arrays:
        """`batch` samples, repeated when the data holds fewer."""
        data = self.evaluation or self.calibration or self.check
        feeds = next(iter(data.batches(size=batch, limit=batch))).feeds
        return {name: _repeat(array, batch) for name, array in feeds.items()}

    def macs(self, model: ir.Model) -> dict[str, int]:
        """MACs by node for one sample with the shapes of the data."""
        return cost.macs(model, shapes.concrete(model, self.one_sample_shapes()))

    def one_sample_shapes(self) -> dict[str, tuple[int, ...]]:
        """Input shapes of a batch of one."""
        return {name: tuple(array.shape) for name, array in self.feeds(1).items()}

    def data_facts(self) -> tuple[DataFacts, ...]:
        """What the report says about the data."""
        roles = (("calibration", self.calibration), ("evaluation", self.evaluation))
        found = [_facts(role, data) for role, data in roles if data is not None]
        return tuple(found) if found else (_facts("check", self.check),)

    def locate(self, error: LeptonError) -> LeptonError:
        """The error with the place in the recipe that its `option` names."""
        if error.option:
            error.at(self.recipe.source.place(error.option))
        return error


def _repeat(array: np.ndarray, count: int) -> np.ndarray:
    if array.ndim == 0 or len(array) >= count or len(array) == 0:
        return array[:count] if array.ndim else array
    return np.concatenate([array] * -(-count // len(array)))[:count]


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
    model: Path,
    recipe: LoadedRecipe,
    *,
    allow_code: bool = False,
    shapes_given: Mapping[str, tuple[int, ...]] | None = None,
) -> Job:
    """Open model, data and providers. Raises LeptonError (exit code 2) with the place in the recipe."""
    loaded = io.load(model)
    inputs = io.inputs(loaded.model)
    section = recipe.recipe.data
    warnings: list[str] = []
    try:
        calibration = (
            open_dataset(section.calibration, inputs, name="calibration", base=recipe.base, allow_code=allow_code)
            if section.calibration
            else None
        )
        statistics = calibration.statistics if calibration is not None else None
        evaluation = (
            open_dataset(
                section.evaluation,
                inputs,
                name="evaluation",
                base=recipe.base,
                statistics=statistics,
                allow_code=allow_code,
            )
            if section.evaluation
            else None
        )
        _check_providers(recipe.recipe)
    except LeptonError as error:
        if error.option:
            error.at(recipe.source.place(error.option))
        raise
    warnings += [note for data in (calibration, evaluation) if data is not None for note in data.notes]
    if calibration is not None and evaluation is not None:
        warnings += _overlap(calibration, evaluation)
    check = (
        evaluation
        or calibration
        or synthetic(inputs, seed=recipe.recipe.seed, samples=CHECK_SAMPLES, batch=4, shapes=shapes_given)
    )
    latency = recipe.recipe.evaluate.latency
    threads = (latency.threads if latency else None) or runtime.usable_threads()
    job = Job(loaded, recipe, calibration, evaluation, check, threads, allow_code, tuple(warnings))
    _check_runs(job)
    return job


def _check_runs(job: Job) -> None:
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


def _payload(loaded: io.Loaded) -> bytes | Path:
    return loaded.path if loaded.bytes >= io.EXTERNAL_ABOVE or len(loaded.files) > 1 else io.to_bytes(loaded.model)


def _check_providers(recipe: Recipe) -> None:
    latency = recipe.evaluate.latency
    for index, provider in enumerate(latency.providers if latency else ()):
        try:
            runtime.provider_name(provider.name)
        except ProviderError as error:
            if not provider.optional:
                error.option = ("evaluate", "latency", "providers", index)
                raise


def _overlap(calibration: Dataset, evaluation: Dataset) -> list[str]:
    shared = len(set(calibration.sample_hashes()) & set(evaluation.sample_hashes()))
    if not shared:
        return []
    return [f"{shared} calibration samples are in the evaluation data too: the measured accuracy is too good"]


def cache_folder() -> Path | None:
    """Where results for later runs are kept: `LEPTON_CACHE`, else the user's cache folder; `None`: nowhere."""
    chosen = os.environ.get("LEPTON_CACHE")
    if chosen == "":
        return None
    folder = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lepton"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def place_text(place: Place | None) -> str:
    """`file:line` for reports."""
    return f"{place.file}:{place.line}" if place else ""
