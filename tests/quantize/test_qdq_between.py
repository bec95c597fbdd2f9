"""Between int8 layers: what is computed in float there, what only moves codes, and limits and factors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from lepton_cli.model import io
from lepton_cli.probe.clipping import Range
from lepton_cli.quantize.targets import TARGETS
from lepton_cli.runtime import Session
from tests.quantize.builders import Graph, chosen, ops, write


def three(kind: str, activation: str | None) -> ir.Model:
    """Three layers, named L0 to L2 by their place in the graph, the second with an activation."""
    graph = Graph()
    x = graph.take("x", ["b", 20] if kind == "Gemm" else ["b", 16, 6, 6])
    for number in range(3):
        x = graph.linear(x, 20, 20) if kind == "Gemm" else graph.conv(x, 16, 16, relu=False)
        if number == 1 and activation is not None:
            x = graph.op(activation, x)
    return graph.model(x)


@pytest.mark.parametrize("kind", ["Gemm", "Conv"])
@pytest.mark.parametrize("activation", [None, "Relu", "Tanh"])
def test_a_float_layer_between_int8_ones_is_computed_in_float(
    kind: str, activation: str | None, tmp_path: Path
) -> None:
    model = three(kind, activation)
    names = [node.name or "" for node in model.graph if node.op_type == kind]
    ranges: dict[str, Range] = dict.fromkeys((v.name or "" for n in model.graph for v in n.outputs), (-3.0, 3.0))
    choice = chosen(model).without([names[1]], "", model)
    made = write(model, ranges | {"x": (-3.0, 3.0)}, choice=choice)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 4
    onnxruntime.InferenceSession(io.to_bytes(made), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert found["QLinearConv"] + found["QGemm"] == 2
    assert found[kind] + found[f"Fused{kind}"] == 1
    needed = kind == "Conv" and activation != "Tanh"  # a Gemm leaves float numbers, onnxruntime sees no int8 before
    assert found["Sum"] == needed
    read = {value.name for one in made.graph if one.op_type == kind for value in one.inputs if value is not None}
    assert read & set(model.graph.initializers) == {"w2", "w3"}


def test_nothing_is_copied_where_no_int8_layer_stands_before_or_on_other_targets() -> None:
    model = three("Conv", "Relu")
    ranges: dict[str, Range] = dict.fromkeys(("x", "t0", "t1", "t2", "t3"), (-3.0, 3.0))
    first = chosen(model).without(["Conv_0"], "", model)
    assert "Sum" not in ops(write(model, ranges, choice=first))
    second = chosen(model).without(["Conv_1"], "", model)
    assert "Sum" in ops(write(model, ranges, choice=second, target=TARGETS["arm"]))
    assert "Sum" not in ops(write(model, ranges, choice=second, target=TARGETS["tensorrt"]))


@pytest.mark.parametrize("moves", ["Reshape", "Transpose", "Squeeze", "MaxPool", "Slice"])
@pytest.mark.parametrize("end", ["read", "output"])
def test_int8_that_is_moved_and_read_in_float_loads_on_x86(moves: str, end: str) -> None:
    """onnxruntime rounds behind the move too; with opset 21 it forgets a type there when it makes uint8 of int8."""
    outputs = {}
    for opset in (20, 21):
        graph = Graph(opset)
        x = graph.conv(graph.take("x", [1, 3, 8, 8]), 3, 16, relu=False)
        given = {"Reshape": [[1, 16, 64]], "Squeeze": [[0]], "Slice": [[0], [4], [2]]}.get(moves, [])
        options: Any = {"Transpose": {"perm": [0, 2, 3, 1]}, "MaxPool": {"kernel_shape": [2, 2]}}.get(moves, {})
        x = graph.op(moves, x, *(graph.constant(np.array(one)) for one in given), **options)
        model = graph.model(graph.op("Tanh", x) if end == "read" else x)
        made = write(model, {"x": (-3.0, 3.0), "t0": (-4.0, 4.0)}, target=TARGETS["arm"])
        assert ops(made).count("QuantizeLinear") == (2 if opset == 20 else 3)
        feed = {"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}
        for optimise in (False, True):
            outputs[opset, optimise] = next(iter(Session(io.to_bytes(made), optimise=optimise).run(feed).values()))
    np.testing.assert_array_equal(outputs[20, False], outputs[21, False])
    np.testing.assert_allclose(outputs[21, True], outputs[21, False], atol=8.1 / 255)


def _rounded(array: np.ndarray, scale: float, zero: int) -> np.ndarray:
    return scale * (np.clip(np.rint(array / np.float32(scale)) + zero, 0, 255) - zero)


def _behind_a_conv(*build: Any, opset: int = 17, ranges: Any = None) -> tuple[ir.Model, dict[str, Any]]:
    """An identity convolution, what is to be looked at, and a 1x1 convolution: the quantized model, and what it reads
    as `seen`, unoptimised. `build` gets the graph and what the first gives (`t0`), and says what the second reads."""
    graph = Graph(opset)
    weight = graph.constant(np.eye(16, dtype=np.float32).reshape(16, 16, 1, 1))
    x = build[0](graph, graph.op("Conv", graph.take("x", [1, 16, 4, 4]), weight))
    channels = build[1] if len(build) > 1 else 16
    second = graph.constant(np.ones((16, channels, 1, 1), np.float32))
    model = graph.model(graph.op("Conv", x, second))
    limits = {value.name or "": (-1.0, 1.0) for one in model.graph for value in one.outputs}
    made = write(model, {"x": (-1.0, 1.0), **limits, **(ranges or {})})
    last = next(one for one in made.graph if one.name == f"Conv_{len(graph.nodes) - 1}")
    proto = io.to_proto(made)
    proto.graph.output.append(onnx.ValueInfoProto(name=last.inputs[0].name))  # type: ignore[union-attr]
    feed = {"x": np.random.default_rng(0).normal(0, 0.5, (1, 16, 4, 4)).astype(np.float32)}
    found = Session(proto.SerializeToString(), optimise=False).run(feed)
    return made, {"x": feed["x"], "seen": found[last.inputs[0].name or ""]}  # type: ignore[union-attr]


STEP = 2 / 255


_ONCE: dict[str, Any] = {"scale": STEP, "zero": 128}


@pytest.mark.parametrize(
    ("op", "channels", "options"),
    [
        ("SpaceToDepth", 64, {"blocksize": 2}),
        ("DepthToSpace", 4, {"blocksize": 2}),
        ("Pad", 16, {}),
        ("Gather", 16, {}),
    ],
)
def test_what_only_moves_values_moves_codes(op: str, channels: int, options: dict[str, Any]) -> None:
    """No second rounding: numbers are those behind the convolution."""

    def build(graph: Graph, x: str) -> str:
        more = {"Pad": np.array([0, 0, 1, 0, 0, 0, 0, 2]), "Gather": np.arange(16)[::-1].copy()}
        extra = [graph.constant(more[op])] if op in more else []
        return str(graph.op(op, x, *extra, **(options | ({"axis": 1} if op == "Gather" else {}))))

    made, found = _behind_a_conv(build, channels)
    rounded = _rounded(_rounded(found["x"], **_ONCE), **_ONCE)
    blocks = rounded.reshape(1, 16, 2, 2, 2, 2)
    expected = {
        "SpaceToDepth": blocks.transpose(0, 3, 5, 1, 2, 4).reshape(1, 64, 2, 2),
        "DepthToSpace": rounded.reshape(1, 2, 2, 4, 4, 4).transpose(0, 3, 4, 1, 5, 2).reshape(1, 4, 8, 8),
        "Pad": np.pad(rounded, [(0, 0), (0, 0), (1, 0), (0, 2)]),
        "Gather": rounded[:, ::-1],
    }[op]
    np.testing.assert_allclose(found["seen"], expected, atol=1e-6)
    direct = op in ("Pad", "SpaceToDepth")
    moving = next(one for one in made.graph if one.op_type == op)
    assert moving.inputs[0].dtype == (ir.DataType.UINT8 if direct else ir.DataType.FLOAT)  # type: ignore[union-attr]


def test_a_limit_behind_a_pad_gets_a_grid_of_its_own() -> None:
    def build(graph: Graph, x: str) -> str:
        return str(graph.op("Relu", graph.op("Pad", x, graph.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])))))

    made, found = _behind_a_conv(build, ranges={"t2": (0.0, 1.0), "t1": (-1.0, 1.0)})
    rounded = np.pad(_rounded(_rounded(found["x"], **_ONCE), **_ONCE), [(0, 0), (0, 0), (1, 1), (1, 1)])
    np.testing.assert_allclose(found["seen"], _rounded(rounded, 1 / 255, 0), atol=1e-6)
    assert "Relu" not in ops(made)


def test_a_limit_behind_moves_stands_before_them() -> None:
    """One grid, which ends at 0."""

    def build(graph: Graph, x: str) -> str:
        x = graph.op("Reshape", x, graph.constant(np.array([1, 16, 2, 8])))
        return str(graph.op("Relu", graph.op("Transpose", x, perm=[0, 1, 3, 2])))

    made, found = _behind_a_conv(build, ranges={"t3": (0.0, 1.0)})
    rounded = _rounded(_rounded(found["x"], **_ONCE), 1 / 255, 0)
    np.testing.assert_allclose(found["seen"], rounded.reshape(1, 16, 2, 8).transpose(0, 1, 3, 2), atol=1e-6)
    assert "Relu" not in ops(made)


@pytest.mark.parametrize(("op", "number", "factor"), [("Mul", 3.0, 3.0), ("Div", 4.0, 0.25)])
def test_a_factor_is_another_scale_of_the_same_codes(op: str, number: float, factor: float) -> None:
    made, found = _behind_a_conv(lambda graph, x: graph.op(op, x, graph.constant(np.float32(number))))
    rounded = _rounded(_rounded(found["x"], **_ONCE), **_ONCE)
    np.testing.assert_allclose(found["seen"], factor * rounded, atol=1e-6)
    assert op not in ops(made)
    assert ops(made).count("QuantizeLinear") == 3, "the input, between the two, the output"


def test_a_factor_before_a_limit_is_computed() -> None:
    def build(graph: Graph, x: str) -> str:
        return str(graph.op("Relu", graph.op("Mul", x, graph.constant(np.float32(3)))))

    made, found = _behind_a_conv(build, ranges={"t2": (0.0, 1.0)})
    assert "Mul" in ops(made)
    rounded = 3 * _rounded(_rounded(found["x"], **_ONCE), **_ONCE)
    np.testing.assert_allclose(found["seen"], _rounded(rounded, 1 / 255, 0), atol=1e-6)


def test_a_hard_swish_is_an_addition_and_a_product() -> None:
    made, found = _behind_a_conv(
        lambda graph, x: graph.op("HardSwish", x), ranges={"t0": (-4.0, 1.0), "t1": (-0.5, 1.0)}
    )
    once = _rounded(_rounded(found["x"], **_ONCE), 4 / 255, 191)
    gate = _rounded(once / 6 + 0.5, 1 / 255, 0)
    np.testing.assert_allclose(found["seen"], _rounded(once * gate, 1.5 / 255, 85), atol=1e-6)
    assert [op for op in ops(made) if op in ("Add", "Mul", "Clip", "HardSwish")] == ["Add", "Mul"]
