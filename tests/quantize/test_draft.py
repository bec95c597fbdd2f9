"""Drafts of quantized models, which are only timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lepton_cli.quantize.draft import drafter
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
