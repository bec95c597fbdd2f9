"""Which formula a metric of a recipe has, those of classes and numbers, and how decisions are read from outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.errors import DataError
from lepton_cli.measure import language, ranking, segmentation, signals, text
from lepton_cli.measure.formula import (
    Formula,
    KeptColumns,
    binary_scores,
    check_range,
    class_scores,
    flat,
    mean,
    ranks,
    shape_of,
)
from lepton_cli.measure.spec import AccuracySpec
from lepton_cli.metrics import MEASURABLE


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
    scores = np.issubdtype(output.dtype, np.floating)
    if scores and labels.ndim == 2 and labels.shape == output.shape and labels.shape[1] > 1:
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
        several = output.ndim > 1 and output.size != len(output)
        if several and not np.issubdtype(output.dtype, np.floating):
            return lambda values: values
        if labels.ndim == 1 or output.ndim < 2 or not np.issubdtype(output.dtype, np.floating):
            return lambda scores: predictions(scores)[0]
        if output.size == labels.size:
            return lambda scores: binary_scores(scores)[:, 1] > 0.5
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


def cosine(first: Array, second: Array) -> Array:
    """Cosine of each sample of one array with its counterpart; 1 where both are zero."""
    a, b = flat(first), flat(second)
    _same_width(a, b)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(norms > 0, np.einsum("ij,ij->i", a, b) / norms, (a == b).all(axis=1)))


def _hits(output: Array, labels: Array, k: int) -> KeptColumns:
    """Share of right guesses of each sample; 0 or 1 where a sample has one label."""
    if not np.issubdtype(output.dtype, np.floating):
        if k > 1 or output.size != labels.size:
            raise DataError(
                "data.labels", f"an output of predicted classes with shape {shape_of(output)} gives no top-{k} accuracy"
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


def _classes(output: Array, labels: Array) -> KeptColumns:
    if np.issubdtype(output.dtype, np.floating):
        scores = class_scores(output, labels)
        check_range(labels, scores.shape[-1])
        output = scores.argmax(axis=-1)
    if output.size != len(labels):
        raise DataError("data.labels", f"f1 wants one prediction per sample, not shape {shape_of(output)}")
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
    a, b = flat(output), flat(labels)
    _same_width(a, b)
    return np.asarray(of(a - b).mean(axis=1, keepdims=True))


def _regression_sums(output: Array, labels: Array) -> KeptColumns:
    """Per sample: squared error, sum of labels, sum of their squares, their number."""
    a, b = flat(output), flat(labels)
    _same_width(a, b)
    width = np.full(len(b), b.shape[1], dtype=np.float64)
    return np.stack([np.square(a - b).sum(axis=1), b.sum(axis=1), np.square(b).sum(axis=1), width], axis=1)


def _r2(columns: KeptColumns) -> Array:
    error, total, squares, count = np.moveaxis(columns.sum(axis=-2), -1, 0)
    spread = squares - total**2 / count
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 0, 1 - error / spread, np.nan))


def _pairs(output: Array, labels: Array) -> KeptColumns:
    a, b = flat(output), flat(labels)
    if a.shape != b.shape or a.shape[1] != 1:
        raise DataError(
            "data.labels",
            f"spearman wants one number per sample and one label, not {shape_of(output)} and {shape_of(labels)}",
            hint="use `metric: cosine` for vectors",
        )
    return np.concatenate([a, b], axis=1)


def _spearman(columns: KeptColumns) -> Array:
    """Correlation of average ranks."""
    first, second = ranks(columns[..., 0]), ranks(columns[..., 1])
    first, second = first - first.mean(axis=-1, keepdims=True), second - second.mean(axis=-1, keepdims=True)
    norms = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(norms > 0, (first * second).sum(axis=-1) / norms, np.nan))


def _root_mean(columns: KeptColumns) -> Array:
    return np.sqrt(mean(columns))


def _same_width(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise DataError(
            "data.labels", f"labels with {b.shape[1]} values per sample do not fit an output with {a.shape[1]}"
        )


def _top(k: int) -> Formula:
    return Formula(lambda output, labels: _hits(output, labels, k), mean, proportion=True, takes_classes=True)


#: By the name of the metric's row in `lepton_cli.metrics`: its formula for what a recipe asks.
FORMULAS: dict[str, Callable[[AccuracySpec], Formula]] = {
    "accuracy.top1": lambda spec: _top(1),
    "accuracy.top5": lambda spec: _top(spec.k),
    "accuracy.f1": lambda spec: Formula(_classes, lambda columns: _f1(columns, spec.average), takes_classes=True),
    "accuracy.mae": lambda spec: Formula(partial(_errors, of=np.abs), mean, constant=np.median),
    "accuracy.rmse": lambda spec: Formula(partial(_errors, of=np.square), _root_mean, constant=np.mean),
    "accuracy.r2": lambda spec: Formula(_regression_sums, _r2),
    "accuracy.cosine": lambda spec: Formula(lambda output, labels: cosine(output, labels)[:, None], mean),
    "accuracy.spearman": lambda spec: Formula(_pairs, _spearman),
    "accuracy.miou": segmentation.miou,
    "accuracy.dice": segmentation.dice,
    "accuracy.perplexity": language.perplexity,
    "accuracy.auc": ranking.auc,
    "accuracy.average_precision": ranking.average_precision,
    "accuracy.eer": ranking.eer,
    "accuracy.psnr": signals.psnr,
    "accuracy.ssim": signals.ssim,
    "accuracy.si_sdr": signals.si_sdr,
    "accuracy.cer": text.cer,
    "accuracy.wer": text.wer,
    "accuracy.exact": text.exact,
    # The recipe's function gives what is kept; what its values are a share of nobody knows.
    "accuracy.python": lambda spec: Formula(
        lambda output, labels: output, mean, share=float if spec.better == "higher" else lambda value: -value
    ),
}


def formula(spec: AccuracySpec, base: Path = Path()) -> Formula:
    """The formula of what a recipe asks for. `base`: the folder that files in it are relative to."""
    if spec.alphabet is not None:
        spec = spec.model_copy(update={"alphabet": str(base / spec.alphabet)})
    return FORMULAS[MEASURABLE[spec.metric].name](spec)
