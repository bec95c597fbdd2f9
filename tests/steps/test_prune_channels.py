"""The options of `prune.channels`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from lepton_cli.prune import timing
from lepton_cli.steps import STEPS, prune_channels
from lepton_cli.steps.prune_channels import Params
from tests.graph.networks import Network
from tests.prune.context import InMemory, context, images, redundant


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


def test_times_are_those_of_the_later_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides are timed quantized; the result is float."""
    model = redundant()
    timed: list[set[str]] = []
    runner = timing.Stopwatch._runner

    class Watched(timing.Stopwatch):
        def _runner(self, model: ir.Model) -> Callable[[], object]:
            assert self._quantize is not None
            timed.append({node.op_type for node in self._quantize(model).graph})
            return runner(self, model)

    monkeypatch.setattr(timing, "Stopwatch", Watched)
    given = Params.model_validate(
        {"step": "prune.channels", "target": {"latency": "100 %"}, "round_to": 1, "timed_as": "int8"}
    )
    outcome = STEPS["prune.channels"].apply(model, given, context(model, tmp_path, images(32)))
    assert len(timed) > 2
    assert all("QuantizeLinear" in operators for operators in timed)
    assert "QuantizeLinear" not in {node.op_type for node in outcome.model.graph}


def test_a_precision_to_time_needs_a_latency_target() -> None:
    with pytest.raises(ValidationError, match="timed_as"):
        Params.model_validate({"step": "prune.channels", "target": {"macs": "50 %"}, "timed_as": "int8"})


def test_models_to_time_are_quantized_as_the_later_step_would(tmp_path: Path) -> None:
    net = Network()
    model = net.model(net.linear(net.input("x", "N", 64), 64, 64))
    data = InMemory({"x": np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32)})
    for precision, operator in (("int8", "QuantizeLinear"), ("dynamic", "DynamicQuantizeLinear")):
        quantize = prune_channels._quantizer(precision, context(model, tmp_path, data))
        assert quantize is not None
        assert operator in {node.op_type for node in quantize(model).graph}
    assert prune_channels._quantizer("float", context(model, tmp_path, data)) is None
