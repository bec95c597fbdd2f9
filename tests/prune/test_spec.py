"""The options of the pruning steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from pydantic import ValidationError

from lepton_cli.prune import stopwatch
from lepton_cli.prune.spec import PruneChannels, PruneWeights
from lepton_cli.steps import STEPS
from tests.prune.context import context, images, redundant


@pytest.mark.parametrize(
    "target", [{}, {"macs": "60 %", "params": "0 %"}, {"macs": "0 %"}, {"macs": "120 %"}, {"macs": 0.6}]
)
def test_a_target_is_a_share(target: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PruneChannels.model_validate({"step": "prune.channels", "target": target})


def test_the_step_runs_with_its_defaults(tmp_path: Path) -> None:
    model = redundant()
    outcome = STEPS["prune.channels"].apply(
        model, PruneChannels(step="prune.channels"), context(model, tmp_path, images(32))
    )
    assert outcome.changed
    (target,) = outcome.details["targets"]
    assert target["target"] == pytest.approx(0.6)
    assert target["reached"] <= 0.6


def test_times_are_those_of_the_later_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides are timed quantized; the result is float."""
    model = redundant()
    timed: list[set[str]] = []
    runner = stopwatch.Stopwatch._runner

    class Watched(stopwatch.Stopwatch):
        def _runner(self, model: ir.Model) -> Callable[[], object]:
            assert self._quantize is not None
            timed.append({node.op_type for node in self._quantize(model).graph})
            return runner(self, model)

    monkeypatch.setattr(stopwatch, "Stopwatch", Watched)
    given = PruneChannels.model_validate(
        {"step": "prune.channels", "target": {"latency": "100 %"}, "round_to": 1, "timed_as": "int8"}
    )
    outcome = STEPS["prune.channels"].apply(model, given, context(model, tmp_path, images(32)))
    assert len(timed) > 2
    assert all("QuantizeLinear" in operators for operators in timed)
    assert "QuantizeLinear" not in {node.op_type for node in outcome.model.graph}


def test_a_precision_to_time_needs_a_latency_target() -> None:
    with pytest.raises(ValidationError, match="timed_as"):
        PruneChannels.model_validate({"step": "prune.channels", "target": {"macs": "50 %"}, "timed_as": "int8"})


@pytest.mark.parametrize(
    "options", [{"sparsity": "80"}, {"threshold": -1}, {"pattern": "2of4"}, {"importance": "best"}]
)
def test_wrong_options_of_prune_weights(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PruneWeights.model_validate({"step": "prune.weights", **options})


def test_prune_weights_runs(tmp_path: Path) -> None:
    model = redundant()
    options = PruneWeights.model_validate({"step": "prune.weights", "sparsity": "50 %"})
    assert STEPS["prune.weights"].apply(model, options, context(model, tmp_path, images(8))).changed
