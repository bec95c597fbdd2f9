"""Segmentation: how far regions that a model finds cover those of the labels."""

from __future__ import annotations

from functools import partial

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.measure.formula import Formula, KeptColumns, check_range, class_scores, of_sums
from lepton_cli.measure.spec import AccuracySpec


def miou(spec: AccuracySpec) -> Formula:
    """Intersection over union (Jaccard 1901), summed over all samples before it is divided, as PASCAL VOC does."""
    return _overlap(spec, union=True)


def dice(spec: AccuracySpec) -> Formula:
    """Twice the intersection over the sizes of both (Dice 1945), summed over all samples before it is divided."""
    return _overlap(spec, union=False)


def _overlap(spec: AccuracySpec, union: bool) -> Formula:
    value = partial(_shares, average=spec.average, union=union)
    return Formula(
        partial(_regions, ignore=spec.ignore_index),
        value,
        takes_classes=True,
        resampled=of_sums(value),
        undefined="no pixel is counted, or class 1 occurs nowhere",
    )


def _regions(output: Array, labels: Array, ignore: int | None) -> KeptColumns:
    """Of each sample two columns a class: pixels that are of it in both, and the sum of its sizes in both.

    Output: scores `[N, classes, ...]` or `[N, ..., classes]`, one number a pixel of two classes, or classes.
    Raises DataError for labels that do not fit.
    """
    if labels.ndim == output.ndim and labels.shape[1] == 1 and output.shape[1] > 1:
        labels = labels[:, 0]
    counted = labels != ignore if ignore is not None else np.ones(labels.shape, dtype=bool)
    if np.issubdtype(output.dtype, np.floating) or output.size != labels.size:
        scores = class_scores(output, labels)
        classes, found = scores.shape[-1], scores.argmax(axis=-1)
    else:
        found = output.reshape(labels.shape).astype(np.int64)
        classes = max(2, int(max(found.max(initial=0), labels[counted].max(initial=0))) + 1)
        check_range(found[counted], classes)
    check_range(labels[counted], classes, hint="`ignore_index` leaves pixels out", option=("ignore_index",))
    place = classes * np.arange(len(labels)).reshape(-1, *(1,) * (labels.ndim - 1))

    def count(which: Array) -> Array:
        return np.bincount(which, minlength=classes * len(labels)).reshape(len(labels), classes)

    mine, true = ((place + one)[counted] for one in (found, labels))
    columns = np.stack([count(true[mine == true]), count(mine) + count(true)], axis=-1)
    return columns.reshape(len(labels), -1).astype(np.float64)


def _shares(columns: KeptColumns, average: str, union: bool) -> Array:
    """Macro: the mean over the classes that occur in outputs or labels; binary: of class 1; micro: of all pixels."""
    sums = columns.sum(axis=-2)
    both, sizes = sums[..., 0::2], sums[..., 1::2]
    if average == "micro":
        both, sizes = both.sum(axis=-1, keepdims=True), sizes.sum(axis=-1, keepdims=True)
    if average == "binary":
        both, sizes = both[..., 1:2], sizes[..., 1:2]
    there = sizes > 0
    shares = np.divide(
        both if union else 2 * both, sizes - both if union else sizes, out=np.zeros_like(both), where=there
    )
    with np.errstate(invalid="ignore"):
        return np.asarray(shares.sum(axis=-1) / there.sum(axis=-1))
