"""What trains: the float constants that stand where an operator has its weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

#: Inputs of an operator that hold weights, whatever its domain. Statistics of BatchNormalization are none, nor bounds.
SLOTS: dict[str, tuple[int, ...]] = {
    "Add": (0, 1),
    "Attention": (1, 2),
    "BatchNormalization": (1, 2),
    "BiasGelu": (1,),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Div": (1,),
    "Einsum": (0, 1),
    "EmbedLayerNormalization": (2, 3, 4, 5, 6),
    "FastGelu": (1,),
    "FusedConv": (1, 2),
    "FusedGemm": (1, 2),
    "FusedMatMul": (0, 1),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "Mul": (0, 1),
    "MultiHeadAttention": (3,),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4),
    "SkipSimplifiedLayerNormalization": (2, 3),
    "Sub": (0, 1),
}
#: Where one number is a factor or a shift of the formula (1/sqrt 2 of a GELU, an attention scale), not a weight.
_FORMULA = frozenset({"Add", "Div", "Mul", "Sub"})
#: A weight may stand behind these: they move numbers, or give them another width.
_THROUGH = frozenset(
    {
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
#: From this share of exact zeros on, a matrix was pruned: its zeros are what makes it small.
SPARSE = 0.1


def held(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The numbers of an initializer, or of a Constant node. In old files every initializer is an input too."""
    if value is None or value.const_value is not None:
        return None if value is None else value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    (attribute,) = node.attributes.values()
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor()
    kind = {
        ir.AttributeType.FLOAT: np.float32,
        ir.AttributeType.FLOATS: np.float32,
        ir.AttributeType.INT: np.int64,
        ir.AttributeType.INTS: np.int64,
    }.get(attribute.type)
    if attribute.type in (ir.AttributeType.STRING, ir.AttributeType.STRINGS):
        texts = np.array(attribute.value, object)
        return ir.StringTensor([text.encode() for text in texts.ravel()], shape=ir.Shape(texts.shape))
    return None if kind is None else ir.tensor(np.array(attribute.value, kind))


def weights(model: ir.Model, nodes: Collection[str] | None = None) -> list[ir.Value]:
    """The values that train, in the order of the graph, each once; those of branches and bodies too.

    `nodes`: names of the nodes whose weights train; `None`: all.
    """
    fixed = {
        value
        for node in model.graph.all_nodes()
        if node.op_type == "BatchNormalization"
        for place in node.inputs[3:5]
        for value in _roots(place)
    }
    found: dict[ir.Value, None] = {}
    for node in model.graph.all_nodes():
        if nodes is not None and node.name not in nodes:
            continue
        for slot in SLOTS.get(node.op_type, ()):
            for value in _roots(node.inputs[slot] if slot < len(node.inputs) else None):
                tensor = held(value)
                alone = node.op_type in _FORMULA and tensor is not None and tensor.size == 1
                if value not in fixed and not alone:
                    found[value] = None
    return list(found)


def _roots(value: ir.Value | None) -> Iterator[ir.Value]:
    """The float constants that a value is made of, where it is made of nothing else."""
    tensor = held(value)
    if value is not None and tensor is not None:
        if tensor.dtype in _FLOATS:
            yield value
        return
    node = None if value is None else value.producer()
    if node is not None and node.op_type in _THROUGH and node.domain in ("", "ai.onnx"):
        for source in node.inputs if node.op_type == "Concat" else node.inputs[:1]:
            yield from _roots(source)


def zeros(array: NDArray[np.floating]) -> NDArray[np.bool_] | None:
    """Where the zeros of a pruned matrix are, which stay; `None` where it was not pruned, or only begins with zeros."""
    empty = array == 0
    return empty if array.ndim > 1 and SPARSE <= float(empty.mean()) < 1 else None


def write(value: ir.Value, array: NDArray[np.floating]) -> None:
    """Give the constant other numbers: type and shape stay what they were."""
    before = held(value)
    assert before is not None
    made = np.asarray(array).reshape(before.shape.numpy()).astype(before.dtype.numpy())
    tensor = ir.tensor(made, dtype=before.dtype, name=before.name)
    if value.const_value is not None:
        value.const_value = tensor
        return
    node = value.producer()
    assert node is not None
    node.attributes.clear()
    node.attributes["value"] = ir.AttrTensor("value", tensor)
