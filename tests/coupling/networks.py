"""Small networks built in code, and the test that pruning zeroed channels changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lepton_cli import runtime
from lepton_cli.coupling import analyse, cut, known_shapes, links
from lepton_cli.graph import edit
from lepton_cli.graph.feeds import default_feeds
from lepton_cli.model import io


class Network:
    """Collects nodes and random weights; every method adds a node and returns its output's name."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, *shape: int | str) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def weight(self, *shape: int, values: NDArray[Any] | None = None) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = self.random.normal(0, 0.5, shape).astype(np.float32) if values is None else values
        return name

    def literal(self, *numbers: int) -> str:
        return self.weight(values=np.array(numbers, np.int64))

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        names = [name + (f"_{k}" if k else "") + "_out" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return names[0]

    def conv(
        self, x: str, channels_in: int, channels_out: int, kernel: int = 3, group: int = 1, stride: int = 1
    ) -> str:
        w = self.weight(channels_out, channels_in // group, kernel, kernel)
        pad = [kernel // 2] * 4
        return self.node("Conv", x, w, self.weight(channels_out), group=group, pads=pad, strides=[stride, stride])

    def norm(self, x: str, channels: int) -> str:
        variance = self.weight(values=self.random.uniform(0.5, 2, channels).astype(np.float32))
        parameters = [self.weight(channels), self.weight(channels), self.weight(channels), variance]
        return self.node("BatchNormalization", x, *parameters)

    def linear(self, x: str, features: int, outputs: int) -> str:
        return self.node("Add", self.node("MatMul", x, self.weight(features, outputs)), self.weight(outputs))

    def model(self, *outputs: str) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "test",
            self.inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        proto = onnx.shape_inference.infer_shapes(proto)
        onnx.checker.check_model(proto)
        return ir.from_proto(proto)


def analysed(model: ir.Model, batch: int = 2, other: int = 8) -> tuple[ir.Model, links.Coupling]:
    prepared, facts = known_shapes.prepare(model, default_feeds(model, batch, other))
    return prepared, analyse.analyse(prepared, facts)


def run(model: ir.Model, batch: int, other: int = 8) -> list[NDArray[Any]]:
    random = np.random.default_rng(1)
    feeds = {
        name: random.normal(size=shape).astype(np.float32) for name, shape in default_feeds(model, batch, other).items()
    }
    return list(runtime.Session(io.to_bytes(model), threads=1).run(feeds).values())


def zeroed(model: ir.Model, groups: list[tuple[links.Group, NDArray[np.int64]]]) -> ir.Model:
    """A copy in which every slice of these channels is zero (variances are one)."""
    copy = io.clone(model)
    arrays: dict[str, NDArray[Any]] = {}
    for group, channels in groups:
        for (name, axis), positions in group.slices.items():
            value = copy.graph.initializers[name]
            array = arrays.setdefault(name, value.const_value.numpy().copy())
            variance = any(node.op_type == "BatchNormalization" and index == 4 for node, index in value.uses())
            np.moveaxis(array, axis, 0)[positions[channels].ravel()] = 1 if variance else 0
    for name, array in arrays.items():
        edit.set_weight(copy.graph.initializers[name], array)
    return copy


def assert_zeroed_equals_cut(model: ir.Model, *, share: float = 0.4, seed: int = 0, other: int = 8) -> ir.Model:
    """Zero some channels of every prunable group: cutting them must not change the outputs. Returns the cut model."""
    prepared, found = analysed(model, other=other)
    random = np.random.default_rng(seed)
    groups = []
    for group in found.groups:
        if group.frozen is None and group.channels > 1:
            count = min(group.channels - 1, max(1, round(share * group.channels)))
            groups.append((group, np.sort(random.permutation(group.channels)[:count])))
    assert groups, [(group.name, group.frozen) for group in found.groups]
    removed = np.concatenate([group.atoms[channels] for group, channels in groups])
    before, after = zeroed(prepared, groups), cut.cut(prepared, found, removed)
    onnx.checker.check_model(ir.to_proto(after))
    for batch, size in ((2, other), (3, other), (1, other)):
        for one, two in zip(run(before, batch, size), run(after, batch, size), strict=True):
            assert one.shape == two.shape
            np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-5 * max(1.0, float(np.abs(one).max())))
    assert io.weight_bytes(after) < io.weight_bytes(prepared)
    return after


def prunable(model: ir.Model) -> dict[str, int]:
    """How many channels the groups have that may lose some."""
    return {group.name: group.channels for group in analysed(model)[1].groups if group.frozen is None}


def check(n: Network, output: str, channels: dict[str, int], share: float = 0.4) -> ir.Model:
    """The network without channels that are zero; these groups may lose some, and no others."""
    model = n.model(output)
    assert prunable(model) == channels
    return assert_zeroed_equals_cut(model, share=share)
