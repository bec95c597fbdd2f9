"""Freed graphs give of several samples what a formula in numpy gives of each; what cannot be freed is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lepton_cli.data.memory import Arrays
from lepton_cli.data.synthetic import synthetic
from lepton_cli.errors import LeptonError, RecipeError, StepError
from lepton_cli.graph import batch
from lepton_cli.graph.spec import BatchFree
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.step import Outcome
from tests.quantize.builders import Graph, context

#: One sample (without the axis of the samples) -> what comes out, as numpy has it.
Formula = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass
class Case:
    """A frozen graph, what it computes of a sample `[1, ...]`, where samples lie in its output, and what changed."""

    model: ir.Model
    formula: Formula
    changed: dict[str, str] = dataclasses.field(default_factory=dict)
    axis: int = 0
    shape: tuple[Any, ...] | None = None


def freed(model: ir.Model, folder: Path, data: Arrays | None = None, **options: Any) -> Outcome:
    made_up = synthetic(io.inputs(model), seed=0, samples=8, batch=1)
    check = made_up if data is None else data.of(io.inputs(model), "check")
    return batch.free(model, BatchFree(**options), context(None, folder, check=check))


def softmax(x: np.ndarray) -> np.ndarray:
    made = np.exp(x - x.max(-1, keepdims=True))
    return made / made.sum(-1, keepdims=True)


def weight(graph: Graph, *shape: int) -> tuple[str, np.ndarray]:
    array = graph.random.normal(size=shape).astype(np.float32)
    return graph.constant(array), array


def numbers(graph: Graph, *sizes: int) -> str:
    return graph.constant(np.array(sizes, np.int64))


def rows() -> Case:
    """Boxes as detectors give them: `[1, -1, 4]`."""
    graph = Graph()
    turned = graph.op("Transpose", graph.take("x", [1, 4, 2, 3]), perm=[0, 2, 3, 1])
    made = graph.op("Softmax", graph.op("Reshape", turned, numbers(graph, 1, -1, 4)), axis=-1)
    formula = lambda x: softmax(x.transpose(0, 2, 3, 1).reshape(1, 6, 4))  # noqa: E731
    return Case(graph.model(made), formula, {"Reshape_1": "[1, -1, 4] became [0, -1, 4]"})


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


def branches(*shapes: tuple[int, ...]) -> ir.Model:
    """`flag` says which branch: a Reshape to a shape of its own, then to one shape."""
    graph = Graph()
    x, flag = graph.take("x", [1, 4, 6]), graph.take("flag", [], TensorProto.BOOL)
    made = {}
    for name, shape in zip(("then_branch", "else_branch"), shapes, strict=True):
        held = helper.make_tensor(f"{name}_shape", TensorProto.INT64, [len(shape)], shape)
        last = helper.make_tensor(f"{name}_last", TensorProto.INT64, [2], [1, 24])
        kind = "Relu" if name == "then_branch" else "Neg"
        nodes = [
            helper.make_node("Reshape", [x, f"{name}_shape"], [f"{name}_0"], name=f"{name}/first"),
            helper.make_node(kind, [f"{name}_0"], [f"{name}_1"], name=f"{name}/middle"),
            helper.make_node("Reshape", [f"{name}_1", f"{name}_last"], [f"{name}_2"], name=f"{name}/last"),
        ]
        output = helper.make_tensor_value_info(f"{name}_2", TensorProto.FLOAT, None)
        made[name] = helper.make_graph(nodes, name, [], [output], [held, last])
    return graph.model(graph.op("If", flag, **made))


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 2, -1), (2, 3, -1)])
def test_both_branches_are_freed(shape: tuple[int, ...], tmp_path: Path) -> None:
    outcome = freed(branches((1, 24), shape), tmp_path)
    session = Session(io.to_bytes(outcome.model), threads=1)
    x = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    for flag, expected in ((True, np.maximum(x, 0)), (False, -x)):
        (got,) = session.run({"x": x, "flag": np.array(flag)}).values()
        np.testing.assert_array_equal(got, expected.reshape(3, 24))
    assert {"then_branch/first", "else_branch/last"} <= {decision.node for decision in outcome.decisions}


def suppressed() -> ir.Model:
    graph = Graph()
    boxes = graph.take("boxes", [1, 5, 4])
    found = graph.op("NonMaxSuppression", boxes, graph.take("scores", [1, 2, 5]), numbers(graph, 3))
    return graph.model(graph.op("Cast", found, to=TensorProto.FLOAT))


def simple(*shape: int | str, opset: int = 17, then: Callable[[Graph, str], str]) -> ir.Model:
    graph = Graph(opset)
    return graph.model(then(graph, graph.take("x", list(shape))))


def by_sample(graph: Graph, x: str) -> str:
    """Each sample takes a branch of its own."""
    mean = graph.op("ReduceMean", x, axes=[1], keepdims=0)
    inside = {}
    for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg")):
        output = helper.make_tensor_value_info(f"{name}_0", TensorProto.FLOAT, None)
        inside[name] = helper.make_graph([helper.make_node(kind, [x], [f"{name}_0"])], name, [], [output])
    return str(graph.op("If", graph.op("Greater", mean, graph.constant(np.zeros(1, np.float32))), **inside))


def all_pairs(graph: Graph, x: str) -> str:
    flat = graph.op("Reshape", x, numbers(graph, -1, 4))
    return str(graph.op("MatMul", flat, graph.op("Transpose", flat, perm=[1, 0])))


REFUSED: dict[str, tuple[Callable[[], ir.Model], str, str]] = {
    "suppression": (suppressed, "batch.not-free", "NonMaxSuppression"),
    "mean": (
        lambda: simple(1, 4, then=lambda g, x: g.op("Sub", x, g.op("ReduceMean", x, axes=[0]))),
        "batch.not-free", "`ReduceMean_0` (ReduceMean) cannot be given several samples: it makes one result of 2",
    ),
    "scale": (
        lambda: simple(1, 4, then=lambda g, x: g.op("Cast", g.op("DynamicQuantizeLinear", x, outputs=3)[0], to=1)),
        "batch.not-free", "(DynamicQuantizeLinear)",
    ),
    "pairs": (lambda: simple(1, 3, 4, then=all_pairs), "batch.not-free", "[6, 6], of one [3, 3]"),
    "cumulative": (
        lambda: simple(1, 4, then=lambda g, x: g.op("CumSum", x, g.constant(np.array(0)))),
        "batch.not-free", "mixes the samples",
    ),
    "random": (
        lambda: simple(1, 4, then=lambda g, x: g.op("Add", x, g.op("RandomNormalLike", x))),
        "batch.not-free", "another in every run",
    ),
    "branch": (lambda: simple(1, 4, then=by_sample), "batch.not-free", "each sample decides"),
    "count": (
        lambda: simple(1, 4, then=lambda g, x: g.op("Cast", g.op("Shape", x), to=1)),
        "batch.not-free", "follows from the number of samples",
    ),
    "data": (
        lambda: simple(1, 40, then=lambda g, x: g.op("Cast", g.op("NonZero", g.op("Relu", x)), to=1)),
        "batch.not-free", "follows from the data",
    ),
    "four": (lambda: simple(4, 3, then=lambda g, x: g.op("Relu", x)), "batch.fixed", "4 samples at a time"),
    "none": (
        lambda: simple("t", 3, then=lambda g, x: g.conv(g.op("Unsqueeze", x, numbers(g, 0, 1)), 1, 2)),
        "batch.none", "no axis of samples",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_freed_is_said(case: str, tmp_path: Path) -> None:
    make, code, said = REFUSED[case]
    model = make()
    with pytest.raises(StepError) as caught:
        freed(model, tmp_path)
    assert caught.value.code == code
    assert said in f"{caught.value.message}: {caught.value.cause}"
    outcome = freed(model, tmp_path, if_possible=True)
    assert outcome.model is model
    assert caught.value.message in outcome.left_because
    assert outcome.warnings


def test_a_branch_that_cannot_be_looked_at_is_no_branch_that_never_runs(tmp_path: Path) -> None:
    """It is taken for another flag."""
    model = branches((1, 24), (1, 24))
    inner = next(iter(model.graph)).attributes["then_branch"].as_graph()
    first = inner[0]
    split = ir.node("SplitToSequence", [first.outputs[0]], {"axis": 0, "keepdims": 1})
    back = ir.node("ConcatFromSequence", split.outputs, {"axis": 0})
    split.outputs[0].name, back.outputs[0].name = "parts", "whole"
    inner.insert_after(first, [split, back])
    inner[3].replace_input_with(0, back.outputs[0])
    with pytest.raises(StepError, match="SplitToSequence"):
        freed(model, tmp_path)


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


def test_equal_samples_tell_nothing(tmp_path: Path) -> None:
    outcome = freed(attention_in_time().model, tmp_path, Arrays({"x": np.ones((8, 5, 8), np.float32)}))
    assert {decision.node for decision in outcome.decisions} >= {"Reshape_1", "Reshape_8", "Reshape_10"}


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
