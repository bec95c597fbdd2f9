"""Every unusual but legal model through inspect, plan and compress: a right result, or one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lepton_cli import runtime
from lepton_cli.commands.compress import compress
from lepton_cli.commands.inspect import inspect
from lepton_cli.commands.plan import plan
from lepton_cli.data.open import synthetic
from lepton_cli.errors import DataError, ModelError, StepError
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import LoadedRecipe, from_dict
from tests.hostile.unusual import MODELS

#: Steps that can be asked of any model.
STEPS: list[list[dict[str, Any]]] = [
    [
        {"step": "simplify"},
        {"step": "prune.channels", "target": {"params": "70 %"}, "if_possible": True},
        {"step": "quantize.dynamic", "if_possible": True},
    ],
    [
        {"step": "fuse"},
        {"step": "prune.weights", "sparsity": "50 %", "if_possible": True},
        {"step": "quantize.weights", "if_possible": True},
    ],
    [{"step": "convert.fp16", "if_possible": True}],
]
#: Parts of warnings that tell of a defect in a step, not of a property of the model.
DEFECTS = ("failed on this model", "cannot run the model", "made an invalid model")


def _recipe(steps: list[dict[str, Any]]) -> LoadedRecipe:
    return from_dict(
        {"version": 1, "name": "all", "steps": steps, "evaluate": {"latency": False, "memory": False}},
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy on NaN and infinity
@pytest.mark.parametrize("name", MODELS)
def test_a_right_result_or_one_message(name: str, tmp_path: Path) -> None:
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(MODELS[name]().SerializeToString())
    content = path.read_bytes()
    inspect(path)
    for number, steps in enumerate(STEPS):
        output = tmp_path / f"out{number}"
        try:
            if number == 0:
                plan(path, _recipe(steps), Silent())
            result = compress(path, _recipe(steps), output, Silent())
        except (ModelError, DataError, StepError) as error:
            if error.code in ("step.unforeseen", "internal"):
                pytest.fail(f"{error.message}: {error.cause}")
            assert not list(output.glob("*.onnx"))
            continue
        if result.error is not None:
            assert result.error.code not in ("step.unforeseen", "internal"), result.error.cause
            continue
        assert not [w for w in result.report.warnings if any(defect in w for defect in DEFECTS)], result.report.warnings
        loaded = io.load(output / "all.onnx")
        feeds = next(iter(synthetic(io.inputs(loaded.model), seed=1, samples=2, batch=2).batches())).feeds
        runtime.Session(output / "all.onnx", threads=1).run(feeds)
    assert path.read_bytes() == content
