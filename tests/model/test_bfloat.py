"""bfloat16 as float32: the same values in plain onnxruntime, and no trace of the type in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from google.protobuf.message import Message
from onnx import TensorProto, helper

from lepton_cli.model import bfloat, io

N = helper.make_node
BF, FLOAT, HALF, INT = TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
#: bfloat16 has eight bits of precision.
GRID = np.arange(-12, 12, dtype=np.float32).reshape(4, 6) / 8


def info(name: str, kind: int | None = None, shape: list[int | str] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape) if kind else onnx.ValueInfoProto(name=name)


def stored(name: str, values: Any, kind: int = BF) -> TensorProto:
    array = np.asarray(values, np.float32)
    return helper.make_tensor(name, kind, array.shape, array.ravel())


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    held: list[TensorProto] | None = None,
    domain: str = "",
) -> ir.Model:
    graph = helper.make_graph(nodes, "g", inputs, outputs, held or [])
    imports = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=9))


X, Y = info("x", FLOAT, ["b", 6]), info("y", FLOAT)


@pytest.mark.parametrize("kind", [BF, FLOAT])
def test_it_computes_so_where_an_input_or_an_output_has_the_type(kind: int) -> None:
    """A Cast makes one of the other: neither is read by anything else."""
    cast = N("Cast", ["x"], ["y"], to=INT)
    assert bfloat.computes(model([cast], [info("x", kind, ["b"])], [info("y", INT)])) is (kind == BF)
    cast = N("Cast", ["x"], ["y"], to=kind)
    assert bfloat.computes(model([cast], [info("x", INT, ["b"])], [info("y", kind)])) is (kind == BF)


def test_it_computes_so_where_an_operator_reads_a_weight_of_the_type() -> None:
    for kind in (BF, FLOAT, HALF):
        assert bfloat.computes(model([N("Op", ["x", "w"], ["y"])], [X], [Y], [stored("w", GRID, kind)])) is (kind == BF)


def test_weights_that_are_only_stored_so_and_cast_stay() -> None:
    """As an initializer or in a Constant node; optional inputs that are left out have no type."""
    nodes = [N("Cast", ["w"], ["f"], to=FLOAT), N("Op", ["x", "", "f"], ["y", ""])]
    assert not bfloat.computes(model(nodes, [X], [Y], [stored("w", GRID)]))
    constant = N("Constant", [], ["w"], value=stored("", GRID))
    assert not bfloat.computes(model([constant, *nodes], [X], [Y]))


def test_a_constant_node_that_an_operator_reads_counts_whether_or_not_its_type_is_noted() -> None:
    for kind in (BF, FLOAT):
        nodes = [N("Constant", [], ["w"], value=stored("", GRID, kind)), N("Op", ["x", "w"], ["y"])]
        made = model(nodes, [X], [Y])
        made.graph[0].outputs[0].type = None
        assert bfloat.computes(made) is (kind == BF)


def test_what_a_constant_of_a_computed_shape_holds_counts() -> None:
    for kind in (BF, FLOAT):
        nodes = [N("ConstantOfShape", ["s"], ["c"], value=stored("", [2], kind)), N("Cast", ["c"], ["y"], to=FLOAT)]
        assert bfloat.computes(model(nodes, [info("s", INT, [1])], [Y])) is (kind == BF)


@pytest.mark.parametrize("name", ["to", "dtype", "output_dtype"])
def test_an_attribute_that_names_the_type_counts(name: str) -> None:
    """Of values of which nothing else tells a type."""
    for kind in (BF, FLOAT, HALF):
        nodes = [N("Op", ["x"], ["r"], **{name: kind}), N("Cast", ["r"], ["y"], to=FLOAT)]
        assert bfloat.computes(model(nodes, [X], [Y])) is (kind == BF)
    nodes = [N("Op", ["x"], ["r"], axis=BF), N("Cast", ["r"], ["y"], to=FLOAT)]
    assert not bfloat.computes(model(nodes, [X], [Y])), "16 is a number too"


def test_a_cast_to_the_type_counts_where_an_operator_reads_it() -> None:
    cast = N("Cast", ["x"], ["r"], to=BF)
    assert bfloat.computes(model([cast, N("Relu", ["r"], ["s"]), N("Cast", ["s"], ["y"], to=FLOAT)], [X], [Y]))
    assert not bfloat.computes(model([cast, N("Cast", ["r"], ["y"], to=FLOAT)], [X], [Y]))


def test_an_attribute_of_the_name_that_holds_no_tensor_is_none() -> None:
    """The Pad of old holds a number to fill with; an attribute of a function's node may only refer to another."""
    assert not bfloat.computes(model([N("Pad", ["x"], ["y"], value=16.0, pads=[0, 0, 1, 1])], [X], [Y]))
    made = model([N("Op", ["x"], ["y"])], [X], [Y])
    for kind in (ir.AttributeType.TENSOR, ir.AttributeType.INT):
        for name in ("value", "to"):
            made.graph[0].attributes[name] = ir.RefAttr(name, "outer", kind)
        assert not bfloat.computes(made)
        bfloat.as_float32(made)


def branched() -> ir.Model:
    """Everything of the type stands in the branches of an If, one of them in an If of its own."""

    def branch(out: str, *nodes: onnx.NodeProto, kind: int = BF) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), out, [], [info(out, kind)], [stored(f"{out}.w", GRID)])

    inner = [
        branch("p", N("MatMul", ["h", "p.w"], ["p"])),
        branch("q", N("Mul", ["one", "two"], ["k"]), N("MatMul", ["h", "q.w"], ["m"]), N("Mul", ["m", "k"], ["q"])),
    ]
    inner[1].node.insert(0, N("Constant", [], ["two"], value=stored("", [2])))
    inner[1].node.insert(0, N("ConstantOfShape", ["size"], ["one"], value=stored("", [-1.5])))
    outer = [
        branch(
            "a",
            N("Cast", ["x"], ["h"], to=BF),
            N("If", ["c"], ["i"], then_branch=inner[0], else_branch=inner[1]),
            N("Cast", ["i"], ["a"], to=FLOAT),
            kind=FLOAT,
        ),
        branch("b", N("MatMul", ["x", "v"], ["b"]), kind=FLOAT),
    ]
    nodes = [N("If", ["d"], ["y"], then_branch=outer[0], else_branch=outer[1])]
    inputs = [info("x", FLOAT, ["n", 4]), info("c", TensorProto.BOOL, []), info("d", TensorProto.BOOL, [])]
    held = [stored("v", GRID, FLOAT), helper.make_tensor("size", INT, [1], [1])]
    return model(nodes, inputs, [info("y", FLOAT)], held)


def traces(message: Message) -> list[str]:
    """Fields that name bfloat16 anywhere in a file."""
    found = []
    for field, value in message.ListFields():
        several = value if hasattr(value, "__len__") and not isinstance(value, (str, bytes)) else [value]
        for one in several:
            if isinstance(one, Message):
                found += traces(one)
            elif field.name in ("elem_type", "data_type") and one == BF:
                found.append(field.name)
    if isinstance(message, onnx.AttributeProto) and message.name in ("to", "dtype", "output_dtype") and message.i == BF:
        found.append(message.name)
    return found


def ran(made: ir.Model, feeds: dict[str, Any]) -> list[np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(made).SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize("c", [True, False])
def test_branches_compute_the_same_in_float32(c: bool) -> None:
    before = branched()
    assert bfloat.computes(before)
    assert len(traces(ir.to_proto(before))) > 5
    wide = bfloat.as_float32(before)
    assert traces(ir.to_proto(wide)) == []
    assert not bfloat.computes(wide)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    (y,) = ran(wide, {"x": x, "c": np.array(c), "d": np.array(True)})
    np.testing.assert_array_equal(y, x @ GRID * (1 if c else -3))


def everything() -> ir.Model:
    """Inputs, outputs, weights, noted types and every attribute that names the type."""
    nodes = [
        N("Relu", ["x"], ["r"]),
        N("Mul", ["r", "w"], ["m"]),
        N("Cast", ["i"], ["c"], to=BF),
        N("Cast", ["i"], ["j"], to=INT),
        N("EyeLike", ["i"], ["e"], dtype=BF),
        N("Constant", [], ["k"], value=stored("", [[0.5]])),
        N("Constant", [], ["n"], value_int=16),
        N("Cast", ["n"], ["f"], to=BF),
        N("Sum", ["m", "c", "e", "k", "f"], ["y"]),
    ]
    held = [stored("w", GRID[:, :4] + 2), stored("unread", GRID, FLOAT)]
    graph = helper.make_graph(
        nodes, "g", [info("x", BF, [4, 4]), info("i", INT, [4, 4])], [info("y", BF, [4, 4]), info("j", INT)], held,
        value_info=[info("r", BF, [4, 4]), info("c", BF, [4, 4])],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def test_whatever_names_the_type_names_float32_and_the_rest_stays() -> None:
    before = everything()
    written = ir.to_proto(before).SerializeToString()
    wide = bfloat.as_float32(before)
    assert ir.to_proto(before).SerializeToString() == written, "the model given stays"
    assert traces(ir.to_proto(wide)) == []
    x, i = GRID[:, 2:] * 4, np.arange(16).reshape(4, 4) - 7
    y, j = ran(wide, {"x": x, "i": i})
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, np.maximum(x, 0) * (GRID[:, :4] + 2) + i + np.eye(4) + 0.5 + 16)
    assert j.dtype == np.int64
    assert wide.graph.initializers["w"].const_value is not None
    assert [tuple(value.const_value.shape) for value in wide.graph.initializers.values() if value.const_value] == [
        (4, 4),
        (4, 6),
    ]


def test_other_types_and_attributes_of_other_names_stay() -> None:
    nodes = [N("Op", ["x", "h"], ["r"], axis=BF, to=HALF, value=stored("", [1], HALF)), N("Op", ["r", "w"], ["y"])]
    before = model(nodes, [X], [Y], [stored("h", GRID, HALF), stored("w", GRID)])
    made = bfloat.as_float32(before)
    attributes = made.graph[0].attributes
    assert attributes["axis"].value == BF
    assert attributes["to"].value == HALF
    assert attributes["value"].as_tensor().dtype == ir.DataType.FLOAT16
    kinds = {name: value.const_value.dtype for name, value in made.graph.initializers.items() if value.const_value}
    assert kinds == {"h": ir.DataType.FLOAT16, "w": ir.DataType.FLOAT}
    assert made.graph.initializers["h"].const_value is before.graph.initializers["h"].const_value


def test_weights_keep_name_and_shape_and_are_read_when_they_are_used(tmp_path: Path) -> None:
    """The file may come later."""
    place = ir.ExternalTensor(
        "w.data", 8, 48, ir.DataType.BFLOAT16, shape=ir.Shape([4, 6]), name="w", base_dir=tmp_path
    )
    before = model([N("MatMul", ["x", "w"], ["y"])], [info("x", BF, ["n", 4])], [info("y", BF)], [stored("w", GRID)])
    before.graph.initializers["w"].const_value = place
    wide = bfloat.as_float32(before).graph.initializers["w"].const_value
    assert wide is not None
    bits = GRID.view(np.uint32) >> 16
    (tmp_path / "w.data").write_bytes(bytes(8) + bits.astype(np.uint16).tobytes())
    assert (wide.name, wide.dtype, tuple(wide.shape), wide.nbytes) == ("w", ir.DataType.FLOAT, (4, 6), 96)
    np.testing.assert_array_equal(wide.numpy(), GRID)


def test_what_was_read_says_so() -> None:
    loaded = io.read(ir.to_proto(everything()).SerializeToString())
    assert loaded.note == bfloat.NOTE
    assert loaded.given is not None
    assert bfloat.computes(loaded.given)
    assert [one.dtype for one in io.inputs(loaded.model)] == ["float32", "int64"]
    loaded = io.read(ir.to_proto(bfloat.as_float32(everything())).SerializeToString())
    assert (loaded.note, loaded.given) == ("", None)
