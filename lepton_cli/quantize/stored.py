"""Weights stored in 8 bits and computed with in float: a smaller file, the same kernels.

A weight becomes `Cast(codes) * scales`. That depends on constants only, so runtimes compute it once, when they load the
model. Behind DequantizeLinear, onnxruntime computes it at every run: 1.7 times the time of ResNet-20, 7 times that of a
small text detector.
"""

from __future__ import annotations

import hashlib
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from lepton_cli.graph.edit import Editor
from lepton_cli.graph.held import FLOATS
from lepton_cli.model.external import blocks, pieces
from lepton_cli.probe.distances import decibel
from lepton_cli.quantize.store import Shared, WeightStore

#: Smaller weights are hardly larger than what is put in their place.
LEAST_BYTES = 2048
#: Values that share a scale: with fewer, the scales are half of the result.
LEAST_SHARED = 8
#: Greatest code; the range is symmetric.
_TOP = 127
_MICROSOFT = "com.microsoft"


def places(node: ir.Node) -> dict[int, tuple[int, ...]]:
    """Inputs of the node that can be stored in 8 bits: by index the axes of the stored tensor that share a scale.

    Weights that the node sums products with: there the errors of single values cancel. What is added or compared shows
    them as they are.
    """
    found = {}
    for index, value in enumerate(node.inputs):
        source, turned = behind(value)
        tensor = None if source is None else source.const_value
        if tensor is None or tensor.dtype not in FLOATS or tensor.nbytes < LEAST_BYTES:
            continue
        shape = tensor.shape.numpy()
        axes = _summed(node, index, len(shape))
        if turned:
            axes = tuple(1 - axis for axis in axes)
        if prod(shape[axis] for axis in axes) < LEAST_SHARED or not _finite(tensor):
            continue
        found[index] = axes
    return found


def behind(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """The value whose tensor a node reads here, and whether a Transpose of a matrix stands between."""
    turn = value.producer() if value is not None else None
    if turn is None or turn.op_type != "Transpose" or turn.domain or turn.inputs[0] is None:
        return value, False
    source = turn.inputs[0]
    matrix = source.const_value is not None and len(source.const_value.shape) == 2
    turns = matrix and list(turn.attributes.get_ints("perm", (1, 0))) == [1, 0]
    return (source, True) if turns else (value, False)


def refused(node: ir.Node) -> str | None:
    """Why a node that holds weights which it sums over has none to store; `None` where it has no such weights."""
    tensors = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    ranks = {
        index: len(value.const_value.shape)
        for index, value in enumerate(node.inputs)
        if value is not None and value.const_value is not None
    }
    if not any(_summed(node, index, rank) for index, rank in ranks.items()):
        return None
    if max(tensor.nbytes for tensor in tensors) < LEAST_BYTES:
        return f"only {max(tensor.size for tensor in tensors)} values"
    return "its weight holds infinities or NaN, or too few values for each scale"


def _finite(tensor: ir.TensorProtocol) -> bool:
    return all(np.isfinite(piece.astype(np.float32, copy=False)).all() for piece in pieces(tensor))


def _summed(node: ir.Node, index: int, rank: int) -> tuple[int, ...]:
    """Axes of this input over which the node sums, or copies whole rows; empty where that is not known."""
    match node.domain, node.op_type, index:
        case ("" | "com.microsoft", "Conv" | "FusedConv" | "DeformConv", 1):
            return tuple(range(1, rank))
        case "", "ConvTranspose", 1:  # [in, out / groups, ...]
            own = 1 if node.attributes.get_int("group", 1) == 1 else 0
            return tuple(axis for axis in range(rank) if axis != own)
        case "", "LSTM" | "GRU" | "RNN", (1 | 2):  # [directions, gates * hidden, in]
            return (2,)
        case "", "MatMul", (0 | 1) if rank > 1:
            return (rank - 1,) if index == 0 else (rank - 2,)
        case "", "Gemm", (0 | 1):
            turned = node.attributes.get_int("transB" if index else "transA", 0)
            return (1 - turned,) if index == 0 else (turned,)
        case "com.microsoft", "Attention", 1:
            return (0,)
        case "", "Gather", 0 if rank > 1:
            return (rank - 1,)
        case "", "Einsum", _:
            return _contracted(node.attributes.get_string("equation", ""), index)
    return ()


def _contracted(equation: str, index: int) -> tuple[int, ...]:
    """Axes of an operand whose letter the result does not have."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    term = terms.split(",")[index]
    if "." in term:
        return ()
    if not arrow:
        result = "".join(letter for letter in terms if terms.count(letter) == 1)
    return tuple(axis for axis, letter in enumerate(term) if letter not in result)


def replace(editor: Editor, node: ir.Node, store: WeightStore, shared: Shared) -> float:
    """Let the node read its weights from 8 bits, in place; returns their signal-to-noise ratio in dB.

    Equal weights that are read in the same way are stored once where calls share `shared`.
    """
    signal = noise = 0.0
    for index, axes in places(node).items():
        value, turned = behind(node.inputs[index])
        assert value is not None
        assert value.const_value is not None
        key = (*_content(value.const_value), axes)
        if key not in shared:
            shared[key] = _put(editor, value, axes, store)
        made, own_signal, own_noise, _ = shared[key]
        turn = node.inputs[index].producer() if turned else None  # type: ignore[union-attr]
        if turn is not None:
            turn.replace_input_with(0, made[0])
        else:
            node.replace_input_with(index, made[0])
        signal, noise = signal + own_signal, noise + own_noise
    return decibel(signal, noise)


def _content(tensor: ir.TensorProtocol) -> tuple[Any, ...]:
    """Equal for equal weights: the branches of an If often hold them twice."""
    digest = hashlib.sha256()
    for block in blocks(tensor):
        digest.update(block)
    return tensor.dtype, tuple(tensor.shape.numpy()), digest.digest()


def _put(
    editor: Editor, value: ir.Value, axes: tuple[int, ...], store: WeightStore
) -> tuple[list[ir.Value], float, float, ir.TensorProtocol]:
    """The weight, computed from 8 bits at the head of the graph that holds it."""
    tensor, graph = value.const_value, editor.model.graph
    assert tensor is not None
    shape = tensor.shape.numpy()
    codes = np.zeros(shape, np.int8)
    scales = np.ones([1 if axis in axes else size for axis, size in enumerate(shape)], np.float32)
    signal = noise = 0.0
    if not store.empty:
        array = tensor.numpy().astype(np.float32, copy=False)
        greatest = np.abs(array).max(axis=axes, keepdims=True)
        scales = np.where(greatest > 0, greatest / np.float32(_TOP), 1).astype(np.float32)
        np.clip(np.rint(array / scales), -_TOP, _TOP, out=codes, casting="unsafe")
        signal = float(np.square(array, dtype=np.float64).sum())
        noise = float(np.square(codes * scales - array, dtype=np.float64).sum())
    held = editor.constant(f"{value.name}.codes", store.keep(codes))
    factor = editor.constant(f"{value.name}.scales", store.keep(scales))
    steps = [ir.node("Cast", [held], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}.float")]
    steps.append(ir.node("Mul", [steps[-1].outputs[0], factor], name=f"{value.name}.scaled"))
    if tensor.dtype != ir.DataType.FLOAT:
        steps.append(ir.node("Cast", [steps[-1].outputs[0]], {"to": int(tensor.dtype)}, name=f"{value.name}.cast"))
    editor.insert_before(next(iter(graph)), steps)
    return [steps[-1].outputs[0]], signal, noise, tensor
