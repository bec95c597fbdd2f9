"""How channels pass through operators: the literal table, and the functions of those that compute, by family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from lepton_cli.coupling import attention, blocks, layout
from lepton_cli.coupling.layout import optional, source
from lepton_cli.coupling.links import Links
from lepton_cli.coupling.surgery import Surgery
from lepton_cli.graph.edit import captured

Link = Callable[[Links, ir.Node], None]
Mend = Callable[[Surgery, ir.Node], None]


@dataclasses.dataclass(frozen=True)
class Operator:
    """What lepton knows about an operator that channels pass through.

    `link` joins the axes that stand for the same channels. `mend` brings a node up to date when some are cut, where it
    names a width, a position or a number of groups.
    """

    link: Link
    mend: Mend | None = None


def find(node: ir.Node) -> Operator | None:
    """The node's row; `None` where lepton does not know the operator, or one of another domain has its name."""
    return OPERATORS.get(node.op_type) if node.domain in _DOMAINS else None


def apply_rule(links: Links, node: ir.Node) -> None:
    """Join what the node's operator joins, freeze the rest."""
    operator = find(node)
    for value in captured(node):
        for axis, size in enumerate(links.shape(value) or ()):
            if size > 1:
                links.freeze(value, axis, f"is used inside {node.op_type}", node.name or "")
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    known = all(links.shape(value) is not None for value in values)
    if operator is None or not known:
        links.settle(
            node, f"{node.op_type} is not analysed" if operator is None else f"{node.op_type} has unknown shapes"
        )
        return
    operator.link(links, node)
    links.settle(node, f"{node.op_type} fixes this axis")


def elementwise(links: Links, node: ir.Node) -> None:
    """Equal sizes of right-aligned axes stand for the same positions; size 1 broadcasts."""
    output = node.outputs[0]
    rank = len(links.shape(output) or ())
    for value in node.inputs:
        if value is not None:
            _align(links, value, output, rank)
    for other in node.outputs[1:]:
        if links.shape(other) == links.shape(output):
            _align(links, other, output, rank)


def _align(links: Links, value: ir.Value, output: ir.Value, rank: int) -> None:
    shape = links.shape(value) or ()
    if rank < len(shape):
        return  # the output's shape is unknown: what no rule speaks for is frozen
    for axis, size in enumerate(shape):
        if size > 1:
            links.join(value, axis, output, axis + rank - len(shape))


def _channels(links: Links, value: ir.Value | None, output: ir.Value, axis: int) -> None:
    """A parameter vector along the output's channel axis."""
    if value is not None and len(links.shape(value) or ()) == 1:
        links.join(value, 0, output, axis)


def conv(links: Links, node: ir.Node) -> None:
    """Weight [out, in / group, kernel]; also the fused form whose fourth input is added to the result."""
    x, w, y = source(node), source(node, 1), node.outputs[0]
    group = node.attributes.get_int("group", 1)
    outputs, per_group = (links.shape(w) or (1, 1))[:2]
    links.join(x, 0, y, 0)
    links.join(y, 1, w, 0)
    links.port(node, w, 0, "output", y, 1)
    _channels(links, optional(node, 2), y, 1)
    if (added := optional(node, 3)) is not None:
        _align(links, added, y, len(links.shape(y) or ()))
    if group == 1:
        links.join(x, 1, w, 1)
        links.port(node, w, 1, "input", x, 1)
    elif per_group == 1:
        _depthwise(links, x, y, group, outputs // group)
    else:
        _even_groups(links, x, 1, group, w, 1)
        ids = links.ids(y, 1).reshape(group, -1)
        links.link(ids[1:], np.broadcast_to(ids[0], ids[1:].shape))


def _depthwise(links: Links, x: ir.Value, y: ir.Value, group: int, multiplier: int) -> None:
    """Every input channel makes `multiplier` outputs of its own."""
    inputs, outputs = links.ids(x, 1), links.ids(y, 1).reshape(group, multiplier)
    links.link(outputs, np.broadcast_to(inputs[:, None], outputs.shape))
    links.spread((x, 1), (y, 1))


def _even_groups(links: Links, x: ir.Value, axis: int, group: int, w: ir.Value, w_axis: int) -> None:
    """All groups share one weight axis, so each loses the same positions."""
    ids, shared = links.ids(x, axis).reshape(group, -1), links.ids(w, w_axis)
    links.link(ids, np.broadcast_to(shared, ids.shape))


def mend_groups(surgery: Surgery, node: ir.Node) -> None:
    """Depthwise convolutions have as many groups as channels; other grouped ones keep their groups."""
    x, w = source(node), source(node, 1)
    group = node.attributes.get_int("group", 1)
    if group > 1 and (surgery.links.shape(w) or (0, 0))[1] == 1:
        node.attributes["group"] = ir.AttrInt64("group", surgery.width(x, 1))


def conv_transpose(links: Links, node: ir.Node) -> None:
    """Weight [in, out / group, kernel]."""
    x, w, y = source(node), source(node, 1), node.outputs[0]
    group = node.attributes.get_int("group", 1)
    links.join(x, 0, y, 0)
    _channels(links, optional(node, 2), y, 1)
    links.join(x, 1, w, 0)
    if group == 1:
        links.join(y, 1, w, 1)
        links.port(node, w, 0, "input", x, 1)
        links.port(node, w, 1, "output", y, 1)
    elif (links.shape(w) or (0, 0))[1] == 1:
        _depthwise(links, x, y, group, 1)
    else:
        _even_groups(links, y, 1, group, w, 1)
        ids = links.ids(x, 1).reshape(group, -1)
        links.link(ids[1:], np.broadcast_to(ids[0], ids[1:].shape))


def gemm(links: Links, node: ir.Node) -> None:
    """A [M, K] x B [K, N] + C, either side possibly transposed."""
    a, b, y = source(node), source(node, 1), node.outputs[0]
    a_row, b_row = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    links.join(a, a_row, y, 0)
    links.join(a, 1 - a_row, b, b_row)
    links.join(b, 1 - b_row, y, 1)
    links.port(node, b, b_row, "input", a, 1 - a_row)
    links.port(node, b, 1 - b_row, "output", y, 1)
    if (c := optional(node, 2)) is not None:
        _align(links, c, y, 2)


def matmul(links: Links, node: ir.Node) -> None:
    """Batched product: batch axes align, the contracted axes join."""
    a, b, y = source(node), source(node, 1), node.outputs[0]
    a_shape, b_shape, rank = links.shape(a) or (), links.shape(b) or (), len(links.shape(y) or ())
    attributes = node.attributes
    transposed = attributes.get_int("transA", 0) + attributes.get_int("transBatchA", 0)
    if len(a_shape) < 2 or len(b_shape) < 2 or transposed:
        return
    across = attributes.get_int("transB", 0) != 0
    k_axis, n_axis = (len(b_shape) - 1, len(b_shape) - 2) if across else (len(b_shape) - 2, len(b_shape) - 1)
    links.join(a, len(a_shape) - 1, b, k_axis)
    links.join(a, len(a_shape) - 2, y, rank - 2)
    links.join(b, n_axis, y, rank - 1)
    for value, shape in ((a, a_shape), (b, b_shape)):
        for axis, size in enumerate(shape[:-2]):
            if size > 1:
                links.join(value, axis, y, axis + rank - len(shape))
    if len(b_shape) == 2:
        links.port(node, b, k_axis, "input", a, len(a_shape) - 1)
        links.port(node, b, n_axis, "output", y, rank - 1)


def einsum(links: Links, node: ir.Node) -> None:
    """Axes with the same letter join; an equation with an ellipsis or a repeated letter is left frozen."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if "->" not in equation or "." in equation:
        return
    left, right = equation.split("->")
    terms = [*zip(left.split(","), node.inputs, strict=True), (right, node.outputs[0])]
    if any(len(set(term)) != len(term) for term, _ in terms):
        return
    first: dict[str, tuple[ir.Value, int]] = {}
    for term, value in terms:
        for axis, letter in enumerate(term):
            if value is not None and (links.shape(value) or ())[axis] > 1:
                links.join(value, axis, *first.setdefault(letter, (value, axis)))


def per_channel(links: Links, node: ir.Node) -> None:
    """BatchNormalization, InstanceNormalization: one parameter a channel; only the former leaves other axes alone."""
    x, y = source(node), node.outputs[0]
    links.join(x, 0, y, 0)
    links.join(x, 1, y, 1)
    if node.op_type == "BatchNormalization":
        for axis in range(2, len(links.shape(x) or ())):
            links.join(x, axis, y, axis)
    for value in node.inputs[1:]:
        _channels(links, value, y, 1)


def pool(links: Links, node: ir.Node) -> None:
    """Batch and channels pass, positions do not."""
    x = source(node)
    for output in node.outputs:
        if len(links.shape(output) or ()) == len(links.shape(x) or ()):
            links.join(x, 0, output, 0)
            links.join(x, 1, output, 1)


def resize(links: Links, node: ir.Node) -> None:
    """Axes of unchanged size pass, unless sizes are computed at run time."""
    x, y = source(node), node.outputs[0]
    sizes = optional(node, 3)
    if sizes is not None and links.constant(sizes) is None:
        return
    for axis, (before, after) in enumerate(zip(links.shape(x) or (), links.shape(y) or (), strict=True)):
        if before == after and (before > 1) and axis < 2:
            links.join(x, axis, y, axis)


def mend_resize(surgery: Surgery, node: ir.Node) -> None:
    """Literal target sizes follow."""
    y = node.outputs[0]
    sizes = surgery.links.constant(optional(node, 3))
    if sizes is not None and surgery.touches(y) and "axes" not in node.attributes:
        surgery.set_input(node, 3, [surgery.width(y, axis) for axis in range(len(np.ravel(sizes)))])


def _along(first_default: int, to_the_end: Callable[[Links, ir.Node], bool]) -> Link:
    """Operators that mix positions of one axis (or of it and all after it) and leave the others alone."""

    def rule(links: Links, node: ir.Node) -> None:
        x, y = source(node), node.outputs[0]
        rank = len(links.shape(x) or ())
        first = node.attributes.get_int("axis", first_default) % max(rank, 1)
        for axis in range(rank):
            if axis != first and not (to_the_end(links, node) and axis > first):
                links.join(x, axis, y, axis)

    return rule


def _old_softmax(links: Links, node: ir.Node) -> bool:
    return (node.version or links.model.graph.opset_imports.get("", 13)) < 13


def _softmax(links: Links, node: ir.Node) -> None:
    """Normalises over one axis; before opset 13 over it and all that follow."""
    _along(1 if _old_softmax(links, node) else -1, _old_softmax)(links, node)


def reduce(links: Links, node: ir.Node) -> None:
    """Reduced axes are frozen, the others pass."""
    x, y = source(node), node.outputs[0]
    rank = len(links.shape(x) or ())
    given = optional(node, 1)
    literal = links.constant(given)
    if given is not None and literal is None:
        return
    if literal is not None:
        axes = [int(axis) for axis in np.ravel(literal)]
    elif "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    elif node.op_type in ("ArgMax", "ArgMin"):
        axes = [node.attributes.get_int("axis", 0)]
    else:
        axes = [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank))
    reduced = {axis % rank for axis in axes}
    passing = [axis for axis in range(rank) if axis not in reduced]
    for place, axis in enumerate(passing):
        links.join(x, axis, y, axis if node.attributes.get_int("keepdims", 1) else place)


def dequantize(links: Links, node: ir.Node) -> None:
    """Element by element; per-channel scales follow their axis."""
    x, y = source(node), node.outputs[0]
    shape = links.shape(x) or ()
    if node.attributes.get_int("block_size", 0):
        return
    for axis in range(len(shape)):
        links.join(x, axis, y, axis)
    for value in node.inputs[1:]:
        if value is not None and len(links.shape(value) or ()) == 1:
            links.join(value, 0, y, node.attributes.get_int("axis", 1) % len(shape))


def shape_of(links: Links, node: ir.Node) -> None:
    """A size that is read while the model runs must not change: every axis read stays as it is."""
    x = source(node)
    shape = links.shape(x) or ()
    for axis in set(range(len(shape))) - _axes_read(links, node, len(shape)):
        if shape[axis] > 1:
            links.ids(x, axis)


def _axes_read(links: Links, node: ir.Node, rank: int) -> set[int]:
    """Axes whose size leaves the `Shape` node through constant Gathers and Slices."""
    first, last = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    measured = range(rank)[first:last]
    read: set[int] = set()
    for user, _ in node.outputs[0].uses():
        literals = [links.constant(value) for value in user.inputs[1:]]
        known = [int(number) for literal in literals if literal is not None for number in np.ravel(literal)]
        if user.op_type == "Gather" and literals[0] is not None:
            read |= {measured[place] for place in known if -len(measured) <= place < len(measured)}
        elif user.op_type == "Slice" and len(literals) >= 2 and len(known) == len(literals):
            read |= set(measured[known[0] : known[1] : known[3] if len(known) > 3 else 1])
        else:
            return set(measured)
    return read if not node.outputs[0].is_graph_output() else set(measured)


_DOMAINS = ("", "ai.onnx", "com.microsoft", "com.microsoft.nchwc")
_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp FastGelu "
    "Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not QuickGelu Reciprocal Relu Round "
    "Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_BROADCAST = (
    "Add And BiasGelu BitShift Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub "
    "Sum Where Xor"
)
_POOLS = "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool"
_NORMALISATIONS = "LayerNormalization SimplifiedLayerNormalization RMSNormalization"
_REDUCTIONS = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")

OPERATORS: dict[str, Operator] = {
    **dict.fromkeys((*_UNARY.split(), *_BROADCAST.split()), Operator(elementwise)),
    "Conv": Operator(conv, mend_groups),
    "FusedConv": Operator(conv, mend_groups),
    "ConvTranspose": Operator(conv_transpose, mend_groups),
    "Gemm": Operator(gemm),
    "FusedGemm": Operator(gemm),
    "MatMul": Operator(matmul),
    "FusedMatMul": Operator(matmul),
    "Einsum": Operator(einsum),
    "Attention": Operator(attention.attention, attention.mend_attention),
    "BatchNormalization": Operator(per_channel),
    "InstanceNormalization": Operator(per_channel),
    **dict.fromkeys(_POOLS.split(), Operator(pool)),
    "Resize": Operator(resize, mend_resize),
    "Upsample": Operator(resize),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), Operator(_softmax)),
    **dict.fromkeys(_NORMALISATIONS.split(), Operator(_along(-1, lambda links, node: True))),
    "LpNormalization": Operator(_along(-1, lambda links, node: False)),
    "LRN": Operator(_along(1, lambda links, node: False)),
    "CumSum": Operator(_along(0, lambda links, node: True)),
    **dict.fromkeys((*(f"Reduce{kind}" for kind in _REDUCTIONS), "ArgMax", "ArgMin"), Operator(reduce)),
    "QuantizeLinear": Operator(dequantize),
    "DequantizeLinear": Operator(dequantize),
    "Shape": Operator(shape_of),
    "Size": Operator(lambda links, node: None),
    "Transpose": Operator(layout.transpose),
    "Reshape": Operator(layout.reshape, layout.mend_reshape),
    "Flatten": Operator(layout.reshape),
    "Squeeze": Operator(layout.squeeze),
    "Unsqueeze": Operator(layout.squeeze),
    "Concat": Operator(layout.concat),
    "Split": Operator(layout.split, layout.mend_split),
    "Slice": Operator(layout.slice_, layout.mend_slice),
    "Gather": Operator(layout.gather, layout.mend_gather),
    "Pad": Operator(layout.pad, layout.mend_pad),
    "Expand": Operator(layout.expand, layout.mend_expand),
    "Tile": Operator(layout.tile),
    "DepthToSpace": Operator(blocks.depth_to_space),
    "SpaceToDepth": Operator(blocks.space_to_depth),
}
