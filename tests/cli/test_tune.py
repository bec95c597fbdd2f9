"""`lepton tune` as a command: exit codes, lines, JSON, signals, several processes in one folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from lepton_cli.cli.tune_view import LiveView, View
from lepton_cli.recipe.tuning import Objective
from tests.conftest import Lepton
from tests.tune import builders

SECTION = (
    "{{limits: [{{metric: size.file, {limit}}}], maximize: accuracy.top1, budget: {{time: 60 s, trials: {trials}}}}}"
)

#: Each can be held alone.
LOST = "max: 900 B}, {metric: accuracy.top1, max_drop: 10 pp"


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    builders.data(tmp_path / "data.npz", builders.network(tmp_path / "net.onnx"))
    return tmp_path


def write(folder: Path, limit: str = "max_ratio: 0.4", trials: int = 4) -> Path:
    return builders.recipe(folder / "tune.yaml", SECTION.format(limit=limit, trials=trials))


def test_a_line_per_trial_and_a_result(folder: Path, lepton: Lepton) -> None:
    done = lepton("tune", "net.onnx", "-r", write(folder))
    assert done.returncode == 0, done.stderr
    assert "searching for" in done.stderr
    assert sum(line.strip().startswith(("1  ", "2  ", "3  ", "4  ")) for line in done.stderr.splitlines()) == 4
    assert "search: 4 trials" in done.stdout
    assert "recipe.best.yaml" in done.stdout


def test_unmet_limits_end_in_one(folder: Path, lepton: Lepton) -> None:
    done = lepton("tune", "net.onnx", "-r", write(folder, LOST, trials=2), "--json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["status"] == "gate_failed"
    assert any("no candidate meets the limits" in warning for warning in report["warnings"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--set", "tune.budget.time=1ms"), "tune.budget-too-small"),
        (("--set", "tune.space.precision=[float]", "--set", "tune.space.keep=[100 %]"), "tune.space-empty"),
        (("--set", "tune.minimise=1"), "recipe.unknown-key"),
        (("--from", "missing.json"), "report.missing"),
    ],
)
def test_what_cannot_start_ends_in_two(folder: Path, lepton: Lepton, arguments: tuple[str, ...], code: str) -> None:
    done = lepton("tune", "net.onnx", "-r", write(folder), *arguments)
    assert done.returncode == 2, done.stderr
    assert f"error[{code}]" in done.stderr


def _start(folder: Path, recipe: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "lepton_cli", "tune", "net.onnx", "-r", str(recipe)]
    return subprocess.Popen(
        command,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "NO_COLOR": "1"},
    )


def test_ctrl_c_ends_with_a_report(folder: Path) -> None:
    process = _start(folder, write(folder, trials=500))
    journal = folder / "out" / ".lepton-tune" / "journal.jsonl"
    end = time.monotonic() + 90
    while time.monotonic() < end and not (journal.exists() and len(journal.read_bytes().splitlines()) > 4):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "INTERRUPTED" in out
    assert json.loads((folder / "out" / "report.json").read_text())["status"] == "interrupted"
    assert (folder / "out" / "net.onnx").exists()


def test_two_processes_share_one_search(folder: Path) -> None:
    recipe = write(folder, trials=6)
    processes = [_start(folder, recipe) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    lines = (folder / "out" / ".lepton-tune" / "journal.jsonl").read_text().splitlines()
    trials = [entry["trial"] for entry in map(json.loads, lines) if "trial" in entry]
    keys = [trial["key"] for trial in trials if trial.get("steps")]
    assert len(set(keys)) == len(keys)
    assert 6 <= len(keys) <= 8


def test_the_live_view_draws_front_and_best() -> None:
    console = Console(width=100, record=True, force_terminal=True)
    view = LiveView(console)
    judge = builders.judge(builders.gate("accuracy.top1", max_drop="0.5 pp"))
    view.start(judge, (Objective(metric="latency.median"), Objective(metric="accuracy.top1")), 60.0, None)
    trials = [builders.trial("fast"), builders.trial("bad", reached="proxy", reason="too wrong", latency=None)]
    view.end(trials[1], trials, trials[0])
    view.begin("next one")
    console.print(view._picture())
    text = console.export_text()
    for words in ("2 trials", "best: fast", "2.00x as fast", "too wrong", "now: next one"):
        assert words in text


def test_lines_name_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    view = View(Console(width=200))
    judge = builders.judge()
    view.start(judge, (Objective(metric="size.file"), Objective(metric="accuracy.top1")), 60.0, 5)
    one = builders.trial("small")
    view.end(one, [one], one)
    printed = capsys.readouterr().out
    assert "or 5 trials" in printed
    assert "best" in printed
    assert "500 B" in printed
