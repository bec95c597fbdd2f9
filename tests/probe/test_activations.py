"""Inner values of a model as a plain run of the whole gives them, and batches that fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lepton_cli import runtime
from lepton_cli.probe import activations
from lepton_cli.probe.activations import Tap
from tests.coupling.networks import Network
from tests.prune.context import InMemory

Arrays = dict[str, NDArray[Any]]


def two_inputs(batch: int | str = "batch", other: int | str = "batch") -> ir.Model:
    n = Network()
    x, z = n.input("x", batch, 3), n.input("z", other, 2)
    first = n.node("Relu", n.node("Gemm", x, n.weight(3, 4), n.weight(4)))
    second = n.node("Neg", z)
    return n.model(n.node("Concat", n.node("Neg", first), second, axis=1))


def data(count: int) -> InMemory:
    random = np.random.default_rng(0)
    return InMemory({"x": random.normal(size=(count, 3)), "z": random.normal(size=(count, 2))})


def feeds(count: int = 4) -> Arrays:
    return {name: array.astype(np.float32) for name, array in data(count).feeds.items()}


def by_hand(x: Arrays, model: ir.Model) -> Arrays:
    """The network written out."""
    weights = [value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value]
    gemm = x["x"] @ weights[0] + weights[1]
    relu = np.maximum(gemm, 0)
    return {**x, "Gemm_0_out": gemm, "Relu_1_out": relu, "Neg_2_out": -x["z"], "Neg_3_out": -relu}


def lengths(model: ir.Model, count: int, **options: int) -> list[int]:
    found = list(activations.batches(model, data(count), **options))
    joined = np.concatenate([batch["x"] for batch in found]) if found else np.zeros((0, 3))
    np.testing.assert_array_equal(joined, data(count).feeds["x"][: len(joined)])
    assert all(set(batch) == {"x", "z"} for batch in found)
    return [len(batch["x"]) for batch in found]


def test_batches_have_the_size_asked_for_where_the_model_takes_any() -> None:
    assert lengths(two_inputs(), 10, size=4) == [4, 4, 2]
    assert lengths(two_inputs(), 10, size=4, limit=6) == [4, 2]
    assert lengths(two_inputs(), 40) == [32, 8]


@pytest.mark.parametrize(("batch", "other"), [(3, 3), ("batch", 3), (3, "batch")])
def test_a_fixed_batch_is_the_models_and_a_last_one_too_small_is_left_out(batch: int | str, other: int | str) -> None:
    model = two_inputs(batch, other)
    assert lengths(model, 10, size=4) == [3, 3, 3]
    assert lengths(model, 9) == [3, 3, 3]
    assert lengths(model, 10, limit=5) == [3]
    assert lengths(model, 2) == []


def test_a_fixed_batch_of_one_gives_single_samples() -> None:
    assert lengths(two_inputs(1, 1), 3, size=2) == [1, 1, 1]


def test_batches_of_which_one_array_is_too_short_are_left_out() -> None:
    class Uneven(InMemory):
        def batches(self, size: int | None = None, limit: int | None = None) -> Any:
            for batch in super().batches(size, limit):
                if batch.start == 2:
                    batch.feeds["z"] = batch.feeds["z"][:1]
                yield batch

    found = list(activations.batches(two_inputs(2, 2), Uneven(data(6).feeds)))
    assert [float(batch["x"][0, 0]) for batch in found] == [data(6).feeds["x"][k, 0] for k in (0, 4)]


def test_inputs_of_unknown_or_no_shape_fix_nothing() -> None:
    n = Network()
    x, scale = n.input("x", "batch", 3), n.input("scale")
    model = n.model(n.node("Mul", x, scale))
    model.graph.inputs[0].shape = None
    held = InMemory({"x": np.zeros((5, 3)), "scale": np.zeros(5)})
    assert [len(batch["x"]) for batch in activations.batches(model, held, size=2)] == [2, 2, 1]


@pytest.mark.parametrize(
    "names",
    [["Relu_1_out"], ["Gemm_0_out", "Relu_1_out"], ["x", "Neg_3_out"], ["z"], ["Neg_2_out", "Neg_2_out", "x", "z"]],
    ids=",".join,
)
def test_inner_values_are_those_of_the_network(names: Sequence[str], tmp_path: Path) -> None:
    model, x = two_inputs(), feeds()
    tap = Tap(model, names, tmp_path, threads=1)
    for _ in range(2):
        found = tap.run({**x, "stranger": np.zeros(1)})
        assert set(names) <= set(found) <= {*names, "x", "z"}
        expected = by_hand(x, model)
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6)
    assert [output.name for output in model.graph.outputs] == ["Concat_4_out"]


def test_a_tapped_model_has_only_the_nodes_it_needs() -> None:
    model = two_inputs()
    short = activations.tapped(model, ["Relu_1_out", "x", "Relu_1_out"])
    assert [output.name for output in short.graph.outputs] == ["Relu_1_out", "x"]
    assert [node.name for node in short.graph] == ["Gemm_0", "Relu_1"]
    assert [node.name for node in model.graph] == ["Gemm_0", "Relu_1", "Neg_2", "Neg_3", "Concat_4"]
    assert len(model.graph.outputs) == 1


def test_no_session_is_made_for_inputs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "Session", None)
    x = feeds()
    found = Tap(two_inputs(), ["x"], tmp_path, threads=1).run(x)
    assert found["x"] is x["x"]


def many_outputs() -> ir.Model:
    """Outputs of two and of three axes, of none, of a width that depends on the batch, and of other types."""
    n = Network()
    x = n.input("x", "batch", 6)
    kinds = {
        n.node("Neg", x): TensorProto.FLOAT,
        n.node("Reshape", x, n.literal(-1, 2, 3)): TensorProto.FLOAT,
        n.node("ReduceSum", x, keepdims=0): TensorProto.FLOAT,
        n.node("Reshape", x, n.literal(1, -1)): TensorProto.FLOAT,
        n.node("Cast", x, to=TensorProto.INT64): TensorProto.INT64,
        n.node("Cast", x, to=TensorProto.FLOAT16): TensorProto.FLOAT16,
        n.node("Cast", x, to=TensorProto.DOUBLE): TensorProto.DOUBLE,
    }
    graph = helper.make_graph(
        n.nodes,
        "test",
        n.inputs,
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in n.weights.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def test_float_outputs_are_samples_times_values_over_all_batches(tmp_path: Path) -> None:
    x = np.random.default_rng(4).normal(size=(5, 6)).astype(np.float32)
    found = activations.outputs(many_outputs(), [{"x": x[:3]}, {"x": x[3:]}], tmp_path, threads=1)
    assert {array.dtype for array in found} == {np.dtype(np.float64)}
    sums = np.array([[x[:3].sum()], [x[3:].sum()]])
    expected = [-x, x, sums, x.reshape(1, 30), x.astype(np.float16), x]
    assert [array.shape for array in found] == [array.shape for array in expected]
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)
