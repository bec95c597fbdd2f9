"""Slice and Pad shortcuts become convolutions that compute exactly the same."""

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.graph import io
from lepton_cli.quantize import shortcuts
from tests.quantize.builders import Graph, images, ops, run


def shortcut(axes: list[int], step: int, pads: list[int], start: int = 0, mode: str = "constant") -> ir.Model:
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 16, 16]), 3, 8)
    for axis in axes:
        ends = [graph.constant(np.int64([value])) for value in (start, np.iinfo(np.int64).max, axis, step)]
        x = graph.op("Slice", x, *ends)
    return graph.model(graph.op("Pad", x, graph.constant(np.int64(pads)), mode=mode))


def rewrite(model: ir.Model) -> tuple[int, ir.Model]:
    made = io.clone(model)
    return shortcuts.to_convolutions(made, {node.name or "" for node in made.graph}), made


@pytest.mark.parametrize(("axes", "step"), [([2, 3], 2), ([2], 2), ([2, 3], 3), ([-2, -1], 2)])
def test_exactly_equal(axes: list[int], step: int) -> None:
    model = shortcut(axes, step, [0, 4, 0, 0, 0, 4, 0, 0])
    count, made = rewrite(model)
    assert count == 1
    assert ops(made) == ["Conv", "Relu", "Conv"]
    np.testing.assert_array_equal(run(model, images()), run(made, images()))


@pytest.mark.parametrize(
    "model",
    [
        shortcut([2, 3], 2, [0, 4, 1, 0, 0, 4, 0, 0]),
        shortcut([2, 3], 2, [0, 4, 0, 0, 0, 4, 0, 0], start=1),
        shortcut([1], 2, [0, 4, 0, 0, 0, 4, 0, 0]),
        shortcut([2, 3], 2, [0, 4, 0, 0, 0, 4, 0, 0], mode="edge"),
        shortcut([], 2, [0, 4, 0, 0, 0, 4, 0, 0]),
        shortcut([2, 3], 2, [0, 400, 0, 0, 0, 400, 0, 0]),
    ],
    ids=["pads rows", "starts late", "drops channels", "repeats the edge", "no stride", "too wide"],
)
def test_left_alone(model: ir.Model) -> None:
    count, made = rewrite(model)
    assert count == 0
    assert ops(made) == ops(model)


def test_excluded_nodes_stay() -> None:
    model = shortcut([2, 3], 2, [0, 4, 0, 0, 0, 4, 0, 0])
    allowed = {node.name or "" for node in model.graph if node.op_type != "Slice"}
    assert shortcuts.to_convolutions(model, allowed) == 0
