"""Streaming calibration: runs the float model once over the data and keeps a histogram per tensor.

One batch in memory, whatever the number of samples; ragged shapes, infinities and mask constants are allowed. The
result is kept under the hash of model, data and tensors, and saved now and then, so that a killed run resumes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from lepton_cli import cache
from lepton_cli.data.dataset import Batch, Dataset
from lepton_cli.errors import DataError
from lepton_cli.model import io
from lepton_cli.probe import saturating
from lepton_cli.probe.activations import Activations, batches
from lepton_cli.probe.clipping import EVERYTHING, Method, Range, limits
from lepton_cli.probe.histogram import Histogram
from lepton_cli.step import Context

#: Bytes of intermediate tensors to hold at once; decides samples per run and tensors per pass.
WORKING_SET = 96_000_000
_SAVE_SECONDS = 20.0


@dataclasses.dataclass
class Ranges:
    """Histograms of activations by tensor name, and where a tensor stands on a flat end of all that read it."""

    histograms: dict[str, Histogram]
    samples: int
    bounds: dict[str, Range] = dataclasses.field(default_factory=dict)

    def join(self, other: Ranges) -> None:
        """Add those over other samples, of the same tensors of the same model."""
        for name, histogram in self.histograms.items():
            histogram.join(other.histograms[name])
            histogram.pack()
        self.samples += other.samples

    def limits(self, method: Method, levels: int = 256) -> dict[str, Range]:
        """Range per tensor; tensors without usable values are left out."""
        return {
            name: limits(histogram, method, levels, self.bounds.get(name, EVERYTHING))
            for name, histogram in self.histograms.items()
            if not histogram.empty
        }

    def masked(self) -> dict[str, int]:
        """Tensors that held infinities or mask constants, with how many."""
        return {name: count for name, histogram in self.histograms.items() if (count := histogram.masked)}


def collect(model: ir.Model, names: Sequence[str], data: Dataset, context: Context) -> Ranges:
    """Histograms of the tensors `names` (graph inputs and node outputs) over all of `data`.

    Raises DataError for NaN in the data or when no batch fits the model.
    """
    store = _Store(context, model, names, data)
    ranges, done = store.load()
    ranges.bounds = saturating.bounds(model)
    inner = Activations(model, names, context.workdir, context.threads)
    with context.progress.stage("calibration", data.count) as stage:
        stage.advance(done)
        saved = time.monotonic()
        for batch in _rebatched(model, data, inner, done):
            values = inner.run(batch.feeds)
            for name in names:
                array = values[name]
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    ranges.histograms[name].add(array)
            del values
            ranges.samples += batch.count
            stage.advance(batch.count)
            if time.monotonic() - saved > _SAVE_SECONDS:
                store.save(ranges)
                saved = time.monotonic()
        stage.note(f"{len(names)} tensors, {ranges.samples} samples")
    if not ranges.samples:
        raise DataError("data.empty", f"no batch of `{data.name}` fits the model", where=data.path)
    for histogram in ranges.histograms.values():
        histogram.pack()
    store.save(ranges)
    return ranges


def _rebatched(model: ir.Model, data: Dataset, inner: Activations, done: int) -> Iterator[Batch]:
    """Batches sized so that all inner values of one run fit the working set; the first `done` samples are skipped."""
    first = next(iter(batches(model, data, 1)), None)
    if first is None:
        return
    values = inner.run(first.feeds)
    held = sum(values[name].nbytes for name in inner.inner if isinstance(values[name], np.ndarray))
    size = int(np.clip(WORKING_SET // max(held // max(first.count, 1), 1), 1, 32))
    for batch in batches(model, data, size):
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
