"""`distill` end to end: a damaged network is healed by its original, and what cannot be trained is said."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto

from lepton_cli.data.memory import Arrays
from lepton_cli.data.spec import TrainingSpec
from lepton_cli.data.training import TrainingData, open_training
from lepton_cli.errors import LeptonError
from lepton_cli.graph.batch import free
from lepton_cli.graph.edit import set_weight
from lepton_cli.graph.spec import BatchFree
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.step import Context, Outcome
from lepton_cli.train.details import TrainingDetails
from lepton_cli.train.spec import Distill, TrainingBudget
from lepton_cli.train.steps import distill
from tests.quantize.builders import Graph, context
from tests.train.test_outside import boxed, labelled, typed

ROWS = np.random.default_rng(2).normal(size=(1200, 8)).astype(np.float32)


def classifier(opset: int = 17) -> ir.Model:
    graph = Graph(opset)
    y = graph.op("Relu", graph.linear(graph.take("x", ["b", 8]), 8, 24))
    return graph.model(graph.linear(y, 24, 5))


def damaged(model: ir.Model, by: float = 0.3) -> ir.Model:
    made, random = io.clone(model), np.random.default_rng(3)
    for value in made.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.dtype == np.float32:
            set_weight(value, array + by * random.normal(size=array.shape).astype(np.float32) * array.std())
    return made


def given(model: ir.Model, folder: Path, **options: Any) -> TrainingData:
    np.savez(folder / "train.npz", x=ROWS)
    return open_training(TrainingSpec(path="train.npz", **options), io.inputs(model), seed=0, base=folder)


def around(original: ir.Model, folder: Path, **options: Any) -> Context:
    made = context(Arrays({"x": ROWS[:8]}), folder, original=original)
    return dataclasses.replace(made, training=given(original, folder, **options))


def trained(model: ir.Model, original: ir.Model, folder: Path, **options: Any) -> Outcome:
    budget = options.pop("budget", TrainingBudget(epochs=20))
    return distill(model, Distill(budget=budget, **options), around(original, folder))


def answers(model: ir.Model, rows: np.ndarray) -> np.ndarray:
    session = Session(io.to_bytes(model), threads=1)
    return session.run({"x": rows})[session.outputs[0].name]


def told(outcome: Outcome) -> TrainingDetails:
    assert isinstance(outcome.details, TrainingDetails)
    return outcome.details


def test_a_damaged_network_answers_like_its_original_again(tmp_path: Path) -> None:
    original = classifier()
    broken = damaged(original)
    outcome = trained(broken, original, tmp_path)
    fresh = np.random.default_rng(9).normal(size=(500, 8)).astype(np.float32)
    right = answers(original, fresh)
    before, after = (np.square(answers(one, fresh) - right).mean() for one in (broken, outcome.model))
    assert after < 0.2 * before
    details = told(outcome)
    assert details.kept_step > 0
    assert details.agreement_after is not None
    assert details.agreement_before is not None
    assert details.agreement_after > details.agreement_before
    assert details.losses == {original.graph.outputs[0].name: "distil"}
    assert {one.action for one in outcome.decisions} == {"trained"}
    assert outcome.changed == len(outcome.decisions) == 2
    assert [node.op_type for node in outcome.model.graph] == [node.op_type for node in broken.graph]


def test_a_teacher_may_be_a_file_beside_the_recipe(tmp_path: Path) -> None:
    original = classifier()
    broken = damaged(original)
    (tmp_path / "teacher.onnx").write_bytes(io.to_bytes(original))
    outcome = trained(broken, broken, tmp_path, teacher="teacher.onnx")
    assert told(outcome).teacher == "teacher.onnx"
    rows = ROWS[:100]
    before, after = (np.square(answers(one, rows) - answers(original, rows)).mean() for one in (broken, outcome.model))
    assert after < 0.3 * before
    refused("model.missing", broken, around(broken, tmp_path), teacher="nowhere.onnx")


def test_the_original_itself_is_kept_as_it_was(tmp_path: Path) -> None:
    original = classifier()
    outcome = trained(original, original, tmp_path, budget=TrainingBudget(epochs=1))
    assert outcome.model is original
    assert outcome.changed == 0
    assert "kept as it was" in outcome.left_because
    assert told(outcome).kept_step == 0


def test_keep_last_takes_what_came(tmp_path: Path) -> None:
    original = classifier()
    outcome = trained(original, original, tmp_path, budget=TrainingBudget(epochs=1), keep="last")
    assert outcome.changed
    assert told(outcome).kept_step == told(outcome).steps
    assert f"to {told(outcome).marks[-1].loss:.4g} on" in outcome.summary


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    original = classifier()
    made = [
        io.to_bytes(
            trained(
                damaged(original), original, tmp_path, budget=TrainingBudget(samples=1000), precision="float32"
            ).model
        )
        for _ in range(2)
    ]
    assert made[0] == made[1]


def test_only_what_is_included_is_trained(tmp_path: Path) -> None:
    original = classifier()
    broken = damaged(original)
    outcome = trained(broken, original, tmp_path, include=("Gemm_2",))
    changed = {
        name
        for name, value in broken.graph.initializers.items()
        if not np.array_equal(value.const_value.numpy(), outcome.model.graph.initializers[name].const_value.numpy())  # type: ignore[union-attr]
    }
    assert changed == {"w2", "w3"}


@pytest.mark.parametrize(
    ("budget", "batch", "steps"),
    [
        ({"epochs": 2}, 16, 144),
        ({"samples": 300}, 16, 19),
        ({"epochs": 0.001}, 16, 1),
        ({"samples": 12_000}, 24, 500),
        ({"samples": 66_000}, 128, 516),
    ],
)
def test_budgets_are_steps(budget: dict[str, Any], batch: int, steps: int, tmp_path: Path) -> None:
    """At least 500 steps, where they need not have fewer than 16 samples."""
    original = classifier()
    outcome = trained(damaged(original), original, tmp_path, budget=TrainingBudget(**budget))
    details = told(outcome)
    assert details.samples + details.kept_apart == len(ROWS)
    assert details.steps == steps
    assert details.batch == batch


def test_a_rate_that_harms_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_cli.train.course.RATES", (10.0, 1e-2))
    original = classifier()
    details = told(trained(damaged(original, 0.1), original, tmp_path))
    assert details.rates_too_high == (10.0,)
    assert details.learning_rate == 1e-2


@pytest.mark.parametrize("shape", [[-1, 24], [1, -1, 24]])
def test_samples_that_a_graph_would_mix_go_in_alone(shape: list[int], tmp_path: Path) -> None:
    """A softmax over all rows of what was meant to be one sample: more at once give other numbers, and no error."""
    graph = Graph()
    y = graph.op("Relu", graph.linear(graph.take("x", ["b", 8]), 8, 24))
    y = graph.op("Reshape", y, graph.constant(np.array([1, -1, 24], np.int64)))
    y = graph.op("Softmax", y, axis=1) if len(shape) == 3 else y
    y = graph.op("Reshape", y, graph.constant(np.array([-1, 24], np.int64)))
    original = graph.model(graph.linear(y, 24, 5))
    outcome = trained(damaged(original), original, tmp_path, budget=TrainingBudget(epochs=2))
    fresh = np.random.default_rng(9).normal(size=(40, 8)).astype(np.float32)
    distances = [
        np.mean([np.square(answers(one, row[None]) - answers(original, row[None])).mean() for row in fresh])
        for one in (damaged(original), outcome.model)
    ]
    assert distances[1] < distances[0]
    assert told(outcome).piece == (1 if len(shape) == 3 else 0)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_trains_piece_by_piece(batch: int, tmp_path: Path) -> None:
    graph = Graph()
    y = graph.op("Relu", graph.linear(graph.take("x", [batch, 8]), 8, 24))
    y = graph.op("Reshape", y, graph.constant(np.array([batch, 24], np.int64)))
    original = graph.model(graph.linear(y, 24, 5))
    data = Arrays({"x": ROWS[:8]}).of(io.inputs(original), "check")
    made = context(data, tmp_path, original=original)
    made = dataclasses.replace(made, training=given(original, tmp_path))
    broken = damaged(original)
    outcome = distill(broken, Distill(budget=TrainingBudget(samples=2560)), made)
    details = told(outcome)
    assert details.piece == batch
    assert details.steps * details.batch == 2560
    assert details.marks[details.kept_step * 8 // details.steps].loss < details.marks[0].loss
    fresh = np.random.default_rng(9).normal(size=(40, batch, 8)).astype(np.float32)
    before, after = (
        np.mean([np.square(answers(one, rows) - answers(original, rows)).mean() for rows in fresh])
        for one in (broken, outcome.model)
    )
    assert after < before


def test_a_freed_batch_goes_in_whole_and_the_teacher_answers_in_pieces(tmp_path: Path) -> None:
    """What the recipe began with, and with it the data, takes one sample at a time; one output has it in the middle."""
    graph = Graph()
    y = graph.op("Relu", graph.linear(graph.take("x", [1, 8]), 8, 24))
    y = graph.op("Softmax", graph.op("Reshape", y, graph.constant(np.array([1, 4, 6]))), axis=1)
    state = graph.op("Transpose", y, perm=[1, 0, 2])
    y = graph.linear(graph.op("Reshape", y, graph.constant(np.array([1, 24]))), 24, 5)
    original = graph.model(y, state)
    data = Arrays({"x": ROWS[:8]}).of(io.inputs(original), "check")
    made = dataclasses.replace(context(data, tmp_path, original=original), training=given(original, tmp_path))
    start = free(damaged(original), BatchFree(), made).model
    outcome = distill(start, Distill(budget=TrainingBudget(epochs=4)), made)
    assert told(outcome).piece == 0
    before, after, taught = (Session(io.to_bytes(one), threads=1) for one in (start, outcome.model, original))
    fresh = np.random.default_rng(9).normal(size=(40, 8)).astype(np.float32)
    alone = [taught.run({"x": row[None]}) for row in fresh]
    for name, axis in ((y, 0), (state, 1)):
        wanted = np.concatenate([one[name] for one in alone], axis)
        was, now = (np.square(one.run({"x": fresh})[name] - wanted).mean() for one in (before, after))
        assert now < 0.5 * was


@pytest.mark.parametrize(("asked", "taken"), [(3, 4), (9, 8), ("auto", 16)])
def test_a_batch_is_of_whole_pieces(asked: Any, taken: int, tmp_path: Path) -> None:
    graph = Graph()
    original = graph.model(graph.linear(graph.take("x", [4, 8]), 8, 5))
    made = context(Arrays({"x": ROWS[:8]}).of(io.inputs(original), "check"), tmp_path, original=original)
    made = dataclasses.replace(made, training=given(original, tmp_path))
    outcome = distill(damaged(original), Distill(budget=TrainingBudget(samples=20), batch=asked), made)
    assert told(outcome).batch == taken


def test_the_settings_of_torch_are_left_as_they_were(tmp_path: Path) -> None:
    original = classifier()
    torch.set_num_threads(2)
    try:
        trained(original, original, tmp_path, budget=TrainingBudget(epochs=1))
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(1)


def refused(code: str, model: ir.Model, context: Context, **options: Any) -> LeptonError:
    with pytest.raises(LeptonError) as caught:
        distill(model, Distill(**options), context)
    assert caught.value.code == code
    return caught.value


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = classifier()
    bare = context(Arrays({"x": ROWS[:8]}), tmp_path, original=original)
    assert "labels are not needed" in (refused("data.training-missing", original, bare).hint or "")
    refused("data.holdout", original, around(original, tmp_path, holdout="0 %"))
    refused("train.nothing", original, around(original, tmp_path), exclude=("*",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = refused("environment.missing-extra", original, around(original, tmp_path))
    assert "lepton-cli[train]" in (error.hint or "")
    assert "whl/cpu" in (error.hint or "")


def label(seed: int = 0) -> ir.Model:
    """Class numbers alone, as floats, from `classes`."""
    graph = Graph(seed=seed)
    y = graph.op("ArgMax", graph.linear(graph.take("x", ["b", 8]), 8, 5), axis=1, keepdims=0)
    model = graph.model(graph.op("Cast", y, to=TensorProto.FLOAT))
    model.graph[0].outputs[0].name = "classes"
    return model


def test_a_label_is_learnt_by_the_classes_it_is_picked_from(tmp_path: Path) -> None:
    """As the model that ends with the classes learns them, to the byte."""
    original, options = label(), {"budget": TrainingBudget(samples=2000), "precision": "float32"}
    broken = damaged(original)
    outcome = trained(broken, original, tmp_path, **options)
    details, name = told(outcome), original.graph.outputs[0].name
    assert details.losses == {"classes": "distil"}
    assert details.in_place == {name: ("classes",)}
    assert f"learnt in the place of `{name}`: `classes`" in outcome.summary
    open_, opened = (cut(one, "classes") for one in (broken, original))
    assert weights(outcome.model) == weights(trained(open_, opened, tmp_path, **options).model) != weights(broken)
    fresh = np.random.default_rng(9).normal(size=(500, 8)).astype(np.float32)
    before, after = (np.mean(answers(one, fresh) == answers(original, fresh)) for one in (broken, outcome.model))
    assert after > before


def cut(model: ir.Model, name: str) -> ir.Model:
    """The model that ends with the value."""
    made = io.clone(model)
    made.graph.outputs[:] = [value for node in made.graph for value in node.outputs if value.name == name]
    for node in reversed(list(made.graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            made.graph.remove(node, safe=True)
    return made


def weights(model: ir.Model) -> dict[str | None, bytes]:
    return {value.name: value.const_value.tobytes() for value in model.graph.initializers.values() if value.const_value}


def test_agreement_is_that_of_the_labels(tmp_path: Path) -> None:
    graph = Graph()
    model = typed(graph, **labelled(graph, graph.linear(graph.take("x", ["b", 8]), 8, 3)))
    broken = damaged(model, 0.6)
    made = around(model, tmp_path)
    outcome = distill(broken, Distill(budget=TrainingBudget(epochs=5)), made)
    assert made.training is not None
    assert made.training.holdout is not None
    rows = np.concatenate([batch.feeds["x"] for batch in made.training.holdout.batches(100)])
    right = answers(model, rows)
    expected = [np.mean(answers(one, rows) == right) for one in (broken, outcome.model)]
    assert [told(outcome).agreement_before, told(outcome).agreement_after] == pytest.approx(expected)
    assert expected[0] < expected[1]


def test_boxes_are_learnt_before_suppression(tmp_path: Path) -> None:
    graph = Graph()
    inner = graph.op("Relu", graph.linear(graph.take("x", ["b", 8]), 8, 48))
    boxes, scores, left, chosen = boxed(graph, graph.op("Reshape", inner, graph.constant(np.array([0, 6, 8]))), 8)
    model = typed(graph, **{left: TensorProto.INT64, chosen: TensorProto.FLOAT})
    broken = damaged(model)
    outcome = trained(broken, model, tmp_path, budget=TrainingBudget(epochs=5))
    details = told(outcome)
    assert set(details.in_place) == {left, chosen}
    assert len(set(details.in_place.values())) == 1
    assert boxes in details.losses
    assert len(details.losses) == 2
    fresh = np.random.default_rng(9).normal(size=(300, 8)).astype(np.float32)
    for name in (boxes, scores):
        wanted, was, now = (answers(cut(one, name), fresh) for one in (model, broken, outcome.model))
        assert np.square(now - wanted).mean() < 0.1 * np.square(was - wanted).mean()


def test_what_another_output_teaches_already_is_not_taught_again(tmp_path: Path) -> None:
    graph = Graph()
    shares = graph.op("Softmax", graph.linear(graph.take("x", ["b", 8]), 8, 5))
    number = graph.op("ArgMax", shares, axis=1)
    model = typed(graph, **{shares: TensorProto.FLOAT, number: TensorProto.INT64})
    details = told(trained(damaged(model), model, tmp_path, budget=TrainingBudget(samples=500)))
    assert details.losses == {shares: "distil_shares"}
    assert details.in_place == {}


def test_where_the_teacher_has_nothing_of_the_same_name_the_node_is_named(tmp_path: Path) -> None:
    model = label()
    other = io.clone(model)
    other.graph[0].outputs[0].name = "elsewhere"
    error = refused("train.no-gradient", model, around(other, tmp_path))
    assert "`ArgMax_1` (ArgMax)" in error.message
    assert "the same name" in (error.cause or "")


def test_a_teacher_with_other_outputs_is_refused(tmp_path: Path) -> None:
    graph = Graph()
    other = graph.model(graph.linear(graph.op("Relu", graph.linear(graph.take("x", ["b", 8]), 8, 24)), 24, 7))
    other.graph.outputs[0].name = classifier().graph.outputs[0].name
    refused("train.teacher", classifier(), around(other, tmp_path))


def test_a_loss_that_is_no_number_from_the_start(tmp_path: Path) -> None:
    original = classifier()
    made = around(original, tmp_path)
    error = refused("train.diverged", damaged(original), made, learning_rate=1e30)
    assert "learning_rate" in (error.hint or "")


def test_a_plan_trains_nothing(tmp_path: Path) -> None:
    original = classifier()
    made = dataclasses.replace(around(original, tmp_path), dry=True)
    outcome = distill(original, Distill(budget=TrainingBudget(samples=3000)), made)
    assert outcome.model is original
    assert re.fullmatch(
        r"188 steps of 16 out of 1,1\d\d samples, about [\d.]+ m?s for the model as it is", outcome.summary
    )


def test_a_plan_says_what_could_not_be_trained(tmp_path: Path) -> None:
    model, other = label(), label()
    other.graph[0].outputs[0].name = "elsewhere"
    refused("train.no-gradient", model, dataclasses.replace(around(other, tmp_path), dry=True))


@pytest.mark.parametrize("values", [{"epochs": 1, "samples": 3}, {}, {"epochs": 0}, {"time": "0 s"}, {"samples": 0}])
def test_a_budget_is_one_number_above_zero(values: dict[str, Any]) -> None:
    with pytest.raises(LeptonError):
        TrainingBudget(**values)


@pytest.mark.parametrize("values", [{"learning_rate": 0}, {"learning_rate": -1}, {"batch": 0}, {"precision": "int8"}])
def test_options_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(LeptonError):
        Distill(**values)
