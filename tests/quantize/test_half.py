"""Float16 on the graph: every node gets types that onnxruntime's kernels take, whatever mixes with what."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lepton_cli.model import io
from lepton_cli.quantize import half
from lepton_cli.runtime import Session
from tests.hostile.models import FLOAT, model, tensor, weights

X = np.random.default_rng(0).standard_normal((4, 8), np.float32)
HALF = TensorProto.FLOAT16


def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, f"{op}_{outputs[0]}", **attributes)


def ranged() -> onnx.ModelProto:
    """Range has no float16; its limits are computed by nodes that have."""
    nodes = [
        node("Mul", ["eight", "one"], ["limit"]),
        node("Range", ["zero", "limit", "one"], ["positions"]),
        node("Mul", ["positions", "tenth"], ["angles"]),
        node("Add", ["x", "angles"], ["y"]),
    ]
    numbers = {"eight": 8, "one": 1, "zero": 0, "tenth": 0.1}
    held = [tensor(name, np.float32(value)) for name, value in numbers.items()]
    return model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held)


def resized() -> onnx.ModelProto:
    """The scales of Resize are float32 for ever."""
    nodes = [
        node("Reshape", ["x", "square"], ["s"]),
        node("Mul", ["s", "w"], ["m"]),
        node("Resize", ["m", "", "scales"], ["y"], mode="linear"),
    ]
    held = [tensor("square", np.array([-1, 1, 2, 4], np.int64)), tensor("w", np.float32([0.5])),
            tensor("scales", np.float32([1, 1, 2, 2]))]  # fmt: skip
    return model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held)


def mixed() -> onnx.ModelProto:
    """Integers, booleans and doubles beside floats; casts to float and a constant of a computed shape."""
    nodes = [
        node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        node("Cast", ["i"], ["f"], to=FLOAT),
        node("Greater", ["x", "zero"], ["c"]),
        node("Where", ["c", "f", "w"], ["v"]),
        node("Shape", ["x"], ["shape"]),
        node("ConstantOfShape", ["shape"], ["twos"], value=helper.make_tensor("", FLOAT, [1], [2.0])),
        node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
        node("Sin", ["d"], ["sin"]),
        node("Cast", ["sin"], ["g"], to=FLOAT),
        node("Sum", ["v", "twos", "g"], ["sum"]),
        node("CastLike", ["i", "sum"], ["like"]),
        node("Add", ["sum", "like"], ["y"]),
    ]
    held = [tensor("zero", np.float32(0)), tensor("w", weights(8))]
    return model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held)


def branches() -> onnx.ModelProto:
    """Two branches that read one weight of the graph around them, and what was computed there."""

    def branch(name: str, sign: float) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, FLOAT, None)
        nodes = [node("MatMul", ["h", "w"], [f"{name}.m"]), node("Mul", [f"{name}.m", f"{name}.k"], [name])]
        return helper.make_graph(nodes, name, [], [out], [tensor(f"{name}.k", np.float32(sign))])

    nodes = [
        node("Relu", ["x"], ["h"]),
        node("If", ["c"], ["r"], then_branch=branch("yes", 1), else_branch=branch("no", -1)),
        node("Add", ["r", "h"], ["y"]),
    ]
    held = [tensor("c", np.bool_(False)), tensor("w", weights(8, 8))]
    return model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held)


def looped() -> onnx.ModelProto:
    """A state that goes round in a Loop whose body says nothing of types, and its history."""
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("MatMul", ["state", "w"], ["next"]), node("Tanh", ["next"], ["seen"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", 9, []),
         helper.make_tensor_value_info("state", FLOAT, None)],
        [helper.make_tensor_value_info(name, 9 if name == "on" else FLOAT, None) for name in ("on", "next", "seen")],
    )  # fmt: skip
    nodes = [
        node("Relu", ["x"], ["start"]),
        node("Loop", ["count", "true", "start"], ["last", "all"], body=body),
        node("ReduceMean", ["all"], ["mean"], axes=[0], keepdims=0),
        node("Add", ["last", "mean"], ["y"]),
    ]
    held = [tensor("count", np.int64(3)), tensor("true", np.bool_(True)), tensor("w", weights(8, 8))]
    return model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held)


def own() -> onnx.ModelProto:
    """onnxruntime's own operators, of which onnx infers no type."""
    nodes = [
        node("SkipLayerNormalization", ["x", "x", "g"], ["n"], domain="com.microsoft", epsilon=1e-5),
        node("SimplifiedLayerNormalization", ["n", "g"], ["s"], axis=-1, epsilon=1e-5, stash_type=1),
        node("FusedMatMul", ["s", "w"], ["m"], domain="com.microsoft", alpha=0.5),
        node("QuickGelu", ["m"], ["y"], domain="com.microsoft"),
    ]
    held = [tensor("g", 1 + weights(8)), tensor("w", weights(8, 8))]
    shape = ["n", 1, 8]
    return model(nodes, {"x": (FLOAT, shape)}, {"y": (FLOAT, None)}, held, domains=("com.microsoft",))


def sequence() -> onnx.ModelProto:
    """Sequences hold tensors of one type; nodes around them stay as they are."""
    nodes = [
        node("Mul", ["x", "w"], ["m"]),
        node("SplitToSequence", ["m", "four"], ["parts"], axis=1),
        node("SequenceAt", ["parts", "one"], ["part"]),
        node("Mul", ["part", "k"], ["y"]),
    ]
    held = [tensor("w", weights(8)), tensor("four", np.int64(4)), tensor("one", np.int64(1)), tensor("k", weights(4))]
    return model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held)


def passed_on() -> onnx.ModelProto:
    """An output that is read inside too, and one of which a weight is the whole."""
    nodes = [node("Mul", ["x", "w"], ["y"]), node("Range", ["a", "b", "a"], ["r"]), node("Add", ["y", "r"], ["z"])]
    held = [tensor("w", weights(8)), tensor("a", np.float32(1)), tensor("b", np.float32(9))]
    return model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None), "z": (FLOAT, None), "w": (FLOAT, [8])}, held)


GRAPHS = (ranged, resized, mixed, branches, looped, own, sequence, passed_on)


def run(made: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    return Session(io.to_bytes(made), threads=1).run({"x": x})


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("make", GRAPHS, ids=lambda make: make.__name__)
def test_the_same_function_in_half_the_bytes(make: Any, keep_io: bool) -> None:
    """Compared with plain onnxruntime on the file as it is: relative precision is 2^-11."""
    proto = make()
    before = ir.from_proto(proto)
    made = half.convert(before, [], keep_io)
    x = X[:, None] if make is own else X
    wanted = Session(proto.SerializeToString(), threads=1).run({"x": x})
    found = run(made, x)
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert array.dtype == np.float32
        assert found[name].dtype == (np.float32 if keep_io or name == "w" else np.float16)
        np.testing.assert_allclose(found[name].astype(np.float64), array, rtol=4e-3, atol=8e-3)
    assert io.inputs(made)[0].dtype == ("float32" if keep_io else "float16")
    large = [value.const_value for graph in made.graphs() for value in graph.initializers.values() if value.name == "w"]
    assert {one.dtype for one in large if one is not None} <= {ir.DataType.FLOAT16, ir.DataType.FLOAT}
    if make is not passed_on:
        assert all(one is None or one.dtype == ir.DataType.FLOAT16 for one in large)


@pytest.mark.parametrize("make", GRAPHS, ids=lambda make: make.__name__)
def test_with_every_node_blocked_nothing_changes(make: Any) -> None:
    proto = make()
    before = ir.from_proto(proto)
    io.name_nodes(before)
    made = half.convert(before, [one.name or "" for one in before.graph.all_nodes()], True)
    x = X[:, None] if make is own else X
    wanted = Session(proto.SerializeToString(), threads=1).run({"x": x})
    for name, array in run(made, x).items():
        np.testing.assert_array_equal(array, wanted[name])
    assert io.weight_bytes(made) == io.weight_bytes(before)


def test_a_weight_that_two_branches_read_is_stored_once() -> None:
    made = half.convert(ir.from_proto(branches()), [], True)
    assert [name for graph in made.graphs() for name in graph.initializers if name.startswith("w")] == ["w"]


def test_each_node_kept_alone_gives_a_model_that_runs() -> None:
    for make in GRAPHS:
        before = ir.from_proto(make())
        for one in before.graph.all_nodes():
            found = run(half.convert(before, [one.name or ""], True), X[:, None] if make is own else X)
            assert all(array.dtype == np.float32 for array in found.values())


@pytest.mark.parametrize("make", [ranged, resized, mixed, branches, looped, own], ids=lambda make: make.__name__)
@pytest.mark.parametrize("keep_io", [True, False])
def test_back_in_float32_the_weights_are_the_rounded_ones(make: Any, keep_io: bool) -> None:
    """What float16 holds exactly comes back; inputs and outputs stay as they were."""
    narrow = half.convert(ir.from_proto(make()), [], keep_io)
    wide = half.widen(narrow)
    x = X[:, None] if make is own else X
    before, after = run(narrow, x), run(wide, x)
    assert [(one.name, one.dtype) for one in io.inputs(wide)] == [(one.name, one.dtype) for one in io.inputs(narrow)]
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        np.testing.assert_allclose(after[name].astype(np.float64), array, rtol=4e-3, atol=8e-3)
    kinds = {value.const_value.dtype for graph in wide.graphs() for value in graph.initializers.values()}
    assert ir.DataType.FLOAT16 not in kinds
    assert half.widen(half.widen(narrow)) is not narrow


def test_a_model_without_float16_is_returned() -> None:
    before = ir.from_proto(mixed())
    assert half.widen(before) is before
