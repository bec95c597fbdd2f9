"""`compress --resume`: finished steps are not done again, and what belongs to another run is never used."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lepton_cli.commands import job, runner, workspace
from lepton_cli.commands.compress import Compressed, compress
from lepton_cli.errors import ExitCode, StepError
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict
from lepton_cli.step import Options, Step
from tests.conftest import SAMPLES
from tests.hostile.models import mlp

STEP_LIST: list[dict[str, Any]] = [
    {"step": "simplify", "if_possible": True},
    {"step": "prune.channels", "target": {"params": "60 %"}, "importance": "l1", "recover": []},
    {"step": "quantize.dynamic", "if_possible": True},
]


class Said(Silent):
    """Remembers remarks."""

    def __init__(self) -> None:
        self.remarks: list[str] = []

    def say(self, text: str) -> None:
        self.remarks.append(text)

    def warn(self, text: str) -> None:
        self.remarks.append(text)


class Steps:
    """Counts how often each step runs; one of them can be made to stop the run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.stop_at: str | None = None
        self.stop: BaseException = KeyboardInterrupt()
        apply = Step.apply

        def counted(step: Step, model: Any, options: Options, context: Any) -> Any:
            if options.step == self.stop_at:
                raise self.stop
            self.ran.append(options.step)
            return apply(step, model, options, context)

        monkeypatch.setattr(Step, "apply", counted)


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "model.onnx"
    path.write_bytes(mlp(64).SerializeToString())
    return path


@pytest.fixture(name="steps")
def _steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def _run(model: Path, output: Path, steps: list[dict[str, Any]] = STEP_LIST, **options: Any) -> Compressed:
    seed = options.pop("seed", 0)
    recipe = from_dict(
        {"version": 1, "name": "small", "seed": seed, "steps": steps, "evaluate": {"latency": False, "memory": False}}
    )
    return compress(model, recipe, output, options.pop("progress", Silent()), **options)


def _stopped(model: Path, output: Path, steps: Steps, at: str = "quantize.dynamic") -> None:
    """A run that is interrupted when step `at` begins."""
    steps.stop_at = at
    with pytest.raises(KeyboardInterrupt):
        _run(model, output)
    steps.stop_at = None
    steps.ran.clear()


def test_finished_steps_are_not_done_again(model: Path, tmp_path: Path, steps: Steps) -> None:
    _run(model, tmp_path / "whole")
    _stopped(model, tmp_path / "out", steps)
    partial = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (partial["complete"], partial["status"]) == (False, "interrupted")
    assert [record["step"] for record in partial["steps"]] == ["simplify", "prune.channels"]
    assert not (tmp_path / "out" / "small.onnx").exists()
    said = Said()
    result = _run(model, tmp_path / "out", resume=True, progress=said)
    assert steps.ran == ["quantize.dynamic"]
    assert said.remarks == ["resumed: 2 of 3 steps were done"]
    assert (tmp_path / "out" / "small.onnx").read_bytes() == (tmp_path / "whole" / "small.onnx").read_bytes()
    assert result.report.complete
    assert [record.index for record in result.report.steps] == [0, 1, 2]
    assert result.report.steps[1].decisions
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(tmp_path / "whole"))


def test_only_the_last_finished_step_is_kept(model: Path, tmp_path: Path, steps: Steps) -> None:
    _stopped(model, tmp_path / "out", steps)
    assert sorted(os.listdir(tmp_path / "out" / workspace.RESUME)) == ["step-2.json", "step-2.onnx"]


def test_a_failed_step_can_be_corrected(model: Path, tmp_path: Path, steps: Steps) -> None:
    steps.stop_at, steps.stop = "quantize.dynamic", StepError("step.test", "it failed")
    assert _run(model, tmp_path / "out").error is not None
    assert (tmp_path / "out" / workspace.FAILED).is_dir()
    steps.stop_at = None
    steps.ran.clear()
    corrected = [*STEP_LIST[:2], {"step": "quantize.dynamic", "op_types": ["MatMul", "Gemm"], "if_possible": True}]
    assert _run(model, tmp_path / "out", corrected, resume=True).error is None
    assert steps.ran == ["quantize.dynamic"]
    assert not (tmp_path / "out" / workspace.FAILED).exists()


def test_without_resume_a_run_starts_anew(model: Path, tmp_path: Path, steps: Steps) -> None:
    _stopped(model, tmp_path / "out", steps)
    _run(model, tmp_path / "out")
    assert steps.ran == [step["step"] for step in STEP_LIST]


@pytest.mark.parametrize("other", ["seed", "option", "model"])
def test_what_is_of_another_run_is_not_used(other: str, model: Path, tmp_path: Path, steps: Steps) -> None:
    _stopped(model, tmp_path / "out", steps)
    pruned = {"step": "prune.channels", "target": {"params": "60 %"}, "importance": "l2", "recover": []}
    options: dict[str, Any] = {
        "seed": {"seed": 1},
        "option": {"steps": [STEP_LIST[0], pruned, STEP_LIST[2]]},
        "model": {},
    }[other]
    if other == "model":
        model.write_bytes(mlp(32).SerializeToString())
    said = Said()
    _run(model, tmp_path / "out", resume=True, progress=said, **options)
    assert steps.ran == [step["step"] for step in STEP_LIST]
    assert said.remarks[0].startswith("nothing to resume")


@pytest.mark.parametrize(
    "damage", ["half model", "foreign model", "no record", "half record", "other record", "folder"]
)
def test_what_is_damaged_is_not_used(damage: str, model: Path, tmp_path: Path, steps: Steps) -> None:
    _run(model, tmp_path / "whole")
    _stopped(model, tmp_path / "out", steps)
    kept = tmp_path / "out" / workspace.RESUME / "step-2.onnx"
    record = kept.with_suffix(".json")
    match damage:
        case "half model":
            kept.write_bytes(kept.read_bytes()[: len(kept.read_bytes()) // 2])
        case "foreign model":
            kept.write_bytes(mlp(32).SerializeToString())
        case "no record":
            record.unlink()
        case "half record":
            record.write_text(record.read_text()[:-100])
        case "other record":
            record.write_text('["nothing"]')
        case "folder":
            record.unlink()
            record.mkdir()
    _run(model, tmp_path / "out", resume=True)
    assert steps.ran == [step["step"] for step in STEP_LIST]
    assert (tmp_path / "out" / "small.onnx").read_bytes() == (tmp_path / "whole" / "small.onnx").read_bytes()


def test_a_link_in_place_of_the_folder_is_not_followed(model: Path, tmp_path: Path, steps: Steps) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "step-1.onnx").write_text("mine")
    for resume in (False, True):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / workspace.RESUME).symlink_to(tmp_path / "mine")
        _run(model, tmp_path / "out", resume=resume)
    assert os.listdir(tmp_path / "mine") == ["step-1.onnx"]


def test_a_disk_without_room_costs_only_the_resumption(
    model: Path, tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = io.save

    def full(model: Any, path: Path, **options: Any) -> Any:
        if path.parent.name == workspace.RESUME:
            raise OSError(28, "No space left on device")
        return save(model, path, **options)

    monkeypatch.setattr(io, "save", full)
    said = Said()
    result = _run(model, tmp_path / "out", progress=said)
    assert result.report.complete
    kept = [remark for remark in said.remarks if "--resume" in remark]
    assert kept == ["the result of step 1 cannot be kept for --resume: No space left on device"]
    assert not (tmp_path / "out" / workspace.RESUME).exists()


def test_a_disk_that_fills_up_keeps_what_was_kept_before(
    model: Path, tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in the file of an earlier step may still be read from there."""
    save = io.save

    def full(model: Any, path: Path, **options: Any) -> Any:
        if path.name == "step-2.onnx":
            raise OSError(28, "No space left on device")
        return save(model, path, **options)

    monkeypatch.setattr(io, "save", full)
    said = Said()
    steps.stop_at = "quantize.dynamic"
    with pytest.raises(KeyboardInterrupt):
        _run(model, tmp_path / "out", progress=said)
    assert sorted(os.listdir(tmp_path / "out" / workspace.RESUME)) == ["step-1.json", "step-1.onnx"]
    assert said.remarks[-1] == "1 finished step is kept: the same command with --resume goes on"
    steps.stop_at = None
    steps.ran.clear()
    _run(model, tmp_path / "out", resume=True)
    assert steps.ran == ["prune.channels", "quantize.dynamic"]


def test_what_was_too_large_to_run_is_not_run_when_resumed(
    model: Path, tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "LARGE", 100)
    monkeypatch.setattr(runner, "reference", lambda *_: pytest.fail("the model was run"))
    few = [STEP_LIST[0], {"step": "quantize.weights", "if_possible": True}]
    steps.stop_at = "quantize.weights"
    with pytest.raises(KeyboardInterrupt):
        _run(model, tmp_path / "out", few)
    steps.stop_at = None
    steps.ran.clear()
    _run(model, tmp_path / "out", few, resume=True)
    assert steps.ran == ["quantize.weights"]


RECIPE = """\
version: 1
name: small
data: {calibration: {path: DIGITS, inputs: {pixels: images}, samples: 64, preprocess: {scale: 1/16, shape: [64]}}}
steps:
  - {step: simplify}
  - {step: prune.channels, target: {params: 60 %}, importance: hessian, recover: [least_squares], timed_as: float}
  - {step: quantize.static, calibration: entropy, speed_guard: false}
evaluate: {latency: false, memory: false}
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Killed again and again and resumed each time: in the end the bytes of a run that nobody disturbed."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("DIGITS", str(SAMPLES / "digits_train.npz")))

    def command(output: str) -> list[str]:
        start = [sys.executable, "-m", "lepton_cli", "compress", str(SAMPLES / "digits_mlp.onnx"), "--resume", "-r"]
        return [*start, str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / output)]

    started = time.monotonic()
    done = subprocess.run(command("whole"), capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    assert done.returncode == ExitCode.OK, done.stderr
    random.seed(6)
    resumed = 0
    for number in range(2):
        output = f"out{number}"
        for _ in range(3):
            process = subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            time.sleep(random.uniform(0.3, 1.0) * seconds)
            process.send_signal(signal.SIGKILL)
            resumed += "resumed:" in process.communicate()[1]
        done = subprocess.run(command(output), capture_output=True, text=True, check=False)
        assert done.returncode == ExitCode.OK, done.stderr
        resumed += "resumed:" in done.stderr
        assert (tmp_path / output / "small.onnx").read_bytes() == (tmp_path / "whole" / "small.onnx").read_bytes()
        assert sorted(os.listdir(tmp_path / output)) == sorted(os.listdir(tmp_path / "whole"))
    assert resumed
