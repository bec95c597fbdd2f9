"""Gram matrices of layer inputs and targets, streamed: memory does not grow with the number of samples."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_cli.prune.linear import Linear, Matrix
from lepton_cli.prune.taps import Arrays

#: Rows taken from one layer over the whole calibration set; positions of one image are much alike.
ROWS = 65_536
#: Every so many batches one is held out to judge what the others suggest.
HOLD_EVERY = 4


@dataclasses.dataclass
class Moments:
    """Sums over rows: features x features, features x targets, targets squared. The last feature is the constant 1."""

    xx: Matrix
    xy: Matrix
    yy: float = 0.0
    y: Matrix = dataclasses.field(default_factory=lambda: np.zeros(0))
    rows: int = 0

    @classmethod
    def empty(cls, features: int, outputs: int) -> Moments:
        """Nothing seen yet; `features` without the constant."""
        return cls(np.zeros((features + 1, features + 1)), np.zeros((features + 1, outputs)), 0.0, np.zeros(outputs))

    def add(self, x: NDArray[np.float32], y: NDArray[np.float32] | None) -> None:
        """Count rows in. Products of one batch in float32, sums over batches in float64."""
        n = x.shape[1]
        self.xx[:n, :n] += x.T @ x
        sums = x.sum(axis=0, dtype=np.float64)
        self.xx[n, :n] += sums
        self.xx[:n, n] += sums
        self.xx[n, n] += len(x)
        self.rows += len(x)
        if y is not None:
            self.xy[:n] += x.T @ y
            totals = y.sum(axis=0, dtype=np.float64)
            self.xy[n] += totals
            self.y += totals
            self.yy += float(np.square(y, dtype=np.float64).sum())

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.xx + other.xx, self.xy + other.xy, self.yy + other.yy, self.y + other.y, self.rows + other.rows
        )

    def error(self, solution: Matrix) -> float:
        """Squared error of `[x, 1] @ solution` as a share of the targets' variance."""
        residual = float(np.sum(solution * (self.xx @ solution)) - 2 * np.sum(solution * self.xy)) + self.yy
        return max(residual, 0.0) / max(self.variance(), 1e-30)

    def variance(self) -> float:
        """Sum of squared deviations of the targets from their means."""
        return self.yy - float(np.sum(self.y**2)) / max(self.rows, 1)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One layer to look at, and how to get its target from the two models' values (`None`: inputs only)."""

    linear: Linear
    outputs: int
    features: int
    target: Callable[[Arrays, Arrays], NDArray[np.float32]] | None = None


def collect(
    wanted: Sequence[Wanted],
    batches: Iterable[Arrays],
    current: Callable[[Arrays], Arrays],
    reference: Callable[[Arrays], Arrays] | None,
    samples: int,
    seed: int,
) -> dict[str, tuple[Moments, Moments]]:
    """Moments to fit with and moments held out, by node. `samples` is the size of the calibration set."""
    found = {
        w.linear.node: (Moments.empty(w.features, w.outputs), Moments.empty(w.features, w.outputs)) for w in wanted
    }
    for number, feeds in enumerate(batches):
        now = current(feeds)
        then = reference(feeds) if reference is not None else {}
        held = number % HOLD_EVERY == HOLD_EVERY - 1
        for w in wanted:
            pick = _picker(w, feeds, samples, seed, number)
            x = w.linear.features(now[w.linear.input], pick)
            y = None if w.target is None else w.linear.rows(w.target(now, then), pick)
            found[w.linear.node][held].add(x, y)
    return found


def _picker(
    w: Wanted, feeds: Mapping[str, NDArray[np.float32]], samples: int, seed: int, batch: int
) -> Callable[[int], NDArray[np.int64]]:
    """Chooses this batch's share of the rows, the same for features and targets."""
    here = len(next(iter(feeds.values())))
    share = max(ROWS, 24 * w.features) * here / max(samples, 1)

    def pick(total: int) -> NDArray[np.int64]:
        if total <= share:
            return np.arange(total)
        generator = np.random.default_rng([seed, batch, zlib.crc32(w.linear.node.encode())])
        return np.sort(generator.choice(total, round(share), replace=False, shuffle=False))

    return pick
