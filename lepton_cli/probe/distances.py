"""How far a model's outputs are from those of the float or the unpruned model: one definition per unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.data.dataset import Batch
from lepton_cli.model import io
from lepton_cli.probe.activations import batches, samples
from lepton_cli.runtime import Session, Values
from lepton_cli.step import Context

#: Signal-to-noise ratios are cut here: beyond it float rounding decides.
CEILING_DB = 140.0


def relative_error(found: Sequence[NDArray[np.float64]], wanted: Sequence[NDArray[np.float64]]) -> float:
    """Squared error as a share of what is wanted, averaged over the outputs, each [samples, values].

    The share is of the variance over the samples; of the squares themselves where there is one sample only.
    """
    shares = []
    for now, then in zip(found, wanted, strict=True):
        centre = then.mean(axis=0) if len(then) > 1 else 0.0
        spread = float(np.sum(np.square(then - centre)))
        shares.append(float(np.sum(np.square(now - then))) / max(spread, 1e-12))
    return float(np.mean(shares)) if shares else 0.0


class Reference:
    """The float model's outputs on the first `most` calibration samples, to compare candidates with."""

    def __init__(self, model: ir.Model, context: Context, most: int = 64, batch: int = 16) -> None:
        self.context = context
        data = context.calibration if context.calibration is not None else context.check
        self.batches: list[Batch] = []
        seen = 0
        for part in batches(model, data, batch):
            self.batches.append(part)
            seen += samples(part)
            if seen >= most:
                break
        session = self._session(model)
        self.names = [output.name for output in session.outputs if output.dtype in ("float32", "float16", "float64")]
        self.reference = self.run(model)

    def _session(self, model: ir.Model) -> Session:
        return Session(io.payload(model, self.context.workdir), threads=self.context.threads)

    def run(self, model: ir.Model) -> list[Values]:
        """Float outputs of `model`, batch by batch."""
        session = self._session(model)
        return [session.run(batch.feeds, self.names) for batch in self.batches]

    def sqnr(self, model: ir.Model) -> float:
        """Least SQNR in dB over the outputs of `model`; -inf when an output is not finite, or of another size in all.

        A batch in which its size changed counts as lost.
        """
        return min(self.by_output(self.run(model)).values(), default=CEILING_DB)

    def by_output(self, found: Sequence[Values]) -> dict[str, float]:
        """SQNR in dB of every float output."""
        return {name: _sqnr([a[name] for a in self.reference], [b[name] for b in found]) for name in self.names}


def _sqnr(reference: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    signal = noise = 0.0
    if all(a.shape != b.shape for a, b in zip(reference, found, strict=True)):
        return -math.inf
    for a, b in zip(reference, found, strict=True):
        if a.shape != b.shape:  # as many detections as there are: what cannot be compared counts as lost
            lost = float(np.square(a[np.isfinite(a)].astype(np.float64)).sum())
            signal, noise = signal + lost, noise + lost
            continue
        exact = a.astype(np.float64)
        usable = np.isfinite(exact)
        if not np.isfinite(b[usable]).all():
            return -math.inf
        signal += float(np.square(exact[usable]).sum())
        noise += float(np.square(exact[usable] - b[usable]).sum())
    if noise == 0:
        return CEILING_DB
    return min(CEILING_DB, 10 * math.log10(max(signal, 1e-300) / noise))
