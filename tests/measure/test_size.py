"""Size, parameters and non-zeros of float, quantized and packed weights."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli.measure import size
from lepton_cli.model import io
from tests.measure import builders


def load(payload: bytes) -> ir.Model:
    model = ir.from_proto(onnx.load_from_string(payload))
    io.name_nodes(model)
    return model


def measured(payload: bytes) -> size.Size:
    return size.measure(None, load(payload))


def test_float_weights() -> None:
    weight = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]], np.float32)
    payload = builders.model(
        "g (float[N, 2] x) => (float[N, 3] z) { [multiply] y = MatMul (x, w) [add] z = Add (y, b) }",
        w=weight,
        b=np.ones(3, np.float32),
    )
    found = measured(payload)
    assert found.file == len(io.to_bytes(load(payload)))
    assert (found.parameters, found.nonzeros, found.nodes, found.external) == (9, 6, 2, 0)
    assert found.by_dtype == {"float32": 36}
    assert [(layer.node, layer.op, layer.dtype, layer.parameters, layer.bytes) for layer in found.layers] == [
        ("multiply", "MatMul", "float32", 6, 24),
        ("add", "Add", "float32", 3, 12),
    ]
    assert found.layers[0].weight_shape == (2, 3)
    assert found.macs is None


def test_macs_are_taken_by_node_name() -> None:
    payload = builders.linear(np.ones((2, 3), np.float32))
    model = load(payload)
    found = size.measure(None, model, macs={"MatMul_0": 6})
    assert (found.macs, found.layers[0].macs) == (6, 6)


def test_shapes_settings_and_formula_constants_are_no_parameters() -> None:
    payload = builders.model(
        """g (float[N, 4] x) => (float[2, M] y) {
             a = Clip (x, low, high)
             two = Constant <value = float {2.0}> ()
             b = Pow (a, two)
             y = Reshape (b, shape)
        }""",
        low=np.float32(0),
        high=np.float32(6),
        shape=np.array([2, -1]),
    )
    found = measured(payload)
    assert (found.parameters, found.layers) == (0, ())
    assert found.by_dtype == {"float32": 12, "int64": 16}


def test_weights_in_constant_nodes_count() -> None:
    payload = builders.model(
        "g (float[N, 2] x) => (float[N, 2] y) { w = Constant <value = float[2, 2] {1, 0, 0, 1}> () y = MatMul (x, w) }"
    )
    found = measured(payload)
    assert (found.parameters, found.nonzeros) == (4, 2)


QDQ = """g (float[N, 2] x) => (float[N, 3] y) {
    w = DequantizeLinear <axis = %d> (q, s, z)
    [multiply] y = MatMul (x, w)
}"""


@pytest.mark.parametrize(
    ("zero", "nonzeros"),
    [(np.int8(0), 5), (np.int8(7), 4), (np.array([7, 0, 1], np.int8), 2)],
)
def test_quantized_zero_is_the_zero_point(zero: NDArray[Any], nonzeros: int) -> None:
    """Per tensor and per column; what computes is the MatMul behind the DequantizeLinear."""
    quantized = np.array([[7, 0, 1], [7, 2, 3]], np.int8)
    scale = np.full(np.shape(zero), 0.1, np.float32)
    found = measured(builders.model(QDQ % 1, q=quantized, s=scale, z=np.asarray(zero)))
    assert (found.parameters, found.nonzeros) == (6, nonzeros)
    assert [(layer.node, layer.op, layer.dtype, layer.bytes) for layer in found.layers] == [
        ("multiply", "MatMul", "int8", 6)
    ]


def test_four_bit_weights() -> None:
    quantized = np.array([[1, 0, -3], [0, 2, 7]], np.float32).astype(ml_dtypes.int4)
    tensor = ir.Tensor(quantized, dtype=ir.DataType.INT4, name="q")
    payload = builders.model(QDQ % 1, q=np.zeros((2, 3), np.int8), s=np.ones(3, np.float32), z=np.zeros(3, np.int8))
    model = load(payload)
    model.graph.initializers["q"].const_value = tensor
    model.graph.initializers["z"].const_value = ir.Tensor(
        np.zeros(3).astype(ml_dtypes.int4), dtype=ir.DataType.INT4, name="z"
    )
    found = size.measure(None, model)
    assert (found.parameters, found.nonzeros) == (6, 4)
    assert found.layers[0].dtype == "int4"
    assert found.layers[0].bytes == 3


def test_integer_operators_and_int32_biases() -> None:
    payload = builders.model(
        """g (uint8[N, 2, 4, 4] x) => (uint8[N, 3, 4, 4] y) {
             [conv] y = QLinearConv (x, xs, xz, w, ws, wz, ys, yz, b)
        }""",
        xs=np.float32(0.1),
        xz=np.uint8(0),
        w=np.arange(6, dtype=np.int8).reshape(3, 2, 1, 1),
        ws=np.ones(3, np.float32),
        wz=np.array([0, 2, 5], np.int8),
        ys=np.float32(0.1),
        yz=np.uint8(0),
        b=np.array([1, 0, 3], np.int32),
    )
    found = measured(payload)
    assert (found.parameters, found.nonzeros) == (9, 5)
    assert found.layers[0].parameters == 9


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_leave_padding_out(bits: int) -> None:
    """K = 20 in blocks of 16: 2 blocks, 12 padded values; without zero points the middle of the range is zero."""
    columns, rows, block = 3, 20, 16
    middle = 1 << (bits - 1)
    values = np.full((columns, 2 * block), middle, np.uint8)
    values[:, :5] = middle + 1
    packed = values[:, 0::2] | values[:, 1::2] << 4 if bits == 4 else values
    payload = builders.model(
        f"""g (float[N, {rows}] x) => (float[N, {columns}] y) {{
             y = com.microsoft.MatMulNBits <K = {rows}, N = {columns}, bits = {bits}, block_size = {block}> (x, w, s)
        }}""",
        w=packed.reshape(columns, 2, -1),
        s=np.ones(columns * 2, np.float32),
    )
    found = measured(payload)
    assert (found.parameters, found.nonzeros) == (60, 15)
    assert found.layers[0].dtype == f"int{bits}"


def test_packed_zero_points() -> None:
    values = np.full((2, 16), 3, np.uint8)
    values[1] = 5
    payload = builders.model(
        """g (float[N, 16] x) => (float[N, 2] y) {
             y = com.microsoft.MatMulNBits <K = 16, N = 2, bits = 4, block_size = 16> (x, w, s, z)
        }""",
        w=(values[:, 0::2] | values[:, 1::2] << 4).reshape(2, 1, 8),
        s=np.ones(2, np.float32),
        z=np.array([3, 4], np.uint8),
    )
    assert measured(payload).nonzeros == 16


def test_weights_used_twice_count_once_and_copies_are_waste() -> None:
    weight = np.ones((8, 8), np.float32)
    text = "g (float[N, 8] x) => (float[N, 8] y) { h = MatMul (x, a) y = MatMul (h, %s) }"
    once, twice = (
        measured(builders.model(text % "a", a=weight)),
        measured(builders.model(text % "b", a=weight, b=weight)),
    )
    assert (once.parameters, once.duplicated) == (64, 0)
    assert (twice.parameters, twice.duplicated) == (128, 256)


def test_files_external_data_and_gzip(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).integers(0, 3, (64, 64)).astype(np.float32)
    model = load(builders.linear(weight))
    ir.save(model, tmp_path / "model.onnx", external_data="model.data", size_threshold_bytes=0)
    loaded = io.load(tmp_path / "model.onnx")
    found = size.measure(loaded.path, loaded.model)
    main, data = (tmp_path / "model.onnx").read_bytes(), (tmp_path / "model.data").read_bytes()
    assert (found.file, found.external) == (len(main) + len(data), len(data))
    assert found.gzip == pytest.approx(len(gzip.compress(main + data, 6)), abs=16)
    assert found.parameters == weight.size


def test_scales_of_weights_beside_those_of_activations_are_no_parameters() -> None:
    """As onnxruntime's dynamic quantizer writes a product: 6 weights and 3 numbers of the bias, as before."""
    payload = builders.model(
        """g (float[N, 2] x) => (float[N, 3] y) {
             q, s, z = DynamicQuantizeLinear (x)
             [product] p = MatMulInteger (q, w, z)
             f = Cast <to = 1> (p)
             both = Mul (s, scale)
             m = Mul (f, both)
             [bias] y = Add (m, b)
           }""",
        w=np.ones((2, 3), np.int8),
        scale=np.ones(3, np.float32),
        b=np.ones(3, np.float32),
    )
    found = measured(payload)
    assert [(layer.node, layer.parameters) for layer in found.layers] == [("product", 6), ("bias", 3)]
    assert found.parameters == 9
