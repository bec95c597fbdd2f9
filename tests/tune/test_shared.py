"""Trials in an Optuna storage: what is missing is named; machines and processes share trials and claims."""

from __future__ import annotations

import builtins
import importlib.util
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lepton_cli.errors import MissingExtraError, OutputError
from lepton_cli.tune import shared
from tests.conftest import ROOT
from tests.tune.builders import trial

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs the extra `tune`")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> object:
        if name == "optuna" and level == 0:
            raise ImportError(name)
        return real(name, globals, locals, fromlist or (), level)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError) as found:
        shared.SharedStore("study.log", "s", tmp_path)
    assert "lepton-cli[tune]" in (found.value.hint or "")


@needs_optuna
def test_machines_share_trials_and_claims(tmp_path: Path) -> None:
    first, second = (shared.SharedStore("study.log", "s", tmp_path) for _ in range(2))
    first.add(trial("a"))
    assert second.trials() == [trial("a")]
    with first.claim("k") as mine, second.claim("k") as other:
        assert mine
        assert not other
    with second.claim("k") as now:
        assert now


@needs_optuna
def test_trials_are_of_one_search_and_come_oldest_first(tmp_path: Path) -> None:
    first, other = (shared.SharedStore("study.log", search, tmp_path) for search in ("s", "t"))
    for name in ("b", "a"):
        first.add(trial(name))
    with first.claim("k"), other.claim("k") as mine:
        assert mine
    assert [one.name for one in first.trials()] == ["b", "a"]
    assert other.trials() == []


@needs_optuna
def test_what_a_lost_machine_held_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (shared.SharedStore("study.log", "s", tmp_path) for _ in range(2))
    with first.claim("k"):
        with second.claim("k") as early:
            assert not early
        monkeypatch.setattr(shared.SharedStore, "STALE", 0.0)
        with second.claim("k") as late:
            assert late


@needs_optuna
def test_a_storage_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for storage in ("folder", "nosuch://x"):
        with pytest.raises(OutputError) as found:
            shared.SharedStore(storage, "s", tmp_path)
        assert found.value.code == "tune.storage"
        assert found.value.cause


@needs_optuna
@pytest.mark.parametrize("storage", ["study.log", "sqlite:///{folder}/study.db"])
def test_a_storage_of_another_version_is_refused(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage.format(folder=tmp_path)
    monkeypatch.setattr(shared, "__version__", "0.0.9")
    shared.SharedStore(storage, "old", tmp_path).add(trial("a"))
    monkeypatch.undo()
    with pytest.raises(OutputError) as found:
        shared.SharedStore(storage, "new", tmp_path)
    assert found.value.code == "tune.storage-version"
    assert "0.0.9" in found.value.message


_PROCESS = """
import sys
from pathlib import Path
from lepton_cli.tune.shared import SharedStore
from tests.tune.builders import trial
store, done = SharedStore(sys.argv[1], "s", Path(sys.argv[2])), 0
for number in range(3):
    with store.claim(str(number)) as mine:
        if mine and str(number) not in {one.name for one in store.trials()}:
            store.add(trial(str(number)))
            done += 1
print(done)
"""


@needs_optuna
@pytest.mark.parametrize("storage", ["study.log", "sqlite:///{folder}/study.db"])
def test_two_processes_share_one_storage(storage: str, tmp_path: Path) -> None:
    """As two machines do: every candidate is taken by one of them, and both see all trials."""
    storage = storage.format(folder=tmp_path)
    store = shared.SharedStore(storage, "s", tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", _PROCESS, storage, str(tmp_path)]
    two = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    done = [int(process.communicate(timeout=120)[0]) for process in two]
    assert sorted({one.name for one in store.trials()}) == list("012")
    assert sum(done) >= 3
