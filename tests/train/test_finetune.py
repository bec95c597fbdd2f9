"""`finetune` end to end: what labels ask for is found as closed forms have it, and what does not fit is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto

from lepton_cli.data.memory import Arrays
from lepton_cli.data.spec import Augmentation, TrainingSpec
from lepton_cli.data.training import TrainingBatch, TrainingData, open_training
from lepton_cli.errors import LeptonError
from lepton_cli.graph.heads import add, replace
from lepton_cli.graph.spec import HeadAdd, HeadReplace
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.step import Context, Outcome
from lepton_cli.train.details import TrainingDetails
from lepton_cli.train.labels import Labelled
from lepton_cli.train.network import Network
from lepton_cli.train.spec import Distill, Finetune, TrainingBudget, TrainingLoss
from lepton_cli.train.steps import distill, finetune
from tests.quantize.builders import Graph, context
from tests.train.test_outside import labelled, typed

COUNT = 400
RANDOM = np.random.default_rng(5)
ROWS = RANDOM.normal(size=(COUNT, 6)).astype(np.float32)
#: What the labels are made of, with noise: no weights make the losses zero.
TRUE = RANDOM.normal(size=(6, 3))
NOISE = RANDOM.normal(size=(COUNT, 3))
CLASSES = (ROWS @ TRUE + NOISE).argmax(1)
NUMBERS = (ROWS @ TRUE + 0.5 * NOISE + [1, -2, 0.5]).astype(np.float32)


def linear(*heads: str, batch: int | str = "b", last: str = "", wide: int = 3) -> ir.Model:
    """A Gemm per head, each an output."""
    graph = Graph()
    x = graph.take("x", [batch, 6])
    made = [graph.linear(x, 6, wide) for _ in heads]
    made = [graph.op(last, one) if last else one for one in made]
    model = graph.model(*made)
    for value, name in zip(model.graph.outputs, heads, strict=True):
        value.name = name
    return model


def given(model: ir.Model, folder: Path, options: dict[str, Any] | None = None, **labels: np.ndarray) -> Context:
    np.savez(folder / "train.npz", x=ROWS, **labels)
    spec = TrainingSpec(path="train.npz", labels={name: name for name in labels} or None, **(options or {}))
    data = open_training(spec, io.inputs(model), seed=0, base=folder)
    check = Arrays({"x": ROWS[:8]}).of(io.inputs(model), "check")
    return dataclasses.replace(context(check, folder, original=model), training=data)


def seen(around: Context) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Every training sample once."""
    assert around.training is not None
    data: TrainingData = around.training
    batch = data.batch(0, data.count)
    return np.hstack([batch.feeds["x"].astype(float), np.ones((data.count, 1))]), batch.labels


def tuned(model: ir.Model, around: Context, *losses: dict[str, Any], **options: Any) -> Outcome:
    """To the end, all samples in every step."""
    assert around.training is not None
    defaults: dict[str, Any] = {"learning_rate": 1.0, "precision": "float32", "keep": "last"}
    defaults |= {"batch": around.training.count, "budget": TrainingBudget(epochs=250)}
    return finetune(
        model, Finetune(losses=tuple(TrainingLoss(**one) for one in losses), **(defaults | options)), around
    )


def head(model: ir.Model, number: int = 0) -> np.ndarray:
    """Weights and bias of a Gemm, `[inputs + 1, outputs]`."""
    gemm = [node for node in model.graph if node.op_type == "Gemm"][number]
    weight, bias = (value.const_value.numpy() for value in gemm.inputs[1:])  # type: ignore[union-attr]
    weight = weight.T if gemm.attributes.get_int("transB", 0) else weight
    return np.vstack([weight, bias[None]]).astype(float)


def shares(x: np.ndarray) -> np.ndarray:
    made = np.exp(x - x.max(1, keepdims=True))
    return made / made.sum(1, keepdims=True)


def logistic(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The optimum of the cross-entropy, by Newton's method; one column is zero, as a constant for all is free."""
    classes = targets.shape[1]
    weights = np.zeros((rows.shape[1], classes))
    for _ in range(30):
        found = shares(rows @ weights)
        gradient = (rows.T @ (found - targets))[:, 1:].T.ravel()
        blocks = [
            [rows.T @ (rows * (found[:, [i]] * ((i == j) - found[:, [j]]))) for j in range(1, classes)]
            for i in range(1, classes)
        ]
        weights[:, 1:] -= np.linalg.solve(np.block(blocks), gradient).reshape(classes - 1, -1).T
    return weights


def centred(weights: np.ndarray) -> np.ndarray:
    return weights - weights.mean(1, keepdims=True)


def answers(model: ir.Model, rows: np.ndarray, name: str) -> np.ndarray:
    return Session(io.to_bytes(model), threads=1).run({"x": rows.astype(np.float32)}, [name])[name]


def told(outcome: Outcome) -> TrainingDetails:
    assert isinstance(outcome.details, TrainingDetails)
    return outcome.details


@pytest.mark.parametrize("last", ["", "Softmax"])
def test_class_numbers_lead_to_the_optimum_of_logistic_regression(last: str, tmp_path: Path) -> None:
    model = linear("logits", last=last)
    around = given(model, tmp_path, labels=CLASSES)
    outcome = tuned(model, around)
    rows, labels = seen(around)
    expected = logistic(rows, np.eye(3)[labels["labels"]])
    np.testing.assert_allclose(centred(head(outcome.model)), centred(expected), atol=0.02)
    details = told(outcome)
    assert details.losses == {"logits": "cross_entropy_shares" if last else "cross_entropy"}
    holdout = next(around.training.holdout.batches(size=COUNT))  # type: ignore[union-attr]
    for one, accuracy in ((model, details.accuracy_before), (outcome.model, details.accuracy_after)):
        right = answers(one, holdout.feeds["x"], "logits").argmax(1) == holdout.labels["labels"]
        assert accuracy == pytest.approx(right.mean())
    assert f"accuracy {details.accuracy_before:.1%} to {details.accuracy_after:.1%}" in outcome.summary


@pytest.mark.parametrize("classes_at", [1, 2])
def test_every_place_of_a_sample_has_a_class(classes_at: int, tmp_path: Path) -> None:
    """`[samples, classes, places]` as in images, `[samples, places, classes]` as in texts."""
    shape = [-1, 3, 2] if classes_at == 1 else [-1, 2, 3]
    graph = Graph()
    sums = graph.linear(graph.take("x", ["b", 6]), 6, 6)
    model = graph.model(graph.op("Reshape", sums, graph.constant(np.array(shape, np.int64))))
    around = given(model, tmp_path, labels=np.stack([CLASSES, CLASSES[::-1]], 1))
    outcome = tuned(model, around, {"kind": "cross_entropy"})
    rows, labels = seen(around)
    found = head(outcome.model).reshape(7, *shape[1:])
    for place in range(2):
        expected = centred(logistic(rows, np.eye(3)[labels["labels"][:, place]]))
        np.testing.assert_allclose(centred(found.take(place, 3 - classes_at)), expected, atol=0.02)
    holdout = next(around.training.holdout.batches(size=COUNT))  # type: ignore[union-attr]
    right = answers(outcome.model, holdout.feeds["x"], model.graph.outputs[0].name or "").argmax(classes_at)
    assert told(outcome).accuracy_after == pytest.approx((right == holdout.labels["labels"]).mean())


@pytest.mark.parametrize(("last", "said"), [("", "binary"), ("Sigmoid", "binary_shares")])
def test_yes_or_no_leads_to_the_same_as_two_classes(last: str, said: str, tmp_path: Path) -> None:
    model = linear("chance", last=last, wide=1)
    around = given(model, tmp_path, labels=(CLASSES == 0).astype(np.int64))
    outcome = tuned(model, around, {"kind": "binary"})
    rows, labels = seen(around)
    expected = logistic(rows, np.eye(2)[labels["labels"]])
    np.testing.assert_allclose(head(outcome.model)[:, 0], expected[:, 1], atol=0.02)
    assert told(outcome).losses == {"chance": said}


def test_sums_from_zero_to_one_are_no_probabilities(tmp_path: Path) -> None:
    model = linear("chance", wide=1)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=value.name)  # type: ignore[union-attr]
    outcome = tuned(
        model, given(model, tmp_path, labels=CLASSES % 2), {"kind": "binary"}, budget=TrainingBudget(epochs=1)
    )
    assert told(outcome).losses == {"chance": "binary"}


def test_shares_of_classes_are_learnt(tmp_path: Path) -> None:
    """Labels that a model of the same kind gives: its weights are found."""
    model, truth = linear("logits"), np.vstack([TRUE, [[0.5, -1, 0.5]]])
    targets = shares(np.hstack([ROWS, np.ones((COUNT, 1))]) @ truth)
    outcome = tuned(model, given(model, tmp_path, labels=targets.astype(np.float32)), {"kind": "cross_entropy"})
    np.testing.assert_allclose(centred(head(outcome.model)), centred(truth), atol=0.02)
    assert told(outcome).accuracy_after is None


@pytest.mark.parametrize("batch", ["b", 1])
def test_numbers_lead_to_least_squares_piece_by_piece_too(batch: int | str, tmp_path: Path) -> None:
    """Labels `[n]` for an output `[n, 1]`."""
    model = linear("number", batch=batch, wide=1)
    around = given(model, tmp_path, labels=NUMBERS[:, 0])
    short = {} if batch == "b" else {"batch": 40, "budget": TrainingBudget(epochs=10)}
    outcome = tuned(model, around, **short)
    rows, labels = seen(given(linear("number", wide=1), tmp_path, labels=NUMBERS[:, 0]))
    expected = np.linalg.lstsq(rows, labels["labels"].astype(float), rcond=None)[0]
    np.testing.assert_allclose(head(outcome.model)[:, 0], expected, atol=0.01 if batch == "b" else 0.1)
    assert told(outcome).piece == (0 if batch == "b" else 1)


def test_several_outputs_learn_at_once(tmp_path: Path) -> None:
    model = linear("kind", "size")
    around = given(model, tmp_path, kind=CLASSES, size=NUMBERS)
    outcome = tuned(model, around, {"output": "kind"}, {"output": "size", "weight": 0.5})
    rows, labels = seen(around)
    np.testing.assert_allclose(
        centred(head(outcome.model)), centred(logistic(rows, np.eye(3)[labels["kind"]])), atol=0.02
    )
    squares = np.linalg.lstsq(rows, labels["size"].astype(float), rcond=None)[0]
    np.testing.assert_allclose(head(outcome.model, 1), squares, atol=0.01)
    details = told(outcome)
    assert details.losses == {"kind": "cross_entropy", "size": "mse"}
    assert [(part.output, part.kind, part.weight) for part in details.parts] == [
        ("kind", "cross_entropy", 1),
        ("size", "mse", 0.5),
    ]
    holdout = next(around.training.holdout.batches(size=COUNT))  # type: ignore[union-attr]
    far = np.square(answers(outcome.model, holdout.feeds["x"], "size") - holdout.labels["size"]).mean()
    assert details.parts[1].after == pytest.approx(far, rel=1e-4)
    assert details.marks[-1].loss == pytest.approx(details.parts[0].after + 0.5 * details.parts[1].after, rel=1e-4)


def test_weights_are_those_of_the_sum(tmp_path: Path) -> None:
    """Two wishes for one output, one of whole numbers: least squares for their weighted mean."""
    model, other = linear("number"), NUMBERS[::-1].round().astype(np.int64)
    around = given(model, tmp_path, one=NUMBERS, two=other)
    outcome = tuned(model, around, {"labels": "one"}, {"labels": "two", "weight": 3.0, "kind": "mse"})
    rows, labels = seen(around)
    expected = np.linalg.lstsq(rows, (labels["one"] + 3.0 * labels["two"]) / 4, rcond=None)[0]
    np.testing.assert_allclose(head(outcome.model), expected, atol=0.01)
    assert told(outcome).losses == {"number": "mse + mse"}


def test_a_value_inside_can_learn(tmp_path: Path) -> None:
    graph = Graph()
    inner = graph.linear(graph.take("x", ["b", 6]), 6, 3)
    model = graph.model(graph.linear(graph.op("Relu", inner), 3, 2))
    around = given(model, tmp_path, labels=NUMBERS)
    outcome = tuned(model, around, {"output": inner}, hold=False)
    rows, labels = seen(around)
    np.testing.assert_allclose(
        head(outcome.model), np.linalg.lstsq(rows, labels["labels"].astype(float), rcond=None)[0], atol=0.01
    )
    np.testing.assert_array_equal(head(outcome.model, 1), head(model, 1))


def test_the_labels_of_mixed_samples_are_both_counted(tmp_path: Path) -> None:
    model = linear("logits")
    around = given(model, tmp_path, {"augment": (Augmentation(mixup=1.0),)}, labels=CLASSES)
    assert around.training is not None
    batch = around.training.batch(0, 50)
    network = Network(model)
    task = Labelled(TrainingLoss(), "logits", network, around.training, [batch])
    feeds = {"x": torch.from_numpy(batch.feeds["x"].copy())}
    found = float(task.loss(network.run(feeds), task.answers(batch, feeds)).detach())
    logs = np.log(shares(answers(model, batch.feeds["x"], "logits").astype(float)))
    assert isinstance(batch, TrainingBatch)
    assert batch.share is not None
    first, second = (-logs[np.arange(50), one["labels"]] for one in (batch.labels, batch.partners))
    assert np.abs(first - second).max() > 1
    assert found == pytest.approx((batch.share * first + (1 - batch.share) * second).mean(), rel=1e-5)
    assert told(tuned(model, around, budget=TrainingBudget(epochs=20), batch=50)).accuracy_after is not None


def test_names_of_classes_are_their_positions(tmp_path: Path) -> None:
    model = linear("logits")
    names = np.array(["ape", "bee", "cat"])[CLASSES]
    by_name, by_number = (
        tuned(model, given(model, tmp_path, labels=labels), budget=TrainingBudget(epochs=5))
        for labels in (names, CLASSES)
    )
    np.testing.assert_array_equal(head(by_name.model), head(by_number.model))


def test_what_answers_rightly_is_kept_as_it_was(tmp_path: Path) -> None:
    model = linear("number")
    labels = answers(model, ROWS, "number")
    outcome = tuned(model, given(model, tmp_path, labels=labels), keep="best", budget=TrainingBudget(epochs=2))
    assert outcome.model is model
    assert "kept as it was" in outcome.left_because


def test_labels_and_a_teacher_are_learnt_together(tmp_path: Path) -> None:
    model, teacher = linear("kind", "size"), linear("kind", "size")
    gemm = [node for node in teacher.graph if node.op_type == "Gemm"][1]
    value = gemm.inputs[1]
    assert value is not None
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy()[::-1].copy() + np.float32(0.5), name=value.name)
    around = dataclasses.replace(given(model, tmp_path, kind=CLASSES), original=teacher)
    outcome = tuned(model, around, {"output": "kind"}, {"output": "size", "kind": "distill"})
    rows, labels = seen(around)
    np.testing.assert_allclose(
        centred(head(outcome.model)), centred(logistic(rows, np.eye(3)[labels["kind"]])), atol=0.02
    )
    np.testing.assert_allclose(centred(head(outcome.model, 1)), centred(head(teacher, 1)), atol=0.01)
    assert told(outcome).teacher == "the original"
    (tmp_path / "teacher.onnx").write_bytes(io.to_bytes(teacher))
    alone = dataclasses.replace(given(model, tmp_path), original=model)
    outcome = tuned(model, alone, {"output": "size", "kind": "distill"}, teacher="teacher.onnx", hold=False)
    np.testing.assert_allclose(centred(head(outcome.model, 1)), centred(head(teacher, 1)), atol=0.01)
    np.testing.assert_array_equal(head(outcome.model), head(model))


def test_distill_takes_labels_for_a_share_of_the_loss(tmp_path: Path) -> None:
    original, student = linear("logits"), linear("logits")
    for value in student.graph.initializers.values():
        value.const_value = ir.tensor(-0.5 * value.const_value.numpy(), name=value.name)  # type: ignore[union-attr]
    around = dataclasses.replace(given(student, tmp_path, labels=CLASSES), original=original)
    options = Distill(labels="30 %", budget=TrainingBudget(epochs=10), learning_rate=0.2, precision="float32")
    outcome = distill(student, options, around)
    holdout = next(around.training.holdout.batches(size=COUNT))  # type: ignore[union-attr]
    mine, right = (answers(one, holdout.feeds["x"], "logits").astype(float) for one in (student, original))
    entropy = -np.log(shares(mine)[np.arange(len(mine)), holdout.labels["labels"]]).mean()
    soft = shares(right / 4)
    taught = 16 * (soft * np.log(soft / shares(mine / 4))).sum(1).mean()
    details = told(outcome)
    assert details.marks[0].loss == pytest.approx(0.7 * taught + 0.3 * entropy, rel=1e-4)
    assert details.losses == {"logits": "distil + cross_entropy"}
    assert [part.before for part in details.parts] == pytest.approx([taught, entropy], rel=1e-4)
    assert details.agreement_after is not None
    assert details.accuracy_after is not None
    assert details.agreement_after > (details.agreement_before or 0)
    none = {"budget": TrainingBudget(epochs=1)}
    refused("data.no-labels", distill, student, given(student, tmp_path), Distill(labels="30 %", **none))
    numbers = linear("number", wide=1)
    refused("train.no-classes", distill, numbers, given(numbers, tmp_path, labels=CLASSES), options)


def refused(code: str, step: Any, model: ir.Model, around: Context, options: Any) -> LeptonError:
    with pytest.raises(LeptonError) as caught:
        step(model, options, around)
    assert caught.value.code == code
    return caught.value


NAN = NUMBERS.copy()
NAN[-1, 0] = np.nan


@pytest.mark.parametrize(
    ("labels", "losses", "code", "words"),
    [
        ({}, [], "data.no-labels", ["labels: …", "distill"]),
        ({"labels": CLASSES}, [{"labels": "lables"}], "data.unknown-labels", ["`lables`", "did you mean `labels`?"]),
        ({"one": CLASSES, "two": CLASSES}, [], "data.unknown-labels", ["which labels", "`one`, `two`"]),
        ({"labels": CLASSES + 1}, [], "data.labels", ["1 to 3", "`logits` has 3 classes (0 to 2)", "label_offset: -1"]),
        ({"labels": NUMBERS[:, 0]}, [{"kind": "cross_entropy"}], "data.labels", ["not class numbers"]),
        ({"labels": NUMBERS}, [{"kind": "cross_entropy"}], "data.labels", ["add up to 1", "binary"]),
        ({"labels": NUMBERS[:, :2]}, [{"kind": "mse"}], "data.labels", ["[2]", "[3]"]),
        ({"labels": NUMBERS}, [{"kind": "binary"}], "data.labels", ["0, 1 or shares"]),
        ({"labels": NAN}, [], "data.labels", ["NaN"]),
        ({"labels": NUMBERS[:, :2]}, [], "train.which-loss", ["[64, 2]", "[64, 3]", "kind: …"]),
        ({"labels": CLASSES}, [{"output": "logit"}], "train.loss-output", ["`logit`", "did you mean `logits`?"]),
        (
            {"labels": CLASSES},
            [{"output": "class"}],
            "train.loss-output",
            ["labels need floats", "outputs of floats: `logits`, `number`"],
        ),
        ({"labels": CLASSES}, [{"output": "w0"}], "train.loss-output", ["[3] for 8 samples"]),
    ],
)
def test_what_does_not_fit_is_said(
    labels: dict[str, np.ndarray], losses: list[dict[str, Any]], code: str, words: list[str], tmp_path: Path
) -> None:
    graph = Graph()
    logits = graph.linear(graph.take("x", ["b", 6]), 6, 3)
    model = graph.model(logits, graph.op("Cast", graph.op("ArgMax", logits, axis=1), to=TensorProto.FLOAT))
    for value, name in zip(model.graph.outputs, ("logits", "number"), strict=True):
        value.name = name
    number = model.graph.outputs[1].producer()
    assert number is not None
    assert number.inputs[0] is not None
    number.inputs[0].name = "class"
    options = Finetune(losses=tuple(TrainingLoss(**({"output": "logits"} | one)) for one in losses))
    error = refused(code, finetune, model, given(model, tmp_path, **labels), options)
    said = f"{error.message} {error.hint}"
    assert all(word in said for word in words), said


@pytest.mark.parametrize("named", [False, True])
def test_a_label_learns_by_the_classes_it_is_picked_from(named: bool, tmp_path: Path) -> None:
    graph = Graph()
    label, maps = labelled(graph, graph.linear(graph.take("x", ["b", 6]), 6, 3)).items()
    number = graph.op("ArgMax", "t1", axis=1, keepdims=0)
    model = typed(graph, **{number: TensorProto.INT64} | (dict([label, maps]) if named else {}))
    options = Finetune(losses=(TrainingLoss(output=number),) if named else (), budget=TrainingBudget(epochs=20))
    around = given(model, tmp_path, labels=CLASSES)
    outcome = finetune(model, options, around)
    assert told(outcome).in_place == {number: ("t1",)}
    assert told(outcome).losses == {"t1": "cross_entropy_shares"}
    assert around.training is not None
    assert around.training.holdout is not None
    (kept,) = around.training.holdout.batches(100)
    for one, accuracy in ((model, told(outcome).accuracy_before), (outcome.model, told(outcome).accuracy_after)):
        found = Session(io.to_bytes(one), threads=1).run(kept.feeds, [number])[number]
        assert accuracy == pytest.approx((found == kept.labels["labels"]).mean())
    assert (told(outcome).accuracy_after or 0) > (told(outcome).accuracy_before or 0)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    model = linear("logits")
    around = given(model, tmp_path, labels=CLASSES)
    error = refused("data.training-missing", finetune, model, dataclasses.replace(around, training=None), Finetune())
    assert "labels: …" in (error.hint or "")
    outcome = finetune(model, Finetune(), dataclasses.replace(around, dry=True))
    assert outcome.model is model
    two = linear("one", "two")
    error = refused("train.loss-output", finetune, two, given(two, tmp_path, labels=CLASSES), asked(kind="mse"))
    assert "2 outputs" in error.message
    assert error.option == ("losses", 0, "output")
    lone = linear("logits", wide=1)
    error = refused("data.labels", finetune, lone, given(lone, tmp_path, labels=CLASSES), asked(kind="cross_entropy"))
    assert "binary" in (error.hint or "")
    poor = dataclasses.replace(given(two, tmp_path), original=model)
    error = refused("train.teacher", finetune, two, poor, asked(kind="distill", output="two"))
    assert "the teacher has no `two`" in error.message


def asked(**loss: Any) -> Finetune:
    return Finetune(losses=(TrainingLoss(**loss),))


@pytest.mark.parametrize(
    "values", [{"kind": "hinge"}, {"weight": 0}, {"weight": float("inf")}, {"kind": "distill", "labels": "labels"}]
)
def test_losses_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(LeptonError):
        TrainingLoss(**values)
    with pytest.raises(LeptonError):
        Distill(labels="100 %")


def trunk() -> ir.Model:
    """Room for two tasks, one output and the first output's probabilities."""
    graph = Graph(seed=2)
    inner = graph.linear(graph.take("x", ["b", 6]), 6, 8)
    old = graph.linear(inner, 8, 3)
    model = graph.model(old, graph.op("Softmax", old))
    for value, name in zip(model.graph.outputs, ("old", "likely"), strict=True):
        value.name = name
    return model


def with_head(model: ir.Model, folder: Path) -> ir.Model:
    at = next(iter(model.graph)).outputs[0].name or ""
    return add(model, HeadAdd(at=at, name="new", outputs=3), context(None, folder)).model


@pytest.mark.parametrize("asked", [(), ({"output": "new", "kind": "mse"},)])
def test_outputs_without_a_loss_are_held(asked: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    """And without a word of it, what the original has not is what learns."""
    original = trunk()
    model = with_head(original, tmp_path)
    around = dataclasses.replace(given(model, tmp_path, new=NUMBERS / 2), original=original)
    options: dict[str, Any] = {"budget": TrainingBudget(epochs=100), "learning_rate": 0.1}
    held = tuned(model, around, *asked, **options)
    free = tuned(model, around, *asked, **options, hold=False)
    details = told(held)
    assert (details.held, details.teacher) == (("old", "likely"), "the original")
    assert details.losses == {"new": "mse", "old": "distil", "likely": "distil_shares"}
    assert "held to the original's answers: `old`, `likely`" in held.summary
    assert (told(free).held, told(free).teacher, told(free).losses) == ((), "", {"new": "mse"})
    before = answers(original, ROWS, "old").argmax(1)
    agree = [float((answers(one.model, ROWS, "old").argmax(1) == before).mean()) for one in (held, free)]
    assert agree[0] > 0.95 > 0.8 > agree[1]
    rows, labels = seen(around)
    best = rows @ np.linalg.lstsq(rows, labels["new"], rcond=None)[0]
    found = answers(held.model, rows[:, :6], "new")
    assert np.square(found - labels["new"]).mean() < 1.02 * np.square(best - labels["new"]).mean()


def test_what_is_made_of_an_output_that_learns_is_not_held(tmp_path: Path) -> None:
    """Nor what it is made of without weights, nor an output of another shape; a teacher in a file has its own."""
    original = trunk()
    model = with_head(original, tmp_path)
    around = dataclasses.replace(given(model, tmp_path, labels=CLASSES), original=model)
    once: dict[str, Any] = {"budget": TrainingBudget(epochs=1)}
    for name in ("old", "likely"):
        outcome = tuned(model, around, {"output": name, "kind": "cross_entropy"}, **once)
        assert told(outcome).held == ("new",)
    other = replace(model, HeadReplace(output="new", classes=5), context(None, tmp_path)).model
    (tmp_path / "teacher.onnx").write_bytes(io.to_bytes(other))
    outcome = tuned(model, around, {"output": "old", "kind": "cross_entropy"}, **once, teacher="teacher.onnx")
    assert told(outcome).held == ()
    changed = tuned(other, around, **once)
    assert told(changed).losses == {"new": "cross_entropy", "old": "distil", "likely": "distil_shares"}
