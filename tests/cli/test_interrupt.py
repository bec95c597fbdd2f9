"""Ctrl-C and SIGTERM while measuring: what is known is kept, said to be partial, and the command ends in 130."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepton_cli import interrupt
from lepton_cli.measure import accuracy, meters
from lepton_cli.timing import compare
from tests.cli.small import data, model, recipe
from tests.conftest import Invoke


@pytest.fixture(name="pair")
def _pair(tmp_path: Path) -> tuple[Path, Path]:
    data(tmp_path / "data.npz")
    recipe(tmp_path / "recipe.yaml")
    return model(tmp_path / "a.onnx"), model(tmp_path / "b.onnx", noise=0.3)


def stop_after(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, count: int) -> None:
    """The call after `count` others is Ctrl-C."""
    real: Callable[..., Any] = getattr(target, name)
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > count:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(target, name, counted)


def test_compare_keeps_accuracy_and_the_rounds_so_far(
    invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, compare, "_round", 3)
    found = invoke("compare", *pair, "-r", "recipe.yaml", "-o", "out", "--set", "evaluate.latency.time=20s")
    assert found.exit_code == 130, found.output
    assert found.stdout.splitlines()[0].startswith("INTERRUPTED, partial results")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["status"], report["complete"]) == ("interrupted", False)
    assert report["accuracy"]["changes"][0]["n"] == 60
    assert report["latency"]["results"][0]["n"] > 0
    assert report["gates"] == []
    assert "INTERRUPTED" in (tmp_path / "out" / "report.html").read_text()
    refused = invoke("gate", "out/report.json", "--budget", "recipe.yaml")
    assert refused.exit_code == 2


def test_too_few_rounds_are_no_numbers(
    invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, compare, "_round", 2)
    assert invoke("compare", *pair, "-r", "recipe.yaml", "-o", "out").exit_code == 130
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["latency"] is None
    assert report["accuracy"]["changes"]


def test_compress_keeps_what_was_measured(
    invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, compare, "_round", 3)
    found = invoke("compress", pair[0], "-r", "recipe.yaml", "-o", "out", "--set", "evaluate.latency.time=20s")
    assert found.exit_code == 130, found.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["status"] == "interrupted"
    assert [one["name"] for one in report["variants"]] == ["original", "compressed"]
    assert report["accuracy"]["changes"]


def test_bench_keeps_finished_batch_sizes(
    invoke: Invoke, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, compare, "_round", 25)
    options = ("--batch", "1,2,3,4,5,6,7,8,9", "--time", "50 ms", "--threads", "1", "--json")
    found = invoke("bench", *pair, *options)
    assert found.exit_code == 130, found.output
    report = json.loads(found.stdout)
    assert report["complete"] is False
    assert report["headline"].startswith("INTERRUPTED, partial: ")
    assert 1 <= len({row["batch"] for row in report["latency"]["results"]}) < 9


def test_evaluate_says_on_how_many_samples(
    invoke: Invoke, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = accuracy.stream.run

    def cut(*arguments: Any, **options: Any) -> Any:
        for index, results in enumerate(real(*arguments, **options)):
            if options.get("limit") is None and index:
                raise KeyboardInterrupt
            yield results

    monkeypatch.setattr(accuracy.stream, "run", cut)
    (Path.cwd() / "recipe.yaml").write_text(
        (Path.cwd() / "recipe.yaml").read_text().replace("labels: labels}", "labels: labels, batch: 20}")
    )
    found = invoke("evaluate", pair[0], "-r", "recipe.yaml", "--json")
    assert found.exit_code == 130, found.output
    report = json.loads(found.stdout)
    count = report["accuracy"]["values"]["original"][0]["n"]
    assert 0 < count < 60
    assert f"first {count} of 60 samples" in report["warnings"][0]


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    done: list[bool] = []

    def work() -> None:
        with interrupt.later():
            signal.raise_signal(signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done


def test_energy_that_is_stopped_leaves_the_rest(
    invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(meters, "of", stopped)
    assert invoke("compare", *pair, "-r", "recipe.yaml", "-o", "out").exit_code == 130
    assert json.loads((tmp_path / "out" / "report.json").read_text())["latency"]["results"]


def test_sigterm_of_a_real_process(pair: tuple[Path, Path], tmp_path: Path) -> None:
    command = ["compare", *map(str, pair), "-r", "recipe.yaml", "-o", "out", "--set", "evaluate.latency.time=60s"]
    precise = ["--set", "evaluate.latency.precision=0.0001%"]
    environment = {**os.environ, "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "lepton_cli", *command, *precise],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stderr is not None
    while "latency" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(1)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.startswith("INTERRUPTED")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["accuracy"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_turns_into_an_error_of_its_own(
    number: signal.Signals, invoke: Invoke, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pydantic does while it builds a schema."""

    def build(*arguments: object, **options: object) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            raise ValueError("Error building validator: KeyboardInterrupt:") from error

    monkeypatch.setattr("lepton_cli.model.io.load", build)
    found = invoke("inspect", pair[0])
    assert (found.exit_code, found.stdout, found.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_meets_an_import_waits_for_its_end(
    number: signal.Signals, invoke: Invoke, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled modules end the process (nanobind: SIGABRT) when an exception meets them while they are loaded."""
    module = tmp_path / "loaded_slowly.py"
    module.write_text(
        f"import signal, time\nsignal.raise_signal({int(number)})\ntime.sleep(0.1)\nsignal.loaded = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(signal, "loaded", False, raising=False)

    def load(*arguments: object, **options: object) -> None:
        importlib.import_module("loaded_slowly")
        time.sleep(60)

    monkeypatch.setattr("lepton_cli.model.io.load", load)
    sys.modules.pop("loaded_slowly", None)
    started = time.monotonic()
    found = invoke("inspect", pair[0])
    assert (found.exit_code, found.stderr) == (130, "interrupted\n")
    assert signal.loaded  # type: ignore[attr-defined]
    assert time.monotonic() - started < 50, "and not for that of what follows it"
