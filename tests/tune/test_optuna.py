"""Optuna is optional: asked for and missing it is named; where it is, it proposes points and shares trials."""

from __future__ import annotations

import builtins
import importlib.util
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lepton_cli.errors import MissingExtraError, OutputError
from lepton_cli.recipe.tuning import Space
from lepton_cli.tune import optuna as shared
from lepton_cli.tune.bench import Bench
from lepton_cli.tune.search import Search
from lepton_cli.tune.space import derive
from tests.conftest import ROOT
from tests.tune.builders import judge, trial
from tests.tune.test_search import LIMIT, measured
from tests.tune.test_space import CNN

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
    monkeypatch.setattr(shared, "_installed", lambda: False)
    space = derive(Space(), CNN)
    assert shared.proposer(space, judge(LIMIT), 0, required=False) is None
    for ask in (
        lambda: shared.proposer(space, judge(LIMIT), 0, required=True),
        lambda: shared.SharedStore("study.log", "s", tmp_path),
    ):
        with pytest.raises(MissingExtraError) as found:
            ask()
        assert "lepton-cli[tune]" in (found.value.hint or "")


@needs_optuna
def test_optuna_proposes_points_of_the_space(tmp_path: Path) -> None:
    one, space = judge(LIMIT), derive(Space(), CNN)
    store = shared.SharedStore("study.log", "s", tmp_path)
    found = Bench(store, one, "s", lambda candidate: measured(candidate, one), 1000.0, 40, "cpu")
    Search(space, found, [], 0).sampled(shared.proposer(space, one, 0, required=True))
    assert len(found.trials()) == 40
    assert one.best(found.trials()) is not None


@needs_optuna
def test_optuna_is_told_of_its_own_space_alone() -> None:
    one = judge(LIMIT)
    other, space = (derive(Space.model_validate({"keep": keep}), CNN) for keep in (("50 %",), ("60 %",)))
    propose = shared.proposer(space, one, 0, required=True)
    assert propose is not None
    before = measured(other.candidate(other.point(), ""), one).model_copy(update={"key": "before"})
    point = propose([before])
    assert point is not None
    assert point["keep"] == 0.6


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


@needs_optuna
def test_optuna_does_not_repeat_itself(tmp_path: Path) -> None:
    one, space = judge(LIMIT), derive(Space(), CNN)
    propose, again = (shared.proposer(space, one, 3, required=True) for _ in range(2))
    assert propose is not None
    assert again is not None
    trials = [trial("a", point=dict(space.point()))]
    points = [propose(trials) for _ in range(6)]
    assert len({repr(point) for point in points}) > 3
    assert [again(trials) for _ in range(6)] == points


_PROCESS = """
import sys
from pathlib import Path
from lepton_cli.tune.optuna import SharedStore
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
