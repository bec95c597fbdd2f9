"""Accuracy of several models on the same samples, with paired differences, and agreement with the first model."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lepton_cli import interrupt
from lepton_cli.data.dataset import Array, Dataset
from lepton_cli.data.groups import Groups
from lepton_cli.errors import DataError, Interrupted, LeptonError, RecipeError
from lepton_cli.measure import fidelity, hooks, metrics, rows, stream
from lepton_cli.measure.arms import InputNames, NewOutputs, Payload
from lepton_cli.measure.classes import Predictions
from lepton_cli.measure.results import Accuracy, Confusion, Flip, MetricChange, MetricValue
from lepton_cli.measure.spec import AccuracySpec
from lepton_cli.measure.track import Track
from lepton_cli.probe.parts import Segments
from lepton_cli.progress import Progress
from lepton_cli.runtime import Session


def evaluate(
    arms: Mapping[str, Payload | Session],
    dataset: Dataset,
    specs: Sequence[AccuracySpec] = (),
    *,
    threads: int | None = None,
    provider: str = "cpu",
    progress: Progress | None = None,
    allow_code: bool = False,
    base: Path = Path(),
    seed: int = 0,
    limit: int | None = None,
    input_names: InputNames | None = None,
    ways: Mapping[str, Sequence[Segments]] | None = None,
    searched: Mapping[str, Sequence[str]] | None = None,
    new: NewOutputs | None = None,
    groups: Mapping[str, Groups] | None = None,
) -> Accuracy:
    """Run all arms together over the data; the first one is the original that the others are compared with.

    Without specs: top-1 where labels look like classes, the root mean squared error for other numbers, agreement
    alone without labels. `base`: the folder that functions and alphabets are relative to; `ways`: how the graph cuts
    outputs into parts (`probe.parts`); `searched`: outputs whose size follows from the data -> those that are compared
    in their place (`probe.comparable`); `new`: by arm, outputs that steps made, with which nothing of the original is
    compared, and whose metrics are those of the arms that have them; `groups`: of the data set's samples, by column.
    Raises RecipeError for an output or label name that does not exist, DataError for labels that do not fit,
    MeasurementError for NaN, and Interrupted with the accuracy on the samples until then.
    """
    run = _Run(arms, dataset, specs, allow_code, base, seed, ways, searched, new, groups)
    try:
        for results in stream.run(
            arms,
            dataset,
            provider=provider,
            threads=threads,
            limit=limit,
            input_names=input_names,
            new=new,
            progress=progress,
        ):
            with interrupt.later():
                run.add(results)
    except KeyboardInterrupt as stop:
        raise Interrupted(run.partial()) from stop
    return run.accuracy()


def score(
    model: Payload,
    dataset: Dataset,
    specs: Sequence[AccuracySpec] = (),
    *,
    threads: int | None = None,
    provider: str = "cpu",
    allow_code: bool = False,
    base: Path = Path(),
    limit: int | None = None,
) -> float:
    """One number for one model, higher is better: the weighted mean of its metrics.

    Errors (mae, rmse) enter as 1 - error / spread of the labels, so that they too are at most 1. Raises DataError
    when the data has no labels.
    """
    run = _Run({"model": model}, dataset, specs, allow_code, base, seed=0)
    for results in stream.run({"model": model}, dataset, provider=provider, threads=threads, limit=limit):
        run.add(results)
    if not run.tracks:
        raise DataError("data.no-labels", f"`{dataset.name}` has no labels to measure accuracy with")
    return weighted(run.tracks, "model")


class _Run:
    """Everything collected while the batches pass."""

    def __init__(
        self,
        arms: Mapping[str, Payload | Session],
        dataset: Dataset,
        specs: Sequence[AccuracySpec],
        allow_code: bool,
        base: Path,
        seed: int,
        ways: Mapping[str, Sequence[Segments]] | None = None,
        searched: Mapping[str, Sequence[str]] | None = None,
        new: NewOutputs | None = None,
        groups: Mapping[str, Groups] | None = None,
    ) -> None:
        self.groups = groups or {}
        self.arms, self.ways, self.searched = list(arms), ways or {}, searched or {}
        self.new = {arm: tuple((new or {}).get(arm, ())) for arm in self.arms}
        #: Outputs that some arm has of its own.
        self.made = dict.fromkeys(name for names in self.new.values() for name in names)
        self.dataset, self.specs, self.seed, self._base = dataset, tuple(specs), seed, base
        self.hooks = {
            index: hooks.load(spec.function, base, allow_code, ("evaluate", "accuracy", index, "function"))
            for index, spec in enumerate(self.specs)
            if spec.metric == "python"
        }
        self.tracks: list[Track] = []
        self.fidelity: dict[tuple[str, str], fidelity.Tracker] = {}
        self.predictions: Predictions | None = None
        #: By output with labels: the metric whose classes are followed. `predictions` is the first of them.
        self._classified: dict[str, tuple[Track, Predictions]] = {}
        self._started = False
        self._count = 0

    def add(self, results: stream.Results) -> None:
        """One batch."""
        reference = results.outputs[self.arms[0]]
        self._count += results.count
        if not self._started:
            own = {name: results.outputs[arm][name] for arm in self.arms for name in self.new[arm]}
            self._start({**reference, **own}, results.labels)
            self._started = True
        for arm in self.arms:
            for track in self._tracks(arm):
                track.add(arm, results)
        for (arm, output), tracker in self.fidelity.items():
            tracker.add(reference[output], results.outputs[arm][output], results.count)
        if self.predictions is not None and not results.labels:
            # Rows that are no samples (the detections of all pictures) are no classes either.
            found = [results.outputs[arm][self.predictions.output] for arm in self.arms]
            if any(not array.ndim or len(array) != results.count for array in found):
                self.predictions = None
            else:
                self.predictions.add(dict(zip(self.arms, found, strict=True)), None)
        for output, (track, classes) in self._classified.items():
            labels = track.class_labels(results.labels, reference)
            classes.add({arm: results.outputs[arm][output] for arm in self.arms}, labels)

    def _tracks(self, arm: str) -> list[Track]:
        """What is measured of an arm: of new outputs where it has them."""
        return [track for track in self.tracks if track.output not in self.made or track.output in self.new[arm]]

    def _start(self, outputs: dict[str, Array], labels: dict[str, Array]) -> None:
        """Settle what is measured once the first outputs are known."""
        for index, spec in enumerate(self.specs or default_specs(outputs, labels)):
            output = _output_name(spec, index, outputs)
            label = label_name(spec, index, output, tuple(labels))
            self.tracks.append(Track(spec, output, label, self.hooks.get(index), index=index, base=self._base))
        inner = {name for names in self.searched.values() for name in names}
        deciders = {
            name: None if name in inner else metrics.decider(value, name=name) for name, value in outputs.items()
        }
        for track in self.tracks:
            if track.hook is not None or track.output not in outputs:
                continue
            if not track.formula.takes_classes:
                if not track.formula.takes_text:
                    deciders[track.output] = None
                continue
            own = track.class_labels(labels, outputs)
            deciders[track.output] = metrics.decider(outputs[track.output], own)
            if own.ndim == 1 and track.output not in {*self.made, *self._classified}:
                names = tuple(self.dataset.class_names.get(track.label, ()))
                self._classified[track.output] = track, Predictions(track.output, names)
        self.predictions = next((classes for _, classes in self._classified.values()), None)
        if self.predictions is None and not labels:
            scores = next(
                (name for name, one in deciders.items() if name not in self.made and _one_each(outputs[name], one)),
                None,
            )
            self.predictions = Predictions(scores) if scores else None
        self.fidelity = {
            (arm, name): fidelity.Tracker(arm, name, deciders[name], self.ways.get(name, ()))
            for arm in self.arms[1:]
            for name in outputs
            if name not in self.searched and name not in self.made
        }

    def partial(self) -> Accuracy | None:
        """The result on the samples so far, said to be that; `None` where they say nothing."""
        try:
            found = self.accuracy()
        except LeptonError:
            return None
        said = f"accuracy is that of the first {self._count} of {self.dataset.count} samples: the run was interrupted"
        return found.model_copy(update={"warnings": (said, *found.warnings)})

    def accuracy(self) -> Accuracy:
        """The finished result."""
        if not self._started:
            raise DataError("data.empty", f"`{self.dataset.name}` has no samples")
        reference = self.arms[0]
        warnings = [
            f"output `{t.output}` of `{t.variant}` has another shape than before in {t.different_shapes} batches"
            ": these count as disagreement, and the other figures are of the rest"
            for t in self.fidelity.values()
            if t.different_shapes
        ]
        if self.searched and len(self.arms) > 1:
            compared = dict.fromkeys(name for names in self.searched.values() for name in names)
            warnings.append(
                f"the size of {_listed(self.searched)} follows from the data: {_listed(compared)}, from which "
                "they are chosen, are compared in their place"
            )
        warnings += [f"new output `{name}`: nothing to compare with" for name in self.made]
        flips: tuple[Flip, ...] = ()
        flips_total = 0
        confusions: tuple[Confusion, ...] = ()
        if self.predictions is not None:
            warnings += self.predictions.suspicions(reference)
            if len(self.arms) > 1:
                flips, flips_total = self.predictions.flips(reference, self.arms[1])
                confusions = self.predictions.confusions(reference, self.arms[1])
        values = {arm: tuple(track.result(arm, self.seed) for track in self._tracks(arm)) for arm in self.arms}
        shared = self._tracks(reference)
        changes = tuple(track.change(reference, arm, self.seed) for arm in self.arms[1:] for track in shared)
        if len({track.output for track in shared}) > 1 or len({track.spec.weight for track in shared}) > 1:
            values = {arm: (*found, self._score(arm)) for arm, found in values.items()}
            changes += tuple(self._score_change(arm) for arm in self.arms[1:])
        found = Accuracy(
            values=values,
            changes=changes,
            fidelity=tuple(tracker.result() for tracker in self.fidelity.values()),
            confusions=confusions,
            flips=flips,
            flips_total=flips_total,
            **self._by_class(),
        )
        return found.model_copy(update={"warnings": (*warnings, *rows.warnings(found))})

    def _by_class(self) -> dict[str, Any]:
        """Changes by class and group in every output of classes, judged together, as parts of an `Accuracy`."""
        if len(self.arms) < 2:
            return {}
        first, second = self.arms[:2]
        counted = {}
        for output, (_, found) in self._classified.items():
            counted[output, ""] = found.counts(first, second)
            for column, groups in self.groups.items():
                counted[output, column] = found.counts(first, second, groups)
        classes, spread = rows.judged(counted)
        return {"classes": classes, "spread": spread}

    def _weighted(self, arm: str) -> float:
        return weighted(self._tracks(self.arms[0]), arm)

    def _score(self, arm: str) -> MetricValue:
        """All metrics as one number, weighted: of several outputs none alone says how good a model is."""
        return MetricValue(metric="score", output="", value=self._weighted(arm), low=None, high=None, n=self._count)

    def _score_change(self, arm: str) -> MetricChange:
        before, after = (self._weighted(name) for name in (self.arms[0], arm))
        return MetricChange(
            metric="score",
            output="",
            original=before,
            compressed=after,
            difference=after - before,
            low=None,
            high=None,
            n=self._count,
            variant=arm,
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _one_each(output: Array, decide: fidelity.Decide | None) -> bool:
    """Whether an output of floats has one decision per sample."""
    floats = decide is not None and np.issubdtype(output.dtype, np.floating)
    return floats and decide is not None and decide(output).size == len(output)


def weighted(tracks: Sequence[Track], arm: str) -> float:
    """Mean of the metrics by their weights, as shares of 1, higher is better."""
    total = sum(track.spec.weight for track in tracks)
    return sum(track.spec.weight * track.score(arm) for track in tracks) / total


def default_specs(outputs: Mapping[str, Array], labels: Mapping[str, Array]) -> tuple[AccuracySpec, ...]:
    """Top-1 for whole-number labels that fit the output's classes, the root mean squared error for other numbers."""
    if not labels:
        return ()
    own = labels[label_name(AccuracySpec(metric="top1"), 0, next(iter(outputs)), tuple(labels))]
    output = next(iter(outputs.values()))
    if not np.issubdtype(own.dtype, np.number):
        return (AccuracySpec(metric="top1"),)
    whole = not np.issubdtype(own.dtype, np.floating) or bool((own == np.round(own)).all())
    classes = output.size // max(1, own.size)
    if whole and (classes > 1 or not np.issubdtype(output.dtype, np.floating) or bool(np.isin(own, (0, 1)).all())):
        return (AccuracySpec(metric="top1"),)
    return (AccuracySpec(metric="rmse"),)


def check_names(specs: Sequence[AccuracySpec], outputs: Sequence[str], labels: Sequence[str]) -> None:
    """Raise RecipeError for a metric of an output or of labels that are not among these."""
    for index, spec in enumerate(specs):
        label_name(spec, index, _output_name(spec, index, outputs), labels)


def _output_name(spec: AccuracySpec, index: int, outputs: Collection[str]) -> str:
    if spec.output is None:
        return next(iter(outputs))
    if spec.output not in outputs:
        raise _unknown(f"the model has no output `{spec.output}`", spec.output, outputs, index, "output")
    return spec.output


def label_name(spec: AccuracySpec, index: int, output: str, names: Sequence[str]) -> str:
    """Which labels belong to a metric: the named ones, those named like the output, `labels`, or the only ones."""
    if not names:
        raise DataError(
            "data.no-labels",
            f"metric `{spec.metric}` needs labels, and the evaluation data has none",
            hint="add `labels:`",
        )
    if spec.labels is not None:
        if spec.labels not in names:
            raise _unknown(f"the data has no labels `{spec.labels}`", spec.labels, names, index, "labels")
        return spec.labels
    return next((name for name in (output, "labels") if name in names), names[0])


def _unknown(message: str, word: str, known: Collection[str], index: int, key: str) -> RecipeError:
    near = difflib.get_close_matches(word, list(known), 1)
    return RecipeError(
        "recipe.unknown-name",
        message,
        cause=f"it has {', '.join(known)}",
        hint=f"did you mean `{near[0]}`?" if near else None,
        option=("evaluate", "accuracy", index, key),
    )
