"""The arrays inside `.npz` and `.npy` files: their headers, and their rows as they are needed.

In a stored member the reader jumps from row to row; a compressed one is inflated from its beginning, once per pass:
memory follows the batch and not the file. Nothing is unpickled, and sizes that the file declares are checked against
each other before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.data.source import MAX_CHUNK_BYTES
from lepton_cli.errors import DataError

#: Bytes of a compressed array that have to be held at once because it is stored column by column.
MAX_COLUMN_MAJOR_BYTES = 1 << 28
_MAX_MEMBERS = 10_000
#: Deflate cannot shrink data further than this.
_MAX_RATIO = 1040
_SKIP = 1 << 20


@dataclasses.dataclass(frozen=True)
class Member:
    """An array inside a file. `offset` is where its data begin in the file, `None` when it is compressed."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    column_major: bool
    header: int
    offset: int | None

    @property
    def where(self) -> str:
        return f"{self.path}: {self.key}" if self.key else str(self.path)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def chunks(self, indices: Sequence[int], size: int) -> Iterator[Array]:
        """The rows at ascending `indices`, `size` at a time."""
        rows = min(size, len(indices))
        if rows * self.row_bytes > MAX_CHUNK_BYTES:
            raise DataError(
                "data.too-large",
                f"{rows} samples of `{self.key or self.path.name}` take {rows * self.row_bytes / 1e9:.1f} GB of memory",
                where=self.where,
                hint="lower `batch`",
                option=("batch",),
            )
        whole = self._whole()
        stream = None if whole is not None else self._stream()
        try:
            position = 0
            for start in range(0, len(indices), size):
                wanted = indices[start : start + size]
                if whole is not None:
                    yield np.array(whole[np.asarray(wanted, np.int64)], order="C")
                else:
                    assert stream is not None
                    yield self._inflate(stream, wanted, position)
                    position = wanted[-1] + 1
        except (zlib.error, zipfile.BadZipFile, EOFError, OSError) as error:
            raise DataError(
                "data.damaged", f"array `{self.key}` is damaged", where=self.where, cause=str(error), option=("path",)
            ) from error
        finally:
            if stream is not None:
                stream.close()

    def _stream(self) -> IO[bytes]:
        """The array's bytes from the first row on."""
        if self.offset is not None:
            file = self.path.open("rb")
            file.seek(self.offset)
            return file
        with zipfile.ZipFile(self.path) as archive:
            inflated = archive.open(f"{self.key}.npy")
        inflated.read(self.header)
        return inflated

    def _whole(self) -> Array | None:
        """A column-major array as a memory map, or in memory where it must be; `None` when rows can be streamed."""
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, self.dtype)
        if not self.column_major:
            return None
        if self.offset is not None:
            return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, "F")
        if math.prod(self.shape) * self.dtype.itemsize > MAX_COLUMN_MAJOR_BYTES:
            raise DataError(
                "data.column-major",
                f"array `{self.key}` is compressed and stored column by column: it cannot be read sample by sample",
                where=self.where,
                hint="save it with np.ascontiguousarray(array), or with np.savez instead of np.savez_compressed",
                option=("path",),
            )
        with self._stream() as stream:
            data = _read_exactly(stream, math.prod(self.shape) * self.dtype.itemsize, self.where)
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F")

    def _inflate(self, stream: IO[bytes], wanted: Sequence[int], position: int) -> Array:
        """Rows `wanted` from a stream that stands at row `position`; neighbouring rows are read at once."""
        result = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        flat = result.reshape(len(wanted), -1).view(np.uint8) if self.row_bytes else result
        edges = np.flatnonzero(np.diff(np.asarray(wanted)) != 1) + 1
        for run in np.split(np.arange(len(wanted)), edges):
            first, count = wanted[run[0]], len(run)
            _skip(stream, (first - position) * self.row_bytes, self.where)
            data = _read_exactly(stream, count * self.row_bytes, self.where)
            flat[run[0] : run[0] + count] = np.frombuffer(data, np.uint8).reshape(count, -1)
            position = first + count
        return result


def _read_exactly(stream: IO[bytes], count: int, where: str) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise DataError("data.truncated", "the array ends too early", where=where, option=("path",))
    return data


def _skip(stream: IO[bytes], count: int, where: str) -> None:
    if not isinstance(stream, zipfile.ZipExtFile):
        stream.seek(count, os.SEEK_CUR)
        return
    while count > 0:
        block = min(count, _SKIP)
        _read_exactly(stream, block, where)
        count -= block


def read_npy(path: Path) -> dict[str, Member]:
    """The one array of an `.npy` file, under the file's name without suffix."""
    with path.open("rb") as stream:
        member = _read_header(stream, path, "", path.stat().st_size)
    return {path.stem: dataclasses.replace(member, offset=member.header)}


def read_npz(path: Path) -> dict[str, Member]:
    """The headers of all arrays in an `.npz` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _MAX_MEMBERS:
                raise DataError("data.format", f"{path.name} has {len(entries)} members", option=("path",))
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names):
                raise DataError("data.format", f"{path.name} holds two arrays of one name", option=("path",))
            return {
                entry.filename.removesuffix(".npy"): _read_member(archive, entry, path)
                for entry in entries
                if entry.filename.endswith(".npy")
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
        raise _not_npz(path, error) from error
    except (OSError, ValueError) as error:
        raise DataError("data.unreadable", f"cannot read {path.name}", cause=str(error), option=("path",)) from error


def _not_npz(path: Path, error: Exception) -> DataError:
    with path.open("rb") as stream:
        start = stream.read(64)
    cause = f"{type(error).__name__}: {error}"
    if start.startswith(b"version https://git-lfs"):
        cause = "it is a git-lfs pointer: git lfs pull"
    elif not start:
        cause = "the file is empty"
    elif start[:1] == b"\x80":
        cause = "it is a Python pickle, which lepton never opens"
    return DataError(
        "data.format",
        f"{path.name} is not a sound .npz file",
        cause=cause,
        hint="write it with np.savez_compressed(path, name=array, …)",
        option=("path",),
    )


def _read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> Member:
    key = entry.filename.removesuffix(".npy")
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            "data.format",
            f"array `{key}` is encrypted or packed in a way np.savez never writes",
            where=str(path),
            option=("path",),
        )
    if entry.file_size > _MAX_RATIO * entry.compress_size + 1024 or entry.compress_size > path.stat().st_size:
        raise DataError(
            "data.format",
            f"array `{key}` claims {entry.file_size} bytes in {entry.compress_size} compressed ones",
            where=str(path),
            cause="no honest file is packed that tightly",
            option=("path",),
        )
    with archive.open(entry) as stream:
        member = _read_header(stream, path, key, entry.file_size)
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        return member
    return dataclasses.replace(member, offset=_data_offset(path, entry) + member.header)


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: behind its local header, whose name and extra field vary in length."""
    with path.open("rb") as stream:
        stream.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", stream.read(4))
    return int(entry.header_offset) + 30 + int(name) + int(extra)


def _read_header(stream: IO[bytes], path: Path, key: str, total: int) -> Member:
    """Parse the `.npy` header, and compare the size it declares with the `total` bytes there are."""
    where = f"{path}: {key}" if key else str(path)
    shown = key or path.name
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, column_major, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, column_major, dtype = np.lib.format.read_array_header_2_0(stream)
    except (ValueError, TypeError, SyntaxError, EOFError, MemoryError, RecursionError, struct.error) as error:
        cause = " ".join(str(error).split())[:200]
        raise DataError(
            "data.format", f"`{shown}` is not a numpy array", where=where, cause=cause, option=("path",)
        ) from error
    if dtype.hasobject:
        raise DataError(
            "data.pickle",
            f"array `{shown}` holds Python objects",
            where=where,
            cause="reading them would run code from the file, which lepton never does",
            hint="save plain numbers: np.asarray(values, dtype=np.float32)",
            option=("path",),
        )
    if dtype.kind not in "biufUS" or dtype.itemsize == 0:
        raise DataError(
            "data.dtype",
            f"array `{shown}` has type {dtype}",
            where=where,
            hint="only numbers, booleans and text can feed a model",
            option=("path",),
        )
    header = stream.tell()
    needed = math.prod(shape) * dtype.itemsize
    if any(size < 0 for size in shape) or needed != total - header:
        raise DataError(
            "data.truncated",
            f"array `{shown}` declares shape {list(shape)} {dtype}, {needed} bytes, but {total - header} are there",
            where=where,
            option=("path",),
        )
    return Member(path, key, tuple(shape), dtype, bool(column_major), header, None)
