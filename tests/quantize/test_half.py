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
        node("ConstantOfShape", ["shape"], ["zeros"]),
        node("Sum", ["v", "twos", "g", "zeros"], ["sum"]),
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


def looped_without_types() -> onnx.ModelProto:
    """The same: a file need not say what goes round, onnxruntime knows it from the node around."""
    proto = looped()
    body = proto.graph.node[1].attribute[0].g
    for value in (body.input[2], *body.output):
        value.ClearField("type")
    return proto


def dynamic() -> onnx.ModelProto:
    """In a branch, of whose values nobody says a type: int8 with a measured scale, and sequences."""
    yes = [
        node("Relu", ["x"], ["r"]),
        node("DynamicQuantizeLinear", ["r"], ["q", "scale", "zero"]),
        node("MatMulInteger", ["q", "w8", "zero"], ["i"]),
        node("Cast", ["i"], ["f"], to=FLOAT),
        node("Mul", ["f", "scale"], ["m"]),
        node("SequenceInsert", ["parts", "m"], ["more"]),
        node("SequenceAt", ["more", "last"], ["at"]),
        node("Add", ["at", "k"], ["sum"]),
        node("Neg", ["sum"], ["yes"]),
    ]
    branches = [
        helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=name)])
        for name, nodes in (("yes", yes), ("no", [node("MatMul", ["x", "w"], ["no"])]))
    ]
    nodes = [
        node("SequenceConstruct", ["x"], ["parts"]),
        node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    held = [tensor("w8", (np.arange(64) % 15 - 7).astype(np.int8).reshape(8, 8)), tensor("c", np.bool_(True)),
            tensor("k", weights(8)), tensor("last", np.int64(1)), tensor("w", weights(8, 8))]  # fmt: skip
    return model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held)


def alike() -> onnx.ModelProto:
    """A matrix of another's type; sums, of which onnxruntime has no kernel in float16; a place that is left out."""
    nodes = [
        node("Mul", ["x", "k"], ["m"]),
        node("EyeLike", ["m"], ["eye"]),
        node("MatMul", ["m", "w"], ["p"]),
        node("Transpose", ["eye"], ["t"]),
        node("MatMul", ["t", "p"], ["q"]),
        node("CumSum", ["q", "one"], ["sum"]),
        node("Dropout", ["sum", "", "no"], ["d", "mask"]),
        node("Cast", ["mask"], ["ones"], to=FLOAT),
        node("Mul", ["d", "ones"], ["y"]),
    ]
    held = [tensor("k", weights(8)), tensor("w", weights(8, 8)), tensor("one", np.int64(1)),
            tensor("no", np.bool_(False))]  # fmt: skip
    return model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held)


def embedded() -> onnx.ModelProto:
    """Integers, one of them left out, before the first table."""
    nodes = [
        node("ReduceSum", ["x", "all"], ["s"], keepdims=0),
        node("Cast", ["s"], ["i"], to=TensorProto.INT32),
        node("Mul", ["i", "none"], ["zeros"]),
        node("Reshape", ["zeros", "row"], ["ids"]),
        node(
            "EmbedLayerNormalization", ["ids", "", "words", "places", "", "g", "b"], ["e", "used"],
            domain="com.microsoft", epsilon=1e-5,
        ),
        node("MatMul", ["e", "w"], ["y"]),
    ]  # fmt: skip
    held = [tensor("all", np.array([0, 1])), tensor("none", np.int32(0)), tensor("row", np.array([1, 1])),
            tensor("words", weights(3, 8)), tensor("places", weights(4, 8, seed=1)), tensor("g", 1 + weights(8)),
            tensor("b", weights(8)), tensor("w", weights(8, 8))]  # fmt: skip
    return model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held, domains=("com.microsoft",))


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


def integers() -> onnx.ModelProto:
    """Int8 with scales that are float32 for ever, and CumSum, which onnxruntime has no kernel in float16 for."""
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        node("DequantizeLinear", ["w8", "scale", "zero"], ["dw"]),
        node("MatMul", ["d", "dw"], ["m"]),
        node("CumSum", ["m", "one"], ["c"]),
        node("Mul", ["c", "w"], ["y"]),
    ]
    held = [tensor("w8", np.arange(64, dtype=np.int8).reshape(8, 8)), tensor("scale", np.float32(2**-6)),
            tensor("zero", np.int8(0)), tensor("one", np.int64(1)), tensor("w", weights(8))]  # fmt: skip
    return model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held)


def nested() -> onnx.ModelProto:
    """A branch in a branch, of whose values nobody says a type."""

    def branch(out: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), out, [], [helper.make_tensor_value_info(out, FLOAT, None)])

    def inner(prefix: str, op: str) -> onnx.GraphProto:
        middle, out = f"{prefix}.m", f"{prefix}.o"
        return branch(out, node("MatMul", ["h", "w"], [middle]), node(op, [middle], [out]))

    def outer(prefix: str, op: str) -> onnx.GraphProto:
        parts = [f"{prefix}.{name}" for name in ("if", "int", "float", "out")]
        return branch(
            parts[3],
            node("If", ["c"], [parts[0]], then_branch=inner(f"{prefix}1", op), else_branch=inner(f"{prefix}2", "Neg")),
            node("Cast", [parts[0]], [parts[1]], to=TensorProto.INT32),
            node("Cast", [parts[1]], [parts[2]], to=FLOAT),
            node("Add", [parts[2], parts[0]], [parts[3]]),
        )

    nodes = [
        node("ReduceMax", ["x"], ["max"], keepdims=0),
        node("Greater", ["max", "zero"], ["c"]),
        node("Relu", ["x"], ["h"]),
        node("If", ["c"], ["r"], then_branch=outer("a", "Tanh"), else_branch=outer("b", "Relu")),
        node("Add", ["r", "h"], ["y"]),
    ]
    held = [tensor("zero", np.float32(0)), tensor("w", weights(8, 8))]
    return model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held)


GRAPHS = (ranged, resized, mixed, branches, looped, looped_without_types, own, sequence, passed_on, integers, nested,
          dynamic, alike, embedded)  # fmt: skip


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
    assert [one.op_type for one in made.graph] == [one.op_type for one in before.graph]


@pytest.mark.parametrize("make", GRAPHS, ids=lambda make: make.__name__)
def test_blocked_nodes_compute_in_float32_between_inputs_and_outputs_in_float16(make: Any) -> None:
    """What comes out is rounded once, and so is what goes in: to the last bit."""
    proto = make()
    before = ir.from_proto(proto)
    io.name_nodes(before)
    made = half.convert(before, [one.name or "" for one in before.graph.all_nodes()], False)
    x = (X[:, None] if make is own else X).astype(np.float16)
    wanted = Session(proto.SerializeToString(), threads=1).run({"x": x.astype(np.float32)})
    for name, array in run(made, x).items():
        np.testing.assert_array_equal(array, wanted[name] if name == "w" else wanted[name].astype(np.float16))


@pytest.mark.parametrize("keep_io", [True, False])
def test_a_sequence_that_is_returned_stays_in_float32(keep_io: bool) -> None:
    nodes = [node("Mul", ["x", "w"], ["m"]), node("SplitToSequence", ["m", "four"], ["parts"], axis=1)]
    proto = model(
        nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, [tensor("w", weights(8)), tensor("four", np.int64(4))]
    )
    proto.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("parts", FLOAT, None))
    made = half.convert(ir.from_proto(proto), [], keep_io)
    (found,) = Session(io.to_bytes(made), threads=1).run({"x": X if keep_io else X.astype(np.float16)}).values()
    assert [part.dtype for part in found] == [np.float32] * 2
    np.testing.assert_allclose(np.hstack(found), X * weights(8), rtol=2e-3, atol=1e-6)


def test_names_of_casts_are_new() -> None:
    nodes = [node("Mul", ["x", "w"], ["x.half"]), node("Neg", ["x.half"], ["y.half"]), node("Relu", ["y.half"], ["y"])]
    for one, name in zip(nodes, ("x.half.cast", "y.cast", "last"), strict=True):
        one.name = name
    proto = model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, [tensor("w", weights(8))])
    made = half.convert(ir.from_proto(proto), [], True)
    assert len({one.name for one in made.graph}) == len({one.outputs[0].name for one in made.graph}) == 5
    np.testing.assert_allclose(run(made, X)["y"], np.maximum(-X * weights(8), 0), rtol=2e-3, atol=1e-6)


#: What is in float16 inside; `name.half` is a cast of what another node made.
NARROW = {
    ranged: "limit positions.half angles x.half y.half",
    mixed: "x.half f v twos g zeros sum like y.half",
    looped: "x.half start all.half mean last.half y.half state.half next.half seen.half",
    looped_without_types: "x.half start all.half mean last.half y.half state.half next.half seen.half",
    sequence: "x.half m part.half y.half",
    integers: "d.half dw.half m c.half y.half",
    # Both outer branches; what an inner one returns is float32, and a cast brings it back.
    nested: "x.half max h r.half y.half"
    + "".join(
        f" {one}.if.half {one}.float {one}.out.half {one}1.m {one}1.o.half {one}2.m {one}2.o.half" for one in "ab"
    ),
    # `at` has a type that only a run tells: the sum with it stays in float32, and what reads the sum does not.
    dynamic: "x.half r f.half scale.half m sum.half yes.half x.half no.half",
    alike: "x.half m p eye.half t q sum.half d ones y.half",
    embedded: "x.half s e y.half",
}


@pytest.mark.parametrize("make", NARROW, ids=lambda make: make.__name__)
def test_what_can_be_in_float16_is_and_nothing_else(make: Any) -> None:
    made = half.convert(ir.from_proto(make()), [], True)
    every = [value for graph in made.graphs() for one in graph for value in one.outputs]
    found = [(value.name or "").split("_")[0] for value in every if value.dtype == ir.DataType.FLOAT16]
    assert sorted(found) == sorted(NARROW[make].split())


def test_a_default_that_callers_override_is_no_weight() -> None:
    proto = model([node("Mul", ["x", "w"], ["y"])], {"x": (FLOAT, ["n", 8]), "w": (FLOAT, [8])}, {"y": (FLOAT, None)},
                  [tensor("w", weights(8))])  # fmt: skip
    made = half.convert(ir.from_proto(proto), [], True)
    session = Session(io.to_bytes(made), threads=1)
    (y,) = session.run({"x": X, "w": np.full(8, 2, np.float32)}).values()
    np.testing.assert_allclose(y, 2 * X, rtol=2e-3, atol=1e-6)
    (y,) = session.run({"x": np.ones((1, 8), np.float32)}).values()
    np.testing.assert_allclose(y[0], weights(8), rtol=2e-3, atol=1e-6)


def test_a_loop_without_a_count_whose_body_does_not_say_what_counts() -> None:
    """No input of the node tells the type; it stays open."""
    proto = looped_without_types()
    proto.graph.node[1].input[0] = ""
    proto.graph.node[1].attribute[0].g.input[0].ClearField("type")
    made = half.convert(ir.from_proto(proto), [], True)
    assert kinds(made)["w"] == "FLOAT16"
    body = next(graph for graph in made.graphs() if graph.name == "body")
    assert [value.dtype for value in body.inputs] == [None, ir.DataType.BOOL, ir.DataType.FLOAT]


def test_several_graphs_in_one_attribute_are_converted_too() -> None:
    """No operator of ONNX has one; the graphs inside a node of their own domain."""
    parts = [
        helper.make_graph(
            [node("Mul", ["x", "w"], [name])], name, [], [helper.make_tensor_value_info(name, FLOAT, None)]
        )
        for name in ("a", "b")
    ]
    one = helper.make_node("Choose", ["x"], ["y"], "choose", domain="own", parts=parts)
    proto = model([one], {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, [tensor("w", weights(8))], domains=("own",))
    made = half.convert(ir.from_proto(proto), [], True)
    assert kinds(made) == {"w": "FLOAT16"}
    for graph in list(made.graphs())[1:]:
        assert [one.op_type for one in graph] == ["Cast", "Mul", "Cast"]
        assert graph.outputs[0].dtype == ir.DataType.FLOAT


def test_widened_sequences_need_no_types_in_the_file() -> None:
    """onnx infers what a sequence gives back."""
    nodes = [
        node("Cast", ["x"], ["h"], to=HALF),
        node("SplitToSequence", ["h", "four"], ["parts"], axis=1),
        node("SequenceAt", ["parts", "one"], ["part"]),
        node("Mul", ["part", "k"], ["m"]),
        node("Cast", ["m"], ["y"], to=FLOAT),
    ]
    held = [tensor("four", np.int64(4)), tensor("one", np.int64(1)), tensor("k", weights(4, dtype="float16"))]
    proto = model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held)
    wide = half.widen(ir.from_proto(proto))
    assert kinds(wide)["k"] == "FLOAT"
    wanted = X.astype(np.float16)[:, 4:].astype(np.float32) * weights(4, dtype="float16").astype(np.float32)
    np.testing.assert_array_equal(run(wide, X)["y"], wanted)


def product(blocked: tuple[str, ...] = (), keep_io: bool = True) -> ir.Model:
    """Two products that share a weight, one of them with another, in float16."""
    nodes = [node("Mul", ["x", "w"], ["a"]), node("Mul", ["a", "v"], ["b"]), node("Mul", ["b", "w"], ["y"])]
    held = [tensor("w", weights(8)), tensor("v", weights(8, seed=1))]
    proto = model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, held)
    return half.convert(ir.from_proto(proto), blocked, keep_io)


def kinds(made: ir.Model) -> dict[str, str]:
    return {name: str(value.dtype) for name, value in made.graph.initializers.items()}


def test_casts_stand_only_where_types_differ() -> None:
    assert [one.op_type for one in product().graph] == ["Cast", "Mul", "Mul", "Mul", "Cast"]
    assert [one.op_type for one in product(keep_io=False).graph] == ["Mul", "Mul", "Mul"]
    assert [one.op_type for one in product(("Mul_a", "Mul_y")).graph] == ["Mul", "Cast", "Mul", "Cast", "Mul"]
    assert [one.op_type for one in product(("Mul_b",), False).graph] == ["Mul", "Cast", "Mul", "Cast", "Mul"]
    wide = half.widen(product())
    assert [one.op_type for one in wide.graph] == ["Mul", "Mul", "Mul"]
    assert kinds(wide) == {"w": "FLOAT", "v": "FLOAT"}


def test_a_weight_keeps_its_name_in_the_one_type_or_has_two() -> None:
    assert kinds(product()) == {"w": "FLOAT16", "v": "FLOAT16"}
    assert kinds(product(("Mul_a",))) == {"w": "FLOAT", "w.half": "FLOAT16", "v": "FLOAT16"}
    assert kinds(product(("Mul_y",))) == {"w": "FLOAT", "w.half": "FLOAT16", "v": "FLOAT16"}
    assert kinds(product(("Mul_b",))) == {"w": "FLOAT16", "v": "FLOAT"}


def test_what_is_left_out_of_a_node_has_no_type() -> None:
    nodes = [node("LayerNormalization", ["x", "g"], ["n", "", "d"]), node("Mul", ["n", "d"], ["y"])]
    proto = model(nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, [tensor("g", 1 + weights(8))])
    made = half.convert(ir.from_proto(proto), [], True)
    assert kinds(made) == {"g": "FLOAT16"}


def test_inputs_that_kernels_take_in_float32_only_whatever_the_definition_says() -> None:
    nodes = [node("GroupNorm", ["x", "g", "b"], ["y"], domain="com.microsoft", groups=2, activation=0)]
    held = [tensor("g", 1 + weights(8)), tensor("b", weights(8))]
    made = model(nodes, {"x": (FLOAT, ["n", 2, 2, 8])}, {"y": (FLOAT, None)}, held, domains=("com.microsoft",))
    converted = half.convert(ir.from_proto(made), [], False)
    assert [str(value.dtype) for value in converted.graph[0].inputs if value is not None] == [
        "FLOAT16",
        "FLOAT",
        "FLOAT",
    ]


def test_rounding_to_float16_keeps_what_is_finite_finite_and_what_is_not_zero_not_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    least, greatest = 2.0**-24, 65504.0
    pairs = {
        0.0: 0.0, 1.0: 1.0, -1.0: -1.0, 0.1: 0.0999755859375, 65504.0: greatest, 65519.0: greatest, 65520.0: greatest,
        -1e6: -greatest, np.inf: np.inf, -np.inf: -np.inf, 1e-9: least, -1e-9: -least, 2.0**-24: least,
        1e-7: 2 * least, 2.9e-8: least, 1e-38: least,
    }  # fmt: skip
    values, wanted = np.array([*pairs, np.nan], np.float32), np.array([*pairs.values(), np.nan], np.float16)
    for chunk in (half._CHUNK, 4, 17, 1):
        monkeypatch.setattr(half, "_CHUNK", chunk)
        made = half.to_half(values)
        assert made.dtype == np.float16
        np.testing.assert_array_equal(made, wanted)
    square = half.to_half(np.array([[1, 2, 3], [4, 5, 6]], np.float32))
    assert square.tolist() == [[1, 2, 3], [4, 5, 6]]


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
