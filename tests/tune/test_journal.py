"""The journal survives kills, and its locks end with their process."""

from __future__ import annotations

import json
import multiprocessing
import threading
from pathlib import Path

import pytest

from lepton_cli.errors import OutputError
from lepton_cli.tune.journal import HEADER, Journal, Quiet, lock, work_folder
from lepton_cli.version import __version__
from tests.tune.builders import trial


def test_trials_come_back_as_they_were(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "s")
    journal.add(trial("a"))
    journal.add(trial("b", reason="too slow"))
    assert [t.name for t in journal.trials()] == ["a", "b"]
    assert Journal(tmp_path, "s").trials() == [trial("a"), trial("b", reason="too slow")]


def test_other_searches_are_left_alone(tmp_path: Path) -> None:
    Journal(tmp_path, "one").add(trial("a"))
    assert Journal(tmp_path, "other").trials() == []


def test_a_torn_line_costs_one_trial(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "s")
    journal.add(trial("a"))
    with journal.path.open("ab") as stream:
        stream.write(b'{"search": "s", "trial": {"key": "to')
    again = Journal(tmp_path, "s")
    assert [t.name for t in again.trials()] == ["a"]
    again.add(trial("b"))
    assert [t.name for t in again.trials()] == ["a", "b"]
    assert [t.name for t in journal.trials()] == ["a", "b"]
    assert again.skipped == 1


@pytest.mark.parametrize("first", [json.dumps({"lepton-tune": "0.0.0"}), "{}", "not json", "[1]"])
def test_another_versions_journal_is_refused(tmp_path: Path, first: str) -> None:
    (tmp_path / "journal.jsonl").write_text(first + "\n")
    with pytest.raises(OutputError) as found:
        Journal(tmp_path, "s")
    assert found.value.code == "tune.storage-version"
    assert __version__ in (found.value.cause or "")


def test_a_claim_is_held_by_one(tmp_path: Path) -> None:
    first, second = Journal(tmp_path, "s"), Journal(tmp_path, "s")
    with first.claim("k") as mine:
        assert mine
        with second.claim("k") as other:
            assert not other
        with second.claim("else") as free:
            assert free
    with second.claim("k") as now:
        assert now


def _hold(folder: str, ready: object) -> None:
    with Journal(Path(folder), "s").claim("k"):
        ready.set()  # type: ignore[attr-defined]
        threading.Event().wait()


def test_a_killed_process_holds_no_claim(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path), ready))
    process.start()
    try:
        assert ready.wait(60)
        with Journal(tmp_path, "s").claim("k") as mine:
            assert not mine
    finally:
        process.kill()
        process.join()
    with Journal(tmp_path, "s").claim("k") as mine:
        assert mine


def test_measuring_excludes_working(tmp_path: Path) -> None:
    quiet = Quiet(tmp_path)
    (tmp_path / "locks").mkdir()
    room = tmp_path / "locks" / "room"
    with quiet.working(), lock(room, wait=False, shared=True) as another_worker, lock(room, wait=False) as measurer:
        assert another_worker
        assert not measurer
    with quiet.measuring(), lock(room, wait=False, shared=True) as worker:
        assert not worker


def test_folders_of_killed_processes_are_reclaimed(tmp_path: Path) -> None:
    (tmp_path / "work-old").mkdir()
    (tmp_path / "work-old" / "candidate.onnx").write_text("left")
    with work_folder(tmp_path) as one:
        assert not (tmp_path / "work-old").exists()
        with work_folder(tmp_path) as two:
            assert one != two
            assert one.exists()
            assert two.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"locks"}
    assert not list((tmp_path / "locks").iterdir())


def test_a_file_that_another_process_has_just_created_is_no_foreign_one(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").touch()
    assert Journal(tmp_path, "s").trials() == []
    assert json.loads((tmp_path / "journal.jsonl").read_text()) == HEADER
