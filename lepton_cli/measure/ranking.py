"""Scores of two classes, judged by every threshold at once: class 1 is what is looked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.errors import DataError
from lepton_cli.measure.formula import Formula, KeptColumns, shape_of
from lepton_cli.measure.spec import AccuracySpec


def auc(spec: AccuracySpec) -> Formula:
    """Area under the ROC curve: the share of pairs of both classes whose scores are in order, ties half."""
    return _formula(spec, _auc)


def average_precision(spec: AccuracySpec) -> Formula:
    """Mean over the samples of class 1 of the precision where they are found; equal scores are found together."""
    return _formula(spec, _average_precision)


def eer(spec: AccuracySpec) -> Formula:
    """Equal error rate: where the ROC curve, straight between its points, misses as many as it falsely accepts."""
    return _formula(spec, _eer, lambda value: 1 - value)


def _formula(
    spec: AccuracySpec, value: Callable[[KeptColumns], Array], share: Callable[[float], float] = float
) -> Formula:
    return Formula(
        lambda output, labels: _scores(output, labels, spec.metric),
        value,
        takes_classes=True,
        by_scores=True,
        share=share,
        undefined="all labels are of one class, and it takes samples of both",
    )


def _scores(output: Array, labels: Array, metric: str) -> KeptColumns:
    """Score and label of each sample. Two scores tell by their difference, which orders as the softmax does.

    Raises DataError where there are no scores of two classes.
    """
    size = output.size // max(1, len(output))
    if not np.issubdtype(output.dtype, np.floating) or size not in (1, 2) or labels.ndim != 1:
        kind = "" if np.issubdtype(output.dtype, np.floating) else "whole numbers of "
        raise DataError(
            "data.labels",
            f"`{metric}` wants one or two scores a sample and one label, not {kind}shape {shape_of(output)} for "
            f"labels of {shape_of(labels)}",
            hint="name the output with the scores: `output:`",
            option=("output",),
        )
    wrong = labels[(labels != 0) & (labels != 1)]
    if wrong.size:
        raise DataError(
            "data.label-range",
            f"label {int(wrong[0])}: `{metric}` is of classes 0 and 1",
            hint="number what is looked for 1, and all else 0",
            option=("labels",),
        )
    scores = output.reshape(len(output), size).astype(np.float64)
    return np.stack([scores[:, -1] - (scores[:, 0] if size == 2 else 0), labels], axis=1)


def _found(columns: KeptColumns) -> tuple[Array, Array, Array]:
    """From the highest score down, how many of class 1 and of class 0 have been found; and which rank ends a tie.

    Within equal scores both grow in a straight line, so that the order in which they stand does not matter.
    """
    scores, labels = columns[..., 0], columns[..., 1]
    order = np.argsort(-scores, axis=-1, kind="stable")
    ordered, own = (np.take_along_axis(one, order, axis=-1) for one in (scores, labels))
    count = scores.shape[-1]
    place = np.arange(count)
    ends = np.concatenate([ordered[..., 1:] != ordered[..., :-1], np.ones_like(own[..., :1], dtype=bool)], axis=-1)
    last = np.minimum.accumulate(np.where(ends, place, count)[..., ::-1], axis=-1)[..., ::-1]
    before = np.concatenate([np.full_like(last[..., :1], -1), np.where(ends, place, -1)[..., :-1]], axis=-1)
    before = np.maximum.accumulate(before, axis=-1)
    total = np.concatenate([np.zeros_like(own[..., :1]), own.cumsum(axis=-1)], axis=-1)
    start, stop = (np.take_along_axis(total, one + 1, axis=-1) for one in (before, last))
    right = start + (stop - start) * (place - before) / (last - before)
    return right, place + 1 - right, stop / (last + 1)


def _auc(columns: KeptColumns) -> Array:
    right, wrong, _ = _found(columns)
    steps = np.diff(wrong, axis=-1, prepend=0.0)
    earlier = np.concatenate([np.zeros_like(right[..., :1]), right[..., :-1]], axis=-1)
    area = (steps * (right + earlier) / 2).sum(axis=-1)
    return _over(area, right[..., -1] * wrong[..., -1])


def _average_precision(columns: KeptColumns) -> Array:
    right, wrong, precision = _found(columns)
    both = np.where(wrong[..., -1] > 0, right[..., -1], np.nan)
    return _over((np.diff(right, axis=-1, prepend=0.0) * precision).sum(axis=-1), both)


def _eer(columns: KeptColumns) -> Array:
    right, wrong, _ = _found(columns)
    accepted = _over(wrong, wrong[..., -1:])
    missed = 1 - _over(right, right[..., -1:])
    # From 1 to -1, and never up: where it passes 0.
    gap = missed - accepted
    at = (gap <= 0).argmax(axis=-1)[..., None]
    after, false = (np.take_along_axis(one, at, axis=-1)[..., 0] for one in (gap, accepted))
    previous = np.maximum(at - 1, 0)
    first = at[..., 0] == 0
    before = np.where(first, 1.0, np.take_along_axis(gap, previous, axis=-1)[..., 0])
    earlier = np.where(first, 0.0, np.take_along_axis(accepted, previous, axis=-1)[..., 0])
    return np.asarray(earlier + (false - earlier) * _over(before, before - after))


def _over(one: Array, other: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(one / other)
