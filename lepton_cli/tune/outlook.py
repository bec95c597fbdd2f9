"""What a candidate will measure before anything was made of it: a mean, an interval, the chance of holding a limit.

A law foretells it from the tables (`Drop`, `Ratio`). What the law does not know is a Gaussian process around it, which
earlier trials correct: most at their own place, less at places that differ. The numbers of the law are not fitted: a
grid of hypotheses is weighted by how likely each makes the trials, so that few trials give wide intervals (Rasmussen
and Williams, Gaussian Processes for Machine Learning, 2006, eq. 2.25, 2.26 and 5.8). With hypothesis h, features x have

    value(x) = law_h(x) + offset_h(x) u(precision, choices) + scatter_h(x) g(position, precision, choices) + noise

where u and g have variance 1. Each choice that differs multiplies their correlation by `ALIKE`; along the position
(the logarithm of loss or share) and the training it falls exponentially: such a process is rough, so that near trials
do not rule out surprises.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lepton_cli.report.trial import Value
from lepton_cli.tune.expected import Expected

_Array = NDArray[np.float64]
#: Of offset and of scatter between two lists of features, each [N, M].
_Correlations = tuple[_Array, _Array]

#: The precision that a model comes in: without pruning nothing is lost.
FLOAT = "float"
#: Correlation that one choice more that differs leaves, and distances in logarithms over which it falls to 1/e: of loss
#: or share, and of 1 + epochs.
ALIKE, LENGTH, TRAINING = 0.9, 0.7, 3.0
#: Loss by the tables at which the scale of a drop is said, and what counts as no and as any loss.
REFERENCE, _NONE, _ALL = 0.05, 1e-6, 1e3
#: Weight of the hypotheses left out of a prediction.
_LEFT_OUT = 5e-3
#: Of a variance, added to it: what double precision leaves of a matrix of many equal rows.
_JITTER = 1e-9
#: Hypotheses in one batch: their matrices stay in the processor's cache.
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Features:
    """What is known of a candidate before it is made."""

    precision: str
    #: Of its widths by the pruner's tables, >= 0; 0: unpruned.
    loss: float = 0.0
    #: Shares of the original's, by the tables.
    time: float = 1.0
    bytes: float = 1.0
    #: Epochs of training behind pruning.
    trained: float = 0.0
    #: Other choices by name; one that is not named is `None`.
    options: tuple[tuple[str, Value], ...] = ()


@dataclasses.dataclass(frozen=True)
class Observation:
    """A measured value with its standard error, which is large where few samples were looked at."""

    features: Features
    value: float
    error: float


@dataclasses.dataclass(frozen=True)
class Terms:
    """Of H hypotheses at N places, each [H, N]: the law, and the deviations of offset and scatter around it."""

    law: _Array
    offset: _Array
    scatter: _Array

    def __getitem__(self, chosen: NDArray[np.intp]) -> Terms:
        """Some of the hypotheses."""
        return Terms(self.law[chosen], self.offset[chosen], self.scatter[chosen])


class Quantity(Protocol):
    """What is foretold. `floor`: errors below it are not told apart; `usual`: deviation of a precision's offset;
    `most`: no value is larger."""

    @property
    def logarithmic(self) -> bool: ...

    @property
    def floor(self) -> float: ...

    @property
    def usual(self) -> float: ...

    @property
    def most(self) -> float: ...

    def hypotheses(self) -> tuple[_Array, _Array]:
        """Their parameters [H, P] and weights [H] before any trial."""
        ...

    def terms(self, hypotheses: _Array, features: Sequence[Features]) -> Terms: ...

    def doubt(self, values: _Array) -> _Array:
        """What is added to the standard errors of values when hypotheses are weighed by them."""
        ...

    def positions(self, features: Sequence[Features]) -> tuple[_Array, _Array]:
        """Where they lie along the law and in training, [N] each, in lengths over which correlations fall to 1/e."""
        ...


@dataclasses.dataclass(frozen=True)
class Drop:
    """What quality loses: scale (loss / REFERENCE)^power, times `healing` where training follows, and an offset of the
    precision. `unit`: a drop that matters, such as 0.01 of an accuracy; `most`: where it ends, as everything is lost.

    What one unit of loss costs differs from network to network by an order of magnitude, and an offset is small or a
    collapse: both are grids with wide weights. Scales and offsets are in units.
    """

    unit: float
    most: float = math.inf
    scales: tuple[float, ...] = tuple(math.exp(step / 3) for step in range(-12, 13))
    powers: tuple[float, ...] = (0.75, 1.0, 1.25, 1.5, 2.0)
    healing: tuple[float, ...] = (0.15, 0.3, 0.5, 0.75, 1.0)
    offsets: tuple[tuple[float, float], ...] = ((0.3, 0.7), (3.0, 0.25), (30.0, 0.05))
    #: Deviation from the law, as a share of it.
    scatter: float = 0.35
    #: Standard deviation of the scale's logarithm.
    spread: float = 1.5
    #: A drop beyond this (in units) counts little for the law: one collapse would make it say that all collapse.
    far: float = 10.0
    logarithmic: bool = dataclasses.field(default=False, init=False)

    @property
    def floor(self) -> float:
        return 1e-3 * self.unit

    @property
    def usual(self) -> float:
        return self.offsets[0][0] * self.unit

    def hypotheses(self) -> tuple[_Array, _Array]:
        grid = list(itertools.product(self.scales, self.powers, self.healing, self.offsets))
        weights = [math.exp(-0.5 * (math.log(scale) / self.spread) ** 2) * offset[1] for scale, _, _, offset in grid]
        parameters = np.array([(scale, power, healing, offset[0]) for scale, power, healing, offset in grid])
        return parameters, np.array(weights)

    def terms(self, hypotheses: _Array, features: Sequence[Features]) -> Terms:
        scale, power, healing, offset = hypotheses.T[:, :, None]
        loss = np.clip([one.loss for one in features], 0.0, _ALL)
        trained = np.array([one.trained > 0 for one in features])
        law = self.unit * scale * (loss / REFERENCE) ** power * np.where(trained, healing, 1.0)
        if math.isfinite(self.most):
            law = -self.most * np.expm1(-law / self.most)
        other = np.array([one.precision != FLOAT for one in features], dtype=float)
        return Terms(law, self.unit * offset * other, self.scatter * law)

    def positions(self, features: Sequence[Features]) -> tuple[_Array, _Array]:
        loss = np.clip([one.loss for one in features], _NONE, _ALL)
        return np.log(loss) / LENGTH, np.log1p([one.trained for one in features]) / TRAINING

    def doubt(self, values: _Array) -> _Array:
        return 0.5 * np.maximum(np.abs(values) - self.far * self.unit, 0.0)


def time_share(features: Features) -> float:
    """Time as a share of the original's."""
    return features.time


def memory_share(features: Features) -> float:
    """Memory as a share of the original's: about half are weights, the rest is what flows and the runtime."""
    return 0.5 + 0.5 * features.bytes


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A positive quantity as a share of the original's, in logarithms: what the tables say (`share`), an offset of the
    precision, and what the tables are off by elsewhere (`scatter`)."""

    share: Callable[[Features], float] = time_share
    #: Deviations with their weights: of precisions that the tables know, and of those that they do not.
    offsets: tuple[tuple[float, float], ...] = ((0.3, 0.8), (1.0, 0.2))
    #: The same for the original's precision.
    known: float = 0.05
    scatter: float = 0.1
    floor: float = 1e-3
    most: float = dataclasses.field(default=math.inf, init=False)
    logarithmic: bool = dataclasses.field(default=True, init=False)

    @property
    def usual(self) -> float:
        return self.offsets[0][0]

    def hypotheses(self) -> tuple[_Array, _Array]:
        table = np.array(self.offsets)
        return table[:, :1], table[:, 1]

    def terms(self, hypotheses: _Array, features: Sequence[Features]) -> Terms:
        law = self._shares(features)
        other = np.array([one.precision != FLOAT for one in features])
        offset = np.where(other, hypotheses, self.known)
        return Terms(np.broadcast_to(law, offset.shape), offset, np.full(offset.shape, self.scatter))

    def positions(self, features: Sequence[Features]) -> tuple[_Array, _Array]:
        shares = self._shares(features)
        return shares / LENGTH, np.zeros_like(shares)

    def doubt(self, values: _Array) -> _Array:
        return np.zeros_like(values)

    def _shares(self, features: Sequence[Features]) -> _Array:
        """Logarithms of what the tables say."""
        return np.log([max(self.share(one), _NONE) for one in features])


class Outlook:
    """What is expected of candidates after some observations. Those that are not finite say nothing."""

    def __init__(self, quantity: Quantity, observations: Sequence[Observation]) -> None:
        self.quantity = quantity
        measured = [(one.features, *found) for one in observations if (found := _measured(quantity, one)) is not None]
        self._features = [features for features, _, _ in measured]
        self._values = np.array([value for _, value, _ in measured])
        self._noise = np.array([error**2 + quantity.floor**2 for _, _, error in measured])
        parameters, prior = quantity.hypotheses()
        self._sizes = self._learn(quantity.terms(parameters, self._features).law)
        terms = self._terms(parameters, self._features)
        correlations = _correlations(quantity, self._features, self._features)
        # What no trial has seen, such as training, leaves hypotheses alike: they are counted once.
        chosen, which = _distinct(terms)
        noise = self._noise + quantity.doubt(self._values) ** 2
        parts = [self._evidence(terms[batch], correlations, noise) for batch in _batches(chosen)]
        evidence = np.concatenate(parts)[which]
        weights = prior * np.exp(evidence - evidence.max())
        order = np.argsort(-weights, kind="stable")
        total = np.cumsum(weights[order])
        order = order[: 1 + int(np.searchsorted(total, (1 - _LEFT_OUT) * total[-1]))]
        self._hypotheses, self._weights = parameters[order], weights[order] / weights[order].sum()

    def expect(self, features: Sequence[Features]) -> Expected:
        """What these will measure; the noise of measuring it is not counted."""
        seen, asked = self._terms(self._hypotheses, self._features), self._terms(self._hypotheses, features)
        among = _correlations(self.quantity, self._features, self._features)
        across = _correlations(self.quantity, self._features, features)
        chosen, which = _distinct(seen, asked)
        parts = [self._predict(seen[batch], asked[batch], among, across) for batch in _batches(chosen)]
        centres, spreads = (np.concatenate(part) for part in zip(*parts, strict=True))
        weights = np.bincount(which, self._weights).astype(np.float64)
        return Expected(weights, centres, spreads, self.quantity.most, self.quantity.logarithmic)

    def _learn(self, law: _Array) -> dict[str, float]:
        """How large offsets of each precision are, by its trials of which every hypothesis says the same: the mean
        square of what is left, together with one usual offset. So a collapse of one widens no other's interval."""
        rests: dict[str, list[float]] = {}
        for index in np.flatnonzero(np.ptp(law, axis=0) == 0):
            if self._features[index].precision != FLOAT:
                rests.setdefault(self._features[index].precision, []).append(self._values[index] - law[0, index])
        usual = self.quantity.usual
        return {
            name: math.sqrt((usual**2 + sum(r * r for r in some)) / (1 + len(some))) for name, some in rests.items()
        }

    def _terms(self, hypotheses: _Array, features: Sequence[Features]) -> Terms:
        terms = self.quantity.terms(hypotheses, features)
        known = np.array([self._sizes.get(one.precision, math.nan) for one in features])
        return dataclasses.replace(terms, offset=np.where(np.isnan(known), terms.offset, known))

    def _evidence(self, terms: Terms, correlations: _Correlations, noise: _Array) -> _Array:
        """Logarithm of how likely each hypothesis makes the observations, but for a constant, [H]."""
        roots = _roots(terms, correlations, noise)
        rest = np.linalg.solve(roots, (self._values - terms.law)[:, :, None])[:, :, 0]
        return np.asarray(-0.5 * (rest**2).sum(axis=1) - np.log(np.einsum("hii->hi", roots)).sum(axis=1))

    def _predict(self, seen: Terms, asked: Terms, among: _Correlations, across: _Correlations) -> tuple[_Array, _Array]:
        """Means and deviations of each hypothesis, [H, N]."""
        inverse = np.linalg.inv(_roots(seen, among, self._noise))
        known = inverse @ _covariance(seen, asked, across)
        rest = inverse @ (self._values - seen.law)[:, :, None]
        centres = asked.law + (known * rest).sum(axis=1)
        variances = asked.offset**2 + asked.scatter**2 - (known**2).sum(axis=1)
        return centres, np.sqrt(np.maximum(variances, self.quantity.floor**2))


def _measured(quantity: Quantity, observation: Observation) -> tuple[float, float] | None:
    """Value and standard error as the process sees them."""
    value, error = observation.value, observation.error
    known = observation.features
    if not all(map(math.isfinite, (value, error, known.loss, known.time, known.bytes, known.trained))):
        return None
    if not quantity.logarithmic:
        return value, error
    return (math.log(value), error / value) if value > 0 else None


def _batches(chosen: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return [chosen[at : at + _BATCH] for at in range(0, len(chosen), _BATCH)]


def _distinct(*terms: Terms) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first of each kind of hypotheses that say the same, and which kind each is of."""
    rows = np.concatenate([array for one in terms for array in (one.law, one.offset, one.scatter)], axis=1)
    kinds: dict[bytes, int] = {}
    which = np.array([kinds.setdefault(row.tobytes(), len(kinds)) for row in rows])
    return np.unique(which, return_index=True)[1], which


def _correlations(quantity: Quantity, first: Sequence[Features], second: Sequence[Features]) -> _Correlations:
    (rows, row_trained), (columns, column_trained) = quantity.positions(first), quantity.positions(second)
    precision = _differs(first, second, lambda one: one.precision)
    names = sorted({name for one in (*first, *second) for name, _ in one.options})
    differing = sum((_differs(first, second, _choice(name)) for name in names), np.zeros(precision.shape))
    alike = ALIKE**differing * np.exp(-np.abs(row_trained[:, None] - column_trained))
    nearby = ALIKE**precision * np.exp(-np.abs(rows[:, None] - columns))
    return np.asarray(~precision * alike), np.asarray(nearby * alike)


def _differs(
    first: Sequence[Features], second: Sequence[Features], read: Callable[[Features], Value]
) -> NDArray[np.bool_]:
    codes: dict[Value, int] = {}
    rows, columns = (np.array([codes.setdefault(read(one), len(codes)) for one in side]) for side in (first, second))
    return np.asarray(rows[:, None] != columns)


def _choice(name: str) -> Callable[[Features], Value]:
    return lambda features: dict(features.options).get(name)


def _covariance(first: Terms, second: Terms, correlations: _Correlations) -> _Array:
    """Of the values themselves, [H, N, M]."""
    offset, scatter = (first.offset[:, :, None] * correlations[0], first.scatter[:, :, None] * correlations[1])
    offset *= second.offset[:, None, :]
    scatter *= second.scatter[:, None, :]
    offset += scatter
    return offset


def _roots(terms: Terms, correlations: _Correlations, noise: _Array) -> _Array:
    """Cholesky factors of the observations' covariances, [H, N, N]."""
    covariance = _covariance(terms, terms, correlations)
    diagonal = np.einsum("hii->hi", covariance)
    diagonal *= 1 + _JITTER
    diagonal += noise
    return np.asarray(np.linalg.cholesky(covariance))
