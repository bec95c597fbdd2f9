"""Models that have the names which onnxruntime's quantizers give: weights, values, nodes, inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import lepton_cli as lepton
from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.quantize import aside
from lepton_cli.runtime import Session
from tests.hostile.models import FLOAT, model, tensor, weights

X = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
STATIC = lepton.QuantizeStatic(
    speed_guard=False, rounding="nearest", equalise=False, bias_correction=False, calibration="minmax"
)
TAKEN = [
    f"{base}_{suffix}"
    for base, suffixes in {
        "x": ("quantized", "scale", "zero_point", "QuantizeLinear", "QuantizeLinear_Output", "DequantizeLinear_Output"),
        "w": ("quantized", "scale", "zero_point", "DequantizeLinear", "DequantizeLinear_Output"),
        "fc": ("quant", "quant_scales_mul:0"),
        "m": ("output_quantized", "output_quantized_cast"),
    }.items()
    for suffix in suffixes
]


def network(**names: str) -> onnx.ModelProto:
    """Two products with a Relu between, and a factor that is fed; any of its names may be another."""
    n = {name: names.get(name, name) for name in ("x", "k", "y", "w", "v", "h", "r", "m", "fc", "relu", "last", "mul")}
    nodes = [
        helper.make_node("MatMul", [n["x"], n["w"]], [n["h"]], n["fc"]),
        helper.make_node("Relu", [n["h"]], [n["r"]], n["relu"]),
        helper.make_node("MatMul", [n["r"], n["v"]], [n["m"]], n["last"]),
        helper.make_node("Mul", [n["m"], n["k"]], [n["y"]], n["mul"]),
    ]
    held = [tensor(n["w"], weights(64, 64)), tensor(n["v"], weights(64, 64, seed=1))]
    rows = ["n", 64]
    return model(nodes, {n["x"]: (FLOAT, rows), n["k"]: (FLOAT, rows)}, {n["y"]: (FLOAT, rows)}, held)


@pytest.mark.parametrize("what", ["h", "v", "last", "y", "k"])
@pytest.mark.parametrize("taken", TAKEN)
@pytest.mark.parametrize("step", [STATIC, lepton.QuantizeDynamic()], ids=lambda step: step.step)
def test_names_that_are_taken(what: str, taken: str, step: Any) -> None:
    """The result is the same function as that of the network with other names, and the interface has its own."""
    proto = network(**{what: taken})
    feeds = {value.name: X for value in proto.graph.input}
    made = lepton.apply(proto, step, data=Arrays(feeds))
    assert [value.name for value in made.model.graph.inputs] == list(feeds)
    (found,) = Session(io.to_bytes(made.model), threads=1).run(feeds).values()
    plain = lepton.apply(network(), step, data=Arrays({"x": X, "k": X}))
    (wanted,) = Session(io.to_bytes(plain.model), threads=1).run({"x": X, "k": X}).values()
    np.testing.assert_array_equal(found, wanted)
    assert made.steps[0].changed == plain.steps[0].changed
    assert [value.name for value in made.model.graph.outputs] == [value.name for value in proto.graph.output]
    assert not any("\u00b7" in (node.name or "") for node in made.model.graph)


def test_a_model_without_such_names_is_returned() -> None:
    before = io.read(network().SerializeToString()).model
    assert aside.set_aside(before) == (before, {})
