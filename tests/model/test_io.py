"""Loading, hashing and saving models."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from lepton_cli.model import io
from tests.coupling.networks import Network


@pytest.mark.parametrize("limit", [io.EXTERNAL_ABOVE, 0])
def test_every_weight_decides_the_fingerprint(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "EXTERNAL_ABOVE", limit)
    n = Network()
    model = n.model(n.linear(n.input("x", "batch", 64), 64, 64))
    before = io.fingerprint(model)
    assert io.fingerprint(model.clone()) == before
    value = max(model.graph.initializers.values(), key=lambda value: value.const_value.size)
    changed = value.const_value.numpy().copy()
    changed.flat[changed.size // 2] += 1
    value.const_value = ir.tensor(changed, name=value.name)
    assert io.fingerprint(model) != before
