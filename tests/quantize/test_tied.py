"""One table for the first and the last layer of a language model: every step that stores weights stores it once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

from lepton_cli.data.memory import Arrays
from lepton_cli.graph import fold
from lepton_cli.model import io
from lepton_cli.quantize import tables, weights
from lepton_cli.step import Outcome
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context
from tests.quantize.test_weights import rounded

WORDS, WIDTH = 1024, 64
DRAW = np.random.default_rng(0)
TABLE = DRAW.normal(size=(WORDS, WIDTH)).astype(np.float32)
MIDDLE = (DRAW.normal(size=(WIDTH, WIDTH)) / 8).astype(np.float32)
IDS = Arrays({"ids": DRAW.integers(0, WORDS, (16, 4))})
#: No trials.
PLAIN = {
    "speed_guard": False,
    "calibration": "minmax",
    "rounding": "nearest",
    "equalise": False,
    "bias_correction": False,
}
KINDS = ("Transpose", "Gemm", "copy", "lookup behind a Transpose")


def tied(kind: str) -> ir.Model:
    """ids -> row of the table -> product -> product by the table. `copy`: exported with the table turned beside it."""
    graph = Graph()
    ids = graph.take("ids", ["b", 4], TensorProto.INT64)
    table = graph.constant(TABLE.T.copy() if kind.startswith("lookup") else TABLE)
    rows = graph.op("Transpose", table, perm=[1, 0]) if kind.startswith("lookup") else table
    x = graph.op("MatMul", graph.op("Gather", rows, ids), graph.constant(MIDDLE))
    if kind == "Gemm":
        flat = graph.op("Reshape", x, graph.constant(np.array([-1, WIDTH])))
        return graph.model(graph.op("Gemm", flat, table, transB=1))
    if kind == "Transpose":
        return graph.model(graph.op("MatMul", x, graph.op("Transpose", table, perm=[1, 0])))
    return graph.model(graph.op("MatMul", x, graph.constant(TABLE.T.copy()) if kind == "copy" else table))


def apply(
    step: str, model: ir.Model, tmp_path: Path, dry: bool = False, data: Arrays = IDS, **options: object
) -> Outcome:
    parsed = STEPS[step].options.model_validate({"step": step, **options})
    return STEPS[step].apply(model, parsed, context(data, tmp_path, dry=dry, original=model))


def large(model: ir.Model) -> list[int]:
    """Bytes of each tensor that could be the table; the other weight has fewer in float."""
    sizes = [value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None]
    return [size for size in sizes if size >= WORDS * WIDTH // 2]


def run(model: ir.Model) -> np.ndarray:
    """Plain onnxruntime."""
    session = onnxruntime.InferenceSession(io.to_bytes(model), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"ids": IDS.feeds["ids"]})[0]).reshape(-1, WORDS)


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    """In dB."""
    return float(10 * np.log10(np.square(exact).sum() / np.square(found - exact).sum()))


def expected(table: np.ndarray, middle: np.ndarray) -> np.ndarray:
    return np.asarray(table[IDS.feeds["ids"].ravel()].astype(np.float64) @ middle @ table.T)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True)])
def test_blocks_are_those_of_the_one_rounded_table(kind: str, bits: int, symmetric: bool, tmp_path: Path) -> None:
    outcome = apply("quantize.weights", tied(kind), tmp_path, bits=bits, symmetric=symmetric)
    assert large(outcome.model) == [WORDS * WIDTH * bits // 8]
    table, middle = rounded(TABLE, bits, 32, symmetric), rounded(MIDDLE.T, bits, 32, symmetric).T
    assert distance(run(outcome.model), expected(table, middle)) > 90
    planned = apply("quantize.weights", tied(kind), tmp_path, dry=True, bits=bits, symmetric=symmetric)
    assert len(io.to_bytes(planned.model)) == len(io.to_bytes(outcome.model))


def test_rows_that_no_block_divides_have_one_scale_each(tmp_path: Path) -> None:
    graph = Graph()
    table = graph.random.normal(size=(200, 40)).astype(np.float32)
    held, ids = graph.constant(table), graph.take("ids", ["b", 4], TensorProto.INT64)
    x = graph.op("Gather", held, ids)
    model = graph.model(graph.op("MatMul", x, graph.op("Transpose", held, perm=[1, 0])))
    fed = IDS.feeds["ids"] % 200
    outcome = apply("quantize.weights", model, tmp_path, data=Arrays({"ids": fed}), bits=8)
    assert sorted(v.const_value.nbytes for v in outcome.model.graph.initializers.values()) == [800, 8000]  # type: ignore[union-attr]
    scale = np.abs(table).max(axis=1, keepdims=True) / 127
    coarse = np.rint(table / scale) * scale
    session = onnxruntime.InferenceSession(io.to_bytes(outcome.model), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"ids": fed})[0], coarse[fed] @ coarse.T, atol=1e-3)
    kept = apply("quantize.weights", model, tmp_path, data=Arrays({"ids": fed}), bits=4)
    reasons = {one.op: one.reason for one in kept.decisions}
    assert reasons["Gather"] == "its rows of 40 are no multiple of 16, the least block size"
    assert reasons["MatMul"] == "`Gather_0` reads its weight in float too: the file would grow"


def test_rows_of_half_blocks_make_them_smaller_for_both(tmp_path: Path) -> None:
    graph = Graph()
    table = graph.random.normal(size=(200, 48)).astype(np.float32)
    held, ids = graph.constant(table), graph.take("ids", ["b", 4], TensorProto.INT64)
    model = graph.model(graph.op("MatMul", graph.op("Gather", held, ids), graph.op("Transpose", held, perm=[1, 0])))
    fed, coarse = IDS.feeds["ids"] % 200, rounded(table, 4, 16, True)
    outcome = apply("quantize.weights", model, tmp_path, data=Arrays({"ids": fed}))
    session = onnxruntime.InferenceSession(io.to_bytes(outcome.model), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"ids": fed})[0], coarse[fed] @ coarse.T, atol=1e-3)
    assert [one.reason for one in outcome.decisions] == ["4 bits, blocks of 16"] * 2


def test_a_table_that_stays_float_for_one_stays_so_for_both(tmp_path: Path) -> None:
    outcome = apply("quantize.weights", tied("Transpose"), tmp_path, exclude=["Gather_0"])
    assert large(outcome.model) == [4 * WORDS * WIDTH]
    assert [one.node for one in outcome.decisions if one.action == "quantized"] == ["MatMul_1"]


@pytest.mark.parametrize("kind", KINDS)
def test_float16_and_simplify(kind: str, tmp_path: Path) -> None:
    exact = run(tied(kind))
    half = apply("convert.fp16", tied(kind), tmp_path)
    assert large(half.model) == [2 * WORDS * WIDTH]
    coarse = expected(TABLE.astype(np.float16), MIDDLE.astype(np.float16))
    assert distance(run(half.model), coarse) > 55
    model = tied(kind)
    for _ in range(2):
        simple = apply("simplify", model, tmp_path)
        assert large(simple.model) == [4 * WORDS * WIDTH]
        np.testing.assert_allclose(run(simple.model), exact, rtol=1e-4, atol=1e-4)
        model = simple.model
    assert simple.changed == 0, "nothing is turned ahead and back again"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", ["quantize.dynamic", "quantize.static"])
def test_int8(step: str, kind: str, tmp_path: Path) -> None:
    """The rows that are looked up are those of the product's codes: 127 steps for the greatest value of each."""
    outcome = apply(step, tied(kind), tmp_path, **(PLAIN if step == "quantize.static" else {}))
    assert large(outcome.model) == [WORDS * WIDTH]
    scale = np.abs(TABLE).max(axis=1, keepdims=True) / 127
    coarse = (np.rint(TABLE / scale) * scale).astype(np.float32)
    looked_up = next(node for node in outcome.model.graph if node.name in ("Gather_0", "Gather_1"))
    model = outcome.model
    model.graph.outputs[:] = looked_up.outputs
    looked_up.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    session = onnxruntime.InferenceSession(io.to_bytes(model), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, IDS.feeds)[0], coarse[IDS.feeds["ids"]], atol=1e-5)


@pytest.mark.parametrize(("kind", "folded"), [*((kind, True) for kind in KINDS), ("Transpose", False)])
def test_int8_tensor_by_tensor(kind: str, folded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that are too large for onnxruntime's writer, or for turning their table ahead, get what it would make."""
    whole = apply("quantize.dynamic", tied(kind), tmp_path, target="x86-vnni")
    if not folded:
        monkeypatch.setattr(fold, "LARGEST", 4 * WIDTH * WIDTH)
    monkeypatch.setattr(weights, "SPILL_ABOVE", 0)
    outcome = apply("quantize.dynamic", tied(kind), tmp_path, target="x86-vnni")
    assert outcome.summary.endswith("tensor by tensor")
    assert large(outcome.model) == [WORDS * WIDTH]
    np.testing.assert_allclose(run(outcome.model), run(whole.model), atol=1e-3)
    assert {one.node for one in outcome.decisions} == {one.node for one in whole.decisions}
    assert {one.action for one in outcome.decisions} == {"quantized"}
    assert large(apply("quantize.dynamic", tied(kind), tmp_path, dry=True).model) == [WORDS * WIDTH]
    alone = apply("quantize.dynamic", tied(kind), tmp_path, op_types=["MatMul", "Gemm"])
    assert sorted(large(alone.model)) == [WORDS * WIDTH, 4 * WORDS * WIDTH], "the lookup is left out"


@pytest.mark.parametrize("step", ["quantize.dynamic", "quantize.static"])
def test_int8_keeps_its_kernels(step: str, tmp_path: Path) -> None:
    """onnxruntime computes the Transpose of the codes as it loads the model, and fuses as ever."""
    outcome = apply(step, tied("Transpose"), tmp_path, **(PLAIN if step == "quantize.static" else {}))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(io.to_bytes(outcome.model), options, providers=["CPUExecutionProvider"])
    loaded = [node.op_type for node in ir.load(tmp_path / "loaded.onnx").graph]
    assert "Transpose" not in loaded
    assert not {"MatMul", "MatMulInteger"} & set(loaded)
    assert distance(run(outcome.model), run(tied("Transpose"))) > 30


def test_other_codes_and_other_readers_leave_the_table() -> None:
    """Codes of another matrix, and a table that is read by something else too."""
    scale = (np.abs(TABLE).max(axis=1) / 127).astype(np.float32)
    codes = np.rint(TABLE / scale[:, None]).astype(np.int8)

    def built(held: np.ndarray, *, added: bool = False, axis: int = 0) -> ir.Model:
        graph = Graph()
        table, ids = graph.constant(TABLE), graph.take("ids", ["b"], TensorProto.INT64)
        for name, array in (("m_quantized", held), ("m_scale", scale)):
            graph.constant(array)
            graph.weights[-1].name = name
        x = graph.op("DequantizeLinear", "m_quantized", "m_scale", axis=0)
        parts = [graph.op("Gather", table, ids, axis=axis), graph.op("Transpose", x, perm=[1, 0])]
        return graph.model(*parts, *([graph.op("Neg", table)] if added else []))

    names = {"Gather_1"}
    made, decisions = tables.shrink(built(codes), names)
    assert [one.reason[:32] for one in decisions] == ["table in 8 bits, one scale per r"]
    assert "w0" not in made.graph.initializers
    for model in (built(-codes), built(codes, added=True), built(codes, axis=1)):
        made, decisions = tables.shrink(model, names)
        assert (decisions, "w0" in made.graph.initializers) == ([], True)
    assert tables.shrink(built(codes), set())[1] == []
