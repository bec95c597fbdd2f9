"""What a set of widths costs: multiply-accumulates, parameters or bytes as a function of every group's width."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling.links import Coupling, Group, TensorAxis
from lepton_cli.graph import clean, cost

Widths = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Form:
    """How a tensor of a file is stored that does not take the same bytes for each of its elements."""

    #: Length that each axis is filled up to a multiple of; empty: none is.
    multiples: tuple[int, ...] = ()
    #: With a shorter axis, or fewer elements in all, every element takes `bytes` instead.
    side: int = 0
    elements: int = 0
    bytes: float = 0.0


@dataclasses.dataclass(frozen=True)
class Forms:
    """The same of all terms of a cost, over the axes that groups touch: [terms, axes], the others [terms]."""

    multiples: NDArray[np.float64]
    sides: NDArray[np.float64]
    #: Product of the axes below which a term is small, and its factor then.
    products: NDArray[np.float64]
    small: NDArray[np.float64]

    def __call__(
        self, factor: NDArray[np.float64], lengths: NDArray[np.float64], rows: NDArray[np.int64] | slice
    ) -> NDArray[np.float64]:
        """Cost of some terms, [..., rows], at these lengths, [..., rows, axes]."""
        product = np.prod(lengths, axis=-1)
        small = (product < self.products[rows]) | (lengths < self.sides[rows]).any(axis=-1)
        filled = np.ceil(lengths / self.multiples[rows] - 1e-9) * self.multiples[rows]
        return np.asarray(np.where(small, self.small[rows] * product, factor[rows] * np.prod(filled, axis=-1)))

    @classmethod
    def none(cls, terms: int, axes: int) -> Forms:
        """Plain products all."""
        return cls(np.ones((terms, axes)), np.zeros((terms, axes)), np.zeros(terms), np.zeros(terms))


@dataclasses.dataclass(frozen=True)
class CostModel:
    """`base` plus a sum of terms, each a constant times a product of axis lengths that are linear in the widths.

    `fixed` [terms, axes] holds positions of no group (1 for unused axes). Positions per channel are sparse, as wide
    models have thousands of groups with a few terms each: `share[i]` for every channel of `group[i]` (ascending) at
    `place[i]`, an index into the flat `fixed`.
    """

    base: float
    factor: NDArray[np.float64]
    fixed: NDArray[np.float64]
    place: NDArray[np.int64]
    group: NDArray[np.int64]
    share: NDArray[np.float64]
    #: How terms are stored that are no plain products.
    forms: Forms | None = None
    _known: dict[int, tuple[slice, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, widths: Widths) -> float:
        """Cost of these widths."""
        return self.base + float(np.sum(self._terms(self._lengths(widths))))

    def table(self, widths: Widths, group: int, levels: Widths) -> NDArray[np.float64]:
        """Cost at every level of one group, the others as in `widths`."""
        return self._vary(self._lengths(widths), self(widths), widths, group, levels)

    def terms(self, trials: Widths) -> NDArray[np.float64]:
        """Every term that groups touch, of several sets of widths: [trials, groups] -> [trials, terms]."""
        size = self.fixed.size
        places = self.place + size * np.arange(len(trials))[:, None]
        counts = np.bincount(places.ravel(), (self.share * trials[:, self.group]).ravel(), size * len(trials))
        return self._terms(self.fixed + counts.reshape(len(trials), *self.fixed.shape))

    def without(self, widths: Widths) -> NDArray[np.float64]:
        """Cost without each of the groups, the others as in `widths`."""
        lengths, full, none = self._lengths(widths), self(widths), np.zeros(1, np.int64)
        return np.array([self._vary(lengths, full, widths, group, none)[0] for group in range(len(widths))])

    def _lengths(self, widths: Widths) -> NDArray[np.float64]:
        counts = np.bincount(self.place, self.share * widths[self.group], self.fixed.size)
        return np.asarray(self.fixed + counts.reshape(self.fixed.shape))

    def _vary(
        self, lengths: NDArray[np.float64], full: float, widths: Widths, group: int, levels: Widths
    ) -> NDArray[np.float64]:
        """Only the terms that the group is part of are computed again."""
        own, axes, uses, row = self._terms_of(group)
        here = lengths[uses]
        varied = np.repeat(here[None], len(levels), axis=0)
        varied[:, row, axes] += (levels - widths[group])[:, None] * self.share[own]
        return np.asarray(full + np.sum(self._terms(varied, uses) - self._terms(here, uses), axis=1))

    def _terms_of(self, group: int) -> tuple[slice, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Where a group's positions are, their axes, the terms that it is part of, and the term of each position."""
        if group not in self._known:
            own = slice(*np.searchsorted(self.group, (group, group + 1)))
            rows, axes = np.divmod(self.place[own], self.fixed.shape[1])
            self._known[group] = (own, axes, *np.unique(rows, return_inverse=True))
        return self._known[group]

    def _terms(
        self, lengths: NDArray[np.float64], rows: NDArray[np.int64] | slice = slice(None)
    ) -> NDArray[np.float64]:
        if self.forms is None:
            return np.asarray(self.factor[rows] * np.prod(lengths, axis=-1))
        return self.forms(self.factor, lengths, rows)


def macs(model: ir.Model, coupling: Coupling, groups: Sequence[Group]) -> CostModel:
    """Multiply-accumulates of one run at the analysed input size."""
    counted = cost.macs(model, coupling.facts.shapes)
    nodes = {node.name or "": node for node in model.graph}
    terms = []
    for name, count in counted.items():
        node = nodes[name]
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if weight is not None and weight.is_initializer() and weight.const_value is not None:
            shape = tuple(int(d) for d in weight.const_value.shape.numpy())
            terms.append((float(count), [(weight.name or "", axis) for axis in range(len(shape))], shape))
        else:
            terms.append((float(count), *_activation_axes(node, coupling)))
    return build(terms, 0.0, coupling, groups)


def _activation_axes(node: ir.Node, coupling: Coupling) -> tuple[list[TensorAxis], tuple[int, ...]]:
    """Axes that a product of two activations loops over: the output's and the contracted one.

    The latter is of one head in attention, and stays.
    """
    output, left = node.outputs[0], node.inputs[0] if node.op_type != "Attention" else None
    shape = coupling.facts.shapes.get(output.name or "", ())
    axes = [(output.name or "", axis) for axis in range(len(shape))]
    inner = coupling.facts.shapes.get((left.name or "") if left is not None else "", ())
    if left is not None and inner:
        return [*axes, (left.name or "", len(inner) - 1)], (*shape, inner[-1])
    return axes, shape


def parameters(
    model: ir.Model, coupling: Coupling, groups: Sequence[Group], *, as_bytes: bool = False, base: float = 0.0
) -> CostModel:
    """Elements (or bytes) of all initializers; a table that a product reads turned is one while both lose the same."""
    terms = []
    atoms = [label for group in groups for label in group.atoms]
    twice = {
        value
        for value, table in clean.turned_tables(model).items()
        if all(
            np.array_equal(
                _own(coupling, (value.name or "", axis), atoms), _own(coupling, (table.name or "", other), atoms)
            )
            for axis, other in ((0, 1), (1, 0))
        )
    }
    for name, value in model.graph.initializers.items():
        if value not in twice and value.const_value is not None and value.const_value.size:
            shape = tuple(int(d) for d in value.const_value.shape.numpy())
            unit = value.const_value.nbytes / value.const_value.size if as_bytes else 1.0
            terms.append((unit * value.const_value.size, [(name, axis) for axis in range(len(shape))], shape))
    return build(terms, base, coupling, groups)


def _own(coupling: Coupling, axis: TensorAxis, atoms: Sequence[int]) -> NDArray[np.int64]:
    """The labels along an axis that belong to a group, others as -1; empty where none does."""
    labels = np.asarray(coupling.labels.get(axis, ()), np.int64)
    found = np.isin(labels, atoms)
    return np.where(found, labels, -1) if found.any() else labels[:0]


def build(
    terms: Sequence[tuple[float, list[TensorAxis], tuple[int, ...]]],
    base: float,
    coupling: Coupling,
    groups: Sequence[Group],
    forms: Sequence[Form | None] = (),
) -> CostModel:
    """Terms that no group touches become part of the base. `forms`: of each term, `None` for a plain product."""
    owner = {int(label): index for index, group in enumerate(groups) for label in group.atoms}
    makeup: dict[TensorAxis, dict[int, int] | None] = {}
    rows: list[tuple[float, list[_Touched], Form | None, float]] = []
    for (total, axes, shape), form in zip(terms, forms or [None] * len(terms), strict=True):
        touched: list[_Touched] = []
        others = 1.0
        for number, (axis, size) in enumerate(zip(axes, shape, strict=True)):
            if axis not in makeup:
                makeup[axis] = _makeup(coupling, axis, owner)
            counts = makeup[axis]
            if counts:
                multiple = form.multiples[number] if form is not None and form.multiples else 1
                per = {g: count / groups[g].channels for g, count in counts.items()}
                touched.append(_Touched(float(size - sum(counts.values())), per, multiple))
                total /= -(-size // multiple) * multiple
            else:
                others *= size
        if touched:
            rows.append((total, touched, form, others))
        else:
            base += total
    width = max((len(touched) for _, touched, _, _ in rows), default=1)
    fixed = np.ones((len(rows), width))
    stored = Forms.none(len(rows), width)
    entries: list[tuple[int, int, float]] = []
    for r, (_, touched, form, others) in enumerate(rows):
        for a, along in enumerate(touched):
            fixed[r, a] = along.rest
            stored.multiples[r, a] = along.multiple
            stored.sides[r, a] = form.side if form is not None else 0
            entries += [(g, r * width + a, count) for g, count in along.shares.items()]
        if form is not None:
            stored.products[r], stored.small[r] = form.elements / others, form.bytes * others
    made = sparse(base, np.array([total for total, *_ in rows]), fixed, entries)
    return dataclasses.replace(made, forms=stored) if any(form is not None for _, _, form, _ in rows) else made


def total(models: Sequence[CostModel]) -> CostModel:
    """What several costs of the same groups add up to, as one."""
    width = max(model.fixed.shape[1] for model in models)
    first = np.cumsum([0, *(len(model.factor) for model in models[:-1])])
    forms = [model.forms or Forms.none(*model.fixed.shape) for model in models]

    def all_axes(arrays: Iterable[NDArray[np.float64]], filled: float) -> NDArray[np.float64]:
        wide = [np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=filled) for a in arrays]
        return np.concatenate(wide)

    def place(model: CostModel, row: int) -> NDArray[np.int64]:
        rows, axes = np.divmod(model.place, model.fixed.shape[1])
        return np.asarray((row + rows) * width + axes)

    group = np.concatenate([model.group for model in models])
    order = np.argsort(group, kind="stable")
    return CostModel(
        sum(model.base for model in models),
        np.concatenate([model.factor for model in models]),
        all_axes((model.fixed for model in models), 1.0),
        np.concatenate([place(model, row) for model, row in zip(models, first, strict=True)])[order],
        group[order],
        np.concatenate([model.share for model in models])[order],
        Forms(
            all_axes((form.multiples for form in forms), 1.0),
            all_axes((form.sides for form in forms), 0.0),
            np.concatenate([form.products for form in forms]),
            np.concatenate([form.small for form in forms]),
        )
        if any(model.forms is not None for model in models)
        else None,
    )


@dataclasses.dataclass(frozen=True)
class _Touched:
    """An axis that groups touch: positions of none, positions for each channel by group, what it is filled up to."""

    rest: float
    shares: Mapping[int, float]
    multiple: int


def sparse(
    base: float, factor: NDArray[np.float64], fixed: NDArray[np.float64], entries: Iterable[tuple[int, int, float]]
) -> CostModel:
    """A cost from (group, place, positions per channel), in any order; each group is at a place at most once."""
    ordered = sorted(entries)
    group, place, share = zip(*ordered, strict=True) if ordered else ((), (), ())
    return CostModel(
        base, factor, fixed, np.array(place, np.int64), np.array(group, np.int64), np.array(share, np.float64)
    )


def _makeup(coupling: Coupling, axis: TensorAxis, owner: Mapping[int, int]) -> dict[int, int] | None:
    labels = coupling.labels.get(axis)
    if labels is None:
        return None
    counts: dict[int, int] = {}
    for label, number in zip(*np.unique(labels, return_counts=True), strict=True):
        group = owner.get(int(label))
        if group is not None:
            counts[group] = counts.get(group, 0) + int(number)
    return counts or None
