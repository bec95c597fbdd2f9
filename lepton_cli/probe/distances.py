"""How close a model's outputs are to the float model's: SQNR over a few calibration batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lepton_cli.data.dataset import Batch
from lepton_cli.model import io
from lepton_cli.probe.calibration import calibration_batches
from lepton_cli.runtime import Arrays, Session
from lepton_cli.step import Context

#: Signal-to-noise ratios are cut here: beyond it float rounding decides.
CEILING_DB = 140.0


class Fidelity:
    """The float model's outputs on the first `samples` calibration samples, to compare candidates with."""

    def __init__(self, model: ir.Model, context: Context, samples: int = 64, batch: int = 16) -> None:
        self.context = context
        data = context.calibration if context.calibration is not None else context.check
        self.batches: list[Batch] = []
        seen = 0
        for part in calibration_batches(model, data, batch):
            self.batches.append(part)
            seen += max(
                (len(values) for values in part.feeds.values() if isinstance(values, np.ndarray) and values.ndim),
                default=1,
            )
            if seen >= samples:
                break
        session = self._session(model)
        self.names = [output.name for output in session.outputs if output.dtype in ("float32", "float16", "float64")]
        self.reference = self.run(model)

    def _session(self, model: ir.Model) -> Session:
        return Session(io.payload(model, self.context.workdir), threads=self.context.threads)

    def run(self, model: ir.Model) -> list[Arrays]:
        """Float outputs of `model`, batch by batch."""
        session = self._session(model)
        return [session.run(batch.feeds, self.names) for batch in self.batches]

    def sqnr(self, model: ir.Model) -> float:
        """Least SQNR in dB over the outputs of `model`; -inf when an output is not finite or changed its shape."""
        return min(self.by_output(self.run(model)).values(), default=CEILING_DB)

    def by_output(self, found: Sequence[Arrays]) -> dict[str, float]:
        """SQNR in dB of every float output."""
        return {name: _sqnr([a[name] for a in self.reference], [b[name] for b in found]) for name in self.names}


def _sqnr(reference: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    signal = noise = 0.0
    for a, b in zip(reference, found, strict=True):
        if a.shape != b.shape:
            return -math.inf
        exact = a.astype(np.float64)
        usable = np.isfinite(exact)
        if not np.isfinite(b[usable]).all():
            return -math.inf
        signal += float(np.square(exact[usable]).sum())
        noise += float(np.square(exact[usable] - b[usable]).sum())
    if noise == 0:
        return CEILING_DB
    return min(CEILING_DB, 10 * math.log10(max(signal, 1e-300) / noise))
