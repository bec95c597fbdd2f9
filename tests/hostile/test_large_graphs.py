"""Deep and wide graphs: every command and the whole pipeline, without recursion and in linear time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

from lepton_cli.commands.compress import compress
from lepton_cli.commands.inspect import inspect
from lepton_cli.commands.plan import plan
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict
from tests.hostile.models import FLOAT, model, tensor, weights

RECIPE = {
    "version": 1,
    "name": "all",
    "steps": [
        {"step": "simplify"},
        {"step": "prune.channels", "target": {"params": "70 %"}, "if_possible": True},
        {"step": "quantize.dynamic", "if_possible": True},
    ],
    "evaluate": {"latency": False, "memory": False},
}


def chain(nodes: int) -> onnx.ModelProto:
    """Relu and Neg in turn."""
    made = [
        helper.make_node("Relu" if i % 2 else "Neg", [f"t{i}" if i else "x"], [f"t{i + 1}" if i < nodes - 1 else "y"])
        for i in range(nodes)
    ]
    return model(made, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, ["n", 8])})


def layers(nodes: int) -> onnx.ModelProto:
    """MatMul and Relu in turn, each with weights of its own."""
    made, held = [], []
    for i in range(nodes // 2):
        last = i == nodes // 2 - 1
        made.append(helper.make_node("MatMul", [f"r{i}" if i else "x", f"w{i}"], [f"t{i}"]))
        made.append(helper.make_node("Relu", [f"t{i}"], ["y" if last else f"r{i + 1}"]))
        held.append(tensor(f"w{i}", weights(8, 8, seed=i)))
    return model(made, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, ["n", 8])}, held)


def branches(nodes: int) -> onnx.ModelProto:
    """Small networks side by side, summed."""
    made, held, count = [], [], nodes // 3
    for i in range(count):
        made.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"a{i}"]))
        made.append(helper.make_node("Relu", [f"a{i}"], [f"b{i}"]))
        made.append(helper.make_node("MatMul", [f"b{i}", f"v{i}"], [f"c{i}"]))
        held += [tensor(f"w{i}", weights(8, 8, seed=i)), tensor(f"v{i}", weights(8, 8, seed=-1 - i & 0xFFFF))]
    made.append(helper.make_node("Sum", [f"c{i}" for i in range(count)], ["y"]))
    return model(made, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, ["n", 8])}, held)


@pytest.mark.parametrize("make", [chain, layers, branches])
def test_the_whole_pipeline(make: Callable[[int], onnx.ModelProto], tmp_path: Path) -> None:
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(make(300).SerializeToString())
    assert len(inspect(path)["nodes"]) >= 300
    recipe = from_dict(RECIPE)
    assert len(plan(path, recipe, Silent()).steps) == 3
    result = compress(path, recipe, tmp_path / "out", Silent())
    assert result.error is None
    assert not [warning for warning in result.report.warnings if "left out" in warning]
    io.load(tmp_path / "out" / "all.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("make", "nodes"), [(chain, 3_000), (layers, 3_000), (branches, 10_000)])
def test_looking_takes_linear_time(
    make: Callable[[int], onnx.ModelProto], nodes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No time is asserted; what it took is printed."""
    path = tmp_path / "model.onnx"
    path.write_bytes(make(nodes).SerializeToString())
    for what, look in (("inspect", inspect), ("plan", lambda p: plan(p, from_dict(RECIPE), Silent()))):
        started = time.monotonic()
        look(path)
        with capsys.disabled():
            print(f"\n{make.__name__} of {nodes} nodes: {what} {time.monotonic() - started:.1f} s")
