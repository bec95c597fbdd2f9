"""Folding BatchNormalization: the same outputs, or a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from onnx import helper

from lepton_cli import runtime
from lepton_cli.graph.batch_norm import fold_batch_norm
from lepton_cli.model import io
from tests.hostile.models import FLOAT, model, save, tensor, weights

CHANNELS = 8
LINEAR = {
    "Conv": ((CHANNELS, 4, 3, 3), {}, (2, 4, 6, 6)),
    "grouped Conv": ((CHANNELS, 2, 3, 3), {"group": 2}, (2, 4, 6, 6)),
    "ConvTranspose": ((4, CHANNELS, 3, 3), {}, (2, 4, 6, 6)),
    "grouped ConvTranspose": ((4, CHANNELS // 2, 3, 3), {"group": 2}, (2, 4, 6, 6)),
    "Gemm": ((4, CHANNELS), {}, (2, 4)),
    "transposed Gemm": ((CHANNELS, 4), {"transB": 1}, (2, 4)),
}


def _model(name: str, bias: bool, norm: dict[str, object] | None = None, variance: float = 1.5) -> onnx.ModelProto:
    shape, attributes, feed = LINEAR[name]
    inputs = ["x", "w", *(["b"] if bias else [])]
    nodes = [
        helper.make_node(name.split()[-1], inputs, ["h"], "linear", **attributes),
        helper.make_node("BatchNormalization", ["h", "scale", "shift", "mean", "var"], ["y"], "norm", **(norm or {})),
    ]
    held = {"w": weights(*shape), "b": weights(CHANNELS, seed=1), "scale": weights(CHANNELS, seed=2)}
    held |= {"shift": weights(CHANNELS, seed=3), "mean": weights(CHANNELS, seed=4)}
    held["var"] = np.full(CHANNELS, variance, np.float32)
    if not bias:
        del held["b"]
    made = [tensor(key, array) for key, array in held.items()]
    return model(nodes, {"x": (FLOAT, list(feed))}, {"y": (FLOAT, None)}, made)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LINEAR)
def test_outputs_stay_the_same(name: str, bias: bool, tmp_path: Path) -> None:
    loaded = io.load(save(_model(name, bias), tmp_path / "m.onnx")).model
    edited = io.clone(loaded)
    folded = fold_batch_norm(edited, {"linear", "norm"})
    assert [node.name for node in folded.nodes] == ["norm"]
    assert folded.left == []
    feeds = {"x": np.random.default_rng(0).standard_normal(LINEAR[name][2], np.float32)}
    before = runtime.Session(io.to_bytes(loaded), threads=1).run(feeds)
    after = runtime.Session(io.to_bytes(edited), threads=1).run(feeds)
    np.testing.assert_allclose(before["y"], after["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "allowed", "reason"),
    [
        ({"norm": {"training_mode": 1}}, {"linear", "norm"}, "training mode"),
        ({"variance": -1.0}, {"linear", "norm"}, "non-finite"),
        ({}, {"linear"}, "excluded"),
        ({}, {"norm"}, "`linear` before it is excluded"),
    ],
)
def test_reasons_to_leave(options: dict[str, object], allowed: set[str], reason: str, tmp_path: Path) -> None:
    loaded = io.load(save(_model("Conv", True, **options), tmp_path / "m.onnx")).model  # type: ignore[arg-type]
    before = io.to_bytes(loaded)
    folded = fold_batch_norm(loaded, allowed)
    assert folded.nodes == []
    assert reason in folded.left[0][1]
    assert io.to_bytes(loaded) == before


def _outputs(made: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(runtime.Session(io.to_bytes(made), threads=1).run(feeds))


def _check(proto: onnx.ModelProto, folder: Path, feeds: dict[str, np.ndarray], reason: str = "") -> ir.Model:
    """The folded model, with the same outputs as before; with a `reason` everything must have been left for it."""
    loaded = io.load(save(proto, folder / "m.onnx")).model
    edited = io.clone(loaded)
    folded = fold_batch_norm(edited)
    assert all(reason in text for _, text in folded.left)
    assert bool(folded.left) == bool(reason)
    assert bool(folded.nodes) != bool(reason)
    before, after = _outputs(loaded, feeds), _outputs(edited, feeds)
    assert list(before) == list(after)
    for name, wanted in before.items():
        np.testing.assert_allclose(after[name], wanted, rtol=1e-4, atol=1e-5)
    return edited


IMAGE = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6), np.float32)}
ROWS = {"x": np.random.default_rng(0).standard_normal((2, 4), np.float32)}


@pytest.mark.parametrize("opset", [9, 13])
def test_further_outputs_turn_training_on_even_unread(opset: int, tmp_path: Path) -> None:
    """Until opset 14 onnxruntime normalises such a node by the batch's own statistics."""
    proto = _model("Conv", True)
    proto.opset_import[0].version = opset
    proto.graph.node[1].output.extend(["m", "v", "sm", "sv"])
    _check(proto, tmp_path, IMAGE, "training mode")
    del proto.graph.node[1].output[1:]
    _check(proto, tmp_path, IMAGE)


def test_statistics_for_every_position_are_left(tmp_path: Path) -> None:
    proto = _model("Conv", True, {"spatial": 0})
    proto.opset_import[0].version = 8
    loaded = io.load(save(proto, tmp_path / "m.onnx")).model
    assert "every position" in fold_batch_norm(loaded).left[0][1]


@pytest.mark.parametrize("how", ["read twice", "an output"])
def test_a_result_that_is_needed_elsewhere(how: str, tmp_path: Path) -> None:
    proto = _model("Conv", True)
    if how == "read twice":
        proto.graph.node.append(helper.make_node("Relu", ["h"], ["z"], "other"))
    name = "z" if how == "read twice" else "h"
    proto.graph.output.append(helper.make_tensor_value_info(name, FLOAT, None))
    _check(proto, tmp_path, IMAGE, "used elsewhere")


@pytest.mark.parametrize("name", ["w", "b", "scale", "shift", "mean", "var"])
def test_what_a_caller_can_override_is_left(name: str, tmp_path: Path) -> None:
    proto = _model("Conv", True)
    shape = next(list(tensor.dims) for tensor in proto.graph.initializer if tensor.name == name)
    proto.graph.input.append(helper.make_tensor_value_info(name, FLOAT, shape))
    _check(proto, tmp_path, IMAGE, "not constant")


def test_computed_weights_and_other_nodes_are_left(tmp_path: Path) -> None:
    proto = _model("Conv", True)
    proto.graph.node.insert(0, helper.make_node("Neg", ["w"], ["w2"], "neg"))
    proto.graph.node[1].input[1] = "w2"
    _check(proto, tmp_path, IMAGE, "not constant")
    proto = _model("Conv", True)
    proto.graph.node.insert(1, helper.make_node("Relu", ["h"], ["r"], "relu"))
    proto.graph.node[2].input[0] = "r"
    _check(proto, tmp_path, IMAGE, "no Conv")


@pytest.mark.parametrize("attribute", ["alpha", "beta"])
def test_gemm_that_scales_is_left(attribute: str, tmp_path: Path) -> None:
    proto = _model("Gemm", True)
    proto.graph.node[0].attribute.append(helper.make_attribute(attribute, 0.5))
    _check(proto, tmp_path, ROWS, "alpha or beta")


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, CHANNELS), (2, 1), (2, CHANNELS)])
def test_gemm_spreads_its_bias(shape: tuple[int, ...], tmp_path: Path) -> None:
    proto = _model("Gemm", True)
    index = next(i for i, held in enumerate(proto.graph.initializer) if held.name == "b")
    bias = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    proto.graph.initializer[index].CopyFrom(tensor("b", bias))
    _check(proto, tmp_path, ROWS)


@pytest.mark.parametrize("name", ["b", "scale", "var"])
def test_parameters_of_another_length_are_left(name: str, tmp_path: Path) -> None:
    proto = _model("Conv", True)
    index = next(i for i, held in enumerate(proto.graph.initializer) if held.name == name)
    proto.graph.initializer[index].CopyFrom(tensor(name, np.ones(3, np.float32)))
    made: ir.Model = ir.from_proto(proto)
    before = io.to_bytes(made)
    assert "per channel" in fold_batch_norm(made).left[0][1]
    assert io.to_bytes(made) == before


def _twice(wide: int) -> onnx.ModelProto:
    """Two convolutions with one weight, each with a normalisation of its own, behind each other."""
    nodes, held = [], {"w": weights(wide, wide, 3, 3), "b": weights(wide, seed=9)}
    for number, (source, target) in enumerate([("x", "m"), ("m", "y")]):
        names = [f"{name}{number}" for name in ("scale", "shift", "mean", "var")]
        held |= {name: np.abs(weights(wide, seed=number + place)) + 1 for place, name in enumerate(names)}
        nodes.append(helper.make_node("Conv", [source, "w", "b"], [f"h{number}"], f"conv{number}", pads=[1] * 4))
        nodes.append(helper.make_node("BatchNormalization", [f"h{number}", *names], [target], f"norm{number}"))
    made = [tensor(name, array) for name, array in held.items()]
    return model(nodes, {"x": (FLOAT, [2, wide, 6, 6])}, {"y": (FLOAT, None)}, made)


def test_a_shared_weight_is_copied_where_it_is_small(tmp_path: Path) -> None:
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6), np.float32)}
    edited = _check(_twice(4), tmp_path, feeds)
    assert [node.op_type for node in edited.graph] == ["Conv", "Conv"]
    assert len({node.inputs[1].name for node in edited.graph if node.inputs[1] is not None}) == 2


def test_a_large_shared_weight_is_left(tmp_path: Path) -> None:
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 64, 6, 6), np.float32)}
    _check(_twice(64), tmp_path, feeds, "shared with other nodes")


def test_what_nothing_reads_any_more_is_gone_and_what_is_read_stays(tmp_path: Path) -> None:
    proto = _model("Conv", True)
    proto.graph.node.append(helper.make_node("Neg", ["mean"], ["z"], "other"))
    proto.graph.output.append(helper.make_tensor_value_info("z", FLOAT, None))
    edited = _check(proto, tmp_path, IMAGE)
    assert sorted(edited.graph.initializers) == ["linear/bias_folded", "linear/weight_folded", "mean"]


def test_names_that_the_graph_has_are_not_given_again(tmp_path: Path) -> None:
    proto = _model("Conv", True)
    proto.graph.node[1].output[0] = "linear/weight_folded"
    proto.graph.node.append(helper.make_node("Relu", ["linear/weight_folded"], ["y"], "linear/bias_folded"))
    edited = _check(proto, tmp_path, IMAGE)
    assert sorted(edited.graph.initializers) == ["linear/bias_folded_1", "linear/weight_folded_1"]


@pytest.mark.parametrize("name", LINEAR)
def test_scales_are_those_of_the_layer(name: str, tmp_path: Path) -> None:
    loaded = io.load(save(_model(name, False), tmp_path / "m.onnx")).model
    scales = fold_batch_norm(loaded).scales
    assert list(scales) == ["linear"]
    np.testing.assert_allclose(scales["linear"], np.abs(weights(CHANNELS, seed=2)))


@pytest.mark.parametrize("kind", ["float64", "float16"])
def test_other_float_types_keep_theirs(kind: str, tmp_path: Path) -> None:
    """Against onnx's reference: onnxruntime has no such convolutions on CPUs."""
    proto = _model("Conv", True)
    for held in proto.graph.initializer:
        held.CopyFrom(tensor(held.name, onnx.numpy_helper.to_array(held).astype(kind)))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    loaded = io.load(save(proto, tmp_path / "m.onnx")).model
    feeds = {"x": IMAGE["x"].astype(kind)}
    before = onnx.reference.ReferenceEvaluator(io.to_proto(loaded)).run(None, feeds)[0]
    assert [node.name for node in fold_batch_norm(loaded).nodes] == ["norm"]
    after = onnx.reference.ReferenceEvaluator(io.to_proto(loaded)).run(None, feeds)[0]
    assert {str(value.dtype.numpy()) for value in loaded.graph.initializers.values() if value.dtype} == {kind}
    np.testing.assert_allclose(after, before, atol=0.02 if kind == "float16" else 1e-12)
