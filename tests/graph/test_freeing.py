"""Nodes that mix samples are named, and branches are walked through, those that these samples do not take too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lepton_cli.errors import StepError
from lepton_cli.model import io
from lepton_cli.runtime import Session
from tests.graph.one_sample import freed, numbers, simple
from tests.quantize.builders import Graph


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
