"""Editing graphs: names that are free everywhere, and the same numbers before and after."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli import runtime
from lepton_cli.graph import edit, fold
from lepton_cli.graph.edit import Editor
from lepton_cli.model import io
from tests.hostile.models import mlp, parse, save

BRANCHES = """g (bool c, float[2] x) => (float[2] y)
<float[2] w = {1, 2}>
{
    h = Add(x, w)
    y = If(c) <
        then_branch = t () => (float[2] a) <float[2] inner = {3, 4}> { [node_inside] a = Mul(h, inner) },
        else_branch = e () => (float[2] b) { b = Neg(h) }
    >
}"""


def _load(text: str) -> ir.Model:
    made: ir.Model = ir.from_proto(parse(text))
    io.name_nodes(made)
    return made


def _node(model: ir.Model, op: str) -> ir.Node:
    return next(node for node in model.graph.all_nodes() if node.op_type == op)


def _run(model: ir.Model, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    onnx.checker.check_model(io.to_bytes(model), full_check=True)
    return dict(runtime.Session(io.to_bytes(model), threads=1).run(feeds))


def _names(model: ir.Model) -> list[str]:
    """Names of values and nodes as the file has them, read without the editor."""
    found: list[str] = []
    waiting = [io.to_proto(model).graph]
    while waiting:
        graph = waiting.pop()
        inputs = {value.name for value in graph.input}
        found += [*inputs, *(tensor.name for tensor in graph.initializer if tensor.name not in inputs)]
        for node in graph.node:
            found += [node.name, *node.output]
            waiting += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found


@pytest.mark.parametrize("wanted", ["c", "x", "y", "w", "h", "a", "b", "inner", "node_inside", "Add_0"])
def test_names_in_use_get_a_number(wanted: str) -> None:
    model = _load(BRANCHES)
    assert wanted in _names(model)
    editor = Editor(model)
    assert editor.constant(wanted, np.ones(2, np.float32)).name == f"{wanted}_1"
    assert editor.constant(f"{wanted}_1", np.ones(2, np.float32)).name == f"{wanted}_1_1"
    made = ir.node("Relu", [_node(model, "Add").inputs[0]], name=wanted)
    editor.insert_before(_node(model, "Mul"), [made])
    assert made.name == f"{wanted}_2"
    names = _names(model)
    assert len(set(names)) == len(names)


def test_a_free_name_is_taken_as_it_is_and_many_are_found_fast() -> None:
    editor = Editor(_load(BRANCHES))
    assert editor.name("free") == "free"
    assert [editor.name("free") for _ in range(20_000)][-1] == "free_20000"
    assert editor.name("")


@given(st.lists(st.sampled_from(["a", "a_1", "a_2", "h", "h_1", "inner", "", "new"]), max_size=12))
def test_names_are_unique_and_the_same_every_time(wanted: list[str]) -> None:
    made = []
    for _ in range(2):
        model = _load(BRANCHES)
        editor = Editor(model)
        made.append([editor.constant(name, np.zeros(1, np.float32)).name for name in wanted])
        names = _names(model)
        assert len(set(names)) == len(names)
    assert made[0] == made[1]
    assert all(given_ == name or given_ not in ("", name) for given_, name in zip(made[0], wanted, strict=True))


@pytest.mark.parametrize(
    "array",
    [
        np.float32(2.5).reshape(()),
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.zeros((0, 3), np.float32),
        np.arange(4).astype(ml_dtypes.bfloat16),
        np.arange(4).astype(ml_dtypes.int4),
    ],
    ids=["scalar", "transposed", "empty", "bfloat16", "int4"],
)
def test_constants_are_what_was_given(array: np.ndarray) -> None:
    model = _load(BRANCHES)
    Editor(model).constant("k", array)
    edit.set_weight(model.graph.initializers["w"], array)
    for name in ("k", "w"):
        (tensor,) = (tensor for tensor in io.to_proto(model).graph.initializer if tensor.name == name)
        read = onnx.numpy_helper.to_array(tensor)
        assert tuple(tensor.dims) == array.shape
        np.testing.assert_array_equal(read.astype(np.float32), array.astype(np.float32))
        value = model.graph.initializers[name]
        assert (value.dtype, tuple(value.shape)) == (ir.DataType(tensor.data_type), array.shape)


def test_tensors_are_not_renamed_for_others_and_files_stay_files(tmp_path: Path) -> None:
    model = _load(BRANCHES)
    np.arange(8, dtype=np.float32).tofile(tmp_path / "w.data")
    kind, shape = ir.DataType.FLOAT, ir.Shape([2])
    far = ir.ExternalTensor("w.data", 8, 8, kind, shape=shape, name="far", base_dir=tmp_path)
    text = ir.StringTensor(np.array([b"s"], object), name="text")
    near = model.graph.initializers["w"].const_value
    assert near is not None
    editor = Editor(model)
    made = [editor.constant("k", tensor).const_value for tensor in (far, text, near)]
    io.to_bytes(model)
    assert [tensor.name for tensor in (far, text, near)] == ["far", "text", "w"]
    assert isinstance(made[0], ir.ExternalTensor)
    np.testing.assert_array_equal(made[0].numpy(), [2, 3])
    assert made[1] is not None
    assert made[1].numpy().tolist() == [b"s"]


def test_lifting_a_copys_constants_leaves_the_original() -> None:
    text = "g (float[2] x) => (float[2] y) { k = Constant<value = float[2] kept {1, 2}>() y = Add(x, k) }"
    model = _load(text)
    before = ir.to_proto(model).SerializeToString()
    copy = io.clone(model)
    fold.lift_constants(copy)
    assert list(copy.graph.initializers) == ["k"]
    assert _run(copy, x=np.ones(2, np.float32))["y"].tolist() == [2, 3]
    assert ir.to_proto(model).SerializeToString() == before


def test_nodes_in_the_place_of_one_give_its_output(tmp_path: Path) -> None:
    model = io.load(save(mlp(), tmp_path / "m.onnx")).model
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 8), np.float32)}
    before = _run(model, **feeds)
    editor = Editor(model)
    for node in [node for node in model.graph if node.op_type == "Gemm"]:
        product = ir.node("MatMul", node.inputs[:2], name=node.name)
        product.outputs[0].name = "r"  # taken
        editor.put(node, [product, ir.node("Add", [product.outputs[0], node.inputs[2]])])
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Relu", "MatMul", "Add"]
    assert [node.name for node in model.graph if node.op_type == "MatMul"] == ["first", "second"]
    assert [str(value.shape) for value in model.graph.outputs] == ["[n,4]"]
    names = _names(model)
    assert len(set(names)) == len(names)
    np.testing.assert_allclose(_run(model, **feeds)["y"], before["y"], rtol=1e-5)


def test_two_nodes_become_one() -> None:
    model = _load("g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {5, 6}>"
                  " { p = MatMul(x, w) s = Add(p, b) y = Relu(s) }")  # fmt: skip
    before = _run(model, x=np.ones((2, 2), np.float32))
    product, add = _node(model, "MatMul"), _node(model, "Add")
    inputs = [*product.inputs, add.inputs[1]]
    Editor(model).put(add, [ir.node("Gemm", inputs, name=product.name)], also=[product])
    assert next((node.op_type, node.name) for node in model.graph) == ("Gemm", product.name)
    assert _node(model, "Gemm").outputs[0].name == "s"
    np.testing.assert_array_equal(_run(model, x=np.ones((2, 2), np.float32))["y"], before["y"])


@pytest.mark.parametrize("condition", [True, False])
def test_edits_inside_a_branch(condition: bool) -> None:
    model = _load(BRANCHES)
    feeds = {"c": np.array(condition), "x": np.array([1, -1], np.float32)}
    before, editor = _run(model, **feeds), Editor(model)
    inside = _node(model, "Mul")
    twice = editor.constant("inner", np.array([6, 8], np.float32))
    half = editor.constant("half", np.array(0.5, np.float32))
    first = ir.node("Mul", [inside.inputs[0], twice])
    editor.put(inside, [first, ir.node("Mul", [first.outputs[0], half], name=inside.name)])
    np.testing.assert_allclose(_run(model, **feeds)["y"], before["y"])


def test_graphs_side_by_side_get_names_of_their_own() -> None:
    """Both branches, and what is around them, use the same names."""
    model = _load(BRANCHES.replace("b = Neg(h)", "inner = Neg(h) b = Neg(inner)"))
    _node(model, "Mul").name = "h"
    given, model = model, io.clone(model)
    feeds = {"c": np.array(True), "x": np.array([1, -1], np.float32)}
    before = _run(model, **feeds)
    for graph in list(model.graph.subgraphs()):
        edit.rename_apart(model, graph)
    names = _names(model)
    assert len(set(names)) == len(names)
    assert {"c", "x", "y", "w", "h", "a", "b", "inner", "inner_1", "h_1"} <= set(names)
    held = [value for graph in given.graphs() for value in graph.initializers.values()]
    assert all(value.const_value.name == value.name for value in held), "tensors are shared with the original"
    np.testing.assert_array_equal(_run(model, **feeds)["y"], before["y"])


def test_an_input_of_its_own() -> None:
    model = _load("g (float[3] x) => (float[3] y) <float w = {-1}> { a = Clip(x, w) y = Clip(a, w) }")
    node = next(iter(model.graph))
    Editor(model).give(node, 2, np.array(0.5, np.float32), "w")
    Editor(model).give(node, 1, np.array(0, np.float32), "w")
    assert [value.name for value in node.inputs[1:]] == ["w_2", "w_1"]
    assert _run(model, x=np.array([-3, 0.2, 3], np.float32))["y"].tolist() == pytest.approx([0, 0.2, 0.5])
    assert model.graph.initializers["w"].const_value.numpy() == -1


def test_a_frozen_result_keeps_its_name_for_subgraphs_too() -> None:
    model = _load(BRANCHES)
    Editor(model).freeze(_node(model, "Add").outputs[0], np.array([5, 7], np.float32))
    feeds = {"x": np.zeros(2, np.float32)}
    assert _run(model, c=np.array(True), **feeds)["y"].tolist() == [15, 28]
    assert _run(model, c=np.array(False), **feeds)["y"].tolist() == [-5, -7]
    names = _names(model)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("last", ["y = Identity(h)", "i = Identity(h) y = Neg(i)"])
def test_a_bypassed_node_is_gone_and_outputs_keep_their_names(last: str) -> None:
    model = _load(f"g (float[2] x) => (float[2] y) {{ h = Relu(x) k = Neg(h) m = Neg(k) {last} }}")
    before = _run(model, x=np.ones(2, np.float32))
    edit.bypass(_node(model, "Identity"))
    after = _run(model, x=np.ones(2, np.float32))
    assert list(after) == ["y"]
    np.testing.assert_array_equal(after["y"], before["y"])


@pytest.mark.parametrize(
    "body", ["y = Identity(x)", "h = Identity(x) y = Identity(w)", "z = Relu(x) y = Identity(z)"],
    ids=["input", "initializer", "output"],
)  # fmt: skip
def test_what_cannot_become_an_output_is_refused(body: str) -> None:
    outputs = "float[2] z, float[2] y" if "z" in body else "float[2] y"
    model = _load(f"g (float[2] x) => ({outputs}) <float[2] w = {{1, 2}}> {{ {body} }}")
    before = io.to_bytes(model)
    node = next(node for node in model.graph if node.outputs[0].name == "y")
    with pytest.raises(ValueError, match="cannot be the graph output"):
        edit.bypass(node)
    assert io.to_bytes(model) == before


def test_a_weight_is_what_no_caller_can_override() -> None:
    model = _load("g (float[2] x, float[2] v) => (float[2] y) <float[2] v = {1, 2}, float[2] w = {3, 4}>"
                  " { a = Add(x, v) b = Add(a, w) k = Neg(w) c = Add(b, k) y = Sum(c) }")  # fmt: skip
    found = [edit.weight_of(node) for node in model.graph if node.op_type in ("Add", "Sum")]
    assert [value.name if value is not None else None for value in found] == [None, "w", None, None]
    array = edit.array_of(next(node for node in model.graph if node.outputs[0].name == "b"))
    assert array is not None
    assert array.tolist() == [3, 4]
