"""Which tensors are rounded, and on whose grid: all that is decided before the quantized graph is written."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from lepton_cli.graph.edit import Editor
from lepton_cli.probe.clipping import Range
from lepton_cli.quantize import cpu, expand
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.sharing import PASSING, SHARING, lets_limits_pass, pads_with_own, readers
from lepton_cli.quantize.targets import Target

#: onnx has per-channel DequantizeLinear from this opset on; older graphs get onnxruntime's own operator.
PER_CHANNEL_OPSET = 13
#: The same for 16 bits.
WIDE_OPSET = 21


class Marks:
    """Notes about the tensors around the nodes of a choice; a ReLU or Clip that a grid stands for leaves the graph.

    `narrow`: all activations have 8 bits.
    """

    def __init__(
        self, editor: Editor, choice: Choice, target: Target, ranges: Mapping[str, Range], *, narrow: bool
    ) -> None:
        self.model, self.editor, self.target, self.narrow = editor.model, editor, target, narrow
        self.opset = self.model.graph.opset_imports.get("", 1)
        self.ranges = dict(ranges)
        #: Names of the nodes to quantize, with those that operators without a kernel are written as.
        self.chosen = set(choice.nodes)
        #: Tensors to round, in the order of the graph; of those that share a grid, with which.
        self.marked: dict[ir.Value, ir.Value | None] = {}
        #: Results that have the codes of another tensor, which is multiplied by a number: with another scale.
        self.scaled: dict[ir.Value, tuple[ir.Value, float]] = {}
        #: Results of operators that onnxruntime computes on codes as they are, but does not put there by itself.
        self.direct: dict[ir.Value, tuple[ir.Node, ir.Value]] = {}
        self.float_results = {
            node.outputs[0]
            for node in self.model.graph
            if target.float_outputs and node.name in choice.anchors and node.op_type in ("MatMul", "Gemm")
        }
        #: The chosen nodes in order.
        self.nodes = [node for node in self.model.graph if node.name in choice.nodes]
        if cpu.suits(target) and narrow:
            self.nodes = [made for node in self.nodes for made in self._expanded(node)]
        self._narrow_ranges(self.nodes)
        for node in self.nodes:
            self._mark(node)
        if target.symmetric_activations and self.opset >= WIDE_OPSET:
            self._pass_on()

    def _expanded(self, node: ir.Node) -> list[ir.Node]:
        limits = not self.target.symmetric_activations
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
            not self.target.symmetric_activations
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
        return None if limited or not cpu.suits(self.target) else (source, found[1])

    def _direct(self, node: ir.Node) -> bool:
        """Whether to write a node that moves values on codes: a SpaceToDepth, or a Pad with nothing but zeros."""
        fits = node.op_type == "SpaceToDepth" or (node.op_type == "Pad" and pads_with_own(node, self.opset))
        usable = fits and self.opset >= PER_CHANNEL_OPSET and cpu.suits(self.target) and self.narrow
        return usable and not node.outputs[0].is_graph_output()

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
