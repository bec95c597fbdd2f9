"""Comparing data with the model before any work: names, types, shapes, labels; with the fix where one is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.data.batching import fits
from lepton_cli.data.dataset import Batch
from lepton_cli.data.source import nearest
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo


def names(spec: DataSpec, inputs: Sequence[TensorInfo]) -> None:
    """Raise DataError when the data set names inputs the model does not have."""
    known = [info.name for info in inputs]
    for option in ("inputs", "preprocess_inputs"):
        for given in getattr(spec, option) or {}:
            if given not in known:
                raise DataError(
                    "data.unknown-input",
                    f"the model has no input `{given}`",
                    hint=nearest(given, known, what="its inputs"),
                    option=(option, given),
                )


def batch(batch: Batch, inputs: Sequence[TensorInfo], name: str) -> None:
    """Raise DataError unless every array of the batch can feed the model's input of its name."""
    for info in inputs:
        array = batch.feeds[info.name]
        kind = "str" if array.dtype == object else str(array.dtype)
        if info.dtype not in ("unknown", kind):
            raise DataError(
                "data.dtype",
                f"`{name}` has type {kind} for input `{info.name}`, the model wants {info.dtype}",
                hint="take `dtype` out of `preprocess`: the model's type is the default",
                option=("data", name, "preprocess", "dtype"),
            )
        if info.shape is not None and not fits(array.shape, info.shape):
            axis = batch.axes.get(info.name) or 0
            wanted = (*info.shape[:axis], *info.shape[axis + 1 :])
            given = "x".join(map(str, array.shape)) or "()"
            raise DataError(
                "data.shape",
                f"batch {batch.start // max(1, batch.count)} of `{name}` has shape {given} for input `{info.name}`, "
                f"the model wants {_wanted(info.shape, axis)}",
                hint=_hint(array.shape[1:], wanted),
                option=("data", name, "inputs"),
            )


def _wanted(shape: Sequence[int | str | None], axis: int = 0) -> str:
    if not shape:
        return "a single value"
    words = [str(size) if isinstance(size, int) else (size or "any") for size in shape]
    if not isinstance(shape[axis], int):
        words[axis] = "batch"
    return " x ".join(words)


def _hint(sample: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> str | None:
    """The option that would make `sample` fit, when there is an obvious one. Both without the batch axis."""
    fixed = [size for size in wanted if isinstance(size, int)]
    if len(sample) == 3 and fits((sample[2], *sample[:2]), wanted):
        return "add `layout: nchw`"
    if len(sample) == 3 and fits((*sample[1:], sample[0]), wanted):
        return "the samples have their channels first: take `layout: nchw` out, or store them channels-last"
    if len(sample) == 2 and len(wanted) == 3 and 1 in (wanted[0], wanted[2]):
        layout = "nchw" if wanted[0] == 1 else "nhwc"
        size = (wanted[1], wanted[2]) if wanted[0] == 1 else (wanted[0], wanted[1])
        return f"add `layout: {layout}`" + ("" if fits(sample, size) else _resize(size))
    if len(sample) == 3 and len(wanted) == 3:
        return _image_hint(sample, wanted)
    if 1 < len(sample) == len(wanted) < 6 and any(fits(order, wanted) for order in itertools.permutations(sample)):
        return "the axes are in another order than the model's: store them in its order"
    if len(fixed) == len(wanted) and math.prod(fixed) == math.prod(sample):
        return f"add `shape: {fixed}`"
    if len(sample) + 1 == len(wanted) and fits((*sample, 1), wanted):
        return f"add `shape: {[*sample, 1]}`"
    if len(sample) == len(wanted) == 1 and isinstance(wanted[0], int):
        return f"the model wants {wanted[0]} numbers a sample: check `inputs`, or add `pad: {wanted[0]}`"
    return None


def _image_hint(sample: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> str | None:
    """For three axes on both sides: is it the size, the layout, or the channels?"""
    if sample[0] == wanted[0] and sample[0] in (1, 3, 4):
        return f"add{_resize(wanted[1:])[4:]}" if any(isinstance(size, int) for size in wanted[1:]) else None
    if sample[2] == wanted[0]:
        return "add `layout: nchw`" + _resize(wanted[1:])
    if sample[2] == wanted[2] and sample[2] in (1, 3, 4):
        return f"add{_resize(wanted[:2])[4:]}"
    if 1 in (wanted[0], wanted[2]) and 3 in (sample[0], sample[2]):
        return "the model wants one channel: add `channels: gray`"
    if 3 in (wanted[0], wanted[2]) and 1 in (sample[0], sample[2]):
        return "the model wants three channels: add `channels: rgb`"
    return None


def _resize(size: Sequence[int | str | None]) -> str:
    if not any(isinstance(part, int) for part in size):
        return ""
    return f" and `resize: [{', '.join(str(part) if isinstance(part, int) else 'auto' for part in size)}]`"


def check_labels(labels: NDArray[Any], classes: int, *, name: str = "evaluation", whose: str = "the model") -> None:
    """Raise DataError unless the labels are whole numbers from 0 to `classes` - 1."""
    option = ("data", name, "labels")
    if labels.dtype.kind not in "biu" and not (labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels))):
        raise DataError(
            "data.labels",
            f"labels of `{name}` are not class numbers ({labels.dtype}, such as {labels.flat[0]})",
            hint="classes are whole numbers from 0; or choose a regression metric or loss",
            option=option,
        )
    if labels.size == 0 or (labels.min() >= 0 and labels.max() < classes):
        return
    lowest, highest = int(labels.min()), int(labels.max())
    hint = None
    if highest - lowest < classes:
        shift = -lowest if lowest < 0 else classes - 1 - highest
        hint = f"if they are shifted by {abs(shift)}: `label_offset: {shift}`"
    raise DataError(
        "data.labels",
        f"labels of `{name}` run from {lowest} to {highest}, {whose} has {classes} classes (0 to {classes - 1})",
        hint=hint,
        option=option,
    )
