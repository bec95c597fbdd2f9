"""Parts of an output that have ranges of their own: boxes in pixels beside scores between 0 and 1.

Squared errors over such an output are those of its largest part. Distances therefore weigh every part by its own power.
Where parts may begin is read from the graph (what a Concat joins, or single columns of narrow outputs); which of these
segments are of one kind is decided by what the float model computes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling import targets
from lepton_cli.coupling.operators import OPERATORS, elementwise
from lepton_cli.graph import shapes

#: Segments whose root mean squares differ by less than this factor, or by steps below it, are of one kind; single
#: columns need more to be told apart, since nothing but their values speaks for it.
APART, COLUMNS_APART = 4.0, 10.0
#: Probabilities that never reach this say nothing (classes that no sample has): they are no part of their own.
CERTAIN = 0.05
#: Axes up to this long may have a kind in every position, and may be cut into so many segments.
NARROW = 64
#: Operators between an output and the Concat that is looked for.
_DEPTH = 200
#: Stands for an open dimension.
_OPEN = 1_000_003


@dataclasses.dataclass(frozen=True)
class Segments:
    """Ranges of positions of one axis of an output: where each starts, and at last where the axis ends."""

    axis: int
    edges: tuple[int, ...]
    apart: float = APART

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of an output's values in every segment, by position of the first axis: `[positions, segments]`."""
        others = tuple(axis for axis in range(1, values.ndim) if axis != self.axis)
        return np.asarray(np.add.reduceat(values.sum(axis=others), self.edges[:-1], axis=1))

    def largest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Largest of an output's values in every segment."""
        others = tuple(axis for axis in range(values.ndim) if axis != self.axis)
        return np.asarray(np.maximum.reduceat(values.max(axis=others, initial=0.0), self.edges[:-1]))

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an output of this shape can be cut this way."""
        return self.axis < len(shape) and shape[self.axis] == self.edges[-1]


def segments(model: ir.Model) -> dict[str, tuple[Segments, ...]]:
    """How the graph cuts each output, one way an axis; no entry where it does not."""
    inferred = shapes.infer(model)
    known = {
        name: tuple(_OPEN if d is None else d for d in found.shape)
        for name, found in inferred.items()
        if found.shape is not None
    }
    found, cuts = {}, _Cuts(known)
    for output in model.graph.outputs:
        shape = known.get(output.name or "", ())
        ways = [Segments(axis, _edges(cuts.of(output, axis))) for axis in range(1, len(shape))]
        ways = [way for way in ways if 2 < len(way.edges) <= NARROW + 1]
        if ways:
            found[output.name or ""] = tuple(ways)
    return found


def columns(shape: Sequence[int]) -> tuple[Segments, ...]:
    """Every position of the shortest axis behind the first where that is narrow: each may be of a kind of its own."""
    sizes = sorted(shape[1:])
    if not sizes or not 1 < sizes[0] <= NARROW or sizes[:1] == sizes[1:2]:
        return ()
    return (Segments(1 + list(shape[1:]).index(sizes[0]), tuple(range(sizes[0] + 1)), COLUMNS_APART),)


def _edges(sizes: Sequence[int]) -> tuple[int, ...]:
    return (0, *itertools.accumulate(sizes))


class _Cuts:
    """Sizes of the parts that Concats join along an axis, followed back through what keeps the order of positions."""

    def __init__(self, known: dict[str, tuple[int, ...]]) -> None:
        self._known = known
        #: Many paths lead to a value: `x * sigmoid(x)` doubles them.
        self._found: dict[tuple[ir.Value, int], list[int]] = {}

    def of(self, value: ir.Value, axis: int, depth: int = 0) -> list[int]:
        if (value, axis) not in self._found:
            self._found[value, axis] = self._followed(value, axis, depth)
        return self._found[value, axis]

    def _followed(self, value: ir.Value, axis: int, depth: int) -> list[int]:
        node, shape = value.producer(), self._known[value.name or ""]
        size = shape[axis]
        if node is None or size == _OPEN or depth > _DEPTH:
            return [size]
        found = [
            self.of(source, place, depth + 1)
            for source in node.inputs
            if source is not None and source.name in self._known
            if (place := _place(node, source, axis, self._known, len(shape))) is not None
        ]
        if node.op_type == "Concat" and node.attributes.get_int("axis", 1) % len(shape) == axis:
            return [part for parts in found for part in parts if part]
        return max((parts for parts in found if sum(parts) == size), key=len, default=[size])


def _place(node: ir.Node, source: ir.Value, axis: int, known: dict[str, tuple[int, ...]], rank: int) -> int | None:
    """The axis of an input that becomes this axis of the node's output, position by position."""
    shape = known[source.name or ""]
    operator = OPERATORS.get(node.op_type)
    if node.op_type == "Concat":
        return axis
    if node.op_type == "Transpose":
        return int(node.attributes.get_ints("perm", range(rank)[::-1])[axis])
    if operator is not None and operator.link is elementwise:
        place = axis - (rank - len(shape))
        return place if place >= 0 else None
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        after = known[node.outputs[0].name or ""]
        pairs = targets.segments(shape, after) if source is node.inputs[0] else []
        return next((inside[0] for inside, outside in pairs if outside == [axis]), None)
    return axis if node.op_type in ("Softmax", "LogSoftmax") else None


@dataclasses.dataclass(frozen=True)
class Part:
    """Segments of one kind: which, in the notation of Python, with the sums over them.

    `spread`: standard error of `noise` at this signal, from `units` that stand for all there could be (samples, or
    batches where an output does not show its samples); `None` where there is one only.
    """

    where: str
    signal: float
    noise: float
    spread: float | None = None
    units: int = 1


class Division:
    """What two models computed for one output, by segment: sums of squares of the values and of their difference."""

    def __init__(self, ways: Sequence[Segments] = ()) -> None:
        """`ways`: as the graph cuts it; columns where there is none."""
        self._ways, self._shape = ways, tuple[int, ...]()
        #: Of the whole output `[2, units]`, and of each way `[3, units, segments]`: sums of squares of the signal, of
        #: the difference, and of the values as they are; one array a batch.
        self._whole: list[NDArray[np.float64]] = []
        self._sums: list[list[NDArray[np.float64]]] = []
        self._largest: list[NDArray[np.float64]] = []
        self._bounded = True

    def add(
        self,
        values: NDArray[np.float64],
        error: NDArray[np.float64],
        centre: NDArray[np.float64] | float = 0.0,
        samples: int = 1,
    ) -> None:
        """One batch, in the shape of the output; all numbers finite. The signal is what lies around `centre`.

        `samples`: how many there are in it; where the first axis has as many positions, each is a unit of its own.
        """
        own, errors = np.square(values), np.square(error)
        squares = own if isinstance(centre, float) and not centre else np.square(values - centre)
        apart = values.ndim > 0 and values.shape[0] == samples

        def units(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            return sums if apart else sums.sum(axis=0, keepdims=True)

        if not self._shape:
            self._shape = values.shape
            self._ways = [way for way in self._ways if way.fits(values.shape)] or columns(values.shape)
            self._sums = [[] for _ in self._ways]
            self._largest = [np.zeros(len(way.edges) - 1) for way in self._ways]
        whole = (np.atleast_1d(part).sum(axis=tuple(range(1, part.ndim))) for part in (squares, errors))
        self._whole.append(np.stack([units(part) for part in whole]))
        self._bounded &= bool(((values >= 0.0) & (values <= 1.0)).all())
        for way, sums, largest in zip(self._ways, self._sums, self._largest, strict=True):
            if way.fits(values.shape):
                np.maximum(largest, way.largest(values), out=largest)
                found = [units(way.sums(part)) for part in (squares, errors)]
                sums.append(np.stack([*found, found[0] if squares is own else units(way.sums(own))]))

    def parts(self) -> list[Part]:
        """The parts along the axis where kinds differ most; the whole output as one where nothing differs."""
        if not self._whole:
            return [Part("", 0.0, 0.0)]
        widest, found = 1.0, [_part("", *np.concatenate(self._whole, axis=1))]
        for way, batches, largest in zip(self._ways, self._sums, self._largest, strict=True):
            signal, noise, squares = np.concatenate(batches, axis=1)
            level = np.sqrt(squares.sum(axis=0) / np.diff(way.edges))
            gap, kinds = kinds_of(np.where(self._bounded & (largest < CERTAIN), 0.0, level), way.apart)
            if gap > widest:
                widest = gap
                found = [
                    _part(_where(way, kind, len(self._shape)), signal[:, kind].sum(axis=1), noise[:, kind].sum(axis=1))
                    for kind in kinds
                ]
        return found


def _part(where: str, signal: NDArray[np.float64], noise: NDArray[np.float64]) -> Part:
    """Of sums by unit; the spread is the jackknife's (Quenouille, Tukey).

    That is, of the noise at this signal when each unit in turn is left out: where one of them holds most of the signal,
    little is known of the others, which a variance around the common ratio does not show.
    """
    whole, error, units = float(signal.sum()), float(noise.sum()), len(signal)
    if units < 2:
        return Part(where, whole, error)
    left, wrong = np.maximum(whole - signal, 0.0), np.maximum(error - noise, 0.0)
    silent = left <= whole * np.finfo(np.float64).eps * units
    if (silent & (wrong > error * np.finfo(np.float64).eps * units)).any():
        return Part(where, whole, error, math.inf, units)
    found = whole * np.divide(wrong, left, out=np.zeros(units), where=~silent)
    return Part(where, whole, error, float(np.sqrt((units - 1) / units * np.square(found - found.mean()).sum())), units)


def kinds_of(level: NDArray[np.float64], apart: float) -> tuple[float, list[list[int]]]:
    """The widest of these gaps (1 without any), and segments sorted by level, parted where the next is `apart` as high.

    Silent segments, of level 0, belong to the lowest kind.
    """
    kinds: list[list[int]] = [[]]
    widest, last = 1.0, 0.0
    for index in np.argsort(level, kind="stable").tolist():
        if last > 0 and level[index] >= apart * last:
            widest = max(widest, float(level[index] / last))
            kinds.append([])
        kinds[-1].append(index)
        last = float(level[index])
    return widest, [sorted(kind) for kind in sorted(kinds, key=min)]


def _where(way: Segments, kind: Sequence[int], rank: int) -> str:
    """`[:, :, 4:85]`: the positions of some segments."""
    runs: list[list[int]] = []
    for index in kind:
        start, stop = way.edges[index], way.edges[index + 1]
        if runs and runs[-1][1] == start:
            runs[-1][1] = stop
        else:
            runs.append([start, stop])
    shown = ", ".join(str(start) if stop == start + 1 else f"{start}:{stop}" for start, stop in runs[:4])
    shown += ", …" if len(runs) > 4 else ""
    chosen = f"[{shown}]" if len(runs) > 1 else shown
    return "[" + ", ".join(chosen if axis == way.axis else ":" for axis in range(rank)) + "]"
