"""Which nodes become int8: the multiplications that pay, and the operators between them that keep a region together.

Anchors are Conv, Gemm and MatMul with constant weights. Everything else becomes int8 only when it stands between
anchors: each of its inputs is already int8 and its result ends in an anchor. So Softmax, LayerNorm, GELU and the
arithmetic of attention masks never do. Refusals are decisions with a reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from lepton_cli.graph.edit import array_of
from lepton_cli.graph.facts import why_computed
from lepton_cli.model.external import pieces
from lepton_cli.probe.clipping import Range
from lepton_cli.quantize import expand
from lepton_cli.step import Decision

#: Operators that onnxruntime's x86 provider runs in int8 between two int8 neighbours; the moving ones share one scale.
MOVING = frozenset(
    {"DepthToSpace", "Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split",
     "Squeeze", "Transpose", "Unsqueeze"}
)  # fmt: skip
COMPUTING = frozenset(
    {"Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "AveragePool", "GlobalAveragePool", "Concat"}
)
#: Those without a kernel of their own that are written as others, see `expand`.
WRITTEN = frozenset({"Div", "HardSigmoid", "HardSwish", "ReduceMean"})
BETWEEN = MOVING | COMPUTING | WRITTEN
ANCHORS = frozenset({"Conv", "Gemm", "MatMul"})
#: ModelOpt's rule: below this, a matrix product is too small for int8 to pay or to keep its accuracy.
LEAST_SIDE = 16
#: Inputs of a Concat whose ranges differ by more than this share one scale badly (boxes 0..640 beside scores 0..1).
CONCAT_RATIO = 16.0


@dataclasses.dataclass(frozen=True)
class Choice:
    """Nodes to quantize by name, and what is said about every other candidate."""

    anchors: frozenset[str]
    between: frozenset[str]
    kept: tuple[Decision, ...]
    #: Anchors whose activations get 16 bits.
    wide: frozenset[str] = frozenset()

    @property
    def nodes(self) -> frozenset[str]:
        """All nodes to quantize."""
        return self.anchors | self.between

    def without(self, names: Iterable[str], reason: str, model: ir.Model) -> Choice:
        """The choice that is left when anchors `names` stay float; regions shrink accordingly."""
        dropped = frozenset(names)
        anchors = self.anchors - dropped
        kept = tuple(
            Decision(node=node.name or "", op=node.op_type, action="kept", reason=reason)
            for node in model.graph.all_nodes()
            if node.name in dropped & self.anchors
        )
        between = _between(model, anchors, self.between - dropped)
        return Choice(anchors, between, self.kept + kept, self.wide - dropped)

    def widened(self, names: Iterable[str]) -> Choice:
        """The choice with 16-bit activations around the anchors `names`."""
        return dataclasses.replace(self, wide=self.anchors & frozenset(names))


def candidates(model: ir.Model, allowed: set[str], excluded_reason: str = "left out by include/exclude") -> Choice:
    """Anchors and the nodes between them, before any range is known."""
    anchors: set[str] = set()
    kept: list[Decision] = []
    for node in model.graph:
        if node.op_type not in ANCHORS or node.domain:
            continue
        reason = _refused(node) if node.name in allowed else excluded_reason
        if reason is None:
            anchors.add(node.name or "")
        else:
            kept.append(Decision(node=node.name or "", op=node.op_type, action="kept", reason=reason))
    kept += inside_subgraphs(model, ANCHORS)
    eligible = {node.name or "" for node in model.graph if node.name in allowed and _may_stand_between(node)}
    return Choice(frozenset(anchors), _between(model, frozenset(anchors), eligible), tuple(kept))


def _refused(node: ir.Node) -> str | None:
    """Why an anchor stays float, or `None`."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    weight = value.const_value if value is not None else None
    if weight is None:
        return why_computed(node)
    if weight.dtype != ir.DataType.FLOAT:
        return f"its weight is {weight.dtype.name.lower()}, not float32"
    if not all(np.isfinite(piece).all() for piece in pieces(weight)):
        return "its weight holds infinities or NaN"
    if node.op_type == "Conv":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return "its bias is computed" if bias is not None and bias.const_value is None else None
    if len(weight.shape) != 2:
        return f"its weight has {len(weight.shape)} dimensions"
    inner, outer = weight.shape.numpy()
    if min(inner, outer) < LEAST_SIDE:
        return f"too small for int8: {inner}x{outer}, needs at least {LEAST_SIDE} on both sides"
    if node.op_type == "Gemm":
        return _refused_gemm(node)
    return None


def _refused_gemm(node: ir.Node) -> str | None:
    reason = more_than_product(node)
    if reason is not None:
        return reason
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and (bias.const_value is None or bias.const_value.numpy().ndim != 1):
        return "its bias is not a constant vector"
    return None


def more_than_product(node: ir.Node) -> str | None:
    """What a Gemm does besides multiplying by its weight and adding its bias, as a reason to keep it; else `None`."""
    if node.attributes.get_int("transA", 0):
        return "its activation is transposed (transA)"
    if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
        return "it scales its operands (alpha, beta)"
    return None


def inside_subgraphs(model: ir.Model, operators: Collection[str]) -> list[Decision]:
    """Why those of `operators` in the branches of If, Loop and Scan stay float."""
    top = {id(node) for node in model.graph}
    return [
        Decision(
            node=node.name or "", op=node.op_type, action="kept", reason="inside the branch of a control-flow node"
        )
        for node in model.graph.all_nodes()
        if id(node) not in top and node.op_type in operators
    ]


def _may_stand_between(node: ir.Node) -> bool:
    if node.domain or node.op_type not in BETWEEN:
        return False
    if node.op_type == "Clip":
        return _clip_holds_zero(node)
    if node.op_type == "Div":
        return expand.factor(node) is not None
    if node.op_type == "ReduceMean":
        return expand.over_positions(node)
    if node.op_type in ("Pad", "Resize"):
        mode = node.attributes.get_string("mode", "constant" if node.op_type == "Pad" else "nearest")
        return mode in ("constant", "nearest", "linear", "reflect", "edge")
    return True


def _clip_holds_zero(node: ir.Node) -> bool:
    """A Clip vanishes into the range of its output, which always holds 0: so must the Clip's own."""
    bounds = [array_of(node, i) for i in (1, 2)]
    if any(len(node.inputs) > i and node.inputs[i] is not None and bounds[i - 1] is None for i in (1, 2)):
        return False
    low = float(bounds[0].item()) if bounds[0] is not None else node.attributes.get_float("min", -np.inf)
    high = float(bounds[1].item()) if bounds[1] is not None else node.attributes.get_float("max", np.inf)
    return low <= 0 <= high


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs that carry activations, not constants and not shapes or axes."""
    inputs = node.inputs if node.op_type in ("Add", "Mul", "Concat") else node.inputs[:1]
    return [value for value in inputs if value is not None and value.const_value is None]


def _between(model: ir.Model, anchors: frozenset[str], eligible: Iterable[str]) -> frozenset[str]:
    """Eligible nodes all of whose inputs are int8 and whose result reaches an anchor through such nodes.

    Of a Concat one is enough: what it joins is rounded anyway, and pieces are rounded no worse than the whole.
    """
    eligible = set(eligible)
    ready: set[str] = set()
    forward: list[ir.Node] = []
    for node in model.graph:
        if node.name in anchors:
            if node.op_type != "MatMul":
                ready.update(value.name or "" for value in node.outputs)
        elif node.name in eligible:
            inputs = data_inputs(node)
            int8 = [value.name in ready for value in inputs]
            if inputs and (any(int8) if node.op_type == "Concat" else all(int8)) and _constants_fit(node):
                forward.append(node)
                ready.update(value.name or "" for value in node.outputs)
    chosen: set[str] = set()
    wanted: set[str] = set()
    for node in model.graph:
        if node.name in anchors and node.inputs[0] is not None:
            wanted.add(node.inputs[0].name or "")
    for node in reversed(forward):
        if any(value.name in wanted for value in node.outputs):
            chosen.add(node.name or "")
            wanted.update(value.name or "" for value in data_inputs(node))
    chosen |= _trailing_activations(model, anchors, forward, chosen)
    return frozenset(chosen | _trailing_sums(model, anchors, forward, chosen))


def _constants_fit(node: ir.Node) -> bool:
    """Add and Mul with a constant operand: only float ones that vary are worth a scale of their own."""
    if node.op_type not in ("Add", "Mul", "Concat"):
        return True
    constants = [
        value.const_value.numpy() for value in node.inputs if value is not None and value.const_value is not None
    ]
    return all(constant.dtype == np.float32 and np.isfinite(constant).all() for constant in constants)


def _trailing_sums(model: ir.Model, anchors: frozenset[str], forward: list[ir.Node], chosen: set[str]) -> set[str]:
    """The last Add of two int8 results, one of a Conv, with its activation: less to read back than its two operands."""
    outputs = {value.name for value in model.graph.outputs}
    found: set[str] = set()
    for node in forward:
        if (
            node.op_type != "Add"
            or node.name in chosen
            or None in (made := [_producer(value) for value in node.inputs])
        ):
            continue
        int8 = all(one is not None and one.name in anchors | chosen | found for one in made)
        if not int8 or not any(map(_gives_convolution, made)):
            continue
        result, names = node.outputs[0], [node.name or ""]
        user = next(iter(result.uses())).node if len(result.uses()) == 1 else None
        if user is not None and user.op_type in ("Relu", "Clip") and user in forward and result.name not in outputs:
            result = user.outputs[0]
            names.append(user.name or "")
        if result.name not in outputs:
            found.update(names)
    return found


def _gives_convolution(node: ir.Node | None) -> bool:
    """A Conv's result, perhaps summed or activated; those of a Gemm are kept as they are for what transformers add."""
    while node is not None and node.op_type in ("Add", "Relu", "Clip"):
        node = _producer(node.inputs[0])
    return node is not None and node.op_type == "Conv"


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _trailing_activations(
    model: ir.Model, anchors: frozenset[str], forward: list[ir.Node], chosen: set[str]
) -> frozenset[str]:
    """ReLU or Clip right behind a Conv or Gemm whose result is float anyway: fused into it they cost nothing."""
    outputs = {value.name for value in model.graph.outputs}
    found = set()
    for node in forward:
        if node.name in chosen or node.op_type not in ("Relu", "Clip") or node.inputs[0] is None:
            continue
        source = node.inputs[0]
        producer = source.producer()
        if producer is not None and producer.name in anchors and len(source.uses()) == 1 and source.name not in outputs:
            found.add(node.name or "")
    return frozenset(found)


def activations(model: ir.Model, choice: Choice) -> list[str]:
    """Tensors whose ranges the choice needs, in graph order."""
    names: dict[str, None] = {}
    for node in model.graph:
        if node.name not in choice.nodes:
            continue
        for value in (*data_inputs(node), *(node.outputs if node.op_type in BETWEEN | {"Conv", "Gemm"} else ())):
            if value.dtype in (None, ir.DataType.FLOAT):
                names[value.name or ""] = None
    return list(names)


def refine(model: ir.Model, choice: Choice, ranges: Mapping[str, Range], masked: Mapping[str, int]) -> Choice:
    """Drop what the ranges forbid: tensors with mask constants or no data, Concats of incompatible ranges."""
    reasons: dict[str, str] = {}
    for node in model.graph:
        if node.name not in choice.nodes:
            continue
        for value in (*data_inputs(node), *node.outputs):
            if value.name in masked:
                reasons[node.name or ""] = f"`{value.name}` holds infinities or mask constants"
        unseen = [value.name for value in data_inputs(node) if value.name not in ranges]
        if unseen:
            reasons.setdefault(node.name or "", f"no calibration values for `{unseen[0]}`")
        if node.op_type == "Concat" and (spread := _concat_spread(node, ranges)) > CONCAT_RATIO:
            reasons[node.name or ""] = f"joins ranges that differ {spread:.0f} times: one scale would lose the smaller"
    for name, reason in reasons.items():
        choice = _drop(model, choice, name, reason)
    return choice


def _drop(model: ir.Model, choice: Choice, name: str, reason: str) -> Choice:
    op = next(node.op_type for node in model.graph if node.name == name)
    anchors = choice.anchors - {name}
    kept = (*choice.kept, Decision(node=name, op=op, action="kept", reason=reason))
    return Choice(anchors, _between(model, anchors, choice.between - {name}), kept, choice.wide - {name})


def _concat_spread(node: ir.Node, ranges: Mapping[str, Range]) -> float:
    sizes = [
        max(-low, high) for value in data_inputs(node) if (pair := ranges.get(value.name or "")) for low, high in [pair]
    ]
    sizes = [size for size in sizes if size > 0]
    return max(sizes) / min(sizes) if sizes else 1.0
