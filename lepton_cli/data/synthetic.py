"""Random but plausible inputs, for checks of a model when there is no data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.data.dataset import Batch
from lepton_cli.data.preprocess import cast
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

Array = NDArray[Any]
#: Token ids and other indices stay below this: nearly every table is longer.
MAX_INDEX = 100
_SEQUENCE, _CHANNELS, _HEIGHT = 8, 3, 224


def synthetic(
    inputs: Sequence[TensorInfo],
    *,
    seed: int,
    samples: int,
    batch: int,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> SyntheticDataset:
    """A data set of random inputs; equal arguments give equal arrays.

    Floats are standard normal; integers lie in 0 to 99; inputs with `mask` in their name are all ones, those with
    `token_type` or `segment` zeros; strings are empty. Dynamic dimensions: the first is the batch; of images (rank 4)
    3 channels and 224 pixels a side; of spatial volumes 32; everything else 8. Dimensions of one name get one size.
    `shapes` gives the whole shape of an input, batch included, instead. Raises DataError for inputs of unknown rank
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
        self.statistics: dict[str, Any] = {}
        known = [tuple(shapes[i.name]) if i.name in shapes else i.shape or () for i in inputs]
        firsts = [shape[0] for shape in known if shape]
        fixed = {size for size in firsts if isinstance(size, int)}
        dynamic = len(fixed) != 1
        #: The model's own number of samples a batch, when all its inputs agree on one.
        self.fixed_batch = None if dynamic else next(iter(fixed)) or None
        size = self.fixed_batch or 1
        self.count = max(1, samples // size) * size
        words = [seed, samples, batch, [str(info) for info in inputs], {k: list(v) for k, v in shapes.items()}]
        self.fingerprint = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()

    def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """Batches of `size` samples; the values of a sample do not depend on `size`."""
        size = self.fixed_batch or size or self._batch
        count = self.count if limit is None else min(self.count, limit)
        if self.fixed_batch is not None:
            count -= count % self.fixed_batch
        for start in range(0, count, size):
            rows = range(start, min(start + size, count))
            yield Batch({info.name: self._feed(info, rows) for info in self._inputs}, {}, start)

    def _feed(self, info: TensorInfo, rows: range) -> Array:
        shape = self._shape(info, len(rows))
        if not shape or shape[0] != len(rows):
            return self._values(info, shape, rows.start)
        return np.concatenate([self._values(info, (1, *shape[1:]), row) for row in rows])

    def _shape(self, info: TensorInfo, rows: int) -> tuple[int, ...]:
        if info.name in self._shapes:
            given = tuple(self._shapes[info.name])
            return (rows, *given[1:]) if info.shape and not isinstance(info.shape[0], int) else given
        if info.shape is None:
            raise DataError(
                "data.no-shape",
                f"the model does not say how many dimensions its input `{info.name}` has",
                hint="give data, or the shape of this input",
            )
        image = len(info.shape) == 4
        sizes: list[int] = []
        for axis, size in enumerate(info.shape):
            if isinstance(size, int):
                sizes.append(size)
            elif axis == 0:
                sizes.append(rows)
            elif image:
                channels_last = info.shape[3] in (1, 3, 4) and info.shape[1] not in (1, 3, 4)
                sizes.append(_CHANNELS if axis == (3 if channels_last else 1) else _HEIGHT)
            else:
                sizes.append(32 if len(info.shape) == 5 and axis > 1 else _SEQUENCE)
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
        if "int" in info.dtype:
            high = 1 if "token_type" in name or "segment" in name else MAX_INDEX
            return cast(random.integers(0, high, shape), info.dtype)
        return cast(random.standard_normal(shape, np.float32), info.dtype)

    def sample_hashes(self) -> list[str]:
        """One per sample."""
        return [f"{self.fingerprint[:16]}{row:016x}" for row in range(self.count)]
