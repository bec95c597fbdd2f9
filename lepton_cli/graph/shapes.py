"""Concrete shapes of every tensor for given input shapes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from lepton_cli import scratch
from lepton_cli.errors import LeptonError
from lepton_cli.graph.edit import initializer, inner_graphs, is_constant
from lepton_cli.model import io
from lepton_cli.tensors import Dim

Shapes = dict[str, tuple[int, ...]]


#: Initializers above this many bytes stay out of the message that onnx infers shapes from: it is copied twice.
_LARGE = 1024
#: Bytes of weights up to which a model is run just to look at it.
RUN_BELOW = 100_000_000
#: Values of an input above which a model is not run just to look at it.
MOST_VALUES = 100_000_000
#: Operators whose output is of the first input's shape: onnxruntime's own, and those that onnx's inference leaves open.
_SHAPE_KEEPING = frozenset(
    {"BiasGelu", "FastGelu", "QuickGelu", "SimplifiedLayerNormalization", "SkipLayerNormalization", "BiasAdd"}
    | {"SkipSimplifiedLayerNormalization", "RotaryEmbedding", "GroupNormalization"}
)
#: Operators that slide a window over their input.
WINDOWS = frozenset({"AveragePool", "Conv", "ConvInteger", "LpPool", "MaxPool", "QLinearConv"})
#: No dimension that a model computes from constants is longer.
_LONGEST = 1_000_000


@dataclasses.dataclass(frozen=True)
class Inferred:
    """What is known of a value without running: `None` for open dimensions, for an open rank, for an open type."""

    shape: tuple[int | None, ...] | None
    dtype: ir.DataType | None

    @property
    def fixed(self) -> tuple[int, ...] | None:
        """The shape when every dimension is known."""
        if self.shape is None or None in self.shape:
            return None
        return tuple(d for d in self.shape if d is not None)


def infer(model: ir.Model, feeds: Mapping[str, Sequence[int]] | None = None) -> dict[str, Inferred]:
    """Shapes and types of the main graph's values as ONNX's own inference finds them; `feeds`: input shapes to assume.

    Shapes stored in the model are dropped first, those of outputs and of inner graphs too: exporters leave wrong ones,
    and nobody enforces them. Where inference fails, shapes stay open.
    """
    return {
        name: Inferred(None if dims is None else tuple(d if isinstance(d, int) else None for d in dims), dtype)
        for name, (dims, dtype) in _inferred(model, feeds).items()
    }


def symbolic(model: ir.Model, feeds: Mapping[str, Sequence[Dim]]) -> dict[str, tuple[Dim, ...]]:
    """As `infer`, but sizes that `feeds` gives as names are followed through the graph. Open ranks are left out."""
    return {name: dims for name, (dims, _) in _inferred(model, feeds).items() if dims is not None}


def _inferred(
    model: ir.Model, feeds: Mapping[str, Sequence[Dim]] | None
) -> dict[str, tuple[tuple[Dim, ...] | None, ir.DataType | None]]:
    light = io.clone(model)
    for value in light.graph.inputs:
        if feeds and value.name in feeds:
            value.shape = ir.Shape([int(d) if isinstance(d, (int, np.integer)) else d for d in feeds[value.name or ""]])
    _forget_shapes(light)
    found: dict[str, tuple[tuple[Dim, ...] | None, ir.DataType | None]] = {}
    for value in (*light.graph.inputs, *light.graph.initializers.values()):
        found[value.name or ""] = _known(value)
    for node in light.graph:
        for output in node.outputs:
            found[output.name or ""] = (None, output.dtype)
    _make_light(light)
    _as_standard(light)
    try:
        proto = _proto_inferred(light, data_prop=not _unfolds(light))
    except Exception:  # onnx raises its own and protobuf's types; an open shape is an answer too
        return found
    for info in (*proto.graph.value_info, *proto.graph.output):
        kind = info.type.tensor_type
        before = found.get(info.name)
        if before is None or before[0] is not None:
            continue
        dims = tuple(_dim(dim) for dim in kind.shape.dim)
        dtype = before[1] or (ir.DataType(kind.elem_type) if kind.elem_type else None)
        found[info.name] = (dims if kind.HasField("shape") else None, dtype)
    return found


def contradicts_itself(model: ir.Model) -> bool:
    """Does an operator of the main graph get shapes that it cannot take, so that no runtime can run it?

    What stands in branches and bodies is not looked at, as it need not run; nor are results of these.
    """
    light, known = io.clone(model), infer(model)
    _forget_shapes(light)
    for node in [node for node in light.graph if inner_graphs(node)]:
        for output in node.outputs:
            dtype = known[output.name or ""].dtype
            given = ir.Value(name=f"{output.name}/given", type=ir.TensorType(dtype) if dtype else output.type)
            output.replace_all_uses_with(given, replace_graph_outputs=True)
            light.graph.inputs.append(given)
        light.graph.remove(node, safe=True)
    _make_light(light)
    _as_standard(light)
    try:
        _proto_inferred(light, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return True
    except Exception:  # protobuf's types: nothing is known
        return False
    return False


def _forget_shapes(model: ir.Model) -> None:
    """Drop all shapes but those of the model's inputs and constants, in place.

    Inner graphs get the small constants that they read as their own, where inference sees what is in them.
    """
    for node in model.graph.all_nodes():
        for output in node.outputs:
            output.shape = None
    for graph in model.graph.subgraphs():
        own: dict[ir.Value, ir.Value] = {}
        for value in graph.inputs:
            value.shape = None
        for node in graph:
            for index, read in enumerate(node.inputs):
                if read is None or read.graph is graph or not is_constant(read) or read.const_value is None:
                    continue
                if read.const_value.nbytes <= _LARGE:
                    if read not in own:
                        own[read] = initializer(f"{read.name}/own", read.const_value)
                        graph.register_initializer(own[read])
                    node.replace_input_with(index, own[read])


def _proto_inferred(light: ir.Model, **options: bool) -> onnx.ModelProto:
    """As onnx's inference writes it.

    It ends the process at a Slice of a negative size, such as a convolution makes of an input smaller than its window:
    where there may be one, the Slices behind windows are first looked past.
    """
    proto = io.to_proto(light)
    first = next((at for at, node in enumerate(proto.graph.node) if node.op_type in WINDOWS), len(proto.graph.node))
    hidden = [node for node in proto.graph.node[first:] if node.op_type == "Slice"]
    if hidden:
        for node in hidden:
            node.op_type = "Unknown"
        made = onnx.shape_inference.infer_shapes(proto, **options)
        kinds = (info.type.tensor_type for info in (*made.graph.value_info, *made.graph.output))
        if any(dim.dim_value < 0 for kind in kinds for dim in kind.shape.dim):
            return made
        for node in hidden:
            node.op_type = "Slice"
    return onnx.shape_inference.infer_shapes(proto, **options)


def annotate(model: ir.Model) -> None:
    """Give values of the main graph the types and shapes that inference finds, in place, where they have none.

    Files need not hold them, and the bodies of functions never do.
    """
    found = infer(model)
    for node in model.graph:
        for value in node.outputs:
            known = found.get(value.name or "")
            if known is not None and value.type is None and known.dtype is not None:
                value.type = ir.TensorType(known.dtype)
            if known is not None and value.shape is None and known.shape is not None:
                value.shape = ir.Shape(known.shape)


@contextlib.contextmanager
def inferred_only(model: ir.Model) -> Iterator[None]:
    """Values of the main graph with the types and shapes that inference finds, named sizes included, in place.

    At the end values of the same names have again what was stored of them.
    """
    found = _inferred(model, None)
    stored = {}
    for value in [value for node in model.graph for value in node.outputs]:
        stored[value.name] = value.type, value.shape
        dims, dtype = found.get(value.name or "", (None, None))
        value.shape = None if dims is None else ir.Shape(dims)
        value.type = value.type if dtype is None else ir.TensorType(dtype)
    try:
        yield
    finally:
        for value in [value for node in model.graph for value in node.outputs if value.name in stored]:
            value.type, value.shape = stored[value.name]


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    """A size; open where inputs are too small for what windows over them cut off."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param or None


def _unfolds(model: ir.Model) -> bool:
    """Would onnx, when it propagates values, write out a constant of a size that only an attacker asks for?"""
    if not any(node.op_type == "ConstantOfShape" for node in model.graph):
        return False
    tensors = [value.const_value for value in model.graph.initializers.values()]
    tensors += [node.attributes.get_tensor("value") for node in model.graph if node.op_type == "Constant"]
    small = [tensor for tensor in tensors if tensor is not None and tensor.dtype == ir.DataType.INT64]
    return any(tensor.nbytes <= _LARGE and (tensor.numpy() > _LONGEST).any() for tensor in small)


def _known(value: ir.Value) -> tuple[tuple[Dim, ...] | None, ir.DataType | None]:
    if value.const_value is not None:
        return tuple(value.const_value.shape.numpy()), value.const_value.dtype
    if value.shape is None:
        return None, value.dtype
    return tuple(d if isinstance(d, int) else d.value for d in value.shape), value.dtype


def _as_standard(model: ir.Model) -> None:
    """onnxruntime's own operators as standard ones that make the same shapes, in place: inference knows no others."""
    for node in model.graph:
        if node.op_type in ("FusedConv", "FusedGemm"):
            node.domain, node.op_type = "", node.op_type.removeprefix("Fused")
            for name in [name for name in node.attributes if name.startswith("activation")]:
                node.attributes.pop(name)
            node.resize_inputs(min(len(node.inputs), 3))
        elif node.op_type in _SHAPE_KEEPING and len(node.outputs) == 1:
            node.domain, node.op_type = "", "Identity"
            node.attributes.clear()
            node.resize_inputs(1)


def _make_light(model: ir.Model) -> None:
    """Large initializers become inputs, in place: the message is copied twice, and only small ones hold shapes."""
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _LARGE:
            value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
            value.const_value = None
            model.graph.initializers.pop(name)
            if not value.is_graph_input():
                model.graph.inputs.append(value)
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)


def concrete(model: ir.Model, feeds: Mapping[str, Sequence[int]], *, run: bool = True) -> Shapes:
    """Shape of every value of the main graph when the inputs have the shapes `feeds`.

    What inference leaves open is found by running the model once on zeros (`run=False`: left out of the result).
    Initializers are included.
    """
    inferred = infer(model, feeds)
    shapes = {name: known.fixed for name, known in inferred.items() if name}
    missing = [name for name, shape in shapes.items() if shape is None]
    found = {name: shape for name, shape in shapes.items() if shape is not None}
    if missing and run:
        found.update(_by_running(model, feeds, missing))
    return found


def runnable(model: ir.Model) -> bool:
    """Is the model small enough to be run just to look at it? That takes several times its size in memory."""
    return io.weight_bytes(model) < RUN_BELOW


def _by_running(model: ir.Model, feeds: Mapping[str, Sequence[int]], missing: Sequence[str]) -> Shapes:
    from lepton_cli import runtime

    if any(math.prod(shape) > MOST_VALUES for shape in feeds.values()):
        return {}
    copy = io.clone(model)
    produced = {o.name: o for node in copy.graph for o in node.outputs}
    present = {value.name for value in copy.graph.outputs}
    wanted = [name for name in missing if name in produced]
    copy.graph.outputs.extend(produced[name] for name in wanted if name not in present)
    zeros = {
        info.name: np.zeros(feeds[info.name], _dtype(info.dtype)) for info in io.inputs(model) if info.name in feeds
    }
    try:
        with scratch.folder() as folder:
            session = runtime.Session(io.payload(copy, folder), threads=1, optimise=False)
            results = session.run(zeros, wanted)
    except LeptonError:
        return {}
    return {name: tuple(value.shape) for name, value in results.items() if isinstance(value, np.ndarray)}


@dataclasses.dataclass(frozen=True)
class NodeRun:
    """One run of a node below the main graph: the shapes of its inputs that are there, and of its first output."""

    node: str
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]


def calls(model: ir.Model, feeds: Mapping[str, Sequence[int]]) -> list[NodeRun]:
    """Every run of a node below the main graph when the model runs once on zeros; empty where it does not run."""
    from lepton_cli import runtime

    names = {node.name for graph in model.graphs() if graph is not model.graph for node in graph}
    if not names or any(math.prod(shape) > MOST_VALUES for shape in feeds.values()):
        return []
    zeros = {i.name: np.zeros(feeds[i.name], _dtype(i.dtype)) for i in io.inputs(model) if i.name in feeds}
    with scratch.folder() as folder:
        try:
            source, prefix = io.payload(model, folder), folder / "profile"
            session = runtime.Session(source, threads=1, optimise=False, profile_prefix=prefix)
            session.run(zeros)
            events = json.loads(Path(session.raw.end_profiling()).read_text())
        except (LeptonError, ValueError):
            return []
    found = []
    for event in events:
        name = event.get("name", "").removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name in names and name != event["name"]:
            ins, outs = (_shapes(event["args"].get(f"{which}_type_shape", ())) for which in ("input", "output"))
            if outs:
                found.append(NodeRun(name, ins, outs[0]))
    return found


def _shapes(listed: Sequence[Mapping[str, Sequence[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for one in listed for shape in one.values())


def _dtype(name: str) -> np.dtype:
    return np.dtype(object) if name == "str" else np.dtype(name)


def opset(model: ir.Model) -> int:
    """Version of the standard operator set the model uses (0: none)."""
    return int(model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 0)))
