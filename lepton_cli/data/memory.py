"""Arrays in memory as a data set: for calls from Python, and for whoever has the samples already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from lepton_cli.data.dataset import Array
from lepton_cli.data.labels import as_text, number_labels
from lepton_cli.data.reader import SourceDataset
from lepton_cli.data.source import Chunk, lengths_differ, nearest
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

#: What reports say instead of a path.
PATH = "memory"


class Arrays(SourceDataset):
    """Samples in memory, as a model takes them: `feeds` by model input, with samples on axis 0; labels where known.
    A single number (a sample rate) goes with every sample.

    Labels are class numbers, other numbers, or class names, whose sorted positions become the numbers; `class_names`
    names classes that are given by number. Several label arrays go by name. Where a model's inputs have other types
    the arrays are cast, one batch at a time. The arrays are not copied: do not change them while they are in use.
    Raises DataError for arrays that cannot be samples.
    """

    #: What was given, as arrays.
    feeds: Mapping[str, Array]
    labels: Mapping[str, Array]
    _keeps = False

    def __init__(
        self,
        feeds: Mapping[str, ArrayLike],
        labels: ArrayLike | Mapping[str, ArrayLike] | None = None,
        *,
        class_names: Sequence[str] | Mapping[str, Sequence[str]] = (),
        label_type: Literal["auto", "text"] = "auto",
        batch: int = 32,
        name: str = "arrays",
        inputs: Sequence[TensorInfo] | None = None,
    ) -> None:
        """`batch`: samples per batch unless asked otherwise. `inputs`: those of a model, which decide types and a fixed
        batch; without them the arrays are handed out as they are. `label_type`: `text` where labels given as text stay
        text even if they look like numbers."""
        source = _Memory(feeds, _by_label(labels), _by_label(class_names or None), name, label_type == "text")
        self.feeds, self.labels = source.feeds, source.labels
        spec = DataSpec(path=PATH, batch=batch)
        super().__init__(source, spec, source.infos() if inputs is None else inputs, name=name, path=PATH)

    def of(self, inputs: Sequence[TensorInfo], name: str) -> Arrays:
        """The same samples as data set `name` for a model with these inputs: arrays go by the names of the inputs, the
        only array to the only input. Raises DataError for arrays that are missing or do not fit."""
        only = len(inputs) == len(self.feeds) == 1
        chosen: dict[str, ArrayLike] = {}
        for info in inputs:
            key = next(iter(self.feeds)) if only else info.name
            if key not in self.feeds:
                raise DataError(
                    "data.unknown-array",
                    f"`{name}` has no array for the model's input `{key}`",
                    hint=nearest(key, self.feeds, what="its arrays"),
                    option=("data", name, "inputs"),
                )
            chosen[info.name] = self.feeds[key]
        labels = {
            key: as_text(array, self.class_names[key]) if key in self.text_labels else array
            for key, array in self.labels.items()
        }
        made = Arrays(
            chosen,
            labels or None,
            class_names=self.class_names,
            label_type="text",
            batch=self._spec.batch,
            name=name,
            inputs=inputs,
        )
        next(made.batches(size=1, limit=1), None)
        return made


class _Memory:
    """The arrays as a `Source`."""

    def __init__(
        self,
        feeds: Mapping[str, ArrayLike],
        labels: Mapping[str, Any],
        class_names: Mapping[str, Any],
        name: str,
        text: bool,
    ) -> None:
        counted = {key: _samples(value, key, name) for key, value in feeds.items() if not _shared(value)}
        many = len(next(iter(counted.values()))) if counted else 0
        #: Inputs whose one value goes with every sample.
        self._single = frozenset(feeds) - frozenset(counted) if counted else frozenset()
        self.feeds: dict[str, Array] = {
            key: _samples(np.broadcast_to(np.asarray(value), (many,)) if key in self._single else value, key, name)
            for key, value in feeds.items()
        }
        given = {key: _samples(value, key, name) for key, value in labels.items()}
        lengths = {key: len(array) for key, array in (*self.feeds.items(), *given.items())}
        if not self.feeds:
            raise DataError("data.empty", f"`{name}` has no arrays", option=("data", name, "inputs"))
        if len(set(lengths.values())) > 1:
            raise lengths_differ(name, lengths, PATH)
        numbered = {key: _numbered(array, key, text) for key, array in given.items()}
        self.labels = {key: numbers for key, (numbers, _) in numbered.items()}
        names = {key: found for key, (_, found) in numbered.items() if found}
        self.text_labels = frozenset(names)
        self.class_names: Mapping[str, tuple[str, ...]] = names | {
            key: tuple(map(str, known)) for key, known in class_names.items()
        }
        self.count = next(iter(lengths.values()))
        self.label_names = tuple(self.labels)
        self.notes: tuple[str, ...] = ()
        self.jumps = True

    def infos(self) -> tuple[TensorInfo, ...]:
        """The inputs of a model that takes the arrays as they are."""
        return tuple(
            TensorInfo(
                name,
                "str" if array.dtype.kind in "OUS" else str(array.dtype),
                () if name in self._single else (None, *array.shape[1:]),
            )
            for name, array in self.feeds.items()
        )

    def chunks(self, indices: Sequence[int], size: int) -> Iterator[Chunk]:
        """See `Source`; neighbouring samples are views."""
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            rows = slice(part.start, part.stop) if isinstance(part, range) else np.asarray(part)
            yield Chunk(
                {name: array[rows] for name, array in self.feeds.items()},
                {name: array[rows] for name, array in self.labels.items()},
            )

    def digest(self, indices: Sequence[int]) -> str:
        """See `Source`: of all arrays."""
        digest = hashlib.sha256()
        for name, array in (*sorted(self.feeds.items()), *sorted(self.labels.items())):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            texts = array.dtype == object
            digest.update(repr(array.tolist()).encode() if texts else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def _by_label(given: Any) -> Mapping[str, Any]:
    """What is given once belongs to the labels called `labels`."""
    if given is None:
        return {}
    return given if isinstance(given, Mapping) else {"labels": given}


def _shared(value: ArrayLike) -> bool:
    """Is this one value for all samples?"""
    return isinstance(value, (int, float, str, np.generic)) or (isinstance(value, np.ndarray) and not value.ndim)


def _samples(value: ArrayLike, key: str, name: str) -> Array:
    """An array with samples on axis 0. Raises DataError."""
    option = ("data", name, "inputs")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(
            "data.ragged", f"`{key}` of `{name}` is not one array", cause=str(error), option=option
        ) from error
    if not array.ndim:
        raise DataError(
            "data.scalar",
            f"array `{key}` of `{name}` is a single value, not a list of samples",
            hint="axis 0 of an array counts the samples; a single number goes with every sample of the others",
            option=option,
        )
    if array.dtype.kind in "cmM" or (array.dtype == object and not all(isinstance(item, str) for item in array.flat)):
        raise DataError(
            "data.dtype",
            f"array `{key}` of `{name}` has type {array.dtype}",
            hint="only numbers, booleans and text can feed a model",
            option=option,
        )
    return array


def _numbered(array: Array, key: str, text: bool) -> tuple[Array, tuple[str, ...]]:
    """Labels as numbers, and the class names where they were text."""
    if array.dtype.kind not in "OUS":
        return array, ()
    said = [str(one) for one in array.reshape(-1).astype(str)]
    return number_labels(said, lambda row: f"`{key}`, sample {row}", text=text)
