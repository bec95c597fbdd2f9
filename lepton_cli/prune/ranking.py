"""Ranking all groups and measuring what narrowing them costs; kept between runs, since no target changes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli import cache
from lepton_cli.model import io
from lepton_cli.probe import linear
from lepton_cli.prune import cost as cost_model
from lepton_cli.prune import importance, recover, sensitivity
from lepton_cli.prune.allocate import Table
from lepton_cli.prune.analysis import Analysis
from lepton_cli.prune.cost import Widths
from lepton_cli.prune.hessian import Ranking
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.step import Context

#: By group: the ranking and the loss after removing 0, 1, 2, ... channels.
Ranked = dict[str, tuple[Ranking, NDArray[np.float64]]]
#: What is kept of a group.
_PARTS = ("order", "loss", "curve")


def source_of(context: Context) -> recover.Calibration | None:
    data = context.calibration
    return (
        None if data is None else recover.Calibration(data, context.workdir, context.threads, context.seed, data.count)
    )


def ranked_groups(
    plan: Analysis, options: PruneChannels, context: Context, levels: Sequence[Widths], warnings: list[str]
) -> tuple[list[Ranking], list[Table]]:
    """The order of removal and the loss at every level, for every group.

    Channels are ranked down to the last one, so that one ranking serves all targets and levels.
    """
    source = source_of(context)
    kind = options.importance or ("hessian" if source is not None else "l2")
    if source is None:
        warnings.append(
            "no calibration data: channels are ranked by their weights and nothing is repaired; expect to lose accuracy"
        )
    names = [group.name for group in plan.groups]
    key = cache.key(
        model=io.fingerprint(plan.model),
        importance=kind,
        repaired=options.repairs != (),
        groups=names,
        data=None if source is None else source.data.fingerprint,
        samples=None if source is None else source.samples,
        seed=context.seed,
    )
    stored = context.cache.get("ranking", key, *(f"{what}{i}" for i in range(len(names)) for what in _PARTS))
    if stored is None:
        ranked = _rank(plan, options, context, kind)
        context.cache.put("ranking", key, _stored(ranked))
    else:
        parts = [[stored[f"{what}{i}"] for what in _PARTS] for i in range(len(names))]
        ranked = {name: (Ranking(order, loss), curve) for name, (order, loss, curve) in zip(names, parts, strict=True)}
    tables = [
        Table(level, ranked[group.name][1][group.channels - level])
        for group, level in zip(plan.groups, levels, strict=True)
    ]
    return [ranked[group.name][0] for group in plan.groups], tables


def _stored(ranked: Ranked) -> dict[str, NDArray[Any]]:
    """The arrays of every group, numbered."""
    return {
        f"{what}{i}": array
        for i, (ranking, curve) in enumerate(ranked.values())
        for what, array in zip(_PARTS, (ranking.order, ranking.loss, curve), strict=True)
    }


def _rank(plan: Analysis, options: PruneChannels, context: Context, kind: str) -> Ranked:
    """The order of removal and its loss, group by group: the long part, and the same for every target."""
    layers = linear.find(plan.model)
    rankings: dict[str, Ranking] = {}
    curves: dict[str, NDArray[np.float64]] = {}
    source = source_of(context)
    if source is not None:
        total = cost_model.macs(plan.model, plan.coupling, plan.groups)(np.array([g.channels for g in plan.groups]))
        samples = next(
            (s[0] for s in (plan.coupling.facts.shapes.get(i.name, ()) for i in io.inputs(plan.model)) if s), 1
        )
        trial = sensitivity.prepare(
            plan.model, plan.coupling, source, len(plan.groups) * len(sensitivity.LEVELS), total / max(samples, 1)
        )
    with context.progress.stage("ranking channels", len(plan.groups)) as stage:
        for chunk in importance.chunks(plan.groups, layers, plan.model):
            needs = source is not None and (kind in ("hessian", "activation") or options.repairs != ())
            grams = importance.grams(plan.model, chunk, layers, source) if needs and source is not None else {}
            for group in chunk:
                readers = importance.consumers(group, layers)
                if kind in ("hessian", "activation") and readers:
                    rankings[group.name] = importance.with_data(kind, plan.model, group, layers, grams)
                else:
                    fallback = "l2" if kind in ("hessian", "activation") else kind
                    scores = importance.data_free(fallback, plan.model, group, plan.scales)
                    rankings[group.name] = importance.by_scores(scores)
                curve = rankings[group.name]
                curves[group.name] = (
                    sensitivity.curve(trial, group, curve, layers, grams)
                    if source is not None
                    # Shares of importance are not errors: squared, many small cuts are preferred to one deep one.
                    else np.concatenate([[0.0], curve.loss**2])
                )
                stage.advance()
    return {group.name: (rankings[group.name], curves[group.name]) for group in plan.groups}
