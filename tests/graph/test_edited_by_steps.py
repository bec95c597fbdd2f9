"""Steps on graphs that have the names which the steps would give, and weights that callers can override."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from lepton_cli import runtime
from lepton_cli.coupling import known_shapes
from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.probe import linear
from lepton_cli.quantize import prepare, streamed, weights
from lepton_cli.quantize.spec import QuantizeWeights
from lepton_cli.quantize.store import WeightStore
from tests.hostile.models import FLOAT, mlp, model, save, tensor
from tests.hostile.models import weights as random
from tests.quantize.builders import context

ROWS = np.random.default_rng(0).standard_normal((4, 64), np.float32)


def _gemm(*taken: str, ir_version: int = 8) -> ir.Model:
    """One Gemm, and further nodes that read its result and have the names `taken`, as nodes and as values."""
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["h"], "layer", transB=1)]
    nodes += [helper.make_node("Neg", ["h" if i == 0 else taken[i - 1]], [name], name) for i, name in enumerate(taken)]
    nodes.append(helper.make_node("Identity", [taken[-1] if taken else "h"], ["y"], "last"))
    held = [tensor("w", random(128, 64)), tensor("b", random(128))]
    proto = model(nodes, {"x": (FLOAT, ["n", 64])}, {"y": (FLOAT, ["n", 128])}, held, ir_version=ir_version)
    return ir.from_proto(proto)


def _same(before: ir.Model, after: ir.Model, tolerance: float) -> None:
    onnx.checker.check_model(io.to_bytes(after))
    one, two = (runtime.Session(io.to_bytes(made), threads=1).run({"x": ROWS})["y"] for made in (before, after))
    assert np.abs(one - two).max() <= tolerance * np.abs(one).max()


def _names_are_unique(made: ir.Model) -> None:
    graph = io.to_proto(made).graph
    values = [value.name for value in graph.input] + [held.name for held in graph.initializer]
    values += [name for node in graph.node for name in node.output]
    assert len(set(values)) == len(values)
    assert len({node.name for node in graph.node}) == len(graph.node)


def test_weights_by_blocks(tmp_path: Path) -> None:
    before = _gemm("layer.codes", "layer.scales", "layer.zero_points", "layer_product", "layer_bias")
    options = QuantizeWeights(step="quantize.weights", bits=8)
    made = weights.quantize(before, options, context(Arrays({"x": ROWS}), tmp_path)).model
    _names_are_unique(made)
    _same(before, made, 0.02)


def test_weights_that_are_inputs_too_go_from_the_file(tmp_path: Path) -> None:
    before = _gemm()
    for name in ("w", "b"):
        before.graph.inputs.append(before.graph.initializers[name])
    options = QuantizeWeights(step="quantize.weights", bits=8)
    made = weights.quantize(before, options, context(Arrays({"x": ROWS}), tmp_path)).model
    assert [value.name for value in made.graph.inputs] == ["x"]
    assert "w" not in made.graph.initializers
    _same(before, made, 0.02)


def test_dynamic_tensor_by_tensor(tmp_path: Path) -> None:
    suffixes = ("codes", "scales", "zero_point", "cast", "cast.out", "out", "factor", "scale", "bias")
    before = _gemm(*(f"layer.{suffix}" for suffix in suffixes), "x.quantize", "x.codes", "x.scale", "x.zero_point")
    made = streamed.dynamic(before, {"layer"}, 127, WeightStore(None))
    _names_are_unique(made)
    _same(before, made, 0.05)


def test_gemm_to_matmul_and_back() -> None:
    before = _gemm("w_layer_T", "layer_product", "layer_bias")
    made = io.clone(before)
    prepare.gemm_to_matmul(made, {"layer"})
    assert [node.op_type for node in made.graph][:2] == ["MatMul", "Add"]
    _names_are_unique(made)
    _same(before, made, 1e-5)
    prepare.matmul_to_gemm(made)
    assert next(node.op_type for node in made.graph) == "Gemm"
    _same(before, made, 1e-5)


def test_a_bias_of_its_own(tmp_path: Path) -> None:
    proto = mlp()
    del proto.graph.node[0].input[2]
    del proto.graph.initializer[1]
    proto.graph.node[1].output[0] = proto.graph.node[2].input[0] = "first__bias"
    made = io.load(save(proto, tmp_path / "m.onnx")).model
    layer = linear.find(made)["first"]
    linear.store(made, layer, linear.matrix_of(made, layer), np.ones(16))
    _names_are_unique(made)
    assert linear.find(made)["first"].bias == "first__bias_1"
    runtime.Session(io.to_bytes(made), threads=1)


def test_literal_shapes() -> None:
    nodes = [
        helper.make_node("Shape", ["w"], ["s"], "shape"),
        helper.make_node("Reshape", ["x", "s"], ["s__literal"], "reshape"),
        helper.make_node("Relu", ["s__literal"], ["y"], "last"),
    ]
    proto = model(nodes, {"x": (FLOAT, [4, 64])}, {"y": (FLOAT, [8, 32])}, [tensor("w", random(8, 32))])
    before: ir.Model = ir.from_proto(proto)
    made, _ = known_shapes.prepare(before, {"x": (4, 64)})
    assert [node.op_type for node in made.graph] == ["Reshape", "Relu"]
    _names_are_unique(made)
    _same(before, made, 0.0)


@pytest.mark.parametrize("condition", [True, False])
def test_a_bias_added_in_a_branch_stays_there(condition: bool) -> None:
    """The product stands outside: joining the two would move it into the branch, or fail."""
    branches = [
        helper.make_graph([made], "g", [], [helper.make_tensor_value_info(made.output[0], FLOAT, ["n", 4])])
        for made in (
            helper.make_node("Add", ["h", "b"], ["p"], "then"),
            helper.make_node("Identity", ["b2"], ["q"], "else"),
        )
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=branches[0], else_branch=branches[1]),
    ]
    held = [tensor("w", random(64, 4)), tensor("b", random(4)), tensor("c", np.array(condition))]
    held.append(tensor("b2", random(4, 4)))
    proto = model(nodes, {"x": (FLOAT, [4, 64])}, {"y": (FLOAT, [4, 4])}, held)
    before: ir.Model = ir.from_proto(proto)
    made = io.clone(before)
    prepare.matmul_to_gemm(made)
    assert [node.op_type for node in made.graph] == ["MatMul", "If"]
    _same(before, made, 0.0)
