"""Optimal-brain removal of input channels: which cost least, and how the remaining weights make up for them.

With H the Gram matrix of a layer's inputs and W its weights, removing the rows S of W and correcting the others costs
tr(W_S^T ([H^-1]_SS)^-1 W_S) (Hassibi & Stork 1993; blocks as in ZipLM, Kurtic et al. 2023).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from lepton_cli.probe.linear import Matrix

#: Up to this many features channels go one at a time; beyond, in shares of what is left.
ONE_BY_ONE = 640
#: Relative ridge on the Gram matrix.
RIDGE = 1e-3


@dataclasses.dataclass
class Side:
    """One consumer of a group: its Gram matrix (constant feature last), weights and the features of every channel."""

    gram: Matrix
    #: [features + 1, outputs], bias as the last row.
    weight: Matrix
    #: [channels, features per channel].
    blocks: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Channels in the order of removal (indices into the group), and the relative loss after each removal."""

    order: NDArray[np.int64]
    loss: NDArray[np.float64]


def inverse(gram: Matrix, ridge: float = RIDGE) -> Matrix:
    """Inverse of the Gram matrix with a ridge on everything but the constant."""
    size = len(gram) - 1
    diagonal = np.diag(gram)[:size]
    damped = gram.copy()
    damped[np.arange(size), np.arange(size)] += ridge * max(float(diagonal.mean()), 1e-12)
    damped[size, size] += 1e-9 * max(damped[size, size], 1e-9)
    inverted = np.linalg.inv(damped)
    return (inverted + inverted.T) / 2


def energy(gram: Matrix, weight: Matrix) -> float:
    """Variance of a layer's outputs, as its Gram matrix and weights tell."""
    count = max(float(gram[-1, -1]), 1.0)
    mean = gram[-1] @ weight
    return max(float(np.sum(weight * (gram @ weight)) - np.sum(mean**2) / count), 1e-12)


def rank(sides: list[Side]) -> Ranking:
    """Order of removal down to one channel; losses are summed over the consumers, each relative to its energy."""
    states = [_State(side) for side in sides]
    channels = len(sides[0].blocks)
    left = np.arange(channels)
    large = max(len(side.gram) for side in sides) > ONE_BY_ONE
    order: list[int] = []
    loss: list[float] = []
    total = 0.0
    while len(left) > 1:
        cost = sum((state.costs(left) for state in states), np.zeros(len(left)))
        count = max(1, len(left) // 24) if large else 1
        places = np.argsort(cost, kind="stable")[:count]
        gone = left[places]
        before, total = total, total + sum(state.remove(gone) for state in states)
        order += gone.tolist()
        loss += [before + (total - before) * (k + 1) / count for k in range(count)]
        left = np.delete(left, places)
    order += left.tolist()
    return Ranking(np.array(order, np.int64), np.array(loss))


class _State:
    """Inverse and weights of one consumer while channels leave it; rows of gone features are dropped now and then."""

    def __init__(self, side: Side) -> None:
        self.inverse = inverse(side.gram)
        self.weight = side.weight.copy()
        self.blocks = side.blocks.copy()
        self.scale = 1.0 / energy(side.gram, side.weight)
        self._gone = np.zeros(len(side.gram), np.bool_)

    def costs(self, left: NDArray[np.int64]) -> Matrix:
        """Cost of removing each channel that is left, one by one."""
        rows = self.blocks[left]
        weights = self.weight[rows]
        if rows.shape[1] == 1:
            corner = self.inverse[rows[:, 0], rows[:, 0]]
            return np.asarray(np.sum(weights[:, 0] ** 2, axis=1) / corner * self.scale)
        corners = self.inverse[rows[:, :, None], rows[:, None, :]]
        return np.asarray(np.sum(weights * np.linalg.solve(corners, weights), axis=(1, 2)) * self.scale)

    def remove(self, gone: NDArray[np.int64]) -> float:
        """Take channels out, correct the remaining weights; returns the relative loss."""
        rows = self.blocks[gone].ravel()
        columns = self.inverse[:, rows]
        solved = np.linalg.solve(columns[rows], np.concatenate([self.weight[rows], columns.T], axis=1))
        outputs = self.weight.shape[1]
        loss = float(np.sum(self.weight[rows] * solved[:, :outputs])) * self.scale
        self.weight -= columns @ solved[:, :outputs]
        self.inverse -= columns @ solved[:, outputs:]
        self._gone[rows] = True
        self.weight[self._gone] = 0.0
        if self._gone.sum() > len(self._gone) // 4:
            self._compact()
        return max(loss, 0.0)

    def _compact(self) -> None:
        stay = np.flatnonzero(~self._gone)
        place = np.cumsum(~self._gone) - 1
        self.inverse = self.inverse[np.ix_(stay, stay)]
        self.weight = self.weight[stay]
        self.blocks = place[self.blocks]
        self._gone = np.zeros(len(stay), np.bool_)


def refit(gram: Matrix, weight: Matrix, keep: NDArray[np.bool_]) -> Matrix:
    """Weights of the kept features that best reproduce the full layer: [kept, outputs] (the constant must be kept)."""
    size = len(gram) - 1
    damped = gram.copy()
    damped[np.arange(size), np.arange(size)] += RIDGE * max(float(np.diag(gram)[:size].mean()), 1e-12)
    return np.asarray(np.linalg.solve(damped[np.ix_(keep, keep)], damped[keep] @ weight))
