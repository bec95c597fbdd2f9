"""What narrowing one group alone does to the outputs: a few levels measured, the rest from the ranking's curve."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling import cut
from lepton_cli.coupling.links import Coupling, Group
from lepton_cli.probe import activations, linear, parts
from lepton_cli.probe.comparable import comparable
from lepton_cli.probe.distances import Outputs, Ways, relative_error
from lepton_cli.probe.linear import Linear, Matrix
from lepton_cli.prune import hessian, importance, recover
from lepton_cli.prune.hessian import Ranking
from lepton_cli.runtime import Values

#: Shares of a group's channels that are removed on trial.
LEVELS = (0.25, 0.5, 0.8)
#: Multiply-accumulates that all trials together may take (about 20 s on two cores). A count and not a time: the
#: same model and data must give the same result on a busy machine.
EFFORT, FITTED = 4e11, 32
#: Numbers in a sample's outputs from which a few samples tell as much as many rows of scores.
LARGE = 10_000


@dataclasses.dataclass(frozen=True)
class Unpruned:
    """Batches to try on, and what the unpruned model makes of them."""

    model: ir.Model
    coupling: Coupling
    feeds: Sequence[Values]
    outputs: Outputs
    ways: Ways
    #: What layers are refitted with before a loss is measured.
    source: recover.Calibration

    def error(self, model: ir.Model) -> float:
        """Squared output error as a share of the outputs' variance, averaged over their parts."""
        now = activations.outputs(model, self.feeds, self.source.workdir, self.source.threads)
        return relative_error(now, self.outputs, self.ways)


def prepare(model: ir.Model, coupling: Coupling, source: recover.Calibration, trials: int, macs: float) -> Unpruned:
    """As many samples (16 to 256, of large outputs 4) as the effort for all trials allows; `macs` is the cost of one
    sample. Refitting runs through two models, with at least `FITTED` samples."""
    least = 4 if _values(model, coupling) >= LARGE else 16
    count = int(min(max(EFFORT / max(trials * macs, 1.0), least), 256, source.samples))
    fitted = int(min(max(EFFORT / max(2 * trials * macs, 1.0), FITTED), source.samples))
    feeds = recover.judging(model, source, count)
    outputs = activations.outputs(model, feeds, source.workdir, source.threads)
    few = dataclasses.replace(source, samples=fitted)
    return Unpruned(model, coupling, feeds, outputs, parts.segments(comparable(model)), few)


def _values(model: ir.Model, coupling: Coupling) -> int:
    """Numbers that a sample's outputs have, as far as their shapes are known."""
    shapes = (coupling.facts.shapes.get(value.name or "", ()) for value in model.graph.outputs)
    return sum(math.prod(shape[1:]) for shape in shapes if len(shape) > 1)


def curve(
    trial: Unpruned, group: Group, ranking: Ranking, layers: Mapping[str, Linear], grams: Mapping[str, Matrix]
) -> NDArray[np.float64]:
    """Loss after removing 0, 1, 2, ... channels: the ranking's own curve, scaled to what a few trials measured."""
    own = np.concatenate([[0.0], np.maximum.accumulate(ranking.loss)])
    points: list[int] = []
    ratios: list[float] = []
    for share in LEVELS:
        count = min(max(1, round(share * group.channels)), len(own) - 1)
        if count < 1 or (points and count <= points[-1]):
            continue
        measured = trial.error(removed(trial, group, ranking.order[:count], layers, grams))
        points.append(count)
        ratios.append(float(np.log(max(measured, 1e-9) / max(own[count], 1e-12))))
    if not points:
        return own
    factor = np.exp(np.interp(np.arange(len(own)), points, ratios))
    return np.maximum.accumulate(own * factor)


def removed(
    trial: Unpruned, group: Group, gone: NDArray[np.int64], layers: Mapping[str, Linear], grams: Mapping[str, Matrix]
) -> ir.Model:
    """The model without these channels, its consumers refitted to their own Gram matrices."""
    model = cut.cut(trial.model, trial.coupling, group.atoms[gone])
    for layer, blocks in importance.consumers(group, layers):
        if layer.node not in grams:
            continue
        weight, bias = linear.matrix_of(trial.model, layer), linear.bias_of(trial.model, layer)
        keep = np.ones(len(weight) + 1, np.bool_)
        keep[blocks[gone].ravel()] = False
        row = np.zeros((1, weight.shape[1])) if bias is None else bias[None]
        fitted = hessian.refit(grams[layer.node], np.concatenate([weight, row]), keep)
        after = linear.find(model)[layer.node]
        mask = trial.coupling.keep((layer.weight, layer.out_axis), group.atoms[gone])
        if mask is not None:
            fitted = fitted[:, mask]
        linear.store(model, after, fitted[:-1], None if bias is None else fitted[-1])
    return model
