"""Least and greatest value of every channel of some tensors: one pass over the calibration data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.data.dataset import Dataset
from lepton_cli.probe.activations import Activations, batches
from lepton_cli.step import Context


@dataclasses.dataclass(frozen=True)
class Channels:
    """Ends per channel of one tensor."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def widest(self) -> NDArray[np.float32]:
        """Greatest magnitude per channel."""
        return np.maximum(-self.low, self.high)


def collect(model: ir.Model, axes: Mapping[str, int], data: Dataset, context: Context) -> dict[str, Channels]:
    """Channel ends of the tensors in `axes` (tensor name -> channel axis)."""
    found: dict[str, Channels] = {}
    if not axes:
        return found
    names = list(axes)
    inner = Activations(model, names, context.workdir, context.threads)
    with context.progress.stage("channel ranges", data.count) as stage:
        for batch in batches(model, data, 4):
            now = inner.run(batch.feeds)
            for name in names:
                values = now[name]
                rows = np.moveaxis(values, axes[name], -1).reshape(-1, values.shape[axes[name]])
                low, high = rows.min(axis=0, initial=0), rows.max(axis=0, initial=0)
                before = found.get(name)
                if before is not None:
                    low, high = np.minimum(before.low, low), np.maximum(before.high, high)
                found[name] = Channels(low, high)
            stage.advance(batch.count)
    return found
