"""`quantize.weights`: MatMul, Gemm and embedding weights in 4 or 8 bits by blocks (MatMulNBits, GatherBlockQuantized).

With 8 bits, weights of other operators too, stored so and computed with in float (`stored.py`). Blocks are read and
written some rows at a time, so that memory stays bounded whatever the model's size.
onnxruntime's own MatMulNBitsQuantizer holds the whole model; the format here is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph import clean, fold
from lepton_cli.graph.edit import Editor
from lepton_cli.graph.facts import reads_quantized
from lepton_cli.graph.held import LEAST_VALUES
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
#: Least block that the operators take.
LEAST_BLOCK = 16
#: Float elements worked on at once.
CHUNK = 2_000_000
#: Above this many bytes of weights, results go to a file in the work folder instead of memory.
SPILL_ABOVE = 256_000_000


def quantize(model: ir.Model, options: QuantizeWeights, context: Context) -> Outcome:
    """The model with weights in fewer bits. Raises ModelError where all of them are quantized already."""
    allowed = select((node.name or "" for node in model.graph.all_nodes()), options.include, options.exclude)
    copy = io.clone(model)
    fold.expose_weights(copy, growth=STORED_SMALL)
    clean.tie_tables(copy)
    decisions = _decided(copy, allowed, options)
    names = _quantized(decisions)
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
            decisions = _spared(copy, kept(decisions, wrong))
            names = _quantized(decisions)
            made, errors = _written(copy, names, options, store)
        if names and context.check.count:
            made, returned, measured, warnings = _held(copy, made, names, options, store, context)
            decisions, details = _spared(copy, kept(decisions, returned)), details.model_copy(update=measured)
            if names - returned.keys() != (names := _quantized(decisions)):
                made, errors = _written(copy, names, options, store)
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


def _quantized(decisions: Sequence[Decision]) -> set[str]:
    return {decision.node for decision in decisions if decision.action == "quantized"}


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
    chosen = [(node, _form(node, options)) for node in copy.graph.all_nodes() if node.name in names]
    for node, form in chosen:
        if form == "blocks":
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
        form = _form(node, options)
        if places and not blocks:
            reason = f"4 bits are for {', '.join(BLOCKS)}; `bits: 8` takes it"
        if node.name not in allowed:
            form, reason = None, "left out by include/exclude"
        if form is not None:
            reason = "stored in 8 bits, one scale per channel, computed in float"
            if form == "blocks":
                reason = f"{options.bits} bits, blocks of {block_size(node, options)}"
        action = "kept" if form is None else "quantized"
        decisions.append(Decision(node=node.name or "", op=node.op_type, action=action, reason=reason or ""))
    decisions = _spared(model, decisions)
    takes = "4 bits are for MatMul, Gemm and Gather" if options.bits == 4 else "8 bits are for weights that are summed"
    return [*decisions, *fates.left_alone(model, decisions, takes, {})]


def _form(node: ir.Node, options: QuantizeWeights) -> Literal["blocks", "stored"] | None:
    """How the node's weights are stored. All who look up and multiply by one table do it in the same way."""
    in_blocks = refused(node, options) is None
    if options.bits == 4 or not stored.places(node):
        return "blocks" if in_blocks else None
    return "blocks" if in_blocks and all(refused(user, options) is None for user in _lookups(node)) else "stored"


def _lookups(node: ir.Node) -> list[ir.Node]:
    """The Gathers that read the node's weight as it does: row by row."""
    value, by_rows = held(node)
    readers = [user for user, _ in value.uses()] if value is not None and by_rows else []
    return [user for user in readers if user.op_type == "Gather" and not user.domain]


def _spared(model: ir.Model, decisions: list[Decision]) -> list[Decision]:
    """The decisions where a weight that stays float for one of its readers stays so for all: it would be held twice."""
    while True:
        names = {decision.node for decision in decisions if decision.action == "quantized"}
        wrong: dict[str, str] = {}
        for node in [node for node in model.graph.all_nodes() if node.name in names]:
            for value in {stored.behind(value)[0] for value in node.inputs}:
                tensor = None if value is None else value.const_value
                if value is None or tensor is None or tensor.size < LEAST_VALUES:
                    continue
                other = _float_reader(value, names)
                if other is not None:
                    wrong[node.name or ""] = f"{other} reads its weight in float too: the file would grow"
        if not wrong:
            return decisions
        decisions = kept(decisions, wrong)


def _float_reader(value: ir.Value, names: Collection[str]) -> str | None:
    """What reads a weight and is none of the nodes `names`, in words."""
    if value.is_graph_output():
        return f"the output `{value.name}`"
    for user, _ in value.uses():
        turned = [other for out in user.outputs for other, _ in out.uses() if stored.behind(out)[0] is value]
        for reader in turned or [user]:
            if reader.name not in names:
                return f"`{reader.name}`"
    return None


def block_size(node: ir.Node, options: QuantizeWeights) -> int:
    """The block size for a node: less than that asked for where the block would be half empty at least.

    Rows that are looked up are whole blocks, since the operator for it knows no others.
    """
    value, by_rows = held(node)
    assert value is not None
    assert value.const_value is not None
    inner = dims(value.const_value)[1 if by_rows else 0]
    whole = node.op_type == "Gather" or bool(_lookups(node))
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
    return store.ratio(signal, noise)


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
