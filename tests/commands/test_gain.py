"""Fewer bits that make a model neither smaller nor faster leave it as it was, and say so."""

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
from lepton_cli.quantize.spec import QuantizeStatic
from lepton_cli.recipe.load import from_dict
from lepton_cli.report.model import StepRecord
from lepton_cli.step import Decision, Outcome, Step
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context

QUICK = {"speed_guard": False, "fidelity_guard": False, "equalise": False, "rounding": "nearest"}
STATIC = {"step": "quantize.static", "target": "x86-vnni", **QUICK}
STORED = {"step": "quantize.weights", "bits": 8, "fidelity_guard": False}
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
    assert record.left_because == f"its result is {share:.1%} larger"
    assert record.warnings == (f"left the model as it was: {record.left_because} (`least_gain: false` insists)",)
    assert record.changed == 0 < other.changed
    assert other.left_because == ""
    assert [(one.action, one.reason) for one in record.decisions] == [
        ("kept", f"tried as {one.action} ({one.reason}), not applied: the step as a whole gained nothing")
        for one in other.decisions
    ]
    assert {one.action for one in other.decisions} == {"quantized"}
    assert record.details == other.details != type(other.details)()


def test_what_was_left_alone_anyway_and_what_gives_no_reason_are_told_as_they_are(tmp_path: Path) -> None:
    model = net(4)
    first = next(node.name or "" for node in model.graph if node.op_type == "Conv")
    _, record = step(model, tmp_path, **STATIC, exclude=[first])
    reasons = {one.node: one.reason for one in record.decisions}
    assert record.left_because
    assert not reasons[first].startswith("tried")
    made = Outcome(model, 1, (Decision(node="a", op="Conv", action="rounded", reason=""),))
    (told,) = runner._left_as_it_was(model, made, "why").decisions
    assert told.reason == "tried as rounded, not applied: the step as a whole gained nothing"


@pytest.mark.parametrize("least", ["5 %", "70 %", "80 %"])
def test_what_a_result_must_save_is_the_recipes(least: str, tmp_path: Path) -> None:
    model = net(64)
    made, record = step(model, tmp_path, **STORED, least_gain=least)
    insisted, _ = step(model, tmp_path, **STORED, least_gain=False)
    saved = 1 - size(insisted) / size(model)
    assert 0.05 < saved < 0.8
    assert (made is model) == bool(record.left_because) == (saved < float(least.split()[0]) / 100)


def test_what_is_for_speed_and_was_not_timed_must_only_be_smaller(tmp_path: Path) -> None:
    _, record = step(net(64), tmp_path, **STATIC, least_gain="99 %")
    assert (record.left_because, record.changed > 0) == ("", True)


@pytest.mark.parametrize(("speedup", "kept"), [(None, True), (1.049, True), (1.05, False), (3.0, False)])
def test_speed_is_a_gain_too(
    speedup: float | None, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, record = timed(net(4), speedup, "speed" if speedup else "balance", tmp_path, monkeypatch)
    assert (made is None) == kept
    assert (f"{speedup:.2f}x as fast" if speedup and kept else "") in record.left_because


def timed(
    model: ir.Model, speedup: float | None, prefer: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ir.Model | None, StepRecord]:
    """`quantize.static` that measured this speed; no model where it left the given one."""
    apply = Step.apply
    monkeypatch.setattr(Step, "apply", lambda *given: dataclasses.replace(apply(*given), speedup=speedup))
    here = context(IMAGES, folder)
    options = QuantizeStatic.model_validate(STATIC).model_copy(update={"prefer": prefer})
    made, record = runner.run_step(runner.reference(model, here), options, 0, here, None)
    return (None if made.model is model else made.model), record


@pytest.mark.parametrize("width", [4, 64])
@pytest.mark.parametrize(("more", "kept"), [(0.98, True), (1.02, False)])
def test_in_balance_a_gain_outweighs_the_loss_beside_it(
    width: int, more: float, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is 1.4 times as large must be more than 1.4 times as fast, one of a third no slower than a third."""
    insisted, _ = step(net(width), tmp_path, **STATIC, least_gain=False)
    ratio = size(insisted) / size(net(width))
    assert ratio > 1.05 if width == 4 else ratio < 0.95
    made, record = timed(net(width), ratio * more, "balance", tmp_path, monkeypatch)
    assert (made is None) == kept
    assert ("one does not outweigh the other" in record.left_because) == kept


@pytest.mark.parametrize(
    ("width", "speedup", "prefer", "kept"),
    [
        (64, 0.8, "balance", False),
        (64, 0.8, "size", False),
        (64, 0.8, "speed", True),
        (64, 1.05, "speed", False),
        (64, None, "speed", False),
        (4, 2.0, "balance", True),
        (4, 4.0, "balance", False),
        (4, 2.0, "speed", False),
        (4, 2.0, "size", True),
        (4, None, "size", True),
    ],
)
def test_only_what_is_preferred_counts(
    width: int, speedup: float | None, prefer: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 channels: much smaller in int8; 4 channels: larger."""
    made, record = timed(net(width), speedup, prefer, tmp_path, monkeypatch)
    assert (made is None) == kept == bool(record.left_because)


def test_a_size_is_known_of_any_machine(tmp_path: Path) -> None:
    _, record = step(net(4), tmp_path, **{**STATIC, "target": "tensorrt", "prefer": "size"})
    assert "larger" in record.left_because


def test_of_another_machine_no_speed_is_known(tmp_path: Path) -> None:
    _, record = step(net(4), tmp_path, **{**STATIC, "target": "tensorrt"})
    assert record.left_because == ""


def test_pruning_has_a_target_of_its_own(tmp_path: Path) -> None:
    _, record = step(net(16), tmp_path, step="prune.weights", sparsity="2 %", importance="l1")
    assert (record.left_because, record.changed > 0) == ("", True)


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
