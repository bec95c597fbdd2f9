"""The data set itself: a source, a choice of its samples, preprocessing, and a small cache."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lepton_cli.data import batching, check, groups, preprocess
from lepton_cli.data.dataset import Array, Batch
from lepton_cli.data.fit import Statistics, fit
from lepton_cli.data.groups import Groups
from lepton_cli.data.preprocess import Fitted, Raw
from lepton_cli.data.source import Chunk, Source, unreadable
from lepton_cli.data.spec import DataSpec, Preprocess
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

#: Data sets that are smaller than this as model inputs stay in memory after the first whole pass.
CACHE_BYTES = 256_000_000
#: The most that is held of stored samples which can only be read one after the other, to take them in any order.
MAX_HELD_BYTES = 1 << 30


class SourceDataset:
    """A `Dataset` over a `Source`.

    A model whose number of samples is fixed gets batches of exactly that size; the samples that do not fill a last
    batch are left out, `count` says how many are used and `notes` says so. Batches are smaller where samples do not go
    into one feed (see `batching.runs`). Arrays handed out are read-only.
    """

    #: Whether a small data set stays in memory after the first whole pass.
    _keeps = True

    def __init__(
        self,
        source: Source,
        spec: DataSpec,
        inputs: Sequence[TensorInfo],
        *,
        name: str,
        path: str,
        statistics: Statistics | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        """`indices`: ascending positions in the source, instead of those that `spec` chooses; whole fixed batches."""
        self.name = name
        self.path = path
        self._source = source
        self._spec = spec
        self._inputs = tuple(inputs)
        self._given = statistics
        self._cache: Chunk | None = None
        self.label_names, self.text_labels = source.label_names, source.text_labels
        # Names move with the label numbers: with `label_offset: 1` class 0 is the model's own, without a name.
        self.class_names = {
            label: ("",) * spec.label_offset + names[max(0, -spec.label_offset) :]
            for label, names in source.class_names.items()
        }
        self._layout = batching.layout(inputs)
        self.fixed_batch = self._layout.fixed
        self.notes = source.notes
        self._part = indices is not None
        self._indices = self._select() if indices is None else indices
        self.count = len(self._indices)
        #: Of every sample the value of each column that tells groups apart.
        self.groups: Mapping[str, Groups] = {}
        self._held: Chunk | None = None
        self._tried_to_hold = False

    def read_groups(self, path: Path) -> None:
        """Read the columns that tell groups apart from the data's file. Raises DataError."""
        if self._spec.groups:
            self.groups = groups.read(path, self._spec, self._indices)

    def _select(self) -> Sequence[int]:
        """Positions of the samples used: behind `skip`, within `first`, `samples` of them spread evenly."""
        stored, spec = self._source.count, self._spec
        if stored == 0:
            raise self._error("data.empty", "the data set is empty", "path")
        available = stored - spec.skip
        if available <= 0:
            raise self._error("data.empty", f"`skip: {spec.skip}` leaves none of the {stored} samples", "skip")
        if spec.first is not None:
            available = min(available, spec.first)
        wanted = min(available, spec.samples or available)
        if spec.samples is not None and spec.samples > available:
            self.notes += (f"`{self.name}` has {available} samples, {spec.samples} were asked for",)
        if self.fixed_batch is not None:
            if wanted < self.fixed_batch:
                raise self._error(
                    "data.too-few",
                    f"{wanted} samples cannot fill the model's fixed batch of {self.fixed_batch}",
                    "samples" if spec.samples else "path",
                )
            if rest := wanted % self.fixed_batch:
                self.notes += (
                    f"`{self.name}`: the last {rest} of {wanted} samples do not fill the model's fixed batch of "
                    f"{self.fixed_batch} and are left out",
                )
                wanted -= rest
                available = available if spec.samples else wanted
        if wanted == available:
            return range(spec.skip, spec.skip + wanted)
        return [spec.skip + position * available // wanted for position in range(wanted)]

    def _error(
        self, code: str, message: str, option: str, *, cause: str | None = None, hint: str | None = None
    ) -> DataError:
        said = f"`{self.name}` ({self.path}): {message}"
        return DataError(code, said, cause=cause, hint=hint, option=("data", self.name, option))

    @functools.cached_property
    def statistics(self) -> Statistics:
        """What `standardise` and `fill_missing: mean|median` learned here, by model input: for the other data set.

        Computed from this data set when it was opened without statistics of another one and is called `calibration`.
        """
        if self._given is not None or self.name != "calibration":
            return self._given or {}
        with self._located():
            return fit(self._raw, {info.name: self._preprocess(info.name) for info in self._inputs})

    def part(self, rows: Sequence[int], inputs: Sequence[TensorInfo] | None = None) -> SourceDataset:
        """The samples at these ascending positions, whole batches where the model's is fixed. `inputs`: of the model
        that takes them."""
        return SourceDataset(
            self._source,
            self._spec,
            self._inputs if inputs is None else inputs,
            name=self.name,
            path=self.path,
            statistics=self.statistics,
            indices=[self._indices[row] for row in rows],
        )

    def stored(self, rows: Sequence[int] | Array) -> Chunk:
        """Stored samples at any positions, in their order, repeated where they are asked for twice.

        Those of small data sets, and of sources that can only be read from the beginning, stay in memory after the
        first call. Raises DataError for such a source that is too large for that.
        """
        if not self._tried_to_hold:
            self._tried_to_hold, self._held = True, self._hold() if self._keeps else None
        if self._held is not None:
            return _take(self._held, np.asarray(rows, np.intp))
        order, back = np.unique(rows, return_inverse=True)
        (chunk,) = self._chunks([self._indices[row] for row in order], max(1, len(order)))
        return _take(chunk, back)

    def _hold(self) -> Chunk | None:
        """All stored samples; `None` where they are many and can be read in any order."""
        limit, total = CACHE_BYTES if self._source.jumps else MAX_HELD_BYTES, 0
        chunks: list[Chunk] = []
        for chunk in self._chunks(self._indices, self._spec.batch):
            total += sum(map(_bytes, chunk.inputs.values()))
            chunks.append(chunk)
            if total <= limit:
                continue
            if self._source.jumps:
                return None
            raise self._error(
                "data.too-large",
                f"more than {MAX_HELD_BYTES / 1e9:.1f} GB that can only be read from the beginning",
                "path",
                hint="for any order, save them with np.savez (not compressed), or as a folder of images",
            )
        return Chunk(
            {name: _joined([chunk.inputs[name] for chunk in chunks]) for name in chunks[0].inputs},
            {name: np.concatenate([chunk.labels[name] for chunk in chunks]) for name in chunks[0].labels},
        )

    def stored_labels(self, name: str) -> Iterator[Array]:
        """All labels of this name, as batches have them, some at a time."""
        for chunk in [self._held] if self._held is not None else self._chunks(self._indices, self._spec.batch):
            yield self._label(name, chunk.labels[name])

    def as_batch(self, stored: Chunk, start: int) -> Batch:
        """Stored samples through preprocessing, as one feed. Raises DataError where they do not go into one."""
        chunk = self._chunk(stored)
        alone = batching.alone(chunk.inputs, self._inputs, self._layout)
        rows, *others = batching.runs(chunk.inputs, self._layout.axes, alone)
        if others:
            raise self._error(
                "data.one-feed",
                f"{_length(chunk)} samples do not go into one feed",
                "inputs",
                cause="they differ in shape or in what all share, or the model takes one at a time",
                hint="train with a batch of 1",
            )
        batch = self._batch(chunk, rows, start, alone)
        check.batch(batch, self._inputs, self.name)
        return batch

    def _raw(self, name: str) -> Iterator[Raw]:
        for chunk in self._chunks(self._indices, self._spec.batch):
            yield chunk.inputs[name]

    def _chunks(self, indices: Sequence[int], size: int) -> Iterator[Chunk]:
        with self._located():
            yield from self._source.chunks(indices, size)

    @contextlib.contextmanager
    def _located(self, input_name: str | None = None) -> Iterator[None]:
        """Turn an error's option, relative to the data set, into a path in the recipe."""
        try:
            yield
        except DataError as error:
            if error.option[:1] != ("data",):
                option = error.option
                if input_name in self._spec.preprocess_inputs and option[:1] == ("preprocess",):
                    option = ("preprocess_inputs", input_name or "", *option[1:])
                error.option = ("data", self.name, *option)
                place = f"`{self.name}`" + (f", input `{input_name}`" if input_name else "")
                error.message = f"{place}: {error.message}"
                error.args = (error.message,)
            raise
        except OSError as error:
            raise unreadable(error, self.name) from error

    def _preprocess(self, name: str) -> Preprocess:
        return self._spec.preprocess_inputs.get(name, self._spec.preprocess)

    def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """Batches of `size` samples (default: the recipe's), the first `limit` only; `fixed_batch` overrules `size`."""
        size = self.fixed_batch or size or self._spec.batch
        count = self.count if limit is None else min(self.count, limit)
        if self.fixed_batch is not None:  # whole batches: `limit` is rounded up
            count = min(self.count, -(-count // self.fixed_batch) * self.fixed_batch)
        start = 0
        for chunk in self._prepared(size, count):
            alone = batching.alone(chunk.inputs, self._inputs, self._layout)
            for rows in batching.runs(chunk.inputs, self._layout.axes, alone):
                batch = self._batch(chunk, rows, start + rows.start, alone)
                check.batch(batch, self._inputs, self.name)
                yield batch
            start += _length(chunk)

    def _batch(self, chunk: Chunk, rows: slice, start: int, alone: bool) -> Batch:
        feeds: dict[str, Array] = {}
        for info in self._inputs:
            with self._located(info.name):
                part = chunk.inputs[info.name][rows]
                stack = np.concatenate(part) if isinstance(part, list) else part
                made = batching.feed(stack, info, self._layout.axes[info.name])
                feeds[info.name] = np.asarray(made, order="C")
        labels = {name: values[rows] for name, values in chunk.labels.items()}
        for array in (*feeds.values(), *labels.values()):
            array.flags.writeable = False
        return Batch(feeds, labels, start, dict.fromkeys(feeds) if alone else self._layout.axes)

    def _prepared(self, size: int, count: int) -> Iterator[Chunk]:
        """The samples as the model takes them but for where they lie: on axis 0, or in a list where shapes differ."""
        if self._cache is not None:
            for start in range(0, count, size):
                yield _slice(self._cache, start, min(start + size, count))
            return
        kept: list[Chunk] | None = [] if count == self.count and self._keeps else None
        total = 0
        for stored in self._chunks(self._indices[:count], size):
            chunk = self._chunk(stored)
            total += sum(map(_bytes, chunk.inputs.values()))
            kept = None if kept is None or total > CACHE_BYTES else [*kept, chunk]
            yield chunk
        if kept:
            self._cache = _join(kept)

    def _chunk(self, stored: Chunk) -> Chunk:
        labels = {name: self._label(name, values) for name, values in stored.labels.items()}
        return Chunk({info.name: self._column(info, stored) for info in self._inputs}, labels)

    def _column(self, info: TensorInfo, chunk: Chunk) -> Raw:
        with self._located(info.name):
            fitted = self.statistics.get(info.name, Fitted())
            column = preprocess.apply(chunk.inputs[info.name], self._preprocess(info.name), info.dtype, fitted)
            if isinstance(column, list):
                return column if self._spec.batch == 1 or self._spec.loader else preprocess.stacked(column)
            # A view of the source's own memory must not be locked or changed with the batch.
            return column.view()

    def _label(self, name: str, values: Array) -> Array:
        """Class numbers as one integer a sample, also where they are stored as `[n, 1]`."""
        if values.dtype.kind in "biu":
            values = values.astype(np.int64)
            values = values.reshape(-1) if values.size == len(values) else values
        return values + self._spec.label_offset if self._spec.label_offset else values.view()

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the stored content, the choice of samples and the preprocessing; read once, when asked for."""
        digest = hashlib.sha256()
        with self._located():
            digest.update(self._source.digest(self._indices).encode())
        if self._part:
            digest.update(np.asarray(self._indices, np.int64).tobytes())
        settings = self._spec.model_dump(mode="json", exclude={"path", "batch", "groups"})
        if settings["label_type"] == "auto":  # as fingerprints were before it could be anything else
            del settings["label_type"]
        digest.update(json.dumps(settings, sort_keys=True).encode())
        digest.update(repr([(info.name, info.dtype) for info in self._inputs]).encode())
        for name, fitted in sorted(self.statistics.items()):
            values = [None if part is None else part.tolist() for part in dataclasses.astuple(fitted)]
            digest.update(f"{name} {values}".encode())
        return digest.hexdigest()

    def sample_hashes(self) -> list[str]:
        """A hash per sample of what is stored for the model's inputs, before preprocessing."""
        return list(self._hashes)

    @functools.cached_property
    def _hashes(self) -> tuple[str, ...]:
        hashes: list[str] = []
        stored = self._chunks(self._indices, self._spec.batch) if self._held is None else [self._held]
        for chunk in stored:
            columns = [chunk.inputs[name] for name in sorted(chunk.inputs)]
            hashes.extend(_sample_hash(sample) for sample in zip(*columns, strict=True))
        return tuple(hashes)


def _sample_hash(sample: Sequence[Array]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in sample:
        array = np.ascontiguousarray(value)
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
    return digest.hexdigest()


def _length(chunk: Chunk) -> int:
    return len(next(iter(chunk.inputs.values())))


def _bytes(column: Raw) -> int:
    return sum(array.nbytes for array in column) if isinstance(column, list) else column.nbytes


def _take(chunk: Chunk, rows: Array) -> Chunk:
    """The samples at any positions."""
    inputs: dict[str, Raw] = {}
    for name, column in chunk.inputs.items():
        if isinstance(column, list):
            taken = [column[row] for row in rows]
            inputs[name] = np.stack(taken) if len({sample.shape for sample in taken}) == 1 else taken
        else:
            inputs[name] = column[rows]
    return Chunk(inputs, {name: array[rows] for name, array in chunk.labels.items()})


def _joined(parts: Sequence[Raw]) -> Raw:
    """Stored samples as one array, or as a list where their shapes differ."""
    arrays = [part for part in parts if not isinstance(part, list)]
    if len(arrays) == len(parts) and len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    return [sample for part in parts for sample in part]


def _slice(chunk: Chunk, start: int, stop: int) -> Chunk:
    return Chunk(
        {name: column[start:stop] for name, column in chunk.inputs.items()},
        {name: array[start:stop] for name, array in chunk.labels.items()},
    )


def _join(chunks: Sequence[Chunk]) -> Chunk | None:
    """All samples as one chunk; `None` when they differ in shape."""
    inputs: dict[str, Raw] = {}
    for name in chunks[0].inputs:
        parts = [array for chunk in chunks if not isinstance(array := chunk.inputs[name], list)]
        if len(parts) < len(chunks) or len({part.shape[1:] for part in parts}) > 1:
            return None
        inputs[name] = np.concatenate(parts)
    return Chunk(inputs, {name: np.concatenate([chunk.labels[name] for chunk in chunks]) for name in chunks[0].labels})
