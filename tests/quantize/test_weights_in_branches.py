"""Weights that branches and loop bodies read, and weights behind a Transpose: in blocks too, each stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lepton_cli.data.memory import Arrays
from lepton_cli.data.open import synthetic
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.steps import STEPS
from tests.quantize.builders import context, ops, rows, run, sqnr
from tests.quantize.test_weights import quantize, rounded

DRAW = np.random.default_rng(0)
TABLE = DRAW.normal(size=(80, 64)).astype(np.float32)
MIDDLE = DRAW.normal(size=(64, 64)).astype(np.float32)
FLOAT = TensorProto.FLOAT


def _branch(name: str, sign: float, inline: bool) -> onnx.GraphProto:
    """ids -> table -> product -> the same table transposed (tied weights), times a sign to tell the branches apart."""
    middle = numpy_helper.from_array(MIDDLE)
    nodes = [helper.make_node("Constant", [], [f"{name}w"], value=middle)] if inline else []
    nodes += [
        helper.make_node("Gather", ["table", "ids"], [f"{name}e"], name=f"{name}embed"),
        helper.make_node("MatMul", [f"{name}e", f"{name}w" if inline else "middle"], [f"{name}h"], name=f"{name}fc"),
        helper.make_node("Transpose", ["table"], [f"{name}t"], perm=[1, 0], name=f"{name}turn"),
        helper.make_node("MatMul", [f"{name}h", f"{name}t"], [f"{name}z"], name=f"{name}head"),
        helper.make_node("Constant", [], [f"{name}s"], value=numpy_helper.from_array(np.float32(sign))),
        helper.make_node("Mul", [f"{name}z", f"{name}s"], [f"{name}y"], name=f"{name}sign"),
    ]
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}y", FLOAT, ["b", 80])])


def merged(inline: bool = False) -> ir.Model:
    """A decoder as exporters merge it: two branches with the same weights."""
    branches = {"then_branch": _branch("a", 1.0, inline), "else_branch": _branch("b", -2.0, inline)}
    graph = helper.make_graph(
        [helper.make_node("If", ["flag"], ["y"], name="if", **branches)],
        "merged",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["b"]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", FLOAT, ["b", 80])],
        [numpy_helper.from_array(TABLE, "table"), *([] if inline else [numpy_helper.from_array(MIDDLE, "middle")])],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_both_branches_compute_with_the_rounded_weights(bits: int, inline: bool, tmp_path: Path) -> None:
    model, ids = merged(inline), np.arange(80)
    options = STEPS["quantize.weights"].options.model_validate({"step": "quantize.weights", "bits": bits})
    check = synthetic(io.inputs(model), seed=0, samples=1, batch=1)
    outcome = STEPS["quantize.weights"].apply(model, options, context(None, tmp_path, check=check))
    assert {(one.node, one.action) for one in outcome.decisions} == {
        (name + part, "quantized") for name in "ab" for part in ("embed", "fc", "head")
    }
    session = Session(io.to_bytes(outcome.model), threads=1)
    table, middle = rounded(TABLE, bits, 32, True), rounded(MIDDLE.T, bits, 32, True).T
    for flag, sign in ((True, 1.0), (False, -2.0)):
        found = session.run({"ids": ids, "flag": np.array(flag)})["y"]
        np.testing.assert_allclose(found, sign * (table @ middle @ table.T), rtol=1e-3, atol=1e-2)
    held = [name for name in outcome.model.graph.initializers if name.endswith(".codes")]
    assert len(held) == 2, "one table for the lookups and the last layers, and the middle"
    assert len(io.to_bytes(outcome.model)) < 0.6 * len(io.to_bytes(model))
    assert not {"table", "middle"} & set(outcome.model.graph.initializers)


def test_a_loop_body(tmp_path: Path) -> None:
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "w"], ["m"], name="step"),
            helper.make_node("Tanh", ["m"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", FLOAT, ["b", 64]),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", FLOAT, None)],
    )
    weight = (MIDDLE / 8).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Loop", ["three", "", "x"], ["y"], body=body, name="loop")],
        "looped",
        [helper.make_tensor_value_info("x", FLOAT, ["b", 64])],
        [helper.make_tensor_value_info("y", FLOAT, ["b", 64])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array(3), "three")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = rows(16, 64)
    outcome = quantize(ir.from_proto(proto), tmp_path, data, bits=8)
    assert [(one.node, one.action) for one in outcome.decisions] == [("step", "quantized")]
    expected = data.feeds["x"].astype(np.float64)
    for _ in range(3):
        expected = np.tanh(expected @ rounded(weight.T, 8, 32, True).T)
    np.testing.assert_allclose(run(outcome.model, data), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "three axes"])
def test_a_weight_behind_a_transpose(kind: str, tmp_path: Path) -> None:
    weight = DRAW.normal(size=(72, 64)).astype(np.float32)
    held = weight[None] if kind == "three axes" else weight
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], **({"perm": [0, 2, 1]} if kind == "three axes" else {})),
        helper.make_node("Gemm" if kind == "Gemm" else "MatMul", ["x", "t"], ["y"], name="product"),
    ]
    shape = ["b", "s", 64] if kind == "three axes" else ["b", 64]
    graph = helper.make_graph(
        nodes,
        "turned",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(held, "w")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x = DRAW.normal(size=(8, 64)).astype(np.float32)
    data = Arrays({"x": x[:, None] if kind == "three axes" else x})
    outcome = quantize(model, tmp_path, data, bits=8)
    if kind == "three axes":
        assert [(one.action, one.reason[:15]) for one in outcome.decisions] == [("quantized", "stored in 8 bit")]
        return
    assert ops(outcome.model) == ["MatMulNBits"]
    np.testing.assert_allclose(run(outcome.model, data), x @ rounded(weight, 8, 32, True).T, atol=2e-3)
    assert sqnr(model, outcome.model, data) > 40
