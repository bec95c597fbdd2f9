"""Loading, hashing and saving models."""

from __future__ import annotations

import gc

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


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_looked_for_after_a_graph_is_made_and_only_if_it_was_before(enabled: bool) -> None:
    n = Network()
    model = n.model(n.linear(n.input("x", "batch", 64), 64, 64))
    seen: list[bool] = []

    class Watched(ir.Tensor):
        def tobytes(self) -> bytes:
            seen.append(gc.isenabled())
            return super().tobytes()

    value = max(model.graph.initializers.values(), key=lambda value: value.const_value.size)
    value.const_value = Watched(value.const_value.numpy(), name=value.name)
    (gc.enable if enabled else gc.disable)()
    try:
        io.to_bytes(io.clone(model))
        assert gc.isenabled() is enabled
        with pytest.raises(AttributeError):
            io.to_bytes(None)  # type: ignore[arg-type]
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
    assert set(seen) == {False}
