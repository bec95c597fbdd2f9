"""Operators that only move values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.quantize import sharing
from tests.quantize.builders import Graph


def padded(value: Any = None, *, opset: int = 17, computed: bool = False, **attributes: Any) -> ir.Node:
    graph = Graph(opset)
    x = graph.take("x", [1, 4])
    inputs = [x] if opset < 11 else [x, graph.constant(np.array([0, 1, 0, 1]))]
    if computed:
        inputs.append(graph.op("ReduceMax", x, keepdims=0))
    elif value is not None:
        inputs.append(graph.constant(np.asarray(value, np.float32)))
    model = graph.model(graph.op("Pad", *inputs, **attributes))
    return next(node for node in model.graph if node.op_type == "Pad")


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({}, True),
        ({"value": 0.0}, True),
        ({"value": [0.0]}, True),
        ({"value": 1.0}, False),
        ({"computed": True}, False),
        ({"value": 1.0, "mode": "edge"}, True),
        ({"value": 1.0, "mode": "reflect"}, True),
        ({"value": 1.0, "mode": "constant"}, False),
    ],
)
def test_a_pad_with_zeros_or_its_own_values_adds_nothing_to_a_grid(options: dict[str, Any], own: bool) -> None:
    assert sharing.pads_with_own(padded(**options), 17) is own


def test_the_value_of_an_old_pad_is_an_attribute() -> None:
    for number, own in ((None, True), (0.0, True), (2.0, False)):
        given = {} if number is None else {"value": number}
        graph = Graph(10)
        model = graph.model(graph.op("Pad", graph.take("x", [1, 4]), pads=[0, 1, 0, 1], **given))
        assert sharing.pads_with_own(next(iter(model.graph)), 10) is own


def moved(op: str, *, shared: bool = False, shown: bool = False, given: bool = False) -> tuple[ir.Node, ir.Value]:
    graph = Graph()
    x = graph.take("x", [1, 4, 4])
    source = x if given else graph.op("Tanh", x)
    extra = {"Reshape": [[4, 4]], "Slice": [[0], [1]], "Squeeze": [[0]], "Unsqueeze": [[0]]}.get(op, [])
    y = graph.op(op, source, *(graph.constant(np.array(one)) for one in extra))
    model = graph.model(y, *([graph.op("Exp", source)] if shared else []), *([source] if shown else []))
    node = next(node for node in model.graph if node.op_type == op)
    value = node.inputs[0]
    assert value is not None
    return node, value


def test_a_limit_passes_what_moves_all_values() -> None:
    ops = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Slice", "Exp")
    passing = {op for op in ops if sharing.lets_limits_pass(*moved(op))}
    assert passing == {"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


def test_no_limit_passes_where_others_see_what_is_before_it() -> None:
    for options in ({"shared": True}, {"shown": True}, {"given": True}):
        assert not sharing.lets_limits_pass(*moved("Transpose", **options)), options
    assert not sharing.lets_limits_pass(None, moved("Transpose")[1])
