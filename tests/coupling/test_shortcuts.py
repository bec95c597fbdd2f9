"""Thinned and padded shortcuts as convolutions give the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lepton_cli.coupling import known_shapes, shortcuts
from lepton_cli.graph.feeds import default_feeds
from lepton_cli.model import io
from tests.coupling.networks import Network, run


def network(
    *,
    step: int = 2,
    start: int = 0,
    end: int = 2**63 - 1,
    pads: tuple[int, ...] = (0, 2, 0, 0, 0, 2, 0, 0),
    fill: float = 0.0,
) -> ir.Model:
    n = Network()
    x = n.node("Relu", n.conv(n.input("x", "batch", 3, "other", 8), 3, 4))
    rows = n.node("Slice", x, n.literal(start), n.literal(end), n.literal(2), n.literal(step))
    both = n.node("Slice", rows, n.literal(0), n.literal(8), n.literal(3), n.literal(step))
    short = n.node("Pad", both, n.literal(*pads), n.weight(values=np.array(fill, np.float32)))
    alone = step == 1 or start
    return n.model(short if alone else n.node("Relu", n.node("Add", short, n.conv(x, 4, 8, stride=2))))


def rewritten(model: ir.Model) -> tuple[ir.Model, ir.Model, list[str]]:
    before, facts = known_shapes.prepare(model, default_feeds(model, 2, 8))
    after = io.clone(before)
    return before, after, shortcuts.as_convolutions(after, facts, [node.name or "" for node in after.graph])


@pytest.mark.parametrize(("start", "left"), [(0, set()), (-8, {"Slice"})])
def test_same_numbers_at_every_size(start: int, left: set[str]) -> None:
    before, after, made = rewritten(network(start=start))
    assert made == ["Pad_4"]
    assert {"Slice", "Pad"} & {node.op_type for node in after.graph} == left
    onnx.checker.check_model(ir.to_proto(after))
    for batch, other in ((2, 8), (1, 7), (3, 10)):
        for one, two in zip(run(before, batch, other), run(after, batch, other), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"step": 1},
        {"fill": 1.0},
        {"pads": (0, 2, 1, 0, 0, 2, -1, 0)},
    ],
)
def test_anything_else_is_left_alone(options: dict[str, object]) -> None:
    _, after, made = rewritten(network(**options))  # type: ignore[arg-type]
    assert not made
    assert "Pad" in [node.op_type for node in after.graph]


def looked_at(axes: list[int], *, pads: tuple[int, ...], start: int = 0, mode: str = "constant") -> ir.Model:
    n = Network()
    x = n.conv(n.input("x", "batch", 3, 16, 16), 3, 8)
    for axis in axes:
        x = n.node("Slice", x, n.literal(start), n.literal(2**63 - 1), n.literal(axis), n.literal(2))
    return n.model(n.node("Pad", x, n.literal(*pads), mode=mode))


WIDER = (0, 4, 0, 0, 0, 4, 0, 0)


@pytest.mark.parametrize("axes", [[2, 3], [2], [-2, -1]])
def test_inference_alone_is_enough(axes: list[int]) -> None:
    before = looked_at(axes, pads=WIDER)
    after = io.clone(before)
    made = shortcuts.as_convolutions(after, shortcuts.facts(after), [node.name or "" for node in after.graph])
    assert len(made) == 1
    assert [node.op_type for node in after.graph] == ["Conv", "Conv"]
    for one, two in zip(run(before, 2, 16), run(after, 2, 16), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "model",
    [
        looked_at([2, 3], pads=WIDER, start=1),
        looked_at([1], pads=WIDER),
        looked_at([2, 3], pads=WIDER, mode="edge"),
        looked_at([], pads=WIDER),
        looked_at([2, 3], pads=(0, 400, 0, 0, 0, 400, 0, 0)),
    ],
    ids=["starts late", "drops channels", "repeats the edge", "no stride", "too wide"],
)
def test_other_chains_stay(model: ir.Model) -> None:
    assert not shortcuts.as_convolutions(model, shortcuts.facts(model), [node.name or "" for node in model.graph])


def test_chains_left_out_stay() -> None:
    model = looked_at([2, 3], pads=WIDER)
    chosen = [node.name or "" for node in model.graph if node.op_type != "Slice"]
    assert not shortcuts.as_convolutions(model, shortcuts.facts(model), chosen)
