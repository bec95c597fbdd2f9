"""A full disk is one message that says so and where, with exit code 3, or 2 where nothing has begun."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import lepton_cli as lepton
from lepton_cli.commands import workspace
from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DiskFullError, ExitCode, LeptonError, ModelError, OutputError, StepError, disk_full
from lepton_cli.measure import memory
from lepton_cli.model import io
from lepton_cli.quantize import profiling
from lepton_cli.report import store
from lepton_cli.runtime import Session
from lepton_cli.step import Context, Options, Outcome, Step
from tests.cli import small
from tests.conftest import Invoke
from tests.quantize.builders import context

NO_ROOM = "No space left on device"


def full(*names: str) -> OSError:
    return OSError(errno.ENOSPC, NO_ROOM, *names)


def _wrapped(outer: Exception, inner: Exception, *, cause: bool = True) -> Exception:
    """`outer`, raised from `inner` or while it was handled."""
    try:
        try:
            raise inner
        except Exception as error:
            if cause:
                raise outer from error
            raise outer  # noqa: B904
    except Exception as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        full(),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : write failed: {NO_ROOM}"),
        ModelError("model.runtime", "onnxruntime cannot load the model", cause=f"write failed: {NO_ROOM}"),
        OSError("262144 requested and 100 written"),
        OSError("Not enough free space to write 262144 bytes"),
        _wrapped(StepError("quantize.writer", "cannot write"), full()),
        _wrapped(RuntimeError("third"), _wrapped(ValueError("second"), full(), cause=False)),
    ],
    ids=repr,
)
def test_full_disks_are_found_behind_other_errors(error: Exception, tmp_path: Path) -> None:
    found = disk_full(error, tmp_path)
    assert found is not None
    assert (found.code, found.where, found.exit_code) == ("disk.full", str(tmp_path), ExitCode.FAILED)
    assert "B are free in" in (found.cause or "")
    assert "TMPDIR" in (found.hint or "")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied", "file"),
        OSError("cannot identify image file"),
        OSError(errno.EMFILE, "Too many open files"),
        ValueError("space"),
        _wrapped(RuntimeError("second"), OSError(errno.EIO, "Input/output error")),
    ],
    ids=repr,
)
def test_other_errors_are_no_full_disks(error: Exception, tmp_path: Path) -> None:
    assert disk_full(error, tmp_path) is None


def test_the_file_that_the_system_names_is_named(tmp_path: Path) -> None:
    found = disk_full(full(str(tmp_path / "missing" / "file")), "/")
    assert found is not None
    assert found.where == str(tmp_path / "missing" / "file")


@pytest.fixture(name="job")
def _job(tmp_path: Path) -> Path:
    """A model with data and a recipe in `tmp_path`."""
    small.data(tmp_path / "data.npz")
    small.recipe(tmp_path / "recipe.yaml")
    return small.model(tmp_path / "m.onnx")


def _raising(error: Exception) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


COMPRESS = ("compress", "m.onnx", "-r", "recipe.yaml", "-o", "out")


@pytest.mark.parametrize(
    "error", [full(), _wrapped(StepError("step.unforeseen", "cannot write"), full())], ids=["plain", "wrapped"]
)
def test_inside_a_step(
    error: Exception, invoke: Invoke, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a defect of lepton nor, in a step that only cleans up, something to leave out."""
    monkeypatch.setattr(Step, "apply", _raising(error))
    result = invoke(*COMPRESS)
    assert result.exit_code == ExitCode.FAILED
    assert result.stderr.count("error[") == 1
    assert "error[disk.full]: the disk is full" in result.stderr
    assert "defect" not in result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["status"], report["complete"], report["error"]["code"]) == ("failed", False, "disk.full")


def test_while_measuring(invoke: Invoke, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the steps did and what was measured is kept."""
    small.recipe(tmp_path / "recipe.yaml")
    monkeypatch.setattr(memory, "measure", _raising(full()))
    result = invoke(*COMPRESS, "--set", "evaluate.memory=true")
    assert result.exit_code == ExitCode.FAILED
    assert "error[disk.full]" in result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["accuracy"]["values"]
    assert [step["step"] for step in report["steps"]] == ["simplify"]


def test_without_room_for_the_report(
    invoke: Invoke, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Still one message."""
    monkeypatch.setattr(Step, "apply", _raising(full()))
    monkeypatch.setattr(Path, "write_text", _raising(full()))
    result = invoke(*COMPRESS)
    assert result.exit_code == ExitCode.FAILED
    assert result.stderr.count("error[disk.full]") == 1
    assert not list((tmp_path / "out").glob("*"))


def test_before_anything_has_begun(invoke: Invoke, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_reclaim", _raising(full()))
    result = invoke(*COMPRESS)
    assert result.exit_code == ExitCode.CANNOT_START
    assert "error[disk.full]" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_report_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", _raising(full()))
    with pytest.raises(DiskFullError):
        store.write_text("text", tmp_path / "report.json")
    monkeypatch.setattr(Path, "write_text", _raising(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OutputError, match="cannot write"):
        store.write_text("text", tmp_path / "report.json")


def test_another_failure_in_the_folder_is_not_of_the_folder(tmp_path: Path) -> None:
    """What fails while the folder is in use says itself what it is."""
    error = OSError(errno.EMFILE, "Too many open files", "elsewhere")
    with pytest.raises(OSError, match="elsewhere") as caught, workspace.use(tmp_path / "out"):
        raise error
    assert caught.value is error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error", [full(), _wrapped(StepError("quantize.writer", "cannot write"), full())], ids=["plain", "wrapped"]
)
def test_in_a_temporary_folder(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DiskFullError) as caught, workspace.temporary():
        raise error
    assert (caught.value.where, caught.value.__cause__) == (str(tmp_path), error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [DiskFullError("/"), OSError(errno.EMFILE, "Too many open files"), KeyboardInterrupt()], ids=repr
)
def test_what_is_said_in_a_temporary_folder_stays(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, workspace.temporary():
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "code"),
    [(full(), "disk.full"), (FileNotFoundError(errno.ENOENT, "No usable temporary directory found"), "output.write")],
    ids=["full", "none"],
)
def test_without_a_temporary_folder(error: OSError, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", _raising(error))
    with pytest.raises(LeptonError) as caught, workspace.temporary():
        raise AssertionError
    assert (caught.value.code, caught.value.exit_code) == (code, ExitCode.CANNOT_START)
    assert "TMPDIR" in (caught.value.hint or "")


def test_from_python(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "load", _raising(full()))
    with pytest.raises(DiskFullError):
        lepton.bench(job)


@pytest.mark.parametrize("command", [("inspect", "m.onnx"), COMPRESS], ids=lambda command: command[0])
def test_other_failures_say_what_they_are(
    command: tuple[str, ...], invoke: Invoke, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "load", _raising(OSError(errno.EMFILE, "Too many open files", "m.onnx")))
    result = invoke(*command)
    assert result.exit_code == ExitCode.FAILED
    assert "Too many open files" in result.stderr
    assert "--> m.onnx" in result.stderr
    for word in ("disk", "defect", "free space"):
        assert word not in result.stderr


def test_other_failures_of_a_step_say_what_they_are(invoke: Invoke, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Step, "apply", _raising(OSError(errno.EMFILE, "Too many open files", "some.file")))
    result = invoke(*COMPRESS)
    assert result.exit_code == ExitCode.FAILED
    assert "`simplify` could not be done: Too many open files" in result.stderr
    assert "--> some.file" in result.stderr
    assert "defect" not in result.stderr


@pytest.fixture(name="disk")
def _disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no disk can be mounted: {error}")
    if done.returncode:
        pytest.skip(f"no disk can be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _fill(folder: Path, left: int) -> None:
    """Leave so many bytes."""
    status = os.statvfs(folder)
    (folder / "filler").write_bytes(b"x" * (status.f_bavail * status.f_frsize - left))


def test_a_real_disk_below_the_result(invoke: Invoke, job: Path, disk: Path) -> None:
    """There is room for the model and not for the report: the message, and nothing half-written."""
    (disk / "out").mkdir()
    _fill(disk, 24_576)
    result = invoke(*COMPRESS[:-1], disk / "out")
    assert result.exit_code == ExitCode.FAILED, result.stderr
    assert result.stderr.count("error[disk.full]") == 1
    left = [name for name in os.listdir(disk / "out") if name != workspace.RESUME]
    assert not [name for name in left if name.endswith(".tmp") or name.startswith(".lepton")]


@pytest.mark.parametrize("engine", ["write", "numpy"])
def test_a_real_disk_below_a_step(
    engine: str, invoke: Invoke, job: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that writes more than the temporary folder holds."""

    def apply(self: Step, model: ir.Model, params: Options, context: Context) -> Outcome:
        with tempfile.TemporaryFile() as stream:
            if engine == "numpy":
                np.ones(500_000, np.uint8).tofile(stream)
            else:
                stream.write(b"x" * 500_000)
        raise AssertionError

    monkeypatch.setattr(Step, "apply", apply)
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    result = invoke(*COMPRESS)
    assert result.exit_code == ExitCode.FAILED
    assert "error[disk.full]" in result.stderr
    assert f"--> {disk}" in result.stderr
    assert (job.parent / "out" / "report.json").exists()


def test_onnxruntime_does_not_say_that_it_had_no_room(job: Path, disk: Path, tmp_path: Path) -> None:
    """It calls the graph invalid, and leaves half of a profile."""
    _fill(disk, 0)
    with pytest.raises(OSError, match=NO_ROOM):
        Session(job.read_bytes(), threads=1, optimised_path=disk / "optimised.onnx")
    model = io.load(job).model
    feeds = {"x": np.ones((1, small.FEATURES), np.float32)}
    where = dataclasses.replace(context(Arrays({"x": feeds["x"]}), tmp_path), workdir=disk)
    with pytest.raises(OSError, match=NO_ROOM):
        profiling.profile(model, feeds, where)


def test_trials_do_not_learn_from_a_full_disk(tmp_path: Path) -> None:
    """Other errors are remembered as a candidate that fails."""
    from lepton_cli.commands.trials import Laboratory
    from lepton_cli.tune.candidate import Candidate
    from lepton_cli.tune.journal import Quiet

    lab = object.__new__(Laboratory)
    lab.quiet, lab.scratch = Quiet(tmp_path), tmp_path
    (tmp_path / "locks").mkdir()
    candidate = Candidate("one", (), {}, "grid")
    lab.build = _raising(LeptonError("x", "wrong"))  # type: ignore[method-assign]
    assert lab.measure(candidate).reached == "failed"
    lab.build = _raising(_wrapped(StepError("x", "wrong"), full()))  # type: ignore[method-assign]
    with pytest.raises(DiskFullError):
        lab.measure(candidate)
