"""New outputs: numbers as numpy has them, everything else as it was, and what a head cannot read is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from lepton_cli.errors import LeptonError
from lepton_cli.graph import heads
from lepton_cli.graph.details import HeadDetails
from lepton_cli.graph.spec import HeadAdd, HeadReplace
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.step import Outcome
from tests.quantize.builders import Graph, context

X = np.random.default_rng(3).normal(size=(5, 3, 6, 4)).astype(np.float32)


def picture(opset: int = 17, last: str = "Softmax", **shapes: Any) -> tuple[ir.Model, dict[str, str]]:
    """Convolution, mean, Gemm, and what comes last; names of the values on the way."""
    graph = Graph(opset)
    inner = graph.conv(graph.take("x", ["b", 3, 6, 4]), 3, 8)
    row = graph.op("Flatten", graph.op("GlobalAveragePool", inner))
    tokens = graph.op("Transpose", graph.op("Reshape", inner, graph.constant(np.array([0, 8, 24]))), perm=[0, 2, 1])
    logits = graph.linear(row, 8, 4)
    made = graph.model(graph.op(last, logits) if last else logits)
    made.graph.outputs[0].name = "answer"
    return made, {"inner": inner, "row": row, "tokens": tokens, "logits": logits}


def ran(model: ir.Model, *more: str, x: np.ndarray = X) -> dict[str, np.ndarray]:
    """All outputs, and values inside."""
    seen = io.clone(model)
    inside = {value.name: value for node in seen.graph for value in node.outputs}
    seen.graph.outputs.extend(inside[name] for name in more)
    return Session(io.to_bytes(seen), threads=1).run({"x": x})


def held(model: ir.Model, name: str) -> np.ndarray:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def softmax(x: np.ndarray, axis: int = 1) -> np.ndarray:
    made = np.exp(x - x.max(axis, keepdims=True))
    return made / made.sum(axis, keepdims=True)


def around(folder: Path, seed: int = 0) -> Any:
    return context(None, folder, seed=seed)


def added(model: ir.Model, folder: Path, at: str, seed: int = 0, **options: Any) -> Outcome:
    return heads.add(model, HeadAdd(at=at, name="kind", **({"classes": 7} | options)), around(folder, seed))


def replaced(model: ir.Model, folder: Path, **options: Any) -> Outcome:
    return heads.replace(model, HeadReplace(**({"classes": 7} | options)), around(folder))


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(("at", "axes"), [("inner", (2, 3)), ("tokens", (1,)), ("row", ())])
def test_a_head_is_linear_in_the_mean_over_the_places(
    at: str, axes: tuple[int, ...], opset: int, tmp_path: Path
) -> None:
    model, names = picture(opset)
    before = io.to_bytes(model)
    outcome = added(model, tmp_path, names[at])
    found = ran(outcome.model, names[at])
    weight, bias = held(outcome.model, "kind.weight"), held(outcome.model, "kind.bias")
    np.testing.assert_allclose(found["kind"], found[names[at]].mean(axes) @ weight.T, rtol=1e-4, atol=1e-5)
    assert not bias.any()
    np.testing.assert_allclose(found["answer"], ran(model)["answer"], rtol=1e-5, atol=1e-6)
    assert [str(info) for info in io.outputs(outcome.model)] == ["answer float32 [b, 4]", "kind float32 [b, 7]"]
    assert outcome.details == HeadDetails(output="kind", at=names[at], channels=8, width=7)
    assert [(one.node, one.action) for one in outcome.decisions] == [("kind.linear", "added")]
    assert io.to_bytes(model) == before


def test_weights_are_uniform_and_follow_from_seed_and_name(tmp_path: Path) -> None:
    model, names = picture()
    weight = held(added(model, tmp_path, names["row"], classes=4000).model, "kind.weight")
    assert np.abs(weight).max() <= 8**-0.5
    assert np.abs(weight).max() > 0.99 * 8**-0.5
    assert weight.std() == pytest.approx(8**-0.5 / 3**0.5, rel=0.02)
    assert abs(weight.mean()) < 0.01
    same, other = (added(model, tmp_path, names["row"], seed=seed).model for seed in (0, 1))
    assert io.to_bytes(same) == io.to_bytes(added(model, tmp_path, names["row"]).model)
    assert not np.array_equal(held(same, "kind.weight"), held(other, "kind.weight"))
    named = heads.add(model, HeadAdd(at=names["row"], name="size", outputs=7), around(tmp_path)).model
    assert not np.array_equal(held(same, "kind.weight"), held(named, "size.weight"))


def test_the_last_layer_is_made_anew_and_a_softmax_behind_it_stays(tmp_path: Path) -> None:
    model, names = picture()
    outcome = replaced(model, tmp_path)
    found = ran(outcome.model, names["row"])
    np.testing.assert_allclose(
        found["answer"], softmax(found[names["row"]] @ held(outcome.model, "answer.weight").T), rtol=1e-5
    )
    assert [str(info) for info in io.outputs(outcome.model)] == ["answer float32 [b, 7]"]
    assert {node.name for node in outcome.model.graph} < {node.name for node in model.graph}, "their names stay"
    assert outcome.model.graph.num_nodes() == model.graph.num_nodes() - 2, "what no output needs is gone"
    assert (outcome.warnings, outcome.details) == (
        (),
        HeadDetails(output="answer", at=names["row"], channels=8, width=7),
    )


def test_a_product_with_a_bias_behind_it(tmp_path: Path) -> None:
    """Classes of every place: `[samples, places, classes]`."""
    graph = Graph()
    x = graph.op("Reshape", graph.take("x", ["b", 3, 6, 4]), graph.constant(np.array([0, 3, 24])))
    model = graph.model(graph.op("LogSoftmax", graph.linear(x, 24, 5, gemm=False), axis=-1))
    name = model.graph.outputs[0].name or ""
    outcome = replaced(model, tmp_path, classes=2)
    weight, bias = held(outcome.model, f"{name}.weight"), held(outcome.model, f"{name}.bias")
    assert (weight.shape, bias.tolist()) == ((24, 2), [0, 0])
    wanted = np.log(softmax(X.reshape(5, 3, 24) @ weight, axis=2))
    np.testing.assert_allclose(ran(outcome.model)[name], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4, 9])
def test_a_convolution_whose_result_is_averaged_and_reshaped(classes: int, tmp_path: Path) -> None:
    graph = Graph()
    scores = graph.op("GlobalAveragePool", graph.conv(graph.take("x", ["b", 3, 6, 4]), 3, 4, 1))
    model = graph.model(graph.op("Reshape", scores, graph.constant(np.array([-1, 4]))))
    name = model.graph.outputs[0].name or ""
    outcome = replaced(model, tmp_path, classes=classes)
    weight = held(outcome.model, f"{name}.weight")
    assert weight.shape == (classes, 3, 1, 1)
    sums = np.einsum("nchw,kc->nkhw", X, weight[:, :, 0, 0])
    np.testing.assert_allclose(ran(outcome.model)[name], np.maximum(sums, 0).mean((2, 3)), rtol=1e-4, atol=1e-6)


def test_all_between_a_value_and_the_output_gives_way(tmp_path: Path) -> None:
    model, names = picture()
    outcome = replaced(model, tmp_path, at=names["inner"], classes=None, outputs=2)
    found = ran(outcome.model, names["inner"])
    wanted = found[names["inner"]].mean((2, 3)) @ held(outcome.model, "answer.weight").T
    np.testing.assert_allclose(found["answer"], wanted, rtol=1e-4, atol=1e-6)
    assert [node.op_type for node in outcome.model.graph] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]


def test_other_outputs_go_on_being_computed_from_the_layer_before(tmp_path: Path) -> None:
    graph = Graph()
    logits = graph.linear(graph.op("Flatten", graph.take("x", ["b", 3, 6, 4])), 72, 4)
    model = graph.model(logits, graph.op("Softmax", logits), graph.op("Identity", logits))
    first, *others = (value.name or "" for value in model.graph.outputs)
    outcome = replaced(model, tmp_path, output=first)
    before, after = ran(model), ran(outcome.model)
    assert after[first].shape == (5, 7)
    for name in others:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-5, atol=1e-6)
    assert list(after) == [first, *others]
    assert isinstance(outcome.details, HeadDetails)
    assert f"`{outcome.details.left}`" in outcome.warnings[0]


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_a_head_has_the_type_of_what_it_reads(kind: type, tmp_path: Path) -> None:
    graph, onnx_kind = Graph(), TensorProto.FLOAT16 if kind is np.float16 else TensorProto.DOUBLE
    x = graph.op("Cast", graph.op("Relu", graph.take("x", ["b", 3, 6, 4])), to=onnx_kind)
    weight = graph.constant(np.ones((3, 2), kind))
    row = graph.op("ReduceMean", x, axes=[2, 3], keepdims=0)  # onnxruntime pools no doubles
    model = graph.model(graph.op("Cast", graph.op("MatMul", row, weight), to=TensorProto.FLOAT))
    made = added(model, tmp_path, row).model
    assert held(made, "kind.weight").dtype == kind
    np.testing.assert_allclose(
        ran(made)["kind"], np.maximum(X, 0).mean((2, 3)) @ held(made, "kind.weight").T, rtol=1e-2, atol=1e-3
    )
    name = model.graph.outputs[0].name or ""
    again = replaced(model, tmp_path).model
    assert held(again, f"{name}.weight").dtype == kind
    assert ran(again)[name].shape == (5, 7)


def test_sizes_that_exporters_compute_are_followed(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 3, "h", "w"])
    sizes = [graph.op("Gather", graph.op("Shape", x), graph.constant(np.array([axis]))) for axis in (0, 1)]
    double = graph.op("Mul", sizes[1], graph.constant(np.array([4])))
    inner = graph.op("Reshape", x, graph.op("Concat", sizes[0], graph.constant(np.array([-1])), double, axis=0))
    model = graph.model(graph.op("Relu", inner))
    made = added(model, tmp_path, inner).model
    np.testing.assert_allclose(
        ran(made)["kind"], X.reshape(5, 6, 12).mean(1) @ held(made, "kind.weight").T, rtol=1e-4, atol=1e-5
    )


def awkward() -> ir.Model:
    """Outputs of floats without a layer, and values that no head reads."""
    graph = Graph()
    x = graph.take("x", ["b", 3, "h", 4])
    flat = graph.op("Flatten", x)
    five = graph.op("Unsqueeze", x, graph.constant(np.array([1])))
    whole = graph.op("Cast", x, to=TensorProto.INT64)
    scaled = graph.op("Mul", graph.linear(graph.op("ReduceMean", x, axes=[1, 2], keepdims=0), 4, 2),
                      graph.constant(np.ones(2, np.float32)))  # fmt: skip
    model = graph.model(flat, five, graph.op("Cast", whole, to=1), graph.op("Add", x, x), scaled)
    for value, name in zip(model.graph.outputs, ("flat", "five", "cast", "sum", "scaled"), strict=True):
        value.name = name
    return model


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"name": "kind", "at": "flta"}, "head.value", ["no value `flta`", "did you mean `flat`?"]),
        ({"name": "kind", "at": "flat"}, "head.value", ["[?, ?]", "channels is open"]),
        ({"name": "kind", "at": "five"}, "head.value", ["[?, 1, 3, ?, 4]", "[samples, length, channels]"]),
        ({"name": "kind", "at": "t2"}, "head.value", ["holds no floats"]),
        ({"name": "flat", "at": "x"}, "head.name-taken", ["`flat` already"]),
        ({"name": "kind", "at": "x", "exclude": ("Relu",)}, "recipe.wrong-value", ["takes no `exclude`"]),
        ({}, "head.output", ["5 outputs", "`flat`, `five`"]),
        ({"output": "summ"}, "head.output", ["no output `summ`", "did you mean `sum`?"]),
        ({"output": "flat"}, "head.no-layer", ["`flat` has no last layer", "`at`"]),
        ({"output": "sum"}, "head.no-layer", ["`sum` has no last layer", "(Add)"]),
        ({"output": "scaled"}, "head.no-layer", ["(Mul)"]),
        ({"output": "sum", "at": "summ"}, "head.value", ["no value `summ`"]),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], code: str, words: list[str], tmp_path: Path) -> None:
    step, kind = (heads.add, HeadAdd) if "name" in options else (heads.replace, HeadReplace)
    with pytest.raises(LeptonError) as caught:
        step(awkward(), kind(classes=2, **options), around(tmp_path))  # type: ignore[arg-type]
    assert caught.value.code == code
    said = f"{caught.value.message} {caught.value.hint} {caught.value.cause}"
    assert all(word in said for word in words), said


def test_an_output_that_would_become_another_is_refused(tmp_path: Path) -> None:
    """Classes that a Reshape lays over places."""
    graph = Graph()
    sums = graph.linear(graph.op("Flatten", graph.take("x", ["b", 3, 6, 4])), 72, 6)
    model = graph.model(graph.op("Reshape", sums, graph.constant(np.array([-1, 2, 3]))))
    with pytest.raises(LeptonError) as caught:
        replaced(model, tmp_path)
    assert caught.value.code == "head.shape"


@pytest.mark.parametrize("width", [{}, {"classes": 0}, {"outputs": 0}, {"classes": 2, "outputs": 2}])
def test_a_head_has_one_width(width: dict[str, int]) -> None:
    with pytest.raises(LeptonError):
        HeadAdd(at="x", name="kind", **width)
    with pytest.raises(LeptonError):
        HeadReplace(**width)


def test_which_outputs_are_new_is_known_without_running() -> None:
    outputs = io.outputs(awkward())
    assert HeadAdd(at="x", name="kind", classes=2).new_outputs(outputs) == ("kind",)
    assert HeadReplace(output="sum", classes=2).new_outputs(outputs) == ("sum",)
    assert HeadReplace(classes=2).new_outputs(outputs) == ()
    assert HeadReplace(classes=2).new_outputs(outputs[:1]) == ("flat",)


def test_two_outputs_of_one_layer_have_one_answer(tmp_path: Path) -> None:
    model, names = picture()
    values = {value.name: value for node in model.graph for value in node.outputs}
    layers = heads.Layers(model)
    answers = {name: layers.answer(values[name]).name for name in ("answer", names["logits"], names["row"])}
    relu = values[names["inner"]].producer()
    assert relu is not None
    assert answers == {"answer": names["logits"], names["logits"]: names["logits"], names["row"]: relu.inputs[0].name}  # type: ignore[union-attr]
