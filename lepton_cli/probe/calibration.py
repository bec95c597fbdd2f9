"""Streaming calibration: runs the float model once over the data and keeps a histogram per tensor.

One batch in memory, whatever the number of samples; ragged shapes, infinities and mask constants are allowed. The
result is kept under the hash of model, data and tensors, and saved now and then, so that a killed run resumes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from lepton_cli import cache
from lepton_cli.data.dataset import Batch, Dataset
from lepton_cli.errors import DataError
from lepton_cli.model import io
from lepton_cli.probe.clipping import Method, Range, limits
from lepton_cli.probe.histogram import Histogram
from lepton_cli.runtime import Session
from lepton_cli.step import Context

#: Bytes of intermediate tensors to hold at once; decides samples per run and tensors per pass.
WORKING_SET = 96_000_000
_SAVE_SECONDS = 20.0


@dataclasses.dataclass
class Ranges:
    """Histograms of activations by tensor name."""

    histograms: dict[str, Histogram]
    samples: int

    def limits(self, method: Method, levels: int = 256) -> dict[str, Range]:
        """Range per tensor; tensors without usable values are left out."""
        return {
            name: limits(histogram, method, levels)
            for name, histogram in self.histograms.items()
            if not histogram.empty
        }

    def masked(self) -> dict[str, int]:
        """Tensors that held infinities or mask constants, with how many."""
        return {name: count for name, histogram in self.histograms.items() if (count := histogram.masked)}


def with_outputs(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy of `model` that also returns the tensors `names`."""
    copy = io.clone(model)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    present = {value.name for value in copy.graph.outputs}
    copy.graph.outputs.extend(values[name] for name in names if name not in present and name in values)
    return copy


def calibration_batches(model: ir.Model, data: Dataset, size: int) -> Iterator[Batch]:
    """Batches of about `size` samples; a fixed batch dimension of the model decides instead."""
    first = next(iter(io.inputs(model)), None)
    fixed = first.shape[0] if first is not None and first.shape and isinstance(first.shape[0], int) else None
    for batch in data.batches(fixed or size):
        for name, values in batch.feeds.items():
            if isinstance(values, np.ndarray) and values.dtype.kind == "f" and np.isnan(values).any():
                raise DataError(
                    "data.nan",
                    f"input `{name}` of `{data.name}` contains NaN in the batch at sample {batch.start}",
                    where=data.path,
                    hint="use `preprocess: {fill_missing: mean}`, or leave these samples out",
                )
        # Other inputs may be states and scalars, whose first axis counts something else.
        if fixed is None or first is None or len(batch.feeds[first.name]) == fixed:
            yield batch


def collect(model: ir.Model, names: Sequence[str], data: Dataset, context: Context) -> Ranges:
    """Histograms of the tensors `names` (graph inputs and node outputs) over all of `data`.

    Raises DataError for NaN in the data or when no batch fits the model.
    """
    store = _Store(context, model, names, data)
    ranges, done = store.load()
    inputs = {value.name for value in model.graph.inputs}
    internal = [name for name in names if name not in inputs]
    session = Session(io.payload(with_outputs(model, internal), context.workdir), threads=context.threads)
    with context.progress.stage("calibration", data.count) as stage:
        stage.advance(done)
        saved = time.monotonic()
        for batch in _rebatched(model, data, session, internal, done):
            size = _samples(batch)
            values = session.run(batch.feeds, internal) if internal else {}
            for name in names:
                array = values[name] if name in values else batch.feeds[name]
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    ranges.histograms[name].add(array)
            del values
            ranges.samples += size
            stage.advance(size)
            if time.monotonic() - saved > _SAVE_SECONDS:
                store.save(ranges)
                saved = time.monotonic()
        stage.note(f"{len(names)} tensors, {ranges.samples} samples")
    if not ranges.samples:
        raise DataError("data.empty", f"no batch of `{data.name}` fits the model", where=data.path)
    store.save(ranges)
    return ranges


def _samples(batch: Batch) -> int:
    return max((len(v) for v in batch.feeds.values() if isinstance(v, np.ndarray) and v.ndim), default=1)


def _rebatched(model: ir.Model, data: Dataset, session: Session, internal: Sequence[str], done: int) -> Iterator[Batch]:
    """Batches sized so that all intermediate tensors of one run fit the working set; the first `done` are skipped."""
    probe = next(iter(calibration_batches(model, data, 1)), None)
    if probe is None:
        return
    values = session.run(probe.feeds, internal).values() if internal else ()
    held = sum(value.nbytes for value in values if isinstance(value, np.ndarray))
    size = int(np.clip(WORKING_SET // max(held // max(_samples(probe), 1), 1), 1, 32))
    for batch in calibration_batches(model, data, size):
        if batch.start >= done:
            yield batch


class _Store:
    """Histograms between runs, by model, data and list of tensors."""

    def __init__(self, context: Context, model: ir.Model, names: Sequence[str], data: Dataset) -> None:
        self._cache, self._names = context.cache, names
        self._key = cache.key(model=io.fingerprint(model), data=data.fingerprint, tensors=list(names))

    def load(self) -> tuple[Ranges, int]:
        """What is known, and the samples that it was seen on."""
        fields = [f"{part}{i}" for i in range(len(self._names)) for part in ("bins", "counts", "ends")]
        stored = self._cache.get("ranges", self._key, "samples", *fields)
        if stored is None:
            return Ranges({name: Histogram() for name in self._names}, 0), 0
        histograms = {
            name: Histogram.restore(stored[f"bins{i}"], stored[f"counts{i}"], *map(float, stored[f"ends{i}"]))
            for i, name in enumerate(self._names)
        }
        return Ranges(histograms, stored["samples"]), stored["samples"]

    def save(self, ranges: Ranges) -> None:
        arrays: dict[str, object] = {"samples": ranges.samples}
        for i, histogram in enumerate(ranges.histograms.values()):
            bins, counts, low, high = histogram.state()
            arrays |= {f"bins{i}": bins.astype(np.uint16), f"counts{i}": counts, f"ends{i}": np.array([low, high])}
        self._cache.put("ranges", self._key, arrays)
