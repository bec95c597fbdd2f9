"""Shapes that onnxruntime's int8 convolutions are fast for, written into a quantized graph; the numbers stay the same.

Rows: a convolution copies what its window covers into a matrix, row by row of the window. For a picture of three
channels that is nine bytes at a time, and takes longer than the product of the matrices. Where the rows of a window are
channels, gathered line by line before, one copy takes them all; and a matrix whose rows are whole words of four bytes
is packed faster. The first layer of SqueezeNet takes half as long.

Blocks: convolutions compute and round 16 channels together, and those that are left over one by one, and pack rows of
whole words faster: 13 channels take twice as long as 16, and 28 of a depthwise layer two and a half times as long as
32. Channels of zeros fill the last block, unread by the layer behind, as far as they cost few bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from lepton_cli.graph.edit import Editor, array_of
from lepton_cli.quantize.targets import Target

#: Input channels up to which rows become channels.
FEW = 4
#: Bytes that are multiplied together.
WORD = 4
#: Channels that a kernel computes together.
BLOCK = 16
#: Share of the weights' bytes that zeros may add.
MOST_ADDED = 0.05


#: onnx has Pad for integers from this opset on.
LEAST_OPSET = 11


def fit(model: ir.Model, target: Target, *, larger: bool = True) -> ir.Model:
    """A quantized model with shapes that the kernels are fast for, in place, where it is meant for those of x86.

    `larger`: zeros may be added to the weights.
    """
    if _suits(model, target):
        editor = Editor(model)
        rows_as_channels(editor)
        if larger:
            fill_blocks(editor)
        common.RemoveUnusedNodesPass()(model)
    return model


@dataclasses.dataclass(frozen=True)
class _Conv:
    """A convolution of two dimensions that becomes an int8 kernel."""

    node: ir.Node
    #: DequantizeLinear of the input, of the weight, and of the bias where there is one.
    source: ir.Node
    weight: ir.Node
    bias: ir.Node | None

    @property
    def codes(self) -> NDArray[np.int8]:
        """The weights."""
        held = array_of(self.weight, 0)
        assert held is not None
        return held

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return int(self.node.attributes.get_int("group", 1))

    def numbers(self, name: str, count: int, otherwise: int) -> list[int]:
        """An attribute that holds a number for each dimension, or side."""
        return list(self.node.attributes.get_ints(name, ()) or [otherwise] * count)


def rows_as_channels(editor: Editor) -> None:
    """Gather the rows of windows that cover few channels, in place."""
    for node in list(editor.model.graph):
        found = _conv(node)
        if found is None or found.groups != 1 or not _from_outside(found):
            continue
        out, channels, rows, columns = found.codes.shape
        shape = found.node.inputs[0].shape if found.node.inputs[0] is not None else None
        height = None if shape is None else shape[2]
        (down, across), (top, left, bottom, right) = found.numbers("strides", 2, 1), found.numbers("pads", 4, 0)
        apart, beside = found.numbers("dilations", 2, 1)
        if rows == 1 or channels > FEW or beside != 1 or not isinstance(height, int):
            continue
        whole = height + top + bottom
        high = (whole - apart * (rows - 1) - 1) // down + 1
        lines = down * np.arange(high) + apart * np.arange(rows)[:, None]
        lines = (whole * np.arange(channels)[:, None, None] + lines).reshape(-1, high)
        # The first line stands for what whole words lack: its weights are zeros.
        more = -len(lines) % (WORD // math.gcd(WORD, columns))
        lines = np.pad(lines, ((0, more), (0, 0)))
        weight = np.pad(found.codes.reshape(out, -1, 1, columns), ((0, 0), (0, more), (0, 0), (0, 0)))
        codes, scale, zero = found.source.inputs
        assert codes is not None
        made: list[ir.Node] = []
        if top or bottom:
            frame = editor.constant(f"{node.name}_frame", np.array([0, 0, top, 0, 0, 0, bottom, 0], np.int64))
            made.append(ir.node("Pad", [codes, frame, zero], name=f"{node.name}_frame"))
        before = made[-1].outputs[0] if made else codes
        flat = editor.constant(f"{node.name}_flat", np.array([0, channels * whole, -1], np.int64))
        made.append(ir.node("Reshape", [before, flat], name=f"{node.name}_flat"))
        index = editor.constant(f"{node.name}_lines", lines.astype(np.int32))
        made.append(ir.node("Gather", [made[-1].outputs[0], index], {"axis": 1}, name=f"{node.name}_lines"))
        read = [made[-1].outputs[0], scale, zero]
        made.append(ir.node("DequantizeLinear", read, domain=found.source.domain, name=f"{node.name}_source"))
        for part in made[:-1]:
            part.outputs[0].type = codes.type
        made[-1].outputs[0].dtype = ir.DataType.FLOAT
        editor.insert_before(node, made)
        node.replace_input_with(0, made[-1].outputs[0])
        editor.give(found.weight, 0, weight, f"{node.name}_weight")
        found.weight.outputs[0].shape = None
        node.attributes.update(
            kernel_shape=ir.AttrInt64s("kernel_shape", [1, columns]),
            strides=ir.AttrInt64s("strides", [1, across]),
            pads=ir.AttrInt64s("pads", [0, left, 0, right]),
            dilations=ir.AttrInt64s("dilations", [1, 1]),
        )


def fill_blocks(editor: Editor) -> None:
    """Fill the last block of channels between convolutions with zeros, in place, the cheapest first."""
    convs = _convs(editor.model)
    room = MOST_ADDED * sum(found.codes.nbytes for found in convs.values())
    for chain in sorted(_chains(convs), key=lambda one: one.added):
        room -= chain.added
        if room < 0:
            break
        if not chain.more:
            continue
        for conv, axis in chain.parts:
            _widen(editor, conv, axis, chain.more)
        for value in chain.values:
            value.shape = None
        for layer in chain.layers:
            layer.node.attributes["group"] = ir.AttrInt64("group", layer.groups + chain.more)


@dataclasses.dataclass(frozen=True)
class Filling:
    """Where `fit` fills blocks of channels: chains of convolutions, by name, with the axes of their weights."""

    chains: tuple[tuple[tuple[str, int], ...], ...] = ()
    #: Bytes of the weights of all convolutions.
    codes: int = 0

    def added(
        self, channels: NDArray[np.float64], each: NDArray[np.float64], codes: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Bytes of zeros, [...], where chains have so many channels and bytes for each channel, [..., chains], and all
        convolutions so many bytes, [...]."""
        zeros = np.sort((-channels % BLOCK) * each, axis=-1)
        return np.asarray(np.sum(zeros * (np.cumsum(zeros, axis=-1) <= MOST_ADDED * codes[..., None]), axis=-1))


def filling(model: ir.Model, target: Target) -> Filling:
    """The chains of a quantized model, whether their channels fill blocks or not."""
    convs = _convs(model) if _suits(model, target) else {}
    chains = tuple(tuple((conv.node.name or "", axis) for conv, axis in chain.parts) for chain in _chains(convs))
    return Filling(chains, sum(conv.codes.nbytes for conv in convs.values()))


def _suits(model: ir.Model, target: Target) -> bool:
    return target.name in ("x86-vnni", "x86") and model.graph.opset_imports.get("", 1) >= LEAST_OPSET


def _convs(model: ir.Model) -> dict[ir.Node, _Conv]:
    return {node: found for node in model.graph if (found := _conv(node)) is not None}


@dataclasses.dataclass(frozen=True)
class _Chain:
    """What makes channels, depthwise layers that pass them on, and what reads them; nothing else does."""

    maker: _Conv
    layers: tuple[_Conv, ...]
    readers: tuple[_Conv, ...]
    #: The tensors in between.
    values: tuple[ir.Value, ...]
    #: Channels that the last block lacks.
    more: int

    @property
    def parts(self) -> list[tuple[_Conv, int]]:
        """Each convolution with the axis of its weight that gets more channels."""
        return [(self.maker, 0), *((layer, 0) for layer in self.layers), *((reader, 1) for reader in self.readers)]

    @property
    def added(self) -> int:
        """Bytes of zeros."""
        return sum(self.more * conv.codes.size // conv.codes.shape[axis] for conv, axis in self.parts)


def _chains(convs: Mapping[ir.Node, _Conv]) -> Iterator[_Chain]:
    for maker in convs.values():
        channels = len(maker.codes)
        if maker.groups != 1:
            continue
        layers: list[_Conv] = []
        behind = _read_by(maker.node.outputs[0])
        values = behind.values
        while len(behind.nodes) == 1 and (layer := convs.get(behind.nodes[0])) is not None and layer.groups == channels:
            if channels == 1 or layer.codes.shape[:2] != (channels, 1):  # of one channel it is any convolution
                break
            layers.append(layer)
            behind = _read_by(layer.node.outputs[0])
            values = [*values, *behind.values]
        readers = [convs[node] for node in behind.nodes if node in convs]
        if readers and len(readers) == len(behind.nodes) and all(reader.groups == 1 for reader in readers):
            yield _Chain(maker, tuple(layers), tuple(readers), tuple(values), -channels % BLOCK)


@dataclasses.dataclass(frozen=True)
class _Read:
    """Nodes that read a tensor by its codes, with the tensors up to there; no nodes where others read it too."""

    nodes: list[ir.Node]
    values: list[ir.Value]


def _read_by(value: ir.Value) -> _Read:
    values = level = [value]
    for operator in ("QuantizeLinear", "DequantizeLinear", ""):
        nodes = [use.node for one in level for use in one.uses()]
        if any(one.is_graph_output() for one in level):
            break
        if not operator:
            return _Read(nodes, values)
        if any(node.op_type != operator for node in nodes):
            break
        level = [node.outputs[0] for node in nodes]
        values = [*values, *level]
    return _Read([], [])


def _conv(node: ir.Node) -> _Conv | None:
    """The node as a convolution of two dimensions that reads codes of 8 bits, with a weight of its own."""
    if node.op_type != "Conv" or node.domain or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    source, weight, *more = [None if value is None else value.producer() for value in node.inputs]
    if any(part is None or part.op_type != "DequantizeLinear" for part in (source, weight, *more)):
        return None
    assert source is not None
    assert weight is not None
    zero = array_of(source, 2)
    if zero is None or zero.dtype.itemsize != 1:
        return None
    own = all(part is not None and len(part.outputs[0].uses()) == 1 for part in (weight, *more))
    held = [array_of(weight, 0), *(array_of(part, 0) for part in more if part is not None)]
    if not own or any(one is None for one in held) or held[0] is None or held[0].ndim != 4:
        return None
    return _Conv(node, source, weight, more[0] if more else None)


def _from_outside(conv: _Conv) -> bool:
    """Whether the codes are made of a float tensor that no convolution made: those lie channel by channel in memory."""
    codes = conv.source.inputs[0]
    quantized = None if codes is None else codes.producer()
    if quantized is None or quantized.op_type != "QuantizeLinear" or quantized.inputs[0] is None:
        return False
    made = quantized.inputs[0].producer()
    return made is None or made.op_type not in ("Conv", "MaxPool", "DequantizeLinear")


def _widen(editor: Editor, conv: _Conv, axis: int, more: int) -> None:
    """Give a convolution more channels along an axis of its weight, with weights and biases of zero."""
    codes = conv.codes
    width = [(0, more if at == axis else 0) for at in range(codes.ndim)]
    editor.give(conv.weight, 0, np.pad(codes, width), f"{conv.node.name}_weight")
    for made in (conv.weight, conv.bias):
        if made is not None:
            made.outputs[0].shape = None
    for part in (conv.weight, conv.bias) if axis == 0 else ():
        for index in (1, 2) if part is conv.weight else (0, 1, 2):
            held = None if part is None else array_of(part, index)
            if part is not None and held is not None and held.ndim == 1:
                # onnxruntime wants the steps of a bias to be those of the input times those of the weight.
                filled = np.pad(held, (0, more), "edge") if index == 1 else np.pad(held, (0, more))
                editor.give(part, index, filled, f"{conv.node.name}_channels")
