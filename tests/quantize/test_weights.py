"""`quantize.weights`: blockwise 4 and 8 bits on MatMul, Gemm and embedding tables, against dequantized weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnx_ir.passes import common

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import ModelError
from lepton_cli.model import io
from lepton_cli.quantize import blocks, weights
from lepton_cli.quantize.spec import QuantizeWeights
from lepton_cli.quantize.store import WeightStore
from lepton_cli.runtime import Session
from lepton_cli.step import Outcome
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context, mlp, ops, rows, run, sqnr


def quantize(model: ir.Model, tmp_path: Path, data: Arrays, **options: object) -> Outcome:
    return STEPS["quantize.weights"].apply(model, params(**options), context(data, tmp_path))


def params(**options: object) -> QuantizeWeights:
    return QuantizeWeights.model_validate({"step": "quantize.weights", **options})


def array(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def rounded(matrix: np.ndarray, bits: int, size: int, symmetric: bool) -> np.ndarray:
    """What blocks of `size` along each row keep of the matrix, block by block from the formulas."""
    result = np.zeros(matrix.shape)
    top = 2**bits - 1
    for row in range(len(matrix)):
        for start in range(0, matrix.shape[1], size):
            block = matrix[row, start : start + size].astype(float)
            if symmetric:
                zero, scale = 2 ** (bits - 1), block[np.abs(block).argmax()] / -(2 ** (bits - 1))
            else:
                low, high = min(block.min(), 0.0), max(block.max(), 0.0)
                scale = (high - low) / top
                zero = round(-low / scale)
            codes = np.clip(np.rint(block / scale + zero), 0, top)
            result[row, start : start + size] = (codes - zero) * scale
    return result


def stored(model: ir.Model, node: str, bits: int, size: int, inner: int) -> np.ndarray:
    """The matrix [outer, inner] that the packed weights of a node stand for, read byte by byte."""
    codes, scales = array(model, f"{node}.codes"), array(model, f"{node}.scales")
    outer, blocks = scales.shape
    flat = codes.reshape(outer, -1)
    zeros = array(model, f"{node}.zero_points") if f"{node}.zero_points" in model.graph.initializers else None

    def code(row: np.ndarray, at: int) -> int:
        if bits == 8:
            return int(row[at])
        return int(row[at // 2]) >> 4 if at % 2 else int(row[at // 2]) & 15

    found = np.zeros((outer, inner))
    for row in range(outer):
        for at in range(inner):
            zero = 2 ** (bits - 1) if zeros is None else code(zeros[row], at // size)
            found[row, at] = (code(flat[row], at) - zero) * float(scales[row, at // size])
    assert flat.shape[1] == blocks * size * bits // 8
    return found


def ratio(exact: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(exact.astype(float)).sum() / np.square(exact - other).sum()))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Gemm transposed"])
def test_products_are_those_with_the_dequantized_weight(kind: str, bits: int, symmetric: bool, tmp_path: Path) -> None:
    """72 rows: the last block of 32 is not full. The figure of each weight is its signal to noise."""
    graph = Graph()
    matrix = graph.random.normal(size=(72, 57)).astype(np.float32)
    bias = graph.random.normal(size=57).astype(np.float32)
    x = graph.take("x", ["b", 72])
    if kind == "MatMul":
        y = graph.op("MatMul", x, graph.constant(matrix))
        bias *= 0
    elif kind == "Gemm":
        y = graph.op("Gemm", x, graph.constant(matrix), graph.constant(bias))
    else:
        y = graph.op("Gemm", x, graph.constant(matrix.T.copy()), graph.constant(bias), transB=1)
    model, data = graph.model(y), rows(24, 72)
    outcome = quantize(model, tmp_path, data, bits=bits, symmetric=symmetric)
    name = "MatMul_0" if kind == "MatMul" else "Gemm_0"
    kept = stored(outcome.model, name, bits, 32, 72)
    np.testing.assert_allclose(kept, rounded(matrix.T, bits, 32, symmetric), atol=1e-6)
    np.testing.assert_allclose(run(outcome.model, data), data.feeds["x"] @ kept.T + bias, atol=2e-4)
    assert [one.model_dump(exclude_none=True) for one in outcome.details.sensitivity] == [
        {"node": name, "op": name.split("_")[0], "sqnr_db": pytest.approx(ratio(matrix.T, kept), abs=0.006)}
    ]
    (node,) = (node for node in outcome.model.graph if node.op_type == "MatMulNBits")
    assert (node.attributes.get_int("K"), node.attributes.get_int("N")) == (72, 57)
    assert outcome.model.graph.opset_imports["com.microsoft"] == 1
    assert ops(outcome.model) == ["MatMulNBits"] + ["Add"] * (kind != "MatMul")
    assert "w0" not in outcome.model.graph.initializers
    assert outcome.model.graph.outputs[0].name == "t0"


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_that_are_looked_up_are_those_of_the_dequantized_table(bits: int, symmetric: bool, tmp_path: Path) -> None:
    graph = Graph()
    table = graph.random.normal(size=(60, 96)).astype(np.float32)
    model = graph.model(graph.op("Gather", graph.constant(table), graph.take("x", ["b", 4], TensorProto.INT64)))
    data = Arrays({"x": np.random.default_rng(3).integers(0, 60, (20, 4))})
    outcome = quantize(model, tmp_path, data, bits=bits, symmetric=symmetric)
    kept = stored(outcome.model, "Gather_0", bits, 32, 96)
    np.testing.assert_allclose(kept, rounded(table, bits, 32, symmetric), atol=1e-6)
    np.testing.assert_allclose(run(outcome.model, data), kept[data.feeds["x"]], atol=1e-6)
    assert ops(outcome.model) == ["GatherBlockQuantized"]
    assert outcome.details.sensitivity[0].sqnr_db == pytest.approx(ratio(table, kept), abs=0.006)


@pytest.mark.parametrize("size", [16, 64, 128])
def test_other_block_sizes(size: int, tmp_path: Path) -> None:
    graph = Graph()
    matrix = graph.random.normal(size=(200, 40)).astype(np.float32)
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 200]), graph.constant(matrix)))
    outcome = quantize(model, tmp_path, rows(8, 200), block_size=size, symmetric=False)
    kept = stored(outcome.model, "MatMul_0", 4, size, 200)
    np.testing.assert_allclose(kept, rounded(matrix.T, 4, size, False), atol=1e-6)
    np.testing.assert_allclose(run(outcome.model, rows(8, 200)), rows(8, 200).feeds["x"] @ kept.T, atol=5e-4)
    assert outcome.details.block_size == size


@pytest.mark.parametrize("method", ["rtn", "k_quant"])
def test_what_is_done_and_what_is_kept_is_told(method: str, tmp_path: Path) -> None:
    model, data = mlp(), rows()
    outcome = quantize(model, tmp_path, data, method=method, symmetric=False)
    assert ops(outcome.model).count("MatMulNBits") == outcome.changed == 2
    said = [(one.node, one.op, one.action, one.reason) for one in outcome.decisions]
    assert said == [
        ("Gemm_0", "Gemm", "quantized", "4 bits, blocks of 32"),
        ("MatMul_2", "MatMul", "quantized", "4 bits, blocks of 32"),
        ("Gemm_5", "Gemm", "kept", "only 1280 values"),
    ]
    assert outcome.summary == "2 weights to 4 bits in blocks of 32"
    shown = {name: getattr(outcome.details, name) for name in ("bits", "block_size", "method", "symmetric")}
    assert shown == {"bits": 4, "block_size": 32, "method": method, "symmetric": False}
    assert sqnr(model, outcome.model, data) > 14


def test_a_plan_counts_and_changes_nothing(tmp_path: Path) -> None:
    model = mlp()
    before = io.to_bytes(model)
    outcome = STEPS["quantize.weights"].apply(model, params(bits=8), context(rows(), tmp_path, dry=True))
    assert (outcome.changed, outcome.summary) == (3, "3 weights to 8 bits")
    made = quantize(model, tmp_path, rows(), bits=8)
    assert io.to_bytes(model) == before
    assert made.model is not model
    assert len(io.to_bytes(outcome.model)) == len(io.to_bytes(made.model)), "not one value is known, but every size"


def test_nodes_left_out_and_quantized_models(tmp_path: Path) -> None:
    outcome = quantize(mlp(), tmp_path, rows(), include=["Gemm_*"], exclude=["Gemm_5"])
    reasons = {one.node: one.reason for one in outcome.decisions if one.action == "kept"}
    assert reasons == dict.fromkeys(["MatMul_2", "Gemm_5"], "left out by include/exclude")
    again = quantize(outcome.model, tmp_path, rows(), exclude=["Gemm_5"])
    assert [one.node for one in again.decisions if one.action == "quantized"] == ["MatMul_2"]
    with pytest.raises(ModelError, match="quantized already"):
        quantize(again.model, tmp_path, rows())


def test_nothing_to_do_returns_the_model_itself(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.linear(graph.take("x", ["b", 16]), 16, 16))
    outcome = quantize(model, tmp_path, rows(8, 16))
    assert (outcome.model is model, outcome.changed) == (True, 0)
    assert outcome.decisions[0].reason == "only 256 values"


def refused(kind: str, *operands: Any, options: dict[str, Any] | None = None, **attributes: Any) -> str | None:
    """The verdict on one node of an operator with these constants (`None`: a computed tensor)."""
    graph = Graph()
    x = graph.take("x", ["b", 4], TensorProto.INT64 if kind == "Gather" else TensorProto.FLOAT)
    names = [x if one is None else graph.constant(one) for one in operands]
    node = next(iter(graph.model(graph.op(kind, *names, **attributes)).graph))
    return blocks.refused(node, params(**(options or {})))


def test_each_reason_to_keep_a_weight() -> None:
    square = np.ones((64, 64), np.float32)
    assert refused("MatMul", None, square) is None
    assert refused("MatMul", None, None) == "no constant weight"
    assert refused("MatMul", square, None) == "no constant weight", "only the second input"
    assert "DOUBLE" in (refused("MatMul", None, square.astype(np.float64)) or "")
    assert "3 dimensions" in (refused("MatMul", None, square.reshape(4, 16, 64)) or "")
    assert refused("MatMul", None, np.ones((63, 65), np.float32)) == "only 4095 values"
    assert refused("Gather", square, None) is None
    assert refused("Gather", square, None, axis=1) == "does not gather whole rows"
    assert refused("Gather", square, None, axis=0) is None
    assert refused("Gather", np.ones((100, 48), np.float32), None, options={"block_size": 16}) is None
    assert refused("Gather", np.ones((100, 48), np.float32), None, options={"block_size": 32}) is None, "blocks of 16"
    odd = refused("Gather", np.ones((128, 40), np.float32), None)
    assert odd == "its rows of 40 are no multiple of 16, the least block size"
    assert refused("MatMul", None, np.ones((100, 48), np.float32)) is None, "blocks of a product may end unfilled"
    assert refused("Gemm", None, square, alpha=1.0, beta=1.0, transA=0, transB=1) is None
    for attribute in ({"transA": 1}, {"alpha": 0.5}, {"beta": 2.0}):
        assert refused("Gemm", None, square, **attribute) == "it transposes or scales its operands"


@pytest.mark.parametrize(
    ("inner", "outer", "kind", "bits", "asked", "expected"),
    [
        (64, 64, np.float32, 4, 32, 64 * 2 * (16 + 4)),
        (64, 64, np.float32, 8, 32, 64 * 2 * (32 + 4)),
        (8, 512, np.float32, 4, 32, 512 * (8 + 4)),
        (8, 512, np.float32, 8, 32, 512 * (8 + 4)),
        (8, 512, np.float16, 4, 32, 512 * (8 + 2)),
        (8, 512, np.float16, 8, 32, 512 * (8 + 4)),
        (40, 128, np.float32, 4, 256, 128 * (32 + 4)),
        (40, 128, np.float32, 8, 256, 128 * (40 + 4)),
        (4, 2048, np.float32, 4, 32, 2048 * (8 + 4)),
        (4, 2048, np.float32, 8, 32, None),
        (4, 2048, np.float16, 4, 32, None),
    ],
)
def test_no_weight_gets_larger(
    inner: int, outer: int, kind: Any, bits: int, asked: int, expected: int | None, tmp_path: Path
) -> None:
    """Blocks of 16 or more in packed codes and a scale each, or, in 8 bits where one is not full, a scale a column."""
    graph = Graph()
    matrix = graph.random.normal(size=(inner, outer)).astype(kind)
    fed = TensorProto.FLOAT if kind == np.float32 else TensorProto.FLOAT16
    product = graph.op("MatMul", graph.take("x", ["b", inner], fed), graph.constant(matrix))
    model = graph.model(product if kind == np.float32 else graph.op("Cast", product, to=TensorProto.FLOAT))
    x = np.random.default_rng(1).normal(size=(8, inner)).astype(kind)
    outcome = quantize(model, tmp_path, Arrays({"x": x}), bits=bits, block_size=asked)
    found = sum(value.const_value.nbytes for value in outcome.model.graph.initializers.values())  # type: ignore[union-attr]
    assert found == (matrix.nbytes if expected is None else expected) <= matrix.nbytes
    (decision,) = (one for one in outcome.decisions if one.node == "MatMul_0")
    if expected is None:
        needed = outer * (16 * bits // 8 + matrix.itemsize)
        assert decision.reason == f"{needed:,} bytes in blocks of 16, {matrix.nbytes:,} as it is"
    else:
        assert sqnr(model, outcome.model, Arrays({"x": x})) > (14 if bits == 4 else 36)


def test_operators_of_other_domains_are_not_looked_at(tmp_path: Path) -> None:
    graph = Graph()
    weight = graph.constant(np.ones((64, 64), np.float32))
    graph.op("MatMul", graph.take("x", ["b", 64]), weight, domain="elsewhere")
    graph.op("Relu", "t0")
    model = graph.model("t1")
    outcome = STEPS["quantize.weights"].apply(model, params(), context(rows(), tmp_path, dry=True))
    (decision,) = outcome.decisions
    assert (outcome.changed, decision.action, decision.op) == (0, "kept", "MatMul")
    assert decision.reason.startswith("elsewhere.MatMul stays float")


def test_weights_that_others_read_too_or_that_are_outputs_stay(tmp_path: Path) -> None:
    graph = Graph()
    shared = graph.constant(np.ones((64, 64), np.float32))
    fed = graph.take("x", ["b", 64])
    x = graph.op("MatMul", fed, shared)
    also = graph.op("Mul", shared, graph.op("ReduceMean", fed, keepdims=0))
    model = graph.model(graph.op("Add", x, graph.op("ReduceSum", also, keepdims=0)))
    outcome = quantize(model, tmp_path, rows())
    assert (outcome.changed, list(outcome.model.graph.initializers)) == (0, [shared])
    assert outcome.decisions[0].reason == "`Mul_2` reads its weight in float too: the file would grow"
    model.graph.outputs.append(model.graph.initializers[shared])
    copy = io.clone(model)
    for node in list(copy.graph):
        if node.op_type != "Add":
            continue
        node.replace_input_with(1, node.inputs[0])
    copy.graph.register_initializer(ir.Value(name="idle", const_value=ir.tensor(np.ones(2, np.float32), name="idle")))
    common.RemoveUnusedNodesPass()(copy)
    assert set(copy.graph.initializers) == {shared}


@pytest.mark.parametrize("external", [None, 0, 12])
@pytest.mark.parametrize(("chunk", "multiple", "starts"), [(70, 1, [0, 7]), (70, 4, [0, 4, 8]), (20, 4, [0, 4, 8]),
                                                           (1, 1, list(range(10))), (100, 32, [0])])  # fmt: skip
def test_slabs_are_consecutive_rows(
    external: int | None, chunk: int, multiple: int, starts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "CHUNK", chunk)
    matrix = np.arange(100, dtype=np.float32).reshape(10, 10)
    tensor: ir.TensorProtocol = ir.tensor(matrix)
    if external is not None:
        (tmp_path / "data").write_bytes(b"\0" * external + matrix.tobytes())
        place = {"shape": ir.Shape([10, 10]), "name": "w", "base_dir": tmp_path}
        tensor = ir.ExternalTensor("data", external or None, 400, ir.DataType.FLOAT, **place)  # type: ignore[arg-type]
    found = list(blocks.slabs(tensor, multiple))
    assert [start for start, _ in found] == starts
    np.testing.assert_array_equal(np.concatenate([slab for _, slab in found]), matrix)
    for start, slab in found:
        np.testing.assert_array_equal(slab[0], matrix[start])


def test_a_store_appends_at_multiples_of_4096(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    arrays = [np.arange(1030, dtype=np.float32), np.arange(7, dtype=np.uint8)]
    arrays += [np.zeros(4096, np.uint8), np.ones(3, np.int8)]
    kept = [store.keep(array.reshape(-1, 1)) for array in arrays]
    assert [tensor.offset for tensor in kept] == [0, 8192, 12288, 16384]  # type: ignore[attr-defined]
    assert [tensor.length for tensor in kept] == [4120, 7, 4096, 3]  # type: ignore[attr-defined]
    for tensor, array in zip(kept, arrays, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array.reshape(-1, 1))
    assert store.path is not None
    assert store.path.stat().st_size == 16387
    assert not isinstance(WeightStore(None).keep(arrays[0]), ir.ExternalTensor)


@pytest.mark.parametrize("symmetric", [True, False])
def test_slabs_and_spilling_to_disk_change_nothing(
    symmetric: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same codes, scales and figures, from slabs of one block of rows."""
    model, data = mlp(), rows()
    whole = quantize(model, tmp_path, data, symmetric=symmetric)
    ir.save(model, tmp_path / "model.onnx", external_data="model.data")
    monkeypatch.setattr(blocks, "CHUNK", 128 * 40)
    monkeypatch.setattr(weights, "SPILL_ABOVE", io.weight_bytes(model))
    held = quantize(io.load(tmp_path / "model.onnx").model, tmp_path, data, symmetric=symmetric).model
    values = [value.const_value for value in held.graph.initializers.values() if value.name != "w5"]
    assert not any(isinstance(tensor, ir.ExternalTensor) and tensor.location == "weights.data" for tensor in values)
    monkeypatch.setattr(weights, "SPILL_ABOVE", io.weight_bytes(model) - 1)
    spilled = quantize(io.load(tmp_path / "model.onnx").model, tmp_path, data, symmetric=symmetric)
    made = [value for value in spilled.model.graph.initializers.values() if "." in (value.name or "")]
    assert len(made) == (4 if symmetric else 6)
    assert {value.const_value.location for value in made} == {"weights.data"}  # type: ignore[union-attr]
    for value in made:
        np.testing.assert_array_equal(value.const_value.numpy(), array(whole.model, value.name or ""))  # type: ignore[union-attr]
    assert spilled.details.sensitivity == whole.details.sensitivity
    first = Session(io.to_bytes(spilled.model), threads=1).run(data.feeds)
    second = Session(io.to_bytes(whole.model), threads=1).run(data.feeds)
    np.testing.assert_array_equal(first["t5"], second["t5"])


def test_a_figure_of_an_exact_or_empty_weight_is_finite(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 64])
    exact = np.tile(np.float32([-8, 7, 1, 0]), (64, 16)).T.copy()
    nodes = [graph.op("MatMul", x, graph.constant(one)) for one in (exact, np.zeros((64, 64), np.float32))]
    model = graph.model(*nodes)
    found = [entry.sqnr_db for entry in quantize(model, tmp_path, rows()).details.sensitivity]
    assert found == [140.0, 140.0], "where every figure in decibel ends"
