"""The space of the samplers: that of `tune`, where pruning is asked for shares of what remains, not for widths."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from lepton_cli import units
from lepton_cli.recipe.tuning import Space
from lepton_cli.report.trial import Value
from lepton_cli.tune import space as spaces
from lepton_cli.tune.candidate import Candidate, Point, read_steps

#: Dimensions that fall from 1 in steps.
LADDERS = ("keep", "keep_params")
#: Below this share a layer may keep less than the 5 % of its channels that pruning keeps by default.
DEEP = 0.12


@dataclasses.dataclass(frozen=True)
class Targets:
    """Choices by name. `keep`: what remains of what `prune_by` counts; `keep_params`: of the parameters besides."""

    space: spaces.SearchSpace
    dimensions: Mapping[str, tuple[Value, ...]]

    def point(self, chosen: Mapping[str, Value]) -> Point:
        """A point: the first value of choices that mean nothing here."""
        own = {name: chosen[name] for name in ("prune_by", *LADDERS)}
        if own["prune_by"] in ("params", "size"):
            own["keep_params"] = 1
        pruned = bool(_shares(own))
        if not pruned:
            own["prune_by"] = self.dimensions["prune_by"][0]
        return {**self.space.point(chosen, pruned=pruned), **own}

    def candidate(self, point: Point, origin: str) -> Candidate:
        """The steps of a point."""
        plain: list[dict[str, Any]] = [{"step": "simplify"}]
        words = []
        if shares := _shares(point):
            plain += _pruning(point, shares)
            kept = " and ".join(f"{share} {name}" for name, share in shares.items())
            words = [f"keep {kept} ({point['importance']}, x{point['round_to'] or 'block'})"]
            words += [] if point["distill"] is None else [f"distilled {point['distill']} epochs"]
        steps = (*self.space.first, *read_steps(plain), *self.space.quantizing(point))
        return Candidate(", ".join([*words, spaces.describe(point)]), steps, point, origin)


def derive(given: Space, traits: spaces.Traits, sized: bool) -> Targets:
    """The space for a model; `sized`: whether a limit bounds its size. Raises RecipeError as that of `tune` does."""
    space = spaces.derive(given, traits)
    if traits.goal == "size" or not (traits.convolutions or traits.transformer):
        counted: tuple[Value, ...] = ("params",)
    else:
        counted = ("latency", "macs") if traits.calibrated else ("macs", "latency")
    besides = space.prunes and sized and traits.goal == "time"
    own: dict[str, tuple[Value, ...]] = {
        "keep": tuple(ladder()) if space.keep is None else (1, *space.keep),
        "prune_by": given.prune_by or counted,
        "keep_params": tuple(ladder(0.05)) if besides else (1,),
    }
    return Targets(space, {**own, **space.dimensions})


def ladder(least: float = 0.005) -> Iterator[Value]:
    """1, 0.95, 0.9, … as shares of two digits: close where accuracy begins to fall, and few steps to the end."""
    level, before = 1.0, 0.0
    while level >= least:
        rounded = float(f"{level:.2g}")
        if rounded != before:
            yield 1 if rounded == 1 else rounded
        before, level = rounded, level * 0.95


def _shares(point: Mapping[str, Value]) -> dict[str, str]:
    """What pruning leaves, by metric; empty without pruning."""
    given = {str(point["prune_by"]): float(point["keep"] or 1)}
    given.setdefault("params", float(point["keep_params"] or 1))
    return {metric: units.write_percent(share) for metric, share in given.items() if share < 1}


def _pruning(point: Point, shares: dict[str, str]) -> Iterator[dict[str, Any]]:
    """By time, or where no multiple is given, in widths that the machine is fast at."""
    prune = {"step": "prune.channels", "target": shares, "importance": point["importance"]}
    fast = "latency" in shares or point["round_to"] is None
    prune["timed_as"] = spaces.KERNELS.get(str(point["precision"]), "float") if fast else "float"
    if "latency" not in shares:
        prune["round_to"] = point["round_to"]
    if min(float(point[name] or 1) for name in LADDERS) < DEEP:
        prune["min_width"] = "1 %"
    yield prune
    if point["distill"] is not None:
        yield {"step": "distill", "budget": {"epochs": point["distill"]}}
