"""A pruned model beside its reference, and data to repair it with."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling import cut
from lepton_cli.data.memory import Arrays
from lepton_cli.probe import linear
from lepton_cli.prune.recover import Calibration, Repair, Repairer
from tests.coupling.networks import Network, analysed
from tests.prune.context import whole

Array = NDArray[Any]


class Case:
    """A reference, its pruned model, and data; `repair` runs the repairer on some nodes."""

    def __init__(self, model: ir.Model, gone: Sequence[tuple[str, Sequence[int]]], x: Array, folder: Path) -> None:
        self.reference, self.coupling = analysed(model)
        labels = [self.coupling.labels[(value, 1)][channel] for value, channels in gone for channel in channels]
        self.removed = np.array(labels, np.int64)
        self.model = cut.cut(self.reference, self.coupling, self.removed)
        self.x, self.folder = x, folder

    def source(self) -> Calibration:
        return Calibration(Arrays({"x": self.x}), self.folder, threads=1, seed=0, samples=len(self.x))

    def repairer(self, kinds: Collection[str]) -> Repairer:
        return Repairer(self.reference, self.coupling, self.removed, self.source(), kinds)

    def repair(self, *stages: Sequence[str], kinds: Collection[str] = ("least_squares", "bias")) -> list[Repair]:
        with contextlib.closing(self.repairer(kinds)) as repairer:
            found = []
            for nodes in stages:
                layers = linear.find(self.model)
                found += repairer.repair(self.model, [layers[node] for node in nodes])
        return found

    def now(self, *names: str) -> list[Array]:
        values = whole(self.model, {"x": self.x}, names)
        return [values[name] for name in names]

    def then(self, *names: str) -> list[Array]:
        values = whole(self.reference, {"x": self.x}, names)
        return [values[name] for name in names]


def rows(count: int, width: int = 6, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(count, width)) @ random.normal(size=(width, width))
    return (mixed + random.normal(size=width)).astype(np.float32)


def perceptron(last: str = "Neg", seed: int = 0, bias: bool = True, wide: int = 4) -> ir.Model:
    """Gemm_0, Tanh_1, Gemm_2 and something behind it."""
    n = Network(seed)
    hidden = n.node("Tanh", n.node("Gemm", n.input("x", "batch", 6), n.weight(6, 8), n.weight(8)))
    product = n.node("Gemm", hidden, n.weight(8, wide), *([n.weight(wide)] if bias else []))
    return n.model(n.node(last, product))
