"""What pruning can leave of a model, before anything is built: widths with their loss and cost, from tables alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph import clean
from lepton_cli.prune import allocate, depth, latency, ranking, stopwatch, targets, times
from lepton_cli.prune.allocate import Price, Table
from lepton_cli.prune.analysis import Analysis, analysed, feeds
from lepton_cli.prune.cost import Widths
from lepton_cli.prune.latency import Parts, Quantize
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.prune.stored import stored
from lepton_cli.quantize.kernels import Filling
from lepton_cli.step import Context

#: Whole models whose losses are measured, about: the more, the fewer samples for each.
MEASURED = 40
#: Weights swept of one price, of each of two, and so on.
STEPS = (16, 10, 5, 3)


@dataclasses.dataclass(frozen=True)
class Prospect:
    """Widths and branches that pruning may leave, and what tables say of them."""

    #: Channels that remain, of the groups that become narrower.
    widths: Mapping[str, int]
    #: Branches that go, by the addition that each leads into.
    dropped: tuple[str, ...]
    #: Summed losses of the groups and branches, each alone: squared output error as a share of the variance.
    loss: float
    #: Shares of the original's.
    parameters: float
    macs: float

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for the same widths."""
        return tuple(sorted(self.widths.items())), self.dropped

    def options(self, importance: str | None) -> PruneChannels:
        """The step that leaves them."""
        branches = {"drop_branches": self.dropped} if self.dropped else {}
        ranked = {"importance": importance} if importance else {}
        return PruneChannels.model_validate({"widths": dict(self.widths), **branches, **ranked})


class Prospects:
    """Tables of one prepared model under one ranking and one rule for widths."""

    def __init__(
        self,
        plan: Analysis,
        columns: depth.Columns,
        tables: Sequence[Table],
        orders: Sequence[NDArray[np.int64]],
        options: PruneChannels,
        context: Context,
    ) -> None:
        """`tables`: by column, with a dropped branch as width 0. `orders`: channels of groups, first to go first."""
        self.plan, self.columns, self.tables, self._context = plan, columns, tables, context
        self._orders, self._options = orders, options
        #: By the identity of the prices, which a sweep keeps alive.
        self._sweeps: dict[tuple[int, ...], allocate.Sweep] = {}

    def without_branches(self) -> Prospects:
        """The same, where no branch goes as a whole."""
        tables = [Table(one.levels[one.levels > 0], one.loss[one.levels > 0]) for one in self.tables]
        return Prospects(self.plan, self.columns, tables, self._orders, self._options, self._context)

    @cached_property
    def macs(self) -> targets.Goal:
        """Multiply-accumulates as a share of the original's."""
        return targets.goal(self.plan, "macs", 1.0, self._context)

    @cached_property
    def parameters(self) -> targets.Goal:
        """Float parameters as a share of the original's."""
        return targets.goal(self.plan, "params", 1.0, self._context)

    def price(self, cost: Price) -> Price:
        """A cost of the plan's groups as one of the columns."""
        return self.columns.priced(cost)

    def stored(self, written: ir.Model, filling: Filling) -> Price:
        """Bytes of a file by the columns' widths, where the unpruned model becomes `written`."""
        found = stored(self.plan, written, filling)
        return self.columns.priced(found, found.of)

    def times(self, options: PruneChannels, quantize: Quantize | None, seconds: float) -> times.Times:
        """Time by widths as a share of the original's, both behind `quantize`; measured in about so many seconds, once
        for a model and machine."""
        context = self._context
        batch = next(iter(context.check.batches(context.batch, context.batch)))
        shown = batch.sized(context.check.fixed_batch or context.batch)
        watch = stopwatch.Stopwatch(
            context.original, shown, context.provider, context.threads, context.workdir, quantize
        )
        return latency.times_of(self.columns, watch, options, context, seconds)

    def least(self, cost: Price) -> float:
        """What the cheapest widths cost."""
        return cost(allocate.fastest(self.tables, cost))

    def choose(self, parts: Parts) -> Prospect | None:
        """What loses least and costs no more than each budget; `None` where nothing does. Many budgets of the same
        prices cost little more than one."""
        prices = [price for price, _ in parts]
        key = tuple(map(id, prices))
        if key not in self._sweeps:
            steps = STEPS[min(len(prices), len(STEPS)) - 1]
            self._sweeps[key] = allocate.Sweep(self.tables, prices, steps)
        widths = self._sweeps[key].within([budget for _, budget in parts])
        return None if widths is None else self.prospect(widths)

    def prospect(self, widths: Widths) -> Prospect:
        """These widths of all columns."""
        kept, dropped = self.columns.kept(widths), self.columns.dropped(widths)
        gone = {node for branch in dropped for node in branch.nodes}
        named = {
            group.name: int(width)
            for group, width in zip(self.plan.groups, kept, strict=True)
            if width < group.channels and not {port.node for port in group.producers} <= gone
        }
        return Prospect(
            widths=named,
            dropped=tuple(branch.add for branch in dropped),
            loss=allocate.total(self.tables, widths),
            parameters=self.price(self.parameters.price)(widths) / (self.parameters.whole or 1.0),
            macs=self.price(self.macs.price)(widths) / (self.macs.whole or 1.0),
        )

    def widths(self, prospect: Prospect) -> Widths:
        """Widths of all columns."""
        named = [prospect.widths.get(group.name, group.channels) for group in self.plan.groups]
        widths = self.columns.full
        widths[: len(named)] = named
        for column, branch in self.columns.branches.items():
            if branch.add in prospect.dropped:
                widths[column] = 0
        return widths

    @cached_property
    def _whole(self) -> latency.WholeLosses | None:
        return latency.whole_losses(self.columns, self._orders, self._options, self._context, MEASURED)

    def loss(self, prospect: Prospect) -> float:
        """What these widths lose together, measured on the outputs of a model that is cut and quickly repaired: tables
        add up what layers lose alone. Without data to measure on: what the tables say."""
        return prospect.loss if self._whole is None else self._whole([self.widths(prospect)])[0]

    def cut(self, prospect: Prospect) -> ir.Model:
        """A model with these widths and branches, of whichever channels, without repair: it is as small and as fast."""
        orders = [np.arange(group.channels) for group in self.plan.groups]
        model = self.columns.cut(self.widths(prospect), orders)
        clean.remove_unused(model)  # as `apply` does
        clean.tie_tables(model)
        return model


def prospects(model: ir.Model, options: PruneChannels, context: Context) -> Prospects | None:
    """Tables of a model under the ranking and the widths of `options`, whose targets do not count; with a target of
    `latency`, shortcuts are rewritten. `None` where no channel can go.

    The ranking is kept between runs.
    """
    plan = analysed(model, options, feeds(model, context))
    if not plan.groups:
        return None
    levels = [targets.levels(group, options) for group in plan.groups]
    rankings, tables = ranking.ranked_groups(plan, options, context, levels, [])
    columns, offered = latency.offered(plan, options, context, tables)
    return Prospects(plan, columns, offered, [ranked.order for ranked in rankings], options, context)


def full(found: Prospects) -> Widths:
    """The widths of the model as it is."""
    return np.array([table.levels[0] for table in found.tables], np.int64)
