"""The focus of YOLO as one convolution: plain onnxruntime computes the same, and near misses stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lepton_cli.simplify import rules
from tests.quantize.builders import Graph, ops
from tests.simplify.test_rules import plain

FAR = 2**31 - 1
WHOLE = [(0, 0), (1, 0), (0, 1), (1, 1)]


def check(
    offsets: Sequence[tuple[int, int]] = WHOLE,
    *,
    steps: tuple[int, int] = (2, 2),
    ends: tuple[int, int] = (FAR, FAR),
    shape: Sequence[Any] = ("b", 3, 12, 18),
    axes: Sequence[int] = (2, 3),
    groups: int = 1,
    output: bool = False,
    shared: bool = False,
    kernel: tuple[int, int] = (3, 3),
    **attributes: Any,
) -> list[str]:
    """Operators that are left; what they compute is held to the model itself."""
    graph = Graph(13)
    x = graph.take("x", list(shape))
    pieces = [
        graph.op("Slice", x, *(graph.constant(np.array(one, np.int64)) for one in (start, ends, axes, steps)))
        for start in offsets
    ]
    joined = graph.op("Concat", *pieces, axis=attributes.pop("axis", 1))
    channels = 3 * len(offsets)
    weight = graph.constant(graph.random.normal(size=(6, channels // groups, *kernel)).astype(np.float32))
    bias = graph.constant(graph.random.normal(size=6).astype(np.float32))
    y = graph.op("Conv", joined, weight, bias, group=groups, **attributes)
    outputs = [y, *([joined] if output else [])]
    if shared:
        outputs.append(graph.op("Conv", graph.op("Relu", joined), weight))
    model = graph.model(*outputs)
    feeds = {"x": graph.random.normal(size=(2, 3, 12, 18)).astype(np.float32)}
    wanted = plain(model, feeds)
    rules.apply(model, rules.RULES, {node.name or "" for node in model.graph})
    for one, other in zip(wanted, plain(model, feeds), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)
    return ops(model)


def test_all_places_of_a_picture_side_by_side_are_the_picture() -> None:
    assert check(pads=[1] * 4) == ["Conv"]
    assert check([(1, 1), (0, 1), (1, 0), (0, 0)]) == ["Conv"]
    assert check(pads=[1, 0, 2, 1], strides=[2, 1], kernel=(2, 3)) == ["Conv"]
    assert check([(r, c) for c in range(3) for r in range(2)], steps=(2, 3), pads=[1] * 4) == ["Conv"]
    assert check(axes=(-2, -1), ends=(12, 18), axis=-3) == ["Conv"]
    assert check([(1, 0), (0, 0)], steps=(2, 1)) == ["Conv"]


@pytest.mark.parametrize(
    "options",
    [
        {"offsets": WHOLE[:3]},
        {"offsets": [*WHOLE[:3], (0, 0)]},
        {"ends": (10, 18)},
        {"ends": (FAR, 16)},
        {"shape": ("b", 3, "h", 18)},
        {"shape": ("b", 3, 12, "w")},
        {"groups": 3},
        {"dilations": [2, 1], "pads": [2] * 4},
        {"auto_pad": "SAME_UPPER"},
        {"output": True},
        {"shared": True},
        {"axis": 2, "offsets": [(0, 0), (1, 0), (0, 1), (1, 1)], "groups": 4},
    ],
    ids=str,
)
def test_anything_less_stays_as_it_is(options: dict[str, Any]) -> None:
    if options.get("axis") == 2:
        graph = Graph(13)
        x = graph.take("x", ["b", 3, 12, 18])
        cuts = [[graph.constant(np.array(one, np.int64)) for one in (s, (FAR, FAR), (2, 3), (2, 2))] for s in WHOLE]
        joined = graph.op("Concat", *(graph.op("Slice", x, *one) for one in cuts), axis=2)
        model = graph.model(graph.op("Conv", joined, graph.constant(np.ones((2, 3, 3, 3), np.float32))))
        rules.apply(model, rules.RULES, {node.name or "" for node in model.graph})
        assert "Concat" in ops(model)
    else:
        assert "Concat" in check(**options)


def test_a_size_that_the_step_does_not_divide_stays() -> None:
    graph = Graph(13)
    x = graph.take("x", [1, 3, 13, 18])
    starts = [(0, 0), (0, 1)]
    cuts = [[graph.constant(np.array(one, np.int64)) for one in (s, (FAR, FAR), (2, 3), (2, 2))] for s in starts]
    joined = graph.op("Concat", *(graph.op("Slice", x, *one) for one in cuts), axis=1)
    model = graph.model(graph.op("Conv", joined, graph.constant(np.ones((2, 6, 3, 3), np.float32))))
    rules.apply(model, rules.RULES, {node.name or "" for node in model.graph})
    assert ops(model).count("Slice") == 2
