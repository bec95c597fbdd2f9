"""Signals, full disks and bad folders: the old result or the new one complete, never half; nothing left behind."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from lepton_cli.errors import ExitCode
from lepton_cli.model import io
from tests.conftest import Lepton
from tests.hostile.models import mlp

RECIPE = """\
version: 1
name: small
steps: [{step: simplify, if_possible: true}, {step: quantize.dynamic, if_possible: true}]
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model and a recipe in a folder of their own."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "recipe.yaml").write_text(RECIPE)
    path = tmp_path / "in" / "model.onnx"
    path.write_bytes(mlp(64).SerializeToString())
    return path


def _command(model: Path, output: Path) -> list[str]:
    recipe = model.parent / "recipe.yaml"
    return [sys.executable, "-m", "lepton_cli", "compress", str(model), "-r", str(recipe), "-o", str(output)]


def _whole_or_absent(output: Path) -> None:
    """Every model in the folder can be loaded; a report beside a model is complete JSON."""
    for path in output.glob("*.onnx") if output.exists() else ():
        onnx.checker.check_model(io.to_bytes(io.load(path).model))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_at_random_moments(number: signal.Signals, model: Path, tmp_path: Path, lepton: Lepton) -> None:
    output, content = tmp_path / "out", model.read_bytes()
    assert lepton("compress", model, "-r", model.parent / "recipe.yaml", "-o", output).returncode == ExitCode.OK
    random.seed(int(number))
    for _ in range(8):
        process = subprocess.Popen(
            _command(model, output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        time.sleep(random.uniform(0.3, 4.0))
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        # A signal that comes before the program has taken it over, or after its end, has the usual effect.
        assert process.returncode in (0, ExitCode.INTERRUPTED, -number), stderr
        _whole_or_absent(output)
        assert (output / "small.onnx").exists()
        assert model.read_bytes() == content
    done = lepton("compress", model, "-r", model.parent / "recipe.yaml", "-o", output)
    assert done.returncode == ExitCode.OK, done.stderr
    left = [name for name in os.listdir(output) if name.startswith(".lepton") or name.endswith(".tmp")]
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2_000, 20_000, 100_000])
def test_full_disk(limit: int, model: Path, tmp_path: Path) -> None:
    """No file may grow beyond `limit` bytes, as on a full disk: an error, and the old result stays whole."""
    output = tmp_path / "out"

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        _command(model, output), capture_output=True, text=True, preexec_fn=full, timeout=120, check=False
    )
    assert done.returncode in (ExitCode.OK, ExitCode.CANNOT_START, ExitCode.FAILED)
    assert "Traceback" not in done.stderr
    _whole_or_absent(output)


@pytest.mark.slow
def test_little_memory(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    def poor() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))

    done = subprocess.run(
        _command(model, output), capture_output=True, text=True, preexec_fn=poor, timeout=120, check=False
    )
    assert done.returncode != ExitCode.GATE_FAILED
    _whole_or_absent(output)


@pytest.mark.slow
def test_another_file_system(model: Path, lepton: Lepton) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == model.stat().st_dev:
        pytest.skip("there is no second file system")
    output = shared / f"lepton-test-{os.getpid()}"
    try:
        done = lepton("compress", model, "-r", model.parent / "recipe.yaml", "-o", output)
        assert done.returncode == ExitCode.OK, done.stderr
        _whole_or_absent(output)
    finally:
        subprocess.run(["rm", "-r", str(output)], check=True)


def test_a_failed_save_keeps_the_old_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result.onnx"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        io.save(io.load(model).model, target)
    assert target.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["in", "result.onnx"]


@pytest.mark.slow
def test_two_processes_into_one_folder(model: Path, tmp_path: Path) -> None:
    """One of them does its job; the other one says so, or comes late enough to do it again."""
    runs = [
        subprocess.Popen(
            _command(model, tmp_path / "out"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ends = [(run.communicate(timeout=120)[1], run.returncode) for run in runs]
    assert ExitCode.OK in [code for _, code in ends]
    for said, code in ends:
        assert code == ExitCode.OK or (code == ExitCode.CANNOT_START and "error[output.in-use]" in said), said
    _whole_or_absent(tmp_path / "out")
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".lepton")]


#: Root without the right to pass over file permissions; other users have none.
_ORDINARY = ["setpriv", "--inh-caps=-dac_override,-dac_read_search", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["read-only parent", "read-only result", "unreadable model"])
def test_without_permission(where: str, model: Path, tmp_path: Path) -> None:
    """One message and exit code 2, and all files stay as they were."""
    prefix = _ORDINARY if os.geteuid() == 0 else []
    if prefix and (shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], check=False).returncode):
        pytest.skip("root may do everything here, and setpriv cannot change that")
    output = tmp_path / "closed" / "out"
    output.mkdir(parents=True)
    if where == "read-only parent":
        output.rmdir()
        output.parent.chmod(0o500)
    elif where == "read-only result":
        (output / "report.json").write_text("{}")
        output.chmod(0o500)
    else:
        model.chmod(0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    try:
        done = subprocess.run(
            [*prefix, *_command(model, output)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == ExitCode.CANNOT_START, done.stderr
        assert sum(line.lower().startswith("error") for line in done.stderr.splitlines()) == 1
        assert "Traceback" not in done.stderr
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    finally:
        output.parent.chmod(0o700)
