"""Residual branches among the things that can go: which columns of an allocation stand for them, and what they cost.

A branch goes by width 0 of a group inside it, or of a column of its own where no group inside can lose channels.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling import branches, cut
from lepton_cli.coupling.branches import Branch
from lepton_cli.probe import linear, moments
from lepton_cli.probe.linear import Linear
from lepton_cli.probe.sequential import SequentialPass
from lepton_cli.prune import recover, sensitivity
from lepton_cli.prune.allocate import Losses, Price
from lepton_cli.prune.analysis import Analysis
from lepton_cli.prune.cost import CostModel, Widths, total
from lepton_cli.runtime import Values

#: Samples, at most, and rows of a batch, that layers are refitted with before a loss is measured.
SAMPLES, ROWS = 128, 2_048
#: Layers refitted on trial: the one that leads to the sum, and the first behind it.
NEAR = 4
#: Relative ridge of that fit.
RIDGE = 3e-3


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns of an allocation: the plan's groups, then branches without a group of their own."""

    plan: Analysis
    #: Branches that may go, each with its column.
    branches: Mapping[int, Branch]

    @property
    def count(self) -> int:
        """Number of columns."""
        return max([len(self.plan.groups), *(column + 1 for column in self.branches)])

    @property
    def full(self) -> Widths:
        """Everything as it is."""
        groups = [group.channels for group in self.plan.groups]
        return np.array([*groups, *[1] * (self.count - len(groups))], np.int64)

    def priced(self, price: Price, of: Callable[[Collection[str]], CostModel] | None = None) -> Price:
        """A cost of the plan's groups as one of columns. With a branch go its groups; `of` prices what is left of
        its nodes, which else counts as staying."""
        inside = {column: self._inside(branch) for column, branch in self.branches.items()}
        parts = {column: of((*branch.nodes, branch.add)) for column, branch in self.branches.items()} if of else {}
        around = {
            column: [other for other, outer in self.branches.items() if set(branch.nodes) < set(outer.nodes)]
            for column, branch in self.branches.items()
        }
        return _Groups(price, len(self.plan.groups), inside, parts, around)

    def _inside(self, branch: Branch) -> list[int]:
        """Groups that live in a branch alone."""
        return [
            number
            for number, group in enumerate(self.plan.groups)
            if {port.node for port in (*group.producers, *group.consumers)} <= set(branch.nodes)
        ]

    def dropped(self, widths: Widths) -> list[Branch]:
        """Branches that these widths drop."""
        return [branch for column, branch in self.branches.items() if widths[column] == 0]

    def kept(self, widths: Widths) -> Widths:
        """Widths of the plan's groups, full where the whole branch goes."""
        gone = {name for branch in self.dropped(widths) for name in branch.nodes}
        return np.array(
            [
                group.channels if width == 0 or {port.node for port in group.producers} <= gone else width
                for group, width in zip(self.plan.groups, widths[: len(self.plan.groups)], strict=True)
            ],
            np.int64,
        )

    def cut(self, widths: Widths, orders: Sequence[NDArray[np.int64]]) -> ir.Model:
        """The model at these widths, without repair; `orders`: channels of every group, first to go first."""
        return self._cut(widths, orders)[0]

    def loss(
        self,
        widths: Widths,
        orders: Sequence[NDArray[np.int64]],
        trial: sensitivity.Unpruned,
        repaired: bool,
    ) -> float:
        """Error on the outputs at these widths; `repaired`: all layers behind what went refitted quickly."""
        model, removed, stand_ins = self._cut(widths, orders)
        if repaired:
            layers = recover.after_the_cut(model, self.plan.coupling, removed, self.plan.model, stand_ins)
            refit(self.plan, model, layers, removed, trial.source)
        return trial.error(model)

    def _cut(
        self, widths: Widths, orders: Sequence[NDArray[np.int64]]
    ) -> tuple[ir.Model, NDArray[np.int64], frozenset[str]]:
        """The model, the channels that went, and the values that stand for sums of dropped branches."""
        kept = self.kept(widths)
        gone = [
            group.atoms[order[: group.channels - width]]
            for group, order, width in zip(self.plan.groups, orders, kept, strict=True)
        ]
        removed = np.concatenate(gone) if gone else np.zeros(0, np.int64)
        model = cut.cut(self.plan.model, self.plan.coupling, removed) if len(removed) else self.plan.model
        model, stand_ins = branches.drop(model, self.dropped(widths))
        return model, removed, stand_ins


@dataclasses.dataclass(frozen=True)
class _Groups:
    """A cost of groups, of what is left without the branches that go."""

    price: Price
    count: int
    #: By column of a branch: the groups inside, the price of its nodes, and the columns of branches that it is part of.
    inside: Mapping[int, Sequence[int]]
    parts: Mapping[int, CostModel]
    around: Mapping[int, Sequence[int]]
    #: The price of all nodes that go, by the columns of their branches.
    _known: dict[tuple[int, ...], CostModel] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, widths: Widths) -> float:
        left, gone = self._left(widths)
        return self.price(left) - (gone(left) if gone else 0.0)

    def table(self, widths: Widths, group: int, levels: Widths) -> Losses:
        """With the branch of this column the cost is a line of its own."""
        stays = widths.copy()
        stays[group] = max(levels)
        left, gone = self._left(stays)
        if group < self.count and left[group]:
            found = self.price.table(left, group, levels) - (gone.table(left, group, levels) if gone else 0.0)
        else:
            found = np.full(len(levels), self.price(left) - (gone(left) if gone else 0.0))
        if group in self.inside and 0 in levels:
            stays[group] = 0
            found = np.where(levels == 0, self(stays), found)
        return np.asarray(found)

    def _left(self, widths: Widths) -> tuple[Widths, CostModel | None]:
        """Widths without groups of branches that go, and the price of these branches."""
        dropped = [column for column in self.inside if widths[column] == 0]
        left = widths[: self.count]
        if not dropped:
            return left, None
        left = left.copy()
        for column in dropped:
            left[self.inside[column]] = 0
        gone = (*(c for c in dropped if c in self.parts and all(widths[outer] for outer in self.around[c])),)
        if gone and gone not in self._known:
            self._known[gone] = total([self.parts[column] for column in gone])
        return left, self._known.get(gone)


def columns(plan: Analysis, found: Iterable[Branch]) -> Columns:
    """Give every branch a column: the first group inside it that no smaller branch has, or a new one."""
    taken: dict[int, Branch] = {}
    extra = len(plan.groups)
    for branch in sorted(found, key=lambda branch: len(branch.nodes)):
        inside = set(branch.nodes)
        column = next(
            (
                number
                for number, group in enumerate(plan.groups)
                if number not in taken and {port.node for port in (*group.producers, *group.consumers)} <= inside
            ),
            extra,
        )
        extra += column == extra
        taken[column] = branch
    return Columns(plan, taken)


def losses(
    plan: Analysis,
    found: Sequence[Branch],
    trial: sensitivity.Unpruned,
    done: Callable[[], object] = lambda: None,
) -> list[float]:
    """Error on the outputs after dropping each branch alone, the layers around it refitted."""
    measured = []
    none = np.zeros(0, np.int64)
    for branch in found:
        model, stand_ins = branches.drop(plan.model, [branch])
        near = recover.after_the_cut(model, plan.coupling, none, plan.model, stand_ins)[:NEAR]
        refit(plan, model, near, none, trial.source)
        measured.append(trial.error(model))
        done()
    return measured


def refit(
    plan: Analysis, model: ir.Model, layers: Sequence[Linear], removed: NDArray[np.int64], source: recover.Calibration
) -> None:
    """A quick least-squares fit of some layers, in graph order, towards what the plan's model computes; in place."""
    few = dataclasses.replace(source, samples=min(SAMPLES, source.samples))

    def walk() -> SequentialPass:
        return SequentialPass(
            lambda: recover.fitting(plan.model, few), recover.count(plan.model, few), source.workdir, source.threads
        )

    with contextlib.closing(walk()) as now, contextlib.closing(walk()) as then:
        for layer in layers:
            layer = linear.find(model)[layer.node]
            aim = recover.aim(model, layer, plan.coupling, removed)
            needed = [name for name in (layer.input, aim.shortcut) if name is not None]
            before = then.visit(plan.model, layer.node, [aim.value])
            _fit(model, layer, aim, zip(now.visit(model, layer.node, needed), before, strict=True))


def _fit(model: ir.Model, layer: Linear, aim: moments.Aim, seen: Iterable[tuple[Values, Values]]) -> None:
    weight, bias = linear.matrix_of(model, layer), linear.bias_of(model, layer)
    size = len(weight)
    start = np.concatenate([weight, np.zeros((1, weight.shape[1])) if bias is None else bias[None]])
    squares, products = np.zeros((size + 1, size + 1)), np.zeros((size + 1, weight.shape[1]))
    for number, (values, wanted) in enumerate(seen):

        def pick(rows: int, number: int = number) -> NDArray[np.int64]:
            return np.arange(rows) if rows <= ROWS else np.random.default_rng(number).choice(rows, ROWS, replace=False)

        target = wanted[aim.value]
        kept = target if aim.keep is None else np.compress(aim.keep, target, layer.channel_axis)
        x, y = layer.features(values[layer.input], pick), layer.rows(kept, pick)
        if aim.shortcut:
            y = y - layer.rows(values[aim.shortcut], pick)
        residual = y - (x @ start[:-1].astype(np.float32) + start[-1].astype(np.float32))
        squares += moments.gram(x)
        products[:size] += x.T @ residual
        products[size] += residual.sum(axis=0, dtype=np.float64)
    free = size + (bias is not None)
    damped = squares[:free, :free]
    damped[np.arange(size), np.arange(size)] += RIDGE * max(float(np.diag(squares)[:size].mean()), 1e-12)
    if not np.isfinite(damped).all() or not np.isfinite(products).all() or not damped.any():
        return
    step = np.linalg.solve(damped, products[:free])
    linear.store(model, layer, weight + step[:size], None if bias is None else bias + step[size])
