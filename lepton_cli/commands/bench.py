"""`lepton bench`: the latency of one or several models, interleaved; the first is the reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lepton_cli.commands import adhoc
from lepton_cli.commands.assemble import broken, variant
from lepton_cli.commands.job import check_shapes
from lepton_cli.commands.run import Arguments, Run
from lepton_cli.data.dataset import Dataset
from lepton_cli.data.memory import Arrays
from lepton_cli.data.open import open_dataset, synthetic
from lepton_cli.errors import Interrupted, LeptonError
from lepton_cli.graph import cost, feeds, shapes
from lepton_cli.measure import latency
from lepton_cli.measure.results import LatencyChange, LatencyTable
from lepton_cli.measure.spec import LatencySpec
from lepton_cli.model import io
from lepton_cli.progress import Progress
from lepton_cli.recipe.load import LoadedRecipe
from lepton_cli.report import facts, words
from lepton_cli.report.model import Report, Variant
from lepton_cli.runtime import Values
from lepton_cli.tensors import TensorInfo

#: Input -> its shape, batch included.
InputShapes = Mapping[str, tuple[int, ...]]


def bench(
    models: Sequence[Path],
    options: Mapping[str, object],
    progress: Progress,
    *,
    data: Path | None = None,
    given: InputShapes | None = None,
    run: Run | None = None,
) -> Report:
    """Time the models. `options` as in a recipe's `evaluate.latency`; `given`: shapes of inputs, batch included;
    `run`: how it was asked for.

    Ctrl-C ends in a report of what was timed until then.

    Without data inputs are random. Raises LeptonError for what is wrong with options, models or data, and
    MeasurementError when a model does not run.
    """
    run = run or Run(Arguments("bench", tuple(models), data=data))
    timing = Timing(named([io.load(path) for path in models]), options, data, given)
    stopped = False
    try:
        table = timing.table(progress)
    except Interrupted as stop:
        if not isinstance(stop.partial, LatencyTable):
            raise
        table, stopped = stop.partial, True
    report = run.report(variants=timing.variants(), latency=table, warnings=timing.warnings)
    if stopped:
        return broken(report, None).model_copy(update={"headline": f"INTERRUPTED, partial: {headline(report)}"})
    return report.model_copy(update={"headline": headline(report)})


class Timing:
    """Models by name, the first is the reference, and what they are timed with: see `bench`."""

    def __init__(
        self,
        models: Mapping[str, io.LoadedModel],
        options: Mapping[str, object],
        data: Path | Arrays | None,
        given: InputShapes | None,
    ) -> None:
        self._models = models
        first = next(iter(models.values())).model
        inputs = io.inputs(first)
        recipe = adhoc.recipe(first, options, data=data if isinstance(data, Path) else None, memory=False)
        spec = recipe.recipe.evaluate.latency
        assert isinstance(spec, LatencySpec)
        self._spec = spec
        check_shapes(given or {}, inputs)
        self._renamed = {
            name: names
            for name, other in models.items()
            if (names := adhoc.match_inputs(inputs, io.inputs(other.model), str(other.path)))
        }
        arrays = data if not isinstance(data, Path) else None
        made = inputs if data is not None else feeds.sized(first, given)
        #: For the report.
        self.warnings = recipe.warnings
        self._feeds = _Feeds(made, recipe, max(spec.batch), given, arrays)

    def table(self, progress: Progress) -> LatencyTable:
        """The times. Raises what `bench` raises, and Interrupted with the table so far."""
        arms = {name: one.payload for name, one in self._models.items()}
        return latency.compare(arms, self._feeds, self._spec, progress=progress, input_names=self._renamed)

    def variants(self) -> tuple[Variant, ...]:
        """What the report says about each model."""
        one_sample = {name: tuple(array.shape) for name, array in self._feeds(1).items()}
        found = []
        for name, one in self._models.items():
            source = self._renamed.get(name, {})
            known = {info.name: one_sample[source.get(info.name, info.name)] for info in io.inputs(one.model)}
            found.append(variant(name, one, cost.macs(one.model, shapes.concrete(one.model, known))))
        return tuple(found)


def headline(report: Report) -> str:
    """Each model against the first, at the first provider, batch size and number of threads; the worst news first."""
    table = report.latency
    if table is None or not table.results:
        return "nothing could be measured"
    first = table.results[0]
    several = facts.several_threads(report)
    threads = f" on {words.plural(first.threads, 'thread')}" if several else ""
    where = f"({first.provider}, batch {first.batch}{threads})"
    changes = [c for c in table.changes if c.setting == first.setting]
    if not changes:
        return f"{first.variant}: {words.value(first.median, 'time')} {where}"
    name = first.variant if len(changes) == 1 else ""
    said = [_said(change, name) for change in sorted(changes, key=lambda change: -change.ratio)]
    return f"{', '.join(said)} {where}"


def _said(change: LatencyChange, first: str) -> str:
    """In words; `first` is named where it is the only one to compare with."""
    found = words.speed(change.ratio, change.low, change.high)
    than, like = (f" than {first}", f"as fast as {first}") if first else ("", "as fast")
    if found == "slower":
        return f"{change.variant} is {words.times(change.ratio)} SLOWER{than}"
    if found == "faster":
        return f"{change.variant} is {words.times(1 / change.ratio)} faster{than}"
    return f"{change.variant} is {like if found == 'same' else f'not clearly faster or slower{than}'}"


class _Feeds:
    """Inputs of any batch size: from the data, repeated where it holds fewer samples, or random."""

    def __init__(
        self,
        inputs: Sequence[TensorInfo],
        recipe: LoadedRecipe,
        largest: int,
        given: InputShapes | None,
        arrays: Arrays | None,
    ) -> None:
        section = recipe.recipe.data
        spec = section.evaluation or section.calibration
        try:
            self._data: Dataset = (
                arrays.of(inputs, "data")
                if arrays is not None
                else open_dataset(spec, inputs, name="data", base=Path())
                if spec is not None
                else synthetic(inputs, seed=0, samples=largest, batch=largest, shapes=given)
            )
        except LeptonError as error:
            if error.code == "data.no-shape":
                error.hint = "give --data FILE, or --shape NAME=1x3x224x224"
            raise

    def __call__(self, batch: int) -> Values:
        return next(iter(self._data.batches(size=batch, limit=batch))).timed(batch)


def named(models: Sequence[io.LoadedModel]) -> dict[str, io.LoadedModel]:
    """The models by a short name: their file's, or their graph's where they have none."""
    files = iter(_names([one.path for one in models if one.files]))
    names = [next(files) if one.files else one.model.graph.name or "model" for one in models]
    return dict(zip(_numbered(names), models, strict=True))


def _names(models: Sequence[Path]) -> list[str]:
    """A short name for each: the file's, with as many folders before it as tell them apart, numbered where none do."""
    paths = [Path(os.path.abspath(path)) for path in models]
    names: list[str] = []
    for depth in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join((*path.parts[-depth:-1], path.stem)) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return _numbered(names)


def _numbered(names: Sequence[str]) -> list[str]:
    return [
        name if names.count(name) == 1 else f"{name}#{names[: index + 1].count(name)}"
        for index, name in enumerate(names)
    ]
