"""Repairing what is left without labels or gradients: least squares and bias correction, layer after layer.

Every layer is fitted to what the model before pruning computed at the same place; where the layer ends in a residual
Add, to the block's sum minus the pruned shortcut, so that it also corrects the error already on the stream. A repair
is judged on calibration batches it was not fitted to and kept only where it helps.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling.links import Coupling, Ids
from lepton_cli.data.dataset import Batch, Dataset
from lepton_cli.probe import activations, linear, moments
from lepton_cli.probe.linear import Linear, Matrix
from lepton_cli.probe.moments import Aim, LayerSample
from lepton_cli.probe.sequential import SequentialPass
from lepton_cli.prune import pairs
from lepton_cli.prune.details import LayerRepair
from lepton_cli.prune.regression import Regression, shifted
from lepton_cli.runtime import Values

#: Ridges tried, relative to the mean diagonal; the held-out batches choose.
RIDGES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
#: Columns of solutions that are judged by one product.
TOGETHER = 512
#: Rounds of fitting with regard to a ReLU.
ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Repair:
    """What was tried on one layer; errors are shares of the target's variance on held-out batches."""

    node: str
    kind: str
    kept: bool
    error_before: float
    error_after: float
    #: Fewer than two rows for each feature (the constant is one): the ridge had to decide.
    scarce: bool = False


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration data and how to run it."""

    data: Dataset
    workdir: Path
    threads: int
    seed: int
    samples: int


def aim(model: ir.Model, layer: Linear, coupling: Coupling, removed: Collection[int] | Ids) -> Aim:
    """The sum of the residual block that the layer ends, or the layer's own output."""
    values = {output.name: output for node in model.graph for output in node.outputs}
    target, shortcut = values[layer.biased], None
    uses = list(target.uses())
    if len(uses) == 1 and uses[0][0].op_type == "Add" and not target.is_graph_output():
        add, index = uses[0]
        other = add.inputs[1 - index]
        same = other is not None and coupling.facts.shapes.get(other.name or "") == coupling.facts.shapes.get(
            target.name or ""
        )
        if other is not None and same and other is not target and other.producer() is not None:
            target, shortcut = add.outputs[0], other.name
    readers = [node.op_type for node, _ in target.uses()]
    name = target.name or ""
    keep = coupling.keep((name, layer.channel_axis % len(coupling.facts.shapes[name])), removed)
    rectified = bool(readers) and set(readers) == {"Relu"} and not target.is_graph_output()
    return Aim(name, shortcut, keep, rectified)


class Repairer:
    """Walks through the pruned and the reference model side by side and fits layers on the way."""

    def __init__(
        self,
        reference: ir.Model,
        coupling: Coupling,
        removed: Collection[int] | Ids,
        source: Calibration,
        kinds: Collection[str],
    ) -> None:
        self._reference, self._coupling, self._removed = reference, coupling, removed
        self._source, self._kinds = source, kinds
        number = count(reference, source)
        self._share = 1 / number
        self._position = 0
        self._now, self._then = (
            SequentialPass(lambda: batches(reference, source), number, source.workdir, source.threads) for _ in range(2)
        )

    def close(self) -> None:
        """Remove what the walks keep on disk."""
        self._now.close()
        self._then.close()

    def repair(self, model: ir.Model, layers: Sequence[Linear]) -> list[Repair]:
        """Fit `layers`, which read the same input, in place. Call in topological order."""
        aimed = [
            (layer, aim(model, layer, self._coupling, self._removed), len(linear.matrix_of(model, layer)))
            for layer in layers
        ]
        first = layers[0].node
        self._position = _place(model, first)
        needed = [name for layer, where, _ in aimed for name in (layer.input, where.shortcut) if name is not None]
        now = self._now.visit(model, first, needed)
        then = self._then.visit(self._reference, first, [where.value for _, where, _ in aimed])
        found = moments.sample(aimed, zip(now, then, strict=True), self._share, self._source.seed)
        return [
            _repair_layer(model, layer, found[layer.node], where.rectified, self._kinds) for layer, where, _ in aimed
        ]

    def together(self, model: ir.Model, layers: Sequence[Linear]) -> list[Repair]:
        """Fit `layers`, which read the same input, and the one before them as one, in place, where that is possible.

        Call before `repair` of the same layers.
        """
        first = pairs.first_of(model, layers)
        if "least_squares" not in self._kinds or first is None or _place(model, first.node) < self._position:
            return []
        aimed = [(layer, aim(model, layer, self._coupling, self._removed)) for layer in layers]
        if all(where.shortcut is None for _, where in aimed):
            # Without an error on a stream to make up for there is little to win (SqueezeNet: nothing).
            return []
        read = (first.input, layers[0].input, *(where.shortcut for _, where in aimed))
        now = self._now.visit(model, first.node, [name for name in read if name is not None])
        then = self._then.visit(self._reference, first.node, [where.value for _, where in aimed])
        found = pairs.fit(model, first, aimed, zip(now, then, strict=True), self._share)
        if found is None:
            return []
        kept = found.error_after < found.error_before * 0.999
        if kept:
            for layer in (first, *layers):
                solution, bias = found.solutions[layer.node], linear.bias_of(model, layer)
                linear.store(model, layer, solution[:-1], None if bias is None else solution[-1])
        return [Repair(first.node, "pair", kept, found.error_before, found.error_after)]


def _place(model: ir.Model, node: str) -> int:
    return next(place for place, one in enumerate(model.graph) if one.name == node)


def _size(source: Calibration) -> int:
    """Samples a batch, small enough that some batches can be held out."""
    return max(1, min(32, source.samples // (2 * moments.HOLD_EVERY)))


def count(model: ir.Model, source: Calibration) -> int:
    """Number of calibration batches: as the model takes them, which may be one sample at a time."""
    return max(sum(1 for _ in _batches(model, source)), 1)


def _batches(model: ir.Model, source: Calibration) -> Iterator[Batch]:
    return activations.batches(model, source.data, _size(source), source.samples)


def batches(model: ir.Model, source: Calibration) -> Iterator[Values]:
    """Calibration batches."""
    return (batch.feeds for batch in _batches(model, source))


def _held(number: int) -> bool:
    return number % moments.HOLD_EVERY == moments.HOLD_EVERY - 1


def fitting(model: ir.Model, source: Calibration) -> Iterator[Values]:
    """The batches to fit with; what is fitted looks better on them than it is."""
    return (feeds for number, feeds in enumerate(batches(model, source)) if not _held(number))


def judging(model: ir.Model, source: Calibration, samples: int) -> list[Values]:
    """About `samples` samples of the batches held out; with too few batches for that, of the first."""
    found: list[Values] = []
    seen = 0
    for number, batch in enumerate(_batches(model, source)):
        if _held(number):
            found.append(batch.feeds)
            seen += batch.count
        if seen >= samples:
            break
    return found or list(itertools.islice(batches(model, source), 1))


def _repair_layer(model: ir.Model, layer: Linear, rows: LayerSample, rectified: bool, kinds: Collection[str]) -> Repair:
    """Try the repairs on the rows to fit, judge them on the held-out ones, keep the best if it helps."""
    moments.check_finite(layer, rows.x, rows.y)
    rows = _held_last(rows)
    count, fitted = len(rows.held), int((~rows.held).sum())
    everything = slice(0, count)
    # Slices, not masks: what they choose is no copy.
    rest, judge = (slice(0, fitted), slice(fitted, count)) if 0 < fitted < count else (everything, everything)
    bias = linear.bias_of(model, layer)
    weight = linear.matrix_of(model, layer)
    start = np.concatenate([weight, np.zeros((1, weight.shape[1])) if bias is None else bias[None]])
    before = error(rows, judge, start, rectified)
    tries: list[tuple[float, str, Callable[[], Matrix]]] = []
    if "least_squares" in kinds:
        tries.append(_least_squares(rows, rest, judge, start, bias is not None, rectified))
    if "bias" in kinds and bias is not None:
        moved = shifted(rows, rest, start)
        tries.append((error(rows, judge, moved, rectified), "bias", lambda: shifted(rows, everything, start)))
    if not tries:
        return Repair(layer.node, "none", False, before, before)
    after, kind, final = min(tries, key=lambda t: t[0])
    kept = after < before * 0.999
    if kept:
        solution = final()
        linear.store(model, layer, solution[:-1], None if bias is None else solution[-1])
    return Repair(layer.node, kind, kept, before, after, scarce=len(rows.x) < 2 * len(start))


def _held_last(rows: LayerSample) -> LayerSample:
    order = np.argsort(rows.held, kind="stable")
    return LayerSample(rows.x[order], rows.y[order], rows.offset[order], rows.held[order])


def error(rows: LayerSample, which: slice | NDArray[np.bool_], solution: Matrix, rectified: bool) -> float:
    """Squared error of these rows as a share of the target's variance, after the ReLU where there is one."""
    return errors(rows, which, [solution], rectified)[0]


def errors(
    rows: LayerSample, which: slice | NDArray[np.bool_], solutions: Sequence[Matrix], rectified: bool
) -> list[float]:
    """The errors of several solutions, multiplied together as far as they are narrow."""
    y, offset = rows.y[which], rows.offset[which]
    if rectified:
        y = np.maximum(y, 0)
    spread = max(float(np.square(y - y.mean(axis=0), dtype=np.float64).sum()), 1e-30)
    outputs = y.shape[1]
    found = []
    step = max(1, TOGETHER // outputs)
    for some in (solutions[k : k + step] for k in range(0, len(solutions), step)):
        guesses = rows.x[which] @ np.concatenate([solution[:-1] for solution in some], axis=1).astype(np.float32)
        for place, solution in enumerate(some):
            guess = guesses[:, place * outputs : (place + 1) * outputs] + solution[-1].astype(np.float32) + offset
            guess = np.maximum(guess, 0) if rectified else guess
            found.append(float(np.square(guess - y, dtype=np.float64).sum()) / spread)
    return found


def _least_squares(
    rows: LayerSample, rest: slice, judge: slice, start: Matrix, intercept: bool, rectified: bool
) -> tuple[float, str, Callable[[], Matrix]]:
    """Best held-out error over the ridges, with and without regard to the ReLU, and the same fit on all rows."""
    fit = moments.gram(rows.x[rest])
    part = Regression(rows, rest, fit, start, intercept)
    tried = errors(rows, judge, [part.solve(ridge) for ridge in RIDGES], rectified)
    scores = [(score, ridge, 0) for score, ridge in zip(tried, RIDGES, strict=True)]
    if rectified:
        ridge = min(scores)[1]
        scores.append((error(rows, judge, part.rectified(ridge, ROUNDS), True), ridge, ROUNDS))
    best, ridge, rounds = min(scores)

    def final() -> Matrix:
        whole = fit if rest == judge else fit + moments.gram(rows.x[judge])
        return Regression(rows, slice(0, len(rows.x)), whole, start, intercept).rectified(ridge, rounds)

    return best, "least_squares", final


def after_the_cut(
    model: ir.Model,
    coupling: Coupling,
    removed: Collection[int] | Ids,
    reference: ir.Model | None = None,
    stand_ins: Collection[str] = (),
) -> list[Linear]:
    """Linear layers whose inputs are not what they were, in topological order.

    `reference` and `stand_ins` tell of branches dropped (see `graph.branches`): nodes that read another value than
    before, and values that should become what a sum was; the layers that lead to those are fitted too.
    """
    changed: set[str] = set(stand_ins)
    before = {} if reference is None else {node.name: _read(node) for node in reference.graph}
    layers = linear.find(model)
    found = []
    for node in model.graph:
        names = [value.name or "" for value in node.inputs if value is not None]
        sliced = any(
            coupling.keep((name, axis), removed) is not None
            for name in names
            if name in model.graph.initializers
            for axis in range(len(coupling.facts.shapes.get(name, ())))
        )
        dirty = not changed.isdisjoint(names) or before.get(node.name, _read(node)) != _read(node)
        if sliced or dirty:
            changed.update(output.name or "" for output in node.outputs)
        layer = layers.get(node.name or "")
        if layer is not None and (dirty or (stand_ins and aim(model, layer, coupling, removed).value in stand_ins)):
            found.append(layer)
    return found


def _read(node: ir.Node) -> list[str]:
    """Names of the activations that a node reads."""
    return [value.name or "" for value in node.inputs if value is not None and not value.is_initializer()]


def stages(layers: Sequence[Linear]) -> list[list[Linear]]:
    """Consecutive layers that read the same input, fitted in one pass over the data."""
    found: list[list[Linear]] = []
    for layer in layers:
        if found and found[-1][0].input == layer.input and len(found[-1]) < 4:
            found[-1].append(layer)
        else:
            found.append([layer])
    return found


def facts(repairs: Sequence[Repair]) -> tuple[LayerRepair, ...]:
    """For the report."""
    return tuple(LayerRepair(**dataclasses.asdict(repair)) for repair in repairs)
