"""What layers see on calibration data: Gram matrices, or a bounded sample of rows with their targets.

Rows are drawn evenly over all batches, so memory does not grow with the number of samples.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_cli.errors import StepError
from lepton_cli.probe.linear import Linear, Matrix
from lepton_cli.runtime import Values

Rows = NDArray[np.float32]
#: Rows taken from one layer over the whole calibration set; positions of one image are much alike.
ROWS = 65_536
#: Bytes of one layer's sampled features.
SAMPLE_BYTES = 250_000_000
#: Every so many batches one is held out to judge what the others suggest.
HOLD_EVERY = 4


def gram(x: Rows) -> Matrix:
    """`[x, 1]^T [x, 1]`: products in float32, the constant's sums in float64."""
    size = x.shape[1]
    result = np.empty((size + 1, size + 1))
    result[:size, :size] = x.T @ x
    result[size, :size] = result[:size, size] = x.sum(axis=0, dtype=np.float64)
    result[size, size] = len(x)
    return result


@dataclasses.dataclass
class Moments:
    """Sums over rows: `second` [groups, K, K], `first` [groups, K], and their number."""

    second: NDArray[np.float64]
    first: NDArray[np.float64]
    count: int = 0

    def add(self, rows: NDArray[np.float32]) -> None:
        """Add rows [groups, n, K]."""
        self.second += np.matmul(rows.transpose(0, 2, 1), rows)
        self.first += rows.sum(axis=1, dtype=np.float64)
        self.count += rows.shape[1]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean row per group, [groups, K]."""
        return self.first / max(self.count, 1)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Covariance per group, [groups, K, K]: what an adjusted bias cannot make up for."""
        return self.second / max(self.count, 1) - self.mean[:, :, None] * self.mean[:, None, :]


def grams(
    layers: Sequence[Linear],
    features: Sequence[int],
    batches: Iterable[Values],
    run: Callable[[Values], Values],
    share: float,
    seed: int,
) -> dict[str, Matrix]:
    """Gram matrix of every layer's inputs (constant last), by node: batches in float32, their sum in float64.

    `share`: what one batch is of all of them.
    """
    found = {layer.node: np.zeros((size + 1, size + 1)) for layer, size in zip(layers, features, strict=True)}
    for number, feeds in enumerate(batches):
        values = run(feeds)
        for layer, size in zip(layers, features, strict=True):
            pick = picker(layer, size, share, seed, number)
            rows = layer.features(values[layer.input], pick)
            check_finite(layer, rows)
            found[layer.node] += gram(rows)
    return found


def check_finite(layer: Linear, *arrays: Rows) -> None:
    """Raise StepError when the layer sees infinities or NaN."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise StepError(
            "prune.non-finite",
            f"the activations at `{layer.node}` are not finite on the calibration data",
            hint="check the preprocessing, or exclude this part of the model",
        )


@dataclasses.dataclass(frozen=True)
class Aim:
    """Where a layer's target is read: a value of the reference, minus a value of the pruned model.

    `keep` masks the target's channels that are left; `rectified`: only a ReLU reads the sum, so that values below
    zero need no precision.
    """

    value: str
    shortcut: str | None
    keep: NDArray[np.bool_] | None
    rectified: bool


@dataclasses.dataclass(frozen=True)
class LayerSample:
    """Rows of features with the values they should lead to: `x @ weight + bias + offset` is compared with `y`."""

    x: Rows
    y: Rows
    #: The pruned shortcut that is added to the layer's output; zeros where there is none.
    offset: Rows
    #: Rows of held-out batches.
    held: NDArray[np.bool_]


def sample(
    layers: Sequence[tuple[Linear, Aim, int]], values: Iterable[tuple[Values, Values]], share: float, seed: int
) -> dict[str, LayerSample]:
    """Rows for every layer (with its aim and number of features), by node.

    `values` gives every batch's values of the pruned and of the reference model; `share` is one batch's share of all.
    """
    parts: dict[str, list[tuple[Rows, Rows, Rows, bool]]] = {layer.node: [] for layer, _, _ in layers}
    for number, (now, then) in enumerate(values):
        for layer, aim, size in layers:
            pick = picker(layer, size, share, seed, number)
            y = then[aim.value] if aim.keep is None else np.compress(aim.keep, then[aim.value], layer.channel_axis)
            rows = layer.rows(y, pick)
            offset = np.zeros((1, 1), np.float32) if aim.shortcut is None else layer.rows(now[aim.shortcut], pick)
            held = number % HOLD_EVERY == HOLD_EVERY - 1
            x = layer.features(now[layer.input], pick)
            parts[layer.node].append((x, rows, np.broadcast_to(offset, rows.shape), held))
    return {node: _joined(found) for node, found in parts.items()}


def _joined(parts: Sequence[tuple[Rows, Rows, Rows, bool]]) -> LayerSample:
    held = np.concatenate([np.full(len(x), flag) for x, _, _, flag in parts])
    x, y, offset = (np.concatenate([part[k] for part in parts]) for k in range(3))
    return LayerSample(x, y, offset, held)


def picker(layer: Linear, features: int, share: float, seed: int, batch: int) -> Callable[[int], NDArray[np.int64]]:
    """Chooses this batch's share of the rows, the same for features and targets."""
    most = max(min(ROWS, SAMPLE_BYTES // (4 * features)), 4 * features)
    wanted = round(most * share)

    def pick(total: int) -> NDArray[np.int64]:
        if total <= wanted:
            return np.arange(total)
        generator = np.random.default_rng([seed, batch, zlib.crc32(layer.node.encode())])
        return np.sort(generator.choice(total, wanted, replace=False, shuffle=False))

    return pick
