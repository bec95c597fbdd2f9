"""Models before quantization: other operators, the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import ModelError
from lepton_cli.model import io
from lepton_cli.quantize import prepare
from tests.quantize.builders import Graph, context, images, mlp, ops, residual_net, rows, run


def by_name(model: ir.Model) -> dict[str, ir.Node]:
    return {node.name or "": node for node in model.graph}


def array(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


DATA = rows(6, 20)


def product(
    bias: Any = "vector", *, swapped: bool = False, x_shape: tuple[Any, ...] = ("b", 20), reader: str = "Add"
) -> Graph:
    """MatMul and an Add of some bias, behind each other; the last tensor is t1."""
    graph = Graph()
    matrix = graph.random.normal(size=(20, 24)).astype(np.float32)
    x = graph.take("x", list(x_shape))
    y = graph.op("MatMul", x, graph.constant(matrix))
    values = graph.random.normal(size=24).astype(np.float32) if isinstance(bias, str) else bias
    operands = [y, y if values is None else graph.constant(values)]
    graph.op(reader, *(operands[::-1] if swapped else operands))
    return graph


@pytest.mark.parametrize("swapped", [False, True])
def test_a_product_and_its_bias_become_one_gemm_under_the_name_of_the_product(swapped: bool) -> None:
    model = product(swapped=swapped).model("t1")
    before = run(model, DATA)
    last = model.graph.outputs[0]
    prepare.matmul_to_gemm(model)
    assert ops(model) == ["Gemm"]
    gemm = by_name(model)["MatMul_0"]
    assert [value.name for value in gemm.inputs if value is not None] == ["x", "w0", "w1"]
    assert not gemm.attributes
    np.testing.assert_allclose(run(model, DATA), before, atol=1e-5)
    assert [value.name for value in model.graph.outputs] == ["t1"]
    assert (model.graph.outputs[0].dtype, list(model.graph.outputs[0].shape or ())) == (last.dtype, ["b", 24])


def test_products_that_are_no_gemm_stay() -> None:
    vector = np.ones(24, np.float32)
    stay = {
        "a bias of another shape": product(np.ones((1, 24), np.float32)).model("t1"),
        "a bias of one number": product(np.float32(1)).model("t1"),
        "no bias but itself": product(None).model("t1"),
        "not an addition": product(reader="Mul").model("t1"),
        "an output of the model": product().model("t1", "t0"),
        "two open dimensions of three": product(x_shape=("b", "s", 20)).model("t1"),
        "no rows": product(x_shape=(2, 0, 20)).model("t1"),
        "a vector": product(x_shape=(20,)).model("t1"),
    }
    graph = product()
    graph.op("Tanh", "t0")
    stay["another reader"] = graph.model("t1", "t2")
    graph = product()
    unknown = stay["unknown dimensions"] = graph.model("t1")
    unknown.graph.inputs[0].shape = None
    graph = Graph()
    x = graph.op("MatMul", graph.take("x", ["b", 20]), graph.take("y", [20, 24]))
    stay["a computed weight"] = graph.model(graph.op("Add", x, graph.constant(vector)))
    graph = Graph()
    x = graph.op("MatMul", graph.take("x", ["b", 20]), graph.constant(np.ones((20, 24), np.float32)))
    stay["a computed bias"] = graph.model(graph.op("Add", x, graph.take("y", [24])))
    graph = Graph()
    x = graph.op("MatMul", graph.take("x", [3, 20]), graph.constant(np.ones(20, np.float32)))
    stay["a weight of one dimension"] = graph.model(graph.op("Add", x, graph.constant(np.ones(3, np.float32))))
    graph = Graph()
    x = graph.op("MatMul", graph.take("x", [20, 20]), graph.constant(np.ones((2, 20, 24), np.float32)))
    stay["a weight of three"] = graph.model(graph.op("Add", x, graph.constant(np.ones((20, 24), np.float32))))
    for why, model in stay.items():
        before = ops(model)
        prepare.matmul_to_gemm(model)
        assert ops(model) == before, why


@pytest.mark.parametrize("x_shape", [("b", 3, 20), (2, "s", 20), (2, 3, 20), (1, 2, 3, 20)])
def test_products_of_more_dimensions_read_rows_and_give_their_dimensions_back(x_shape: tuple[Any, ...]) -> None:
    """At most one may be open: a Reshape can find out one."""
    model = product(x_shape=x_shape).model("t1")
    sizes = [2 if isinstance(dim, str) else dim for dim in x_shape]
    data = Arrays({"x": np.random.default_rng(0).normal(size=sizes).astype(np.float32)})
    before = run(model, data)
    prepare.matmul_to_gemm(model)
    assert ops(model) == ["Reshape", "Gemm", "Reshape"]
    rows, gemm, back = model.graph
    assert (rows.name, gemm.name, back.name) == ("MatMul_0_rows", "MatMul_0", "MatMul_0_back")
    assert array(model, rows.inputs[1].name or "").tolist() == [-1, 20]  # type: ignore[union-attr]
    given = [-1 if isinstance(dim, str) else dim for dim in x_shape[:-1]]
    assert array(model, back.inputs[1].name or "").tolist() == [*given, 24]  # type: ignore[union-attr]
    assert {value.dtype for node in model.graph for value in node.outputs} == {ir.DataType.FLOAT}
    np.testing.assert_allclose(run(model, data), before, atol=1e-5)
    assert list(model.graph.outputs[0].shape or ()) == [*x_shape[:-1], 24]


def test_products_of_one_tensor_share_its_rows() -> None:
    """So that it is rounded once. The second addition stands before the first."""
    graph = Graph()
    x = graph.take("x", [2, 3, 20])
    first, second = (graph.op("MatMul", x, graph.constant(graph.random.normal(size=(20, 20)).astype(np.float32)))
                     for _ in range(2))  # fmt: skip
    biases = [graph.constant(graph.random.normal(size=20).astype(np.float32)) for _ in range(2)]
    later = graph.op("Add", second, biases[1])
    model = graph.model(graph.op("Sub", graph.op("Add", first, biases[0]), later))
    data = Arrays({"x": np.random.default_rng(0).normal(size=(2, 3, 20)).astype(np.float32)})
    before = run(model, data)
    prepare.matmul_to_gemm(model)
    assert ops(model) == ["Reshape", "Gemm", "Reshape", "Gemm", "Reshape", "Sub"]
    np.testing.assert_allclose(run(model, data), before, atol=1e-5)


@pytest.mark.parametrize("zero", [False, True])
def test_a_reshape_in_front_and_one_behind_are_not_done_twice(zero: bool) -> None:
    """One that copies a dimension needs what it copies it from; one with other readers stays for them."""
    graph = Graph()
    x = graph.op("Reshape", graph.op("Tanh", graph.take("x", [2, 3, 4, 5])), graph.constant(np.array([2, 3, 20])))
    y = graph.linear(x, 20, 24, gemm=False)
    heads = graph.op("Reshape", y, graph.constant(np.array([0 if zero else 2, 3, 2, 12])))
    model = graph.model(graph.op("Exp", heads))
    data = Arrays({"x": np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)})
    before = run(model, data)
    prepare.matmul_to_gemm(model)
    assert ops(model) == ["Tanh", "Reshape", "Gemm", *["Reshape"] * (2 if zero else 1), "Exp"]
    np.testing.assert_allclose(run(model, data), before, rtol=1e-5)
    graph = Graph()
    x = graph.op("Reshape", graph.op("Tanh", graph.take("x", [2, 3, 4, 5])), graph.constant(np.array([2, 3, 20])))
    model = graph.model(graph.op("Add", graph.linear(x, 20, 20, gemm=False), x))
    prepare.matmul_to_gemm(model)
    assert ops(model) == ["Tanh", "Reshape", "Reshape", "Gemm", "Reshape", "Add"]


def test_every_product_of_a_model_is_looked_at() -> None:
    graph = Graph()
    x = graph.op("Tanh", graph.take("x", ["b", 20]))
    x = graph.op("Mul", x, x)
    for width in ((20, 24), (24, 20)):
        x = graph.op("Relu", graph.linear(x, *width, gemm=False))
    model = graph.model(x)
    before = run(model, DATA)
    prepare.matmul_to_gemm(model)
    assert ops(model) == ["Tanh", "Mul", "Gemm", "Relu", "Gemm", "Relu"]
    np.testing.assert_allclose(run(model, DATA), before, atol=1e-5)


def test_shared_weights_are_given_to_each_of_the_nodes_alone() -> None:
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 20]), 20, 20)
    y = graph.op("Gemm", graph.op("Tanh", x), "w1", "w0", transB=1)
    z = graph.op("Gemm", graph.op("Tanh", y), "w1", "w0", transB=1)
    alone = graph.linear(z, 20, 20)
    model = graph.model(graph.op("Add", alone, "w0"))
    weight, bias = array(model, "w1"), array(model, "w0")
    before = run(model, DATA)
    prepare.unshare(model, {"Gemm_0", "Gemm_2", "Gemm_5", "Tanh_1"})
    nodes = by_name(model)
    inputs = {name: [value.name for value in nodes[name].inputs if value is not None] for name in nodes}
    assert inputs["Gemm_0"] == ["x", "w1.Gemm_0", "w0.Gemm_0"]
    assert inputs["Gemm_2"] == ["t1", "w1.Gemm_2", "w0.Gemm_2"]
    assert inputs["Gemm_4"] == ["t3", "w1", "w0"], "not named"
    assert inputs["Gemm_5"] == ["t4", "w3", "w2"], "not shared"
    for name in ("Gemm_0", "Gemm_2"):
        np.testing.assert_array_equal(array(model, f"w1.{name}"), weight)
        np.testing.assert_array_equal(array(model, f"w0.{name}"), bias)
        own = model.graph.initializers[f"w1.{name}"]
        assert (own.const_value.name, own.dtype, list(own.shape or ())) == (f"w1.{name}", ir.DataType.FLOAT, [20, 20])  # type: ignore[union-attr]
    np.testing.assert_array_equal(run(model, DATA), before)


def test_only_the_operands_behind_the_first_are_unshared() -> None:
    """The first is the activation; the others may be absent."""
    graph = Graph()
    table = graph.constant(np.ones((20, 20), np.float32))
    limit = graph.constant(np.float32(0.5))
    first = graph.op("MatMul", table, graph.take("x", [20, 20]))
    second = graph.op("Clip", graph.op("MatMul", table, "x"), "", limit)
    model = graph.model(first, graph.op("Clip", second, "", limit))
    prepare.unshare(model, {"MatMul_0", "Clip_2"})
    nodes = by_name(model)
    assert nodes["MatMul_0"].inputs[0].name == table  # type: ignore[union-attr]
    assert nodes["Clip_2"].inputs[1] is None
    assert nodes["Clip_2"].inputs[2].name == f"{limit}.Clip_2"  # type: ignore[union-attr]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gemm_becomes_a_product_and_an_addition(transposed: int, bias: bool) -> None:
    graph = Graph()
    matrix = graph.random.normal(size=(24, 20) if transposed else (20, 24)).astype(np.float32)
    more = [graph.constant(graph.random.normal(size=24).astype(np.float32))] if bias else []
    layout = {"transB": 1} if transposed else {}
    y = graph.op("Gemm", graph.take("x", ["b", 20]), graph.constant(matrix), *more, **layout)
    model = graph.model(graph.op("Tanh", y))
    expected = DATA.feeds["x"] @ (matrix.T if transposed else matrix) + (array(model, more[0]) if bias else 0)
    prepare.gemm_to_matmul(model, {"Gemm_0"})
    assert ops(model) == ["MatMul", *(["Add"] if bias else []), "Tanh"]
    nodes = by_name(model)
    assert [list(value.shape or ()) for value in nodes["Gemm_0"].outputs] == [["b", 24]]
    assert nodes["Gemm_0"].outputs[0].dtype == ir.DataType.FLOAT
    assert ("Gemm_0_bias" in nodes) == bias
    np.testing.assert_allclose(run(model, DATA), np.tanh(expected), atol=1e-5)
    kept = [value.name for value in model.graph.initializers.values()]
    assert len(kept) == 1 + bias, "the weight that was transposed is gone"
    weight = nodes["Gemm_0"].inputs[1]
    assert weight is not None
    assert (weight.dtype, list(weight.shape or ())) == (ir.DataType.FLOAT, [20, 24])


def test_only_the_named_gemms_with_constant_weights_are_rewritten() -> None:
    graph = Graph()
    x = graph.take("x", ["b", 20])
    first = graph.op("Gemm", x, graph.take("y", [20, 20]))
    model = graph.model(first, graph.linear(x, 20, 20), graph.linear(x, 20, 20), graph.op("Tanh", x))
    prepare.gemm_to_matmul(model, {"Gemm_0", "Gemm_1", "Tanh_3"})
    assert ops(model) == ["Gemm", "MatMul", "Add", "Gemm", "Tanh"]
    assert [value.name for value in model.graph.outputs] == ["t0", "t1", "t2", "t3"]
    add = by_name(model)["Gemm_1_bias"].outputs[0]
    assert (add.dtype, list(add.shape or ())) == (ir.DataType.FLOAT, ["b", 20])


def test_quantized_operators_are_refused_but_tables_in_blocks_are_not() -> None:
    for kind in ("QuantizeLinear", "MatMulNBits", "QLinearConv", "DynamicQuantizeLinear"):
        node = ir.node(kind, [ir.Value(name="x")], name="first")
        model = ir.Model(ir.Graph([node.inputs[0]], [node.outputs[0]], nodes=[node]), ir_version=8)  # type: ignore[list-item]
        with pytest.raises(ModelError) as caught:
            prepare.refuse_quantized(model)
        assert caught.value.code == "model.already-quantized"
        assert f"1 quantized operators, the first is `first` ({kind})" in str(caught.value)
    node = ir.node("GatherBlockQuantized", [ir.Value(name="x")], domain="com.microsoft")
    prepare.refuse_quantized(ir.Model(ir.Graph([], [], nodes=[node]), ir_version=8))
    prepare.refuse_quantized(mlp())


def test_constant_nodes_are_weights_for_what_follows(tmp_path: Path) -> None:
    graph = Graph()
    matrix = graph.op("Constant", value=numpy_helper.from_array(np.eye(20, 24, dtype=np.float32)))
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 20]), matrix))
    made = prepare.prepare(model, context(DATA, tmp_path)).model
    assert ops(made) == ["MatMul"]
    assert by_name(made)["MatMul_1"].inputs[1].const_value is not None  # type: ignore[union-attr]


def normalised(opset: int = 17, spread: bool = False) -> ir.Model:
    """A dead node, a computed constant, and Conv with batch norm (`spread`: one behind nothing to fold into)."""
    graph = Graph(opset)
    x = graph.take("x", ["b", 3, 8, 8])
    parts = [graph.constant(graph.random.uniform(0.5, 1, 4).astype(np.float32)) for _ in range(4)]
    if spread:
        ones = [graph.constant(np.float32([1, 2, 3])) for _ in range(4)]
        for _ in range(4):
            x = graph.op("Tanh", graph.op("BatchNormalization", x, *ones))
    y = graph.op("BatchNormalization", graph.conv(x, 3, 4, relu=False), *parts)
    one = graph.op("Constant", value=numpy_helper.from_array(np.float32(1)))
    two = graph.op("Add", one, graph.constant(np.float32(1)))
    graph.op("Tanh", y)
    return graph.model(graph.op("Mul", graph.op("Identity", y), two))


def test_preparing_computes_constants_and_folds_batch_norm_without_changing_outputs(tmp_path: Path) -> None:
    model = normalised()
    data = images(4, size=8)
    before, held = run(model, data), io.to_bytes(model)
    prepared = prepare.prepare(model, context(data, tmp_path))
    assert ops(prepared.model) == ["Conv", "Mul"]
    np.testing.assert_allclose(run(prepared.model, data), before, atol=1e-5)
    assert prepared.names == tuple(node.name for node in model.graph)
    assert prepared.warnings == ()
    assert io.to_bytes(model) == held


def test_batch_norm_that_cannot_be_folded_is_told_three_times_at_most(tmp_path: Path) -> None:
    model = normalised(spread=True)
    warnings = prepare.prepare(model, context(images(4, size=8), tmp_path)).warnings
    assert len(warnings) == 3
    assert warnings[0].startswith("BatchNormalization `BatchNormalization_0` stays unfolded: ")


def test_opsets_before_11_are_converted_where_there_is_something_to_quantize(tmp_path: Path) -> None:
    data = images(4)
    for opset, expected, before, after in ((9, 13, 4, 8), (10, 13, 9, 9), (11, 11, 7, 7), (12, 12, 8, 8)):
        model = residual_net(opset)
        model.ir_version = before
        made = prepare.prepare(model, context(data, tmp_path)).model
        assert made.graph.opset_imports[""] == expected
        assert made.ir_version == after
        np.testing.assert_allclose(run(made, data), run(model, data), atol=1e-4)
        assert all(node.name for node in made.graph)
    graph = Graph(9)
    plain = graph.model(graph.op("Tanh", graph.take("x", ["b", 20])))
    assert prepare.prepare(plain, context(DATA, tmp_path)).model.graph.opset_imports[""] == 9


def test_an_old_model_that_onnx_cannot_convert_says_so(tmp_path: Path) -> None:
    graph = Graph(9)
    x = graph.linear(graph.take("x", ["b", 20]), 20, 20)
    model = graph.model(graph.op("Upsample", x, graph.constant(np.float32([1, 2])), mode="unknown"))
    model.graph.node("Upsample_1").op_type = "NoSuchOperator"
    with pytest.raises(ModelError) as caught:
        prepare.prepare(model, context(DATA, tmp_path))
    assert caught.value.code == "model.opset"
    assert "opset 9 is too old" in str(caught.value)


def test_inputs_with_default_values_become_weights(tmp_path: Path) -> None:
    graph = Graph()
    weight = graph.constant(np.ones((20, 20), np.float32))
    graph.take("x", ["b", 20])
    graph.take(weight, [20, 20], TensorProto.FLOAT)
    model = graph.model(graph.op("MatMul", "x", weight))
    assert [value.name for value in prepare.prepare(model, context(DATA, tmp_path)).model.graph.inputs] == ["x"]
