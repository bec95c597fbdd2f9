"""Writes the quantized graph: QuantizeLinear and DequantizeLinear where onnxruntime fuses them into int8 kernels.

Around a chosen node every float input and output is rounded to its grid and read back. What moves values and computes
none (MaxPool, Reshape, …) shares the grid of what it reads, as its kernels do; a ReLU or Clip behind a chosen node is a
limit of that node's grid, and goes. The form is that of onnxruntime's own QDQ writer, whose files the tests hold this
to; unlike there, an operator that stays in float reads the float tensor wherever one exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from lepton_cli.errors import StepError
from lepton_cli.graph.edit import Editor
from lepton_cli.model import io
from lepton_cli.probe.clipping import Range
from lepton_cli.quantize import cpu, expand, grid
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.sharing import PASSING, SHARING, lets_limits_pass, pads_with_own, readers
from lepton_cli.quantize.targets import Target

#: onnx has per-channel DequantizeLinear from this opset on; older graphs get onnxruntime's own operator.
PER_CHANNEL_OPSET = 13
#: The same for 16 bits.
WIDE_OPSET = 21
MICROSOFT = "com.microsoft"


@dataclasses.dataclass(frozen=True)
class Scheme:
    """All that decides how a quantized graph looks. Weights are symmetric, with one scale per output channel."""

    target: Target
    choice: Choice
    ranges: Mapping[str, Range]
    #: Weight initializer -> (axis, one scale per channel). Weights not named get the greatest magnitude's scale.
    scales: Mapping[str, tuple[int, NDArray[np.float32]]] = dataclasses.field(default_factory=dict)
    activations: Literal["int8", "int16"] = "int8"


def write(model: ir.Model, plan: Scheme) -> ir.Model:
    """The quantized copy of `model`. Raises StepError where a tensor that must be rounded has no range."""
    return _Writer(io.clone(model), plan).written()


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A grid in the model: its constants, and their values."""

    scale: ir.Value
    zero_point: ir.Value
    grid: grid.Grid


class _Writer:
    def __init__(self, model: ir.Model, plan: Scheme) -> None:
        self.model, self.plan, self.editor = model, plan, Editor(model)
        self.opset = model.graph.opset_imports.get("", 1)
        self.ranges = dict(plan.ranges)
        self.wide = _wide(model, plan)
        sixteen = bool(plan.choice.wide) or plan.activations == "int16"
        self.domain = MICROSOFT if self.opset < (WIDE_OPSET if sixteen else PER_CHANNEL_OPSET) else ""
        #: Names of the nodes to quantize, with those that operators without a kernel are written as.
        self.chosen = set(plan.choice.nodes)
        #: Tensors to round, in the order of the graph; of those that share a grid, with which.
        self.marked: dict[ir.Value, ir.Value | None] = {}
        #: Results that have the codes of another tensor, which is multiplied by a number: with another scale.
        self.scaled: dict[ir.Value, tuple[ir.Value, float]] = {}
        self.codes: dict[ir.Value, ir.Value] = {}
        #: Results of operators that onnxruntime computes on codes as they are, but does not put there by itself.
        self.direct: dict[ir.Value, tuple[ir.Node, ir.Value]] = {}
        self.grids: dict[ir.Value, _Stored] = {}
        #: Weights and constants that are integers by now: what is read in their place, and their scales.
        self.weights: dict[ir.Value, tuple[ir.Value, NDArray[np.float32]]] = {}
        self.biases: list[ir.Node] = []
        self.float_results = {
            node.outputs[0]
            for node in model.graph
            if plan.target.float_outputs and node.name in plan.choice.anchors and node.op_type in ("MatMul", "Gemm")
        }

    def written(self) -> ir.Model:
        """All steps, in place."""
        chosen = [node for node in self.model.graph if node.name in self.plan.choice.nodes]
        if cpu.suits(self.plan.target) and not (self.wide or self.plan.activations == "int16"):
            chosen = [made for node in chosen for made in self._expanded(node)]
        self._narrow_ranges(chosen)
        for node in chosen:
            self._mark(node)
        if self.plan.target.symmetric_activations and self.opset >= WIDE_OPSET:
            self._pass_on()
        for value in self.marked:
            self._grid(value)
        for node in chosen:
            if node.name in self.plan.choice.anchors and node.graph is not None:
                self._weight(node)
        for value in self.marked:
            self._round(value)
        if self.domain:
            self.model.graph.opset_imports.setdefault(self.domain, 1)
        self.model.graph.sort()
        common.RemoveUnusedNodesPass()(self.model)
        return self.model

    def _expanded(self, node: ir.Node) -> list[ir.Node]:
        limits = not self.plan.target.symmetric_activations
        made = expand.expand(node, self.editor, self.ranges, limits=limits)
        self.chosen.update(part.name or "" for part in made)
        return made

    def _narrow_ranges(self, chosen: list[ir.Node]) -> None:
        """What only a ReLU or Clip reads needs no other range than its result."""
        for node in chosen:
            source, result = node.inputs[0], node.outputs[0]
            if node.op_type not in ("Relu", "Clip") or source is None or len(readers(source)) != 1:
                continue
            if source.name in self.ranges and result.name in self.ranges:
                self.ranges[source.name] = self.ranges[result.name]

    def _mark(self, node: ir.Node) -> None:
        """Note which tensors around a chosen node are to be rounded."""
        source, result = node.inputs[0], node.outputs[0]
        op = node.op_type
        if op in ("Relu", "Clip"):
            if source not in self.marked:
                return
            if self._limits(source, result):
                self._absorb(node, source, result)
            else:
                self._activation(result)
        elif self._direct(node):
            self._activation(source)
            if source is not None and source in self.marked:
                self._activation(result, source)
                self.direct[result] = node, source
        elif op in SHARING:
            if self.opset >= SHARING[op] and source in self.marked:
                self._activation(result, source)
        elif op == "Split":
            self._activation(source)
            for output in node.outputs:
                self._activation(output, source)
        elif op == "Pad":
            for value in node.inputs:
                self._activation(value)
            self._activation(result, source if pads_with_own(node, self.opset) else None)
        elif op in ("Conv", "Gemm"):
            self._activation(source)
            self._activation(result)
        elif op == "MatMul":
            self._activation(source)
        elif op == "Mul" and (found := self._factor(node, result)) is not None:
            self._activation(found[0])
            self._activation(result)
            if found[0] in self.marked and result in self.marked:
                self.scaled[result] = found
        else:
            for value in (*node.inputs, *node.outputs):
                self._activation(value)

    def _pass_on(self) -> None:
        """Round behind operators that move rounded values too, which changes nothing.

        onnxruntime does so by itself and notes the type of the codes (opset 21), which it then forgets to change where
        it turns int8 into uint8 on x86: it would not load the model.
        """
        for node in self.model.graph:
            source, result = (node.inputs[0], node.outputs[0]) if node.op_type in PASSING else (None, None)
            if source not in self.marked or result in self.marked or node.name in self.chosen or len(node.outputs) > 1:
                continue
            producer = None if source is None else source.producer()
            if producer is not None and producer.name in self.chosen and source not in self.float_results:
                self.chosen.add(node.name or "")
                self._activation(result, source)

    def _activation(self, value: ir.Value | None, like: ir.Value | None = None) -> None:
        """Round this tensor, on a grid of its own unless it is `like` another; not where it holds no float numbers."""
        if value is None:
            return
        constant = value.const_value is not None and value.is_initializer()
        known = value.dtype == ir.DataType.FLOAT or (value.dtype is None and value.name in self.ranges)
        if constant:
            known = value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT
        if known and (like is not None or value not in self.marked):
            self.marked[value] = like

    def _limits(self, source: ir.Value, result: ir.Value) -> bool:
        """Whether the grid of what a ReLU or Clip reads can do its work: none that is symmetric ends at 0."""
        return (
            not self.plan.target.symmetric_activations
            and result.name in self.ranges
            and len(readers(source)) == 1
            and not source.is_graph_output()
            and source.producer() is not None
        )

    def _factor(self, node: ir.Node, result: ir.Value) -> tuple[ir.Value, float] | None:
        """What a Mul by a number multiplies where reading it with another scale is all that it takes."""
        found = expand.factor(node)
        source = None if found is None else node.inputs[found[0]]
        if found is None or source is None or source.is_initializer() or result.is_graph_output():
            return None
        limited = any(use.op_type in ("Relu", "Clip") and use.name in self.chosen for use in readers(result))
        return None if limited or not cpu.suits(self.plan.target) else (source, found[1])

    def _direct(self, node: ir.Node) -> bool:
        """Whether to write a node that moves values on codes: a SpaceToDepth, or a Pad with nothing but zeros."""
        fits = node.op_type == "SpaceToDepth" or (node.op_type == "Pad" and pads_with_own(node, self.opset))
        usable = fits and self.opset >= PER_CHANNEL_OPSET and cpu.suits(self.plan.target) and not self.wide
        return usable and self.plan.activations == "int8" and not node.outputs[0].is_graph_output()

    def _on_codes(self, node: ir.Node, source: ir.Value) -> ir.Value:
        codes = self.codes[source]
        inputs = [codes, *node.inputs[1:]]
        if node.op_type == "Pad":
            inputs[2:3] = [self.grids[source].zero_point]
        made = ir.Node("", node.op_type, inputs, list(node.attributes.values()))
        made.name = self.editor.name(f"{node.name}_codes")
        made.outputs[0].name = self.editor.name(f"{node.outputs[0].name}_codes")
        made.outputs[0].type = codes.type
        self.model.graph.append(made)
        return made.outputs[0]

    def _absorb(self, node: ir.Node, source: ir.Value, result: ir.Value) -> None:
        """Let the node before give the result of a ReLU or Clip, under its name; through nodes that only move values,
        all of them."""
        root = source
        while (like := self.marked[root]) is not None and lets_limits_pass(root.producer(), like):
            root = like
        if root is not source:
            self.ranges[root.name or ""] = self.ranges[result.name or ""]
        self.marked[root] = None
        self.direct.pop(root, None)
        self.float_results.discard(root)
        name = result.name
        source.type, source.shape = result.type, result.shape
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        source.name = name

    def _grid(self, value: ir.Value) -> _Stored:
        """The grid of a marked tensor."""
        if value in self.grids:
            return self.grids[value]
        if value in self.scaled:
            source, factor = self.scaled[value]
            made = self._grid(source).grid
            scale = np.asarray(made.scale * np.float32(factor), np.float32)
            self.grids[value] = found = self._stored(value.name or "", grid.Grid(scale, made.zero_point))
            return found
        like = self.marked[value]
        if like is not None and like.const_value is None:
            self.grids[value] = found = self._grid(like)
            return found
        name, code = value.name or "", self._code(value.name or "")
        symmetric = self.plan.target.symmetric_activations
        if value.const_value is not None:
            numbers = value.const_value.numpy()
            low, high = float(numbers.min(initial=0)), float(numbers.max(initial=0))
            made = grid.of_range(low, high, code, symmetric=symmetric, reduced=self.plan.target.reduce_range)
        else:
            if name not in self.ranges:
                raise StepError(
                    "quantize.range",
                    f"`{name}` is to be rounded, and its range is not known",
                    hint="this is a defect of lepton: please report it with the model",
                )
            made = grid.of_range(*self.ranges[name], code, symmetric=symmetric)
        self.grids[value] = found = self._stored(name, made)
        return found

    def _code(self, name: str) -> grid.Code:
        target = self.plan.target
        if self.plan.activations == "int16" or name in self.wide:
            return "int16" if target.symmetric_activations else "uint16"
        return target.activation

    def _stored(self, name: str, made: grid.Grid) -> _Stored:
        return _Stored(
            self.editor.constant(f"{name}_scale", made.scale),
            self.editor.constant(f"{name}_zero_point", made.zero_point),
            made,
        )

    def _weight(self, node: ir.Node) -> None:
        """int8 weights, one scale per output channel, and a bias in steps of input times weight."""
        source, value = node.inputs[0], node.inputs[1]
        assert source is not None
        assert value is not None
        step = self._grid(source).grid.scale
        bias = node.inputs[2] if len(node.inputs) > 2 and node.op_type != "MatMul" else None
        held = bias.const_value if bias is not None and bias.is_initializer() else None
        if value not in self.weights:
            assert value.const_value is not None
            weight = value.const_value.numpy()
            across = node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))
            axis, scales = self.plan.scales.get(value.name or "", (1 if across else 0, None))
            if scales is None:
                scales = grid.per_channel(weight, axis, reduced=self.plan.target.reduce_range)
            if held is not None:
                scales = grid.holding_bias(scales, step, held.numpy())
            own = grid.Grid(scales, np.zeros(scales.shape, np.int8))
            name = value.name or ""
            codes = self.editor.constant(f"{name}_quantized", own.codes(weight, axis))
            read = self._read(name, codes, self._stored(name, own), axis)
            self.weights[value] = read, scales
            value.replace_all_uses_with(read)
        scales = self.weights[value][1]
        if bias is not None and held is not None:
            steps = (step * scales).astype(np.float32)
            name = bias.name or ""
            codes = self.editor.constant(f"{name}_quantized", grid.bias_codes(held.numpy(), steps))
            zero = np.zeros(steps.shape, np.int32)
            stored = self._stored(f"{name}_quantized", grid.Grid(steps, zero))
            node.replace_input_with(2, self._read(name, codes, stored, 0))

    def _round(self, value: ir.Value) -> None:
        """Put the pair of QuantizeLinear and DequantizeLinear behind a tensor, for those who are to read it rounded."""
        stored, name = self.grids[value], value.name or ""
        if value in self.direct:
            self.codes[value] = codes = self._on_codes(*self.direct[value])
            value.replace_all_uses_with(self._read(name, codes, stored))
            return
        if value in self.scaled:
            self.codes[value] = codes = self.codes[self.scaled[value][0]]
            value.replace_all_uses_with(self._read(name, codes, stored))
            return
        if value.const_value is not None:
            codes = self.editor.constant(f"{name}_quantized", stored.grid.codes(value.const_value.numpy()))
            value.replace_all_uses_with(self._read(name, codes, stored))
            return
        producer = value.producer()
        # A kernel that returns int8 alone leaves no float tensor for the others.
        only = producer is not None and producer.name in self.chosen and value not in self.float_results
        uses = [use for use in value.uses() if only or use.node.name in self.chosen]
        if not uses and not (only and value.is_graph_output()):
            return
        codes = self._node("QuantizeLinear", name, value, stored, ir.DataType.from_numpy(stored.grid.zero_point.dtype))
        self.codes[value] = codes
        read = self._node("DequantizeLinear", name, codes, stored, ir.DataType.FLOAT)
        for use in uses:
            use.node.replace_input_with(use.idx, read)
        if only and value.is_graph_output():
            outputs = self.model.graph.outputs
            for index, output in enumerate(outputs):
                if output is value:
                    outputs[index] = read
            read.type, read.shape = value.type, value.shape
            value.name = self.editor.name(f"{name}_QuantizeLinear_Input")
            read.name = name

    def _read(self, name: str, codes: ir.Value, stored: _Stored, axis: int | None = None) -> ir.Value:
        """Codes of a constant as numbers."""
        return self._node("DequantizeLinear", name, codes, stored, ir.DataType.FLOAT, axis)

    def _node(
        self, op: str, name: str, source: ir.Value, stored: _Stored, dtype: ir.DataType, axis: int | None = None
    ) -> ir.Value:
        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        made = ir.Node(self.domain, op, [source, stored.scale, stored.zero_point], attributes)
        made.name = self.editor.name(f"{name}_{op}")
        made.outputs[0].name = self.editor.name(f"{name}_{op}_Output")
        made.outputs[0].dtype = dtype
        made.outputs[0].shape = None if source.shape is None else source.shape.copy()
        self.model.graph.append(made)
        return made.outputs[0]


def _wide(model: ir.Model, plan: Scheme) -> frozenset[str]:
    """Activations that the anchors with 16 bits read and write, through an activation function behind them too."""
    found: set[str] = set()
    for node in model.graph:
        source = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
        follows = node.op_type in ("Relu", "Clip") and node.name in plan.choice.nodes and source in found
        if node.name in plan.choice.wide or follows:
            names = [source or "", *(value.name or "" for value in node.outputs)]
            found |= {name for name in names if name in plan.ranges}
    return frozenset(found)
