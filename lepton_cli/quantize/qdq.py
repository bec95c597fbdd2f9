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
from lepton_cli.garbage import uncollected
from lepton_cli.graph.edit import Editor
from lepton_cli.model import io
from lepton_cli.probe.clipping import Range
from lepton_cli.quantize import cpu, grid
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.marks import PER_CHANNEL_OPSET, WIDE_OPSET, Marks
from lepton_cli.quantize.targets import Target

MICROSOFT = "com.microsoft"
#: Float layers that onnxruntime quantizes by itself where they stand between two int8 ones.
REQUANTIZED = frozenset({"Conv", "ConvTranspose", "Gemm"})


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
    return put(io.clone(model), plan)


@uncollected()
def put(model: ir.Model, plan: Scheme) -> ir.Model:
    """`write` into the model itself, for one that nobody else has."""
    return _Writer(model, plan).written()


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
        self.wide = _wide(model, plan)
        sixteen = bool(plan.choice.wide) or plan.activations == "int16"
        self.domain = MICROSOFT if self.opset < (WIDE_OPSET if sixteen else PER_CHANNEL_OPSET) else ""
        self.marks = Marks(self.editor, plan.choice, plan.target, plan.ranges, narrow=not sixteen)
        self.codes: dict[ir.Value, ir.Value] = {}
        self.grids: dict[ir.Value, _Stored] = {}
        #: Weights and constants that are integers by now: what is read in their place, and their scales.
        self.weights: dict[ir.Value, tuple[ir.Value, NDArray[np.float32]]] = {}

    def written(self) -> ir.Model:
        """All steps, in place."""
        for value in self.marks.marked:
            self._grid(value)
        for node in self.marks.nodes:
            if node.name in self.plan.choice.anchors and node.graph is not None:
                self._weight(node)
        for value in self.marks.marked:
            self._round(value)
        if self.domain:
            self.model.graph.opset_imports.setdefault(self.domain, 1)
        self.model.graph.sort()
        common.RemoveUnusedNodesPass()(self.model)
        return self.model

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

    def _grid(self, value: ir.Value) -> _Stored:
        """The grid of a marked tensor."""
        if value in self.grids:
            return self.grids[value]
        if value in self.marks.scaled:
            source, factor = self.marks.scaled[value]
            made = self._grid(source).grid
            scale = np.asarray(made.scale * np.float32(factor), np.float32)
            self.grids[value] = found = self._stored(value.name or "", grid.Grid(scale, made.zero_point))
            return found
        like = self.marks.marked[value]
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
            if name not in self.marks.ranges:
                raise StepError(
                    "quantize.range",
                    f"`{name}` is to be rounded, and its range is not known",
                    hint="this is a defect of lepton: please report it with the model",
                )
            made = grid.of_range(*self.marks.ranges[name], code, symmetric=symmetric)
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
        if value in self.marks.direct:
            self.codes[value] = codes = self._on_codes(*self.marks.direct[value])
            value.replace_all_uses_with(self._read(name, codes, stored))
            return
        if value in self.marks.scaled:
            self.codes[value] = codes = self.codes[self.marks.scaled[value][0]]
            value.replace_all_uses_with(self._read(name, codes, stored))
            return
        if value.const_value is not None:
            codes = self.editor.constant(f"{name}_quantized", stored.grid.codes(value.const_value.numpy()))
            value.replace_all_uses_with(self._read(name, codes, stored))
            return
        only = self._int8_alone(value)
        uses = [use for use in value.uses() if only or use.node.name in self.marks.chosen]
        if not uses and not (only and value.is_graph_output()):
            return
        source = self._guarded(value)
        codes = self._node("QuantizeLinear", name, source, stored, ir.DataType.from_numpy(stored.grid.zero_point.dtype))
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

    def _int8_alone(self, value: ir.Value) -> bool:
        """Whether the kernel that makes it returns int8 and leaves no float tensor for the others."""
        producer = value.producer()
        return producer is not None and producer.name in self.marks.chosen and value not in self.marks.float_results

    def _guarded(self, value: ir.Value) -> ir.Value:
        """The tensor, or its copy where onnxruntime would quantize the layer that makes it.

        It does so to float layers between two int8 ones, with one scale for all channels, also through a ReLU or Clip;
        a Sum of one tensor stands in its way.
        """
        made = value
        while (node := made.producer()) is not None and node.op_type in ("Relu", "Clip") and node.inputs[0] is not None:
            made = node.inputs[0]
        if node is None or node.op_type not in REQUANTIZED or node.name in self.marks.chosen:
            return value
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if not cpu.suits(self.plan.target) or source is None or source.op_type != "DequantizeLinear":
            return value
        copy = ir.node("Sum", [value], name=self.editor.name(f"{value.name}_in_float"))
        copy.outputs[0].name = self.editor.name(f"{value.name}_copy")
        copy.outputs[0].type, copy.outputs[0].shape = value.type, None if value.shape is None else value.shape.copy()
        self.model.graph.append(copy)
        return copy.outputs[0]

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
