"""Temporary folders: held while they are used, and found when a process was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lepton_cli import scratch

_USE = """
import sys
from lepton_cli import scratch
with scratch.folder() as folder:
    (folder / "weights").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scratch._reclaim.cache_clear()


def age(folder: Path) -> None:
    hour_ago = time.time() - 3600
    os.utime(folder, (hour_ago, hour_ago))


def test_a_folder_lives_as_long_as_it_is_used(tmp_path: Path) -> None:
    with scratch.folder() as one, scratch.folder() as two:
        (one / "a").write_text("")
        assert {one, two} == set(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_one_holds_is_not(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _USE], env={**os.environ, "TMPDIR": str(tmp_path)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    foreign = tmp_path / "lepton-scratch-notes.txt"
    foreign.write_text("")
    age(left)
    with scratch.folder():
        assert (left / "weights").exists(), "held"
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    with scratch.folder():
        assert left.exists(), "looked for once in a process"
    scratch._reclaim.cache_clear()
    with scratch.folder() as new:
        assert set(tmp_path.iterdir()) == {new, foreign}


def test_a_folder_that_may_not_be_locked_yet_stays(tmp_path: Path) -> None:
    new = tmp_path / f"{scratch.PREFIX}new"
    new.mkdir()
    with scratch.folder():
        assert new.exists()
    scratch._reclaim.cache_clear()
    age(new)
    with scratch.folder():
        assert not new.exists()
