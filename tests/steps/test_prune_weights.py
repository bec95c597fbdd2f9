"""The options of `prune.weights`."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lepton_cli.prune import weights
from lepton_cli.steps import STEPS
from lepton_cli.steps.prune_weights import Params, apply
from tests.prune.context import context, images, redundant


@pytest.mark.parametrize(
    "options", [{"sparsity": "80"}, {"threshold": -1}, {"pattern": "2of4"}, {"importance": "best"}]
)
def test_wrong_options(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Params.model_validate({"step": "prune.weights", **options})


def test_the_step_runs(tmp_path: Path) -> None:
    model = redundant()
    options = Params.model_validate({"step": "prune.weights", "sparsity": "50 %"})
    assert STEPS["prune.weights"].apply(model, options, context(model, tmp_path, images(8))).changed


def test_the_defaults_rank_within_each_layer() -> None:
    given = Params(step="prune.weights")
    assert (given.sparsity, given.threshold, given.pattern, given.importance) == (None, None, None, None)
    assert given.scope == "layer"
    share = Params.model_validate({"step": "prune.weights", "sparsity": "80 %"}).sparsity
    assert float(share or 0) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("pattern", "right"), [("2:4", True), ("10:16", True), ("2:", False), ("a2:4", False), ("2:4x", False)]
)
def test_patterns_are_two_numbers(pattern: str, right: bool) -> None:
    options = {"step": "prune.weights", "pattern": pattern}
    if right:
        assert Params.model_validate(options).pattern == pattern
    else:
        with pytest.raises(ValidationError):
            Params.model_validate(options)


def test_a_threshold_of_zero_is_allowed() -> None:
    assert Params.model_validate({"step": "prune.weights", "threshold": 0}).threshold == 0


def test_the_step_is_the_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, params = redundant(), Params(step="prune.weights")
    given = context(model, tmp_path, images(2))
    monkeypatch.setattr(weights, "prune", lambda *arguments: arguments)
    assert apply(model, params, given) == (model, params, given)  # type: ignore[comparison-overlap]
