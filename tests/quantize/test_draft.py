"""Drafts of quantized models, which are only timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_cli.cache import Cache
from lepton_cli.progress import Silent
from lepton_cli.quantize import dynamic, static
from lepton_cli.quantize.draft import drafter
from lepton_cli.quantize.spec import QuantizeDynamic, QuantizeStatic
from lepton_cli.step import Outcome
from tests.coupling.networks import Network
from tests.prune.context import InMemory, context


def test_models_to_time_are_quantized_as_the_later_step_would(tmp_path: Path) -> None:
    net = Network()
    model = net.model(net.linear(net.input("x", "N", 64), 64, 64))
    data = InMemory({"x": np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32)})
    for precision, operator in (("int8", "QuantizeLinear"), ("dynamic", "DynamicQuantizeLinear")):
        quantize = drafter(precision, context(model, tmp_path, data))
        assert quantize is not None
        assert operator in {node.op_type for node in quantize(model).graph}
    assert drafter("float", context(model, tmp_path, data)) is None


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

    monkeypatch.setattr(static, "quantize", asking)
    monkeypatch.setattr(dynamic, "quantize", asking)
    for precision in ("int8", "dynamic"):
        quantize = drafter(precision, given)
        assert quantize is not None
        assert quantize(model) is model
    (_, first, one), (_, second, two) = asked
    quick = {"calibration": "minmax", "equalise": False, "bias_correction": False, "rounding": "nearest"}
    assert first == QuantizeStatic.model_validate({"step": "quantize.static", "speed_guard": False, **quick})
    assert second == QuantizeDynamic(step="quantize.dynamic")
    assert one.calibration is one.check
    assert (one.cache, two.cache, two.calibration) == (Cache(None), Cache(None), None)
    assert sum(len(batch.feeds["x"]) for batch in one.check.batches(4)) == 16
    assert isinstance(one.progress, Silent)
