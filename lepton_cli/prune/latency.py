"""Widths in the machine's vector blocks and whole branches, chosen by measured times together.

Fewer multiply-accumulates can even be slower, so no formula is trusted: tables of measured times propose. For a latency
target the whole model is timed beside the original, and the tables' scale is corrected until the measured ratio is the
one asked for. For other targets, of a model whose later kernels are known, whole models with widths that hold them are
timed: where the best takes longer than others that lose little more, it is one of those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli import cache
from lepton_cli.coupling import branches
from lepton_cli.coupling.branches import Branch
from lepton_cli.graph import select
from lepton_cli.machine import machine
from lepton_cli.model import io
from lepton_cli.prune import allocate, depth, ranking, recover, sensitivity, stopwatch, times
from lepton_cli.prune import cost as cost_model
from lepton_cli.prune.allocate import Table
from lepton_cli.prune.analysis import Analysis
from lepton_cli.prune.cost import Widths
from lepton_cli.prune.hessian import Ranking
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.prune.stopwatch import Stopwatch
from lepton_cli.step import Context

#: What models go through before they are timed.
Quantize = Callable[[ir.Model], ir.Model]
#: Costs, each with what may be spent.
Parts = Sequence[tuple[allocate.Price, float]]
#: Losses of models with these widths.
WholeLosses = Callable[[Sequence[Widths]], list[float]]

#: A measured ratio this close to the target is good enough.
CLOSE = 0.02
#: Candidates that are built and timed as a whole at most.
TRIES = 8
#: Where time is no target: the share of the seconds of timing layers, prices of time that are tried (times the loss
#: without one), and what is no loss to speak of.
ASIDE = 0.1
PRICES = tuple(2.0**power for power in range(-2, 5))
LITTLE = 0.01
#: Per cent of the loss that a per cent of time is worth: at 1 and 2 a ResNet-56 of 60 % of its MACs ran 1.8 times as
#: fast in int8 as unpruned and lost 1.4 points, where 0.8 was what the MACs alone cost.
WORTH = 0.5
#: Of each kind, so many are timed as whole models.
PROPOSALS = 3
#: Of those whose value, as tables tell, is at most so many times the best one's, losses are measured too.
NEAR = 1.3


@dataclasses.dataclass(frozen=True)
class Met:
    """What a target was met with."""

    #: Widths of the plan's groups, full inside dropped branches; `None` when nothing is fast enough.
    widths: Widths | None
    dropped: tuple[Branch, ...]
    #: Measured time as a share of the original's, and what the tables had predicted.
    ratio: float
    predicted: float


def droppable(plan: Analysis, options: PruneChannels, context: Context) -> list[Branch]:
    """Branches that may go as a whole under `include`, `exclude` and `scope`, and whose loss can be repaired."""
    if context.calibration is None or options.repairs == () or options.scope != "global" or not options.drop_branches:
        return []
    names = [node.name or "" for node in plan.model.graph]
    chosen = select.select(names, options.include, options.exclude)
    return [b for b in branches.find(plan.model, plan.coupling.facts) if chosen.issuperset(b.nodes)]


def choose(
    plan: Analysis,
    options: PruneChannels,
    others: Parts,
    context: Context,
    rankings: Sequence[Ranking],
    tables: Sequence[Table],
    quantize: Quantize | None = None,
) -> Met:
    """Widths and branches whose measured latency is what `options` ask for, or by time beside other targets; decided
    once for a machine.

    `others`: further costs of the plan's groups, each with what may be spent.
    """
    found = droppable(plan, options, context)
    data = context.calibration
    key = cache.key(
        **_timed_on(options, context),
        model=io.fingerprint(plan.model),
        options=options,
        levels=[table.levels for table in tables],
        data=None if data is None else data.fingerprint,
        samples=None if data is None else data.count,
        seed=context.seed,
        judged=[times.SECONDS, ASIDE, *PRICES, LITTLE, WORTH, PROPOSALS, NEAR, CLOSE, TRIES],
    )
    stored = context.cache.get("latency", key, "widths", "dropped", "ratio", "predicted")
    if stored is None:
        stored = _decide(plan, options, others, context, rankings, tables, quantize)
        context.cache.put("latency", key, stored)
    return Met(
        None if stored["widths"] is None else np.array(stored["widths"], np.int64),
        tuple(branch for branch in found if branch.add in stored["dropped"]),
        stored["ratio"],
        stored["predicted"],
    )


def _decide(
    plan: Analysis,
    options: PruneChannels,
    others: Parts,
    context: Context,
    rankings: Sequence[Ranking],
    tables: Sequence[Table],
    quantize: Quantize | None,
) -> dict[str, Any]:
    columns, offer = offered(plan, options, context, tables)
    batch = next(iter(context.check.batches(context.batch, context.batch)))
    shown = batch.sized(context.check.fixed_batch or context.batch)
    watch = Stopwatch(context.original, shown, context.provider, context.threads, context.workdir, quantize)
    target = options.target.latency
    seconds = times.SECONDS * (ASIDE if target is None else 1)
    cost = times_of(columns, watch, options, context, seconds)
    rest = [(columns.priced(price), budget) for price, budget in others]
    orders = [rank.order for rank in rankings]
    if target is None:

        def cut(widths: Widths) -> ir.Model:
            return columns.cut(widths, orders)

        return _stored(
            columns, _thrifty(offer, cost, rest, options, cut, watch, whole_losses(columns, orders, options, context))
        )
    with context.progress.stage("measuring latency", TRIES) as stage:

        def measure(widths: Widths) -> float:
            stage.advance()
            return watch.ratio(columns.cut(widths, orders))

        result = search(float(target), offer, cost, rest, options.scope, measure)
        stage.note(f"{result.ratio:.1%} of the original")
    return _stored(columns, result)


def _thrifty(
    tables: Sequence[Table],
    cost: allocate.Price,
    others: Parts,
    options: PruneChannels,
    cut: Callable[[Widths], ir.Model],
    watch: Stopwatch,
    judge: WholeLosses | None = None,
) -> Met:
    """What tables of layers propose, decided by whole models beside each other: their times, and losses where close."""
    worth = Worth(tuple(options.target.shares.values()))
    offered = proposals(tables, cost, others, worth)
    ratios = watch.ratios([partial(cut, widths) for widths in offered], times.SECONDS * ASIDE / 2)[0].tolist()
    values = [worth.value(allocate.total(tables, w), ratio) for w, ratio in zip(offered, ratios, strict=True)]
    near = [place for place, value in enumerate(values) if value <= NEAR * min(values)]
    if judge is not None and len(near) > 1:
        losses = judge([offered[place] for place in near])
        best = min(zip(near, losses, strict=True), key=lambda one: worth.value(one[1], ratios[one[0]]))[0]
    else:
        best = int(np.argmin(values))
    return Met(offered[best], (), ratios[best], cost(offered[best]))


def whole_losses(
    columns: depth.Columns,
    orders: Sequence[NDArray[np.int64]],
    options: PruneChannels,
    context: Context,
    count: int | None = None,
) -> WholeLosses | None:
    """What measures losses of whole models; tables add up what single layers lose. `None` without data.

    `count`: models in all, which decides how many samples each is measured on; default: those of every call.
    """
    source = ranking.source_of(context)
    if source is None:
        return None
    prepared: dict[int, sensitivity.Unpruned] = {}

    def judge(offered: Sequence[Widths]) -> list[float]:
        share = count or len(offered)
        if share not in prepared:
            prepared[share] = _trial(columns.plan, source, share)
        with context.progress.stage("comparing whole models", len(offered)) as stage:
            found = []
            for widths in offered:
                found.append(columns.loss(widths, orders, prepared[share], options.repairs != ()))
                stage.advance()
        return found

    return judge


def _stored(columns: depth.Columns, result: Met) -> dict[str, Any]:
    """What the cache keeps of a choice of widths of all columns."""
    widths = result.widths
    return {
        "widths": None if widths is None else columns.kept(widths).tolist(),
        "dropped": [] if widths is None else [branch.add for branch in columns.dropped(widths)],
        "ratio": result.ratio,
        "predicted": result.predicted,
    }


def offered(
    plan: Analysis, options: PruneChannels, context: Context, tables: Sequence[Table]
) -> tuple[depth.Columns, list[Table]]:
    """All that can become narrower or go: the plan's groups, with their `tables`, and branches, with what they lose."""
    columns = depth.columns(plan, droppable(plan, options, context))
    return columns, _with_branches(columns, tables, _losses(plan, list(columns.branches.values()), context))


def times_of(
    columns: depth.Columns, watch: stopwatch.Stopwatch, options: PruneChannels, context: Context, seconds: float
) -> times.Times:
    """What every width costs on this machine: measured in about so many seconds, once for all levels and targets."""
    key = cache.key(
        **_timed_on(options, context),
        model=io.fingerprint(columns.plan.model),
        groups=[group.name for group in columns.plan.groups],
        branches=[[column, branch.add] for column, branch in columns.branches.items()],
        chosen=[times.MODELS, times.POINTS, times.LOWEST, times.PATIENCE],
    )
    stored = context.cache.get("times", key, "trials", "ratios", "errors", "seconds")
    if stored is None or stored["seconds"] < seconds:
        trials = times.trials(columns, watch.once, seconds, watch.setup)
        with context.progress.stage("timing layers", len(trials) + 1) as stage:
            ratios, errors = times.measure(columns, trials, watch, stage.advance, seconds)
        kept = [[trial.members, trial.width] for trial in trials]
        stored = {"trials": kept, "ratios": ratios, "errors": errors, "seconds": seconds}
        context.cache.put("times", key, stored)
    measured = [times.Timed(tuple(members), width) for members, width in stored["trials"]]
    return times.fitted(columns, measured, stored["ratios"], stored["errors"])


def _timed_on(options: PruneChannels, context: Context) -> dict[str, object]:
    """What measured ratios hold for: the machine, how it is used, the model that they are shares of, and its inputs."""
    return {
        "machine": machine(),
        "provider": context.provider,
        "threads": context.threads,
        "batch": context.batch,
        "precision": "float" if options.timed_as == "auto" else options.timed_as,
        "original": io.fingerprint(context.original),
        "inputs": context.check.fingerprint,
    }


def _losses(plan: Analysis, found: Sequence[Branch], context: Context) -> list[float]:
    source = ranking.source_of(context)
    if source is None or not found:
        return []
    key = cache.key(
        model=io.fingerprint(plan.model),
        branches=[branch.add for branch in found],
        data=source.data.fingerprint,
        samples=source.samples,
        seed=context.seed,
    )
    stored = context.cache.get("branches", key, "losses")
    if stored is not None:
        return list(stored["losses"])
    trial = _trial(plan, source, len(found))
    with context.progress.stage("trying without branches", len(found)) as stage:
        losses = depth.losses(plan, found, trial, stage.advance)
    context.cache.put("branches", key, {"losses": losses})
    return losses


def _trial(plan: Analysis, source: recover.Calibration, count: int) -> sensitivity.Unpruned:
    """What models are compared with, on as many samples as so many models allow."""
    full = np.array([group.channels for group in plan.groups])
    inputs = (plan.coupling.facts.shapes.get(info.name, ()) for info in io.inputs(plan.model))
    samples = next((shape[0] for shape in inputs if shape), 1)
    macs = cost_model.macs(plan.model, plan.coupling, plan.groups)(full) / max(samples, 1)
    return sensitivity.prepare(plan.model, plan.coupling, source, count, macs)


def _with_branches(columns: depth.Columns, tables: Sequence[Table], losses: Sequence[float]) -> list[Table]:
    """The groups' tables, with level 0 where a branch goes with them, and tables of the branches' own."""
    zero = dict(zip(columns.branches, losses, strict=True))
    found = []
    for column in range(columns.count):
        table = tables[column] if column < len(tables) else Table(np.array([1], np.int64), np.zeros(1))
        if column in zero:
            table = Table(np.append(table.levels, 0), np.append(table.loss, zero[column]))
        found.append(table)
    return found


def search(
    target: float,
    tables: Sequence[Table],
    cost: allocate.Price,
    others: Parts,
    scope: str,
    measure: Callable[[Widths], float],
) -> Met:
    """Widths of least loss whose measured ratio is not above the target by more than the tolerance.

    The budget of the proposals is corrected by how far the last prediction was off. The choice's `widths` are
    `None`, and its ratio is the fastest seen, when even the fastest widths are too slow.
    """
    seen: dict[tuple[int, ...], float] = {}
    best: tuple[float, Met] | None = None
    budget = target
    for _ in range(TRIES):
        limits = allocate.Limits([(cost, budget), *others])
        widths = allocate.choose(tables, limits, scope)
        out_of_reach = limits(widths) > 1
        if out_of_reach and not others:
            widths = allocate.fastest(tables, cost)
        key = tuple(widths.tolist())
        again = key in seen
        ratio = seen.setdefault(key, seen[key] if again else measure(widths))
        predicted = cost(widths)
        loss = allocate.total(tables, widths)
        held = all(price(widths) <= most for price, most in others)
        if held and ratio <= target * (1 + CLOSE) and (best is None or (loss, -ratio) < (best[0], -best[1].ratio)):
            best = loss, Met(widths, (), ratio, predicted)
        if abs(ratio - target) <= CLOSE * target or (ratio > target and out_of_reach):
            break
        # The same widths again: the next ones are a step away, on the side where the target lies.
        step = np.sign(target - ratio) * 0.015 * target if again else target * predicted / ratio - budget
        budget = max(budget + float(step), 1e-9)
    if best is None:
        return Met(None, (), min(seen.values()), predicted)
    return best[1]


def proposals(tables: Sequence[Table], cost: allocate.Price, others: Parts, worth: Worth) -> list[Widths]:
    """Widths that hold `others`: those of least loss, then others with less time, as many as are worth timing.

    Times of single layers are noisy, and half-filled blocks are what they are most often wrong about: half of the
    proposals are without any.
    """
    limits = allocate.Limits(others)
    found = {tuple(best.tolist()): best for best in [allocate.choose(tables, limits, "global")]}
    best = next(iter(found.values()))
    loss = max(allocate.total(tables, best), LITTLE)
    full = np.array([table.levels[0] for table in tables], np.int64)
    for offered in (tables, [_whole_blocks(table) for table in tables]):
        saved = [cost.table(full, column, table.levels) - cost(full) for column, table in enumerate(offered)]
        several: dict[tuple[int, ...], Widths] = {}
        for price in PRICES:
            priced = [Table(one.levels, one.loss + price * loss * s) for one, s in zip(offered, saved, strict=True)]
            widths = allocate.choose(priced, limits, "global")
            if limits(widths) <= 1:
                several[tuple(widths.tolist())] = widths
        ordered = sorted(several.values(), key=lambda widths: worth.value(allocate.total(tables, widths), cost(widths)))
        found.update((tuple(widths.tolist()), widths) for widths in ordered[:PROPOSALS])
    return list(found.values())


def _whole_blocks(table: Table) -> Table:
    """The levels that fill the machine's vector blocks, the full width and a dropped branch among them."""
    kept = (table.levels % machine().vector_block == 0) | (table.levels == table.levels[0])
    return Table(table.levels[kept], table.loss[kept])


@dataclasses.dataclass(frozen=True)
class Worth:
    """What time is worth beside other targets. `shares`: what those ask for."""

    shares: tuple[float, ...]

    def value(self, loss: float, time: float) -> float:
        """Less is better. Less of the time than of what was asked for is worth nothing."""
        return float((loss + LITTLE) * max(time, *self.shares) ** WORTH)
