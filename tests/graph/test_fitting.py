"""Sizes that a layer far behind the inputs fixes: onnxruntime runs what was made up, at the size of a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest

from lepton_cli.graph import feeds, fitting
from lepton_cli.graph.fitting import root
from tests.graph.test_feeds import N, build, runs, weight


def picture(*tail: Any, shape: Any = ("batch", 3, "h", "w"), **held: Any) -> ir.Model:
    """A convolution with stride 2 and a pool, each of which halves, then `tail` from `p` with 4 channels to `y`."""
    nodes = [
        N("Conv", ["x", "k"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        N("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        *tail,
    ]
    return build(nodes, {"x": list(shape)}, ["y"], k=weight(4, 3, 3, 3), **held)


def arrives(side: int) -> int:
    return ((side - 1) // 2 + 1) // 2


def test_a_flattened_picture_is_as_large_as_the_layer_behind_it_reads() -> None:
    nodes = [N("Flatten", ["p"], ["f"]), N("Gemm", ["f", "w"], ["y"])]
    (_, _, height, width) = runs(picture(*nodes, w=weight(4 * 7 * 7, 5)))["x"]
    assert arrives(height) == arrives(width) == 7


def test_one_side_is_told_where_the_other_is_fixed() -> None:
    nodes = [N("Flatten", ["p"], ["f"]), N("Gemm", ["f", "w"], ["y"])]
    (_, _, height, width) = runs(picture(*nodes, shape=("batch", 3, 40, "w"), w=weight(4 * 10 * 3, 5)))["x"]
    assert (height, arrives(width)) == (40, 3)


def test_rows_before_an_open_size_are_those_that_stay() -> None:
    """Sound as madmom's models read it: `[time, bands]`, a convolution over both, `[-1, channels * bands]`."""
    nodes = [
        N("Unsqueeze", ["x", "front"], ["u"]),
        N("Conv", ["u", "k"], ["c"]),
        N("Squeeze", ["c", "first"], ["s"]),
        N("Transpose", ["s"], ["t"], perm=[1, 0, 2]),
        N("Reshape", ["t", "flat"], ["r"]),
        N("MatMul", ["r", "w"], ["y"]),
    ]
    held = {"front": [0, 1], "first": [0], "flat": [-1, 5 * 101]}
    model = build(nodes, {"x": ["time", "bands"]}, ["y"], k=weight(5, 1, 3, 3), w=weight(505, 4), **held)
    assert runs(model) == {"x": (512, 103)}


def test_an_axis_that_is_taken_out_has_one_place() -> None:
    """Text recognition: the height shrinks to one row, the width is free."""
    nodes = [N("AveragePool", ["p"], ["a"], kernel_shape=[3, 1], strides=[3, 1]), N("Squeeze", ["a", "two"], ["y"])]
    (_, _, height, width) = runs(picture(*nodes, two=[2]))["x"]
    assert (arrives(height) // 3, width) == (1, 224)


def test_sequences_whose_length_was_traced() -> None:
    """As torch writes `[time, batch, directions, size]` to `[7, -1, directions * size]`."""
    nodes = [
        N("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        N("LSTM", ["t", "w", "r"], ["o"], hidden_size=4, direction="bidirectional"),
        N("Transpose", ["o"], ["q"], perm=[0, 2, 1, 3]),
        N("Reshape", ["q", "flat"], ["y"]),
    ]
    model = build(nodes, {"x": ["batch", "time", 6]}, ["y"], w=weight(2, 16, 6), r=weight(2, 16, 4), flat=[7, -1, 8])
    assert runs(model) == {"x": (2, 7, 6)}


def test_all_elements_of_a_fixed_shape() -> None:
    model = picture(N("Reshape", ["p", "whole"], ["y"]), shape=(1, 3, "h", "w"), whole=[1, 4, 36])
    assert [arrives(side) for side in runs(model, batch=1)["x"][2:]] == [6, 6]


def test_what_was_halved_often_meets_what_was_not() -> None:
    """Five halvings, each doubled again and joined with what it came from: a length of 8 is too short."""
    nodes, at = [], "x"
    for level in range(5):
        nodes.append(N("MaxPool", [at], [f"d{level}"], kernel_shape=[2], strides=[2]))
        at = f"d{level}"
    for level in range(5)[::-1]:
        beside = f"d{level - 1}" if level else "x"
        nodes += [N("ConvTranspose", [at, "k" if at == "d4" else "k2"], [f"u{level}"], strides=[2])]
        nodes += [N("Concat", [f"u{level}", beside], [f"j{level}"], axis=1)]
        at = f"j{level}"
    model = build(nodes, {"x": ["batch", 2, "time"]}, [at], k=weight(2, 2, 2), k2=weight(4, 2, 2))
    (_, _, length) = runs(model)["x"]
    assert length % 32 == 0


def test_inputs_that_meet_behind_a_pool() -> None:
    nodes = [N("MaxPool", ["a"], ["p"], kernel_shape=[2], strides=[2]), N("Add", ["p", "b"], ["y"])]
    found = runs(build(nodes, {"a": ["batch", 2, "s"], "b": ["batch", 2, "t"]}, ["y"]))
    assert found["a"][2] // 2 == found["b"][2]


@pytest.mark.parametrize("opset", [18, 21])
def test_normalised_groups_tell_channels_and_keep_shapes(opset: int) -> None:
    scale = weight(2 if opset == 18 else 6)
    nodes = [N("GroupNormalization", ["x", "s", "s"], ["n"], num_groups=2), N("Conv", ["n", "k"], ["y"])]
    assert runs(build(nodes, {"x": ["batch", "c", "l"]}, ["y"], opset, s=scale, k=weight(3, 6, 3)))["x"] == (2, 6, 8)


def test_what_no_size_mends_stays_and_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """An even number of elements is never 7 x 11; one look more than there are names, and no endless search."""
    looks: list[Any] = []
    settle = fitting.settle
    monkeypatch.setattr(fitting, "settle", lambda *given: looks.append(given) or settle(*given))
    model = picture(N("Reshape", ["p", "whole"], ["y"]), shape=(1, 3, "h", "w"), whole=[77])
    assert feeds.sized(model)[0].shape == (1, 3, 224, 224)
    assert len(looks) < 80
    looks.clear()
    monkeypatch.setattr(fitting, "_EFFORT", 20)
    assert feeds.sized(model)[0].shape == (1, 3, 224, 224)
    assert len(looks) < 12


@pytest.mark.parametrize(
    ("excess", "start", "holds"),
    [
        (lambda n: 24 * n - 2520, 512, lambda n: n == 105),
        (lambda n: n // 16 // 3 - 1, 224, lambda n: n // 48 == 1),
        (lambda n: (n // 4) ** 2 - 49, 224, lambda n: n // 4 == 7),
        (lambda n: 30 - n // 5, 4, lambda n: n // 5 == 30),
        (lambda n: (n**3 - 8000) if n > 9 else None, 300, lambda n: n == 20),
    ],
)
def test_roots(excess: Callable[[int], int | None], start: int, holds: Callable[[int], bool]) -> None:
    asked: list[int] = []

    def noted(size: int) -> int | None:
        asked.append(size)
        return excess(size)

    size = root(noted, start)
    assert size is not None
    assert holds(size)
    assert min(asked) > 0
    assert len(set(asked)) == len(asked) < 24


@pytest.mark.parametrize("excess", [lambda n: 2 * n - 77, lambda n: 5, lambda n: None, lambda n: n + 1])
def test_no_root(excess: Callable[[int], int | None]) -> None:
    asked: list[int] = []
    assert root(lambda size: asked.append(size) or excess(size), 64) is None
    assert len(asked) <= 24


def test_a_window_is_measured_with_padding_and_gaps() -> None:
    """The shortest that a kernel of 5 with gaps of 3 slides over is 13, of which 4 are padding."""
    nodes = [N("Conv", ["x", "k"], ["y"], dilations=[3], pads=[1, 3])]
    model = build(nodes, {"x": ["batch", 2, "time"]}, ["y"], k=weight(3, 2, 5))
    assert runs(model)["x"] == (2, 2, 32)
    nodes = [N("Conv", ["x", "k"], ["y"], dilations=[2], pads=[1, 0])]
    assert runs(build(nodes, {"x": ["batch", 2, "time"]}, ["y"], k=weight(3, 2, 5)))["x"] == (2, 2, 8)
