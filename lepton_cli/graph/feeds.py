"""Sizes for the open axes of a model's inputs, where no data gives them: what the graph needs, else what is usual.

Sizes are followed through the graph as names by ONNX's shape inference; where a weight reads a named axis (MatMul,
Conv, LSTM, …) it tells the size, and where two names meet they are one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from lepton_cli.data.batching import Layout, layout
from lepton_cli.data.synthetic import usual
from lepton_cli.graph import cost, demands, shapes
from lepton_cli.graph.fitting import fitting
from lepton_cli.graph.settle import settle
from lepton_cli.graph.shapes import Shapes
from lepton_cli.model import io, reads
from lepton_cli.tensors import Dim, TensorInfo

#: Bytes of the largest value inside a model and its multiply-accumulates, for one made-up sample: beyond, sizes that
#: nothing asks for are halved. Every step runs dozens of samples.
MOST_BYTES, MOST_MACS = 1 << 26, 16e9
#: No size is halved below this.
_SMALLEST = 16
_ROUNDS = 8
_ATTENTION = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention"})


def sized(
    model: ir.Model, given: Mapping[str, Sequence[int]] | None = None, other: int | None = None
) -> tuple[TensorInfo, ...]:
    """The model's inputs with a size for every open axis but that of the samples.

    `given`: whole shapes of some inputs. `other`: the size of axes that nothing tells, instead of what is usual.
    """
    found = io.inputs(model)
    how = layout(found)
    sizes = _Sizes(model, found, how, given or {})
    sizes.solve()
    sizes.fill(other)
    known = sizes.fit() if sizes.longest() or _points(found) else {}
    while (longest := sizes.longest()) > _SMALLEST and (excess := _excess(model, known)) > 1:
        # A value grows with the fourth power at most: attention between all places of a picture.
        sizes.shorten(max(_SMALLEST, 1 << math.ceil(longest / excess**0.25).bit_length() - 1), below=longest)
        known = settle(model, sizes.shapes(1))[0]
    by_name = {value.name: value for value in model.graph.inputs}
    result = []
    for info, dims in zip(found, sizes.dims().values(), strict=True):
        shape = None if info.shape is None else tuple(dims)
        if sizes.counted and shape:
            info = dataclasses.replace(info, batch_axis=-1)
        rows = reads.rows(by_name[info.name], lambda table: known.get(table.name or ""))
        result.append(dataclasses.replace(info, shape=shape, rows=rows if info.rows is None else info.rows))
    return tuple(result)


def default_feeds(
    model: ir.Model, batch: int = 1, other: int | None = None, known: Mapping[str, Sequence[int]] | None = None
) -> Shapes:
    """Input shapes to look at a model with: `known` ones (from data), else `batch` samples of the sizes of `sized`."""
    known = known or {}
    if all(info.name in known for info in io.inputs(model)):
        return {name: tuple(shape) for name, shape in known.items()}
    made = sized(model, known, other)
    return {
        info.name: tuple(known.get(info.name) or (dim if isinstance(dim, int) else batch for dim in info.shape or ()))
        for info in made
    }


def _points(inputs: Sequence[TensorInfo]) -> bool:
    """May an input be an index into something of the graph's own?"""
    return any("int" in info.dtype and info.rows is None for info in inputs)


def _excess(model: ir.Model, known: Shapes) -> float:
    """How many times too large a sample is."""
    return max(_largest(model, known) / MOST_BYTES, sum(cost.macs(model, known).values()) / MOST_MACS)


def _largest(model: ir.Model, known: Shapes) -> int:
    """Bytes of the largest value whose size is known, four a number; the scores inside attention are one."""
    values = max((math.prod(shape) for shape in known.values()), default=0)
    scores = max((_scores(node, known) for node in model.graph if node.op_type in _ATTENTION), default=0)
    return 4 * max(values, scores)


def _scores(node: ir.Node, known: Shapes) -> int:
    """Samples times heads times queries times keys."""
    shape = [known.get(value.name or "", ()) if value else () for value in node.inputs]
    query, key = shape[0], (*shape, ())[1]
    if len(query) < 3:
        return 0
    heads = node.attributes.get_int("num_heads", node.attributes.get_int("q_num_heads", 1))
    keys = key[-2] if len(key) == len(query) else query[-2]
    return query[0] * (query[1] if len(query) == 4 else heads) * query[-2] * keys


class _Sizes:
    """The open axes by name, what each name is found to be, and what it is taken for where nothing tells."""

    def __init__(
        self, model: ir.Model, inputs: Sequence[TensorInfo], how: Layout, given: Mapping[str, Sequence[int]]
    ) -> None:
        self._model, self._inputs = model, inputs
        self._named = {
            info.name: [_name(info, axis, dim) for axis, dim in enumerate(info.shape or ())] for info in inputs
        }
        self._names = dict.fromkeys(dim for dims in self._named.values() for dim in dims if isinstance(dim, str))
        #: Whether open axes count other things than samples.
        self.counted = how.alone
        self._same: dict[str, int | str] = {}
        self._taken: dict[str, int] = {}
        axes = {} if how.alone else how.axes
        places = [
            (info.name, axis) for info in inputs if info.shape is not None and (axis := axes.get(info.name)) is not None
        ]
        self._batch = {dim for name, axis in places if isinstance(dim := self._named[name][axis], str)}
        for name, shape in given.items():
            for one, size in zip(self._named.get(name, ()), shape, strict=False):
                self._unite(one, int(size))

    def _is(self, dim: Dim) -> Dim:
        while isinstance(dim, str) and dim in self._same:
            dim = self._same[dim]
        return dim

    def _unite(self, one: Dim, two: Dim) -> bool:
        """Let two sizes be one. The number of samples stays open."""
        one, two = self._is(one), self._is(two)
        if isinstance(one, int):
            one, two = two, one
        if not isinstance(one, str) or two is None or one == two or one not in self._names:
            return False
        if (one in self._batch) != (two in self._batch) or (isinstance(two, str) and two not in self._names):
            return False
        self._same[one] = two
        return True

    def _size(self, dim: Dim) -> Dim:
        dim = self._is(dim)
        return self._taken.get(dim, dim) if isinstance(dim, str) else dim

    def dims(self, batch: int | None = None) -> dict[str, list[Dim]]:
        """The shapes of the inputs as far as they are known; `batch`: the number of samples."""

        def size(dim: Dim) -> Dim:
            return batch if batch is not None and self._is(dim) in self._batch else self._size(dim)

        return {info.name: [size(dim) for dim in self._named[info.name]] for info in self._inputs}

    def shapes(self, batch: int) -> Shapes:
        """The shapes when all are known."""
        return {name: tuple(dim for dim in dims if isinstance(dim, int)) for name, dims in self.dims(batch).items()}

    def solve(self) -> None:
        """Ask the graph until it tells nothing new."""
        for _ in range(_ROUNDS if self._names else 0):
            known = shapes.symbolic(self._model, self.dims())
            self._free_counted(known)
            told = [self._unite(one, two) for node in self._model.graph for one, two in demands.equal(node, known)]
            if not any(told):
                break

    def _free_counted(self, known: Mapping[str, Sequence[Dim]]) -> None:
        """What inputs point into are no samples: a graph's nodes, say. Then a feed is one sample."""
        for value in self._model.graph.inputs:
            for table, axis in reads.tables(value):
                shape = known.get(table.name or "", ())
                if -len(shape) <= axis < len(shape) and shape[axis] in self._batch:
                    self._batch.clear()
                    self.counted = True

    def fill(self, other: int | None) -> None:
        """Usual sizes for what nothing told; a cache and the new part of a sequence add up to the whole."""
        for info in self._inputs:
            for axis, named in enumerate(self._named[info.name]):
                dim = self._is(named)
                if isinstance(dim, str) and dim not in self._batch and dim not in self._taken:
                    self._taken[dim] = other or usual(info, axis)
        sizes = {
            name: size
            for name in self._names
            if isinstance(size := self._size(name), int) and not all(map(_is_sum, self._called(name)))
        }
        past = next((size for name, size in sizes.items() if self._has(name, "past")), None)
        if past is None:
            return
        new = next(
            (size for name, size in sizes.items() if not self._has(name, "past") and self._has(name, "seq", "input")), 1
        )
        for name in self._taken:
            if all(map(_is_sum, self._called(name))):
                terms = [term.strip() for term in name.split("+")]
                extra = [int(term) if term.isdigit() else sizes.get(term, new) for term in terms]
                self._taken[name] = sum(extra) if len(terms) > 1 else past + new

    def fit(self) -> Shapes:
        """Let layers far behind the inputs tell what nothing else told. Returns the shapes of all values."""
        taken = dict(self._taken)
        groups = [[dim for one in dims if (dim := self._is(one)) in taken] for dims in self._named.values()]

        def shaped(sizes: Mapping[str, int]) -> Shapes:
            self._taken = {**taken, **sizes}
            return self.shapes(1)

        found, known = fitting(self._model, taken, shaped, groups)
        self._taken = {name: size for name, size in taken.items() if name not in found}
        self._same |= found
        return known

    def _called(self, name: str) -> list[str]:
        """What a size is called in the file: exporters give axes numbers for names, then the inputs' names tell."""
        own = self._is(name)
        return [
            f"{info.name} {named}".lower()
            for info in self._inputs
            for named in self._named[info.name]
            if named == name or (isinstance(own, str) and self._is(named) == own)
        ]

    def _has(self, name: str, *words: str) -> bool:
        return any(word in called for called in self._called(name) for word in words)

    def longest(self) -> int:
        """The largest size that nothing asked for."""
        return max(self._taken.values(), default=0)

    def shorten(self, most: int, *, below: int) -> None:
        """Every such size down to `most`, or half of `below` where that is less."""
        self._taken = {name: min(size, most, max(below // 2, 1)) for name, size in self._taken.items()}


def _name(info: TensorInfo, axis: int, dim: Dim) -> Dim:
    return dim if isinstance(dim, int) else dim or f"{info.name}/{axis}"


def _is_sum(name: str) -> bool:
    return "+" in name or "total" in name.lower() or "mask" in name.lower()
