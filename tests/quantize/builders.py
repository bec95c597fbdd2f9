"""Small models, data and a context for tests of quantization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from lepton_cli.cache import Cache
from lepton_cli.data.dataset import Batch, Dataset
from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.quantize import choose, qdq
from lepton_cli.quantize.targets import TARGETS
from lepton_cli.runtime import Session
from lepton_cli.step import Context


def context(data: Dataset | None, workdir: Path, cache: Path | None = None, **options: Any) -> Context:
    """A context with calibration data `data` and defaults for everything else."""
    defaults: dict[str, Any] = {
        "evaluation": None,
        "training": None,
        "base": workdir,
        "check": data,
        "original": None,
        "score": None,
        "provider": "cpu",
        "batch": 1,
        "threads": 1,
        "seed": 0,
        "progress": Silent(),
        "workdir": workdir,
        "cache": Cache(cache),
    }
    return Context(calibration=data, **(defaults | options))


class Graph:
    """Builds a float model node by node; `take` and every operator return the name of a tensor."""

    def __init__(self, opset: int = 17, seed: int = 0) -> None:
        self.opset = opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def take(self, name: str, shape: list[int | str] | None, kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        number = len(self.nodes)
        names = [f"t{number}" if i == 0 else f"t{number}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}_{number}", **attributes))
        return names[0] if outputs == 1 else names

    def conv(
        self, x: str, cin: int, cout: int, k: int = 3, *, stride: int = 1, group: int = 1, relu: bool = True
    ) -> str:
        weight = self.random.normal(0, (2 / (cin // group * k * k)) ** 0.5, (cout, cin // group, k, k))
        bias = self.random.normal(0, 0.1, cout)
        pads = [k // 2] * 4
        names = [self.constant(weight.astype(np.float32)), self.constant(bias.astype(np.float32))]
        y: str = self.op("Conv", x, *names, pads=pads, strides=[stride, stride], group=group)
        return self.op("Relu", y) if relu else y

    def linear(self, x: str, inner: int, outer: int, *, gemm: bool = True) -> str:
        weight = self.random.normal(0, inner**-0.5, (outer, inner) if gemm else (inner, outer)).astype(np.float32)
        bias = self.constant(self.random.normal(0, 0.1, outer).astype(np.float32))
        if gemm:
            return str(self.op("Gemm", x, self.constant(weight), bias, transB=1))
        return str(self.op("Add", self.op("MatMul", x, self.constant(weight)), bias))

    def model(self, *outputs: str) -> ir.Model:
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "test", self.inputs, made, self.weights)
        domains = {"": self.opset} | {node.domain: 1 for node in self.nodes if node.domain}
        imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def residual_net(opset: int = 17) -> ir.Model:
    """Two residual blocks, global pooling and a classifier of 10 outputs, input `x` [b, 3, 16, 16]."""
    graph = Graph(opset)
    x = graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 16)
    for _ in range(2):
        y = graph.conv(graph.conv(x, 16, 16), 16, 16, relu=False)
        x = graph.op("Relu", graph.op("Add", y, x))
    x = graph.op("Flatten", graph.op("GlobalAveragePool", x))
    return graph.model(graph.linear(x, 16, 10))


def mlp(opset: int = 17) -> ir.Model:
    """64 -> 128 -> 128 -> 10 with ReLU, input `x` [b, 64]."""
    graph = Graph(opset)
    x = graph.op("Relu", graph.linear(graph.take("x", ["b", 64]), 64, 128))
    x = graph.op("Relu", graph.linear(x, 128, 128, gemm=False))
    return graph.model(graph.linear(x, 128, 10))


def images(count: int = 48, channels: int = 3, size: int = 16, seed: int = 1) -> Arrays:
    return Arrays({"x": np.random.default_rng(seed).normal(0, 1, (count, channels, size, size)).astype(np.float32)})


def rows(count: int = 96, width: int = 64, seed: int = 1) -> Arrays:
    return Arrays({"x": np.random.default_rng(seed).normal(0, 1, (count, width)).astype(np.float32)})


def run(model: ir.Model, data: Arrays) -> np.ndarray:
    """The first output over all samples."""
    session = Session(io.to_bytes(model), threads=1)
    first = session.outputs[0].name
    return np.concatenate([session.run(batch.feeds)[first] for batch in data.batches(16)])


def sqnr(model: ir.Model, other: ir.Model, data: Arrays) -> float:
    """Signal to noise of `other` against `model` in dB."""
    a, b = run(model, data).astype(np.float64), run(other, data).astype(np.float64)
    return float(10 * np.log10(np.square(a).sum() / max(np.square(a - b).sum(), 1e-30)))


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


Apply = Callable[..., Any]


def _batch_norm(graph: Graph, x: str, width: int, dead: int) -> str:
    """Batch norm; every `dead`-th channel is nearly switched off (scale 1e-5, variance 1e-8), as trained nets have."""
    off = np.arange(width) % dead == 0 if dead else np.zeros(width, dtype=bool)
    arrays = (
        np.where(off, 1e-5, graph.random.uniform(0.5, 1.5, width)),
        np.where(off, 0.02, graph.random.normal(0, 0.2, width)),
        np.where(off, 1e-4, graph.random.normal(0, 0.1, width)),
        np.where(off, 1e-8, graph.random.uniform(0.5, 1.5, width)),
    )
    return str(graph.op("BatchNormalization", x, *(graph.constant(array.astype(np.float32)) for array in arrays)))


def inverted_residual_net() -> ir.Model:
    """MobileNetV2 in small: expand, depthwise, project with ReLU6 and batch norm; input `x` [b, 3, 16, 16]."""
    graph = Graph()
    limits = [graph.constant(np.float32(value)) for value in (0.0, 6.0)]

    def layer(x: str, cin: int, cout: int, k: int, group: int = 1, clip: bool = True) -> str:
        y = _batch_norm(graph, graph.conv(x, cin, cout, k, group=group, relu=False), cout, dead=5)
        return str(graph.op("Clip", y, *limits)) if clip else y

    x = layer(graph.take("x", ["b", 3, 16, 16]), 3, 16, 3)
    for _ in range(2):
        y = layer(layer(x, 16, 48, 1), 48, 48, 3, group=48)
        x = graph.op("Add", layer(y, 48, 16, 1, clip=False), x)
    x = graph.op("Flatten", graph.op("GlobalAveragePool", layer(x, 16, 32, 1)))
    return graph.model(graph.linear(x, 32, 10))


def dense_net() -> ir.Model:
    """DenseNet in small: batch norm, ReLU, Conv, Concat, with nearly dead channels; input `x` [b, 3, 16, 16]."""
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 16, relu=False)
    for width in (16, 28, 40):
        y = graph.conv(graph.op("Relu", _batch_norm(graph, x, width, dead=4)), width, 24, 1, relu=False)
        y = graph.conv(graph.op("Relu", _batch_norm(graph, y, 24, dead=4)), 24, 12, relu=False)
        x = graph.op("Concat", x, y, axis=1)
    x = graph.op("Relu", _batch_norm(graph, x, 52, dead=4))
    return graph.model(graph.linear(graph.op("Flatten", graph.op("GlobalAveragePool", x)), 52, 10))


class WithConstants(Arrays):
    """Samples beside inputs that are the same in every batch: states, scalars."""

    def __init__(self, constants: dict[str, np.ndarray], **feeds: np.ndarray) -> None:
        super().__init__(feeds)
        self.constants = constants

    def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        for batch in super().batches(size, limit):
            yield Batch({**self.constants, **batch.feeds}, {}, batch.start)


class Told:
    """Progress that keeps what its stages were told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.counts: list[int] = []
        self.notes: list[str] = []

    def stage(self, name: str, total: int | None = None) -> Told:
        self.stages.append((name, total))
        return self

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def advance(self, count: int = 1) -> None:
        self.counts.append(count)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *exc: object) -> None: ...


class Scalars(Arrays):
    """Batches of one number `x` each, without any axis."""

    def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        for start, value in enumerate(self.feeds["x"]):
            yield Batch({"x": np.asarray(value)}, {}, start)


def chosen(model: ir.Model) -> choose.Choice:
    """All that can become int8."""
    return choose.candidates(model, {node.name or "" for node in model.graph})


def quantized(model: ir.Model, choice: choose.Choice | None = None) -> ir.Model:
    """Everything in int8, between -3 and 3."""
    choice = choice or chosen(model)
    ranges = {
        name: ((0.0, 3.0) if name in _relus(model) else (-3.0, 3.0)) for name in choose.activations(model, choice)
    }
    return qdq.write(model, qdq.Scheme(TARGETS["x86"], choice, ranges))


def write(model: ir.Model, ranges: Mapping[str, tuple[float, float]], **options: Any) -> ir.Model:
    """In int8 between these ranges, for AVX512-VNNI and whole if `options` of the scheme say nothing else."""
    target, choice = options.pop("target", TARGETS["x86-vnni"]), options.pop("choice", None) or chosen(model)
    return qdq.write(model, qdq.Scheme(target, choice, ranges, **options))


def _relus(model: ir.Model) -> set[str]:
    return {node.outputs[0].name or "" for node in model.graph if node.op_type == "Relu"}


def chain(*layers: tuple[int, int]) -> ir.Model:
    """Conv_0, Conv_2, ...: 8 channels in and out on pictures of 8 x 8, each with its kernel and its dilation."""
    graph = Graph()
    x = graph.take("x", [1, 8, 8, 8])
    for kernel, dilation in layers:
        weight = graph.constant(np.zeros((8, 8, kernel, kernel), np.float32))
        edge = kernel // 2 * dilation
        x = graph.op("Relu", graph.op("Conv", x, weight, pads=[edge] * 4, dilations=[dilation] * 2))
    return graph.model(x)
