"""Random but plausible inputs, for checks of a model when there is no data."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lepton_cli.data.batching import layout
from lepton_cli.data.dataset import Array, Batch
from lepton_cli.data.preprocess import cast
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

#: Token ids and other indices stay below this: nearly every table is longer.
MAX_INDEX = 100
#: Values of one input; more would not fit the memory of most machines.
MOST_VALUES = 1_000_000_000
_SEQUENCE, _SOUND, _CHANNELS, _HEIGHT, _LATENT, _VOLUME = 8, 512, 3, 224, 64, 32
_SAMPLE_RATES = {"sr": 16_000, "sample_rate": 16_000, "sampling_rate": 16_000}


def synthetic(
    inputs: Sequence[TensorInfo],
    *,
    seed: int,
    samples: int,
    batch: int,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> SyntheticDataset:
    """A data set of random inputs; equal arguments give equal arrays.

    Floats are standard normal; integers lie in 0 to 99 and within the tables they are indices
    of; inputs with `mask` in their name are all ones, those with
    `token_type` or `segment` zeros, a sample rate is 16000; strings are empty. Dynamic dimensions: the first is the
    batch (the second in recurrent states, `[layers, batch, size]`); of images (rank 4) 3 channels and 224 pixels a
    side, 64 where the channels are not those of pictures (latents); of volumes 32 a side; of float rows (rank 2,
    sound) 512; everything else 8. `shapes` gives the whole shape
    of an input, batch included, instead. Raises DataError for inputs of unknown rank
    that `shapes` does not give.
    """
    return SyntheticDataset(inputs, seed, samples, batch, shapes or {})


class SyntheticDataset:
    """See `synthetic`. A model with a fixed first dimension gets that many samples a batch."""

    name = "synthetic"
    path = "(random)"
    label_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        inputs: Sequence[TensorInfo],
        seed: int,
        samples: int,
        batch: int,
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        self._inputs = tuple(inputs)
        self._seed, self._batch, self._shapes = seed, batch, shapes
        self.class_names: dict[str, tuple[str, ...]] = {}
        self.text_labels: frozenset[str] = frozenset()
        self.statistics: dict[str, Any] = {}
        self._layout = layout(inputs)
        #: The model's own number of samples a batch, if it has one.
        self.fixed_batch = self._layout.fixed
        size = self.fixed_batch or 1
        self.count = max(1, samples // size) * size
        words = [seed, samples, batch, [str(info) for info in inputs], {k: list(v) for k, v in shapes.items()}]
        self.fingerprint = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()

    def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """Batches of `size` samples; the values of a sample do not depend on `size`."""
        size = self.fixed_batch or size or self._batch
        count = self.count if limit is None else min(self.count, limit)
        if self.fixed_batch is not None:
            count = -(-count // self.fixed_batch) * self.fixed_batch
        for start in range(0, count, size):
            rows = range(start, min(start + size, count))
            yield Batch({info.name: self._feed(info, rows) for info in self._inputs}, {}, start, self._layout.axes)

    def _feed(self, info: TensorInfo, rows: range) -> Array:
        axis = self._layout.axes[info.name]
        shape = self._shape(info, len(rows))
        if axis is not None and len(shape) > axis and shape[axis] == 0:
            raise DataError("data.empty", f"input `{info.name}` is fixed to 0 samples: there is nothing to run")
        if math.prod(shape) > MOST_VALUES:
            raise DataError(
                "data.too-large",
                f"input `{info.name}` of shape {list(shape)} is too large to be made up",
                hint="give data, or the shape of this input",
            )
        if axis is None or len(shape) <= axis or shape[axis] != len(rows):
            return self._values(info, shape, rows.start)
        one = (*shape[:axis], 1, *shape[axis + 1 :])
        return np.concatenate([self._values(info, one, row) for row in rows], axis)

    def _shape(self, info: TensorInfo, rows: int) -> tuple[int, ...]:
        given, axis = self._shapes.get(info.name), self._layout.axes[info.name]
        if info.shape is None and given is None:
            raise DataError(
                "data.no-shape",
                f"the model does not say how many dimensions its input `{info.name}` has",
                hint="give data, or the shape of this input",
            )
        if info.shape is None:
            return tuple(given or ())
        sizes = [
            given[at] if given else dim if isinstance(dim, int) else usual(info, at)
            for at, dim in enumerate(info.shape)
        ]
        if axis is not None and not isinstance(info.shape[axis], int) and not self._layout.alone:
            sizes[axis] = rows
        return tuple(sizes)

    def _values(self, info: TensorInfo, shape: tuple[int, ...], row: int) -> Array:
        """The values of one sample: seeded by input and row."""
        word = int.from_bytes(hashlib.blake2b(info.name.encode(), digest_size=8).digest(), "little")
        random = np.random.default_rng([self._seed, word, row])
        name = info.name.lower()
        if info.dtype == "str":
            return np.full(shape, "", object)
        if "mask" in name:
            return cast(np.ones(shape, np.int8), info.dtype)
        if info.dtype == "bool":
            return random.integers(0, 2, shape).astype(bool)
        if name in _SAMPLE_RATES:
            return cast(np.full(shape, _SAMPLE_RATES[name]), info.dtype)
        if "int" in info.dtype:
            high = 1 if "token_type" in name or "segment" in name else min(info.rows or MAX_INDEX, MAX_INDEX)
            return cast(random.integers(0, high, shape), info.dtype)
        return cast(random.standard_normal(shape, np.float32), info.dtype)

    def sample_hashes(self) -> list[str]:
        """One per sample."""
        return [f"{self.fingerprint[:16]}{row:016x}" for row in range(self.count)]


def usual(info: TensorInfo, axis: int) -> int:
    """A sensible size for an open axis."""
    shape = info.shape or ()
    if any(word in f"{info.name} {shape[axis]}".lower() for word in ("past", "cache")):
        return _SEQUENCE
    if len(shape) == 4:
        channels_last = shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
        channels = shape[3 if channels_last else 1]
        if axis == (3 if channels_last else 1):
            return _CHANNELS
        # Latents and feature maps are smaller than the pictures that they stand for.
        return _LATENT if isinstance(channels, int) and channels not in (1, 3) else _HEIGHT
    if len(shape) == 5 and axis > 1:
        return _VOLUME
    return _SOUND if len(shape) == 2 and info.dtype.startswith("float") else _SEQUENCE
