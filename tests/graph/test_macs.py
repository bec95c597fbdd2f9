"""Multiply-accumulates and parameters against numbers counted by hand, also where inference does not reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lepton_cli.data.memory import Arrays
from lepton_cli.graph import cost, shapes
from lepton_cli.measure import size
from lepton_cli.model import io
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context, ops

FLOAT = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("equation", "left", "right", "macs"),
    [
        ("ab,bc->ac", (3, 8), (8, 5), 3 * 8 * 5),
        ("bld, dhk -> bhlk", (2, 7, 8), (8, 4, 6), 2 * 7 * 8 * 4 * 6),
        ("...d,dk->...k", (2, 7, 8), (8, 5), 2 * 7 * 8 * 5),
        ("a...d,d...k->a...k", (3, 1, 7, 8), (8, 2, 7, 5), 3 * 2 * 7 * 8 * 5),
    ],
)
def test_einsum_counts_every_combination_of_its_indices(
    equation: str, left: tuple[int, ...], right: tuple[int, ...], macs: int
) -> None:
    graph = Graph()
    y = graph.op("Einsum", graph.take("x", list(left)), graph.constant(np.ones(right, np.float32)), equation=equation)
    assert cost.count(graph.model(y), {"x": left}, run=True) == {"Einsum_0": macs}


def branching() -> ir.Model:
    """A product of 4 x 8 x 6 where the flag is set, of 4 x 8 x 2 where not; then three times 4 x 8 x 8 in a loop."""

    def branch(name: str, width: int) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.ones((8, width), np.float32), f"{name}w")
        node = helper.make_node("MatMul", ["x", f"{name}w"], [f"{name}y"], name=name)
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}y", FLOAT, None)], [weight])

    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "w"], ["next"], name="pass"),
            helper.make_node("Identity", ["go"], ["on"], name="on"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", FLOAT, None),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", FLOAT, None)],
    )
    graph = helper.make_graph(
        [
            helper.make_node(
                "If", ["flag"], ["y"], then_branch=branch("yes", 6), else_branch=branch("no", 2), name="if"
            ),
            helper.make_node("Loop", ["three", "", "x"], ["z"], body=body, name="loop"),
        ],
        "branching",
        [
            helper.make_tensor_value_info("x", FLOAT, ["b", 8]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", FLOAT, None), helper.make_tensor_value_info("z", FLOAT, None)],
        [
            numpy_helper.from_array(np.array(3), "three"),
            numpy_helper.from_array(np.ones((8, 8), np.float32), "w"),
        ],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_branches_count_as_taken_and_bodies_as_often_as_they_are_passed() -> None:
    model, feeds = branching(), {"x": (4, 8), "flag": ()}
    assert cost.count(model, feeds, run=True) == {"no": 4 * 8 * 2, "pass": 3 * 4 * 8 * 8}
    assert cost.count(model, feeds, run=False) == {}
    assert size.measure(None, model, macs={}).macs is None, "unknown, not 0"


def test_an_input_too_short_for_the_kernel_gives_no_negative_number() -> None:
    graph = Graph()
    x = graph.take("x", [1, 1, "n"])
    y = graph.op("Conv", x, graph.constant(np.ones((4, 1, 64), np.float32)))
    model = graph.model(y)
    assert cost.count(model, {"x": (1, 1, 16)}, run=True) == {}
    assert cost.count(model, {"x": (1, 1, 100)}, run=True) == {"Conv_0": 37 * 4 * 64}
    assert all(known.shape is None or min(known.shape, default=0) >= 0 for known in shapes.infer(
        model, {"x": (1, 1, 16)}
    ).values() if known.fixed is not None)  # fmt: skip


def test_a_model_without_products_has_none() -> None:
    graph = Graph()
    model = graph.model(graph.op("Relu", graph.take("x", [2, 2])))
    assert size.measure(None, model, macs=cost.count(model, {"x": (2, 2)}, run=True)).macs == 0


def test_an_lstm_keeps_its_parameters_and_products_in_8_bits(tmp_path: Path) -> None:
    """Two directions of four gates of 24 from 40 inputs: W 4 x 24 x 40, R 4 x 24 x 24 and a bias of 8 x 24 each."""
    graph = Graph()
    draw = graph.random.normal

    def weight(*sizes: int) -> str:
        return graph.constant((0.1 * draw(size=sizes)).astype(np.float32))

    x = graph.take("x", [7, "b", 40])
    held = [weight(2, 96, 40), weight(2, 96, 24), weight(2, 192)]
    y, *_ = graph.op("LSTM", x, *held, outputs=3, hidden_size=24, direction="bidirectional")
    model = graph.model(y)
    parameters = 2 * (4 * 24 * 40 + 4 * 24 * 24 + 8 * 24)
    macs = 2 * 7 * 3 * (4 * 24 * 40 + 4 * 24 * 24)
    data = Arrays({"x": np.random.default_rng(0).normal(size=(7, 3, 40)).astype(np.float32)})
    options = STEPS["quantize.dynamic"].options.model_validate({"step": "quantize.dynamic"})
    made = STEPS["quantize.dynamic"].apply(model, options, context(data, tmp_path, batch=7)).model
    assert ops(made) == ["DynamicQuantizeLSTM"]
    for one in (model, made):
        found = size.measure(None, one, macs=cost.count(one, {"x": (7, 3, 40)}, run=True))
        assert (found.parameters, found.macs) == (parameters, macs)
        assert 0.98 * parameters < found.nonzeros <= parameters
    assert io.weight_bytes(made) < 0.32 * io.weight_bytes(model)
