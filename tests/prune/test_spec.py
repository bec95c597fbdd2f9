"""The options of the pruning steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from pydantic import ValidationError

from lepton_cli.machine import Machine
from lepton_cli.prune import latency, stopwatch
from lepton_cli.prune.spec import PruneChannels, PruneWeights
from lepton_cli.quantize import targets
from lepton_cli.quantize.spec import ConvertFp16, QuantizeDynamic, QuantizeStatic, QuantizeWeights
from lepton_cli.step import Options
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
    (target,) = outcome.details.targets
    assert target.target == pytest.approx(0.6)
    assert target.reached <= 0.6


def test_times_are_those_of_the_later_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides are timed quantized; the result is float."""
    model = redundant()
    timed: list[set[str]] = []
    call = stopwatch.Stopwatch._call

    class Watched(stopwatch.Stopwatch):
        def _call(self, model: ir.Model) -> Callable[[], object]:
            assert self._quantize is not None
            timed.append({node.op_type for node in self._quantize(model).graph})
            return call(self, model)

    monkeypatch.setattr(latency, "Stopwatch", Watched)
    given = PruneChannels.model_validate(
        {"step": "prune.channels", "target": {"latency": "100 %"}, "round_to": 1, "timed_as": "int8"}
    )
    outcome = STEPS["prune.channels"].apply(model, given, context(model, tmp_path, images(32)))
    assert len(timed) > 2
    assert all("QuantizeLinear" in operators for operators in timed)
    assert "QuantizeLinear" not in {node.op_type for node in outcome.model.graph}


@pytest.mark.parametrize(
    ("target", "timed_as", "scope", "timed"),
    [
        ("macs", "auto", "global", False),
        ("macs", "float", "global", False),
        ("params", "int8", "global", True),
        ("size", "dynamic", "global", True),
        ("macs", "fp16", "global", True),
        ("macs", "int8", "layer", False),
        ("latency", "auto", "global", True),
        ("latency", "int8", "layer", True),
    ],
)
def test_times_are_looked_at_for_a_latency_or_other_kernels_than_float(
    target: str, timed_as: str, scope: str, timed: bool
) -> None:
    options = {"step": "prune.channels", "target": {target: "50 %"}, "timed_as": timed_as, "scope": scope}
    assert PruneChannels.model_validate(options).timed == timed


STATIC, DYNAMIC, HALF = QuantizeStatic(), QuantizeDynamic(), ConvertFp16()


@pytest.mark.parametrize(
    ("later", "timed_as"),
    [
        ((), "float"),
        ((QuantizeWeights(),), "float"),
        ((QuantizeWeights(), STATIC), "int8"),
        ((STATIC, DYNAMIC), "int8"),
        ((DYNAMIC, STATIC), "dynamic"),
        ((HALF,), "fp16"),
        ((STATIC.model_copy(update={"target": "arm"}),), "float"),
        ((STATIC.model_copy(update={"target": "x86"}),), "int8"),
    ],
)
def test_what_follows_decides_about_the_kernels(
    later: tuple[Options, ...], timed_as: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as they are those of this machine."""
    monkeypatch.setattr(targets, "machine", lambda: Machine("a processor", "x86", ("avx512_vnni",), 2))
    step = PruneChannels()
    assert step.knowing(later).timed_as == timed_as
    assert step.knowing(later).target == step.target
    for said in ("float", "int8", "dynamic"):
        given = PruneChannels.model_validate({"step": "prune.channels", "timed_as": said})
        assert given.knowing(later) is given


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


def test_the_defaults_rank_within_each_layer() -> None:
    given = PruneWeights(step="prune.weights")
    assert (given.sparsity, given.threshold, given.pattern, given.importance) == (None, None, None, None)
    assert given.scope == "layer"
    share = PruneWeights.model_validate({"step": "prune.weights", "sparsity": "80 %"}).sparsity
    assert float(share or 0) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("pattern", "right"), [("2:4", True), ("10:16", True), ("2:", False), ("a2:4", False), ("2:4x", False)]
)
def test_patterns_are_two_numbers(pattern: str, right: bool) -> None:
    options = {"step": "prune.weights", "pattern": pattern}
    if right:
        assert PruneWeights.model_validate(options).pattern == pattern
    else:
        with pytest.raises(ValidationError):
            PruneWeights.model_validate(options)


def test_a_threshold_of_zero_is_allowed() -> None:
    assert PruneWeights.model_validate({"step": "prune.weights", "threshold": 0}).threshold == 0


def test_the_defaults() -> None:
    given = PruneChannels(step="prune.channels")
    assert given.target.shares == {"macs": pytest.approx(0.6)}
    assert (given.timed_as, given.importance, given.scope, given.round_to) == ("auto", None, "global", None)
    assert float(given.min_width) == pytest.approx(0.05)
    assert (given.drop_branches, given.recover) == (True, None)


@pytest.mark.parametrize(("share", "right"), [("100 %", True), ("0.1 %", True), ("0 %", False), ("100.1 %", False)])
@pytest.mark.parametrize("metric", ["macs", "params", "size", "latency"])
def test_a_share_is_above_zero_and_one_at_most(metric: str, share: str, right: bool) -> None:
    options = {"step": "prune.channels", "target": {metric: share}}
    if not right:
        with pytest.raises(ValidationError, match=f"{metric} must be above 0 % and at most 100 %"):
            PruneChannels.model_validate(options)
        return
    shares = PruneChannels.model_validate(options).target.shares
    assert shares == {metric: pytest.approx(float(share.split()[0]) / 100)}


def test_several_targets_are_all_read() -> None:
    target = {"macs": "60 %", "latency": "50 %", "size": "40 %", "params": "30 %"}
    shares = PruneChannels.model_validate({"step": "prune.channels", "target": target}).target.shares
    assert shares == pytest.approx({"macs": 0.6, "params": 0.3, "size": 0.4, "latency": 0.5})
    with pytest.raises(ValidationError, match="give macs, params, size or latency"):
        PruneChannels.model_validate({"step": "prune.channels", "target": {}})


@pytest.mark.parametrize(("width", "right"), [(1, True), (0, False), (8, True)])
def test_widths_are_rounded_to_one_at_least(width: int, right: bool) -> None:
    options = {"step": "prune.channels", "round_to": width}
    if right:
        assert PruneChannels.model_validate(options).round_to == width
    else:
        with pytest.raises(ValidationError):
            PruneChannels.model_validate(options)


def test_float_needs_no_latency_and_another_precision_does() -> None:
    assert PruneChannels.model_validate({"step": "prune.channels", "timed_as": "float"}).timed_as == "float"
    options = {"step": "prune.channels", "target": {"latency": "50 %"}, "timed_as": "dynamic"}
    assert PruneChannels.model_validate(options).timed_as == "dynamic"
