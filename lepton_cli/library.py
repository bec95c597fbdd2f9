"""lepton from Python: the work of the commands on models and data that are at hand.

Models are paths, `onnx.ModelProto` or `onnx_ir.Model`, and the one given is never changed. Nothing is printed, and
nothing is written but into a temporary folder, unless an argument says where. What goes wrong is a LeptonError, with
the code that the command line shows; Ctrl-C is a KeyboardInterrupt, with what was measured until then in `partial`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lepton_cli.cache import Cache
from lepton_cli.commands import bench as benching
from lepton_cli.commands import compress as compressing
from lepton_cli.commands import evaluate as evaluating
from lepton_cli.commands import measuring, workspace
from lepton_cli.commands.job import must_run, prepare
from lepton_cli.commands.resume import Kept
from lepton_cli.commands.run import Arguments, Run
from lepton_cli.data.memory import Arrays
from lepton_cli.data.spec import DataSpec, TrainingSpec
from lepton_cli.errors import LeptonError, UsageError
from lepton_cli.measure.results import Accuracy, LatencyTable
from lepton_cli.measure.spec import AccuracySpec
from lepton_cli.model import given, io
from lepton_cli.model.given import Model
from lepton_cli.progress import Progress, Silent
from lepton_cli.recipe.load import LoadedRecipe, from_dict, from_recipe, load_recipe
from lepton_cli.recipe.schema import Recipe
from lepton_cli.report.model import Report, StepRecord
from lepton_cli.step import Options

#: Samples in memory, or where they lie: as in a recipe's `data:`, relative to the working folder.
Data = Arrays | DataSpec


@dataclasses.dataclass(frozen=True)
class Result:
    """What `compress` made: the report of `report.json`, the model, and the files written, the model first."""

    report: Report
    model: ir.Model
    files: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Applied:
    """What `apply` made: the model, and what each step did, node by node."""

    model: ir.Model
    steps: tuple[StepRecord, ...]


def compress(
    model: Model,
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    data: Data | None = None,
    *,
    evaluation: Data | None = None,
    training: Data | None = None,
    output: str | os.PathLike[str] | None = None,
    cache: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Run a recipe, measure original and result side by side, judge the gates: `lepton compress`.

    `recipe`: a file, a Recipe, or a mapping as in a file. `data`, `evaluation` and `training` stand in for the recipe's
    calibration, evaluation and training data. `output`: the folder that receives the model and the reports. `cache`:
    keep ranges and rankings for later runs, as the command does. A gate that fails is no error: `report.status` says
    it. Raises LeptonError; where `output` is given and the work had begun, a partial report is there.
    """
    loaded, arrays = _with_data(_recipe(recipe), calibration=data, evaluation=evaluation, training=training)
    with workspace.temporary() as scratch:
        made = compressing.compress(
            given.load(model, scratch),
            loaded,
            Path(output) if output is not None else None,
            progress or Silent(),
            arrays=arrays,
            cache=_cache(cache),
            run=Run(Arguments("compress", models=())),
        )
        if made.error is not None:
            raise made.error
        assert made.model is not None
        return Result(made.report, io.held(made.model, scratch), made.files)


def apply(
    model: Model,
    *steps: Options,
    data: Data | None = None,
    evaluation: Data | None = None,
    training: Data | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
    cache: bool = False,
    progress: Progress | None = None,
) -> Applied:
    """Run steps, each checked like in a recipe, and measure nothing: `apply(model, Simplify(), QuantizeStatic())`.

    `data` calibrates; `evaluation` is for options that look at accuracy; `training` is for the steps that train, 5 % of
    it kept apart to judge by (`TrainingSpec` says how much, and what is changed at random). `provider` and `threads`:
    where the model will run. `cache`: see `compress`. Raises LeptonError.
    """
    latency = {"providers": (provider,), **({} if threads is None else {"threads": threads})}
    made = from_dict({"version": 1, "seed": seed, "steps": steps, "evaluate": {"latency": latency, "memory": False}})
    recipe, arrays = _with_data(made, calibration=data, evaluation=evaluation, training=training)
    with workspace.temporary() as scratch:
        job = prepare(
            given.load(model, scratch),
            recipe,
            arrays=arrays,
            run=lambda loaded: bool(arrays) or must_run(loaded, recipe.recipe),
        )
        context = measuring.context(job, scratch, progress or Silent(), _cache(cache))
        records: list[StepRecord] = []
        try:
            result = compressing.run_steps(job, context, Kept(None, job, context), records, job.loaded.model)
        except LeptonError as error:
            job.locate(error)
            raise
        return Applied(io.held(result, scratch), tuple(records))


def bench(
    *models: Model,
    data: Arrays | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    providers: Sequence[str] = ("cpu",),
    batch: int | Sequence[int] = 1,
    threads: int | Sequence[int] | None = None,
    time: str = "10 s",
    precision: str = "2 %",
    progress: Progress | None = None,
) -> LatencyTable:
    """The latency of models, interleaved; the first is the reference that the others are compared with: `lepton bench`.

    Inputs are random without `data`; `shapes` gives those that the model leaves open, batch included. `time`: the
    longest for one provider and batch size; `precision`: half the width of the interval to stop at. Raises LeptonError.
    """
    if not models:
        raise UsageError("usage.model", "there is no model to measure")
    options = {
        "providers": tuple(providers),
        "batch": batch if isinstance(batch, int) else tuple(batch),
        "threads": () if threads is None else threads if isinstance(threads, int) else tuple(threads),
        "time": time,
        "precision": precision,
    }
    open_shapes = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    with workspace.temporary() as scratch:
        named = benching.named([given.load(model, scratch) for model in models])
        return benching.Timing(named, options, data, open_shapes).table(progress or Silent())


def evaluate(
    model: Model,
    data: Data,
    metrics: str | AccuracySpec | Sequence[str | AccuracySpec] = (),
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Accuracy:
    """The accuracy of a model on labelled data: `lepton evaluate`.

    `metrics`: such as `top1` or `AccuracySpec(metric="topk", k=3)`; without any, top-1 where labels look like classes,
    else the root mean squared error. The values are in `.values["original"]`. Raises LeptonError.
    """
    several = (metrics,) if isinstance(metrics, (str, AccuracySpec)) else metrics
    accuracy = tuple({"metric": metric} if isinstance(metric, str) else metric for metric in several)
    latency = False if threads is None else {"threads": threads}
    measured = {"accuracy": accuracy, "latency": latency, "memory": False}
    made = from_dict({"version": 1, "steps": ({"step": "simplify"},), "evaluate": measured})
    recipe, arrays = _with_data(made, evaluation=data)
    with workspace.temporary() as scratch:
        job = prepare(given.load(model, scratch), recipe, arrays=arrays, steps=False)
        return evaluating.measure(job, progress or Silent())


def _recipe(recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str]) -> LoadedRecipe:
    if isinstance(recipe, Recipe):
        return from_recipe(recipe)
    if isinstance(recipe, (str, os.PathLike)):
        return load_recipe(Path(recipe))
    return from_dict(recipe)


def _with_data(recipe: LoadedRecipe, **given: Data | None) -> tuple[LoadedRecipe, dict[str, Arrays]]:
    """The recipe with other data, by role, and those of them that are in memory."""
    arrays: dict[str, Arrays] = {}
    section: dict[str, DataSpec | None] = {}
    for name, data in given.items():
        if isinstance(data, Arrays):
            arrays[name], section[name] = data, None
        elif isinstance(data, DataSpec):
            placed = data.model_copy(update={"path": os.path.relpath(data.path, recipe.base)})
            section[name] = TrainingSpec(**dict(placed)) if name == "training" else placed
        elif data is not None:
            raise UsageError(
                "usage.data",
                f"a {type(data).__name__} is no data set",
                hint="give lepton.Arrays({input: array}, labels), or lepton.DataSpec(path=…)",
            )
    changed = recipe.recipe.data.model_copy(update=section)
    value = recipe.recipe.model_copy(update={"data": changed})
    return LoadedRecipe(value, recipe.path, recipe.source), arrays


def _cache(wanted: bool) -> Cache:
    return Cache.usual() if wanted else Cache(None)
