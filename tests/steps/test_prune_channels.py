"""The options of `prune.channels`."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lepton_cli.steps import STEPS
from lepton_cli.steps.prune_channels import Params
from tests.prune.context import context, images, redundant


@pytest.mark.parametrize(
    "target", [{}, {"macs": "60 %", "params": "0 %"}, {"macs": "0 %"}, {"macs": "120 %"}, {"macs": 0.6}]
)
def test_a_target_is_a_share(target: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Params.model_validate({"step": "prune.channels", "target": target})


def test_the_step_runs_with_its_defaults(tmp_path: Path) -> None:
    model = redundant()
    outcome = STEPS["prune.channels"].apply(model, Params(step="prune.channels"), context(model, tmp_path, images(32)))
    assert outcome.changed
    (target,) = outcome.details["targets"]
    assert target["target"] == pytest.approx(0.6)
    assert target["reached"] <= 0.6
