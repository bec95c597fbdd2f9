"""One metric followed over all batches for all models: its values, intervals and paired differences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.data.dataset import Array, Batch
from lepton_cli.errors import DataError, LeptonError, MeasurementError
from lepton_cli.measure import metrics, statistics
from lepton_cli.measure.formula import KeptColumns
from lepton_cli.measure.hooks import Hook
from lepton_cli.measure.results import MetricChange, MetricValue
from lepton_cli.measure.spec import AccuracySpec
from lepton_cli.measure.stream import Results


class Track:
    """The kept values of one metric."""

    def __init__(
        self,
        spec: AccuracySpec,
        output: str,
        label: str,
        hook: Hook | None = None,
        *,
        index: int = 0,
        base: Path = Path(),
    ) -> None:
        """`index`: its position in the recipe; `base`: the folder that files in it are relative to."""
        self.spec, self.output, self.label, self.hook, self._index = spec, output, label, hook, index
        self.about, self.formula = spec.about, metrics.formula(spec, base)
        self._columns: dict[str, list[KeptColumns]] = {}
        self._deferred: dict[str, list[tuple[Array, Array]]] = {}
        self._everything: dict[str, list[Results]] = {}
        self._labels: list[Array] = []
        self._done: dict[str, KeptColumns] = {}
        self._numbers: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, arm: str, results: Results) -> None:
        """One batch of one model."""
        if self.hook is not None:
            self._add_hook(arm, results, self.hook)
            return
        outputs, labels, count = results.outputs[arm], results.labels, results.count
        if self.output not in outputs:
            raise MeasurementError("measure.output", f"output `{self.output}` is not a tensor")
        output, own = outputs[self.output], labels[self.label]
        if len(output) != count or len(own) != count:
            raise DataError(
                "data.labels",
                f"output `{self.output}` has {len(output)} rows and `{self.label}` {len(own)} for {count} samples",
                hint="metrics need one row per sample; use `metric: python` for anything else",
            )
        if self.formula.takes_classes:
            own = self.class_labels(labels, outputs)
            if output.size == count and np.issubdtype(output.dtype, np.floating):
                # One number per sample: whether it is a probability or a logit shows only in all of them.
                self._deferred.setdefault(arm, []).append((output.reshape(-1), own))
                return
        elif self.formula.takes_text:
            own = results.texts.get(self.label, own)
            if own.dtype.kind not in "OU":
                raise DataError(
                    "data.labels",
                    f"labels `{self.label}` are numbers, and `{self.about.short}` compares text",
                    hint="`label_type: text` keeps labels as they are written, also those that look like numbers",
                    option=("data", "evaluation", "labels"),
                )
        elif not np.issubdtype(own.dtype, np.number):
            raise DataError("data.labels", f"labels `{self.label}` are not numbers, which `{self.about.short}` needs")
        kept = self._columns.setdefault(arm, [])
        kept.append(self._keep(output, own))
        if self.formula.constant is not None and len(self._labels) < len(kept):
            self._labels.append(own)

    def class_labels(self, labels: Mapping[str, Array], outputs: Mapping[str, Array]) -> Array:
        """The labels of this metric as classes of its output."""
        return metrics.class_labels(labels[self.label], outputs[self.output])

    def _add_hook(self, arm: str, results: Results, hook: Hook) -> None:
        """Per-sample values are kept as they come; a function that wants everything at once gets it at the end."""
        if arm not in self._everything:
            labels = {**results.labels, **results.texts}
            found = hook(results.outputs[arm], labels, results.fed.feeds, results.count)
            if isinstance(found, np.ndarray):
                self._columns.setdefault(arm, []).append(found[:, None])
                return
        fed = results.fed if hook.takes_inputs else Batch({}, {}, results.start)
        kept = dataclasses.replace(results, outputs={arm: results.outputs[arm]}, fed=fed)
        self._everything.setdefault(arm, []).append(kept)
        self._counts[arm] = self._counts.get(arm, 0) + results.count

    def columns(self, arm: str) -> KeptColumns | None:
        """Kept values of all samples; `None` for a hook that gives a single number."""
        if arm in self._everything:
            return None
        if arm not in self._done:
            if arm in self._deferred:
                outputs, labels = (np.concatenate(part) for part in zip(*self._deferred[arm], strict=True))
                self._done[arm] = self._keep(outputs, labels)
            else:
                self._done[arm] = _stacked(self._columns[arm])
        return self._done[arm]

    def _keep(self, output: Array, labels: Array) -> KeptColumns:
        """An error about an option of the metric names it as the recipe does."""
        try:
            return self.formula.keep(output, labels)
        except LeptonError as error:
            if error.option and error.option[0] in AccuracySpec.model_fields:
                error.option = ("evaluate", "accuracy", self._index, *error.option)
            raise

    def value(self, arm: str) -> float:
        """The metric over all samples."""
        columns = self.columns(arm)
        if columns is not None:
            return float(self.formula.value(columns))
        if arm not in self._numbers:
            parts = self._everything[arm]
            outputs = _joined([part.outputs[arm] for part in parts])
            labels = _joined([{**part.labels, **part.texts} for part in parts])
            inputs = {name: _input(parts, name) for name in parts[0].fed.feeds}
            found = self.hook(outputs, labels, inputs, self._counts[arm]) if self.hook is not None else math.nan
            self._numbers[arm] = float(np.mean(found))
        return self._numbers[arm]

    def result(self, arm: str, seed: int) -> MetricValue:
        """Value with interval."""
        value, columns = self._finite(arm), self.columns(arm)
        low: float | None = None
        high: float | None = None
        if columns is not None:
            if self._is_proportion(columns):
                low, high = statistics.wilson(float(columns.sum()), len(columns))
            else:
                low, high = _bootstrap(self._of(columns), len(columns), seed)
        return MetricValue(
            metric=self.about.short,
            output=self.output,
            value=value,
            low=low,
            high=high,
            n=self._counts[arm] if columns is None else len(columns),
            higher_is_better=self.about.better == "higher",
        )

    def change(self, reference: str, arm: str, seed: int) -> MetricChange:
        """Paired difference, `arm` minus `reference`, on the same samples."""
        first, second = self._finite(reference), self._finite(arm)
        before, after = self.columns(reference), self.columns(arm)
        low: float | None = None
        high: float | None = None
        method = ""
        if before is not None and after is not None:
            if self._is_proportion(before) and self._is_proportion(after):
                a, b = before[:, 0] > 0, after[:, 0] > 0
                counts = [int(x.sum()) for x in (a & b, a & ~b, ~a & b, ~a & ~b)]
                _, low, high = statistics.paired_difference(*counts)
                method = "newcombe"
            else:
                first_of, second_of = self._of(before), self._of(after)
                low, high = _bootstrap(lambda rows: second_of(rows) - first_of(rows), len(before), seed)
                method = "bootstrap"
        return MetricChange(
            metric=self.about.short,
            output=self.output,
            original=first,
            compressed=second,
            difference=second - first,
            low=low,
            high=high,
            n=self._counts[reference] if before is None else len(before),
            higher_is_better=self.about.better == "higher",
            method=method,
            variant=arm,
        )

    def _of(self, columns: KeptColumns) -> Callable[[NDArray[np.intp]], Array]:
        """The value of resamples: from the rows of each, [resamples, samples]."""
        resampled, count = self.formula.resampled, len(columns)
        if resampled is None:
            return lambda rows: self.formula.value(columns[rows])

        def value(rows: NDArray[np.intp]) -> Array:
            places = rows + count * np.arange(len(rows))[:, None]
            times = np.bincount(places.reshape(-1), minlength=count * len(rows)).reshape(len(rows), count)
            return resampled(columns, times.astype(np.float64))

        return value

    def score(self, arm: str) -> float:
        """The value as a share of 1, higher is better: errors as 1 - error / error of the best constant answer."""
        value = self._finite(arm)
        if self.formula.constant is None:
            return self.formula.share(value)
        labels = np.concatenate([np.asarray(part, dtype=np.float64).reshape(-1) for part in self._labels])
        guess = np.full_like(labels, self.formula.constant(labels))
        spread = float(self.formula.value(self.formula.keep(guess, labels)))
        return 1 - value / spread if spread > 0 else -value

    def _is_proportion(self, columns: KeptColumns) -> bool:
        return self.formula.proportion and bool(np.isin(columns, (0.0, 1.0)).all())

    def _finite(self, arm: str) -> float:
        value = self.value(arm)
        if not math.isfinite(value):
            raise MeasurementError(
                "measure.undefined",
                f"`{self.about.short}` of `{arm}` is not defined on this data",
                cause=self.formula.undefined,
                option=("evaluate", "accuracy"),
            )
        return value


def _stacked(parts: Sequence[KeptColumns]) -> KeptColumns:
    """All rows; of fewer columns than others have, filled up with zeros."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])


def _bootstrap(statistic: Any, n: int, seed: int) -> tuple[float | None, float | None]:
    low, high = statistics.bootstrap(statistic, n, seed=seed, resamples=int(np.clip(2e7 / max(1, n), 200, 1000)))
    return (low, high) if math.isfinite(low) else (None, None)


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """Batches joined along axis 0; arrays of different widths become an array of samples."""
    joined = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if len({array.shape[1:] for array in arrays}) == 1:
            joined[name] = np.concatenate(arrays)
        else:
            joined[name] = _rows([row for array in arrays for row in array])
    return joined


def _input(parts: Sequence[Results], name: str) -> Array:
    """What all batches were fed as one input: joined where it has its samples, once where all share it, else an array
    of samples."""
    arrays, axis = [part.fed.feeds[name] for part in parts], parts[0].fed.axis(name)
    if axis is None:
        if all(np.array_equal(array, arrays[0]) for array in arrays):
            return arrays[0]
        return _rows([array for part, array in zip(parts, arrays, strict=True) for _ in range(part.count)])
    if len({array.shape[:axis] + array.shape[axis + 1 :] for array in arrays}) == 1:
        return np.concatenate(arrays, axis)
    return _rows([sample for array in arrays for sample in np.moveaxis(array, axis, 0)])


def _rows(rows: Sequence[Array]) -> Array:
    found = np.empty(len(rows), dtype=object)
    for place, row in enumerate(rows):  # numpy would make one array of rows of equal shapes
        found[place] = row
    return found
