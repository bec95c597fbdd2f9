"""The user's own loader, `file.py:function`: Python code, run only when the command line allows it."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lepton_cli.data import batching
from lepton_cli.data.dataset import Array
from lepton_cli.data.preprocess import Raw
from lepton_cli.data.source import Chunk, file_digest, label_map, nearest
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

#: One sample: what its batch calls an array, and its part of it.
_Row = dict[str, Array]


class LoaderSource:
    """Batches from `function(path)`, which yields dicts of arrays named like the model's inputs and the labels.

    Arrays are as the model takes them, but for preprocessing: samples lie where it has them (axis 0, axis 1 of states
    `[layers, batch, size]`), what all of a batch share is given once. Where a model takes one feed at a time (graphs),
    a batch is a sample. `path` is the recipe's, resolved. The function is called again for every pass and must yield
    the same samples. Opening runs it once, to count. Everything it raises becomes a DataError.
    """

    def __init__(
        self, path: Path, spec: DataSpec, inputs: Sequence[TensorInfo], *, base: Path, allow_code: bool
    ) -> None:
        assert spec.loader is not None
        if not allow_code:
            raise DataError(
                "data.code-not-allowed",
                f"the recipe wants to run Python code: `{spec.loader}`",
                hint="if you trust it: --allow-code",
                option=("loader",),
            )
        self._path = path
        self._loader = spec.loader
        self._file, self._function = _import(spec.loader, base)
        given = spec.inputs or {}
        self._infos = tuple(inputs)
        self._layout = batching.layout(inputs)
        self._inputs = {info.name: given.get(info.name, info.name) for info in inputs}
        self._labels = label_map(spec.labels)
        self.label_names = tuple(self._labels)
        self.class_names: Mapping[str, tuple[str, ...]] = {}
        self.text_labels: frozenset[str] = frozenset()  # labels are what it yields
        self.notes: tuple[str, ...] = ()
        self.jumps = False
        self.count = sum(len(batch) for batch in self._run())

    def _run(self) -> Iterator[list[_Row]]:
        """The samples of batch after batch."""
        try:
            for number, batch in enumerate(self._function(self._path)):
                yield self._rows(self._checked(batch, number), number)
        except DataError:
            raise
        except Exception as error:
            raise self._error(f"raised {type(error).__name__}", cause=str(error)) from error

    def _error(self, message: str, cause: str | None = None, hint: str | None = None) -> DataError:
        return DataError(
            "data.loader", f"loader `{self._loader}` {message}", cause=cause, hint=hint, option=("loader",)
        )

    def _checked(self, batch: object, number: int) -> dict[str, Array]:
        if not isinstance(batch, Mapping):
            raise self._error(f"yielded a {type(batch).__name__}, not a dict of arrays", f"batch {number}")
        arrays: dict[str, Array] = {}
        for key in (*self._inputs.values(), *self._labels.values()):
            if key not in batch:
                hint = nearest(str(key), [str(name) for name in batch], what="it yields")
                raise self._error(f"does not yield `{key}`", f"batch {number}", hint)
            arrays[str(key)] = np.asarray(batch[key])
        return arrays

    def _rows(self, arrays: dict[str, Array], number: int) -> list[_Row]:
        """The samples of a batch: without the axis they lie on, whole where a batch is one sample."""
        if self._layout.alone:  # labels as one sample has them: a single one may come in a list
            labels = {key: arrays[key][0] for key in self._labels.values() if arrays[key].shape[:1] == (1,)}
            return [{**arrays, **labels}]
        axes: dict[str, int | None] = dict.fromkeys(map(str, self._labels.values()), 0)
        for info in self._infos:
            key = str(self._inputs[info.name])
            axes[key] = self._axis(info, arrays[key], number)
        lengths = {key: _length(arrays[key], axis) for key, axis in axes.items() if axis is not None}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise self._error("yielded arrays of different or no length", f"batch {number}: {lengths}")
        count = next(iter(lengths.values()), 1)
        return [
            {key: array if (axis := axes[key]) is None else array.take(row, axis) for key, array in arrays.items()}
            for row in range(count)
        ]

    def _axis(self, info: TensorInfo, array: Array, number: int) -> int | None:
        """Where the samples are in what was yielded for an input; `None`: all of the batch share it."""
        axis = self._layout.axes[info.name]
        if axis is None:
            return None if info.shape is None or array.ndim <= len(info.shape) else 0
        if axis and info.shape is not None and not batching.fits(array.shape, info.shape):
            wanted = " x ".join(str(dim or "any") for dim in info.shape)
            raise self._error(
                f"yielded an array of {' x '.join(map(str, array.shape))} for input `{info.name}`",
                f"batch {number}: the model wants {wanted}, samples on axis {axis}",
                "a loader yields arrays as the model takes them",
            )
        return axis

    def chunks(self, indices: Sequence[int], size: int) -> Iterator[Chunk]:
        """See `Source`."""
        pending: list[_Row] = []
        wanted = np.asarray(indices, np.int64)
        start = taken = 0
        for batch in self._run():
            stop = start + len(batch)
            mine = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
            pending.extend(batch[row] for row in mine)
            start = stop
            while len(pending) >= size:
                yield self._chunk(pending[:size])
                taken, pending = taken + size, pending[size:]
            if taken + len(pending) == len(wanted):
                break
        if pending:
            yield self._chunk(pending)
        if taken + len(pending) != len(wanted):
            raise self._error("yields fewer samples than in its first run")

    def _chunk(self, samples: list[_Row]) -> Chunk:
        def column(key: str) -> Raw:
            values = [np.asarray(sample[key]) for sample in samples]
            return np.stack(values) if len({value.shape for value in values}) == 1 else values

        labels = {name: np.array([sample[key] for sample in samples]) for name, key in self._labels.items()}
        return Chunk({name: column(str(key)) for name, key in self._inputs.items()}, labels)

    def digest(self, indices: Sequence[int]) -> str:
        """See `Source`: of the loader's file and of everything it yields."""
        digest = hashlib.sha256(file_digest(self._file).encode())
        for row in itertools.chain.from_iterable(self._run()):
            for key, value in sorted(row.items()):
                array = np.asarray(value)
                digest.update(f"{key} {array.shape} {array.dtype}".encode())
                digest.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
        return digest.hexdigest()


def _length(array: Array, axis: int) -> int:
    return array.shape[axis] if array.ndim > axis else 0


def _import(loader: str, base: Path) -> tuple[Path, Callable[[Path], Any]]:
    file, _, name = loader.rpartition(":")
    path = base / file
    if not file or not path.is_file():
        raise DataError(
            "data.loader",
            f"loader `{loader}`: no such file" if file else f"loader `{loader}` is not written `file.py:function`",
            option=("loader",),
        )
    module_spec = importlib.util.spec_from_file_location("lepton_user_loader", path)
    if module_spec is None or module_spec.loader is None:
        raise DataError("data.loader", f"loader `{loader}`: {path.name} is not a .py file", option=("loader",))
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise DataError(
            "data.loader",
            f"loader `{loader}` cannot be imported",
            cause=f"{type(error).__name__}: {error}",
            option=("loader",),
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise DataError(
            "data.loader",
            f"{path.name} has no function `{name}`",
            hint=nearest(name, known, what="it has"),
            option=("loader",),
        )
    return path, function
