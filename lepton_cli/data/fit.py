"""What preprocessing learns from the calibration data: values for missing entries, mean and deviation per column."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.data.preprocess import Fitted, Raw, prepare
from lepton_cli.data.spec import Preprocess
from lepton_cli.errors import DataError

Statistics = Mapping[str, Fitted]
#: A median needs its values in memory: at most so many are looked at, from the beginning.
MAX_MEDIAN_VALUES = 10_000_000


def fit(raw: Callable[[str], Iterator[Raw]], specs: Mapping[str, Preprocess]) -> dict[str, Fitted]:
    """Statistics of the inputs that need them. `raw(name)` reads the stored samples of an input, chunk by chunk."""
    result = {}
    for name, spec in specs.items():
        fitted = Fitted()
        if spec.fill_missing in ("mean", "median"):
            fitted = Fitted(fill=_typical(raw(name), spec.fill_missing))
        if spec.standardise:
            mean, std = _moments(raw(name), spec, fitted)
            fitted = Fitted(fitted.fill, mean, std)
        if spec.standardise or fitted.fill is not None:
            result[name] = fitted
    return result


def _parts(chunk: Raw) -> list[Array]:
    """A chunk as arrays with samples on axis 0. Raises DataError for ragged lists: they have no columns."""
    if not isinstance(chunk, list):
        return [chunk]
    if any(sample.ndim < 2 for sample in chunk):
        raise DataError(
            "data.ragged",
            "`standardise` and `fill_missing: mean` work on columns, the samples are lists of different lengths",
            option=("preprocess",),
        )
    return [sample[None] for sample in chunk]


def _rows(array: Array) -> Array:
    """The values as float64 `[rows, columns]`."""
    return array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1).astype(np.float64)


def _typical(chunks: Iterator[Raw], kind: object) -> Array:
    """Mean or median per column of the values that are there."""
    kept: list[Array] = []
    for chunk in chunks:
        kept.extend(_rows(array) for array in _parts(chunk))
        if sum(part.size for part in kept) > MAX_MEDIAN_VALUES:
            break
    values = np.concatenate(kept)
    empty = np.isnan(values).all(axis=0)
    if empty.any():
        raise DataError(
            "data.missing",
            f"column {int(np.argmax(empty))} has no value at all: there is no {kind} to fill in",
            option=("preprocess", "fill_missing"),
        )
    return np.asarray(np.nanmean(values, axis=0) if kind == "mean" else np.nanmedian(values, axis=0))


def _moments(chunks: Iterator[Raw], spec: Preprocess, fitted: Fitted) -> tuple[Array, Array]:
    """Mean and standard deviation per column in one pass (Chan's update, float64); constant columns get deviation 1."""
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for chunk in chunks:
        for array in _parts(chunk):
            values = _rows(prepare(array, spec, fitted))
            delta = values.mean(axis=0) - mean
            added = len(values)
            squares = squares + ((values - values.mean(axis=0)) ** 2).sum(axis=0)
            squares = squares + delta**2 * (count * added / (count + added))
            count += added
            mean = mean + delta * (added / count)
    std = np.sqrt(squares / count)
    return mean, np.where(std > 0, std, 1.0)
