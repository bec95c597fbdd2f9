"""The graph in torch is the graph: values are onnxruntime's, gradients those of onnxruntime's finite differences."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto

from lepton_cli.errors import StepError
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.train import network
from lepton_cli.train.network import Network
from tests.quantize.builders import Graph, residual_net
from tests.train.test_weights import branching


def ran(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return Session(io.to_bytes(model), threads=1).run(feeds)


def tensors(feeds: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in feeds.items()}


def pictures(count: int = 2, size: int = 16, channels: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(4).normal(size=(count, channels, size, size)).astype(np.float32)}


def test_values_are_those_of_onnxruntime() -> None:
    model = residual_net()
    (name,) = [value.name or "" for value in model.graph.outputs]
    feeds = {model.graph.inputs[0].name or "": pictures()["x"]}
    found = Network(model).run(tensors(feeds))[name].detach().numpy()
    np.testing.assert_allclose(found, ran(model, feeds)[name], rtol=0, atol=1e-5)


def perceptron() -> ir.Model:
    """Small enough for finite differences: smooth, with a weight read twice."""
    graph = Graph()
    shared = graph.constant(np.random.default_rng(0).normal(0, 0.5, (6, 6)).astype(np.float32))
    y = graph.op("Tanh", graph.op("MatMul", graph.take("x", ["b", 6]), shared))
    y = graph.op("Tanh", graph.op("MatMul", y, graph.op("Transpose", shared, perm=[1, 0])))
    return graph.model(graph.linear(y, 6, 3))


def test_gradients_are_finite_differences_of_onnxruntime() -> None:
    model = perceptron()
    feeds = {"x": np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)}
    network = Network(model)
    (output,) = network.outputs
    network.run(tensors(feeds))[output].square().sum().backward()
    step = 1e-2
    for name, parameter in network.parameters.items():
        assert parameter.grad is not None
        slope = np.zeros(parameter.numel())
        before = network.state()
        for place in range(parameter.numel()):
            sums = []
            for way in (step, -step):
                moved = {key: array.copy() for key, array in before.items()}
                moved[name].reshape(-1)[place] += way
                network.load(moved)
                sums.append(float(np.square(ran(network.written(), feeds)[output].astype(np.float64)).sum()))
            slope[place] = (sums[0] - sums[1]) / (2 * step)
        network.load(before)
        np.testing.assert_allclose(parameter.grad.numpy().ravel(), slope, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("on", [True, False])
def test_branches_are_taken_and_trained(on: bool) -> None:
    model = ir.from_proto(branching())
    feeds = {"x": np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32), "on": np.array(on)}
    network = Network(model)
    found = network.run(tensors(feeds))["y"]
    np.testing.assert_allclose(found.detach().numpy(), ran(model, feeds)["y"], rtol=0, atol=1e-6)
    found.sum().backward()
    reached = {name for name, one in network.parameters.items() if one.grad is not None}
    assert reached == {"c", "then_weight" if on else "else_weight"}


def test_inner_values_and_only_what_leads_to_them() -> None:
    graph = Graph()
    inner = graph.op("Relu", graph.linear(graph.take("x", ["b", 4]), 4, 4))
    other = graph.op("Random", inner, domain="nowhere")
    model = graph.model(inner, other)
    network = Network(model)
    feeds = {"x": np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)}
    assert network.run(tensors(feeds), [inner])[inner].shape == (3, 4)
    with pytest.raises(StepError, match="Random_2"):
        network.run(tensors(feeds), [other])


def test_a_weight_that_is_an_input_too_trains_and_can_be_fed() -> None:
    graph = Graph()
    weight = graph.constant(np.eye(4, dtype=np.float32))
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 4]), weight))
    given = model.graph.initializers[weight]
    model.graph.inputs.append(given)
    network = Network(model)
    assert set(network.parameters) == {weight}
    x = np.ones((1, 4), np.float32)
    (output,) = network.outputs
    assert np.array_equal(network.run(tensors({"x": x}))[output].detach().numpy(), x)
    other = network.run(tensors({"x": x, weight: 2 * np.eye(4, dtype=np.float32)}))[output]
    assert np.array_equal(other.numpy(), 2 * x)


def test_only_weights_are_written_back() -> None:
    model = residual_net()
    network = Network(model)
    state = network.state()
    for name in state:
        state[name] += 1
    network.load(state)
    made = network.written()
    before, after = ir.to_proto(model).graph, ir.to_proto(made).graph
    assert [node.SerializeToString() for node in before.node] == [node.SerializeToString() for node in after.node]
    for old, new in zip(before.initializer, after.initializer, strict=True):
        one, other = ir.from_proto(old).numpy(), ir.from_proto(new).numpy()
        assert np.array_equal(other, one + 1 if old.name in state else one)


def test_zeros_of_a_pruned_matrix_stay_zeros() -> None:
    graph = Graph()
    weight = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    weight[weight < 0] = 0
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 8]), graph.constant(weight)))
    network = Network(model)
    with torch.no_grad():
        network.parameters["w0"].add_(1)
    network.mask()
    assert np.array_equal(network.state()["w0"] == 0, weight == 0)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_half_precision_trains_in_float32(kind: type) -> None:
    graph = Graph()
    weight = np.random.default_rng(0).normal(size=(6, 4)).astype(kind)
    code = TensorProto.FLOAT16 if kind is np.float16 else TensorProto.FLOAT
    y = graph.op("MatMul", graph.op("Cast", graph.take("x", ["b", 6]), to=code), graph.constant(weight))
    model = graph.model(graph.op("Cast", graph.op("Add", y, graph.constant(np.ones(4, kind))), to=TensorProto.FLOAT))
    feeds = {"x": np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)}
    network = Network(model)
    (output,) = network.outputs
    found = network.run(tensors(feeds))[output]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().numpy(), ran(model, feeds)[output], rtol=0, atol=1e-2)
    found.sum().backward()
    assert network.parameters["w0"].dtype == torch.float32
    network.load({name: array + np.float32(1e-5) for name, array in network.state().items()})
    held = network.written().graph.initializers["w0"].const_value
    assert held is not None
    assert held.numpy().dtype == kind


def test_a_teacher_has_nothing_that_trains() -> None:
    network = Network(perceptron(), ())
    assert network.parameters == {}
    assert not network.run(tensors({"x": np.ones((1, 6), np.float32)}))[network.outputs[0]].requires_grad


def test_a_node_that_fails_is_named() -> None:
    model = perceptron()
    with pytest.raises(StepError, match="MatMul_0"):
        Network(model).run(tensors({"x": np.ones((1, 5), np.float32)}))
    with pytest.raises(StepError, match="`x` has no value"):
        Network(model).run({})


def test_whole_numbers_join_floats_on_their_device_unless_python_reads_them() -> None:
    """With torch's `meta` device in the place of a GPU: it has shapes and no numbers."""
    table, places = torch.zeros(10, 4, device="meta"), torch.tensor([1, 2])
    found = network._together(ir.node("Gather", [None, None]), [table, places, None])
    assert [None if one is None else one.device.type for one in found] == ["meta", "meta", None]
    for kind in ("Reshape", "Expand", "ReduceSum", "TopK"):
        found = network._together(ir.node(kind, [None, None]), [table, places])
        assert [one.device.type for one in found if one is not None] == ["meta", "cpu"]
    alone = network._together(ir.node("Add", [None, None]), [places, places])
    assert all(one is places for one in alone)
