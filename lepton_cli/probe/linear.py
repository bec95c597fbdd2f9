"""Convolutions and matrix products seen as one thing: rows of features times a matrix, plus a bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph.edit import Editor, is_constant, set_weight, weight_of

Matrix = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Linear:
    """A node with a constant weight. Feature order: input channel first, then kernel position.

    `bias` is the initializer that holds the bias (of the node, or of an `Add` right behind a MatMul); `None` where
    there is none. `can_add_bias`: the node accepts a new one. `output` is the value right after the product,
    `biased` the value after the bias.
    """

    node: str
    op: str
    weight: str
    input: str
    output: str
    biased: str
    bias: str | None
    can_add_bias: bool
    #: Axis of the weight with input channels, and the same for outputs.
    in_axis: int
    out_axis: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"

    @property
    def per_channel(self) -> int:
        """Features of one input channel."""
        return int(np.prod(self.kernel)) if self.kernel else 1

    @property
    def channel_axis(self) -> int:
        """Channel axis of the input and output activations."""
        return 1 if self.kernel else -1

    def matrix(self, weight: NDArray[Any]) -> Matrix:
        """Weight as [features, outputs]."""
        moved = np.moveaxis(np.asarray(weight, np.float64), self.out_axis, -1)
        return np.ascontiguousarray(moved.reshape(-1, moved.shape[-1]))

    def weight_from(self, matrix: Matrix, like: NDArray[Any]) -> NDArray[Any]:
        """Inverse of `matrix` in the type and shape of `like`."""
        shape = np.moveaxis(np.empty(like.shape, np.bool_), self.out_axis, -1).shape
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(shape), -1, self.out_axis)).astype(like.dtype)

    def features(self, x: NDArray[Any], pick: Callable[[int], NDArray[np.int64]] | None = None) -> NDArray[np.float32]:
        """Rows of features, [rows, features]; `pick(total)` chooses which rows."""
        if not self.kernel:
            rows = x.reshape(-1, x.shape[-1])
            return np.asarray(rows if pick is None else rows[pick(len(rows))], np.float32)
        windows = self._windows(x)
        spatial = windows.shape[:1] + windows.shape[2 : 2 + len(self.kernel)]
        total = int(np.prod(spatial))
        chosen = np.unravel_index(np.arange(total) if pick is None else pick(total), spatial)
        index: tuple[Any, ...] = (chosen[0], slice(None), *chosen[1:])
        rows = windows[index]
        return np.asarray(rows.reshape(len(rows), -1), np.float32)

    def rows(self, y: NDArray[Any], pick: Callable[[int], NDArray[np.int64]] | None = None) -> NDArray[np.float32]:
        """Outputs in the order of `features`, [rows, outputs]."""
        flat = np.moveaxis(y, self.channel_axis, -1).reshape(-1, y.shape[self.channel_axis])
        return np.asarray(flat if pick is None else flat[pick(len(flat))], np.float32)

    def _windows(self, x: NDArray[Any]) -> NDArray[Any]:
        return windows(x, self.kernel, self.strides, self.dilations, self.pads, self.auto_pad)


def windows(
    x: NDArray[Any],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    auto_pad: str = "NOTSET",
) -> NDArray[Any]:
    """What a convolution multiplies its weights with: a view [batch, channels, output positions..., kernel...].

    `pads` as ONNX writes them: all begins, then all ends; `auto_pad` overrules them.
    """
    dims = len(kernel)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    ends = [(pads[i], pads[i + dims]) for i in range(dims)]
    if auto_pad == "VALID":
        ends = [(0, 0)] * dims
    elif auto_pad != "NOTSET":
        ends = []
        for size, stride, span in zip(x.shape[2:], strides, reach, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + span - size)
            small, big = total // 2, total - total // 2
            ends.append((small, big) if auto_pad == "SAME_UPPER" else (big, small))
    padded = np.pad(x, [(0, 0), (0, 0), *ends]) if any(a or b for a, b in ends) else x
    found = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + dims)))
    steps = tuple(slice(None, None, s) for s in strides)
    inner = tuple(slice(None, None, d) for d in dilations)
    return found[(slice(None), slice(None), *steps, *inner)]


def find(model: ir.Model) -> dict[str, Linear]:
    """All linear nodes of the main graph with a constant float weight, by node name, in topological order."""
    found: dict[str, Linear] = {}
    for node in model.graph:
        make = _MAKERS.get(node.op_type)
        linear = make(node) if make is not None else None
        if linear is not None:
            found[linear.node] = linear
    return found


def _own(value: ir.Value | None) -> str | None:
    """Name of an initializer that only one node reads."""
    return value.name if value is not None and is_constant(value) and len(value.uses()) == 1 else None


def _float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


def _conv(node: ir.Node) -> Linear | None:
    weight = weight_of(node)
    attributes = node.attributes
    if weight is None or _own(weight) is None or not _float(weight) or node.inputs[0] is None:
        return None
    if attributes.get_int("group", 1) != 1:
        return None
    shape = tuple(int(d) for d in weight.const_value.shape.numpy()) if weight.const_value is not None else ()
    dims = len(shape) - 2
    bias = node.inputs[2] if len(node.inputs) > 2 else None

    return Linear(
        node=node.name or "",
        op=node.op_type,
        weight=weight.name or "",
        input=node.inputs[0].name or "",
        output=node.outputs[0].name or "",
        biased=node.outputs[0].name or "",
        bias=_own(bias),
        can_add_bias=bias is None,
        in_axis=1,
        out_axis=0,
        kernel=shape[2:],
        strides=tuple(attributes.get_ints("strides", (1,) * dims)),
        dilations=tuple(attributes.get_ints("dilations", (1,) * dims)),
        pads=tuple(attributes.get_ints("pads", (0,) * 2 * dims)),
        auto_pad=attributes.get_string("auto_pad", "NOTSET"),
    )


def _gemm(node: ir.Node) -> Linear | None:
    weight, x = weight_of(node), node.inputs[0]
    attributes = node.attributes
    plain = attributes.get_float("alpha", 1.0) == attributes.get_float("beta", 1.0) == 1.0
    if weight is None or x is None or _own(weight) is None or not _float(weight) or not plain:
        return None
    if attributes.get_int("transA", 0):
        return None
    across = attributes.get_int("transB", 0) != 0
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    width = weight.const_value.shape.numpy()[0 if across else 1] if weight.const_value is not None else 0
    vector = bias is not None and bias.const_value is not None and bias.const_value.shape.numpy() == (width,)
    return Linear(
        node=node.name or "",
        op="Gemm",
        weight=weight.name or "",
        input=x.name or "",
        output=node.outputs[0].name or "",
        biased=node.outputs[0].name or "",
        bias=_own(bias) if vector else None,
        can_add_bias=bias is None,
        in_axis=1 if across else 0,
        out_axis=0 if across else 1,
    )


def _matmul(node: ir.Node) -> Linear | None:
    weight, x = weight_of(node), node.inputs[0]
    if weight is None or x is None or _own(weight) is None or not _float(weight) or weight.const_value is None:
        return None
    if len(weight.const_value.shape) != 2 or node.domain not in ("", "ai.onnx"):
        return None
    output = node.outputs[0]
    bias, biased = None, output
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output() and uses[0][0].op_type == "Add":
        add = uses[0][0]
        other = weight_of(add, 1 - uses[0][1])
        if other is not None and _own(other) is not None and other.const_value is not None:
            shape = tuple(other.const_value.shape.numpy())
            if shape == (weight.const_value.shape[1],):
                bias, biased = other.name, add.outputs[0]
    return Linear(
        node=node.name or "",
        op="MatMul",
        weight=weight.name or "",
        input=x.name or "",
        output=output.name or "",
        biased=biased.name or "",
        bias=bias,
        can_add_bias=False,
        in_axis=0,
        out_axis=1,
    )


_MAKERS: dict[str, Callable[[ir.Node], Linear | None]] = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}


def store(model: ir.Model, linear: Linear, matrix: Matrix, bias: Matrix | None) -> None:
    """Write a matrix and a bias into the model, in place; a missing bias input is created where the node takes one."""
    weight = model.graph.initializers[linear.weight].const_value
    if weight is None:
        return
    array = weight.numpy()
    set_weight(model.graph.initializers[linear.weight], linear.weight_from(matrix, array))
    if bias is None:
        return
    if linear.bias is not None:
        set_weight(model.graph.initializers[linear.bias], bias.astype(array.dtype))
    elif linear.can_add_bias:
        node = next(node for node in model.graph if node.name == linear.node)
        Editor(model).give(node, 2, bias.astype(array.dtype), f"{linear.node}__bias")


def bias_of(model: ir.Model, linear: Linear) -> Matrix | None:
    """The bias vector; zeros where one could be added; `None` where there is no place for one."""
    if linear.bias is not None:
        tensor = model.graph.initializers[linear.bias].const_value
        return None if tensor is None else np.asarray(tensor.numpy(), np.float64)
    if not linear.can_add_bias:
        return None
    weight = model.graph.initializers[linear.weight].const_value
    return None if weight is None else np.zeros(weight.shape.numpy()[linear.out_axis])


def matrix_of(model: ir.Model, linear: Linear) -> Matrix:
    """The weight as [features, outputs] in float64."""
    tensor = model.graph.initializers[linear.weight].const_value
    return linear.matrix(tensor.numpy() if tensor is not None else np.empty((0, 0)))
