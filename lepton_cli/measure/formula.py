"""What a metric is made of: what to keep of a sample, and the value of any set of kept samples.

Nothing but the kept columns stays in memory, and because `value` takes leading axes, the same function serves the
metric itself, each class, and a thousand bootstrap resamples at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.data.dataset import Array
from lepton_cli.errors import DataError

#: Kept columns: shape (..., samples, columns).
KeptColumns = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Formula:
    """How a metric is computed. `keep(output, labels)` -> (samples, columns); `value(columns)` reduces the samples.

    Batches may keep fewer columns than others: the rest is 0.
    """

    keep: Callable[[Array, Array], KeptColumns]
    value: Callable[[KeptColumns], Array]
    #: Every kept value is 0 or 1 and `value` is their mean: intervals of proportions apply.
    proportion: bool = False
    #: Labels are classes.
    takes_classes: bool = False
    #: Scores count, and not the classes that they decide for.
    by_scores: bool = False
    #: Labels are text.
    takes_text: bool = False
    #: Of errors: the constant answer with the least, made from all labels. A model's error is a share of that one's.
    constant: Callable[[Array], Any] | None = None
    #: Of everything else: the value as a share of 1, higher is better.
    share: Callable[[float], float] = float
    #: The values of resamples from how often each counts every sample, [resamples, samples]: much quicker than `value`
    #: of as many copies of the columns.
    resampled: Callable[[KeptColumns, KeptColumns], Array] | None = None
    #: Why there may be no value, in words.
    undefined: str = "the labels or the outputs are all equal"


def of_sums(value: Callable[[KeptColumns], Array]) -> Callable[[KeptColumns, KeptColumns], Array]:
    """`Formula.resampled` of a value that follows from the sum of the samples' columns."""
    return lambda columns, counts: value((counts @ columns)[:, None])


def binary_scores(output: Array) -> Array:
    """Two columns of probabilities from one column of probabilities or logits."""
    scores = output.reshape(-1).astype(np.float64)
    # Quantized probabilities may end just above 1.
    if scores.size and (scores.min() < -0.01 or scores.max() > 1.01):
        scores = 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
    return np.stack([1 - np.clip(scores, 0, 1), np.clip(scores, 0, 1)], axis=1)


def class_scores(output: Array, labels: Array) -> Array:
    """Scores with the class axis last and the shape of the labels before it.

    Class scores are `labels.shape` plus one axis, second (images: N x C x H x W) or last (tokens: N x S x C).
    Raises DataError when the shapes do not fit.
    """
    if output.size == labels.size:
        return binary_scores(output).reshape(*labels.shape, 2)
    if output.ndim > labels.ndim + 1 and labels.ndim == 1:
        output = output.reshape(len(output), -1)
    if output.shape[:-1] == labels.shape:
        return output
    if output.ndim == labels.ndim + 1 and (output.shape[0], *output.shape[2:]) == labels.shape:
        return np.moveaxis(output, 1, -1)
    raise DataError(
        "data.labels",
        f"labels of shape {shape_of(labels)} do not fit an output of shape {shape_of(output)}",
        hint="name the output with `output:` and the labels with `labels:`",
    )


def check_range(labels: Array, classes: int, *, hint: str | None = None, option: tuple[str, ...] = ()) -> None:
    """Raises DataError for a label that is no class of the output. `option`: of the metric, that `hint` is about."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise DataError(
            "data.label-range",
            f"label {int(wrong[0])} is none of the output's classes 0 to {classes - 1}",
            cause="labels may count from 1, or belong to another output",
            hint=hint,
            option=option,
        )


def mean(columns: KeptColumns) -> Array:
    """Of the first column."""
    return np.asarray(columns[..., 0].mean(axis=-1))


def ranks(values: Array) -> Array:
    """Ranks along the last axis; equal values share the mean of theirs."""
    order = np.argsort(values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=-1)
    position = np.arange(values.shape[-1], dtype=np.float64)
    new = np.concatenate([np.ones_like(ordered[..., :1], dtype=bool), ordered[..., 1:] != ordered[..., :-1]], axis=-1)
    first = np.maximum.accumulate(np.where(new, position, 0), axis=-1)
    ends = np.concatenate([new[..., 1:], np.ones_like(new[..., :1])], axis=-1)
    last = np.minimum.accumulate(np.where(ends, position, np.inf)[..., ::-1], axis=-1)[..., ::-1]
    found = np.empty_like(first)
    np.put_along_axis(found, order, (first + last) / 2, axis=-1)
    return found


def flat(array: Array) -> KeptColumns:
    """A row a sample."""
    return array.reshape(len(array), -1).astype(np.float64)


def shape_of(array: Array) -> str:
    """In words, for errors."""
    return " x ".join(map(str, array.shape)) or "one number"
