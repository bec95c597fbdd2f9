"""What mends a candidate that missed by little, or may better the best: the same widths, made in another way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from lepton_cli.prune.prospects import Prospect
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.report.trial import Trial
from lepton_cli.tune.candidate import read_steps
from lepton_cli.tune.known import Proposal
from lepton_cli.tune.limits import Judge
from lepton_cli.tune.space import SearchSpace

#: A limit is missed by little within this share of it, and within so many times its error.
NEAR, ERRORS = 0.3, 1.5
#: Trials that are worked on at a time.
PARENTS = 3
#: Ways of making widths that miss a limit all the same, after which no more are tried, one choice away from the first.
VARIED, MENDED = 3, "near miss"
#: Choices that leave widths as they are.
_IN_PLACE = ("calibration", "guard", "distill", "fuse", "block_size")
#: Of these, what changes size and time, and what drafts know to the byte.
_FORMS, _KNOWN = ("guard", "fuse", "prefer", "block_size"), ("block_size",)


@dataclasses.dataclass(frozen=True)
class Parent:
    """A trial that is the best, or missed limits by little (`missed`: one on quality)."""

    trial: Trial
    proposal: Proposal
    best: bool
    missed: bool
    #: Trials of the same widths, made in other ways.
    varied: int = 0


def parents(judge: Judge, trials: Sequence[Trial]) -> list[Parent]:
    """The best, and the nearest of those that missed by little."""
    best = judge.best(trials)
    found = [] if best is None else [(0.0, best, False)]
    for trial in trials:
        breaches = judge.breaches(trial)
        if not breaches or math.isinf(breaches[0].excess) or trial.reached == "failed":
            continue
        short = [margin for margin in judge.margins(trial) if margin.room < 0]
        if all(-margin.room <= max(NEAR, ERRORS * margin.error) for margin in short):
            found.append((sum(-margin.room for margin in short), trial, any(breach.quality for breach in breaches)))
    ordered = sorted(found, key=lambda one: (one[0], one[1].name))
    return [
        Parent(trial, proposal, trial is best, missed, sum(_widths(one) == _widths(trial) for one in trials) - 1)
        for _, trial, missed in ordered
        if (proposal := remembered(trial)) is not None
    ][:PARENTS]


def _widths(trial: Trial) -> tuple[object, ...]:
    """What a trial's step of pruning leaves, and of which precision it is."""
    pruned = next((step for step in trial.steps if step["step"] == "prune.channels"), {})
    return trial.point.get("precision"), pruned.get("widths"), pruned.get("drop_branches")


def remembered(trial: Trial) -> Proposal | None:
    """The proposal that a trial of the search was; `None` for others, as the recipe's own steps."""
    if "loss" not in trial.point:
        return None
    choices = {name: value for name, value in trial.point.items() if name not in _NUMBERS}
    pruned = next((step for step in read_steps(trial.steps) if isinstance(step, PruneChannels)), None)
    if pruned is None or pruned.widths is None:
        return Proposal(choices)
    dropped = pruned.drop_branches if isinstance(pruned.drop_branches, tuple) else ()
    numbers = {name: float(str(trial.point[name])) for name in ("loss", "parameters", "macs")}
    return Proposal(choices, Prospect(widths=pruned.widths, dropped=dropped, **numbers))


def variants(space: SearchSpace, found: Sequence[Parent], stage: int, quality: bool) -> Iterator[Proposal]:
    """The same widths with one choice changed: of what missed by little at once; of the best when the search widens,
    and then only what can better it. `quality`: whether that is the goal."""
    for parent in found:
        mended = parent.missed and (parent.varied >= VARIED or parent.trial.origin == MENDED)
        if mended:
            continue
        proposal = parent.proposal
        what = "the best" if parent.best else "a near miss"
        widened = _IN_PLACE if parent.missed or quality else _FORMS
        for name in widened if stage or parent.missed else _KNOWN:
            for value in space.dimensions[name]:
                if value == proposal.point[name] or (name == "guard" and value is not None and not parent.missed):
                    continue
                point = space.point({**proposal.point, name: value}, pruned=proposal.prospect is not None)
                if point != proposal.point:
                    origin = "around the best" if parent.best else MENDED
                    yield Proposal(point, proposal.prospect, origin, f"{what} with another `{name}`")


_NUMBERS = ("loss", "time", "bytes", "parameters", "macs")
