"""`head.add` and `head.replace`: outputs for other tasks, as linear layers with small random weights.

Graph surgery alone: what they answer has to be learnt (`finetune`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.data.source import nearest
from lepton_cli.errors import LeptonError, ModelError, RecipeError
from lepton_cli.graph import clean, shapes
from lepton_cli.graph.details import HeadDetails
from lepton_cli.graph.edit import Editor, inner_graphs
from lepton_cli.graph.feeds import default_feeds
from lepton_cli.graph.held import FLOATS
from lepton_cli.graph.settle import settle
from lepton_cli.graph.spec import HeadAdd, HeadOptions, HeadReplace
from lepton_cli.model import io
from lepton_cli.step import Context, Decision, Outcome
from lepton_cli.tensors import Dim

#: Other outputs are computed by the same operators: another reader only keeps onnxruntime from joining two of them.
_SAME = 1e-4
#: What of a value the layer reads, by the number of its axes.
_READS = {2: "", 3: "the mean over axis 1 of ", 4: "the mean over height and width of "}
_AT = "name with `at` the value that a new layer is to read"


def add(model: ir.Model, options: HeadAdd, context: Context) -> Outcome:
    """The model with one more output `[samples, width]`, the last one."""
    surgery = _Surgery(io.clone(model), options, context.seed, options.name)
    if surgery.editor.name(options.name) != options.name:
        raise RecipeError(
            "head.name-taken",
            f"the model has a value or a node `{options.name}` already",
            hint="choose another `name`",
            option=("name",),
        )
    source = surgery.source(options.at)
    made = surgery.head(source)
    made.name = options.name
    surgery.model.graph.outputs.append(made)
    return surgery.outcome(made, "added", source)


def replace(model: ir.Model, options: HeadReplace, context: Context) -> Outcome:
    """The model with other numbers in one of its outputs, at the same place under the same name."""
    copy = io.clone(model)
    output = _output(copy, options)
    surgery = _Surgery(copy, options, context.seed, output.name or "")
    if options.at == "auto":
        return surgery.again(output)
    source = surgery.source(options.at)
    made = surgery.head(source)
    surgery.put(output, made)
    return surgery.outcome(made, "replaced", source)


class Layers:
    """What in a graph are layers with weights, and what only hands on what they compute."""

    def __init__(self, model: ir.Model) -> None:
        self.known = shapes.infer(model)
        self._constant = set(model.graph.initializers.values())
        for node in model.graph:
            if not inner_graphs(node) and all(one is None or one in self._constant for one in node.inputs):
                self._constant.update(node.outputs)

    def fixed(self, value: ir.Value) -> bool:
        """Whether it follows from constants alone."""
        return value in self._constant

    def holds_weights(self, value: ir.Value | None) -> bool:
        """Whether it is several constant floats: single ones are bounds, scales, exponents."""
        if value is None or value not in self._constant:
            return False
        found = self.known[value.name or ""]
        return found.dtype in FLOATS and (found.fixed is None or math.prod(found.fixed) > 1)

    def linear(self, node: ir.Node) -> bool:
        """Whether every result is a sum of all channels that are read, with constant weights of a known number."""
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("Gemm", "MatMul", "Conv"):
            return False
        value, weight = node.inputs[:2]
        if value is None or weight is None or self.fixed(value) or not self.fixed(weight):
            return False
        shape = self.known[weight.name or ""].fixed
        plain = node.attributes.get_int("group", 1) == 1 and not node.attributes.get_int("transA", 0)
        return shape is not None and plain and (len(shape) == 2 or node.op_type == "Conv")

    def back(self, value: ir.Value) -> ir.Value | None:
        """What a value is computed from, where that is one value and no weights: by a Softmax, a Reshape, a mean."""
        node = value.producer()
        if node is None or value is not node.outputs[0] or inner_graphs(node):
            return None
        moving = self.moving(node)
        if len(moving) != 1 or self.linear(node) or any(map(self.holds_weights, node.inputs)):
            return None
        return moving[0]

    def moving(self, node: ir.Node) -> list[ir.Value]:
        """What the node reads that is no constant."""
        return [one for one in node.inputs if one is not None and one not in self._constant]

    def answer(self, value: ir.Value) -> ir.Value:
        """The value that the last layer with weights made of it: two outputs of one answer say the same."""
        while (source := self.back(value)) is not None:
            value = source
        return value


@dataclasses.dataclass(frozen=True)
class _Source:
    """A value to read, the sizes of its axes, how many of them are channels, and its type."""

    value: ir.Value
    dims: tuple[Dim, ...]
    channels: int
    dtype: ir.DataType


class _Surgery:
    """One edit of a model, for the output called `name`."""

    def __init__(self, model: ir.Model, options: HeadOptions, seed: int, name: str) -> None:
        """`model`: a copy, which is edited."""
        if options.include or options.exclude:
            option = "include" if options.include else "exclude"
            raise RecipeError(
                "recipe.wrong-value",
                f"step `{options.step}` is about one output and takes no `{option}`",
                option=(option,),
            )
        self.model, self.editor, self._name, self._width = model, Editor(model), name, options.width
        self._layers = Layers(model)
        self._random = np.random.default_rng([seed, *name.encode()])

    def source(self, name: str) -> _Source:
        """The value of that name. Raises RecipeError where there is none, ModelError where a layer cannot read it."""
        graph = self.model.graph
        made = [value for node in graph for value in node.outputs if value.name]
        values = {value.name: value for value in (*made[::-1], *graph.inputs) if not self._layers.fixed(value)}
        if name not in values:
            hint = nearest(name, [known or "" for known in values], what="from the last one")
            raise RecipeError("head.value", f"the graph has no value `{name}`", hint=hint, option=("at",))
        value, dtype = values[name], self._layers.known[name].dtype or values[name].dtype
        dims: tuple[Dim, ...] | None = self._layers.known[name].shape
        if not dims or not isinstance(dims[_channel_axis(dims)], int):
            dims = self._settled(name) or dims
        shown = "of a shape that is not known" if dims is None else f"[{', '.join(str(size or '?') for size in dims)}]"
        if dtype not in FLOATS or dtype is None:
            raise _misfit(f"`{name}` holds no floats")
        if dims is None or len(dims) not in _READS:
            raise _misfit(f"`{name}` is {shown}")
        channels = dims[_channel_axis(dims)]
        if not isinstance(channels, int):
            raise _misfit(f"`{name}` is {shown}: the number of its channels is open")
        return _Source(value, dims, channels, dtype)

    def _settled(self, name: str) -> tuple[Dim, ...] | None:
        """What is the same for two sizes of the inputs: exporters compute the shapes of Reshapes from them."""
        try:
            feeds = [default_feeds(self.model, *sizes) for sizes in ((1, 32), (2, 64))]
        except LeptonError:
            return None
        first, second = (settle(self.model, one)[0].get(name) for one in feeds)
        if first is None or second is None or len(first) != len(second):
            return None
        return tuple(one if one == other else None for one, other in zip(first, second, strict=True))

    def head(self, source: _Source) -> ir.Value:
        """A linear layer for a row of channels a sample: its result, `[samples, width]`."""
        value, nodes = source.value, []
        if len(source.dims) == 4:
            nodes.append(ir.node("GlobalAveragePool", [value], name=f"{self._name}.pool"))
            nodes.append(ir.node("Flatten", [nodes[0].outputs[0]], {"axis": 1}, name=f"{self._name}.flatten"))
        elif len(source.dims) == 3:
            nodes.append(self._mean(value))
        nodes.append(self._gemm(nodes[-1].outputs[0] if nodes else value, source.channels, source.dtype))
        made = self._appended(nodes, source.dtype)
        declared = source.value.shape
        made.shape = ir.Shape([source.dims[0] if not declared else declared[0], self._width])
        return made

    def _mean(self, value: ir.Value) -> ir.Node:
        name = f"{self._name}.mean"
        if shapes.opset(self.model) < 18:
            return ir.node("ReduceMean", [value], {"axes": [1], "keepdims": 0}, name=name)
        axes = self.editor.constant(f"{name}.axes", np.array([1], np.int64))
        return ir.node("ReduceMean", [value, axes], {"keepdims": 0}, name=name)

    def _gemm(self, value: ir.Value, inner: int, dtype: ir.DataType) -> ir.Node:
        old = {"broadcast": 1} if shapes.opset(self.model) < 7 else {}
        inputs = [value, self._weight((self._width, inner), inner, dtype), self._bias((self._width,), dtype)]
        return ir.node("Gemm", inputs, {"transB": 1, **old}, name=f"{self._name}.linear")

    def _weight(self, shape: Sequence[int], inner: int, dtype: ir.DataType) -> ir.Value:
        """Uniform up to 1 over the root of how many are added up; the same for the same seed and name of the output."""
        return self._constant("weight", self._random.uniform(-1, 1, shape) / math.sqrt(inner), dtype)

    def _bias(self, shape: Sequence[int], dtype: ir.DataType) -> ir.Value:
        return self._constant("bias", np.zeros(shape), dtype)

    def _constant(self, part: str, array: NDArray[np.floating], dtype: ir.DataType) -> ir.Value:
        return self.editor.constant(f"{self._name}.{part}", array.astype(dtype.numpy()))

    def _appended(self, nodes: Sequence[ir.Node], dtype: ir.DataType) -> ir.Value:
        """At the end of the graph; returns what the last one computes."""
        for node in nodes:
            node.name = self.editor.name(node.name or node.op_type)
            for value in node.outputs:
                value.name = self.editor.name(f"{node.name}.out")
                value.type = value.type or ir.TensorType(dtype)
        self.model.graph.extend(nodes)
        return nodes[-1].outputs[0]

    def again(self, output: ir.Value) -> Outcome:
        """The last linear layer with new weights, and what lies between it and the output once more.

        What else reads the old layer goes on doing so. Raises ModelError where there is none.
        """
        path = self._path(output)
        layer, source = path[0], path[0].inputs[0]
        assert source is not None
        first, before, inner, dtype = self._layer(layer)
        made, value = [first], first.outputs[0]
        for node, previous in zip(path[1:], path, strict=False):
            inputs = [value if one is previous.outputs[0] else self._resized(one, before, dtype) for one in node.inputs]
            made.append(ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), name=node.name))
            value = made[-1].outputs[0]
            value.type = node.outputs[0].type
        self._appended(made, dtype)
        self.put(output, value)
        for old, new in zip(path, made, strict=True):
            if old.graph is None:
                new.name = old.name
        value.shape = output.shape and ir.Shape([self._width if size == before else size for size in output.shape])
        self._compare(before)
        read = _Source(source, (), inner, dtype)
        return self.outcome(value, "replaced", read, "" if layer.graph is None else layer.name or "")

    def _path(self, output: ir.Value) -> list[ir.Node]:
        """From the last linear layer to the output."""
        path: list[ir.Node] = []
        value: ir.Value | None = output
        while value is not None:
            node, back = value.producer(), self._layers.back(value)
            if node is None:
                break
            path = [node, *path]
            if self._layers.linear(node):
                return path
            value = self._without_bias(node) if back is None else back
        raise ModelError(
            "head.no-layer",
            f"`{output.name}` has no last layer of Gemm, MatMul or Conv",
            cause=f"`{path[0].name}` ({path[0].op_type}) is no such layer, or reads several values"
            if path
            else "it is an input of the model",
            hint=_AT,
        )

    def _without_bias(self, node: ir.Node) -> ir.Value | None:
        """What the node adds a constant to, where that is the result of a layer."""
        moving = self._layers.moving(node)
        behind = moving[0].producer() if node.op_type == "Add" and len(moving) == 1 else None
        return moving[0] if behind is not None and self._layers.linear(behind) else None

    def _layer(self, layer: ir.Node) -> tuple[ir.Node, int, int, ir.DataType]:
        """The layer with new weights; its width before, how many numbers each of its sums has, and their type."""
        value, weight = layer.inputs[:2]
        assert value is not None
        assert weight is not None
        known = self._layers.known[weight.name or ""]
        assert known.fixed is not None
        shape, dtype = known.fixed, known.dtype or ir.DataType.FLOAT
        if layer.op_type == "Conv":
            inner = math.prod(shape[1:])
            inputs = [self._weight((self._width, *shape[1:]), inner, dtype), self._bias((self._width,), dtype)]
            made = ir.Node("", "Conv", [value, *inputs], layer.attributes.values(), name=layer.name)
            return made, shape[0], inner, dtype
        if layer.op_type == "MatMul":
            made = ir.node("MatMul", [value, self._weight((shape[0], self._width), shape[0], dtype)], name=layer.name)
            return made, shape[1], shape[0], dtype
        before, inner = shape if layer.attributes.get_int("transB", 0) else shape[::-1]
        return self._gemm(value, inner, dtype), before, inner, dtype

    def _resized(self, value: ir.Value | None, before: int, dtype: ir.DataType) -> ir.Value | None:
        """What a node behind the layer reads besides: a bias becomes zeros, the target of a Reshape gets the width."""
        if value is None:
            return None
        if self._layers.holds_weights(value):
            shape = self._layers.known[value.name or ""].fixed or ()
            return self._bias([self._width if size == before else size for size in shape], dtype)
        target = _integers(value)
        if before == self._width or target is None or list(target).count(before) != 1:
            return value
        return self.editor.constant(f"{self._name}.shape", np.where(target == before, self._width, target))

    def put(self, output: ir.Value, made: ir.Value) -> None:
        """A value as the output in the place of another, under its name; what only the old one needed is gone."""
        outputs = self.model.graph.outputs
        outputs[list(outputs).index(output)] = made
        output.name = self.editor.name(f"{self._name}.before")
        made.name = self._name
        clean.remove_unused(self.model)

    def _compare(self, before: int) -> None:
        """Raise ModelError unless the output is what it was but for the axis of the layer's results."""
        old, new = self._layers.known[self._name].shape, shapes.infer(self.model)[self._name].shape
        if old is None or new is None:
            return
        moved = [pair for pair in zip(old, new, strict=False) if pair[0] != pair[1]]
        if len(old) != len(new) or moved != [(before, self._width)] * (before != self._width):
            raise ModelError(
                "head.shape",
                f"with {self._width} numbers instead of {before} `{self._name}` would be {list(new)}, not {list(old)}",
                hint=_AT,
            )

    def outcome(self, made: ir.Value, action: str, source: _Source, left: str = "") -> Outcome:
        """What was done; `left`: the layer before, where others read it."""
        at = source.value.name or ""
        read = f"{_READS.get(len(source.dims), '')}`{at}` ({source.channels} channels)"
        node = next(node for node in reversed(list(self.model.graph)) if node.op_type in ("Gemm", "MatMul", "Conv"))
        decision = Decision(
            node=node.name or "", op=node.op_type, action=action, reason=f"{self._width} numbers from {read}"
        )
        details = HeadDetails(output=self._name, at=at, channels=source.channels, width=self._width, left=left)
        warning = f"other outputs are still computed from the layer before, `{left}`"
        said = f"output {next(one for one in io.outputs(self.model) if one.name == self._name)} {action}"
        return Outcome(self.model, 1, (decision,), said, details, warnings=(warning,) if left else (), tolerance=_SAME)


def _output(model: ir.Model, options: HeadReplace) -> ir.Value:
    """Raises RecipeError where the model has no such output, or several of floats."""
    names = options.new_outputs(io.outputs(model))
    values = {value.name or "": value for value in model.graph.outputs}
    if names and names[0] in values:
        return values[names[0]]
    floats = [info.name for info in io.outputs(model) if info.floating]
    raise RecipeError(
        "head.output",
        f"{len(floats)} outputs of the model are floats" if not names else f"the model has no output `{names[0]}`",
        hint=nearest(options.output or "", floats, what="its outputs of floats"),
        option=("output",),
    )


def _channel_axis(dims: Sequence[Dim]) -> int:
    return 1 if len(dims) == 4 else len(dims) - 1


def _integers(value: ir.Value) -> NDArray[np.int64] | None:
    """Constant whole numbers in a list."""
    tensor, node = value.const_value, value.producer()
    if tensor is None and node is not None and node.op_type == "Constant" and "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
    return (
        tensor.numpy() if tensor is not None and tensor.dtype == ir.DataType.INT64 and len(tensor.shape) == 1 else None
    )


def _misfit(said: str) -> ModelError:
    hint = (
        "a head reads [samples, channels], [samples, length, channels] or [samples, channels, height, width] of floats"
    )
    return ModelError("head.value", said, hint=hint, option=("at",))
