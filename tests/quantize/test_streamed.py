"""Dynamic int8 tensor by tensor: the codes and scales of the formulas, and the same outputs as onnxruntime's writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.model import io
from lepton_cli.quantize import blocks, dynamic, streamed
from lepton_cli.quantize.prepare import gemm_to_matmul
from lepton_cli.quantize.store import WeightStore
from lepton_cli.quantize.targets import TARGETS
from tests.quantize.builders import Graph, ops, rows, run


def array(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def net() -> ir.Model:
    """Two products that read x (one with a column of zeros), and Gemms of either layout, one without a bias."""
    graph = Graph(seed=4)
    x = graph.take("x", ["b", 20])
    matrix = graph.random.normal(size=(20, 24)).astype(np.float32)
    matrix[:, 5] = 0
    first = graph.op("MatMul", x, graph.constant(matrix))
    second = graph.linear(x, 20, 24)
    more = graph.constant(graph.random.normal(size=(24, 18)).astype(np.float32))
    third = graph.op("Gemm", graph.op("Tanh", graph.op("Add", first, second)), more)
    bias = graph.constant(graph.random.normal(size=18).astype(np.float32))
    last = graph.constant(graph.random.normal(size=(18, 17)).astype(np.float32))
    return graph.model(graph.op("Gemm", graph.op("Add", third, bias), last))


ALL = {"MatMul_0", "Gemm_1", "Gemm_4", "Gemm_6"}


@pytest.mark.parametrize("limit", [127, 63])
@pytest.mark.parametrize("chunk", [10**6, 24 * 3])
def test_each_column_has_its_own_scale_and_its_greatest_value_the_limit(
    limit: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "CHUNK", chunk)
    model = net()
    before = io.to_bytes(model)
    made = streamed.dynamic(model, ALL, limit, WeightStore(None))
    assert io.to_bytes(model) == before
    matrices = {"MatMul_0": array(model, "w0"), "Gemm_1": array(model, "w2").T, "Gemm_4": array(model, "w3")}
    for name, matrix in matrices.items():
        codes, scales = array(made, f"{name}.codes"), array(made, f"{name}.scales")
        assert (codes.dtype, scales.dtype) == (np.int8, np.float32)
        assert codes.shape == matrix.shape
        assert array(made, f"{name}.zero_point").dtype == np.int8
        assert array(made, f"{name}.zero_point") == 0
        for column in range(matrix.shape[1]):
            widest = max(abs(float(value)) for value in matrix[:, column])
            scale = widest / limit if widest else 1.0
            assert scales[column] == pytest.approx(scale, rel=1e-6)
            assert np.abs(codes[:, column]).max() == (limit if widest else 0)
            np.testing.assert_array_equal(codes[:, column], np.rint(matrix[:, column] / scales[column]))


def test_the_outputs_are_those_of_onnxruntimes_writer(tmp_path: Path) -> None:
    model, data = net(), rows(16, 20)
    made = streamed.dynamic(model, ALL, 127, WeightStore(None))
    products = io.clone(model)
    gemm_to_matmul(products, set(ALL))
    written = dynamic._written(products, ALL, ("MatMul", "Gemm"), TARGETS["x86-vnni"], tmp_path)
    np.testing.assert_array_equal(array(made, "MatMul_0.codes"), array(written, "w0_quantized"))
    np.testing.assert_allclose(array(made, "Gemm_4.scales"), array(written, "w3_scale"), rtol=1e-6)
    np.testing.assert_allclose(run(made, data), run(written, data), atol=1e-5)


def _dynamic(x: np.ndarray) -> tuple[np.ndarray, float, int]:
    """DynamicQuantizeLinear as onnx defines it."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255
    zero = int(np.clip(np.rint(-low / scale), 0, 255))
    return np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255), scale, zero


def test_a_product_is_that_of_the_codes() -> None:
    """Products of 7-bit weights saturate on no machine."""
    graph = Graph()
    model = graph.model(graph.linear(graph.take("x", ["b", 20]), 20, 24))
    made = streamed.dynamic(model, {"Gemm_0"}, 63, WeightStore(None))
    data = rows(16, 20)
    codes, scale, zero = _dynamic(data.feeds["x"])
    matrix, bias = array(model, "w1").T.astype(float), array(model, "w0")
    steps = np.abs(matrix).max(axis=0) / 63
    expected = (codes - zero) @ np.rint(matrix / steps) * (scale * steps) + bias
    np.testing.assert_allclose(run(made, data), expected, atol=1e-5)


def test_the_graph_measures_each_tensor_once_and_keeps_names() -> None:
    model = net()
    made = streamed.dynamic(model, ALL, 127, WeightStore(None))
    assert ops(made).count("DynamicQuantizeLinear") == 3, "two products read x"
    assert ops(made).count("MatMulInteger") == 4
    assert ops(made).count("Add") == 3, "two of the model, one bias"
    names = {node.name: node.op_type for node in made.graph}
    for name in ALL:
        assert names[name] == "MatMulInteger"
        assert (names[f"{name}.cast"], names[f"{name}.factor"], names[f"{name}.scale"]) == ("Cast", "Mul", "Mul")
    assert names["Gemm_1.bias"] == "Add"
    assert [value.name for value in made.graph.outputs] == ["t6"]
    values = [value.name for node in made.graph for value in node.outputs]
    assert len(values) == len(set(values))
    assert {"x.codes", "x.scale", "x.zero_point", "MatMul_0.out", "Gemm_1.scale.out"} <= set(values)
    assert not {"w0", "w2", "w3", "w5"} & set(made.graph.initializers)


def test_only_the_named_products_are_quantized() -> None:
    made = streamed.dynamic(net(), {"Gemm_1", "Tanh_3", "Add_2"}, 127, WeightStore(None))
    kinds = {node.name: node.op_type for node in made.graph}
    assert (kinds["MatMul_0"], kinds["Gemm_1"], kinds["Gemm_4"]) == ("MatMul", "MatMulInteger", "Gemm")
    assert (kinds["Tanh_3"], kinds["Add_2"]) == ("Tanh", "Add")


def test_codes_and_scales_go_where_the_store_says(tmp_path: Path) -> None:
    made = streamed.dynamic(net(), ALL, 127, WeightStore(tmp_path))
    stored = [value.const_value for name, value in made.graph.initializers.items() if "." in name]
    assert len(stored) == 12
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in stored)
    plain = streamed.dynamic(net(), ALL, 127, WeightStore(None))
    np.testing.assert_array_equal(run(made, rows(4, 20)), run(plain, rows(4, 20)))
