"""Folding BatchNormalization: the same outputs, or a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from lepton_cli import runtime
from lepton_cli.graph.batch_norm import fold_batch_norm
from lepton_cli.model import io
from tests.hostile.models import FLOAT, model, save, tensor, weights

CHANNELS = 8
LINEAR = {
    "Conv": ((CHANNELS, 4, 3, 3), {}, (2, 4, 6, 6)),
    "grouped Conv": ((CHANNELS, 2, 3, 3), {"group": 2}, (2, 4, 6, 6)),
    "ConvTranspose": ((4, CHANNELS, 3, 3), {}, (2, 4, 6, 6)),
    "grouped ConvTranspose": ((4, CHANNELS // 2, 3, 3), {"group": 2}, (2, 4, 6, 6)),
    "Gemm": ((4, CHANNELS), {}, (2, 4)),
    "transposed Gemm": ((CHANNELS, 4), {"transB": 1}, (2, 4)),
}


def _model(name: str, bias: bool, norm: dict[str, object] | None = None, variance: float = 1.5) -> onnx.ModelProto:
    shape, attributes, feed = LINEAR[name]
    inputs = ["x", "w", *(["b"] if bias else [])]
    nodes = [
        helper.make_node(name.split()[-1], inputs, ["h"], "linear", **attributes),
        helper.make_node("BatchNormalization", ["h", "scale", "shift", "mean", "var"], ["y"], "norm", **(norm or {})),
    ]
    held = {"w": weights(*shape), "b": weights(CHANNELS, seed=1), "scale": weights(CHANNELS, seed=2)}
    held |= {"shift": weights(CHANNELS, seed=3), "mean": weights(CHANNELS, seed=4)}
    held["var"] = np.full(CHANNELS, variance, np.float32)
    if not bias:
        del held["b"]
    made = [tensor(key, array) for key, array in held.items()]
    return model(nodes, {"x": (FLOAT, list(feed))}, {"y": (FLOAT, None)}, made)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LINEAR)
def test_outputs_stay_the_same(name: str, bias: bool, tmp_path: Path) -> None:
    loaded = io.load(save(_model(name, bias), tmp_path / "m.onnx")).model
    edited = io.clone(loaded)
    folded, left = fold_batch_norm(edited, {"linear", "norm"})
    assert [node.name for node in folded] == ["norm"]
    assert left == []
    feeds = {"x": np.random.default_rng(0).standard_normal(LINEAR[name][2], np.float32)}
    before = runtime.Session(io.to_bytes(loaded), threads=1).run(feeds)
    after = runtime.Session(io.to_bytes(edited), threads=1).run(feeds)
    np.testing.assert_allclose(before["y"], after["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "allowed", "reason"),
    [
        ({"norm": {"training_mode": 1}}, {"linear", "norm"}, "training mode"),
        ({"variance": -1.0}, {"linear", "norm"}, "non-finite"),
        ({}, {"linear"}, "excluded"),
        ({}, {"norm"}, "`linear` before it is excluded"),
    ],
)
def test_reasons_to_leave(options: dict[str, object], allowed: set[str], reason: str, tmp_path: Path) -> None:
    loaded = io.load(save(_model("Conv", True, **options), tmp_path / "m.onnx")).model  # type: ignore[arg-type]
    before = io.to_bytes(loaded)
    folded, left = fold_batch_norm(loaded, allowed)
    assert folded == []
    assert reason in left[0][1]
    assert io.to_bytes(loaded) == before
