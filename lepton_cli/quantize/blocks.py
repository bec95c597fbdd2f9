"""Matrices in blocks of 4 or 8 bits: which can be, and the operators that read them.

MatMulNBits multiplies by them, GatherBlockQuantized looks up in them. They are read and written some rows at a time, so
that memory stays bounded whatever the model's size: onnxruntime's own MatMulNBitsQuantizer holds the whole model; the
format here is the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph.edit import Editor
from lepton_cli.graph.facts import reads_quantized
from lepton_cli.probe.distances import decibel
from lepton_cli.quantize import blockwise, stored
from lepton_cli.quantize.spec import QuantizeWeights
from lepton_cli.quantize.store import Shared, WeightStore

MICROSOFT = "com.microsoft"
#: Operators with a form for blocks.
BLOCKS = ("MatMul", "Gemm", "Gather")
#: Weights with fewer elements stay as they are: nothing to win.
LEAST_SIZE = 4096
#: Least block that the operators take.
LEAST_BLOCK = 16
#: Float elements worked on at once.
CHUNK = 2_000_000


def lookups(node: ir.Node) -> list[ir.Node]:
    """The Gathers that read the node's weight as it does: row by row."""
    value, by_rows = held(node)
    readers = [user for user, _ in value.uses()] if value is not None and by_rows else []
    return [user for user in readers if user.op_type == "Gather" and not user.domain]


def block_size(node: ir.Node, options: QuantizeWeights) -> int:
    """The block size for a node: less than that asked for where the block would be half empty at least.

    Rows that are looked up are whole blocks, since the operator for it knows no others.
    """
    value, by_rows = held(node)
    assert value is not None
    assert value.const_value is not None
    inner = dims(value.const_value)[1 if by_rows else 0]
    whole = node.op_type == "Gather" or bool(lookups(node))
    size = int(options.block_size)
    while size > LEAST_BLOCK and (size >= 2 * inner or (whole and inner % size)):
        size //= 2
    return size


def refused(node: ir.Node, options: QuantizeWeights) -> str | None:
    """Why the node's weight cannot be stored by blocks, or `None`."""
    if node.op_type not in BLOCKS or node.domain:
        return "no operator for blocks"
    value, by_rows = held(node)
    tensor = None if value is None else value.const_value
    if tensor is None:
        return "no constant weight" if not reads_quantized(node) else "its weight is quantized already"
    if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) or len(tensor.shape) != 2:
        return f"its weight is {tensor.dtype} with {len(tensor.shape)} dimensions"
    if tensor.size < LEAST_SIZE:
        return f"only {tensor.size} values"
    if node.op_type == "Gather":
        if node.attributes.get_int("axis", 0) != 0:
            return "does not gather whole rows"
        if dims(tensor)[1] % LEAST_BLOCK:
            return f"its rows of {tensor.shape[1]} are no multiple of {LEAST_BLOCK}, the least block size"
    if node.op_type == "Gemm" and (
        node.attributes.get_int("transA", 0) == 1
        or node.attributes.get_float("alpha", 1.0) != 1.0
        or node.attributes.get_float("beta", 1.0) != 1.0
    ):
        return "it transposes or scales its operands"
    size = block_size(node, options)
    outer, inner = dims(tensor) if by_rows else dims(tensor)[::-1]
    if options.bits == 8 and inner < size and stored.places(node):
        return f"its columns of {inner} do not fill a block of {size}"
    needed = _bytes(outer, -(-inner // size), size, options, tensor.dtype.itemsize)
    return None if needed < tensor.nbytes else f"{needed:,} bytes in blocks of {size}, {tensor.nbytes:,} as it is"


def _bytes(outer: int, blocks: int, size: int, options: QuantizeWeights, itemsize: float) -> int:
    """What codes, scales and zero points take."""
    zeros = 0 if options.symmetric else -(-blocks * options.bits // 8)
    return outer * int(blocks * (size * options.bits // 8 + itemsize) + zeros)


def held(node: ir.Node) -> tuple[ir.Value | None, bool]:
    """The weight's value as it is stored, and whether its rows are what the node computes one result from each.

    So are the rows of a table, of a Gemm with transB, and of what a Transpose turns (last layers of language models).
    """
    if node.op_type == "Gather":
        return node.inputs[0], True
    by_rows = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    value, turned = stored.behind(node.inputs[1])
    return value, by_rows != turned


def dims(tensor: ir.TensorProtocol) -> tuple[int, int]:
    """Rows and columns of a matrix."""
    rows, columns = tensor.shape.numpy()
    return rows, columns


def slabs(tensor: ir.TensorProtocol, multiple: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Slabs of consecutive rows, a multiple of `multiple` each, without mapping the whole file at once."""
    rows, columns = dims(tensor)
    array = np.empty(0) if isinstance(tensor, ir.ExternalTensor) else tensor.numpy()
    step = max(multiple, CHUNK // max(columns, 1) // multiple * multiple)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        if isinstance(tensor, ir.ExternalTensor):
            kind = tensor.dtype.numpy().newbyteorder("<")
            offset = (tensor.offset or 0) + start * columns * kind.itemsize
            slab = np.fromfile(tensor.path, dtype=kind, count=count * columns, offset=offset).reshape(count, columns)
        else:
            slab = array[start : start + count]
        yield start, slab.astype(np.float32, copy=False)


class _Quantized:
    """Collects the blocks of one weight: packed codes [rows, blocks, bytes], scales and zero points [rows, blocks]."""

    def __init__(self, rows: int, blocks: int, size: int, options: QuantizeWeights) -> None:
        self.options = options
        self.packed = np.zeros((rows, blocks, size * options.bits // 8), dtype=np.uint8)
        self.scales = np.zeros((rows, blocks), dtype=np.float32)
        self.zero_points = None if options.symmetric else np.zeros((rows, blocks), dtype=np.uint8)
        self.signal = self.noise = 0.0

    def add(self, rows: slice, blocks: slice, values: NDArray[np.float32]) -> None:
        made = blockwise.quantize(values, self.options.bits, self.options.method, self.options.symmetric)
        self.packed[rows, blocks] = blockwise.pack(made.codes, self.options.bits)
        self.scales[rows, blocks] = made.scales
        if self.zero_points is not None and made.zero_points is not None:
            self.zero_points[rows, blocks] = made.zero_points
        self.signal += float(np.square(values, dtype=np.float64).sum())
        self.noise += float(np.square(made.dequantized(self.options.bits) - values, dtype=np.float64).sum())


def _by_columns(tensor: ir.TensorProtocol, size: int, options: QuantizeWeights, empty: bool) -> _Quantized:
    """A MatMul's [K, N]: blocks run down each column."""
    inner, outer = dims(tensor)
    made = _Quantized(outer, -(-inner // size), size, options)
    if empty:
        return made
    for start, slab in slabs(tensor, size):
        padded = np.pad(slab, ((0, -len(slab) % size), (0, 0)))
        blocks = padded.reshape(-1, size, outer).transpose(2, 0, 1)
        made.add(slice(None), slice(start // size, start // size + blocks.shape[1]), np.ascontiguousarray(blocks))
    return made


def _by_rows(tensor: ir.TensorProtocol, size: int, options: QuantizeWeights, empty: bool) -> _Quantized:
    """A transposed Gemm's [N, K] or a table [rows, K]: blocks run along each row."""
    outer, inner = dims(tensor)
    made = _Quantized(outer, -(-inner // size), size, options)
    if empty:
        return made
    for start, slab in slabs(tensor, 1):
        padded = np.pad(slab, ((0, 0), (0, -inner % size)))
        made.add(slice(start, start + len(slab)), slice(None), padded.reshape(len(slab), -1, size))
    return made


def replace(
    editor: Editor, node: ir.Node, options: QuantizeWeights, store: WeightStore, shared: Shared | None = None
) -> float:
    """Put the quantized operator in the node's place; returns the weight's SQNR in dB.

    A weight that several nodes read (both branches of a merged decoder, first and last layer of a language model) is
    stored once where they share `shared`.
    """
    gather, size = node.op_type == "Gather", block_size(node, options)
    value, by_rows = held(node)
    assert value is not None
    assert value.const_value is not None
    tensor = value.const_value
    outer, inner = dims(tensor) if by_rows else dims(tensor)[::-1]
    shared = {} if shared is None else shared
    key = (id(tensor), by_rows)
    if key not in shared:
        made = (_by_rows if by_rows else _by_columns)(tensor, size, options, store.empty)
        alone = gather and all(user.op_type == "Gather" for user, _ in value.uses())
        arrays = [
            ("codes", made.packed.reshape(outer, -1) if alone else made.packed),
            ("scales", made.scales.astype(tensor.dtype.numpy())),
        ]
        if made.zero_points is not None:
            arrays.append(("zero_points", blockwise.pack(made.zero_points, options.bits)))
        values = [editor.constant(f"{node.name}.{suffix}", store.keep(array)) for suffix, array in arrays]
        shared[key] = values, made.signal, made.noise, tensor
    inputs, signal, noise, _ = shared[key]
    if (codes := inputs[0].const_value) is not None and len(codes.shape) == 3:  # as its first reader has it
        size = codes.shape.numpy()[2] * 8 // options.bits
    if gather:
        editor.put(node, _gather(editor, node, inputs, size, options))
    else:
        editor.put(node, _matmul(node, inputs, {"K": inner, "N": outer, "bits": options.bits, "block_size": size}))
    return decibel(signal, noise)


def _gather(
    editor: Editor, node: ir.Node, inputs: list[ir.Value], size: int, options: QuantizeWeights
) -> list[ir.Node]:
    attributes = {"bits": options.bits, "block_size": size, "gather_axis": 0, "quantize_axis": 1}
    codes = inputs[0]
    if codes.shape is not None and len(codes.shape) == 3:  # as MatMulNBits wants it; computed when the model is loaded
        flat = editor.constant(f"{codes.name}.shape", np.array([codes.shape[0], -1], np.int64))
        rows = ir.node("Reshape", [codes, flat], name=f"{codes.name}.rows")
        editor.insert_before(next(iter(editor.model.graph)), [rows])
        codes = rows.outputs[0]
    operands = [codes, node.inputs[1], *inputs[1:]]
    return [ir.node("GatherBlockQuantized", operands, attributes, domain=MICROSOFT, name=node.name)]


def _matmul(node: ir.Node, inputs: list[ir.Value], attributes: dict[str, int]) -> list[ir.Node]:
    made = [ir.node("MatMulNBits", [node.inputs[0], *inputs], attributes, domain=MICROSOFT, name=node.name)]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        made[0].outputs[0].name = f"{node.name}_product"
        made.append(ir.node("Add", [made[0].outputs[0], node.inputs[2]], name=f"{node.name}_bias"))
    return made
