"""`batch.free` as a step: what it proves, on which samples and sizes, and what it says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from lepton_cli.data.memory import Arrays
from lepton_cli.data.synthetic import synthetic
from lepton_cli.errors import LeptonError, RecipeError, StepError
from lepton_cli.graph import batch
from lepton_cli.graph.spec import BatchFree
from lepton_cli.model import io
from lepton_cli.runtime import Session
from tests.graph.one_sample import freed, numbers, rows, simple, weight
from tests.quantize.builders import Graph, context


def open_sizes(spec: tuple[int, ...], *, computed: bool) -> ir.Model:
    graph = Graph()
    x = graph.take("x", [1, 6, "w"])
    if computed:
        width = graph.op("Shape", x, start=2)
        made = graph.op("Reshape", x, graph.op("Concat", numbers(graph, *spec), width, axis=0))
    else:
        made = graph.op("Reshape", x, numbers(graph, *spec))
    return graph.model(graph.op("Reshape", graph.op("Relu", made), numbers(graph, 1, 6, -1)))


@pytest.mark.parametrize(
    ("spec", "computed", "reason"),
    [
        ((1, 2, 3, -1), False, "[1, 2, 3, -1] became [0, 2, 3, -1]"),
        ((2, 3, -1), False, "[2, 3, -1] became [2 x samples, 3, -1]"),
        ((1, 2, 3), True, "[1, 2, 3, 8] became [-1, 2, 3, 8]"),
    ],
)
def test_other_open_sizes_stay_open(spec: tuple[int, ...], computed: bool, reason: str, tmp_path: Path) -> None:
    outcome = freed(open_sizes(spec, computed=computed), tmp_path)
    assert outcome.decisions[0].reason == reason
    session = Session(io.to_bytes(outcome.model), threads=1)
    for count, width in ((1, 7), (2, 5), (3, 11)):
        x = np.random.default_rng(width).normal(size=(count, 6, width)).astype(np.float32)
        np.testing.assert_array_equal(next(iter(session.run({"x": x}).values())), np.maximum(x, 0))


def test_what_is_right_for_one_size_only_is_refused(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.op("Flatten", graph.take("x", [1, 6, "w"]), axis=0))
    with pytest.raises(StepError, match="freed, the graph would be wrong") as caught:
        freed(model, tmp_path)
    assert caught.value.code == "batch.not-proven"


def test_what_runs_for_one_size_only_is_refused(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", [1, 6, "w"])
    model = graph.model(graph.op("Add", graph.op("Flatten", x, axis=0), graph.op("Flatten", x)))
    with pytest.raises(StepError) as caught:
        freed(model, tmp_path)
    assert caught.value.code == "batch.not-proven"
    assert "it does not run" in str(caught.value.cause)


def test_sizes_that_the_graph_does_not_take_are_not_asked_for(tmp_path: Path) -> None:
    """The axis is open, and the weights behind it know one size only."""
    graph = Graph()
    summed = graph.op("Add", graph.take("x", [1, 6, "w"]), weight(graph, 1, 6, 8)[0])
    outcome = freed(graph.model(graph.op("Reshape", summed, numbers(graph, 1, -1, 2))), tmp_path)
    assert outcome.decisions[0].reason == "[1, -1, 2] became [0, -1, 2]"


@pytest.mark.parametrize("squeeze", [False, True])
def test_what_is_open_already_stays(squeeze: bool, tmp_path: Path) -> None:
    """A Squeeze takes the axis of a single sample away, and of several gives what it should."""
    model = simple("n", 4, then=lambda g, x: g.op("Squeeze", g.op("Relu", x)) if squeeze else g.op("Relu", x))
    outcome = freed(model, tmp_path)
    assert outcome.model is model
    assert outcome.left_because == "takes any number of samples already"


def test_what_only_some_samples_show_is_found_at_the_end(tmp_path: Path) -> None:
    """Sums over the samples of what is above 0, which nothing in the data is."""
    graph = Graph()
    x = graph.take("x", [1, 4])
    model = graph.model(graph.op("Add", x, graph.op("CumSum", graph.op("Relu", x), graph.constant(np.array(0)))))
    with pytest.raises(StepError, match="wrong with 2 samples") as caught:
        freed(model, tmp_path, Arrays({"x": -np.random.default_rng(0).uniform(1, 2, (8, 4)).astype(np.float32)}))
    assert caught.value.code == "batch.not-proven"
    assert "not what comes out of each alone" in str(caught.value.cause)


def test_samples_are_as_wide_as_the_model_takes_them(tmp_path: Path) -> None:
    """Behind `convert.fp16` the data are those of the float32 model."""
    graph = Graph()
    made = graph.op("Reshape", graph.take("x", [1, 6], TensorProto.FLOAT16), numbers(graph, 1, 2, 3))
    model = graph.model(graph.op("Cast", made, to=TensorProto.FLOAT))
    wide = synthetic([dataclasses.replace(io.inputs(model)[0], dtype="float32")], seed=0, samples=8, batch=1)
    outcome = batch.free(model, BatchFree(), context(None, tmp_path, check=wide))
    assert outcome.decisions[0].reason == "[1, 2, 3] became [-1, 2, 3]"


def test_rounding_is_as_coarse_as_the_model() -> None:
    def made(*kinds: str, half: bool = False) -> ir.Model:
        graph = Graph()
        x = graph.op("Mul", graph.take("x", [1, 4]), graph.constant(np.ones(4, np.float16 if half else np.float32)))
        for kind in kinds:
            x = graph.op(kind, x, graph.constant(np.float32(0.1)))
        return graph.model(x)

    assert batch._tolerance(made()) < batch._tolerance(made(half=True)) < batch._tolerance(made("QuantizeLinear"))


def test_maps_are_joined_by_row() -> None:
    """Probabilities by class, as trees give them."""
    one, two = [{0: 0.25, 1: 0.75}], [{0: 1.0, 1: 0.0}]
    assert batch._joined([one, two], one + two, 1e-4)
    assert not batch._joined([one, two], two + one, 1e-4)
    assert not batch._joined([one, two], [{0: 0.25, 2: 0.75}, *two], 1e-4)


def test_samples_of_the_data_are_looked_at(tmp_path: Path) -> None:
    """Values that no made-up sample has: the batch's largest counts, where one is above 100."""
    graph = Graph()
    x = graph.take("x", [1, 4])
    least = graph.op("Max", graph.op("ReduceMax", x, keepdims=0), graph.constant(np.float32(100)))
    model = graph.model(graph.op("Div", x, least))
    with pytest.raises(LeptonError, match="ReduceMax"):
        freed(model, tmp_path, Arrays({"x": np.eye(4, dtype=np.float32) * 500}))


def test_the_name_of_the_axis_is_asked_for(tmp_path: Path) -> None:
    outcome = freed(rows().model, tmp_path, name="N")
    assert str(io.inputs(outcome.model)[0]) == "x float32 [N, 4, 2, 3]"
    assert [one.shape for one in io.outputs(outcome.model)] == [("N", 6, 4)]
    with pytest.raises(RecipeError, match="another axis of the model is called `w`"):
        freed(open_sizes((1, 2, 3, -1), computed=False), tmp_path, name="w")
    with pytest.raises(RecipeError, match="takes no `exclude`"):
        freed(rows().model, tmp_path, exclude=("Reshape_1",))


def test_an_output_without_samples_is_said(tmp_path: Path) -> None:
    graph = Graph()
    made = graph.op("Relu", graph.take("x", [1, 4]))
    model = graph.model(made, graph.op("Identity", weight(graph, 3, 2)[0]))
    (warning,) = freed(model, tmp_path).warnings
    assert "the same for all samples" in warning
