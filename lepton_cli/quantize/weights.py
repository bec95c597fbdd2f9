"""`quantize.weights`: MatMul, Gemm and embedding weights in 4 or 8 bits by blocks (MatMulNBits, GatherBlockQuantized).

With 8 bits, weights of other operators too, stored so and computed with in float (`stored.py`). Blocks are read and
written some rows at a time, so that memory stays bounded whatever the model's size.
onnxruntime's own MatMulNBitsQuantizer holds the whole model; the format here is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph import clean, fold
from lepton_cli.graph.edit import Editor
from lepton_cli.graph.facts import reads_quantized
from lepton_cli.graph.select import select
from lepton_cli.model import io
from lepton_cli.probe.distances import Reference
from lepton_cli.probe.rewrites import kept, strayed
from lepton_cli.quantize import blockwise, fates, guard, stored
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.details import QuantizeWeightsDetails, Sensitivity
from lepton_cli.quantize.prepare import STORED_SMALL, refuse_quantized
from lepton_cli.quantize.spec import QuantizeWeights
from lepton_cli.quantize.store import Shared, WeightStore
from lepton_cli.step import Context, Decision, Outcome

MICROSOFT = "com.microsoft"
#: Operators with a form for blocks.
BLOCKS = ("MatMul", "Gemm", "Gather")
#: Weights with fewer elements stay as they are: nothing to win.
LEAST_SIZE = 4096
#: Float elements worked on at once.
CHUNK = 2_000_000
#: Above this many bytes of weights, results go to a file in the work folder instead of memory.
SPILL_ABOVE = 256_000_000


def quantize(model: ir.Model, options: QuantizeWeights, context: Context) -> Outcome:
    """The model with weights in fewer bits. Raises ModelError where all of them are quantized already."""
    allowed = select((node.name or "" for node in model.graph.all_nodes()), options.include, options.exclude)
    copy = io.clone(model)
    fold.expose_weights(copy, growth=STORED_SMALL)
    decisions = _decided(copy, allowed, options)
    names = {decision.node for decision in decisions if decision.action == "quantized"}
    details = QuantizeWeightsDetails(
        bits=options.bits, block_size=options.block_size, method=options.method, symmetric=options.symmetric
    )
    if not names:
        refuse_quantized(model)
        return Outcome(model, 0, tuple(decisions), f"0 weights to {options.bits} bits", details)
    store = WeightStore(context.workdir if io.weight_bytes(model) > SPILL_ABOVE else None, empty=context.dry)
    with context.progress.stage("quantize.weights", len(names)) as stage:
        made, errors = _written(copy, names, options, store, stage.advance)
    if context.dry:
        return Outcome(made, len(names), tuple(decisions), f"{len(names)} weights to {options.bits} bits", details)
    warnings: tuple[str, ...] = ()
    left_because = ""
    if store.path is None:  # no second run of what fills the memory
        if wrong := strayed(copy, made, names, context):
            names -= wrong.keys()
            decisions = kept(decisions, wrong)
            made, errors = _written(copy, names, options, store)
        if names and context.check.count:
            made, returned, measured, warnings = _held(copy, made, names, options, store, context)
            names -= returned.keys()
            decisions, details = kept(decisions, returned), details.model_copy(update=measured)
            left_because = "" if names else f"{options.bits} bits cost too much everywhere"
    details = details.model_copy(update={"sensitivity": tuple(error for error in errors if error.node in names)})
    summary = f"{len(names)} weights to {options.bits} bits in blocks of {options.block_size}"
    return Outcome(
        made if names else model,
        len(names),
        tuple(decisions),
        left_because or summary,
        details,
        warnings,
        left_because=left_because,
    )


def _held(
    model: ir.Model,
    made: ir.Model,
    names: set[str],
    options: QuantizeWeights,
    store: WeightStore,
    context: Context,
) -> tuple[ir.Model, dict[str, str], dict[str, Any], tuple[str, ...]]:
    """Where the outputs of `made` are too far off, what has fewer weights in 8 bits, and those returned, with a reason.

    Also what was measured, and warnings. 4 bits are a choice for size: they stay where they are asked for.
    """
    fidelity = Reference(model, context)
    least = fidelity.sqnr(made)
    if options.bits != 8 or least >= guard.FLOOR_DB:
        return made, {}, {"sqnr_db": round(least, 2)}, ()
    if context.calibration is None or not options.fidelity_guard:
        return made, {}, {"sqnr_db": round(least, 2)}, guard.far(least, context)

    def write(choice: Choice) -> ir.Model:
        return _written(model, choice.anchors, options, store)[0]

    choice = Choice(frozenset(names), frozenset(), ())
    ranking = guard.sensitivity(model, choice, write, fidelity, context)
    choice, made, told, warnings = guard.hold_fidelity(
        model, choice, write, ranking, fidelity, least, "weights", "8 bits"
    )
    measured = {"fidelity_guard": told, "sqnr_db": round(fidelity.sqnr(made), 2)}
    return made, {decision.node: decision.reason for decision in choice.kept}, measured, warnings


def _written(
    model: ir.Model,
    names: Collection[str],
    options: QuantizeWeights,
    store: WeightStore,
    advance: Callable[[], None] = lambda: None,
) -> tuple[ir.Model, list[Sensitivity]]:
    """A copy in which the weights of the nodes `names` are stored in fewer bits, and the error of each."""
    copy = io.clone(model)
    editor, errors = Editor(copy), []
    shared: Shared = {}
    for node in [node for node in copy.graph.all_nodes() if node.name in names]:
        if refused(node, options) is None:
            ratio = replace(editor, node, options, store, shared)
            copy.graph.opset_imports[MICROSOFT] = 1
        else:
            ratio = stored.replace(editor, node, store, shared)
        errors.append(Sensitivity(node=node.name or "", op=node.op_type, sqnr_db=round(ratio, 2)))
        advance()
    clean.remove_unused(copy)
    return copy, errors


def _decided(model: ir.Model, allowed: set[str], options: QuantizeWeights) -> list[Decision]:
    decisions = []
    for node in model.graph.all_nodes():
        blocks = node.op_type in BLOCKS and not node.domain
        places = stored.places(node)
        reason = refused(node, options) if blocks else stored.refused(node)
        if not (blocks or places or reason):
            continue
        text = f"{options.bits} bits, blocks of {options.block_size}"
        if places and options.bits == 8 and (reason or not blocks):
            reason, text = None, "stored in 8 bits, one scale per channel, computed in float"
        elif places and not blocks:
            reason = f"4 bits are for {', '.join(BLOCKS)}; `bits: 8` takes it"
        if node.name not in allowed:
            reason = "left out by include/exclude"
        action = "kept" if reason else "quantized"
        decisions.append(Decision(node=node.name or "", op=node.op_type, action=action, reason=reason or text))
    takes = "4 bits are for MatMul, Gemm and Gather" if options.bits == 4 else "8 bits are for weights that are summed"
    return [*decisions, *fates.left_alone(model, decisions, takes, {})]


def refused(node: ir.Node, options: QuantizeWeights) -> str | None:
    """Why the node's weight cannot be stored by blocks, or `None`."""
    if node.op_type not in BLOCKS or node.domain:
        return "no operator for blocks"
    tensor = _weight(node)[0]
    if tensor is None:
        return "no constant weight" if not reads_quantized(node) else "its weight is quantized already"
    if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) or len(tensor.shape) != 2:
        return f"its weight is {tensor.dtype} with {len(tensor.shape)} dimensions"
    if tensor.size < LEAST_SIZE:
        return f"only {tensor.size} values"
    if node.op_type == "Gather":
        if node.attributes.get_int("axis", 0) != 0:
            return "does not gather whole rows"
        if dims(tensor)[1] % options.block_size:
            return f"its rows of {tensor.shape[1]} are no multiple of block_size {options.block_size}"
    if node.op_type == "Gemm" and (
        node.attributes.get_int("transA", 0) == 1
        or node.attributes.get_float("alpha", 1.0) != 1.0
        or node.attributes.get_float("beta", 1.0) != 1.0
    ):
        return "it transposes or scales its operands"
    return None


def _weight(node: ir.Node) -> tuple[ir.TensorProtocol | None, bool]:
    """The weight as it is stored, and whether its rows are what the node computes one result from each.

    So are the rows of a table, of a Gemm with transB, and of what a Transpose turns (last layers of language models).
    """
    value = node.inputs[0 if node.op_type == "Gather" else 1]
    by_rows = node.op_type == "Gather" or node.attributes.get_int("transB", 0) == 1
    turn = value.producer() if value is not None else None
    if node.op_type != "Gather" and turn is not None and _turns(turn):
        value, by_rows = turn.inputs[0], not by_rows
    return None if value is None else value.const_value, by_rows


def _turns(node: ir.Node) -> bool:
    standard = node.op_type == "Transpose" and not node.domain
    return standard and list(node.attributes.get_ints("perm", (1, 0))) == [1, 0]


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

    def __init__(self, rows: int, blocks: int, options: QuantizeWeights) -> None:
        self.options = options
        self.packed = np.zeros((rows, blocks, options.block_size * options.bits // 8), dtype=np.uint8)
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


def _by_columns(tensor: ir.TensorProtocol, options: QuantizeWeights, empty: bool) -> _Quantized:
    """A MatMul's [K, N]: blocks run down each column."""
    size = options.block_size
    inner, outer = dims(tensor)
    made = _Quantized(outer, -(-inner // size), options)
    if empty:
        return made
    for start, slab in slabs(tensor, size):
        padded = np.pad(slab, ((0, -len(slab) % size), (0, 0)))
        blocks = padded.reshape(-1, size, outer).transpose(2, 0, 1)
        made.add(slice(None), slice(start // size, start // size + blocks.shape[1]), np.ascontiguousarray(blocks))
    return made


def _by_rows(tensor: ir.TensorProtocol, options: QuantizeWeights, empty: bool) -> _Quantized:
    """A transposed Gemm's [N, K] or a table [rows, K]: blocks run along each row."""
    size = options.block_size
    outer, inner = dims(tensor)
    made = _Quantized(outer, -(-inner // size), options)
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

    A weight that several nodes read (both branches of a merged decoder) is stored once where they share `shared`.
    """
    gather = node.op_type == "Gather"
    tensor, by_rows = _weight(node)
    assert tensor is not None
    outer, inner = dims(tensor) if by_rows else dims(tensor)[::-1]
    shared = {} if shared is None else shared
    key = (id(tensor), by_rows, gather)
    if key not in shared:
        made = (_by_rows if by_rows else _by_columns)(tensor, options, store.empty)
        arrays = [
            ("codes", made.packed.reshape(outer, -1) if gather else made.packed),
            ("scales", made.scales.astype(tensor.dtype.numpy())),
        ]
        if made.zero_points is not None:
            arrays.append(("zero_points", blockwise.pack(made.zero_points, options.bits)))
        held = [editor.constant(f"{node.name}.{suffix}", store.keep(array)) for suffix, array in arrays]
        shared[key] = held, made.signal, made.noise, tensor
    inputs, signal, noise, _ = shared[key]
    editor.put(node, _gather(node, inputs, options) if gather else _matmul(node, inputs, options, inner, outer))
    return store.ratio(signal, noise)


def _gather(node: ir.Node, inputs: list[ir.Value], options: QuantizeWeights) -> list[ir.Node]:
    attributes = {"bits": options.bits, "block_size": options.block_size, "gather_axis": 0, "quantize_axis": 1}
    operands = [inputs[0], node.inputs[1], *inputs[1:]]
    return [ir.node("GatherBlockQuantized", operands, attributes, domain=MICROSOFT, name=node.name)]


def _matmul(node: ir.Node, inputs: list[ir.Value], options: QuantizeWeights, inner: int, outer: int) -> list[ir.Node]:
    attributes = {"K": inner, "N": outer, "bits": options.bits, "block_size": options.block_size}
    made = [ir.node("MatMulNBits", [node.inputs[0], *inputs], attributes, domain=MICROSOFT, name=node.name)]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        made[0].outputs[0].name = f"{node.name}_product"
        made.append(ir.node("Add", [made[0].outputs[0], node.inputs[2]], name=f"{node.name}_bias"))
    return made
