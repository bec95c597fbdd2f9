"""Sizes of a model's inputs that a layer far behind them fixes: found by looking at shapes for other sizes.

A size goes through windows, pools and joins before a weight or a Reshape asks for another one than arrives. What
arrives grows with the size of the input, nearly in proportion, so few looks lead to the one that fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lepton_cli.graph import demands, fold, shapes
from lepton_cli.graph.settle import settle
from lepton_cli.model import io

#: Nodes whose shapes are looked at, all looks together: some seconds.
_EFFORT = 10_000
#: Misfits that are mended one after the other.
_ROUNDS = 6
#: Sizes sought grow and shrink by this factor, so often,
_STRIDE, _STRIDES = 4, 4
#: and looks at one size end after so many.
_TRIES = 24

#: A size is free where so much more fits too: one, for joins behind pools; and what no pool takes away.
_MORE = (1, 32)

#: Sizes by name -> the shapes of the inputs.
Shaped = Callable[[Mapping[str, int]], shapes.Shapes]


def fitting(
    model: ir.Model, start: Mapping[str, int], shaped: Shaped, groups: Sequence[Sequence[str]]
) -> tuple[dict[str, int], shapes.Shapes]:
    """Those of the sizes `start` that have to be others for the model to run, as far as few looks find them; and the
    shapes of all values then.

    `groups`: names that are tried with one size too, such as height and width. Nothing is run.
    """
    found: dict[str, int] = {}
    left = _EFFORT
    for _ in range(_ROUNDS):
        sizes = {**start, **found}
        known, values = settle(model, shaped(sizes))
        nodes = ((node, demands.unmet(node, known, values)) for node in model.graph)
        misfit, pairs = next(((node, pairs) for node, pairs in nodes if pairs), (None, []))
        if misfit is None or not sizes or left < 0:
            break
        look = _Look(model, misfit, shaped, sizes, left)
        better = look.mend(len(pairs), groups)
        left = look.left
        if better is None:
            break
        found |= better
    return found, known


def flexible(model: ir.Model, feeds: shapes.Shapes, name: str, axis: int) -> bool:
    """Whether the input `name` may have any size on this axis, as far as shapes tell. Nothing is run.

    `feeds`: shapes of the inputs that fit; where they do not, nothing is told.
    """
    longer = [
        {**feeds, name: tuple(size + more * (at == axis) for at, size in enumerate(feeds[name]))} for more in _MORE
    ]
    return not _fits(model, feeds) or all(_fits(model, other) for other in longer)


def _fits(model: ir.Model, feeds: shapes.Shapes) -> bool:
    known, values = settle(model, feeds)
    return not any(demands.unmet(node, known, values) for node in model.graph)


class _Look:
    """The part of a model that leads to a node whose inputs do not fit, and what arrives there for other sizes."""

    def __init__(self, model: ir.Model, misfit: ir.Node, shaped: Shaped, sizes: Mapping[str, int], left: int) -> None:
        self._model = io.clone(model)
        graph = self._model.graph
        self._node = next(node for node in graph if node.outputs[0].name == misfit.outputs[0].name)
        graph.outputs.clear()
        graph.outputs.extend(self._node.outputs[:1])
        RemoveUnusedNodesPass()(self._model)
        fold.fold_constants(self._model, {node.name or "" for node in graph if node is not self._node})
        self._shaped, self._sizes = shaped, sizes
        self._seen: dict[tuple[int, ...], list[tuple[int, int]] | None] = {}
        #: Nodes that may still be looked at.
        self.left = left

    def mend(self, pairs: int, groups: Sequence[Sequence[str]]) -> dict[str, int] | None:
        """Sizes for which the node's inputs fit; `None` where none are found."""
        for pair in range(pairs):
            telling = [name for name, size in self._sizes.items() if self._tells(name, size, pair)]
            joint = [[name for name in group if name in telling] for group in groups]
            for names in (*(group for group in joint if len(group) > 1), *([name] for name in telling)):

                def excess(size: int, names: Sequence[str] = names, pair: int = pair) -> int | None:
                    return self._excess(dict.fromkeys(names, size), pair)

                size = root(excess, max(self._sizes[name] for name in names))
                if size is not None:
                    return dict.fromkeys(names, size)
        return None

    def _tells(self, name: str, size: int, pair: int) -> bool:
        """Does this size change the ratio of what arrives to what is asked for?"""
        ratios = []
        for changed in ({}, {name: size * _STRIDE}):
            pairs = self._pairs(changed)
            ratios.append(Fraction(pairs[pair][0], pairs[pair][1] or 1) if pairs and pair < len(pairs) else pairs)
        return ratios[0] != ratios[1]

    def _excess(self, changed: Mapping[str, int], pair: int) -> int | None:
        """By how much what arrives is too long; `None` where something before does not fit, or nothing is known."""
        pairs = self._pairs(changed)
        if not pairs:
            return None if pairs is None else 0
        return pairs[pair][0] - pairs[pair][1] if pair < len(pairs) else None

    def _pairs(self, changed: Mapping[str, int]) -> list[tuple[int, int]] | None:
        sizes = {**self._sizes, **changed}
        key = tuple(sizes.values())
        if key not in self._seen:
            self.left -= len(self._model.graph)
            self._seen[key] = None if self.left < 0 else self._differing(sizes)
        return self._seen[key]

    def _differing(self, sizes: Mapping[str, int]) -> list[tuple[int, int]] | None:
        known, values = settle(self._model, self._shaped(sizes))
        arriving = [known.get(value.name or "", (0,)) for value in self._node.inputs if value is not None]
        before = (node for node in self._model.graph if node is not self._node)
        if any(0 in shape for shape in arriving) or any(demands.unmet(node, known, values) for node in before):
            return None
        return demands.unmet(self._node, known, values)


def root(excess: Callable[[int], int | None], start: int) -> int | None:
    """A size at which `excess` is 0, sought from `start` along straight lines; `None` where few tries find none.

    `excess` rises or falls in steps, and may be unknown (`None`) anywhere.
    """
    strides = (_STRIDE**power for power in range(1, _STRIDES + 1))
    outward = iter([start, *(size for by in strides for size in (start * by, start // by) if size)])
    seen: dict[int, int | None] = {}
    for turn in range(_TRIES):
        size = _between(seen, middle=turn % 2 == 1)
        if size is None or size in seen:
            size = next((size for size in outward if size not in seen), None)
        if size is None:
            return None
        seen[size] = excess(size)
        if seen[size] == 0:
            return size
    return None


def _between(seen: Mapping[int, int | None], *, middle: bool) -> int | None:
    """Where the line through what is known meets 0; in the `middle` of two sizes instead that enclose it."""
    known = sorted((size, value) for size, value in seen.items() if value is not None)
    around = [(one, two) for one, two in itertools.pairwise(known) if (one[1] < 0) != (two[1] < 0)]
    if not around and len(known) < 2:
        return None
    near = sorted(known, key=lambda point: abs(point[1]))[:2]
    (low, below), (high, above) = around[0] if around else sorted(near)
    if around and middle:
        return (low + high) // 2
    if below == above:
        return None
    size = round(low - below * (high - low) / (above - below))
    return min(max(size, low + 1), high - 1) if around else size if size > 0 else None
