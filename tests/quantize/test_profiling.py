"""Kernels of the graph that onnxruntime runs: counted, timed, and matched to the layers that they come from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_cli.quantize import profiling
from lepton_cli.quantize.details import LayerTime
from lepton_cli.quantize.profiling import Kernel
from lepton_cli.step import Context
from tests.quantize.builders import Graph, chain, chosen, context, mlp, quantized, rows

FEEDS = {"x": rows(1).feeds["x"]}


@pytest.fixture
def here(tmp_path: Path) -> Context:
    return context(rows(), tmp_path)


def test_a_profile_is_the_median_of_each_kernel(tmp_path: Path, here: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = [
        {"cat": "Node", "name": "a_kernel_time", "dur": duration, "args": {"op_name": "Conv"}}
        for duration in (5, 1, 100)
    ]
    events += [
        {"cat": "Node", "name": "b_kernel_time", "dur": 4, "args": {"op_name": "QGemm"}},
        {"cat": "Node", "name": "a_fence_before", "dur": 9, "args": {"op_name": "Conv"}},
        {"cat": "Session", "name": "c_kernel_time", "dur": 9, "args": {"op_name": "Conv"}},
        {"dur": 1},
    ]
    (tmp_path / "events.json").write_text(json.dumps(events))
    runs = []

    class Profiled:
        def __init__(self, model: Any, *, threads: int, profile_prefix: Path) -> None:
            assert threads == 1
            assert profile_prefix.parent.parent == tmp_path
            self.raw = self

        def run(self, feeds: Any) -> None:
            runs.append(feeds)

        def end_profiling(self) -> str:
            return str(tmp_path / "events.json")

    monkeypatch.setattr(profiling, "Session", Profiled)
    assert profiling.profile(mlp(), FEEDS, here) == {"a": Kernel("Conv", 5.0), "b": Kernel("QGemm", 4.0)}
    assert len(runs) == 12
    profiling.profile(mlp(), FEEDS, here, runs=2)
    assert len(runs) == 14


@pytest.mark.parametrize(
    ("operator", "int8"),
    [("QLinearConv", True), ("QGemm", True), ("MatMulIntegerToFloat", True), ("ConvInteger", True),
     ("DynamicQuantizeMatMul", True), ("QAttention", True), ("QEmbedLayerNormalization", True), ("MatMulNBits", True),
     ("GatherBlockQuantized", True), ("Conv", False), ("MatMul", False), ("QuantizeLinear", False),
     ("FusedMatMul", False)],
)  # fmt: skip
def test_kernels_of_8_bits_are_known_by_their_names(operator: str, int8: bool) -> None:
    assert Kernel(operator, 1.0).int8 is int8


def test_a_profile_names_the_kernels_that_really_run(here: Context) -> None:
    kernels = profiling.profile(mlp(), FEEDS, here, runs=2)
    assert {kernel.operator for kernel in kernels.values()} >= {"FusedGemm", "Gemm"}
    assert all(kernel.microseconds >= 0 for kernel in kernels.values())


def test_what_onnxruntime_makes_of_a_graph_is_counted(here: Context) -> None:
    graph = Graph()
    x = graph.op("Relu", graph.linear(graph.take("x", ["b", 32]), 32, 32))
    x = graph.op("Erf", graph.linear(x, 32, 32))
    model = graph.model(graph.op("Softmax", graph.op("MatMul", x, graph.constant(np.eye(32, dtype=np.float32)))))
    float_ones = profiling.placement(model, here)
    assert (float_ones.int8, float_ones.in_float, float_ones.qdq_left) == (0, 3, 0)
    assert float_ones.operators == {"FusedGemm": 1, "Gemm": 1, "Erf": 1, "MatMul": 1, "Softmax": 1}
    choice = chosen(model).without(["MatMul_4"], "", model)
    assert choice.anchors == {"Gemm_0", "Gemm_2"}
    placed = profiling.placement(quantized(model, choice), here)
    assert (placed.int8, placed.in_float, placed.qdq_left) == (2, 1, 0)
    assert placed.operators["QGemm"] == 2
    assert list(placed.operators.values()) == sorted(placed.operators.values(), reverse=True)


def test_pairs_that_no_kernel_took_are_counted(here: Context) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 32])
    steps = [graph.constant(np.float32(0.1)), graph.constant(np.uint8(3))]
    y = graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, *steps), *steps)
    z = graph.op("DequantizeLinear", graph.op("QuantizeLinear", graph.op("Erf", y), *steps), *steps)
    again = graph.op("QuantizeLinear", graph.op("Erf", z), *steps)
    placed = profiling.placement(graph.model(graph.op("Cast", again, to=1)), here)
    assert (placed.qdq_left, placed.in_float, placed.int8) == (2, 0, 0)


def kernels(**microseconds: float) -> dict[str, Kernel]:
    return {name: Kernel("QGemm", value) for name, value in microseconds.items()}


def floats(**microseconds: float) -> dict[str, Kernel]:
    return {name: Kernel("Gemm", value) for name, value in microseconds.items()}


def test_layers_slower_by_more_than_a_tenth_lose_the_worst_first() -> None:
    model = mlp()
    choice = dataclasses.replace(chosen(model), anchors=frozenset({"Gemm_0", "MatMul_2"}))

    def lost(int8: dict[str, Kernel], plain: dict[str, Kernel]) -> list[tuple[str, ...]]:
        return profiling.losing(model, choice, int8, plain)

    both = floats(Gemm_0=10.0, MatMul_2=10.0)
    assert lost(kernels(Gemm_0=15.0, MatMul_2=30.0, Gemm_5=90.0), both | floats(Gemm_5=1.0)) == [
        ("MatMul_2",), ("Gemm_0",)
    ]  # fmt: skip
    assert lost(kernels(Gemm_0=11.0, MatMul_2=11.1), both) == [("MatMul_2",)]
    assert lost(kernels(Gemm_0=9.0), both) == [], "faster, and one without an int8 kernel"
    assert lost(kernels(Gemm_0=9.0, MatMul_2=100.0), floats(Gemm_0=10.0)) == [], "none without a float kernel"


def test_layers_of_one_kind_lose_together_by_the_median() -> None:
    """Three equal layers, of which one looks fast by chance; 12 - 10 three times is more than 15 - 10 once."""
    model = chain((3, 1), (1, 1), (3, 1), (3, 2), (3, 1))
    names = [node.name or "" for node in model.graph if node.op_type == "Conv"]
    assert names == ["Conv_0", "Conv_2", "Conv_4", "Conv_6", "Conv_8"]
    slow = kernels(Conv_0=12.0, Conv_2=15.0, Conv_4=12.5, Conv_6=10.5, Conv_8=9.0)
    lost = profiling.losing(model, chosen(model), slow, floats(**dict.fromkeys(names, 10.0)))
    assert lost == [("Conv_0", "Conv_4", "Conv_8"), ("Conv_2",)]


def test_layers_of_one_kind_must_lose_enough_together() -> None:
    """Of 1000 microseconds 5 must be lost: 3 x 1.7, or 1 x 5.1."""
    model = chain((3, 1), (1, 1), (3, 1), (3, 2), (3, 1))
    plain = floats(Conv_0=10.0, Conv_2=10.0, Conv_4=10.0, Conv_6=960.0, Conv_8=10.0)
    for loss, expected in ((1.7, [("Conv_0", "Conv_4", "Conv_8")]), (1.65, [])):
        slow = kernels(Conv_0=10 + loss, Conv_2=14.9, Conv_4=10 + loss, Conv_6=1.0, Conv_8=10 + loss)
        assert profiling.losing(model, chosen(model), slow, plain) == expected
    assert profiling.losing(model, chosen(model), kernels(Conv_2=15.1), plain) == [("Conv_2",)]


@pytest.mark.parametrize(
    ("name", "operator", "found"),
    [
        ("Gemm_0", "QGemm", True),
        ("Gemm_0_token_7", "QLinearMatMul", True),
        ("Gemm_01", "QGemm", False),
        ("Gemm_0_quant", "QGemm", False),
        ("Gemm_0", "Gemm", False),
    ],
)
def test_int8_kernels_keep_the_name_of_their_node(name: str, operator: str, found: bool) -> None:
    others = {"Gemm_0_other": Kernel("QGemm", 1.0), name: Kernel(operator, 7.0)}
    assert profiling._int8(others, "Gemm_0") == (7.0 if found else None)


@pytest.mark.parametrize(
    ("name", "operator", "found"),
    [
        ("Conv_0", "Conv", True),
        ("Conv_0_nchwc", "Conv", True),
        ("fused Conv_0", "FusedConv", True),
        ("t1", "FusedGemm", True),
        ("t1_nchwc", "Conv", True),
        ("Conv_0", "QLinearConv", False),
        ("Conv_0", "Reorder", False),
        ("nchwc_Conv_0", "Conv", False),
    ],
)
def test_float_kernels_carry_the_name_of_the_node_or_its_tensors(name: str, operator: str, found: bool) -> None:
    assert profiling._plain({name: Kernel(operator, 7.0)}, ["Conv_0", "t0", "t1"]) == (7.0 if found else None)


def test_the_first_of_the_names_decides() -> None:
    both = {"t1": Kernel("Gemm", 1.0), "Conv_0": Kernel("Conv", 7.0)}
    assert profiling._plain(both, ["Conv_0", "t1"]) == 7.0
    assert profiling._plain(both, ["t1", "Conv_0"]) == 1.0


def test_tensors_of_a_layer_reach_through_what_is_fused_behind_it() -> None:
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 8, 8]), 3, 16)
    y = graph.op("Add", x, graph.constant(np.float32(1)))
    z = graph.op("Sigmoid", y)
    model = graph.model(graph.op("Mul", z, z), graph.op("Tanh", graph.conv(y, 16, 16)))
    first, _, _, _, _, second, *_ = model.graph
    assert profiling._tensors(first) == ["t0", "t1", "t2"], "two read t2"
    assert profiling._tensors(second) == ["t5", "t6"], "Tanh is not fused"


def test_rates_are_multiplications_by_the_time() -> None:
    """A convolution of 5 x 4 x 4 outputs by 2 x 3 x 3 weights, and a product of 3 x 80 by 80 x 7, for three samples."""
    graph = Graph()
    weight = graph.constant(np.ones((5, 2, 3, 3), np.float32))
    x = graph.op("Conv", graph.take("x", ["b", 2, 4, 4]), weight, pads=[1] * 4)
    model = graph.model(graph.op("MatMul", graph.op("Flatten", x), graph.constant(np.ones((80, 7), np.float32))))
    layers = [
        LayerTime(node="Conv_0", int8=0.1, plain=0.4),
        LayerTime(node="MatMul_2", int8=2.0, plain=None),
        LayerTime(node="gone", int8=1.0, plain=1.0),
    ]
    assert profiling.rates(model, layers, {"x": np.zeros((3, 2, 4, 4), np.float32)}) == {
        "Conv_0": (round(3 * 80 * 18 / 100, 1), round(3 * 80 * 18 / 400, 1)),
        "MatMul_2": (round(3 * 80 * 7 / 2000, 1), None),
    }


def test_what_runs_up_to_a_layer_counts_all_before_it() -> None:
    net = chain((1, 1), (3, 1), (3, 2))
    int8 = {
        "a": Kernel("QuantizeLinear", 1.0),
        "Conv_0": Kernel("QLinearConv", 2.0),
        "b": Kernel("ReorderInput", 4.0),
        "Conv_2_token_7": Kernel("QLinearConv", 8.0),
        "Conv_4": Kernel("Conv", 16.0),
    }
    plain = {"r": Kernel("ReorderInput", 1.0), "Conv_0_nchwc": Kernel("Conv", 3.0), "Conv_2_nchwc": Kernel("Conv", 5.0)}
    nodes = {node.name: node for node in net.graph}
    assert [profiling.until(int8, nodes[name], int8=True) for name in ("Conv_0", "Conv_2", "Conv_4")] == [
        3.0,
        15.0,
        None,
    ]
    assert [profiling.until(plain, nodes[name], int8=False) for name in ("Conv_0", "Conv_2", "Conv_4")] == [
        4.0,
        9.0,
        None,
    ]
