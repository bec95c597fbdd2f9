"""Loops compute what onnxruntime computes, and pass gradients."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lepton_cli.errors import StepError
from lepton_cli.train.network import Network
from tests.train.test_network import ran, tensors

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def info(name: str, kind: int = FLOAT, shape: list[int | str] | None = None) -> object:
    return helper.make_tensor_value_info(name, kind, shape)


def looping(last: float = 1e9) -> ir.Model:
    """h = tanh(h W) while its sum is below `last`; every h is given."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "w"], ["p"]),
            helper.make_node("Tanh", ["p"], ["g"]),
            helper.make_node("ReduceSum", ["g"], ["s"], keepdims=0),
            helper.make_node("Less", ["s", "most"], ["go"]),
            helper.make_node("Identity", ["g"], ["seen"]),
        ],
        "body",
        [info("i", INT64, []), info("on", BOOL, []), info("h")],
        [info("go", BOOL, []), info("g"), info("seen")],
        [numpy_helper.from_array(np.float32(last), "most")],
    )
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32), "w")
    trips = numpy_helper.from_array(np.int64(4), "trips")
    nodes = [helper.make_node("Loop", ["trips", "", "x"], ["y", "all"], name="loop", body=body)]
    graph = helper.make_graph(nodes, "g", [info("x", FLOAT, [2, 3])], [info("y"), info("all")], [weight, trips])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("last", [1e9, -1e9])
def test_loops(last: float) -> None:
    model = looping(last)
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)}
    network = Network(model)
    found, expected = network.run(tensors(feeds)), ran(model, feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name].detach().numpy(), array, rtol=0, atol=1e-6)
    assert len(expected["all"]) == (4 if last > 0 else 1)
    found["all"].sum().backward()
    assert network.parameters["w"].grad is not None


def scanning(**attributes: object) -> ir.Model:
    """A running sum, and its squares."""
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "r"], ["t"]), helper.make_node("Mul", ["t", "t"], ["q"])],
        "body",
        [info("s"), info("r")],
        [info("t"), info("q")],
    )
    nodes = [
        helper.make_node("Scan", ["z", "x"], ["y", "all"], name="scan", body=body, num_scan_inputs=1, **attributes)
    ]
    inputs = [info("z", FLOAT, [3]), info("x", FLOAT, [5, 3] if "scan_input_axes" not in attributes else [3, 5])]
    graph = helper.make_graph(nodes, "g", inputs, [info("y"), info("all")])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"scan_input_axes": [1]},
        {"scan_input_directions": [1]},
        {"scan_output_axes": [1], "scan_output_directions": [1]},
    ],
)
def test_scans(attributes: dict[str, object]) -> None:
    model = scanning(**attributes)
    shape = (3, 5) if "scan_input_axes" in attributes else (5, 3)
    feeds = {"z": np.ones(3, np.float32), "x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}
    found, expected = Network(model).run(tensors(feeds)), ran(model, feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name].numpy(), array, rtol=0, atol=1e-5)


def test_a_loop_that_never_runs_is_refused() -> None:
    model = looping()
    model.graph.initializers["trips"].const_value = ir.tensor(np.int64(0))
    with pytest.raises(StepError, match="never runs"):
        Network(model).run({"x": torch.zeros(2, 3)})
