"""Rewrites before rounding: which there are, and what they touch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.quantize import forms
from lepton_cli.quantize.targets import TARGETS
from tests.quantize.builders import Graph, ops, run

DATA = Arrays({"x": np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)})


def rewritten(model: ir.Model, excluded: set[str] | None = None, target: str = "x86-vnni") -> ir.Model:
    for rewrite in forms.rewrites(excluded or set(), TARGETS[target]):
        model = rewrite.on(model)
    return model


def read_twice(*, shown: bool = False, float_reader: bool = True, int8_reader: bool = True) -> ir.Model:
    """A Gemm that a product and others read."""
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 32]), 32, 32)
    outputs = [graph.linear(x, 32, 32)] if int8_reader else []
    outputs += [graph.op("Tanh", x)] if float_reader else []
    return graph.model(*outputs, *([x] if shown else []))


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({}, ["MatMul", "Sum"]),
        ({"shown": True}, ["MatMul", "Sum"]),
        ({"shown": True, "float_reader": False}, ["MatMul", "Sum"]),
        ({"float_reader": False}, ["Gemm"]),
        ({"int8_reader": False}, ["Gemm"]),
    ],
)
def test_a_gemm_read_in_int8_and_float_is_a_product_and_a_sum(options: dict[str, bool], first: list[str]) -> None:
    model = read_twice(**options)
    made = rewritten(model)
    assert ops(made)[: len(first)] == first
    np.testing.assert_allclose(run(made, DATA), run(model, DATA), atol=1e-5)


def test_what_is_excluded_is_not_read_in_int8() -> None:
    assert ops(rewritten(read_twice(), {"Gemm_1"}))[0] == "Gemm", "all of its readers are float"
    assert ops(rewritten(read_twice(), {"Gemm_0"}))[0] == "Gemm", "it is float itself"


def test_other_targets_get_what_every_int8_needs() -> None:
    assert ops(rewritten(read_twice(), target="tensorrt"))[0] == "Gemm"
    graph = Graph()
    x = graph.op("Pad", graph.take("x", [1, 3, 8, 8]), graph.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    padded = graph.model(graph.conv(x, 3, 16))
    assert ops(rewritten(padded, target="tensorrt")) == ["Conv", "Relu"]
    assert ops(rewritten(padded, {"Pad_0"}, target="tensorrt")) == ["Pad", "Conv", "Relu"]
    assert ops(rewritten(padded, {"Conv_1"})) == ["Pad", "Conv", "Relu"]


def test_names_are_those_of_branches_too() -> None:
    assert forms.names(read_twice()) == {"Gemm_0", "Gemm_1", "Tanh_2"}


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((1, 32), (32,)),
        ((), (32,)),
        ((1,), (32,)),
        ((1, 1), (32,)),
        ((32,), (32,)),
        ((4, 1), (4, 1)),
        ((4, 32), (4, 32)),
    ],
)
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_bias_is_a_vector(shape: tuple[int, ...], wanted: tuple[int, ...], transposed: int) -> None:
    """Whatever broadcasts to one number for each column; not what differs from row to row."""
    random = np.random.default_rng(1)
    graph = Graph()
    weight = graph.constant(random.normal(size=(32, 16) if transposed else (16, 32)).astype(np.float32))
    bias = graph.constant(random.normal(size=shape).astype(np.float32))
    x = graph.take("x", [4, 16])
    model = graph.model(graph.op("Gemm", x, weight, bias, transB=transposed))
    made = rewritten(model)
    gemm = next(node for node in made.graph if node.op_type == "Gemm")
    held = gemm.inputs[2]
    assert held is not None
    assert held.const_value is not None
    assert held.const_value.numpy().shape == wanted
    data = Arrays({"x": random.normal(size=(4, 16)).astype(np.float32)})
    np.testing.assert_allclose(run(made, data), run(model, data), atol=1e-5)
