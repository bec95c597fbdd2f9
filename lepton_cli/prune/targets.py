"""What pruning is asked for, the widths that groups may have, and what is out of reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lepton_cli.coupling.branches import Branch
from lepton_cli.coupling.links import Group
from lepton_cli.errors import StepError
from lepton_cli.graph import cost as node_cost
from lepton_cli.graph import fold, shapes
from lepton_cli.model import io
from lepton_cli.prune import allocate, latency, times
from lepton_cli.prune import cost as cost_model
from lepton_cli.prune.analysis import Analysis
from lepton_cli.prune.cost import CostModel, Widths
from lepton_cli.prune.details import ReachedTarget
from lepton_cli.prune.hessian import Ranking
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.quantize.draft import drafter
from lepton_cli.step import Context


@dataclasses.dataclass(frozen=True)
class Goal:
    """What remains at most: `share` of the original's `metric`, of which it has `whole`; `price` is that of widths."""

    metric: str
    share: float
    price: CostModel
    whole: float

    @property
    def part(self) -> tuple[CostModel, float]:
        """The price, and what may be spent."""
        return self.price, self.share * self.whole

    def of(self, widths: Widths) -> float:
        """Share of the original's that these widths cost; nothing of nothing is nothing."""
        return self.price(widths) / self.whole if self.whole else 0.0

    def holds(self, widths: Widths) -> bool:
        """Whether these widths cost no more than that."""
        return self.price(widths) <= self.share * self.whole

    def reached(self, result: ir.Model, plan: Analysis) -> ReachedTarget:
        """What a finished model has of it."""
        share = spent(self.metric, result, plan) / (self.whole or 1)
        return ReachedTarget(metric=self.metric, target=self.share, reached=share)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Widths of the plan's groups, full inside branches that go, and these branches.

    `reached`: of measured targets. `time`: measured share of the original's time where none was asked for.
    """

    widths: Widths
    dropped: tuple[Branch, ...] = ()
    reached: tuple[ReachedTarget, ...] = ()
    time: float | None = None


def choose(
    plan: Analysis,
    options: PruneChannels,
    goals: Sequence[Goal],
    context: Context,
    rankings: Sequence[Ranking],
    tables: Sequence[allocate.Table],
) -> Selection:
    """What loses least and holds the targets; `goals`: those but for latency. Raises StepError where nothing does."""
    parts = [goal.part for goal in goals if goal.whole]
    if not options.timed:
        return Selection(allocate.choose(tables, allocate.Limits(parts), options.scope))
    fast = options.target.latency
    met = latency.choose(plan, options, parts, context, rankings, tables, drafter(options.timed_as, context))
    if met.widths is None:
        raise unreachable(plan, "latency", float(fast or 1), met.ratio)
    if fast is None:
        return Selection(met.widths, met.dropped, time=round(met.ratio, 3))
    reached = ReachedTarget(metric="latency", target=float(fast), reached=met.ratio, predicted=met.predicted)
    return Selection(met.widths, met.dropped, (reached,))


def goal(plan: Analysis, metric: str, share: float, context: Context) -> Goal:
    if metric == "macs":
        price = cost_model.macs(plan.model, plan.coupling, plan.groups)
    else:
        as_bytes = metric == "size"
        rest = float(len(io.to_bytes(plan.model)) - io.weight_bytes(plan.model)) if as_bytes else 0.0
        price = cost_model.parameters(plan.model, plan.coupling, plan.groups, as_bytes=as_bytes, base=rest)
    return Goal(metric, share, price, spent(metric, context.original, plan))


def spent(metric: str, model: ir.Model, plan: Analysis) -> float:
    """Multiply-accumulates at the analysed input size, float parameters, or bytes of a whole model."""
    if metric == "size":
        return float(len(io.to_bytes(model)))
    lifted = io.clone(model)
    fold.lift_constants(lifted)
    if metric == "params":
        weights = [value.const_value for value in lifted.graph.initializers.values() if value.const_value is not None]
        return float(sum(w.size for w in weights if w.dtype.is_floating_point()))
    seen = {value.name or "": plan.coupling.facts.shapes.get(value.name or "", ()) for value in plan.model.graph.inputs}
    counted = node_cost.macs(lifted, shapes.concrete(lifted, {name: shape for name, shape in seen.items() if shape}))
    return float(sum(counted.values()))


def levels(group: Group, options: PruneChannels) -> Widths:
    """Widths a group may have. For time they fill the machine's vector blocks, half a block for narrow layers."""
    least = max(1, int(np.ceil(float(options.min_width) * group.channels)))
    multiple = options.round_to
    if multiple is None:
        multiple = times.block(group) if options.timed else 1
    return allocate.levels(group.channels, least, multiple)


def unreachable(plan: Analysis, metric: str, share: float, lowest: float) -> StepError:
    # Only a measured time may be above its target, and be reached.
    alone = metric == "latency" and lowest <= share * (1 + latency.CLOSE)
    missed = "but not while the other targets hold" if alone else f"not to {share:.1%}"
    return StepError(
        "prune.target-unreachable",
        f"{metric} can go down to {lowest:.1%} of the original, {missed}",
        cause=f"{len(plan.groups)} groups can lose channels, {len(plan.frozen)} are frozen; each keeps its least width",
        hint="raise the target, lower `min_width`, or exclude less; `lepton plan` lists the frozen groups",
        option=("target", metric),
    )
