"""Inner values of a model as a plain run of the whole gives them, and batches that fit the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lepton_cli import runtime
from lepton_cli.data.dataset import Batch
from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError
from lepton_cli.model import io
from lepton_cli.probe import activations
from lepton_cli.probe.activations import Activations, batches
from tests.coupling.networks import Network
from tests.probe.test_calibration import data as asked
from tests.probe.test_calibration import net
from tests.quantize.builders import Graph, WithConstants

Feeds = dict[str, NDArray[Any]]


def two_inputs(batch: int | str = "batch", other: int | str = "batch") -> ir.Model:
    n = Network()
    x, z = n.input("x", batch, 3), n.input("z", other, 2)
    first = n.node("Relu", n.node("Gemm", x, n.weight(3, 4), n.weight(4)))
    second = n.node("Neg", z)
    return n.model(n.node("Concat", n.node("Neg", first), second, axis=1))


def data(count: int) -> Arrays:
    random = np.random.default_rng(0)
    return Arrays({"x": random.normal(size=(count, 3)), "z": random.normal(size=(count, 2))})


def feeds(count: int = 4) -> Feeds:
    return {name: array.astype(np.float32) for name, array in data(count).feeds.items()}


def by_hand(x: Feeds, model: ir.Model) -> Feeds:
    """The network written out."""
    weights = [value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value]
    gemm = x["x"] @ weights[0] + weights[1]
    relu = np.maximum(gemm, 0)
    return {**x, "Gemm_0_out": gemm, "Relu_1_out": relu, "Neg_2_out": -x["z"], "Neg_3_out": -relu}


def lengths(model: ir.Model, count: int, **options: int) -> list[int]:
    found = [batch.feeds for batch in batches(model, data(count), **options)]
    joined = np.concatenate([batch["x"] for batch in found]) if found else np.zeros((0, 3))
    np.testing.assert_array_equal(joined, data(count).feeds["x"][: len(joined)])
    assert all(set(batch) == {"x", "z"} for batch in found)
    return [len(batch["x"]) for batch in found]


def test_batches_have_the_size_asked_for_where_the_model_takes_any() -> None:
    assert lengths(two_inputs(), 10, size=4) == [4, 4, 2]
    assert lengths(two_inputs(), 10, size=4, limit=6) == [4, 2]
    assert lengths(two_inputs(), 40) == [32, 8]


@pytest.mark.parametrize(("batch", "other"), [(3, 3), (3, "batch")])
def test_a_fixed_batch_is_the_models_and_a_last_one_too_small_is_left_out(batch: int | str, other: int | str) -> None:
    model = two_inputs(batch, other)
    assert lengths(model, 10, size=4) == [3, 3, 3]
    assert lengths(model, 9) == [3, 3, 3]
    assert lengths(model, 10, limit=5) == [3]
    assert lengths(model, 2) == []


def test_a_fixed_batch_of_one_gives_single_samples() -> None:
    assert lengths(two_inputs(1, 1), 3, size=2) == [1, 1, 1]


def test_inputs_of_unknown_or_no_shape_fix_nothing() -> None:
    n = Network()
    x, scale = n.input("x", "batch", 3), n.input("scale")
    model = n.model(n.node("Mul", x, scale))
    model.graph.inputs[0].shape = None
    held = Arrays({"x": np.zeros((5, 3)), "scale": np.zeros(5)})
    assert [len(batch.feeds["x"]) for batch in batches(model, held, size=2)] == [2, 2, 1]


@pytest.mark.parametrize(
    "names",
    [["Relu_1_out"], ["Gemm_0_out", "Relu_1_out"], ["x", "Neg_3_out"], ["z"], ["Neg_2_out", "Neg_2_out", "x", "z"]],
    ids=",".join,
)
def test_inner_values_are_those_of_the_network(names: Sequence[str], tmp_path: Path) -> None:
    model, x = two_inputs(), feeds()
    inner = Activations(model, names, tmp_path, threads=1)
    for _ in range(2):
        found = inner.run({**x, "stranger": np.zeros(1)})
        assert set(names) <= set(found) <= {*names, "x", "z"}
        expected = by_hand(x, model)
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6)
    assert [output.name for output in model.graph.outputs] == ["Concat_4_out"]


def test_a_piece_has_only_the_nodes_it_needs() -> None:
    model = two_inputs()
    short = activations.piece(model, {}, ["Relu_1_out", "x", "Relu_1_out"])
    assert [output.name for output in short.graph.outputs] == ["Relu_1_out", "x"]
    assert [node.name for node in short.graph] == ["Gemm_0", "Relu_1"]
    assert [value.name for value in short.graph.inputs] == ["x"]
    assert [node.name for node in model.graph] == ["Gemm_0", "Relu_1", "Neg_2", "Neg_3", "Concat_4"]
    assert len(model.graph.outputs) == 1


def test_a_piece_goes_on_from_values_that_are_given() -> None:
    model, relu = two_inputs(), np.array([[1.0, -2.0, 3.0, 4.0]], np.float32)
    short = activations.piece(model, {"Relu_1_out": relu}, ["Neg_3_out"])
    assert [value.name for value in short.graph.inputs] == ["Relu_1_out" + activations.GIVEN]
    assert [node.name for node in short.graph] == ["Neg_3"]
    found = runtime.Session(io.to_bytes(short), threads=1).run({"Relu_1_out" + activations.GIVEN: relu})
    np.testing.assert_array_equal(found["Neg_3_out"], -relu)


def test_no_session_is_made_for_inputs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "Session", None)
    x = feeds()
    found = Activations(two_inputs(), ["x"], tmp_path, threads=1).run(x)
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


def test_float_outputs_are_joined_over_all_batches(tmp_path: Path) -> None:
    x = np.random.default_rng(4).normal(size=(5, 6)).astype(np.float32)
    found = activations.outputs(many_outputs(), [{"x": x[:3]}, {"x": x[3:]}], tmp_path, threads=1)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float64)}
    sums = np.array([x[:3].sum(), x[3:].sum()])
    expected = [-x, x.reshape(5, 2, 3), sums, x.reshape(1, 30), x.astype(np.float16), x]
    assert [array.shape for array in found.values()] == [array.shape for array in expected]
    assert "Cast_4_out" not in found
    for array, wanted in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)


def test_batches_are_of_the_size_asked_for() -> None:
    assert [len(batch.feeds["x"]) for batch in batches(net(), asked(), 4)] == [4, 4, 2]


def test_a_fixed_batch_dimension_decides_and_what_does_not_fill_it_is_left_out() -> None:
    given = asked()
    found = list(batches(net(3), given, 4))
    assert [(len(batch.feeds["x"]), batch.start) for batch in found] == [(3, 0), (3, 3), (3, 6)]
    assert given.sizes == [3]


def test_only_the_first_input_says_how_large_a_batch_is() -> None:
    graph = Graph()
    model = graph.model(graph.op("Add", graph.take("x", ["b", 4]), graph.take("state", [1, 4])))
    given = WithConstants({"state": np.ones((1, 4), np.float32)}, x=asked().feeds["x"])
    assert len(list(batches(model, given, 5))) == 2


def test_models_without_inputs_take_any_batch() -> None:
    graph = Graph()
    model = graph.model(graph.op("Relu", graph.constant(np.ones(3, np.float32))))
    assert len(list(batches(model, asked(), 5))) == 2


def test_nan_that_a_model_fills_in_itself_is_fed_as_it_is() -> None:
    graph = Graph()
    missing = graph.op("IsNaN", graph.take("x", ["b", 4]))
    model = graph.model(graph.op("Where", missing, graph.constant(np.ones(4, np.float32)), "x"))
    given = asked()
    given.feeds["x"][7, 2] = np.nan
    fed = np.concatenate([batch.feeds["x"] for batch in batches(model, given, 4)])
    np.testing.assert_array_equal(fed, given.feeds["x"])


def test_nan_in_the_data_is_named_with_its_batch() -> None:
    given = asked()
    given.feeds["x"][7, 2] = np.nan
    found = batches(net(), given, 4)
    assert len(next(found).feeds["x"]) == 4
    with pytest.raises(DataError, match="`x` of `arrays` contains NaN in the batch at sample 4") as raised:
        next(found)
    assert raised.value.code == "data.nan"


@pytest.mark.parametrize("other", [np.array([1, 2]), np.array(["a", "b"]), [1.0, float("nan")]])
def test_inputs_that_cannot_hold_nan_are_not_searched(other: object) -> None:
    class Mixed(Arrays):
        def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
            yield Batch({"other": other, "x": np.ones((2, 4), np.float32)}, {}, 0)  # type: ignore[dict-item]

    assert len(list(batches(net(), Mixed({"x": np.ones((2, 4), np.float32)}), 2))) == 1
