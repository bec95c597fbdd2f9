"""The user's own loader, `file.py:function`: Python code, run only when the command line allows it."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.data.preprocess import Raw
from lepton_cli.data.source import Chunk, file_digest, label_map, nearest
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo


class LoaderSource:
    """Batches from `function(path)`, which yields dicts of arrays named like the model's inputs and the labels.

    `path` is the recipe's, resolved. The function is called again for every pass and must yield the same samples.
    Opening runs it once, to count. Everything it raises becomes a DataError.
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
        self._inputs = {info.name: given.get(info.name, info.name) for info in inputs}
        self._labels = label_map(spec.labels)
        self.label_names = tuple(self._labels)
        self.class_names: Mapping[str, tuple[str, ...]] = {}
        self.notes: tuple[str, ...] = ()
        self.count = sum(_length(batch) for batch in self._run())

    def _run(self) -> Iterator[dict[str, Array]]:
        try:
            for number, batch in enumerate(self._function(self._path)):
                yield self._checked(batch, number)
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
        lengths = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise self._error("yielded arrays of different or no length", f"batch {number}: {lengths}")
        return arrays

    def chunks(self, indices: Sequence[int], size: int) -> Iterator[Chunk]:
        """See `Source`."""
        pending: list[dict[str, Array]] = []
        wanted = np.asarray(indices, np.int64)
        start = taken = 0
        for batch in self._run():
            stop = start + _length(batch)
            mine = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
            pending.extend({key: array[row] for key, array in batch.items()} for row in mine)
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

    def _chunk(self, samples: list[dict[str, Array]]) -> Chunk:
        def column(key: str) -> Raw:
            values = [np.asarray(sample[key]) for sample in samples]
            return np.stack(values) if len({value.shape for value in values}) == 1 else values

        labels = {name: np.array([sample[key] for sample in samples]) for name, key in self._labels.items()}
        return Chunk({name: column(str(key)) for name, key in self._inputs.items()}, labels)

    def digest(self, indices: Sequence[int]) -> str:
        """See `Source`: of the loader's file and of everything it yields."""
        digest = hashlib.sha256(file_digest(self._file).encode())
        for batch in self._run():
            for key, array in sorted(batch.items()):
                digest.update(f"{key} {array.shape} {array.dtype}".encode())
                digest.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
        return digest.hexdigest()


def _length(batch: Mapping[str, Array]) -> int:
    return len(next(iter(batch.values())))


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
