"""Optuna is optional: asked for and missing it is named; where it is, it proposes points and shares trials."""

from __future__ import annotations

import builtins
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lepton_cli.errors import MissingExtraError
from lepton_cli.recipe.tuning import Space
from lepton_cli.tune import optuna as shared
from lepton_cli.tune.bench import Bench
from lepton_cli.tune.search import Search
from lepton_cli.tune.space import derive
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
        assert "lepton[tune]" in (found.value.hint or "")


@needs_optuna
def test_optuna_proposes_points_of_the_space(tmp_path: Path) -> None:
    one, space = judge(LIMIT), derive(Space(), CNN)
    store = shared.SharedStore("study.log", "s", tmp_path)
    found = Bench(store, one, "s", lambda candidate: measured(candidate, one), 1000.0, 12, "cpu")
    Search(space, found, [], 0).sampled(shared.proposer(space, one, 0, required=True))
    assert len(found.trials()) == 12
    assert one.best(found.trials()) is not None


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
