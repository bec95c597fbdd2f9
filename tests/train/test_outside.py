"""What torch lacks is onnxruntime's, where no gradient has to come back: values are those of the whole model there."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper

from lepton_cli.errors import LeptonError, StepError
from lepton_cli.train import outside
from lepton_cli.train.network import Network
from lepton_cli.train.operators import table
from lepton_cli.train.operators.call import NotInTorch
from lepton_cli.train.proof import tensors
from tests.quantize.builders import Graph
from tests.train.test_network import ran

ML = "ai.onnx.ml"
WORDS = np.array([["a", "b", "a", "b"], ["b", "b", "z", "a"]], object)
ENCODED = {"keys_strings": ["a", "b"], "values_int64s": [1, 2], "default_int64": 7}
X = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float32)


def typed(graph: Graph, **outputs: int | None) -> ir.Model:
    """A model whose outputs have these types; `None`: none that is told."""
    infos = [
        onnx.ValueInfoProto(name=name) if kind is None else helper.make_tensor_value_info(name, kind, None)
        for name, kind in outputs.items()
    ]
    made = helper.make_graph(graph.nodes, "test", graph.inputs, infos, graph.weights)
    imports = [helper.make_opsetid("", graph.opset), helper.make_opsetid(ML, 3)]
    return ir.from_proto(helper.make_model(made, opset_imports=imports, ir_version=8))


def labelled(graph: Graph, classes: str) -> dict[str, int | None]:
    """As scikit-learn's classifiers end: labels and a map of probabilities for every sample."""
    shares = graph.op("Softmax", classes, axis=1)
    best = graph.op("ArgMax", shares, axis=1, keepdims=0)
    names = {"keys_int64s": [0, 1, 2], "values_strings": ["u", "v", "w"]}
    label = graph.op("LabelEncoder", best, domain=ML, **names)
    return {label: TensorProto.STRING, graph.op("ZipMap", shares, domain=ML, classlabels_strings=["u", "v", "w"]): None}


def boxed(graph: Graph, x: str, width: int = 4) -> tuple[str, str, str, str]:
    """Boxes, scores, which of them suppression leaves, and those boxes; `x` is `[samples, places, width]`."""
    boxes = graph.op("Abs", graph.linear(x, width, 4, gemm=False))
    scores = graph.op("Sigmoid", graph.linear(x, width, 2, gemm=False))
    limits = [graph.constant(np.array([3])), *(graph.constant(np.array([one], np.float32)) for one in (0.3, 0.4))]
    left = graph.op("NonMaxSuppression", boxes, graph.op("Transpose", scores, perm=[0, 2, 1]), *limits)
    places = graph.op("Gather", left, graph.constant(np.array([0, 2])), axis=1)
    return boxes, scores, left, graph.op("GatherND", boxes, places)


def scaled(graph: Graph) -> tuple[str, dict[str, np.ndarray]]:
    offset, scale = [1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 0.5]
    return graph.op("Scaler", graph.take("x", ["b", 4]), domain=ML, offset=offset, scale=scale), {"x": X}


def counted(graph: Graph) -> tuple[str, dict[str, np.ndarray]]:
    """Words as numbers, how often pairs of them occur."""
    words = graph.op("LabelEncoder", graph.take("x", ["b", 4], TensorProto.STRING), domain=ML, **ENCODED)
    pairs = {"min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 0, "mode": "TF"}
    grams = {"ngram_counts": [0, 2], "ngram_indexes": [0, 1, 2, 3], "pool_int64s": [1, 2, 1, 2]}
    return graph.op("TfIdfVectorizer", words, **pairs, **grams), {"x": WORDS}


def heard(graph: Graph) -> tuple[str, dict[str, np.ndarray]]:
    sound = graph.op("Unsqueeze", graph.take("x", ["b", 18]), graph.constant(np.array([2])))
    window = graph.op("HannWindow", graph.constant(np.int64(6)))
    parts = graph.op("STFT", sound, graph.constant(np.int64(12)), window, graph.constant(np.int64(6)), onesided=0)
    size = graph.op("ReduceSumSquare", graph.op("Slice", parts, *map(graph.constant, SLICE)), axes=[1, 3], keepdims=0)
    return size, {"x": np.random.default_rng(1).normal(size=(2, 18)).astype(np.float32)}


SLICE = np.array([[0], [4], [2]])


def listed(graph: Graph) -> tuple[str, dict[str, np.ndarray]]:
    """A sequence of strings from one node to the next."""
    parts = graph.op("SplitToSequence", graph.take("x", ["b", 4], TensorProto.STRING), axis=1)
    parts = graph.op(
        "SequenceErase", graph.op("SequenceInsert", parts, graph.op("SequenceAt", parts, graph.constant(np.int64(2))))
    )
    words = graph.op("LabelEncoder", graph.op("ConcatFromSequence", parts, axis=1), domain=ML, **ENCODED)
    return graph.op("Cast", words, to=TensorProto.FLOAT), {"x": WORDS}


def multiplied(graph: Graph) -> tuple[str, dict[str, np.ndarray]]:
    """Quantized numbers are floats in torch, and integers outside."""
    codes, scale, zero = graph.op("DynamicQuantizeLinear", graph.take("x", ["b", 4]), outputs=3)
    weight = graph.constant(np.random.default_rng(2).integers(-9, 9, (4, 4)).astype(np.int8))
    whole = graph.op("MatMulInteger", graph.op("Flatten", codes), weight, zero)
    return graph.op("Mul", graph.op("Cast", whole, to=TensorProto.FLOAT), scale), {"x": X}


@pytest.mark.parametrize("prefix", [scaled, counted, heard, listed, multiplied])
def test_what_comes_before_the_weights(prefix: Any) -> None:
    graph = Graph()
    y, feeds = prefix(graph)
    model = typed(graph, **{graph.linear(y, 4, 2): TensorProto.FLOAT})
    network = Network(model)
    (output,) = network.outputs
    found = network.run(tensors(feeds))[output]
    np.testing.assert_allclose(found.detach().numpy(), ran(model, feeds)[output], rtol=0, atol=1e-5)
    found.sum().backward()
    bias = next(one for one in network.parameters.values() if one.dim() == 1)
    assert bias.grad is not None
    assert np.array_equal(bias.grad, [len(found)] * 2), "the derivative of a sum over the samples"


def test_decisions_at_the_end_take_what_is_learnt() -> None:
    graph = Graph()
    _, _, left, chosen = boxed(graph, graph.take("x", ["b", 6, 4]))
    model = typed(graph, **{left: TensorProto.INT64, chosen: TensorProto.FLOAT})
    feeds = {"x": np.random.default_rng(5).normal(size=(2, 6, 4)).astype(np.float32)}
    network, expected = Network(model), ran(model, feeds)
    found = network.run(tensors(feeds))
    assert len(expected[left]) > 2
    assert np.array_equal(found[left].numpy(), expected[left])
    assert not found[left].requires_grad
    np.testing.assert_allclose(found[chosen].detach().numpy(), expected[chosen], rtol=0, atol=1e-6)
    found[chosen].sum().backward()
    learnt = {name for name, one in network.parameters.items() if one.grad is not None}
    assert len(learnt) == 2, "those of the boxes, which are picked by what the scores say"


def test_labels_and_strings_are_decisions() -> None:
    graph = Graph()
    outputs = labelled(graph, graph.linear(graph.take("x", ["b", 4]), 4, 3))
    model = typed(graph, **outputs)
    label, maps = outputs
    network = Network(model)
    assert np.array_equal(network.run(tensors({"x": X}), [label])[label], ran(model, {"x": X})[label])
    with pytest.raises(StepError, match=r"`ZipMap_\d` .* no gradient is known for it"):
        network.run(tensors({"x": X}), [maps])
    teacher = Network(model, ())
    for one, other in zip(teacher.run(tensors({"x": X}))[maps], ran(model, {"x": X})[maps], strict=True):
        assert one == pytest.approx(other)


def test_weights_before_a_decision_are_those_of_now() -> None:
    """A node that onnxruntime runs is made once, its weights change."""
    graph = Graph()
    y = graph.op("Scaler", graph.linear(graph.take("x", ["b", 4]), 4, 3), domain=ML, offset=[0.0], scale=[2.0])
    model = typed(graph, **{graph.op("ArgMax", y, axis=1): TensorProto.INT64})
    network = Network(model)
    (output,) = network.outputs
    before = network.run(tensors({"x": X}))[output].numpy()
    network.load({name: -array for name, array in network.state().items()})
    after = network.run(tensors({"x": X}))[output].numpy()
    assert np.array_equal(before, ran(model, {"x": X})[output])
    assert np.array_equal(after, ran(network.written(), {"x": X})[output])
    assert not np.array_equal(before, after)


def test_a_weight_that_goes_in_itself_is_that_of_now() -> None:
    graph = Graph()
    weight = graph.constant(np.random.default_rng(4).normal(size=(4, 3)).astype(np.float32))
    y = graph.op("MatMul", graph.take("x", ["b", 4]), weight)
    best = graph.op("ArgMax", graph.op("Scaler", weight, domain=ML, offset=[0.0], scale=[2.0]), axis=1)
    network = Network(typed(graph, **{best: TensorProto.INT64, y: TensorProto.FLOAT}))
    for _ in range(2):
        found = network.run(tensors({"x": X}), [best])[best].numpy()
        assert np.array_equal(found[:, 0], network.state()[weight].argmax(1))
        network.load({name: -array for name, array in network.state().items()})


@pytest.mark.parametrize("behind", [False, True])
def test_floats_behind_weights_are_refused_where_they_are_needed(behind: bool) -> None:
    graph = Graph()
    inner = graph.linear(graph.take("x", ["b", 4]), 4, 3)
    y = graph.op("Normalizer", inner, domain=ML, norm="L2")
    y = graph.linear(y, 3, 2) if behind else y
    network = Network(typed(graph, **{inner: TensorProto.FLOAT, y: TensorProto.FLOAT}))
    assert network.run(tensors({"x": X}), [inner])[inner].requires_grad
    with pytest.raises(StepError, match="`Normalizer_1`") as caught:
        network.run(tensors({"x": X}))
    assert "a value before it" in (caught.value.hint or "")


def test_what_trains_behind_it_alone_trains() -> None:
    graph = Graph()
    inner = graph.op("Normalizer", graph.linear(graph.take("x", ["b", 4]), 4, 3), domain=ML, norm="L2")
    model = typed(graph, **{graph.linear(inner, 3, 2): TensorProto.FLOAT})
    network = Network(model, {"Gemm_2"})
    (output,) = network.outputs
    found = network.run(tensors({"x": X}))[output]
    np.testing.assert_allclose(found.detach().numpy(), ran(model, {"x": X})[output], rtol=0, atol=1e-6)
    found.sum().backward()
    (slope,) = (one.grad for one in network.parameters.values() if one.dim() == 2)
    middle = network.run(tensors({"x": X}), [inner])[inner].numpy()
    assert slope is not None
    np.testing.assert_allclose(slope, np.tile(middle.sum(0), (2, 1)), rtol=1e-5)


def test_constants_that_are_strings() -> None:
    graph = Graph()
    best = graph.op("ArgMax", graph.linear(graph.take("x", ["b", 4]), 4, 3), axis=1, keepdims=0)
    graph.nodes.append(helper.make_node("Constant", [], ["names"], name="names", value_strings=["u", "v", "w"]))
    other = graph.constant(np.array(["x", "y", "z"], object))
    outputs = [graph.op("Gather", names, best) for names in ("names", other)]
    model = typed(graph, **dict.fromkeys(outputs, TensorProto.STRING))
    found, expected = Network(model).run(tensors({"x": X})), ran(model, {"x": X})
    assert all(np.array_equal(found[name], expected[name]) for name in outputs)


def test_a_variant_that_torch_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is onnxruntime's where nothing is learnt before it, else it is refused with torch's reason."""

    def refuses(*given: Any) -> Any:
        raise NotInTorch("not this one")

    monkeypatch.setitem(table.OPERATORS, ("", "Tanh"), refuses)
    graph = Graph()
    model = graph.model(graph.linear(graph.op("Tanh", graph.take("x", ["b", 4])), 4, 2))
    (output,) = (value.name or "" for value in model.graph.outputs)
    for network in (Network(model), Network(model, ())):
        found = network.run(tensors({"x": X}))[output].detach().numpy()
        np.testing.assert_allclose(found, ran(model, {"x": X})[output], rtol=0, atol=1e-6)
    graph = Graph()
    model = graph.model(graph.op("Tanh", graph.linear(graph.take("x", ["b", 4]), 4, 2)))
    assert Network(model, ()).run(tensors({"x": X}))
    with pytest.raises(StepError, match="not this one"):
        Network(model).run(tensors({"x": X}))


def test_sessions_are_kept_and_no_more_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[int]()
    right = outside.OneNode
    monkeypatch.setattr(outside, "OneNode", lambda *given: made.append(1) or right(*given))
    graph = Graph()
    counts = graph.op("Scaler", graph.take("x", ["k"], TensorProto.INT64), domain=ML, offset=[1.0], scale=[2.0])
    network = Network(typed(graph, **{graph.op("Mul", counts, graph.constant(X[0, :1])): TensorProto.FLOAT}))
    for size in (2, 2, 2, *range(1, 30)):
        (found,) = network.run(tensors({"x": np.arange(size)})).values()
        np.testing.assert_allclose(found.numpy(), 2 * (np.arange(size) - 1) * X[0, 0], rtol=1e-6)
    assert len(made) == 29, "2 again is the same session"
    (one,) = network._outside.values()
    assert len(one._sessions) == outside._MOST


def test_what_is_another_in_every_run_is_refused() -> None:
    graph = Graph()
    y = graph.op("Add", graph.take("x", ["b", 4]), graph.op("RandomNormal", shape=[4]))
    with pytest.raises(StepError, match=r"`RandomNormal_0` .* others in every run"):
        Network(graph.model(graph.linear(y, 4, 2))).run(tensors({"x": X}))


def test_where_neither_can_both_reasons_are_said() -> None:
    graph = Graph()
    y, _ = scaled(graph)
    network = Network(typed(graph, **{graph.linear(y, 4, 2): TensorProto.FLOAT}))
    with pytest.raises(StepError, match=r"`Scaler_0` .* onnxruntime"):
        network.run(tensors({"x": X[:, :3]}))
    with pytest.raises(LeptonError, match="no value"):
        network.run({})


def test_half_precision_goes_out_in_float32() -> None:
    graph = Graph()
    half = graph.op("Cast", graph.op("Add", graph.take("x", ["b", 4]), graph.constant(X)), to=TensorProto.FLOAT16)
    window = graph.op("Cast", graph.op("HannWindow", graph.constant(np.int64(4))), to=TensorProto.FLOAT16)
    y = graph.op("Cast", graph.op("Mul", half, window), to=TensorProto.FLOAT)
    model = typed(graph, **{graph.linear(y, 4, 2): TensorProto.FLOAT})
    (output,) = (value.name or "" for value in model.graph.outputs)
    found = Network(model).run(tensors({"x": X}))[output]
    np.testing.assert_allclose(found.detach().numpy(), ran(model, {"x": X})[output], rtol=0, atol=1e-2)


def test_under_autocast_onnxruntime_gets_float32() -> None:
    graph = Graph()
    y = graph.linear(graph.take("x", ["b", 4]), 4, 3)
    label = graph.op("ArgMax", graph.op("Scaler", y, domain=ML, offset=[0.0], scale=[2.0]), axis=1)
    network = Network(typed(graph, **{label: TensorProto.INT64}))
    with torch.autocast("cpu", torch.bfloat16):
        found = network.run(tensors({"x": X}))[label]
    assert found.shape == (3, 1)
