"""The options of `prune.weights`."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lepton_cli.steps import STEPS
from lepton_cli.steps.prune_weights import Params
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
