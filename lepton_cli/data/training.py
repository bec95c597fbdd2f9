"""Training data: a part held out by content, and batches that depend on nothing but the seed and their number."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lepton_cli.data import batching
from lepton_cli.data.augment import augment, kind
from lepton_cli.data.dataset import Array, Batch
from lepton_cli.data.fit import Statistics
from lepton_cli.data.memory import Arrays
from lepton_cli.data.open import open_dataset
from lepton_cli.data.reader import SourceDataset
from lepton_cli.data.source import Chunk
from lepton_cli.data.spec import TrainingSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo


@dataclasses.dataclass(frozen=True)
class TrainingBatch(Batch):
    """A batch to train with; `start` is its place in the stream of all epochs.

    With `mixup` the loss of sample `i` is `share[i]` of that for its label in `labels` and `1 - share[i]` of that for
    its label in `partners`; without it, that for `labels`.
    """

    partners: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    #: `[n]`; `None` without `mixup`.
    share: NDArray[np.float32] | None = None

    def part(self, rows: NDArray[np.intp]) -> TrainingBatch:
        """The samples at these positions, with all that belongs to them."""
        partners = {name: array[rows] for name, array in self.partners.items()}
        share = None if self.share is None else self.share[rows]
        return dataclasses.replace(super().part(rows), partners=partners, share=share)


class TrainingData:
    """The samples to train with, without those held out.

    The stream of samples is one permutation of them all after the other, each drawn from the seed and the number of the
    epoch. Nothing is remembered from batch to batch: a run cut into pieces reads the same bytes.
    """

    #: All samples, the held out among them, unchanged, with the number of samples in a batch left open.
    whole: SourceDataset
    #: Samples to judge the training by, for the model as it is; `None` with `holdout: 0 %`.
    holdout: SourceDataset | None
    #: Number of samples to train with.
    count: int

    def __init__(self, whole: SourceDataset, inputs: Sequence[TensorInfo], spec: TrainingSpec, seed: int) -> None:
        """`whole` was opened for `batching.freed(inputs)`. Raises DataError where one side of the split is empty, and
        for an augmentation that fits none of the inputs."""
        self.whole = whole
        self._augment, self._seed = spec.augment, seed
        some = whole.stored(range(min(2, whole.count)))
        self._kinds = {
            info.name: kind(some.inputs[info.name], info, spec.preprocess_inputs.get(info.name, spec.preprocess))
            for info in inputs
        }
        augment(some.inputs, self._kinds, self._augment, seed, 0)
        apart = np.array([_position(found) < spec.holdout for found in whole.sample_hashes()], bool)
        self._rows, held = np.flatnonzero(~apart), np.flatnonzero(apart)
        self.count = len(self._rows)
        fixed = batching.layout(inputs).fixed or 1
        held = held[: len(held) // fixed * fixed]
        if not self.count or (spec.holdout and not len(held)):
            raise DataError(
                "data.holdout",
                f"`holdout: {spec.holdout}` of {whole.count} samples leaves none "
                + ("to judge the training by" if self.count else "to train with"),
                cause="equal samples are on the same side; the model's fixed batch has to be filled",
                hint="take another share, or `holdout: 0 %` to judge the training by other means",
                option=("data", "training", "holdout"),
            )
        self.holdout = whole.part(held.tolist(), inputs) if len(held) else None

    @property
    def fingerprint(self) -> str:
        """Of the samples, how they are changed, and their order."""
        return f"{self.whole.fingerprint} {self._seed}"

    def batch(self, step: int, size: int) -> TrainingBatch:
        """Batch number `step`, from 0: `size` samples, augmented and preprocessed; an epoch may end inside it.

        Raises DataError where the samples do not go into one feed.
        """
        start = step * size
        stored = self.whole.stored(self._stream(start, size))
        changed = augment(stored.inputs, self._kinds, self._augment, self._seed, step)
        made = self.whole.as_batch(Chunk(changed.inputs, stored.labels), start)
        partners: dict[str, Array] = {}
        if changed.partners is not None:
            partners = {name: labels[changed.partners] for name, labels in made.labels.items()}
        return TrainingBatch(made.feeds, made.labels, start, made.axes, partners, changed.share)

    def _stream(self, start: int, size: int) -> NDArray[np.intp]:
        """Positions of samples `start` to `start + size` of the stream."""
        places = np.arange(start, start + size)
        epochs = places // self.count
        found = np.empty(size, np.intp)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            mine = epochs == epoch
            found[mine] = self._rows[_order(self._seed, epoch, self.count)[places[mine] % self.count]]
        return found


def open_training(
    spec: TrainingSpec,
    inputs: Sequence[TensorInfo],
    *,
    seed: int,
    base: Path,
    statistics: Statistics | None = None,
    allow_code: bool = False,
    arrays: Arrays | None = None,
) -> TrainingData:
    """Open the training data for a model with these `inputs`: see `open_dataset`. Reads all samples once.

    `arrays`: samples in memory, as a model takes them, of which `spec` says what is kept apart.
    """
    free = batching.freed(inputs)
    if arrays is not None:
        return TrainingData(arrays.of(free, "training"), inputs, spec, seed)
    whole = open_dataset(spec, free, name="training", base=base, statistics=statistics, allow_code=allow_code)
    return TrainingData(whole, inputs, spec, seed)


def _position(sample_hash: str) -> float:
    """A sample's place from 0 to 1, by its content alone: what others there are does not move it."""
    return int(sample_hash[:13], 16) / 16**13


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.intp]:
    """The permutation of an epoch; kept for the batches that follow."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch,))))
    order = rng.permutation(count)
    order.flags.writeable = False
    return order
