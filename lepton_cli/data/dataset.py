"""A data set: batches of model inputs, read lazily, with a fingerprint of its content."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

#: Samples, labels or outputs, of any type.
Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some samples. `feeds`: model input -> array as the model takes it; `labels` by label name, samples on axis 0."""

    feeds: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    #: Index of the first sample in the data set.
    start: int
    #: Model input -> axis of its samples, `None` where all share one value; those left out have them on axis 0.
    axes: Mapping[str, int | None] = dataclasses.field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of samples; 1 where no input has an axis for them."""
        axes = {name: axis for name in self.feeds if (axis := self.axis(name)) is not None}
        return max((self.feeds[name].shape[axis] for name, axis in axes.items()), default=1)

    def sized(self, count: int) -> dict[str, np.ndarray]:
        """The feeds with `count` samples: repeated where there are fewer, cut where there are more.

        As they are where no input has an axis for samples.
        """
        have = self.count
        return self.feeds if not have or have == count else self.rows(np.arange(count) % have)

    def rows(self, rows: NDArray[np.intp]) -> dict[str, np.ndarray]:
        """The feeds with the samples at these positions; what all samples share stays."""
        have, found = self.count, {}
        for name, array in self.feeds.items():
            axis = self.axis(name)
            found[name] = array if axis is None or array.shape[axis] != have else array.take(rows, axis)
        return found

    def part(self, rows: NDArray[np.intp]) -> Self:
        """The samples at these positions, with their labels."""
        labels = {name: array[rows] for name, array in self.labels.items()}
        return dataclasses.replace(self, feeds=self.rows(rows), labels=labels)

    def timed(self, count: int) -> dict[str, np.ndarray]:
        """The feeds with `count` samples; empty where the model takes one at a time and more are asked.

        What does not fit a model with a fixed batch is for whoever runs it to find.
        """
        alone = bool(self.axes) and all(axis is None for axis in self.axes.values())
        return {} if alone and count > 1 else self.sized(count)

    def axis(self, name: str) -> int | None:
        """Where an input has its samples; `None` where all share what it holds."""
        return self.axes.get(name, 0 if self.feeds[name].ndim else None)


class Dataset(Protocol):
    """Samples for a model. Iterating twice gives the same batches.

    One batch is in memory at a time, except that small data sets are kept after the first whole pass. Arrays handed
    out are not to be changed.
    """

    name: str
    path: str
    #: Number of samples.
    count: int
    #: Names of label arrays; empty when unlabelled. The default labels are called `labels`.
    label_names: tuple[str, ...]
    #: Label name -> class names, for labels stored as text or folders: the position is the label.
    class_names: dict[str, tuple[str, ...]]
    #: Labels that are stored as text: metrics of text, and the recipe's own, take their class names.
    text_labels: frozenset[str]
    #: Remarks for the report: samples left out, files without labels.
    notes: tuple[str, ...]
    #: The number of samples every batch has when the model's first dimension is fixed, whatever size is asked for.
    fixed_batch: int | None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content and the preprocessing."""

    def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """Batches of `size` samples (default: the recipe's), the first `limit` samples only (whole fixed batches)."""

    def sample_hashes(self) -> list[str]:
        """A hash per sample's raw content, to find overlaps between data sets."""


class First:
    """The first samples of a data set, at most `most` (whole batches where the model's batch is fixed)."""

    def __init__(self, whole: Dataset, most: int) -> None:
        self._whole = whole
        self.name, self.path, self.notes, self.fixed_batch = whole.name, whole.path, whole.notes, whole.fixed_batch
        self.label_names, self.class_names = whole.label_names, whole.class_names
        self.text_labels = whole.text_labels
        self.count = min(whole.count, most)

    @property
    def fingerprint(self) -> str:
        """Of the whole, and the number of samples."""
        return f"{self._whole.fingerprint}-{self.count}"

    def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """As the whole gives them."""
        return self._whole.batches(size, self.count if limit is None else min(limit, self.count))

    def sample_hashes(self) -> list[str]:
        """Of these samples."""
        return self._whole.sample_hashes()[: self.count]


class Slice:
    """Every `every`-th sample of a data set, or all the others: evenly spread, because stored samples may be sorted.

    Batches of a fixed size, and feeds that are no batch, are taken or left as they are.
    """

    def __init__(self, whole: Dataset, every: int, *, rest: bool = False) -> None:
        """`rest`: the others."""
        self._whole, self._every, self._rest = whole, every, rest
        self.name, self.path, self.notes, self.fixed_batch = whole.name, whole.path, whole.notes, whole.fixed_batch
        self.label_names, self.class_names = whole.label_names, whole.class_names
        self.text_labels = whole.text_labels
        self.count = len(self._rows(0, whole.count))

    @property
    def fingerprint(self) -> str:
        """Of the whole, and which samples."""
        return f"{self._whole.fingerprint}-{'rest' if self._rest else 'each'}-{self._every}"

    def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """What the whole's batches hold of these samples."""
        start, most = 0, self.count if limit is None else limit
        for batch in self._whole.batches(size):
            rows = self._rows(batch.start, batch.count)
            rows = rows if self.fixed_batch else rows[: most - start]
            if not len(rows):
                continue
            labels = {name: array[rows] for name, array in batch.labels.items()}
            yield Batch(batch.feeds if len(rows) == batch.count else batch.rows(rows), labels, start, batch.axes)
            start += len(rows)
            if start >= most:
                return

    def sample_hashes(self) -> list[str]:
        """Of these samples."""
        hashes = self._whole.sample_hashes()
        return [hashes[index] for index in self._rows(0, len(hashes))]

    def _rows(self, start: int, count: int) -> NDArray[np.intp]:
        """Positions of these samples among `count` that begin at `start`."""
        numbers = (start + np.arange(count)) // (self.fixed_batch or 1)
        return np.flatnonzero((numbers % self._every == 0) != self._rest)
