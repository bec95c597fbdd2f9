"""A newer operator set, for what an older one has no operator or type for."""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_ir as ir

from lepton_cli.graph import shapes
from lepton_cli.model import io

#: Version of the file format that goes with an operator set, for those that brought something that is written here.
_FORMATS = {20: 9, 21: 10, 23: 11}


def raised(model: ir.Model, opset: int) -> ir.Model | None:
    """A copy of operator set `opset` or, where the model has it, a newer one; `None` where onnx cannot convert it."""
    if shapes.opset(model) >= opset:
        return io.clone(model)
    try:
        made = io.from_proto(onnx.version_converter.convert_version(io.to_proto(model), opset))
    except Exception:  # the converter raises whatever its C++ code throws
        return None
    made.ir_version = max(made.ir_version or 0, _FORMATS[opset])
    io.name_nodes(made)
    return made
