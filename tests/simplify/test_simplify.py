"""`simplify` on the bundled models: smaller graphs, the same results, and a reason for everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import RecipeError
from lepton_cli.graph.spec import Simplify
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.step import Outcome
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context, ops, rows, run


def _simplify(path: Path, tmp_path: Path, **options: object) -> Outcome:
    model = io.load(path).model
    return STEPS["simplify"].apply(
        model, Simplify(step="simplify", **options), context(Arrays({"x": np.zeros((1, 1))}), tmp_path)
    )


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("digits_cnn", ("image", (3, 1, 32, 32))),
        ("digits_mlp", ("pixels", (3, 64))),
        ("digits_vit", ("image", (3, 1, 8, 8))),
    ],
)
def test_results_stay_the_same(name: str, inputs: tuple[str, tuple[int, ...]], samples: Path, tmp_path: Path) -> None:
    path = samples / f"{name}.onnx"
    outcome = _simplify(path, tmp_path)
    feeds = {inputs[0]: np.random.default_rng(0).random(inputs[1], np.float32)}
    before = Session(path, threads=1).run(feeds)["logits"]
    after = Session(io.to_bytes(outcome.model), threads=1).run(feeds)["logits"]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    assert len(io.to_bytes(outcome.model)) <= len(io.to_bytes(io.load(path).model))


def test_batch_norm_is_folded_unless_told_otherwise(samples: Path, tmp_path: Path) -> None:
    path = samples / "digits_cnn.onnx"
    folded = _simplify(path, tmp_path)
    assert [d.action for d in folded.decisions if d.op == "BatchNormalization"] == ["folded"] * 27
    kept = _simplify(path, tmp_path, fold_batch_norm=False)
    assert sum(node.op_type == "BatchNormalization" for node in kept.model.graph) == 27
    some = _simplify(path, tmp_path, exclude=("/stages/*",))
    left = [node for node in some.model.graph if node.op_type == "BatchNormalization"]
    assert 0 < len(left) < 27


def test_nothing_to_do_is_no_error(samples: Path, tmp_path: Path) -> None:
    once = _simplify(samples / "digits_cnn.onnx", tmp_path).model
    twice = STEPS["simplify"].apply(once, Simplify(step="simplify"), context(Arrays({"x": np.zeros((1, 1))}), tmp_path))
    assert twice.changed == 0
    assert io.to_bytes(twice.model) == io.to_bytes(once)


def test_a_glob_without_match(samples: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        _simplify(samples / "digits_cnn.onnx", tmp_path, exclude=("/stage/*",))
    assert caught.value.option == ("exclude", 0)


def said(outcome: Outcome) -> list[tuple[str, str, str]]:
    return [(one.node, one.op, one.action) for one in outcome.decisions]


def simplify(model: ir.Model, tmp_path: Path, **options: object) -> Outcome:
    params = Simplify.model_validate({"step": "simplify", **options})
    return STEPS["simplify"].apply(model, params, context(Arrays({"x": np.zeros((1, 8))}), tmp_path))


def untidy() -> ir.Model:
    """A dead node, one that does nothing, a computed constant, a node twice, batch norm, a weight twice."""
    graph = Graph()
    x = graph.take("x", ["b", 3, 8, 8])
    graph.op("Tanh", x)
    y = graph.op("Identity", x)
    ones = [graph.constant(np.ones(4, np.float32)) for _ in range(4)]
    z = graph.op("BatchNormalization", graph.conv(y, 3, 4, relu=False), *ones)
    two = graph.op("Add", graph.constant(np.float32(1)), graph.constant(np.float32(1)))
    twice = [graph.op("Relu", z) for _ in range(2)]
    return graph.model(graph.op("Add", graph.op("Mul", twice[0], two), twice[1]))


def test_everything_that_goes_is_told_once(tmp_path: Path) -> None:
    model = untidy()
    before = io.to_bytes(model)
    outcome = simplify(model, tmp_path)
    assert io.to_bytes(model) == before
    assert [node.op_type for node in outcome.model.graph] == ["Conv", "Relu", "Mul", "Add"]
    found = said(outcome)
    assert ("Tanh_0", "Tanh", "removed") in found
    assert ("Identity_1", "Identity", "removed") in found
    assert ("BatchNormalization_3", "BatchNormalization", "folded") in found
    assert ("Add_4", "Add", "folded") in found
    assert ("Relu_6", "Relu", "merged") in found
    assert len(found) == len(set(found)) == outcome.changed
    assert outcome.summary == "2 removed, 2 folded, 1 merged"
    assert outcome.tolerance == 1e-3
    reasons = {one.node: one.reason for one in outcome.decisions}
    assert reasons["BatchNormalization_3"] == "folded into the layer before it"


def test_batch_norm_that_stays_is_told_but_not_counted(tmp_path: Path) -> None:
    graph = Graph()
    ones = [graph.constant(np.float32(np.linspace(1, 2, 8))) for _ in range(4)]
    x = graph.op("BatchNormalization", graph.op("Tanh", graph.take("x", ["b", 8])), *ones)
    model = graph.model(graph.op("Tanh", x))
    outcome = simplify(model, tmp_path)
    kept = [one for one in outcome.decisions if one.action == "kept"]
    assert [one.node for one in kept] == ["BatchNormalization_1"]
    assert outcome.changed == len(outcome.decisions) - 1
    assert "kept" not in outcome.summary
    without = simplify(model, tmp_path, fold_batch_norm=False)
    assert not [one for one in without.decisions if one.action == "kept"]


def test_equal_weights_are_held_once(tmp_path: Path) -> None:
    graph = Graph()
    parts = [graph.constant(np.arange(64, dtype=np.float32).reshape(8, 8)) for _ in range(2)]
    x = graph.op("Tanh", graph.op("MatMul", graph.take("x", ["b", 8]), parts[0]))
    outcome = simplify(graph.model(graph.op("MatMul", x, parts[1])), tmp_path)
    assert len(outcome.model.graph.initializers) == 1
    assert [(one.op, one.action, one.reason) for one in outcome.decisions] == [
        ("", "merged", "equal to another tensor")
    ]
    assert (outcome.changed, outcome.summary) == (1, "1 merged")


def test_inputs_with_default_values_become_weights(tmp_path: Path) -> None:
    graph = Graph()
    weight = graph.constant(np.eye(8, dtype=np.float32))
    graph.take("x", ["b", 8])
    graph.take(weight, [8, 8])
    outcome = simplify(graph.model(graph.op("MatMul", "x", weight)), tmp_path)
    assert [value.name for value in outcome.model.graph.inputs] == ["x"]
    assert [(one.node, one.action, one.reason) for one in outcome.decisions] == [
        (weight, "fixed", "was an input with a default value")
    ]
    assert outcome.summary == "1 fixed"


def test_nothing_to_do_says_so(tmp_path: Path) -> None:
    graph = Graph()
    outcome = simplify(graph.model(graph.op("Tanh", graph.take("x", ["b", 8]))), tmp_path)
    assert (outcome.changed, outcome.decisions, outcome.summary) == (0, (), "nothing to simplify")


def test_folding_one_thing_uncovers_another(tmp_path: Path) -> None:
    """Equal chains merge only from their beginning on: one link a round."""
    graph = Graph()
    ends = []
    for _ in range(2):
        x = "x"
        for kind in ("Tanh", "Relu", "Sigmoid"):
            x = graph.op(kind, x)
        ends.append(x)
    graph.take("x", ["b", 8])
    outcome = simplify(graph.model(graph.op("Add", *ends)), tmp_path)
    assert [node.op_type for node in outcome.model.graph] == ["Tanh", "Relu", "Sigmoid", "Add"]


def test_nodes_that_read_equal_numbers_are_one(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 4])
    halves = [graph.op("Div", x, graph.constant(np.float32(2))) for _ in range(2)]
    other = graph.op("Div", x, graph.constant(np.float32(3)))
    model = graph.model(graph.op("Sum", graph.op("Sin", halves[0]), graph.op("Cos", halves[1]), other))
    outcome = simplify(model, tmp_path)
    assert sorted(ops(outcome.model)) == ["Cos", "Div", "Div", "Sin", "Sum"]
    feeds = rows(4, 4)
    values = feeds.feeds["x"]
    np.testing.assert_allclose(run(outcome.model, feeds), np.sin(values / 2) + np.cos(values / 2) + values / 3, 1e-5)
    assert "w1" in {decision.node for decision in outcome.decisions if decision.action == "merged"}
