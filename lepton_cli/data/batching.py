"""How samples become a feed: where each input of a model has its samples, and which samples go together.

One sample is one complete feed, whatever its shapes. Stored samples lie on axis 0; models have theirs elsewhere too
(`[layers, batch, size]`, time first), or take one value for all (a sample rate), or one feed at a time (graphs).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.data.preprocess import Raw
from lepton_cli.tensors import Dim, TensorInfo

_BATCH_NAMES = frozenset({"bs", "batch", "batchsize", "batch_size"})
#: Names that say so only where the first axis is open too.
_BATCH_LETTERS = frozenset({"b", "n"})


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the samples of each input are. `axes`: input -> axis; `None`: all samples of a feed share one value."""

    axes: Mapping[str, int | None]
    #: The model's own number of samples a feed.
    fixed: int | None
    #: Every sample is a feed of its own: an input without samples on any axis holds more than one value.
    alone: bool


def layout(inputs: Sequence[TensorInfo]) -> Layout:
    """The layout that the inputs' shapes and names tell; in doubt `TensorInfo.batch_axis`, from the graph."""
    middle = {info.shape[1] for info in inputs if info.shape is not None and _state(info.shape)} - {None}
    axes = {info.name: _open_axis(info, middle) for info in inputs}
    if any(axis is not None for axis in axes.values()):
        axes = {info.name: _beside_open(info, axes[info.name], inputs) for info in inputs}
    else:
        wide = sorted((info.shape for info in inputs if info.shape), key=lambda shape: len(shape) < 2)
        axes = {info.name: _fixed_axis(info, wide[0][0] if wide else None) for info in inputs}
    sizes = {_size(info, axis) for info in inputs if (axis := axes[info.name]) is not None} - {None, 0}
    unshared = any(axes[info.name] is None and not single(info) for info in inputs)
    alone = unshared or len(sizes) > 1
    return Layout(axes, 1 if alone else next(iter(sizes), None), alone)


def sample_axes(inputs: Sequence[TensorInfo]) -> dict[str, int]:
    """Inputs that several samples make longer, and on which axis; none where each feed is one sample as it is.

    An input of one value beside others is one for all samples.
    """
    how, several = layout(inputs), any(not single(info) for info in inputs)
    found = {info.name: how.axes[info.name] for info in inputs if info.shape and not (several and single(info))}
    return {} if how.alone else {name: axis for name, axis in found.items() if axis is not None}


def freed(inputs: Sequence[TensorInfo]) -> tuple[TensorInfo, ...]:
    """The inputs with the number of samples left open, as whoever trains leaves it; not where each is a feed alone."""
    if layout(inputs).fixed is None:
        return tuple(inputs)
    axes, found = sample_axes(inputs), []
    for info in inputs:
        if info.name in axes and info.shape is not None:
            axis = axes[info.name]
            info = dataclasses.replace(info, shape=(*info.shape[:axis], "batch", *info.shape[axis + 1 :]))
        found.append(info)
    return tuple(found)


def _beside_open(info: TensorInfo, axis: int | None, inputs: Sequence[TensorInfo]) -> int | None:
    """The axis in a model that leaves the number of samples open for another input at least."""
    if axis is not None or not info.shape or single(info) or info.batch_axis == -1:
        return axis
    first = any(other.shape and not isinstance(other.shape[0], int) for other in inputs)
    if (first and _state(info.shape)) or (len(info.shape) == 3 and info.shape[0] != 1 == info.shape[1]):
        return 1
    fixed = len(info.shape) > 1 and all(isinstance(dim, int) for dim in info.shape)
    return 0 if fixed or info.shape[0] == 1 else None


def _state(shape: Sequence[Dim]) -> bool:
    """A recurrent state: `[layers, batch, size]`, the batch open."""
    return [isinstance(dim, int) for dim in shape] == [True, False, True]


def _open_axis(info: TensorInfo, middle: set[Dim]) -> int | None:
    """The axis that is open for samples; `None` where none is."""
    shape = info.shape
    if shape is None:
        return 0
    names = _BATCH_NAMES if not shape or isinstance(shape[0], int) else _BATCH_NAMES | _BATCH_LETTERS
    named = [axis for axis, dim in enumerate(shape) if isinstance(dim, str) and dim.lower() in names]
    if not named and info.batch_axis == -1:
        return None
    if not named and info.batch_axis is not None and not isinstance(shape[info.batch_axis], int):
        return info.batch_axis
    named = named or [axis for axis, dim in enumerate(shape) if dim in middle]
    if named:
        return named[0]
    return 0 if shape and not isinstance(shape[0], int) else None


def _fixed_axis(info: TensorInfo, size: Dim) -> int | None:
    """The axis of `size` samples in a model that leaves none open."""
    shape = info.shape or ()
    if info.batch_axis is not None:
        return None if info.batch_axis < 0 else info.batch_axis
    places = [axis for axis in (0, 1) if axis < len(shape) and shape[axis] == size]
    return next((axis for axis in places if axis == 0 or len(shape) == 3), None)


def _size(info: TensorInfo, axis: int) -> int | None:
    dim = info.shape[axis] if info.shape is not None else None
    return dim if isinstance(dim, int) else None


def single(info: TensorInfo) -> bool:
    """Does the input hold one value?"""
    return info.shape is not None and all(dim == 1 for dim in info.shape)


def complete(sample: Sequence[int], info: TensorInfo) -> bool:
    """Is a stored sample of this shape all that the input takes, its axis for samples included?"""
    return info.shape is not None and fits(sample, info.shape)


def fits(shape: Sequence[int], wanted: Sequence[Dim]) -> bool:
    """Can an input of the shape `wanted` be fed with this one?"""
    return len(shape) == len(wanted) and all(
        not isinstance(want, int) or want == size for size, want in zip(shape, wanted, strict=True)
    )


def alone(columns: Mapping[str, Raw], inputs: Sequence[TensorInfo], how: Layout) -> bool:
    """Is each stored sample a feed of its own: by the layout, or because it is whole and its axis counts other things?

    `columns`: samples on axis 0; a list of arrays `[1, ...]` where shapes differ.
    """
    return how.alone or any(_several(columns[info.name], info, how.axes[info.name]) for info in inputs)


def _several(column: Raw, info: TensorInfo, axis: int | None) -> bool:
    """Are stored samples whole feeds whose axis for samples counts something else (nodes, steps)?"""
    shapes = {sample.shape[1:] for sample in column} if isinstance(column, list) else {column.shape[1:]}
    return axis is not None and any(complete(shape, info) and shape[axis] != 1 for shape in shapes)


def runs(columns: Mapping[str, Raw], axes: Mapping[str, int | None], alone: bool) -> Iterator[slice]:
    """The samples that go into one feed together: neighbours of equal shapes, and equal in what they share."""
    count = len(next(iter(columns.values())))
    ends = set(range(1, count)) if alone else set[int]()
    for name, column in columns.items():
        if isinstance(column, list):
            ends.update(row for row in range(1, count) if column[row].shape != column[row - 1].shape)
        if axes[name] is None:
            ends.update(row for row in range(1, count) if not _equal(column[row], column[row - 1]))
    edges = [0, *sorted(ends), count]
    yield from (slice(start, stop) for start, stop in itertools.pairwise(edges))


def _equal(one: Array | str, other: Array | str) -> bool:
    return bool(np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f"))


def feed(stack: Array, info: TensorInfo, axis: int | None) -> Array:
    """Samples that go together, stacked on axis 0, as the input takes them.

    What does not fit is left as it is, for a check that knows what to say.
    """
    sample, wanted = stack.shape[1:], info.shape
    if wanted is None:
        return stack
    if complete(sample, info):
        if axis is None or len(stack) == 1:
            return np.asarray(stack[0])
        return np.moveaxis(np.squeeze(stack, axis + 1), 0, axis)
    rest = () if axis is None else (*wanted[:axis], *wanted[axis + 1 :])
    if axis is not None and fits(sample, rest):
        return np.moveaxis(stack, 0, axis)
    if math.prod(sample) == 1 and single(info):
        return np.reshape(stack[0], (1,) * len(wanted))
    if math.prod(sample) == 1 and axis is not None and all(dim == 1 for dim in rest):
        return np.reshape(stack, [len(stack) if place == axis else 1 for place in range(len(wanted))])
    for place, dim in enumerate(wanted):
        if axis is None and dim == 1 and fits(sample, (*wanted[:place], *wanted[place + 1 :])):
            return np.expand_dims(stack[0], place)
    return stack
