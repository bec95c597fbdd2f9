"""Graphs as exporters write them: what every member of the corpus is built with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.quantize.builders import Graph

FLOAT, INT64, BOOL, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING
Feed = dict[str, np.ndarray]
Shape = list[int | str]
Form = Literal["inline", "external", "function"]


@dataclasses.dataclass(frozen=True)
class Member:
    """One model of the corpus. `feed`: one complete feed, as onnxruntime takes it.

    `form`: how its file is written. `parts`: output -> edges on its last axis between which values have a unit of
    their own. `decides`: sizes of outputs follow from values, so that they cannot be compared value by value.
    """

    make: Callable[[], onnx.ModelProto]
    feed: Callable[[np.random.Generator], Feed]
    form: Form = "inline"
    parts: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    decides: bool = False

    def save(self, path: Path) -> Path:
        """The file, in the form in which exporters leave such models."""
        proto = self.make()
        if self.form == "function":
            proto = in_function(proto)
        external = {"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 256}
        onnx.save(proto, path, **(external if self.form == "external" else {}))
        return path


def in_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    """All nodes as a function of the exporter's own, which takes the weights as arguments."""
    names = [value.name for value in (*proto.graph.input, *proto.graph.initializer)]
    outputs = [value.name for value in proto.graph.output]
    proto.functions.append(
        helper.make_function("pkg.exported", "Model", names, outputs, list(proto.graph.node), proto.opset_import)
    )
    proto.opset_import.append(helper.make_opsetid("pkg.exported", 1))
    del proto.graph.node[:]
    proto.graph.node.append(helper.make_node("Model", names, outputs, "Model_0", domain="pkg.exported"))
    return proto


class Net(Graph):
    """A float model in the making; values are called by name. `prefix`: of all names, for the body of a branch."""

    def __init__(self, opset: int = 17, seed: int = 0, prefix: str = "") -> None:
        super().__init__(opset, seed)
        self.prefix = prefix

    def constant(self, array: Any) -> str:
        name = self.prefix + super().constant(array)
        self.weights[-1].name = name
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        super().op(kind, *inputs, outputs=outputs, **attributes)
        node = self.nodes[-1]
        node.name = self.prefix + node.name
        node.output[:] = [self.prefix + name for name in node.output]
        return node.output[0] if outputs == 1 else list(node.output)

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        return self.constant(np.float32(value))

    def whole(self, value: int) -> str:
        return self.constant(np.int64(value))

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """Of unit gain for inputs on the last axis but one."""
        deviation = shape[-2] ** -0.5 if scale is None and len(shape) > 1 else scale or 0.1
        return self.constant(self.random.normal(0, deviation, shape).astype(np.float32))

    def near_one(self, *shape: int) -> str:
        return self.constant((1 + self.random.normal(0, 0.1, shape)).astype(np.float32))

    def projected(self, x: str, inner: int, outer: int, bias: bool = True) -> str:
        """MatMul and Add, as exporters write a linear layer on three axes."""
        y = str(self.op("MatMul", x, self.weight(inner, outer)))
        return str(self.op("Add", y, self.weight(outer))) if bias else y

    def reshape(self, x: str, *dims: int) -> str:
        return str(self.op("Reshape", x, self.integers(*dims)))

    def transpose(self, x: str, *perm: int) -> str:
        return str(self.op("Transpose", x, perm=list(perm)))

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        return str(self.op("Slice", x, *(self.integers(value) for value in (start, end, axis, step))))

    def size(self, x: str, axis: int) -> str:
        """One element: the size of an axis, read while running."""
        return str(self.op("Gather", self.op("Shape", x), self.integers(axis), axis=0))

    def layer_norm(self, x: str, width: int) -> str:
        """In its parts before operator set 17."""
        if self.opset >= 17:
            return str(
                self.op("LayerNormalization", x, self.near_one(width), self.weight(width), axis=-1, epsilon=1e-5)
            )
        apart = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        power = self.op("ReduceMean", self.op("Pow", apart, self.scalar(2)), axes=[-1])
        y = self.op("Div", apart, self.op("Sqrt", self.op("Add", power, self.scalar(1e-5))))
        return str(self.op("Add", self.op("Mul", y, self.near_one(width)), self.weight(width)))

    def batch_norm(self, x: str, width: int) -> str:
        arrays = [self.near_one(width), self.weight(width), self.weight(width)]
        variance = self.constant(self.random.uniform(0.5, 1.5, width).astype(np.float32))
        return str(self.op("BatchNormalization", x, *arrays, variance))

    def silu(self, x: str) -> str:
        return str(self.op("Mul", x, self.op("Sigmoid", x)))

    def gelu(self, x: str) -> str:
        """By the error function, as written before operator set 20."""
        if self.opset >= 20:
            return str(self.op("Gelu", x))
        inner = self.op("Add", self.op("Erf", self.op("Div", x, self.scalar(2**0.5))), self.scalar(1))
        return str(self.op("Mul", self.op("Mul", x, inner), self.scalar(0.5)))

    def heads(self, x: str, count: int, size: int, *, turned: bool = False) -> str:
        """[batch, places, count * size] to [batch, count, places, size]; `turned`: the last two axes exchanged."""
        return self.transpose(self.reshape(x, 0, -1, count, size), *((0, 2, 3, 1) if turned else (0, 2, 1, 3)))

    def attend(self, query: str, turned_key: str, value: str, count: int, size: int, mask: str = "") -> str:
        """Attention over heads, back in [batch, places, count * size]."""
        scores = self.op("Mul", self.op("MatMul", query, turned_key), self.scalar(size**-0.5))
        scores = self.op("Add", scores, mask) if mask else scores
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), value)
        return self.reshape(self.transpose(mixed, 0, 2, 1, 3), 0, -1, count * size)

    def attention(self, x: str, width: int, count: int, mask: str = "", memory: str = "") -> str:
        """Self-attention, or cross-attention to `memory`."""
        size = width // count
        query = self.heads(self.projected(x, width, width), count, size)
        key = self.heads(self.projected(memory or x, width, width), count, size, turned=True)
        value = self.heads(self.projected(memory or x, width, width), count, size)
        return self.projected(self.attend(query, key, value, count, size, mask), width, width)

    def block(self, x: str, width: int, count: int, mask: str = "", memory: str = "") -> str:
        """A transformer block with norms first."""
        x = self.op("Add", x, self.attention(self.layer_norm(x, width), width, count, mask))
        if memory:
            x = self.op("Add", x, self.attention(self.layer_norm(x, width), width, count, memory=memory))
        inner = self.gelu(self.projected(self.layer_norm(x, width), width, 2 * width))
        return str(self.op("Add", x, self.projected(inner, 2 * width, width)))

    def causal(self, x: str) -> str:
        """[places, places]: zero up to the own place, very negative beyond, made while running."""
        count = self.size(x, 1)
        full = self.op("Expand", self.scalar(-1e4), self.op("Concat", count, count, axis=0))
        return str(self.op("Trilu", full, self.whole(1), upper=1))

    def named(self, value: str, name: str) -> str:
        """The same value under the name of an output."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"Identity_{name}"))
        return name

    def proto(self, outputs: Mapping[str, tuple[str, Shape | None]], kinds: Mapping[str, int] | None = None) -> Any:
        """The model. `outputs`: name -> (value, shape)."""
        infos = []
        for name, (value, shape) in outputs.items():
            self.named(value, name)
            infos.append(helper.make_tensor_value_info(name, (kinds or {}).get(name, FLOAT), shape))
        graph = helper.make_graph(self.nodes, "main_graph", self.inputs, infos, self.weights)
        domains = {"": self.opset} | {node.domain: 1 for node in self.nodes if node.domain}
        imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        return helper.make_model(graph, opset_imports=imports, ir_version=10 if self.opset > 20 else 8)


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.normal(0, 1, shape).astype(np.float32)
