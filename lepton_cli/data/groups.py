"""Columns that say which group a sample belongs to: an age, a region, a camera. Accuracy is told for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lepton_cli.data import npz, rows
from lepton_cli.data.dataset import Array
from lepton_cli.data.source import nearest
from lepton_cli.data.spec import DataSpec
from lepton_cli.data.tables import MISSING
from lepton_cli.errors import DataError

#: More values than this are measurements, no groups.
MAX_VALUES = 1000


@dataclasses.dataclass(frozen=True)
class Groups:
    """One column. `codes`: of each sample the position of its value among `names`, shape (samples,)."""

    codes: Array
    names: tuple[str, ...]


def read(path: Path, spec: DataSpec, indices: Sequence[int]) -> dict[str, Groups]:
    """Groups of the samples at ascending `indices`, by column of a table or array of an `.npz` file.

    Raises DataError for columns that are not there, values that are missing, and more than 1,000 different ones.
    """
    columns = spec.groups
    table = path.is_file() and path.suffix.lower() in rows.SUFFIXES
    if spec.loader is not None or (not table and path.suffix.lower() != ".npz"):
        raise DataError(
            "data.groups",
            f"{'a loader' if spec.loader else path.name} has no columns for groups",
            hint="groups are columns of a .csv, .jsonl or .parquet table, or arrays of an .npz file",
            option=("groups",),
        )
    known = rows.columns(path) if table else list(npz.read_npz(path))
    for number, column in enumerate(columns):
        if column not in known:
            kind = "column" if table else "array"
            raise DataError(
                "data.unknown-column",
                f"{path.name} has no {kind} `{column}`",
                hint=nearest(column, known, what=f"its {kind}s"),
                option=("groups", number),
            )
    return _of_table(path, columns, indices) if table else _of_arrays(path, columns, indices)


def _of_table(path: Path, columns: Sequence[str], indices: Sequence[int]) -> dict[str, Groups]:
    values: dict[str, list[str]] = {column: [] for column in columns}
    places: list[str] = []
    wanted = iter(indices)
    target = next(wanted, None)
    for position, (line, row) in enumerate(rows.read(path, list(columns))):
        if position != target:
            continue
        target = next(wanted, None)
        places.append(rows.place(path, line))
        for column in columns:
            cell = row.get(column)
            values[column].append("" if cell is None else str(cell).strip())
    return {column: _grouped(column, number, values[column], places) for number, column in enumerate(columns)}


def _of_arrays(path: Path, columns: Sequence[str], indices: Sequence[int]) -> dict[str, Groups]:
    members, found = npz.read_npz(path), {}
    for number, column in enumerate(columns):
        member = members[column]
        if len(member.shape) != 1 or member.shape[0] <= indices[-1]:
            raise DataError(
                "data.groups",
                f"array `{column}` of shape {list(member.shape)} has not one value for each sample",
                option=("groups", number),
            )
        (array,) = member.chunks(indices, len(indices))
        texts = [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in array.tolist()]
        places = [f"{member.where}, sample {index}" for index in indices]
        found[column] = _grouped(column, number, texts, places)
    return found


def _grouped(column: str, number: int, texts: Sequence[str], places: Sequence[str]) -> Groups:
    """`places`: where each value stands, for errors."""
    missing = next((sample for sample, text in enumerate(texts) if text.lower() in MISSING), None)
    if missing is not None:
        raise DataError(
            "data.missing-group",
            f"a sample has no value of `{column}`, so that it belongs to no group",
            cause=f"{places[missing]} holds none",
            hint="name it, such as `unknown`, or leave the sample out",
            option=("groups", number),
        )
    names, codes = np.unique(np.array(texts, dtype=str), return_inverse=True)
    if len(names) > MAX_VALUES:
        raise DataError(
            "data.groups",
            f"`{column}` has {len(names):,} different values, and at most {MAX_VALUES:,} are groups",
            hint="a column of ranges, such as ages in tens, makes groups of a measurement",
            option=("groups", number),
        )
    return Groups(codes, tuple(map(str, names)))
