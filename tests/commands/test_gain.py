"""A step whose result is neither smaller nor faster than its input leaves the model as it was, and says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lepton_cli as lepton
from lepton_cli.commands import runner
from lepton_cli.commands.plan import plan
from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict
from lepton_cli.report.model import StepRecord
from lepton_cli.step import Outcome, Step
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context

QUICK = {"speed_guard": False, "fidelity_guard": False, "equalise": False, "rounding": "nearest"}
STATIC = {"step": "quantize.static", "target": "x86-vnni", **QUICK}
IMAGES = Arrays({"x": np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)})


def net(width: int) -> ir.Model:
    """Three small convolutions, whose scales and zero points take more than the 3 bytes saved by each weight."""
    graph = Graph()
    x = graph.conv(graph.take("x", ["n", 3, 8, 8]), 3, width)
    return graph.model(graph.conv(graph.conv(x, width, width, 1), width, 4, 1))


def step(model: ir.Model, folder: Path, **options: object) -> tuple[ir.Model, StepRecord]:
    here = context(IMAGES, folder)
    chosen = STEPS[str(options["step"])].options.model_validate(options)
    after, record = runner.run_step(runner.reference(model, here), chosen, 0, here, None)
    return after.model, record


def size(model: ir.Model) -> int:
    return len(io.to_bytes(model))


def test_a_file_that_grows_is_not_written(tmp_path: Path) -> None:
    model = net(4)
    kept, record = step(model, tmp_path, **STATIC)
    insisted, other = step(model, tmp_path, **STATIC, least_gain=False)
    assert kept is model
    share = size(insisted) / size(model) - 1
    assert share > 0
    assert record.left_because == f"its result is {share:.1%} larger: less than the 5% that a loss should buy"
    assert record.warnings == (f"left the model as it was: {record.left_because} (`least_gain: false` insists)",)
    assert record.changed == 0 < other.changed
    assert {one.action for one in record.decisions} == {"kept"}
    assert other.left_because == ""


@pytest.mark.parametrize("least", ["5 %", "70 %", "80 %"])
def test_what_a_result_must_save_is_the_recipes(least: str, tmp_path: Path) -> None:
    model = net(64)
    made, record = step(model, tmp_path, **STATIC, least_gain=least)
    insisted, _ = step(model, tmp_path, **STATIC, least_gain=False)
    saved = 1 - size(insisted) / size(model)
    assert (made is model) == bool(record.left_because) == (saved < float(least.split()[0]) / 100)


@pytest.mark.parametrize(("speedup", "kept"), [(None, True), (1.049, True), (1.05, False), (3.0, False)])
def test_speed_is_a_gain_too(
    speedup: float | None, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = Step.apply
    monkeypatch.setattr(Step, "apply", lambda *given: dataclasses.replace(apply(*given), speedup=speedup))
    model = net(4)
    made, record = step(model, tmp_path, **STATIC)
    assert (made is model) == kept
    assert (f"{speedup:.2f}x as fast" if speedup and kept else "") in record.left_because


def test_of_another_machine_no_speed_is_known(tmp_path: Path) -> None:
    _, record = step(net(4), tmp_path, **{**STATIC, "target": "tensorrt"})
    assert record.left_because == ""


@pytest.mark.parametrize(("sparsity", "kept"), [("2 %", True), ("50 %", False)])
def test_zeros_are_what_pruned_weights_gain(sparsity: str, kept: bool, tmp_path: Path) -> None:
    model = net(16)
    made, record = step(model, tmp_path, step="prune.weights", sparsity=sparsity, importance="l1")
    assert (made is model) == kept == ("fewer parameters" in record.left_because)


def test_less_to_compute_is_what_pruned_channels_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A net most of whose bytes are no weights of a layer: with one channel less, it is as large as before."""
    graph = Graph()
    image = graph.take("x", ["n", 3, 8, 8])
    y = graph.linear(graph.op("Flatten", graph.op("GlobalAveragePool", graph.conv(image, 3, 16))), 16, 4)
    shown = graph.op("Add", graph.op("ReduceSum", image, keepdims=0), graph.constant(np.ones(20000, np.float32)))
    model, narrow = graph.model(y, shown), io.clone(graph.model(y, shown))
    for name, axis in (("w0", 0), ("w1", 0), ("w3", 1)):  # w2 is the bias of the last layer
        value = narrow.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().take(range(15), axis), name=name)
    for node in narrow.graph:
        if not node.outputs[0].is_graph_output():
            node.outputs[0].shape = node.outputs[0].type = None
    saved = 1 - size(narrow) / size(model)
    assert saved < 0.01, "one of 16 channels: 6 % of the MACs"
    monkeypatch.setattr(Step, "apply", lambda *_: Outcome(narrow, 1))
    made, record = step(model, tmp_path, step="prune.channels", target={"macs": "60 %"}, least_gain="5.9 %")
    assert made is narrow
    assert record.left_because == ""


def test_a_plan_promises_no_more(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(net(4)), path)
    steps = ({**STATIC, "if_possible": True}, {"step": "quantize.weights", "bits": 8, "if_possible": True})
    found = plan(path, from_dict({"version": 1, "steps": steps}), Silent())
    done = lepton.apply(path, *(STEPS[one["step"]].options.model_validate(one) for one in steps), data=IMAGES)
    assert [one.changed for one in found.steps] == [one.changed for one in done.steps]
    assert bool(found.steps[0].left_because)
    assert found.sizes[0] == found.sizes[1]
    unsure = plan(path, from_dict({"version": 1, "steps": [{**STATIC, "speed_guard": True}]}), Silent())
    assert any("leaves the model as it was unless this makes it faster" in one for one in unsure.warnings)
