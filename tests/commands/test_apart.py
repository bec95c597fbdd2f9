"""What parts of a recipe make is measured beside its result, and costs a run no more than a part of itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import lepton_cli as lepton
from lepton_cli.commands import apart, measuring, resume, runner, workspace
from lepton_cli.commands.apart import Trail
from lepton_cli.commands.compress import compress
from lepton_cli.commands.job import Job, prepare
from lepton_cli.commands.resume import Kept
from lepton_cli.errors import StepError
from lepton_cli.measure.results import Accuracy, Fidelity, LatencyChange, LatencyTable
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict, from_recipe
from lepton_cli.report.model import RECORDS, Report, StepRecord
from lepton_cli.step import Context, Step
from tests.quantize.builders import Graph

IMAGES = lepton.Arrays({"x": np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)})
PRUNE = {"step": "prune.channels", "target": {"macs": "60 %"}, "recover": []}
STATIC = {
    "step": "quantize.static", "target": "x86", "speed_guard": False, "fidelity_guard": False, "equalise": False,
    "rounding": "nearest", "calibration": "minmax", "least_gain": False,
}  # fmt: skip
NAMES = ["after 1. simplify", "after 2. prune.channels", "without prune.channels"]


def net() -> ir.Model:
    """With an Identity for `simplify` to remove."""
    graph = Graph()
    x = graph.op("Relu", graph.conv(graph.op("Identity", graph.take("x", ["n", 3, 8, 8])), 3, 32))
    x = graph.op("Relu", graph.conv(x, 32, 32))
    return graph.model(graph.op("GlobalAveragePool", graph.conv(x, 32, 16)))


def recipe(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "steps": steps, "evaluate": {"latency": {"threads": 1, "time": "0.3 s"}, "memory": False}}


def test_each_step_and_the_rest_without_pruning_are_measured(tmp_path: Path) -> None:
    report = lepton.compress(net(), recipe({"step": "simplify"}, PRUNE, STATIC), IMAGES).report
    assert [one.name for one in report.bought] == NAMES
    assert [one.steps for one in report.bought] == [(0,), (0, 1), (0, 2)]
    simplified, pruned, without = report.bought
    assert simplified.file > pruned.file > report.variants[-1].size.file
    assert without.file > report.variants[-1].size.file
    assert report.latency is not None
    (whole,) = report.latency.changes
    assert whole.variant == "compressed"
    for one in report.bought:
        assert one.latency is not None
        assert (one.latency.variant, one.latency.rounds) == (one.name, whole.rounds), "one comparison"
    assert simplified.fidelity == ()
    assert [close.variant for close in pruned.fidelity] == [pruned.name]
    assert report.accuracy is not None
    assert [close.variant for close in report.accuracy.fidelity] == ["compressed"]
    alone = lepton.compress(net(), recipe({"step": "simplify"}, STATIC), IMAGES).report
    assert alone.accuracy is not None
    assert without.fidelity[0].sqnr_db == alone.accuracy.fidelity[0].sqnr_db, "what a run of its own makes"
    assert [one.name for one in alone.bought] == NAMES[:1]
    assert [variant.name for variant in report.variants] == ["original", "compressed"]


def test_a_single_step_is_all_there_is(tmp_path: Path) -> None:
    report = lepton.compress(net(), recipe({"step": "simplify"}), IMAGES).report
    assert report.bought == ()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    path = tmp_path / "model.onnx"
    io.save(net(), path)
    made = recipe({"step": "simplify"}, PRUNE, {"step": "fuse", "if_possible": True}, STATIC)
    return prepare(path, from_dict(made), arrays={"calibration": IMAGES})


@pytest.fixture
def context(job: Job, tmp_path: Path) -> Context:
    return measuring.context(job, tmp_path, Silent())


def records(*changed: int) -> list[StepRecord]:
    """Of four steps, how much each changed."""
    names = ("simplify", "prune.channels", "fuse", "quantize.static")
    return [
        RECORDS[name](index=index, step=name, changed=count, seconds=1.0, summary="")
        for index, (name, count) in enumerate(zip(names, changed, strict=True))
    ]


def kept(job: Job, context: Context, *indices: int) -> Trail:
    trail = Trail(job, context, Kept(None, job, context))
    for index in indices:
        trail.keep(index, job.loaded.model)
    return trail


def test_steps_that_changed_nothing_and_the_last_are_no_parts(job: Job, context: Context) -> None:
    found = kept(job, context, 0, 1).parts(records(1, 1, 0, 1))
    assert [(one.name, one.steps, one.equal) for one in found] == [
        (NAMES[0], (0,), True), (NAMES[1], (0, 1), False), (NAMES[2], (0, 3), False)
    ]  # fmt: skip
    assert [one.name for one in kept(job, context, 0).parts(records(1, 0, 0, 1))] == NAMES[:1]
    assert kept(job, context).parts(records(0, 0, 0, 1)) == []


@pytest.mark.parametrize("stop_at", ["prune.channels", "quantize.static", "measuring"])
def test_a_resumed_run_says_what_an_undisturbed_one_does(
    stop_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was interrupted."""
    path = tmp_path / "model.onnx"
    io.save(net(), path)
    made = from_dict(recipe({"step": "simplify"}, PRUNE, STATIC))

    def run(output: str, *, resume: bool = False) -> Report:
        return compress(path, made, tmp_path / output, Silent(), arrays={"calibration": IMAGES}, resume=resume).report

    def interrupted(*given: Any, **named: Any) -> Any:
        if stop_at == "measuring" or (isinstance(given[0], Step) and given[2].step == stop_at):
            raise KeyboardInterrupt
        return apply(*given, **named)

    whole, apply = run("whole"), Step.apply
    with monkeypatch.context() as patch:
        patch.setattr(*((measuring, "measure") if stop_at == "measuring" else (Step, "apply")), interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("out")
    resumed = run("out", resume=True)
    for report in (whole, resumed):
        assert [(one.name, one.steps) for one in report.bought] == list(zip(NAMES, [(0,), (0, 1), (0, 2)], strict=True))
        assert all(one.latency is not None for one in report.bought)
    for one, other in zip(whole.bought, resumed.bought, strict=True):
        assert (one.file, one.fidelity) == (other.file, other.fidelity)
    assert not (tmp_path / "out" / workspace.RESUME).exists()


def test_pruning_alone_is_compared_with_nothing(job: Job, context: Context) -> None:
    """Nor before a step that decides about no kernels."""
    assert [one.name for one in kept(job, context, 0, 1).parts(records(1, 1, 1, 0))] == NAMES[:2]


@pytest.mark.parametrize("trains", [True, False])
def test_what_heals_pruning_is_not_trained_again_without_it(
    trains: bool, job: Job, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    run_step = runner.run_step

    def noted(current: Any, options: Any, *rest: Any) -> Any:
        ran.append(options.step)
        return run_step(current, options, *rest)

    monkeypatch.setattr(lepton.Fuse, "training", lepton.Distill() if trains else None)
    monkeypatch.setattr(runner, "run_step", noted)
    assert kept(job, context, 0, 1, 2).parts(records(1, 1, 1, 1))[-1].name == NAMES[2]
    assert ran == (["quantize.static"] if trains else ["fuse", "quantize.static"])


def test_without_a_clean_up_it_begins_with_the_original(job: Job, context: Context) -> None:
    found = kept(job, context, 1).parts(records(0, 1, 0, 1))
    assert [(one.name, one.steps) for one in found] == [(NAMES[1], (1,)), (NAMES[2], (3,))]
    assert any(node.op_type == "QuantizeLinear" for node in found[-1].loaded.model.graph)


def test_what_fails_without_pruning_costs_the_run_nothing(
    job: Job, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object) -> None:
        raise StepError("step.unforeseen", "no")

    trail = kept(job, context, 0, 1)
    monkeypatch.setattr(runner, "run_step", fails)
    assert [one.name for one in trail.parts(records(1, 1, 0, 1))] == NAMES[:2]


def test_large_models_and_those_that_are_not_run_are_not_kept(
    job: Job, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = io.weight_bytes(job.loaded.model)
    for limit, count in ((size, 1), (size - 1, 0)):
        monkeypatch.setattr(resume, "LARGEST", limit)
        assert len(kept(job, context, 0).parts(records(1, 0, 0, 1))) == count
    misfit = dataclasses.replace(job, calibration=None, misfit="no input fits")
    assert kept(misfit, context, 0).parts(records(1, 0, 0, 1)) == []


def test_without_a_latency_nothing_is_made_for_it(job: Job, context: Context) -> None:
    spec = job.spec.model_copy(update={"evaluate": job.spec.evaluate.model_copy(update={"latency": False})})
    untimed = dataclasses.replace(job, recipe=from_recipe(spec))
    assert [one.name for one in kept(untimed, context, 0, 1).parts(records(1, 1, 0, 1))] == NAMES[:2]


def test_a_disk_without_room_costs_the_comparison_alone(job: Job, context: Context) -> None:
    gone = dataclasses.replace(context, workdir=context.workdir / "gone")
    assert kept(job, gone, 0).parts(records(1, 0, 0, 1)) == []


def test_what_was_measured_is_told_apart_by_name() -> None:
    def close(name: str) -> Fidelity:
        return Fidelity(output="y", agreement=None, agreement_low=None, agreement_high=None, sqnr_db=9.0,
                        max_abs_error=1.0, n=1, variant=name)  # fmt: skip

    def change(name: str) -> LatencyChange:
        return LatencyChange(provider="cpu", batch=1, threads=1, original=1.0, compressed=1.0, ratio=1.0, low=1.0,
                             high=1.0, pairs=1, variant=name)  # fmt: skip

    names = ("compressed", "part")
    accuracy = Accuracy(values={"original": (), **dict.fromkeys(names, ())}, fidelity=tuple(map(close, names)))
    table = LatencyTable(changes=tuple(map(change, names)))
    wanted = {"original": 1, "compressed": 2}
    assert list(apart.only(accuracy, wanted).values) == ["original", "compressed"]
    assert [one.variant for one in apart.only(accuracy, wanted).fidelity] == ["compressed"]
    assert [one.variant for one in apart.only_timed(table, wanted).changes] == ["compressed"]
