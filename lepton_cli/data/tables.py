"""Tables: `.csv`, `.jsonl` and `.parquet`. Columns become inputs; rows are read as a stream, again for every pass."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lepton_cli.data import rows
from lepton_cli.data.dataset import Array
from lepton_cli.data.labels import number_labels
from lepton_cli.data.preprocess import Raw
from lepton_cli.data.source import MAX_CHUNK_BYTES, Chunk, file_digest, label_map, nearest
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo


class TableSource:
    """Rows of a table as samples.

    A column of numbers gives `[n]` (`[n, 1]` for an input of rank 2), several columns `[n, columns]`, a column of
    lists `[n, length]`. Without `inputs` columns go to the inputs of their names, or all but the labels to the only
    input. Opening reads the table once, to count rows and to number text labels. Raises DataError.
    """

    class_names: Mapping[str, tuple[str, ...]]

    def __init__(self, path: Path, spec: DataSpec, inputs: Sequence[TensorInfo]) -> None:
        self._path = path
        columns = rows.columns(path)
        labels = label_map(spec.labels)
        for column in labels.values():
            _require(column, columns, path, "labels")
        self._labels, self._label_type = labels, spec.label_type
        self._inputs = _choose(spec, inputs, columns, {*labels.values(), *spec.groups}, path)
        self._text = {info.name for info in inputs if info.dtype == "str"}
        self._wide = {info.name for info in inputs if info.shape is not None and len(info.shape) == 2}
        specs = {info.name: spec.preprocess_inputs.get(info.name, spec.preprocess) for info in inputs}
        self._fills = {name for name, preprocess in specs.items() if preprocess.fill_missing is not None}
        self.notes: tuple[str, ...] = ()
        self.jumps = False
        self.label_names = tuple(labels)
        self._scan()

    def _scan(self) -> None:
        """Count the rows, and read all labels: a label's type is known only when the last one has been seen."""
        places = array("q")
        values: dict[str, list[Any]] = {name: [] for name in self._labels}
        self.count = 0
        for number, row in rows.read(self._path, sorted(set(self._labels.values()))):
            self.count += 1
            if values:
                places.append(number)
            for name, column in self._labels.items():
                values[name].append(row.get(column))

        def where(row: int) -> str:
            return rows.place(self._path, places[row])

        text = self._label_type == "text"
        numbered = {name: number_labels(listed, where, text=text) for name, listed in values.items()}
        self._label_values = {name: labels for name, (labels, _) in numbered.items()}
        self.class_names = {name: classes for name, (_, classes) in numbered.items() if classes}
        self.text_labels = frozenset(self.class_names)

    def chunks(self, indices: Sequence[int], size: int) -> Iterator[Chunk]:
        """See `Source`. Columns of lists of different lengths come as a list of arrays."""
        wanted = iter(indices)
        target = next(wanted, None)
        used = sorted({column for chosen in self._inputs.values() for column in _as_tuple(chosen)})
        pending: dict[str, list[Array]] = {name: [] for name in self._inputs}
        taken: list[int] = []
        for position, (number, row) in enumerate(rows.read(self._path, used)):
            if position != target:
                continue
            for name in pending:
                pending[name].append(self._value(name, row, rows.place(self._path, number)))
            taken.append(position)
            target = next(wanted, None)
            if len(taken) == size or target is None:
                yield Chunk(
                    {name: self._stack(name, values) for name, values in pending.items()},
                    {name: values[np.asarray(taken)] for name, values in self._label_values.items()},
                )
                pending, taken = {name: [] for name in self._inputs}, []
            if target is None:
                return
        raise DataError("data.changed", f"{self._path.name} has fewer rows than before", option=("path",))

    def _value(self, name: str, row: Mapping[str, Any], place: str) -> Array:
        """One sample of input `name`."""
        chosen = self._inputs[name]
        if isinstance(chosen, tuple):
            numbers = _plain_numbers([row.get(column) for column in chosen])
            if numbers is not None and name not in self._text:
                return numbers
            parts = [np.atleast_1d(self._cell(name, row, column, place)) for column in chosen]
            return np.concatenate(parts)
        return self._cell(name, row, chosen, place)

    def _cell(self, name: str, row: Mapping[str, Any], column: str, place: str) -> Array:
        value = row.get(column)
        if name in self._text:
            return np.array("" if value is None else value, object)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = _json_list(value, column, place)
        if isinstance(value, (list, tuple)):
            return self._list(name, value, column, place)
        return np.array(self._number(name, value, column, place), np.float64)

    def _list(self, name: str, value: Sequence[Any], column: str, place: str) -> Array:
        try:
            cells: Array = np.array(value, object)
        except ValueError:
            cells = np.array([*value, None], object)[:-1]
        if cells.ndim > MAX_NESTING:
            raise DataError(
                "data.nesting",
                f"column `{column}` holds lists nested more than {MAX_NESTING} levels deep",
                where=place,
                option=("inputs", name),
            )
        if any(isinstance(item, list) for item in cells.flat):
            raise DataError(
                "data.ragged",
                f"column `{column}` holds lists of different lengths in one row",
                where=place,
                option=("inputs", name),
            )
        numbers = [self._number(name, item, column, place) for item in cells.flat]
        return np.array(numbers, np.float64).reshape(cells.shape)

    def _number(self, name: str, value: Any, column: str, place: str) -> float:
        if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
            value = math.nan
        try:
            if isinstance(value, (list, dict, bytes)):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise DataError(
                "data.not-a-number",
                f"column `{column}` holds `{str(value)[:40]}`, which is not a number",
                where=place,
                hint="encode categories as numbers first, or leave the column out of `inputs`",
                option=("inputs", name),
            ) from None
        if number != number and name not in self._fills:
            raise DataError(
                "data.missing",
                f"column `{column}` has no value here",
                where=place,
                hint="add `fill_missing: 0`, `mean` or `median` to `preprocess`; `keep` where the model fills it in",
                option=("preprocess", "fill_missing"),
            )
        return number

    def _stack(self, name: str, values: list[Array]) -> Raw:
        if len({value.shape for value in values}) > 1:
            return values
        if sum(value.nbytes for value in values) > MAX_CHUNK_BYTES:
            raise DataError("data.too-large", "the rows of one batch are too large", hint="lower `batch`")
        stacked = np.stack(values)
        return stacked[:, None] if stacked.ndim == 1 and name in self._wide else stacked

    def digest(self, indices: Sequence[int]) -> str:
        """See `Source`: of the whole file."""
        return file_digest(self._path)


#: Deeper lists are no sample: numpy's arrays end at 64 axes, its iterators at 32.
MAX_NESTING = 16
#: Cells that stand for a missing value.
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})


def _plain_numbers(cells: list[Any]) -> Array | None:
    """The cells at once when all are numbers, which is nearly always; `None` when one needs a closer look."""
    try:
        numbers = np.array(cells, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if numbers.ndim == 1 and not np.isnan(numbers).any() else None


def _as_tuple(chosen: str | tuple[str, ...]) -> tuple[str, ...]:
    return chosen if isinstance(chosen, tuple) else (chosen,)


def _json_list(value: str, column: str, place: str) -> list[Any]:
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(
            "data.not-a-number", f"column `{column}` holds a broken list", where=place, cause=str(error)
        ) from None
    return parsed if isinstance(parsed, list) else [parsed]


def _choose(
    spec: DataSpec, inputs: Sequence[TensorInfo], columns: Sequence[str], labels: set[str], path: Path
) -> dict[str, str | tuple[str, ...]]:
    """Model input -> column or columns."""
    chosen: dict[str, str | tuple[str, ...]] = {}
    known = set(columns)  # tables with 100,000 columns exist
    for info in inputs:
        given = (spec.inputs or {}).get(info.name)
        if given is None and info.name not in columns and len(inputs) == 1:
            rest = tuple(column for column in columns if column not in labels)
            given = rest if len(rest) != 1 else rest[0]
        chosen[info.name] = info.name if given is None else given
        if not _as_tuple(chosen[info.name]):
            raise DataError("data.columns", f"{path.name} has no column for input `{info.name}`", option=("inputs",))
        for column in _as_tuple(chosen[info.name]):
            if column not in known:
                _require(column, columns, path, "inputs")
    return chosen


def _require(column: str, columns: Sequence[str], path: Path, option: str) -> None:
    if column not in columns:
        raise DataError(
            "data.unknown-column",
            f"{path.name} has no column `{column}`",
            hint=nearest(column, columns, what="its columns"),
            option=(option,),
        )
