"""Least squares for one layer: ridge regression around the weights it has, with regard to a ReLU behind it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lepton_cli.probe.linear import Matrix
from lepton_cli.probe.moments import LayerSample, Rows


class Regression:
    """Ridge regression around the weights a layer has; the intercept is free, or fixed where there is no bias."""

    def __init__(
        self, rows: LayerSample, which: slice | NDArray[np.bool_], moments: Matrix, start: Matrix, intercept: bool
    ) -> None:
        self._y, self._offset = rows.y[which], rows.offset[which]
        self._start, self._intercept = start, intercept
        count, size = float(moments[-1, -1]), len(start) - 1
        self._mean = moments[-1, :size] / max(count, 1.0) if intercept else np.zeros(size)
        # Centred: in float32, features far off the origin would hide the little that tells them apart.
        self._x = rows.x[which] - self._mean.astype(np.float32)
        values, self._axes = np.linalg.eigh(moments[:size, :size] - count * np.outer(self._mean, self._mean))
        self._values = np.maximum(values, 0.0)
        self._plain = self._y - self._offset
        self._before = self._product(start)
        #: What does not depend on the ridge, for the rows' own targets.
        self._own = self._moment(self._plain)

    def solve(self, ridge: float, target: Rows | None = None) -> Matrix:
        """[weight, bias] for the rows' own targets or for others; `ridge` relative to the mean diagonal."""
        size = len(self._start) - 1
        mean, moment = self._own if target is None else self._moment(target)
        damping = ridge * max(float(self._values.mean()), 1e-12)
        step = self._axes @ (moment / (self._values + damping)[:, None])
        last = mean - self._mean @ step if self._intercept else self._start[size]
        return np.concatenate([self._start[:size] + step, last[None]])

    def _moment(self, target: Rows) -> tuple[Matrix, Matrix]:
        """Mean of what the start leaves of the target, and the rest along the features (in the axes' basis)."""
        residual = target - self._before
        mean = residual.mean(axis=0, dtype=np.float64) if self._intercept else self._start[-1]
        moment = np.asarray(self._x.T @ (residual - mean.astype(np.float32)), np.float64)
        return mean, self._axes.T @ moment

    def _product(self, solution: Matrix) -> Rows:
        """Features times weights, without the bias."""
        return self._x @ solution[:-1].astype(np.float32) + (self._mean @ solution[:-1]).astype(np.float32)

    def rectified(self, ridge: float, rounds: int) -> Matrix:
        """The same with a ReLU behind: where the target is at most zero, any value at most zero is right.

        Majorisation: each round fits to the targets with those entries replaced by what the last round gave.
        """
        solution = self.solve(ridge)
        floor = -self._offset
        for _ in range(rounds):
            guess = self._product(solution) + solution[-1].astype(np.float32)
            solution = self.solve(ridge, np.where(self._y > 0, self._plain, np.minimum(guess, floor)))
        return solution


def shifted(rows: LayerSample, which: slice | NDArray[np.bool_], start: Matrix) -> Matrix:
    """`start` with the bias that makes the mean right."""
    guess = rows.x[which] @ start[:-1].astype(np.float32) + start[-1].astype(np.float32)
    moved = start.copy()
    moved[-1] += (rows.y[which] - rows.offset[which] - guess).mean(axis=0, dtype=np.float64)
    return moved
