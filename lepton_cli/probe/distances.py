"""How far a model's outputs are from those of the float or the unpruned model: one definition per unit.

All of them weigh the parts of an output that have ranges of their own (`probe.parts`) alike.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.data.dataset import Batch, Dataset
from lepton_cli.model import io
from lepton_cli.probe import parts
from lepton_cli.probe.activations import batches
from lepton_cli.probe.comparable import comparable
from lepton_cli.probe.parts import Division, Part, Segments
from lepton_cli.runtime import Session, Values
from lepton_cli.step import Context

#: Signal-to-noise ratios are cut here: beyond it float rounding decides.
CEILING_DB = 140.0


#: 95 % quantiles: of the normal distribution, and of Student's t with 0 (no bound) to 2 degrees of freedom.
_Z95, _T95 = 1.6448536269514722, (math.inf, 6.313751514675043, 2.919985580355516)

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


@dataclasses.dataclass(frozen=True)
class Closeness:
    """SQNR in dB of the worst part of the outputs.

    `sqnr_db`: on the samples seen. `assured_db`: what other samples like them hold with 95 % confidence, from the
    spread over the samples; the same where one says nothing about others. `hoped_db`: what they do not exceed, with the
    same confidence.
    """

    sqnr_db: float
    assured_db: float
    hoped_db: float = CEILING_DB


class Reference:
    """The float model's outputs (`comparable`) on the first `most` samples, to compare candidates with.

    `data`: where they are from; calibration data by default, made-up inputs without any.
    """

    def __init__(
        self, model: ir.Model, context: Context, most: int = 64, batch: int = 16, data: Dataset | None = None
    ) -> None:
        self.context = context
        data = data or (context.calibration if context.calibration is not None else context.check)
        self.batches: list[Batch] = []
        self.samples = 0
        for part in batches(model, data, batch):
            self.batches.append(part)
            self.samples += part.count
            if self.samples >= most:
                break
        self._ways = parts.segments(comparable(model))
        session = self._session(model)
        self.names = [output.name for output in session.outputs if output.dtype in ("float32", "float16", "float64")]
        self.reference = self.run(model)

    def first(self, samples: int) -> Reference:
        """The same with no more batches than hold the first `samples`: for trials that only have to be ordered."""
        few = copy.copy(self)
        sums = accumulate(batch.count for batch in self.batches)
        few.batches = self.batches[: 1 + sum(total < samples for total in sums)]
        few.reference = self.reference[: len(few.batches)]
        few.samples = sum(batch.count for batch in few.batches)
        return few

    def _session(self, model: ir.Model) -> Session:
        source = io.payload(comparable(model), self.context.workdir)
        return Session(source, threads=self.context.threads, spin=False)

    def run(self, model: ir.Model) -> list[Values]:
        """Float outputs of `model`, batch by batch."""
        session = self._session(model)
        return [session.run(batch.feeds, self.names) for batch in self.batches]

    def sqnr(self, model: ir.Model) -> float:
        """Least SQNR in dB over all parts of the outputs; -inf for one that is not finite, or of another size in all.

        A batch in which its size changed counts as lost.
        """
        return self.closeness(model).sqnr_db

    def closeness(self, model: ir.Model, few: int = 0, wanted_db: float = -math.inf) -> Closeness:
        """How close the worst part of the outputs is on these samples, and on others like them.

        Where the first `few` samples say that others do not come to `wanted_db`, no more are run, and it is theirs.
        """
        session = self._session(model)
        found: list[Values] = []
        seen = 0
        for batch in self.batches:
            found.append(session.run(batch.feeds, self.names))
            seen += batch.count
            if few <= seen < min(few + batch.count, self.samples):
                rough = self._worst(found, self.names)
                if rough.hoped_db < wanted_db:
                    return rough
        return self._worst(found, self.names)

    def by_output(self, found: Sequence[Values]) -> dict[str, float]:
        """SQNR in dB of the worst part of every float output."""
        return {name: self._worst(found, [name]).sqnr_db for name in self.names}

    def _worst(self, found: Sequence[Values], names: Sequence[str]) -> Closeness:
        parts = [part for name in names for part in self._parts(name, found)]
        return Closeness(
            min((decibel(part.signal, part.noise) for part in parts), default=CEILING_DB),
            min((_assured(part) for part in parts), default=CEILING_DB),
            min((_hoped(part) for part in parts), default=CEILING_DB),
        )

    def _parts(self, name: str, found: Sequence[Values]) -> list[Part]:
        return _parts(
            [batch[name] for batch in self.reference[: len(found)]],
            [batch[name] for batch in found],
            [batch.count for batch in self.batches[: len(found)]],
            self._ways.get(name, ()),
        )


def _parts(
    reference: Sequence[np.ndarray], found: Sequence[np.ndarray], counts: Sequence[int], ways: Sequence[Segments]
) -> list[Part]:
    """The parts of one output; noise without end for one that is not finite, or of another size in all batches."""
    broken = [Part("", 1.0, math.inf)]
    if all(a.shape != b.shape for a, b in zip(reference, found, strict=True)):
        return broken
    division = Division(ways)
    for a, b, samples in zip(reference, found, counts, strict=True):
        exact = a.astype(np.float64)
        usable = np.isfinite(exact)
        if not usable.all():
            exact, b = np.where(usable, exact, 0.0), np.where(usable, b, 0.0) if a.shape == b.shape else b
        if a.shape != b.shape:  # as many detections as there are: what cannot be compared counts as lost
            division.add(exact, exact, samples=samples)
            continue
        if not np.isfinite(b).all():
            return broken
        division.add(exact, exact - b, samples=samples)
    return division.parts()


def _assured(part: Part) -> float:
    """SQNR in dB of a part at the upper end of its noise, where that is known."""
    return decibel(part.signal, part.noise + _margin(part))


def _hoped(part: Part) -> float:
    """SQNR in dB of a part at the lower end of its noise; the ceiling where one sample says nothing about others."""
    if part.spread is None or not math.isfinite(part.spread):
        return CEILING_DB if math.isfinite(part.noise) else -math.inf
    return decibel(part.signal, max(part.noise - _margin(part), 0.0))


def _margin(part: Part) -> float:
    """Half-width of the interval around the noise that leaves 5 % on either side."""
    return 0.0 if part.spread is None else _student(part.units - 1) * part.spread


def _student(freedom: int) -> float:
    """95 % quantile of Student's t: closed forms, and from 3 degrees of freedom Cornish and Fisher's (within 2 %)."""
    if freedom < len(_T95):
        return _T95[freedom]
    z = _Z95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def decibel(signal: float, noise: float) -> float:
    """`10 log10(signal / noise)` of two sums of squares, at most `CEILING_DB`; -inf for noise without end."""
    if math.isinf(noise):
        return -math.inf
    return min(CEILING_DB, 10 * math.log10(max(signal, 1e-300) / noise)) if noise else CEILING_DB
