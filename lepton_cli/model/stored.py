"""Does a stored tensor hold as many bytes as its shape and type say? Nothing is allocated or read."""

from __future__ import annotations

from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir

from lepton_cli.errors import ModelError
from lepton_cli.model import external

#: More elements than any machine holds.
_MOST_ELEMENTS = 2**48
#: Field that holds the values of a type when they are not raw bytes, and its entries per element; else int32_data.
_TYPED_FIELDS: dict[int, tuple[str, int]] = {
    onnx.TensorProto.FLOAT: ("float_data", 1),
    onnx.TensorProto.COMPLEX64: ("float_data", 2),
    onnx.TensorProto.DOUBLE: ("double_data", 1),
    onnx.TensorProto.COMPLEX128: ("double_data", 2),
    onnx.TensorProto.INT64: ("int64_data", 1),
    onnx.TensorProto.UINT32: ("uint64_data", 1),
    onnx.TensorProto.UINT64: ("uint64_data", 1),
    onnx.TensorProto.STRING: ("string_data", 1),
}


def broken(path: Path, cause: str, hint: str | None = None) -> ModelError:
    """The error for a file that is ONNX by its looks but cannot be used."""
    return ModelError("model.broken", f"{path} is not a usable ONNX model", cause=cause, hint=hint)


def check(path: Path, tensor: onnx.TensorProto, folder: Path) -> None:
    """Raises ModelError unless the tensor is whole. `folder`: the model's, resolved."""
    name = tensor.name or "(unnamed)"
    dtype = _dtype(path, tensor, name)
    elements = prod(tensor.dims)
    if any(d < 0 for d in tensor.dims) or elements >= _MOST_ELEMENTS:
        raise broken(path, f"tensor `{name}` has the impossible shape {list(tensor.dims)[:8]}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if dtype == ir.DataType.STRING:
            raise broken(path, f"tensor `{name}` holds text in an external file, which ONNX does not allow")
        external.check(path, tensor, _bytes(dtype, elements), folder)
    elif tensor.HasField("raw_data"):
        expected = 0 if dtype == ir.DataType.STRING else _bytes(dtype, elements)
        if len(tensor.raw_data) != expected:
            raise broken(path, f"tensor `{name}` holds {len(tensor.raw_data)} bytes, its shape needs {expected}")
    else:
        field, per_element = _TYPED_FIELDS.get(tensor.data_type, ("int32_data", 1))
        held = len(getattr(tensor, field))
        packed = dtype != ir.DataType.STRING and dtype.bitwidth < 8
        if held != per_element * (_bytes(dtype, elements) if packed else elements):
            raise broken(path, f"tensor `{name}` holds {held} elements, its shape needs {elements}")


def _dtype(path: Path, tensor: onnx.TensorProto, name: str) -> ir.DataType:
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise broken(path, f"tensor `{name}` has the unknown type {tensor.data_type}")
    return dtype


def _bytes(dtype: ir.DataType, elements: int) -> int:
    return -(-elements * dtype.bitwidth // 8)
