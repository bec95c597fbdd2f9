"""Accuracy metrics as two functions each: what to keep of a sample, and the value of any set of kept samples.

Nothing but the kept columns stays in memory, and because `value` takes leading axes, the same function serves the
metric itself, each class, and a thousand bootstrap resamples at once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.data.dataset import Array
from lepton_cli.errors import DataError
from lepton_cli.measure.spec import AccuracySpec
from lepton_cli.metrics import MEASURABLE

#: Kept columns: shape (..., samples, columns).
KeptColumns = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Formula:
    """How a metric is computed. `keep(output, labels)` -> (samples, columns); `value(columns)` reduces the samples."""

    keep: Callable[[Array, Array], KeptColumns]
    value: Callable[[KeptColumns], Array]
    #: Every kept value is 0 or 1 and `value` is their mean: intervals of proportions apply.
    proportion: bool = False
    #: Labels are classes.
    takes_classes: bool = False
    #: Of errors: the constant answer with the least, made from all labels. A model's error is a share of that one's.
    constant: Callable[[Array], Any] | None = None
    #: Of everything else: the value as a share of 1, higher is better.
    share: Callable[[float], float] = float


def class_labels(labels: Array, output: Array) -> Array:
    """Labels as whole numbers, one-hot rows and single columns taken apart.

    Raises DataError for anything else.
    """
    if not np.issubdtype(labels.dtype, np.number) and labels.dtype != bool:
        raise DataError("data.labels", f"labels of type {labels.dtype} are not class numbers")
    if np.issubdtype(labels.dtype, np.floating) and (labels != np.round(labels)).any():
        raise DataError(
            "data.labels",
            "labels are not whole numbers, so they are no classes",
            hint="use `metric: rmse` or `mae`",
            option=("data", "evaluation", "labels"),
        )
    labels = labels.astype(np.int64)
    if labels.ndim == 2 and labels.shape == output.shape and labels.shape[1] > 1:
        one_hot = (labels.sum(axis=1) == 1) & (labels.max(axis=1) == 1) & (labels.min(axis=1) == 0)
        if one_hot.all():
            return np.asarray(labels.argmax(axis=1))
    return labels.reshape(len(labels)) if labels.size == len(labels) else labels


def predictions(output: Array) -> tuple[Array, Array]:
    """Predicted class and confidence of each sample, for outputs with one class decision per sample.

    Rows of scores: argmax, and the softmax probability (rows that already are probabilities stay). Whole numbers are
    predictions themselves, with confidence 1. A single float column is a binary score: a probability where all are in
    [0, 1], else a logit.
    """
    if output.ndim > 1:
        output = output.reshape(len(output), -1)
    if not np.issubdtype(output.dtype, np.floating):
        return output.reshape(len(output)).astype(np.int64), np.ones(len(output))
    scores = binary_scores(output) if output.ndim == 1 or output.shape[1] == 1 else output.astype(np.float64)
    chosen = scores.argmax(axis=1)
    if scores.min(initial=0) < 0 or not np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    return chosen, scores[np.arange(len(chosen)), chosen]


#: In names of outputs: class scores before their softmax, and vectors that decide nothing.
#: Names of outputs that hold vectors, no scores of classes.
_SCORES, VECTORS = re.compile(r"logit|scores?$|prob", re.I), re.compile(r"embed|feat|hidden|state|pool", re.I)


def decider(output: Array, labels: Array | None = None, name: str = "") -> Callable[[Array], Array] | None:
    """How to read decisions from outputs like this one; `None` where nothing looks like one (pixels, boxes, vectors).

    Labels (one per sample or per position) say that there are classes. Without them whole numbers are decisions, and
    floats are where they are scores: probabilities that sum to 1 along an axis, a probability alone, a row of several
    numbers per sample that is no vector of unit length, several axes that are named so.
    """
    if labels is not None:
        if labels.ndim == 1 or output.ndim < 2 or not np.issubdtype(output.dtype, np.floating):
            return lambda scores: predictions(scores)[0]
        return _argmax(-1 if output.shape[:-1] == labels.shape else 1)
    if not np.issubdtype(output.dtype, np.floating):
        return lambda values: values
    if not output.size or output.ndim == 0:
        return None
    if output[0].size == 1:
        return (lambda scores: scores > 0.5) if _probabilities(output) else None
    if output[0].size == output.shape[1]:
        lengths = np.linalg.norm(output.reshape(len(output), -1).astype(np.float64), axis=1)
        vectors = VECTORS.search(name) or (len(output) > 1 and np.allclose(lengths, lengths.mean(), rtol=1e-3))
        return None if vectors and not _sum_to_one(output, 1) else lambda scores: predictions(scores)[0]
    axis = next((axis for axis in (-1, 1) if output.shape[axis] > 1 and _sum_to_one(output, axis)), None)
    if axis is None and output.ndim == 3 and _SCORES.search(name):
        axis = -1
    return None if axis is None else _argmax(axis)


def _argmax(axis: int) -> Callable[[Array], Array]:
    return lambda scores: np.asarray(scores.argmax(axis=axis))


def _probabilities(output: Array) -> bool:
    return bool(output.min() >= 0 and output.max() <= 1)


def _sum_to_one(output: Array, axis: int) -> bool:
    return _probabilities(output) and np.allclose(output.astype(np.float64).sum(axis=axis), 1, atol=1e-2)


def binary_scores(output: Array) -> Array:
    """Two columns of probabilities from one column of probabilities or logits."""
    flat = output.reshape(-1).astype(np.float64)
    # Quantized probabilities may end just above 1.
    if flat.size and (flat.min() < -0.01 or flat.max() > 1.01):
        flat = 1 / (1 + np.exp(-np.clip(flat, -500, 500)))
    return np.stack([1 - np.clip(flat, 0, 1), np.clip(flat, 0, 1)], axis=1)


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
        f"labels of shape {_shape(labels)} do not fit an output of shape {_shape(output)}",
        hint="name the output with `output:` and the labels with `labels:`",
    )


def cosine(first: Array, second: Array) -> Array:
    """Cosine of each sample of one array with its counterpart; 1 where both are zero."""
    a, b = _flat(first), _flat(second)
    _same_width(a, b)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(norms > 0, np.einsum("ij,ij->i", a, b) / norms, (a == b).all(axis=1)))


def _hits(output: Array, labels: Array, k: int) -> KeptColumns:
    """Share of right guesses of each sample; 0 or 1 where a sample has one label."""
    if not np.issubdtype(output.dtype, np.floating):
        if k > 1 or output.size != labels.size:
            raise DataError(
                "data.labels", f"an output of predicted classes with shape {_shape(output)} gives no top-{k} accuracy"
            )
        hits = output.reshape(labels.shape) == labels
    else:
        scores = class_scores(output, labels)
        check_range(labels, scores.shape[-1])
        own = np.take_along_axis(scores, labels[..., None].astype(np.int64), axis=-1)
        # Ties count as argmax breaks them: an equal score of a lower class is ahead.
        ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[-1]) < labels[..., None]))
        hits = ahead.sum(axis=-1) < k
    return np.asarray(hits.reshape(len(labels), -1).mean(axis=1, keepdims=True, dtype=np.float64))


def check_range(labels: Array, classes: int) -> None:
    """Raises DataError for a label that is no class of the output."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise DataError(
            "data.label-range",
            f"label {int(wrong[0])} is none of the output's classes 0 to {classes - 1}",
            cause="labels may count from 1, or belong to another output",
        )


def _classes(output: Array, labels: Array) -> KeptColumns:
    if np.issubdtype(output.dtype, np.floating):
        scores = class_scores(output, labels)
        check_range(labels, scores.shape[-1])
        output = scores.argmax(axis=-1)
    if output.size != len(labels):
        raise DataError("data.labels", f"f1 wants one prediction per sample, not shape {_shape(output)}")
    return np.stack([output.reshape(-1), labels.reshape(-1)], axis=1).astype(np.float64)


def _f1(columns: KeptColumns, average: str) -> Array:
    """F1 from predicted and true classes. Macro: mean over classes that occur; binary: class 1."""
    predicted, true = columns[..., 0].astype(np.int64), columns[..., 1].astype(np.int64)
    lead = predicted.shape[:-1]
    predicted, true = predicted.reshape(-1, predicted.shape[-1]), true.reshape(-1, true.shape[-1])
    classes = max(2, int(max(predicted.max(initial=0), true.max(initial=0))) + 1)
    rows = np.arange(len(predicted))[:, None] * classes

    def count(which: Array, weights: Array | None = None) -> Array:
        flat = np.bincount((rows + which).reshape(-1), weights, minlength=len(predicted) * classes)
        return flat.reshape(-1, classes)

    right = count(true, (predicted == true).reshape(-1).astype(np.float64))
    size = count(predicted) + count(true)
    if average == "micro":
        return np.asarray(2 * right.sum(axis=1) / size.sum(axis=1)).reshape(lead)
    scores = np.divide(2 * right, size, out=np.zeros_like(right), where=size > 0)
    if average == "binary":
        return np.asarray(scores[:, 1]).reshape(lead)
    return np.asarray(scores.sum(axis=1) / np.maximum(1, (size > 0).sum(axis=1))).reshape(lead)


def _errors(output: Array, labels: Array, of: Callable[[Array], Array]) -> KeptColumns:
    """Mean error of each sample."""
    a, b = _flat(output), _flat(labels)
    _same_width(a, b)
    return np.asarray(of(a - b).mean(axis=1, keepdims=True))


def _regression_sums(output: Array, labels: Array) -> KeptColumns:
    """Per sample: squared error, sum of labels, sum of their squares, their number."""
    a, b = _flat(output), _flat(labels)
    _same_width(a, b)
    width = np.full(len(b), b.shape[1], dtype=np.float64)
    return np.stack([np.square(a - b).sum(axis=1), b.sum(axis=1), np.square(b).sum(axis=1), width], axis=1)


def _r2(columns: KeptColumns) -> Array:
    error, total, squares, count = np.moveaxis(columns.sum(axis=-2), -1, 0)
    spread = squares - total**2 / count
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 0, 1 - error / spread, np.nan))


def _pairs(output: Array, labels: Array) -> KeptColumns:
    a, b = _flat(output), _flat(labels)
    if a.shape != b.shape or a.shape[1] != 1:
        raise DataError(
            "data.labels",
            f"spearman wants one number per sample and one label, not {_shape(output)} and {_shape(labels)}",
            hint="use `metric: cosine` for vectors",
        )
    return np.concatenate([a, b], axis=1)


def _spearman(columns: KeptColumns) -> Array:
    """Correlation of average ranks."""
    first, second = _ranks(columns[..., 0]), _ranks(columns[..., 1])
    first, second = first - first.mean(axis=-1, keepdims=True), second - second.mean(axis=-1, keepdims=True)
    norms = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(norms > 0, (first * second).sum(axis=-1) / norms, np.nan))


def _ranks(values: Array) -> Array:
    """Ranks along the last axis; equal values share the mean of theirs."""
    order = np.argsort(values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=-1)
    position = np.arange(values.shape[-1], dtype=np.float64)
    new = np.concatenate([np.ones_like(ordered[..., :1], dtype=bool), ordered[..., 1:] != ordered[..., :-1]], axis=-1)
    first = np.maximum.accumulate(np.where(new, position, 0), axis=-1)
    ends = np.concatenate([new[..., 1:], np.ones_like(new[..., :1])], axis=-1)
    last = np.minimum.accumulate(np.where(ends, position, np.inf)[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty_like(first)
    np.put_along_axis(ranks, order, (first + last) / 2, axis=-1)
    return ranks


def _mean(columns: KeptColumns) -> Array:
    return np.asarray(columns[..., 0].mean(axis=-1))


def _root_mean(columns: KeptColumns) -> Array:
    return np.sqrt(_mean(columns))


def _flat(array: Array) -> KeptColumns:
    return array.reshape(len(array), -1).astype(np.float64)


def _same_width(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise DataError(
            "data.labels", f"labels with {b.shape[1]} values per sample do not fit an output with {a.shape[1]}"
        )


def _shape(array: Array) -> str:
    return " x ".join(map(str, array.shape)) or "one number"


def _top(k: int) -> Formula:
    return Formula(lambda output, labels: _hits(output, labels, k), _mean, proportion=True, takes_classes=True)


#: By the name of the metric's row in `lepton_cli.metrics`: its formula for what a recipe asks.
FORMULAS: dict[str, Callable[[AccuracySpec], Formula]] = {
    "accuracy.top1": lambda spec: _top(1),
    "accuracy.top5": lambda spec: _top(spec.k),
    "accuracy.f1": lambda spec: Formula(_classes, lambda columns: _f1(columns, spec.average), takes_classes=True),
    "accuracy.mae": lambda spec: Formula(partial(_errors, of=np.abs), _mean, constant=np.median),
    "accuracy.rmse": lambda spec: Formula(partial(_errors, of=np.square), _root_mean, constant=np.mean),
    "accuracy.r2": lambda spec: Formula(_regression_sums, _r2),
    "accuracy.cosine": lambda spec: Formula(lambda output, labels: cosine(output, labels)[:, None], _mean),
    "accuracy.spearman": lambda spec: Formula(_pairs, _spearman),
    # The recipe's function gives what is kept; what its values are a share of nobody knows.
    "accuracy.python": lambda spec: Formula(
        lambda output, labels: output, _mean, share=float if spec.better == "higher" else lambda value: -value
    ),
}


def formula(spec: AccuracySpec) -> Formula:
    """The formula of what a recipe asks for."""
    return FORMULAS[MEASURABLE[spec.metric].name](spec)
