"""Readers that leave, streams that the shell closes, full disks below them: a command ends as it would have."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_cli.cli import streams
from lepton_cli.errors import ExitCode
from tests.cli.small import data, model, recipe

pytestmark = pytest.mark.skipif(os.name != "posix", reason="these are shell redirections")

COMPRESS = "compress m.onnx -r recipe.yaml -o out --json"
#: Commands with the code they end in; `bogus` is Typer's error, `--help` its output.
COMMANDS = {
    COMPRESS: ExitCode.GATE_FAILED,
    "compress missing.onnx --json": ExitCode.CANNOT_START,
    "inspect m.onnx": ExitCode.OK,
    "plan m.onnx -r recipe.yaml": ExitCode.OK,
    "evaluate m.onnx -r recipe.yaml": ExitCode.OK,
    "compare m.onnx m.onnx --time 50ms": ExitCode.OK,
    "bench m.onnx --time 50ms": ExitCode.OK,
    "gate m.onnx --budget budget.yaml": ExitCode.GATE_FAILED,
    "init m.onnx": ExitCode.OK,
    "doctor --noise 0": ExitCode.OK,
    "steps": ExitCode.OK,
    "schema": ExitCode.OK,
    "compress --help": ExitCode.OK,
    "--version": ExitCode.OK,
    "bogus": ExitCode.CANNOT_START,
}


def _run(folder: Path, command: str, redirection: str) -> subprocess.CompletedProcess[str]:
    """`lepton COMMAND` in a shell, in a folder with a model, data, a recipe and a budget that fails."""
    data(folder / "data.npz")
    gates = "gates: [{metric: size.file, max: 1 B}]\n"
    recipe(folder / "recipe.yaml", gates=gates)
    (folder / "budget.yaml").write_text("version: 1\n" + gates)
    model(folder / "m.onnx")
    line = f"{shlex.quote(sys.executable)} -W ignore -m lepton_cli {command} {redirection}"
    path = os.pathsep.join([str(Path(streams.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "NO_COLOR": "1", "PYTHONPATH": path}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def _some(quick: str) -> list[object]:
    """All commands; without --slow only one."""
    return [pytest.param(name, marks=() if name == quick else pytest.mark.slow) for name in COMMANDS]


@pytest.mark.parametrize("command", _some(COMPRESS))
@pytest.mark.parametrize("redirection", ["2>&-", "2> >(exec true)"], ids=["closed", "gone"])
def test_narration_without_reader(command: str, redirection: str, tmp_path: Path) -> None:
    done = _run(tmp_path, command, redirection)
    assert done.returncode == COMMANDS[command]
    assert done.stdout or command == "bogus"
    if command == COMPRESS:
        assert json.loads(done.stdout)["status"] == "gate_failed"


@pytest.mark.parametrize("command", _some("inspect m.onnx"))
@pytest.mark.parametrize("redirection", [">&-", "| true; exit ${PIPESTATUS[0]}"], ids=["closed", "gone"])
def test_result_without_reader(command: str, redirection: str, tmp_path: Path) -> None:
    done = _run(tmp_path, command, redirection)
    assert done.returncode == COMMANDS[command]
    for word in ("Traceback", "Exception ignored", "Broken pipe", "error[internal]"):
        assert word not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["inspect m.onnx --json", "--version"])
def test_result_that_cannot_be_written(command: str, tmp_path: Path) -> None:
    done = _run(tmp_path, command, "> /dev/full")
    assert done.returncode == ExitCode.FAILED
    assert done.stderr.splitlines() == [
        "error[output.stdout]: the result cannot be written to standard output",
        "  cause: No space left on device",
    ]


def test_a_closed_stream_is_not_the_next_file(tmp_path: Path) -> None:
    """Nothing that libraries print on the number of the closed stream gets into a file of ours."""
    code = (
        "import os\nfrom lepton_cli.cli import streams\nstreams.protect()\n"
        "with open('result', 'w') as file:\n    os.write(2, b'noise')\n    assert file.fileno() > 2\n"
    )
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} 2>&-"
    environment = {**os.environ, "PYTHONPATH": str(Path(streams.__file__).parents[2])}
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=False).returncode == 0
    assert (tmp_path / "result").read_text() == ""


class _Broken(io.RawIOBase):
    """Takes some writes and then fails."""

    def __init__(self, error: OSError) -> None:
        self.error, self.writes = error, 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.writes += 1
        raise self.error


def test_a_lost_result_is_said_once() -> None:
    broken = _Broken(OSError(5, "Input/output error"))
    stream = streams._lasting(io.TextIOWrapper(io.BufferedWriter(broken), encoding="utf-8"), narration=False)
    stream.write("result")
    with pytest.raises(streams.LostResultError) as caught:
        stream.flush()
    assert caught.value.cause == "Input/output error"
    stream.write("more")
    stream.flush()
    assert broken.writes == 1


@pytest.mark.parametrize("narration", [True, False])
def test_a_reader_that_left_is_not_written_to_again(narration: bool) -> None:
    broken = _Broken(BrokenPipeError(32, "Broken pipe"))
    stream = streams._lasting(io.TextIOWrapper(io.BufferedWriter(broken), encoding="utf-8"), narration=narration)
    for _ in range(3):
        stream.write("text")
        stream.flush()
    assert broken.writes == 1


def test_characters_that_cannot_be_shown() -> None:
    kept = io.BytesIO()
    stream = streams._lasting(io.TextIOWrapper(kept, encoding="ascii"), narration=False)
    stream.write("1 µs")
    stream.flush()
    assert kept.getvalue() == b"1 ?s"
