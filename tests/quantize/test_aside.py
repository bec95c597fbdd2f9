"""Models that have the names which onnxruntime's quantizers give: weights, values, nodes, inputs and outputs."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
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


PLACES = ("h", "v", "last", "y", "k")


@cache
def plain(step: Any) -> tuple[np.ndarray, int]:
    """What the network with other names comes to, and how many nodes are changed."""
    made = lepton.apply(network(), step, data=Arrays({"x": X, "k": X}))
    (found,) = Session(io.to_bytes(made.model), threads=1).run({"x": X, "k": X}).values()
    assert isinstance(found, np.ndarray)
    return found, made.steps[0].changed


@pytest.mark.parametrize("first", range(len(TAKEN)))
@pytest.mark.parametrize("step", [STATIC, lepton.QuantizeDynamic()], ids=lambda step: step.step)
def test_names_that_are_taken(first: int, step: Any) -> None:
    """The result is the same function as that of the network with other names, and the interface has its own.

    In each of the models five places have such a name, and in all together every place has every name.
    """
    proto = network(**{place: TAKEN[(first + 4 * number) % len(TAKEN)] for number, place in enumerate(PLACES)})
    feeds = {value.name: X for value in proto.graph.input}
    made = lepton.apply(proto, step, data=Arrays(feeds))
    assert [value.name for value in made.model.graph.inputs] == list(feeds)
    (found,) = Session(io.to_bytes(made.model), threads=1).run(feeds).values()
    wanted, changed = plain(step)
    np.testing.assert_array_equal(found, wanted)
    assert made.steps[0].changed == changed
    assert [value.name for value in made.model.graph.outputs] == [value.name for value in proto.graph.output]
    assert not any("\u00b7" in (node.name or "") for node in made.model.graph)


def test_a_model_without_such_names_is_returned() -> None:
    before = read(network())
    assert aside.set_aside(before) == (before, {})
    before.graph[0].name = None
    assert aside.set_aside(before) == (before, {})
    assert aside.set_aside(read(network(h="nobody_scale", y="_quantized")))[1] == {}


def read(proto: onnx.ModelProto) -> ir.Model:
    return io.read(proto.SerializeToString()).model


def names(model: ir.Model) -> list[str | None]:
    """Of inputs, weights, nodes and their outputs, in every graph."""
    found: list[str | None] = []
    for graph in model.graphs():
        found += [value.name for value in (*graph.inputs, *graph.initializers.values())]
        found += [one.name for node in graph for one in (node, *node.outputs)]
    return found


def test_only_names_that_continue_another_stand_aside() -> None:
    before = read(network(h="x_scale", v="w_quantized", k="x_scale_zero_point", relu="fc_quant", r="unknown_scale"))
    given = names(before)
    made, moved = aside.set_aside(before)
    assert moved == {name: name + "\u00b7" for name in ("x_scale", "w_quantized", "x_scale_zero_point", "fc_quant")}
    assert names(made) == [moved.get(name or "", name) for name in given]
    assert names(before) == given
    assert list(made.graph.initializers) == ["w", "w_quantized\u00b7"]
    assert aside.renamed(["x", "x_scale"], moved) == {"x", "x_scale\u00b7"}
    aside.put_back(made, moved)
    assert names(made) == given
    assert io.to_bytes(made) == io.to_bytes(before)


def test_what_was_added_under_such_a_name_gets_the_next_free_number() -> None:
    before = read(network(h="x_scale", last="x_scale_1"))
    made, moved = aside.set_aside(before)
    assert moved.keys() == {"x_scale", "x_scale_1"}
    added = [
        ir.node("Neg", [made.graph.inputs[0]], name=name) for name in ("x_scale", "x_scale\u00b7_quantized", "free")
    ]
    for node, name in zip(added, ("x_scale\u00b7_scale", "x_scale\u00b7_quantized_1", "other"), strict=True):
        node.outputs[0].name = name
        made.graph.append(node)
    aside.put_back(made, moved)
    assert [node.name for node in made.graph] == [
        "fc",
        "relu",
        "x_scale_1",
        "mul",
        "x_scale_2",
        "x_scale_quantized_1",
        "free",
    ]
    assert [node.outputs[0].name for node in added] == ["x_scale_scale_1", "x_scale_quantized_1_1", "other"]
    assert made.graph[0].outputs[0].name == "x_scale"


def test_nothing_is_put_back_where_nothing_was_moved() -> None:
    model = read(network(h="h\u00b7"))
    aside.put_back(model, {})
    assert model.graph[0].outputs[0].name == "h\u00b7"


def test_names_in_branches_count() -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, FLOAT, None)
        return helper.make_graph(
            [helper.make_node("Add", ["x", f"w_{name}"], [name], "a")],
            name,
            [],
            [out],
            [tensor(f"w_{name}", weights(4))],
        )

    nodes = [helper.make_node("If", ["c"], ["y"], "if", then_branch=branch("x_scale"), else_branch=branch("no"))]
    before = read(model(nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, None)}, [tensor("c", np.bool_(True))]))
    made, moved = aside.set_aside(before)
    assert moved.keys() == {"x_scale"}
    assert [name for name in names(made) if name and name.endswith("\u00b7")] == ["x_scale\u00b7"]
