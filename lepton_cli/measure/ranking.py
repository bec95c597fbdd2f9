"""Scores of two classes, judged by every threshold at once: class 1 is what is looked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.errors import DataError
from lepton_cli.measure.formula import Formula, KeptColumns, shape_of
from lepton_cli.measure.spec import AccuracySpec

#: From how many of either class are found, as the threshold falls, [R, thresholds]: the value of each row.
_Curve = Callable[[Array, Array], Array]


def auc(spec: AccuracySpec) -> Formula:
    """Area under the ROC curve: the share of pairs of both classes whose scores are in order, ties half."""
    return _formula(spec, _auc)


def average_precision(spec: AccuracySpec) -> Formula:
    """Mean over the samples of class 1 of the precision where they are found; equal scores are found together."""
    return _formula(spec, _average_precision)


def eer(spec: AccuracySpec) -> Formula:
    """Equal error rate: where the ROC curve, straight between its points, misses as many as it falsely accepts."""
    return _formula(spec, _eer, lambda value: 1 - value)


def _formula(spec: AccuracySpec, curve: _Curve, share: Callable[[float], float] = float) -> Formula:
    def resampled(columns: KeptColumns, counts: KeptColumns) -> Array:
        return curve(*_found(columns, counts))

    def value(columns: KeptColumns) -> Array:
        rows = columns.reshape(-1, *columns.shape[-2:])
        once = np.ones((1, columns.shape[-2]))
        return np.array([resampled(one, once)[0] for one in rows]).reshape(columns.shape[:-2])

    return Formula(
        lambda output, labels: _scores(output, labels, spec.metric),
        value,
        takes_classes=True,
        by_scores=True,
        resampled=resampled,
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


def _found(columns: KeptColumns, counts: KeptColumns) -> tuple[Array, Array]:
    """How many of class 1 and of class 0 score no less than each different score, from the highest down.

    `counts`: how often each sample counts, [R, samples]; both results are [R, scores + 1] and begin with 0.
    """
    order = np.argsort(-columns[:, 0], kind="stable")
    scores, labels, counts = columns[order, 0], columns[order, 1], counts[:, order]
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    right, wrong = (np.cumsum(counts * one, axis=1)[:, ends] for one in (labels, 1 - labels))
    return np.pad(right, ((0, 0), (1, 0))), np.pad(wrong, ((0, 0), (1, 0)))


def _auc(right: Array, wrong: Array) -> Array:
    area = (np.diff(wrong) * (right[:, 1:] + right[:, :-1]) / 2).sum(axis=1)
    return _over(area, right[:, -1] * wrong[:, -1])


def _average_precision(right: Array, wrong: Array) -> Array:
    found = np.diff(right)
    # A score that a resample lacks adds nothing, wherever it stands.
    precision = right[:, 1:] / np.maximum(right[:, 1:] + wrong[:, 1:], 1)
    return _over((found * precision).sum(axis=1), np.where(wrong[:, -1] > 0, right[:, -1], np.nan))


def _eer(right: Array, wrong: Array) -> Array:
    accepted = _over(wrong, wrong[:, -1:])
    # Misses less false alarms: from 1 down to -1, and never up.
    gap = 1 - _over(right, right[:, -1:]) - accepted
    after = np.maximum(1, (gap <= 0).argmax(axis=1))
    rows = np.arange(len(gap))
    part = _over(gap[rows, after - 1], gap[rows, after - 1] - gap[rows, after])
    return np.asarray(accepted[rows, after - 1] + part * (accepted[rows, after] - accepted[rows, after - 1]))


def _over(one: Array, other: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(one / other)
