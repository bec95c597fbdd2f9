"""Shapes for fast int8 kernels: plain onnxruntime computes the same numbers before and after, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.probe.clipping import Range
from lepton_cli.quantize import choose, kernels, qdq
from lepton_cli.quantize.targets import TARGETS
from tests.quantize.builders import Graph, images, ops, run

VNNI = TARGETS["x86-vnni"]


def quantized(graph: Graph, *outputs: str, **options: Any) -> ir.Model:
    """With the same range for every tensor."""
    model = graph.model(*outputs)
    ranges: dict[str, Range] = dict.fromkeys(["x", *(f"t{number}" for number in range(len(graph.nodes)))], (-3.0, 4.0))
    choice = choose.candidates(model, {node.name or "" for node in model.graph})
    return qdq.write(model, qdq.Scheme(options.pop("target", VNNI), choice, ranges, **options))


def weights(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of convolutions, by node."""
    found = {}
    for node in model.graph:
        if node.op_type == "Conv":
            read = node.inputs[1].producer() if node.inputs[1] is not None else None
            assert read is not None
            assert read.inputs[0] is not None
            assert read.inputs[0].shape is not None
            found[node.name or ""] = tuple(read.inputs[0].shape.numpy())
    return found


def check(model: ir.Model, data: Arrays, **options: Any) -> ir.Model:
    """The model with other shapes, when it computes the same and no shape that is stored contradicts it."""
    before = run(model, data)
    made = kernels.fit(io.clone(model), VNNI, **options)
    np.testing.assert_array_equal(run(made, data), before)
    onnx.shape_inference.infer_shapes(io.to_proto(made), strict_mode=True)
    return made


def first(channels: int = 3, rows: int = 3, columns: int = 3, opset: int = 17, **attributes: Any) -> ir.Model:
    """A convolution that reads the input, and one behind it."""
    graph, size = Graph(opset), 16
    weight = graph.constant(graph.random.normal(0, 0.2, (16, channels, rows, columns)).astype(np.float32))
    x = graph.op("Conv", graph.take("x", ["b", channels, size, size]), weight, **attributes)
    return quantized(graph, graph.conv(x, 16, 8, relu=False))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, (16, 12, 1, 3)),
        ({"pads": [1, 1, 1, 1]}, (16, 12, 1, 3)),
        ({"pads": [2, 0, 1, 3], "strides": [2, 3]}, (16, 12, 1, 3)),
        ({"rows": 5, "columns": 2, "dilations": [3, 1], "pads": [0, 1, 0, 0]}, (16, 16, 1, 2)),
        ({"rows": 7, "columns": 7, "strides": [4, 2]}, (16, 24, 1, 7)),
        ({"rows": 6, "columns": 6}, (16, 18, 1, 6)),
        ({"rows": 3, "columns": 4}, (16, 9, 1, 4)),
        ({"channels": 1, "rows": 2, "columns": 1}, (16, 4, 1, 1)),
        ({"channels": 4}, (16, 12, 1, 3)),
        ({"opset": 11, "pads": [1, 1, 1, 1]}, (16, 12, 1, 3)),
    ],
)
def test_rows_of_a_window_become_channels(attributes: dict[str, Any], expected: tuple[int, ...]) -> None:
    """Their number times the width of the window is a multiple of four."""
    model = first(**attributes)
    made = check(model, images(3, attributes.get("channels", 3)))
    assert next(iter(weights(made).values())) == expected
    assert ops(made).count("Gather") == 1
    assert ("Pad" in ops(made)) == any(attributes.get("pads", [0])[::2])
    assert ops(made).count("QuantizeLinear") == ops(model).count("QuantizeLinear")


@pytest.mark.parametrize(
    "attributes",
    [
        {"rows": 1},
        {"channels": 5},
        {"dilations": [1, 2]},
        {"auto_pad": "SAME_UPPER"},
    ],
)
def test_other_first_layers_stay(attributes: dict[str, Any]) -> None:
    model = first(**attributes)
    assert ops(check(model, images(2, attributes.get("channels", 3)))) == ops(model)


def test_rows_need_a_known_height() -> None:
    graph = Graph()
    model = quantized(graph, graph.conv(graph.take("x", ["b", 3, "height", 16]), 3, 16, relu=False))
    assert ops(check(model, images(2))) == ops(model)


def test_the_width_may_be_open() -> None:
    graph = Graph()
    model = quantized(graph, graph.conv(graph.take("x", ["b", 3, 16, "width"]), 3, 16, relu=False))
    assert "Gather" in ops(check(model, images(2)))


def depthwise(channels: int, *, bias: bool = True, between: str = "", twice: bool = False, wide: int = 64) -> ir.Model:
    """Convolution, depthwise convolution, convolution (or two), and one with most of the weights behind them."""
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 8, 6, 6]), 8, channels, 1)
    if between:
        x = graph.op(between, x)
    if bias:
        x = graph.conv(x, channels, channels, group=channels)
    else:
        weight = graph.random.normal(0, 0.3, (channels, 1, 3, 3)).astype(np.float32)
        x = graph.op("Conv", x, graph.constant(weight), group=channels, pads=[1, 1, 1, 1])
    y = graph.conv(x, channels, wide, 1, relu=False)
    if twice:
        y = graph.op("Add", y, graph.conv(x, channels, wide, relu=False))
    return quantized(graph, graph.conv(graph.conv(y, wide, 4 * wide), 4 * wide, 8, relu=False))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize(("channels", "filled"), [(3, 16), (12, 16), (20, 32), (47, 48)])
def test_the_last_block_of_channels_is_filled(
    channels: int, filled: int, twice: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "MOST_ADDED", 1.0)
    made = check(depthwise(channels, bias=bias, twice=twice), images(3, 8, 6))
    shapes = list(weights(made).values())
    assert shapes[:3] == [(filled, 8, 1, 1), (filled, 1, 3, 3), (64, filled, 1, 1)]
    groups = [node.attributes.get_int("group", 1) for node in made.graph if node.op_type == "Conv"]
    assert groups[:3] == [1, filled, 1]


def test_channels_between_convolutions_are_filled_without_a_depthwise_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that an Add reads, nor those of groups."""
    monkeypatch.setattr(kernels, "MOST_ADDED", 1.0)
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 8, 6, 6]), 8, 13)
    y = graph.conv(graph.conv(x, 13, 5), 5, 13, relu=False)
    x = graph.conv(graph.op("Add", x, y), 13, 12, 1)
    model = quantized(graph, graph.conv(graph.conv(x, 12, 12, group=3), 12, 8, relu=False))
    made = weights(check(model, images(2, 8, 6)))
    expected = [(13, 8, 3, 3), (16, 13, 3, 3), (13, 16, 3, 3), (12, 13, 1, 1), (12, 4, 3, 3), (8, 12, 3, 3)]
    assert list(made.values()) == expected


def test_two_depthwise_layers_in_a_row_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MOST_ADDED", 1.0)
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 8, 6, 6]), 8, 20, 1)
    for _ in range(2):
        x = graph.conv(x, 20, 20, group=20)
    made = weights(check(quantized(graph, graph.conv(x, 20, 8, 1, relu=False)), images(2, 8, 6)))
    assert list(made.values()) == [(32, 8, 1, 1), (32, 1, 3, 3), (32, 1, 3, 3), (8, 32, 1, 1)]


def test_a_depthwise_layer_of_one_channel_is_filled_once_on_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the convolution with one input and one output that it is."""
    monkeypatch.setattr(kernels, "MOST_ADDED", 200.0)
    graph = Graph()
    x = graph.conv(graph.conv(graph.take("x", ["b", 8, 6, 6]), 8, 1, 1), 1, 1)
    made = weights(check(quantized(graph, graph.conv(x, 1, 8, 1, relu=False)), images(2, 8, 6)))
    assert list(made.values()) == [(16, 8, 1, 1), (16, 16, 3, 3), (8, 16, 1, 1)]


@pytest.mark.parametrize("channels", [16, 48])
def test_full_blocks_stay(channels: int) -> None:
    model = depthwise(channels)
    assert weights(check(model, images(2, 8, 6))) == weights(model)


def test_zeros_are_few_bytes_and_none_where_size_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve channels lack four: 4 x (8 + 9 + 64) bytes."""
    model = depthwise(12)
    whole = sum(int(np.prod(shape)) for shape in weights(model).values())
    for most, added in ((324.5, 324), (323.5, 0)):
        monkeypatch.setattr(kernels, "MOST_ADDED", most / whole)
        made = check(model, images(2, 8, 6))
        assert sum(int(np.prod(shape)) for shape in weights(made).values()) - whole == added
    monkeypatch.setattr(kernels, "MOST_ADDED", 1.0)
    assert weights(check(model, images(2, 8, 6), larger=False)) == weights(model)


def test_what_others_read_keeps_its_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MOST_ADDED", 1.0)
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 8, 6, 6]), 8, 12, 1)
    y = graph.conv(x, 12, 12, group=12)
    model = quantized(graph, graph.conv(graph.op("Add", x, y), 12, 16, 1, relu=False))
    assert weights(check(model, images(2, 8, 6))) == weights(model)
    between = depthwise(12, between="Sigmoid")
    assert weights(check(between, images(2, 8, 6))) == weights(between)


@pytest.mark.parametrize("name", ["arm", "tensorrt", "cuda"])
def test_other_machines_get_what_was_written(name: str) -> None:
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 12)
    model = quantized(graph, graph.conv(graph.conv(x, 12, 12, group=12), 12, 64, 1), target=TARGETS[name])
    assert ops(kernels.fit(model, TARGETS[name])) == ops(model)
    assert "Gather" not in ops(model)


def test_numbers_of_16_bits_stay() -> None:
    graph = Graph(21)
    model = quantized(graph, graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 16, relu=False), activations="int16")
    assert ops(kernels.fit(io.clone(model), VNNI)) == ops(model)
