"""Rows of `.csv`, `.jsonl` and `.parquet` files, one after the other, each with the place it stands at."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from lepton_cli.errors import DataError, MissingExtraError

#: The number that `place` turns into words, and the cells by column.
DataRow = tuple[int, Mapping[str, Any]]
SUFFIXES = (".csv", ".jsonl", ".parquet")
#: A longer line is not a row of a table: 16 MiB hold two million numbers.
MAX_LINE = 1 << 24
_PARQUET_ROWS = 1024
#: Bytes that these rows may take: a small file can repeat one long text a million times.
_PARQUET_BYTES = 1 << 28


def columns(path: Path) -> list[str]:
    """Column names: a CSV's header, the keys of the first JSON line, a Parquet file's schema. Raises DataError."""
    if path.suffix.lower() == ".parquet":
        with _parquet(path) as file:
            return [str(name) for name in file.schema_arrow.names]
    if path.suffix.lower() == ".csv":
        return _header(path)
    first = next(_jsonl(path), None)
    return [] if first is None else list(first[1])


def read(path: Path, wanted: Sequence[str]) -> Iterator[DataRow]:
    """All rows; columns besides `wanted` may be left out. Raises DataError where the file is broken."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path, wanted)
    return _csv(path) if suffix == ".csv" else _jsonl(path)


def place(path: Path, number: int) -> str:
    """Where a row stands: file and line, or the row of a Parquet file."""
    return f"{path}: row {number}" if path.suffix.lower() == ".parquet" else f"{path}:{number}"


def _broken(path: Path, cause: object, line: int | None = None) -> DataError:
    return DataError(
        "data.format",
        f"{path.name} is not a sound {path.suffix.lower()} table",
        where=f"{path}:{line}" if line else str(path),
        cause=" ".join(str(cause).split())[:200],
        option=("path",),
    )


def _header(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            names = [name.strip() for name in next(csv.reader(_lines(stream, path)), [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _broken(path, error, 1) from error
    name, times = max(Counter(names).items(), key=lambda item: item[1], default=("", 0))
    if times > 1:
        raise _broken(path, f"column `{name}` appears twice in the header", 1)
    if names and all(_is_number(name) for name in names):
        raise _broken(path, "the first line holds numbers: a header with column names is needed", 1)
    return names


def _lines(stream: TextIO, path: Path) -> Iterator[str]:
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise _broken(path, f"a line of more than {MAX_LINE >> 20} MiB", number)
        yield line


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _csv(path: Path) -> Iterator[DataRow]:
    names = _header(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(_lines(stream, path))
            next(reader, None)
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise _broken(path, f"{len(cells)} cells, the header has {len(names)} columns", reader.line_num)
                yield reader.line_num, dict(zip(names, cells, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _broken(path, error) from error


def _jsonl(path: Path) -> Iterator[DataRow]:
    number = 0
    try:
        with path.open("rb") as stream:
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise _broken(path, f"a line of more than {MAX_LINE >> 20} MiB", number)
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise _broken(path, 'each line must be an object: {"column": value, …}', number)
                yield number, row
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path, error, number) from error


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("tables", "pyarrow", "reading .parquet tables") from error
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid, ArrowNotImplementedError, …
        raise _broken(path, error) from error


def _parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[DataRow]:
    number = 0
    with _parquet(path) as file:
        try:
            if not wanted:
                yield from ((row + 1, {}) for row in range(file.metadata.num_rows))
                return
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=list(wanted)):
                if batch.nbytes > _PARQUET_BYTES:
                    raise _broken(path, f"{batch.num_rows} rows take {batch.nbytes / 1e9:.1f} GB of memory")
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except DataError:
            raise
        except Exception as error:
            raise _broken(path, error) from error
