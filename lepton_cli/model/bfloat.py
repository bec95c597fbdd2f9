"""bfloat16 models as float32 ones, which hold the same values: onnxruntime's CPU provider has no kernels for bfloat16.

Whatever an operator takes in bfloat16 it takes in float32 too, so the type is replaced everywhere at once: weights,
inputs, outputs, and the attributes that name it.
"""

from __future__ import annotations

import contextlib
from copy import deepcopy

import onnx
import onnx_ir as ir

from lepton_cli.model import check

BFLOAT16, FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT
#: What is said of such a model.
NOTE = (
    "bfloat16 became float32, in inputs and outputs too: onnxruntime's CPU provider has no kernels for it. The values "
    "are the same, and only what a step makes smaller gets smaller"
)
#: Attributes that name the type of a result.
_NAMES = ("to", "dtype", "output_dtype")


def computes(model: ir.Model) -> bool:
    """Does anything but a Cast read or return bfloat16? Weights that are only stored so can stay as they are."""
    for graph in model.graphs():
        values = [*graph.inputs, *graph.outputs]
        for node in graph:
            if node.op_type not in ("Cast", "Constant"):
                values += [value for value in (*node.inputs, *node.outputs) if value is not None]
        for value in values:
            producer = value.producer()
            held = producer.attributes.get("value") if producer is not None else None
            kind = value.const_value.dtype if value.const_value is not None else value.dtype
            if held is not None and check.holds_tensor(held):
                kind = held.as_tensor().dtype
            if kind == BFLOAT16 or (producer is not None and _named(producer)):
                return True
    return False


def _named(node: ir.Node) -> list[str]:
    attributes = [node.attributes.get(name) for name in _NAMES]
    return [a.name for a in attributes if a is not None and not a.is_ref() and a.value == onnx.TensorProto.BFLOAT16]


def as_float32(model: ir.Model) -> ir.Model:
    """A copy without bfloat16. Weights are converted when they are used."""
    copy = model.clone()
    for graph in copy.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            _retype(value)
        for node in graph:
            for value in node.outputs:
                _retype(value)
            for name in _named(node):
                node.attributes[name] = ir.AttrInt64(name, int(FLOAT))
            for name, attribute in list(node.attributes.items()):
                if check.holds_tensor(attribute) and attribute.as_tensor().dtype == BFLOAT16:
                    node.attributes[name] = ir.AttrTensor(name, _wide(attribute.as_tensor()))
    return copy


def _retype(value: ir.Value) -> None:
    if value.const_value is not None and value.const_value.dtype == BFLOAT16:
        value.const_value = _wide(value.const_value)
    if value.dtype == BFLOAT16:
        value.type = deepcopy(value.type)  # the copied model shares it with the given one
        value.dtype = FLOAT


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    def read() -> ir.TensorProtocol:
        values = ir.tensor(tensor.numpy().astype("float32"))
        if isinstance(tensor, ir.ExternalTensor):
            with contextlib.suppress(BufferError):  # someone else still reads it
                tensor.release()  # what is mapped counts as memory of the process
        return values

    return ir.LazyTensor(read, FLOAT, ir.Shape(tensor.shape.numpy()), name=tensor.name)
