"""How far a model's outputs are from those of the float or the unpruned model: one definition per unit.

All of them weigh the parts of an output that have ranges of their own (`probe.parts`) alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.data.dataset import Batch
from lepton_cli.model import io
from lepton_cli.probe import parts
from lepton_cli.probe.activations import batches
from lepton_cli.probe.comparable import comparable
from lepton_cli.probe.parts import Division, Segments
from lepton_cli.runtime import Session, Values
from lepton_cli.step import Context

#: Signal-to-noise ratios are cut here: beyond it float rounding decides.
CEILING_DB = 140.0


#: Outputs by name, all samples on axis 0.
Outputs = Mapping[str, NDArray[np.float64]]
#: How the graph cuts outputs, by their names (`parts.segments`).
Ways = Mapping[str, Sequence[Segments]]


def relative_error(found: Outputs, wanted: Outputs, ways: Ways) -> float:
    """Squared error as a share of what is wanted, averaged over the parts of each output and then over the outputs.

    The share is of the variance over the samples; of the squares themselves where there is one sample only.
    """
    shares = []
    for name, then in wanted.items():
        division = Division(ways.get(name, ()))
        division.add(then, found[name] - then, then.mean(axis=0) if len(then) > 1 else 0.0)
        shares.append(np.mean([part.noise / max(part.signal, 1e-12) for part in division.parts()]))
    return float(np.mean(shares)) if shares else 0.0


class Reference:
    """The float model's outputs (`comparable`) on the first `most` calibration samples, to compare candidates with."""

    def __init__(self, model: ir.Model, context: Context, most: int = 64, batch: int = 16) -> None:
        self.context = context
        data = context.calibration if context.calibration is not None else context.check
        self.batches: list[Batch] = []
        seen = 0
        for part in batches(model, data, batch):
            self.batches.append(part)
            seen += part.count
            if seen >= most:
                break
        self._ways = parts.segments(comparable(model))
        session = self._session(model)
        self.names = [output.name for output in session.outputs if output.dtype in ("float32", "float16", "float64")]
        self.reference = self.run(model)

    def _session(self, model: ir.Model) -> Session:
        return Session(io.payload(comparable(model), self.context.workdir), threads=self.context.threads)

    def run(self, model: ir.Model) -> list[Values]:
        """Float outputs of `model`, batch by batch."""
        session = self._session(model)
        return [session.run(batch.feeds, self.names) for batch in self.batches]

    def sqnr(self, model: ir.Model) -> float:
        """Least SQNR in dB over all parts of the outputs; -inf for one that is not finite, or of another size in all.

        A batch in which its size changed counts as lost.
        """
        return min(self.by_output(self.run(model)).values(), default=CEILING_DB)

    def by_output(self, found: Sequence[Values]) -> dict[str, float]:
        """SQNR in dB of the worst part of every float output."""
        return {
            name: _sqnr([a[name] for a in self.reference], [b[name] for b in found], self._ways.get(name, ()))
            for name in self.names
        }


def _sqnr(reference: Sequence[np.ndarray], found: Sequence[np.ndarray], ways: Sequence[Segments]) -> float:
    if all(a.shape != b.shape for a, b in zip(reference, found, strict=True)):
        return -math.inf
    division = Division(ways)
    for a, b in zip(reference, found, strict=True):
        exact = a.astype(np.float64)
        usable = np.isfinite(exact)
        if a.shape != b.shape:  # as many detections as there are: what cannot be compared counts as lost
            lost = np.where(usable, exact, 0.0)
            division.add(lost, lost)
            continue
        if not np.isfinite(b[usable]).all():
            return -math.inf
        exact = np.where(usable, exact, 0.0)
        division.add(exact, exact - np.where(usable, b, 0.0))
    return min(decibel(part.signal, part.noise) for part in division.parts())


def decibel(signal: float, noise: float) -> float:
    """`10 log10(signal / noise)` of two sums of squares, at most `CEILING_DB`."""
    return min(CEILING_DB, 10 * math.log10(max(signal, 1e-300) / noise)) if noise else CEILING_DB
