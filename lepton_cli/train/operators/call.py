"""One use of an operator in a graph: what its function reads besides tensors, and how it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor


class NotInTorch(NotImplementedError):
    """A variant of an operator that torch cannot compute as onnxruntime does; the message says which. torch itself
    raises the base class where it has no kernel for a type.
    """


@dataclasses.dataclass(frozen=True)
class OperatorCall:
    """Attributes by name (numbers, strings, lists of them, tensors as torch tensors, graphs as they are), the version
    of the operator set, and how many results are asked for.
    """

    attributes: Mapping[str, Any]
    opset: int
    outputs: int = 1

    def __getitem__(self, name: str) -> Any:
        return self.attributes[name]

    def __contains__(self, name: str) -> bool:
        return name in self.attributes

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute, or the default."""
        return self.attributes.get(name, default)


#: `(call, *inputs)`: inputs that a node leaves out are `None`, and missing at the end. Inputs may stand on any device
#: and have any floating type (also under autocast); gradients pass wherever the operator has one. Nothing is changed in
#: place. A sequence is a list of tensors.
TorchOperator = Callable[..., "Tensor | tuple[Tensor | list[Tensor] | None, ...]"]

TYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.BOOL: torch.bool,
}


def call_of(node: ir.Node, opset: int) -> OperatorCall:
    """How the node calls its operator. Raises NotInTorch for attributes that torch has no type for."""
    return OperatorCall(
        {name: _value(attribute) for name, attribute in node.attributes.items()}, opset, len(node.outputs)
    )


def tensor_of(held: ir.TensorProtocol) -> Tensor:
    """A copy as a torch tensor. Raises NotInTorch where torch has no such type."""
    if held.dtype not in TYPES:
        raise NotInTorch(f"torch has no {held.dtype.name} tensors")
    if held.dtype == ir.DataType.BFLOAT16:
        return torch.from_numpy(held.numpy().astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(held.numpy(), order="C", copy=True))


def _value(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return tensor_of(attribute.as_tensor())
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(attribute.value)
    return attribute.value


def ints(value: Tensor | list[int] | int) -> list[int]:
    """Sizes, axes and places, given as a tensor or an attribute."""
    return [int(number) for number in (value.reshape(-1).tolist() if isinstance(value, Tensor) else np.ravel(value))]
