"""What a node is given so that it takes several samples: of each comes what a formula in numpy gives of it alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.runtime import Session
from tests.graph.one_sample import Case, freed, numbers, rows, softmax, weight
from tests.quantize.builders import Graph


def columns() -> Case:
    """As YOLOX has it: `[1, C, -1]`, where a 0 says it."""
    graph = Graph()
    made = graph.op("Relu", graph.op("Reshape", graph.take("x", [1, 4, 2, 3]), numbers(graph, 1, 4, -1)))
    return Case(
        graph.model(made), lambda x: np.maximum(x.reshape(1, 4, 6), 0), {"Reshape_0": "[1, 4, -1] became [0, 4, -1]"}
    )


def merged() -> Case:
    """All rows of all samples through one layer, and back."""
    graph = Graph()
    kernel, array = weight(graph, 4, 3)
    flat = graph.op("MatMul", graph.op("Reshape", graph.take("x", [1, 6, 4]), numbers(graph, -1, 4)), kernel)
    made = graph.op("Reshape", flat, numbers(graph, 1, 6, 3))
    return Case(graph.model(made), lambda x: x @ array, {"Reshape_2": "[1, 6, 3] became [-1, 6, 3]"})


def flattened() -> Case:
    graph = Graph()
    kernel, array = weight(graph, 24, 5)
    flat = graph.op("Flatten", graph.take("x", [1, 4, 6]), axis=0)
    made = graph.op("MatMul", flat, kernel)
    return Case(graph.model(made), lambda x: x.reshape(1, 24) @ array, {"Flatten_0": "Reshape to [-1, 24]"})


def attention() -> Case:
    """Heads apart and together again, every shape with the 1."""
    graph = Graph()
    x, made, arrays = graph.take("x", [1, 5, 8]), [], []
    for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        kernel, array = weight(graph, 8, 8)
        heads = graph.op("Reshape", graph.op("MatMul", x, kernel), numbers(graph, 1, 5, 2, 4))
        made.append(graph.op("Transpose", heads, perm=order))
        arrays.append(array)
    seen = graph.op("MatMul", graph.op("Softmax", graph.op("MatMul", *made[:2]), axis=-1), made[2])
    joined = graph.op("Reshape", graph.op("Transpose", seen, perm=[0, 2, 1, 3]), numbers(graph, 1, 5, 8))

    def formula(x: np.ndarray) -> np.ndarray:
        q, k, v = ((x[0] @ array).reshape(5, 2, 4).transpose(1, 0, 2) for array in arrays)
        return (softmax(q @ k.transpose(0, 2, 1)) @ v).transpose(1, 0, 2).reshape(1, 5, 8)

    return Case(graph.model(joined), formula)


def attention_in_time() -> Case:
    """As torch computes it: samples become heads `[length, heads, size]`, then rows `[length, channels]` of a Gemm.

    Both shapes fit at two places, and for each only one is right.
    """
    graph = Graph()
    time = graph.op("Transpose", graph.take("x", [1, 5, 8]), perm=[1, 0, 2])
    heads = graph.op("Transpose", graph.op("Reshape", time, numbers(graph, 5, 2, 4)), perm=[1, 0, 2])
    seen = graph.op("Softmax", graph.op("MatMul", heads, graph.op("Transpose", heads, perm=[0, 2, 1])), axis=-1)
    back = graph.op("Transpose", graph.op("MatMul", seen, heads), perm=[1, 0, 2])
    kernel, array = weight(graph, 8, 3)
    made = graph.op("Gemm", graph.op("Reshape", back, numbers(graph, 5, 8)), kernel)
    made = graph.op("Transpose", graph.op("Reshape", made, numbers(graph, 5, 1, 3)), perm=[1, 0, 2])

    def formula(x: np.ndarray) -> np.ndarray:
        heads = x[0].reshape(5, 2, 4).transpose(1, 0, 2)
        seen = softmax(heads @ heads.transpose(0, 2, 1)) @ heads
        return (seen.transpose(1, 0, 2).reshape(5, 8) @ array)[None]

    shapes = {
        "Reshape_1": "[5, 2, 4] became [5, -1, 4]",
        "Reshape_8": "[5, 8] became [-1, 8]",
        "Reshape_10": "[5, 1, 3] became [5, -1, 3]",
    }
    return Case(graph.model(made), formula, shapes)


def resized() -> Case:
    graph = Graph()
    x = graph.take("x", [1, 2, 3, 3])
    sizes = numbers(graph, 1, 2, 6, 6)
    made = graph.op("Resize", x, "", "", sizes, mode="nearest", coordinate_transformation_mode="asymmetric",
                    nearest_mode="floor")  # fmt: skip
    formula = lambda x: x.repeat(2, 2).repeat(2, 3)  # noqa: E731
    return Case(graph.model(made), formula, {"Resize_0": "[1, 2, 6, 6] became [samples, 2, 6, 6]"})


def token() -> Case:
    """What all samples share in front of each: a class token."""
    graph = Graph()
    x = graph.take("x", [1, 5, 4])
    own, array = weight(graph, 1, 1, 4)
    grown = graph.op("Expand", own, numbers(graph, 1, 1, 4))
    made = graph.op("Concat", grown, x, axis=1)
    return Case(graph.model(made), lambda x: np.concatenate([array, x], 1), {"Concat_1": "once for each sample"})


def beside_rows() -> Case:
    """Anchors beside the rows of each sample, which are merged."""
    graph = Graph()
    flat = graph.op("Reshape", graph.take("x", [1, 6, 4]), numbers(graph, -1, 4))
    anchors, array = weight(graph, 6, 1)
    made = graph.op("Reshape", graph.op("Mul", flat, anchors), numbers(graph, 1, 6, 4))
    return Case(graph.model(made), lambda x: x * array, {"Mul_1": "`w1` once for each sample"})


def recurrent() -> Case:
    """A first state that is stored for one sample."""
    graph = Graph()
    time = graph.op("Transpose", graph.take("x", [1, 5, 3]), perm=[1, 0, 2])
    (inner, u), (outer, v) = weight(graph, 1, 4, 3), weight(graph, 1, 4, 4)
    state, h = weight(graph, 1, 1, 4)
    _, last = graph.op("RNN", time, inner, outer, "", "", state, outputs=2, hidden_size=4)
    made = graph.op("Reshape", last, numbers(graph, 1, 4))

    def formula(x: np.ndarray) -> np.ndarray:
        now = h[0]
        for step in x[0]:
            now = np.tanh(step @ u[0].T + now @ v[0].T)
        return now

    return Case(graph.model(made), formula, {"RNN_1": "`w2` once for each sample", "Reshape_2": "became [-1, 4]"})


def picked() -> Case:
    """`x[0]`, and `x[0:1]`: the only sample there was."""
    graph = Graph()
    part = graph.op("Slice", graph.take("x", [1, 6, 4]), numbers(graph, 0), numbers(graph, 1), numbers(graph, 0))
    one = graph.op("Sigmoid", graph.op("Gather", part, graph.constant(np.array(0)), axis=0))
    made = graph.op("Reshape", one, numbers(graph, 1, 6, 4))
    shapes = {"Slice_0": "[1] became [samples]", "Gather_1": "Gather became a Reshape to [-1, 4]"}
    return Case(graph.model(made), lambda x: 1 / (1 + np.exp(-x)), shapes)


def turned() -> Case:
    """As NanoDet has it: an output of rows that end up along its last axis; it begins with the samples again."""
    graph = Graph()
    flat = graph.op("Reshape", graph.take("x", [1, 4, 2, 3]), numbers(graph, 4, -1))
    made = graph.op("Transpose", flat, perm=[1, 0])
    return Case(
        graph.model(made), lambda x: x.reshape(4, 6).T, {"Reshape_0": "[4, -1] became [-1, 6]"}, shape=(None, 4)
    )


def shared() -> Case:
    """One shape for samples and for a weight."""
    graph = Graph()
    shape, (held, array) = numbers(graph, 1, 2, 4), weight(graph, 8)
    own = graph.op("Reshape", held, shape)
    made = graph.op("Add", graph.op("Reshape", graph.take("x", [1, 8]), shape), own)
    return Case(graph.model(made), lambda x: (x + array).reshape(1, 2, 4), {"Reshape_1": "[1, 2, 4] became [-1, 2, 4]"})


def second_axis() -> Case:
    """Samples on the second axis of the output, as recurrent states have them."""
    graph = Graph()
    made = graph.op("Reshape", graph.op("Transpose", graph.take("x", [1, 3, 2, 2]), perm=[1, 0, 2, 3]),
                    numbers(graph, 3, 1, 4))  # fmt: skip
    return Case(graph.model(made), lambda x: x.reshape(3, 1, 4), axis=1, shape=(3, "batch", 4))


def copied() -> Case:
    """A 0 that copies the 1 of the samples, which end up elsewhere; then one that copies another size."""
    graph = Graph()
    time = graph.op("Transpose", graph.take("x", [1, 4, 6]), perm=[1, 0, 2])
    apart = graph.op("Relu", graph.op("Reshape", time, numbers(graph, 2, 0, 2, 6)))
    back = graph.op("Transpose", graph.op("Reshape", apart, numbers(graph, 4, 1, 6)), perm=[1, 0, 2])
    made = graph.op("Reshape", back, numbers(graph, 1, 0, 2, 3))
    shapes = {"Reshape_1": "[2, 0, 2, 6] became [2, 1, -1, 6]", "Reshape_5": "[1, 0, 2, 3] became [-1, 0, 2, 3]"}
    return Case(graph.model(made), lambda x: np.maximum(x, 0).reshape(1, 4, 2, 3), shapes)


def zeros() -> Case:
    """What is made once for each sample without reading any, and loses its axis."""
    graph = Graph()
    x = graph.take("x", [1, 4])
    shape = graph.op("Concat", graph.op("Shape", x, start=0, end=1), numbers(graph, 1, 3), axis=0)
    made = graph.op("Concat", x, graph.op("Reshape", graph.op("ConstantOfShape", shape), numbers(graph, 1, 3)), axis=1)
    return Case(graph.model(made), lambda x: np.pad(x, ((0, 0), (0, 3))), {"Reshape_3": "[1, 3] became [-1, 3]"})


def in_constants() -> Case:
    """A shape in a Constant node."""
    graph = Graph()
    shape = graph.op("Constant", value=helper.make_tensor("shape", TensorProto.INT64, [3], [1, 2, -1]))
    made = graph.op("Reshape", graph.take("x", [1, 6]), shape)
    return Case(graph.model(made), lambda x: x.reshape(1, 2, 3), {"Reshape_1": "[1, 2, -1] became [0, 2, -1]"})


def without_copies() -> Case:
    """Where a 0 means no numbers at all."""
    graph = Graph()
    made = graph.op("Reshape", graph.take("x", [1, 6]), numbers(graph, 1, 2, -1), allowzero=1)
    return Case(graph.model(made), lambda x: x.reshape(1, 2, 3), {"Reshape_0": "[1, 2, -1] became [-1, 2, 3]"})


def in_turns() -> Case:
    """An output that would have a row of each sample in turns: it has one sample behind the other."""
    graph = Graph()
    time = graph.op("Transpose", graph.take("x", [1, 4, 6]), perm=[1, 0, 2])
    made = graph.op("Neg", graph.op("Reshape", time, numbers(graph, 4, 2, 3)))
    return Case(graph.model(made), lambda x: -x.reshape(4, 2, 3), shape=(None, 2, 3))


def half_frozen() -> Case:
    """An input that is open already, and keeps its name for the axis."""
    graph = Graph()
    x = graph.take("x", ["n", 2, 3])
    made = graph.op("Softmax", graph.op("Reshape", x, numbers(graph, 1, 6)), axis=1)
    return Case(graph.model(made), lambda x: softmax(x.reshape(1, 6)), shape=("n", 6))


CASES = (
    rows, columns, merged, flattened, attention, attention_in_time, resized, token, beside_rows, recurrent, picked,
    turned, shared, second_axis, copied, zeros, in_constants, without_copies, in_turns,
    half_frozen,
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.__name__))
def test_several_samples_give_what_each_alone_gives(case: Callable[[], Case], tmp_path: Path) -> None:
    made = case()
    before = io.to_bytes(made.model)
    outcome = freed(made.model, tmp_path)
    assert io.to_bytes(made.model) == before
    said = {decision.node: decision.reason for decision in outcome.decisions}
    assert {decision.action for decision in outcome.decisions} <= {"freed"}
    assert outcome.changed == 1 + len(outcome.decisions)
    for node, reason in made.changed.items():
        assert reason in said[node]
    assert not made.changed or set(said) >= set(made.changed)
    taken = io.inputs(outcome.model)[0].shape
    assert taken is not None
    old, new = (Session(io.to_bytes(one), threads=1) for one in (made.model, outcome.model))
    for count in (1, 2, 5):
        parts = np.random.default_rng(count).normal(size=(count, *taken[1:])).astype(np.float32)  # type: ignore[arg-type]
        (got,) = new.run({"x": parts}).values()
        np.testing.assert_allclose(
            got, np.concatenate([made.formula(parts[at : at + 1]) for at in range(count)], made.axis), atol=1e-5
        )
        if count == 1:
            (one,) = old.run({"x": parts}).values()
            assert one.tobytes() == got.tobytes()
            assert one.shape == got.shape
    (output,) = io.outputs(outcome.model)
    assert taken[0] == ("n" if case is half_frozen else "batch")
    assert output.shape == made.shape if made.shape else output.shape and output.shape[0] == "batch"


def test_everything_else_stays_as_it_is(tmp_path: Path) -> None:
    model = shared().model
    outcome = freed(model, tmp_path)
    assert [node.name for node in outcome.model.graph] == [node.name for node in model.graph]
    held = outcome.model.graph.initializers
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        kept = held[name].const_value
        assert kept is not None
        assert kept.tobytes() == value.const_value.tobytes()
    weights = next(node for node in outcome.model.graph if node.name == "Reshape_0")
    assert weights.inputs[1] is held["w0"]
    assert len(held) == len(model.graph.initializers) + 1


def test_a_shape_that_nothing_reads_any_more_goes(tmp_path: Path) -> None:
    model = rows().model
    outcome = freed(model, tmp_path)
    assert "w0" in model.graph.initializers
    assert "w0" not in outcome.model.graph.initializers
    inside = {value.name: value.shape for node in outcome.model.graph for value in node.outputs}
    assert str(inside["t0"]) == "[batch,2,3,4]"
    assert "w3" in picked().model.graph.initializers, "which of a sample"
    assert "w3" not in freed(picked().model, tmp_path).model.graph.initializers
    assert not [node for node in freed(in_constants().model, tmp_path).model.graph if node.op_type == "Constant"]
    graph = Graph()
    shape = graph.op("Concat", numbers(graph, 1), numbers(graph, 2, 3), axis=0)
    computed = graph.model(graph.op("Reshape", graph.take("x", [1, 6]), shape))
    left = freed(computed, tmp_path).model.graph
    assert [node.op_type for node in left] == ["Reshape"]
    assert len(left.initializers) == 1


def test_inner_shapes_that_are_not_the_batch_stay(tmp_path: Path) -> None:
    outcome = freed(merged().model, tmp_path)
    inside = {value.name: value.shape for node in outcome.model.graph for value in node.outputs}
    assert str(inside["t0"]) == "[None,4]"


def test_equal_samples_tell_nothing(tmp_path: Path) -> None:
    outcome = freed(attention_in_time().model, tmp_path, Arrays({"x": np.ones((8, 5, 8), np.float32)}))
    assert {decision.node for decision in outcome.decisions} >= {"Reshape_1", "Reshape_8", "Reshape_10"}
