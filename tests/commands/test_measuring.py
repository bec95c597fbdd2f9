"""What is asked for and cannot be measured is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lepton_cli.commands.compress import compress
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict
from lepton_cli.report.model import Report
from tests.hostile.models import mlp


def measured(tmp_path: Path, **evaluate: Any) -> Report:
    (tmp_path / "in").mkdir()
    model = tmp_path / "in" / "model.onnx"
    model.write_bytes(mlp(64).SerializeToString())
    recipe = {"version": 1, "name": "small", "steps": [{"step": "simplify"}], "evaluate": {"memory": False, **evaluate}}
    return compress(model, from_dict(recipe), tmp_path / "out", Silent()).report


@pytest.mark.parametrize(("energy", "said"), [(True, ["energy"]), ("auto", [])])
def test_energy_without_latency(energy: object, said: list[str], tmp_path: Path) -> None:
    report = measured(tmp_path, latency=False, energy=energy)
    assert [skipped.what for skipped in report.skipped] == said
