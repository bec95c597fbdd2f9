"""Labels written as text: whole numbers, other numbers, or class names that get their sorted position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.errors import DataError

#: More class names than this are a column that holds no labels.
MAX_CLASSES = 100_000


#: What keeps labels as they are written.
_AS_TEXT = "`label_type: text` keeps them as they are written"


def number_labels(
    values: Sequence[Any], where: Callable[[int], str], *, text: bool = False
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Labels as int64 or float64, and the class names when they were text.

    `where(row)` says where a value stands, for errors; `text`: all are text, also those that look like numbers. Raises
    DataError for missing labels and for columns that mix numbers with names.
    """
    missing = ("",) if text else ("", "nan")
    for row, value in enumerate(values):
        if value is None or str(value).strip().lower() in missing:
            raise DataError("data.missing-label", "a sample without a label", where=where(row), option=("labels",))
        if not isinstance(value, (str, int, float)):
            raise DataError("data.labels", f"`{str(value)[:40]}` is not a label", where=where(row), option=("labels",))
    if not values:
        return np.zeros(0, np.int64), ()
    for kind in () if text else (np.int64, np.float64):
        try:
            return np.array([_number(value, kind) for value in values], kind), ()
        except (ValueError, OverflowError):
            continue
    texts = [str(value) for value in values]
    if not text and (numbers := sum(map(_is_number, texts))) > len(texts) / 2:
        others = [row for row, said in enumerate(texts) if not _is_number(said)]
        row = others[0] if others else max(range(len(texts)), key=lambda row: len(texts[row]))
        if not others:
            raise DataError(
                "data.labels", f"label `{texts[row][:40]}` is too large", where=where(row), option=("labels",)
            )
        raise DataError(
            "data.labels",
            f"label `{texts[row][:40]}` is not a number, {numbers} others are",
            where=where(row),
            hint=_AS_TEXT,
            option=("labels",),
        )
    classes = sorted(set(texts))
    if len(classes) > MAX_CLASSES and not text:
        raise DataError(
            "data.labels", f"{len(classes)} different labels: are these labels?", hint=_AS_TEXT, option=("labels",)
        )
    positions = {name: position for position, name in enumerate(classes)}
    return np.array([positions[said] for said in texts], np.int64), tuple(classes)


def as_text(labels: NDArray[Any], names: Sequence[str]) -> NDArray[Any]:
    """What `number_labels` numbered, as an array of `str`; empty where a number has no name."""
    return np.array([names[one] if 0 <= one < len(names) else "" for one in labels.tolist()], object)


def _number(value: Any, kind: type) -> Any:
    """`value` as an integer or a float; ValueError when it is not one."""
    if kind is np.float64:
        return float(value)
    if isinstance(value, float):
        raise ValueError(value)
    return int(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
