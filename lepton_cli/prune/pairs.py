"""A layer, a ReLU and the layers that read it, fitted together to what those should lead to.

Fitted one after the other, the first layer imitates its own old outputs, though fewer of them are left. Here it may
compute others: descent on both sides of the ReLU at once, each gradient multiplied by the inverse of the layer's Gram
matrix (the input's side of K-FAC, Martens & Grosse 2015), the lengths of all steps and of the last one chosen together
by least squares (as in LOBPCG, Knyazev 2001). Held-out samples say when to stop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.probe import linear, moments
from lepton_cli.probe.linear import Linear, Matrix
from lepton_cli.probe.moments import Aim, Rows
from lepton_cli.prune import hessian
from lepton_cli.runtime import Values

#: Rows of a layer at most, and multiply-accumulates of one product of all its rows with its weights.
ROWS, EFFORT = 65_536, 1e9
#: Rows for each feature; with fewer the fit follows their noise.
ENOUGH = 16
#: Steps, and the share that each must take off the held-out error.
STEPS, GAIN = 6, 0.005


@dataclasses.dataclass(frozen=True)
class PairFit:
    """[weight, bias] by node; held-out errors as shares of the targets' variance, a mean over the readers."""

    solutions: dict[str, Matrix]
    error_before: float
    error_after: float


def first_of(model: ir.Model, readers: Sequence[Linear]) -> Linear | None:
    """The layer whose outputs only a ReLU reads, and the ReLU's only these."""
    values = {output.name: output for node in model.graph for output in node.outputs}
    hidden = values.get(readers[0].input)
    relu = None if hidden is None else hidden.producer()
    if hidden is None or relu is None or relu.op_type != "Relu" or relu.inputs[0] is None:
        return None
    nodes = {reader.node for reader in readers}
    if hidden.is_graph_output() or not nodes.issuperset(node.name or "" for node, _ in hidden.uses()):
        return None
    before = relu.inputs[0]
    found = next((one for one in linear.find(model).values() if one.biased == before.name), None)
    alone = len(before.uses()) == 1 and not before.is_graph_output()
    same = found is not None and all(bool(found.kernel) == bool(reader.kernel) for reader in readers)
    return found if alone and same and all(one.auto_pad == "NOTSET" for one in readers) else None


@dataclasses.dataclass(frozen=True)
class _Reader:
    """What a reader should lead to; its part of the error is over the variance of that."""

    layer: Linear
    rectified: bool
    y: Rows
    offset: Rows
    #: Rows to fit; those behind are held out.
    fit: int
    spread: float

    def error(self, guess: Rows) -> float:
        """Squared error of the rows held out, behind the ReLU where there is one, over the variance."""
        y, guess = self.y[self.fit :], guess[self.fit :]
        if self.rectified:
            y, guess = np.maximum(y, 0), np.maximum(guess, 0)
        return float(np.square(guess - y, dtype=np.float64).mean()) / self.spread

    def missing(self, guess: Rows) -> tuple[Rows, NDArray[np.bool_]]:
        """What the guess lacks to fit, and the entries that matter.

        Behind a ReLU those do not that are at most zero in both, as they should; others below zero are drawn up.
        """
        y, guess = self.y[: self.fit], guess[: self.fit]
        if not self.rectified:
            return y - guess, np.ones((1, 1), np.bool_)
        matters = (y > 0) | (guess > 0)
        return np.where(matters, np.maximum(y, 0) - guess, np.float32(0)), matters


@dataclasses.dataclass(frozen=True)
class _Step:
    """A change of all solutions, the first layer's first, and what it changes at every reader's rows to fit."""

    change: list[Matrix]
    effect: list[Rows]


def fit(
    model: ir.Model,
    first: Linear,
    readers: Sequence[tuple[Linear, Aim]],
    values: Iterable[tuple[Values, Values]],
    share: float,
) -> PairFit | None:
    """The best solutions of all layers on held-out batches; `None` where data is too little.

    `values` gives every batch's values of the pruned and of the reference model; `share` is one batch's share of all.
    """
    layers = [first, *(layer for layer, _ in readers)]
    starts = [_solution(model, layer) for layer in layers]
    most = min(ROWS, *(int(EFFORT / start.size) for start in starts))
    if any(most < ENOUGH * len(start) for start in starts):
        return None
    seen = list(_samples(first, readers, values, most, share))
    ordered = sorted(seen, key=lambda part: part[0])  # what is held out comes last
    if not seen or ordered[0][0] or not ordered[-1][0]:
        return None
    shape = (sum(size[0] for _, size, _ in seen), *seen[0][1][1:])
    count = sum(size[0] for held, size, _ in seen if not held)
    inputs, *targets = (np.concatenate([arrays[k] for _, _, arrays in ordered]) for k in range(2 * len(readers) + 1))
    x = first.features(inputs)
    found = []
    for (layer, aim), y, offset in zip(readers, targets[::2], targets[1::2], strict=True):
        rows = layer.rows(y)
        moments.check_finite(layer, x, rows)
        wanted = np.maximum(rows, 0) if aim.rectified else rows
        spread = max(float(np.square(wanted - wanted.mean(axis=0), dtype=np.float64).mean()), 1e-30)
        fit_rows = len(rows) // shape[0] * count
        found.append(_Reader(layer, aim.rectified, rows, layer.rows(offset), fit_rows, spread))
    counts = [len(x) // shape[0] * count, *(reader.fit for reader in found)]
    if any(number < ENOUGH * len(start) for number, start in zip(counts, starts, strict=True)):
        return None
    free = [linear.bias_of(model, layer) is not None for layer in layers]
    descent = _Descent(first, x, shape, count, found, free)
    best, before, after = descent.run(starts)
    nodes = [layer.node for layer in layers]
    return PairFit(dict(zip(nodes, best, strict=True)), before / len(found), after / len(found))


def _solution(model: ir.Model, layer: Linear) -> Matrix:
    weight, bias = linear.matrix_of(model, layer), linear.bias_of(model, layer)
    return np.concatenate([weight, np.zeros((1, weight.shape[1])) if bias is None else bias[None]])


def _samples(
    first: Linear,
    readers: Sequence[tuple[Linear, Aim]],
    values: Iterable[tuple[Values, Values]],
    most: int,
    share: float,
) -> Iterator[tuple[bool, tuple[int, ...], list[NDArray[np.float32]]]]:
    """Of every batch its share of the rows in whole samples (what is left over counts for the next one).

    Gives whether they are held out, the shape of the values between, and arrays: the first layer's inputs, then the
    targets and offsets of every reader.
    """
    owed = {False: 0.0, True: 0.0}
    shape: tuple[int, ...] = ()
    for number, (now, then) in enumerate(values):
        held = number % moments.HOLD_EVERY == moments.HOLD_EVERY - 1
        hidden = now[readers[0][0].input]
        shape = shape or hidden.shape[1:]
        if not shape or hidden.shape[1:] != shape:  # no batch, or samples of another size
            continue
        owed[held] += most * share / max(hidden[0].size // hidden.shape[first.channel_axis], 1)
        take = min(len(hidden), int(owed[held]))
        owed[held] -= take
        arrays = [now[first.input][:take].copy()]  # a view would keep the batch
        for layer, aim in readers:
            target = then[aim.value][:take].copy()
            arrays.append(target if aim.keep is None else np.compress(aim.keep, target, layer.channel_axis))
            arrays.append(np.zeros_like(arrays[-1]) if aim.shortcut is None else now[aim.shortcut][:take].copy())
        if take:
            yield held, (take, *shape), arrays


class _Descent:
    """Descent from the solutions that the layers have."""

    def __init__(
        self, first: Linear, x: Rows, shape: tuple[int, ...], count: int, readers: list[_Reader], free: list[bool]
    ) -> None:
        self._first, self._x, self._readers, self._free = first, x, readers, free
        self._shape, self._fit_shape = shape, (count, *shape[1:])
        self._rows = len(x) // shape[0] * count
        self._inverses = [hessian.inverse(moments.gram(x[: self._rows]))]

    def run(self, solutions: list[Matrix]) -> tuple[list[Matrix], float, float]:
        """The best solutions, and the held-out error before and after."""
        best, errors, last = solutions, list[float](), None
        for _ in range(STEPS + 1):
            z = _product(self._x, solutions[0])
            features = self._features(np.maximum(z, 0), self._shape)
            guesses = [
                _product(f, s) + r.offset for r, f, s in zip(self._readers, features, solutions[1:], strict=True)
            ]
            errors.append(sum(reader.error(guess) for reader, guess in zip(self._readers, guesses, strict=True)))
            if errors[-1] <= min(errors):
                best = solutions
            if len(errors) > STEPS or (len(errors) > 1 and errors[-1] > errors[-2] * (1 - GAIN)):
                break
            lacks = [reader.missing(guess) for reader, guess in zip(self._readers, guesses, strict=True)]
            last = self._step(solutions, z, features, lacks, last)
            solutions = [s + change for s, change in zip(solutions, last.change, strict=True)]
        return best, errors[0], min(errors)

    def _features(self, hidden: Rows, shape: tuple[int, ...]) -> list[Rows]:
        """Of every reader, of the first layer's rows."""
        axis = self._first.channel_axis % len(shape)
        image = hidden.reshape(*(size for place, size in enumerate(shape) if place != axis), shape[axis])
        return [reader.layer.features(np.moveaxis(image, -1, axis)) for reader in self._readers]

    def _step(
        self,
        solutions: list[Matrix],
        z: Rows,
        features: list[Rows],
        lacks: list[tuple[Rows, NDArray[np.bool_]]],
        last: _Step | None,
    ) -> _Step:
        """The best sum of the multiplied gradients of all layers, and of the last step."""
        seen = [f[: r.fit] for r, f in zip(self._readers, features, strict=True)]
        lack = [e for e, _ in lacks]
        if len(self._inverses) == 1:
            self._inverses += [hessian.inverse(moments.gram(f)) for f in seen]
        x, alive = self._x[: self._rows], z[: self._rows] > 0
        back = np.zeros((self._rows, z.shape[1]), np.float32)
        for reader, e, solution in zip(self._readers, lack, solutions[1:], strict=True):
            rows = (e / np.float32(reader.spread * e.size)) @ solution[:-1].T.astype(np.float32)
            back += self._first.rows(adjoint(reader.layer, rows, self._fit_shape))
        inner = self._gradient(0, x, back * alive)
        moved = self._features(_product(x, inner) * alive, self._fit_shape)
        outer = [self._gradient(k + 1, f, e) for k, (f, e) in enumerate(zip(seen, lack, strict=True))]
        nothing = [np.zeros_like(solution) for solution in solutions]
        steps = [
            _Step(
                [inner, *nothing[1:]],
                [f @ s[:-1].astype(np.float32) for f, s in zip(moved, solutions[1:], strict=True)],
            )
        ]
        for k, (change, f) in enumerate(zip(outer, seen, strict=True)):
            effect = [np.zeros((1, 1), np.float32)] * len(seen)
            effect[k] = _product(f, change)
            steps.append(_Step([*nothing[: k + 1], change, *nothing[k + 2 :]], effect))
        steps += [] if last is None else [last]
        lengths = self._lengths(steps, lacks)
        return _Step(
            [
                sum((c * s.change[k] for c, s in zip(lengths, steps, strict=True)), np.zeros(()))
                for k in range(len(nothing))
            ],
            [
                sum(
                    (np.float32(c) * s.effect[k] for c, s in zip(lengths, steps, strict=True)), np.zeros((), np.float32)
                )
                for k in range(len(seen))
            ],
        )

    def _gradient(self, index: int, x: Rows, error: Rows) -> Matrix:
        """Multiplied by the inverse of the layer's Gram matrix; a layer without a bias keeps none."""
        last = error.sum(axis=0, dtype=np.float64) * self._free[index]
        found = self._inverses[index] @ np.concatenate([np.asarray(x.T @ error, np.float64), last[None]])
        found[-1] *= self._free[index]
        return np.asarray(found)

    def _lengths(self, steps: Sequence[_Step], lacks: Sequence[tuple[Rows, NDArray[np.bool_]]]) -> NDArray[np.float64]:
        """The lengths that leave the least error if effects add up."""
        left, right = np.zeros((len(steps), len(steps))), np.zeros(len(steps))
        for k, (reader, (e, m)) in enumerate(zip(self._readers, lacks, strict=True)):
            effects = np.stack([np.broadcast_to(step.effect[k] * m, e.shape).ravel() for step in steps])
            left += (effects @ effects.T) / (reader.spread * e.size)
            right += (effects @ e.ravel()) / (reader.spread * e.size)
        size = np.sqrt(np.maximum(np.diag(left), 1e-300))
        return np.asarray(np.linalg.lstsq(left / np.outer(size, size), right / size, rcond=1e-6)[0] / size)


def _product(x: Rows, solution: Matrix) -> Rows:
    return np.asarray(x @ solution[:-1].astype(np.float32) + solution[-1].astype(np.float32))


def adjoint(layer: Linear, rows: Rows, shape: Sequence[int]) -> NDArray[np.float32]:
    """Adjoint of `Linear.features` (without `auto_pad`): rows added up where they were read from, of this shape."""
    if not layer.kernel:
        return rows.reshape(shape)
    dims = len(layer.kernel)
    pads = layer.pads or (0,) * (2 * dims)
    sizes = [size + pads[i] + pads[i + dims] for i, size in enumerate(shape[2:])]
    padded = np.zeros((*shape[:2], *sizes), np.float32)
    counts = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, s, d in zip(sizes, layer.kernel, layer.strides, layer.dilations, strict=True)
    ]
    columns = np.moveaxis(rows.reshape(shape[0], *counts, shape[1], *layer.kernel), 1 + dims, 1)
    for offset in np.ndindex(*layer.kernel):
        where = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offset, layer.dilations, counts, layer.strides, strict=True)
        )
        padded[(slice(None), slice(None), *where)] += columns[(..., *offset)]
    inside = tuple(slice(pads[i], pads[i] + size) for i, size in enumerate(shape[2:]))
    return padded[(slice(None), slice(None), *inside)]
