"""Whose the output folder is, and what happens to leftovers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lepton_cli.commands import workspace
from lepton_cli.errors import ExitCode, OutputError


def _refused(folder: Path, model: Path) -> OutputError:
    with pytest.raises(OutputError) as caught:
        workspace.check(folder, model)
    assert caught.value.exit_code == ExitCode.CANNOT_START
    return caught.value


def test_new_and_empty_folders_are_fine(tmp_path: Path) -> None:
    model = tmp_path / "in" / "model.onnx"
    workspace.check(tmp_path / "a" / "b", model)
    (tmp_path / "empty").mkdir()
    workspace.check(tmp_path / "empty", model)
    assert sorted(os.listdir(tmp_path)) == ["empty"]


def test_files_and_foreign_content_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "in" / "model.onnx"
    file = tmp_path / "file"
    file.write_text("mine")
    assert _refused(file, model).code == "output.not-a-folder"
    assert _refused(file / "below", model).code == "output.not-a-folder"
    assert _refused(tmp_path, model).code == "output.not-empty"
    assert file.read_text() == "mine"


def test_the_folder_of_the_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert _refused(tmp_path, tmp_path / "model.onnx").code == "output.is-input-folder"


def test_symlink_loops_are_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    _refused(loop, tmp_path / "in" / "model.onnx")
    (tmp_path / "out").mkdir()
    workspace.check(tmp_path / "out", loop)


def test_an_earlier_result_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "y.onnx").write_bytes(b"model " + workspace.PROVENANCE.encode())
    workspace.check(tmp_path, tmp_path / "in" / "model.onnx")
    (tmp_path / "x.onnx").write_bytes(b"somebody's model")
    assert "x.onnx" in _refused(tmp_path, tmp_path / "in" / "model.onnx").message


def test_scratch_is_removed_and_leftovers_reclaimed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / ".lepton-killed").mkdir(parents=True)
    (folder / ".lepton-killed" / "half.onnx").write_bytes(b"x")
    (folder / ".small.onnx.123.tmp").write_bytes(b"x")
    with workspace.use(folder) as scratch:
        assert scratch.is_dir()
        assert {entry.name for entry in folder.iterdir()} == {scratch.name, workspace.LOCK}
        (folder / "result").write_text("kept")
    assert os.listdir(folder) == ["result"]


def test_a_folder_that_stayed_empty_goes_again(tmp_path: Path) -> None:
    with workspace.use(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


def test_two_runs_into_one_folder(tmp_path: Path) -> None:
    with workspace.use(tmp_path / "out") as scratch:
        with pytest.raises(OutputError) as caught, workspace.use(tmp_path / "out"):
            pass
        assert caught.value.code == "output.in-use"
        assert scratch.is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert _refused(tmp_path / "out", tmp_path / "in" / "model.onnx").code == "output.not-writable"
    finally:
        tmp_path.chmod(0o700)
