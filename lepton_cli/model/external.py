"""External data of a model: which files it names, and that none of them lies outside the model's folder."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.errors import ModelError


def check(path: Path, tensor: onnx.TensorProto, expected: int, folder: Path) -> None:
    """Raises ModelError unless the tensor's file lies in `folder` (resolved), is regular and long enough."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    name = tensor.name or "(unnamed)"

    def refuse(cause: str, hint: str | None = None) -> ModelError:
        return ModelError(
            "model.external-data",
            f"{path}: the external data of tensor `{name}` cannot be used",
            cause=cause,
            hint=hint,
        )

    if not location or "\0" in location:
        raise refuse("it names no file")
    relative = Path(location.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts:
        raise refuse(f"`{location}` points outside the model's folder", "keep model and data in one folder")
    file = folder / relative
    try:
        resolved = file.resolve(strict=True)
        status = resolved.stat()
    except FileNotFoundError as error:
        raise refuse(f"`{location}` is missing", "copy the data file next to the model") from error
    except (OSError, RuntimeError) as error:
        raise refuse(f"`{location}` cannot be read: {error}") from error
    if not resolved.is_relative_to(folder):
        raise refuse(f"`{location}` is a link to outside the model's folder", "copy the data file next to the model")
    if not stat.S_ISREG(status.st_mode):
        raise refuse(f"`{location}` is not a regular file")
    if resolved == path.resolve():
        raise refuse(f"`{location}` is the model file itself")
    if status.st_nlink > 1:
        raise refuse(f"`{location}` is hard-linked to another place", "copy the data file next to the model")
    try:
        offset = int(entries.get("offset", "0") or 0)
        length = int(entries["length"]) if entries.get("length") else expected
    except ValueError:
        raise refuse("offset or length is not a number") from None
    if offset < 0 or length != expected:
        raise refuse(f"it has {length} bytes at {offset}, the tensor's shape needs {expected}")
    if offset + length > status.st_size:
        raise refuse(f"`{location}` ends at {status.st_size} bytes, the tensor needs {offset + length}")


#: A multiple of every element's size.
_BLOCK = 1 << 22


def blocks(tensor: ir.TensorProtocol) -> Iterator[bytes]:
    """The bytes of a tensor piece by piece.

    What lies in a file is read and not mapped: pages of a map count as memory in use until the map is gone.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        yield tensor.tobytes()
        return
    left = tensor.nbytes
    with Path(tensor.path).open("rb") as stream:
        stream.seek(tensor.offset or 0)
        while left > 0 and (block := stream.read(min(_BLOCK, left))):
            left -= len(block)
            yield block


def pieces(tensor: ir.TensorProtocol) -> Iterator[NDArray[Any]]:
    """The values of a tensor piece by piece, flat where it lies in a file; its type must fill whole bytes."""
    if not isinstance(tensor, ir.ExternalTensor):
        yield tensor.numpy()
        return
    for block in blocks(tensor):
        yield np.frombuffer(block, tensor.dtype.numpy())
