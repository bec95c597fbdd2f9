"""The options of `prune.channels`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from lepton_cli.progress import Silent
from lepton_cli.prune import channels, timing
from lepton_cli.steps import STEPS, prune_channels, quantize_dynamic, quantize_static
from lepton_cli.steps.base import Outcome
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


def test_the_defaults() -> None:
    given = Params(step="prune.channels")
    assert given.target.shares == {"macs": pytest.approx(0.6)}
    assert (given.timed_as, given.importance, given.scope, given.round_to) == ("float", None, "global", None)
    assert float(given.min_width) == pytest.approx(0.05)
    assert (given.drop_branches, given.recover) == (True, None)


@pytest.mark.parametrize(("share", "right"), [("100 %", True), ("0.1 %", True), ("0 %", False), ("100.1 %", False)])
@pytest.mark.parametrize("metric", ["macs", "params", "size", "latency"])
def test_a_share_is_above_zero_and_one_at_most(metric: str, share: str, right: bool) -> None:
    options = {"step": "prune.channels", "target": {metric: share}}
    if not right:
        with pytest.raises(ValidationError, match=f"{metric} must be above 0 % and at most 100 %"):
            Params.model_validate(options)
        return
    shares = Params.model_validate(options).target.shares
    assert shares == {metric: pytest.approx(float(share.split()[0]) / 100)}


def test_several_targets_are_all_read() -> None:
    target = {"macs": "60 %", "latency": "50 %", "size": "40 %", "params": "30 %"}
    shares = Params.model_validate({"step": "prune.channels", "target": target}).target.shares
    assert shares == pytest.approx({"macs": 0.6, "params": 0.3, "size": 0.4, "latency": 0.5})
    with pytest.raises(ValidationError, match="give macs, params, size or latency"):
        Params.model_validate({"step": "prune.channels", "target": {}})


@pytest.mark.parametrize(("width", "right"), [(1, True), (0, False), (8, True)])
def test_widths_are_rounded_to_one_at_least(width: int, right: bool) -> None:
    options = {"step": "prune.channels", "round_to": width}
    if right:
        assert Params.model_validate(options).round_to == width
    else:
        with pytest.raises(ValidationError):
            Params.model_validate(options)


def test_float_needs_no_latency_and_another_precision_does() -> None:
    assert Params.model_validate({"step": "prune.channels", "timed_as": "float"}).timed_as == "float"
    options = {"step": "prune.channels", "target": {"latency": "50 %"}, "timed_as": "dynamic"}
    assert Params.model_validate(options).timed_as == "dynamic"


def test_models_to_time_are_calibrated_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 samples of the check data, no search, no measurement, nothing kept; dynamic ones see no data at all."""
    net = Network()
    model = net.model(net.linear(net.input("x", "N", 64), 64, 64))
    data = InMemory({"x": np.zeros((32, 64), np.float32)})
    given = context(model, tmp_path, data, cache=tmp_path)
    asked: list[tuple[Any, Any, Any]] = []

    def asking(*arguments: Any) -> Any:
        asked.append(arguments)
        return Outcome(model, 1)

    monkeypatch.setattr(quantize_static, "apply", asking)
    monkeypatch.setattr(quantize_dynamic, "apply", asking)
    for precision in ("int8", "dynamic"):
        quantize = prune_channels._quantizer(precision, given)
        assert quantize is not None
        assert quantize(model) is model
    (_, static, one), (_, dynamic, two) = asked
    quick = {"calibration": "minmax", "equalise": False, "bias_correction": False, "rounding": "nearest"}
    assert static == quantize_static.Params.model_validate({"step": "quantize.static", "speed_guard": False, **quick})
    assert dynamic == quantize_dynamic.Params(step="quantize.dynamic")
    assert one.calibration is one.check
    assert (one.cache, two.cache, two.calibration) == (None, None, None)
    assert sum(len(batch.feeds["x"]) for batch in one.check.batches(4)) == 16
    assert isinstance(one.progress, Silent)


def test_the_step_is_the_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = redundant()
    given = context(model, tmp_path, images(2))
    monkeypatch.setattr(channels, "prune", lambda *arguments: arguments)
    plain = Params(step="prune.channels")
    assert prune_channels.apply(model, plain, given) == (model, plain, given, None)  # type: ignore[comparison-overlap]
    timed = Params.model_validate({"step": "prune.channels", "target": {"latency": "50 %"}, "timed_as": "int8"})
    assert prune_channels.apply(model, timed, given)[3] is not None  # type: ignore[index]
