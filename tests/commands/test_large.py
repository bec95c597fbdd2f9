"""Models beyond 1.8 GB (here: a lowered limit) are run only where the recipe gives a reason to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lepton_cli.commands import job
from lepton_cli.commands.compress import Compressed, compress
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict
from tests.hostile.models import mlp


def run(tmp_path: Path, **sections: Any) -> Compressed:
    model = tmp_path / "model.onnx"
    if not model.exists():
        model.write_bytes(mlp(64).SerializeToString())
    recipe = {"version": 1, "name": "large", "steps": [{"step": "quantize.weights", "if_possible": True}], **sections}
    return compress(model, from_dict(recipe), tmp_path / "out", Silent())


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "LARGE", 100)


def test_not_run_and_said_so(tmp_path: Path) -> None:
    report = run(tmp_path).report
    assert report.accuracy is None
    assert {skipped.what for skipped in report.skipped} >= {"agreement", "memory"}
    assert report.complete
    assert io.load(tmp_path / "out" / "large.onnx").model.graph.outputs


@pytest.mark.parametrize(
    "sections",
    [
        {"evaluate": {"latency": {"providers": ["cpu"], "batch": [1]}}},
        {"gates": [{"metric": "agreement", "min": 0.5}]},
    ],
)
def test_run_when_asked_for(sections: dict[str, Any], tmp_path: Path) -> None:
    assert run(tmp_path, **sections).report.accuracy is not None
