"""What to try next: the candidate with the best chance to hold the limits and to be better.

Widths are chosen by the pruner's tables under what limits allow, so a candidate costs little to propose. What it will
measure is foretold from these tables and the trials so far (`outlook.py`); the most promising is drafted, which counts
and times it, and tried when it still is the most promising. Where the outlook expects nothing more, the search widens:
first around what is best or missed a limit by little, then to other rankings of it, whose tables take long, then to
everything the space holds; then it ends, and says why.

Every choice follows from the trials: a search that is run again reads them from the journal and goes on where it ended.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from lepton_cli.report.trial import Trial, Value
from lepton_cli.tune import moves
from lepton_cli.tune.bench import Bench, Spent
from lepton_cli.tune.candidate import Candidate, Point
from lepton_cli.tune.deadline import OutOfTime, deadline
from lepton_cli.tune.forecasts import Forecasts, Prediction
from lepton_cli.tune.known import Bounds, Figures, Knowledge, Proposal
from lepton_cli.tune.space import FORM, SearchSpace
from lepton_cli.tune.yardsticks import Yardstick

#: Choices that widths follow from, besides what they cost.
FAMILY = ("precision", "importance", "round_to", "branches", "distill")
#: Precisions that are pruned at first, of those whose unpruned goal is at most so many times the best one's.
BRANCHES, CLOSE = 2, 1.6
#: Shares of the unpruned cost that widths are chosen for at first; between the best and its neighbours they are halved
#: until they are so close.
LEVELS = (0.96, 0.9, 0.72, 0.5, 0.3, 0.15, 0.07, 0.03, 0.01)
APART = 1.03
#: Where the goal is a quality: shares of the limit on cost.
WITHIN = (1.0, 0.97, 0.93, 0.88)
#: Drafts made at most before a trial.
DRAFTS = 8
#: Expected gain, as a share of the best, and chance of holding the limits, below which nothing is expected.
GAIN, CHANCE = 0.003, 0.03
#: Trainings of a length that did not fit into the time, after which none of that length is tried.
REFUSED = 2
#: How far the search is widened.
PROMISING, AROUND, RANKINGS, ALL, STAGES = range(5)


@dataclasses.dataclass(frozen=True)
class Rated:
    """A proposal, what is expected of it, and how much that is worth."""

    proposal: Proposal
    prediction: Prediction
    score: float


class Search:
    """One search over one space."""

    def __init__(
        self,
        space: SearchSpace,
        bench: Bench,
        known: Knowledge,
        sticks: tuple[Sequence[Yardstick], Yardstick],
        start: Sequence[Candidate] = (),
    ) -> None:
        """`sticks`: what the limits bound, and the goal. `start`: tried before all others: the recipe's own steps."""
        self.space, self.bench, self.judge, self.known, self.start = space, bench, bench.judge, known, start
        self.forecasts = Forecasts(bench.judge, *sticks)
        self.bounds, self.goal = sticks
        self.stage = PROMISING
        #: Why the search ended, in words.
        self.ended = ""
        #: What other processes are measuring, by key, and the stage at which it was left to them.
        self._elsewhere: dict[str, Candidate] = {}
        self._hidden = STAGES
        #: The chance of the most promising candidate that is left to hold the limits.
        self._left = 0.0
        #: Whether widths are looked at: their tables take long, so that something that needs none is tried before.
        self._prunes = False
        self._levels: dict[tuple[object, ...], list[float]] = {}

    def run(self) -> None:
        """Until the budget ends, or nothing more is expected."""
        try:
            self.bench.run(self.start)
            while (candidate := self._chosen()) is not None or self._elsewhere:
                if candidate is not None and self.bench.taken(candidate):
                    self._hidden = min(self._hidden, self.stage)
                    self._elsewhere[candidate.key(self.bench.search)] = candidate
                    continue
                # Where nothing else is left, what others measure is waited for: it may change what is promising.
                self.bench.run([candidate] if candidate is not None else list(self._elsewhere.values())[:1])
                self._elsewhere.clear()
                self.stage, self._hidden = min(self.stage, self._hidden), STAGES
        except (Spent, OutOfTime):
            self.ended = f"the budget is spent{self._chance()}"

    def _trials(self) -> list[Trial]:
        """Without the original, which holds what it is compared with."""
        return [trial for trial in self.bench.trials() if trial.steps]

    def _chosen(self) -> Candidate | None:
        """What is next; tables that take longer than is left are given up."""
        with deadline(self.bench.end - time.monotonic()):
            return self._next()

    def floors(self) -> dict[str, float]:
        """The least that any candidate can have of what limits count (`bytes`, `parameters`, `macs`), as shares of the
        original's, where that is more than they allow."""
        tightest = {one.counted: one for one in sorted(self.bounds, key=lambda one: -one.bound) if one.counted}
        least = {name: self._least(one) for name, one in tightest.items()}
        return {name: share for name, share in least.items() if share > tightest[name].bound}

    def _least(self, one: Yardstick) -> float:
        """Of unpruned forms as soon as one holds the limit; else with pruning, whose tables take long."""
        whole, least = list[Proposal](), math.inf
        kinds = itertools.product(*(self.space.dimensions[name] for name in ("precision", "block_size")))
        for precision, block in dict.fromkeys(kinds):
            proposal = Proposal(self.space.point({"precision": precision, "block_size": block}))
            if self.known.draft(proposal):
                continue
            whole.append(proposal)
            least = min(least, float(getattr(self.known.figures(proposal), one.counted)))
            if least <= one.bound:
                return least
        pruned = [
            self.space.point({**proposal.point, "round_to": multiple}, pruned=True)
            for proposal in whole
            for multiple in self.space.dimensions["round_to"]
            if self.space.prunes
        ]
        floors = (self.known.floor(point, one.counted) for point in pruned)
        return min((floor for floor in floors if floor is not None), default=least if whole else 0.0)

    def _next(self) -> Candidate | None:
        """The most promising candidate, drafted; `None` when nothing is expected any more."""
        if any(trial.steps for trial in self._trials()):
            self._prunes = self.space.prunes
        while self.stage < STAGES:
            made = 0
            while made < DRAFTS:
                ranked = self._ranked()
                if not ranked or not self._promising(ranked[0]):
                    break
                first = ranked[0]
                if first.prediction.figures.drafted:
                    return self._candidate(first)
                made += not self.known.draft(first.proposal)  # one that cannot be made is in no pool any more
            else:
                return self._candidate(ranked[0])
            self.stage += self._prunes == self.space.prunes
            self._prunes = self.space.prunes
        if not self._trials() and (ranked := self._ranked()):  # what a limit costs is worth one trial
            return self._candidate(max(ranked, key=lambda one: one.prediction.chance))
        self.ended = self._reason()
        return None

    def _reason(self) -> str:
        if self._best() is not None:
            return f"no candidate that is left is expected to be better by {100 * GAIN:g} %"
        return f"nothing that is left is expected to hold all limits{self._chance()}"

    def _chance(self) -> str:
        """Of what is left, where nothing holds the limits yet."""
        if self._best() is not None or not self.forecasts.bounds:
            return ""
        return f"; the most promising that is left has a chance of {100 * self._left:.0f} %"

    def _promising(self, one: Rated) -> bool:
        if one.prediction.chance < CHANCE:
            return False
        return one.score > 0 if self._best() is None else one.prediction.chance * one.prediction.gain >= GAIN

    def _best(self) -> float | None:
        """The goal of the best trial, in the unit of its yardstick."""
        best = self.judge.best(self._trials())
        return None if best is None else self.forecasts.settled(best, self.goal)

    def _ranked(self) -> list[Rated]:
        """Everything that could be tried, the most promising first; levels are halved around the best."""
        trials = self._trials()
        self.forecasts.learn(trials)
        parents = moves.parents(self.judge, trials)
        for parent in parents:
            for point in self._pruned_like(parent, parents):
                self._halved(dataclasses.replace(parent.proposal, point=point))
        while True:
            ranked = self._scored(self._pool(trials), trials)
            if not ranked or ranked[0].proposal.prospect is None or not self._halved(ranked[0].proposal):
                self._left = max((one.prediction.chance for one in ranked), default=0.0)
                return ranked

    def _scored(self, pool: Sequence[Proposal], trials: Sequence[Trial]) -> list[Rated]:
        tried = {trial.key for trial in trials} | self._elsewhere.keys()
        # What the time did not allow twice is not asked for again.
        refused = Counter(trial.point.get("distill") for trial in trials if not trial.begun)
        left = []
        for proposal in pool:
            if refused[proposal.point["distill"]] >= REFUSED and proposal.point["distill"] is not None:
                continue
            candidate = self.space.candidate(proposal.point, proposal.prospect)
            if candidate.key(self.bench.search) not in tried and self.bench.fits(candidate):
                left.append(proposal)
        best = self._best()
        found = []
        for proposal, prediction in zip(left, self.forecasts.predict(self._figured(left), best), strict=True):
            # Until something holds, that it will is worth more than what it gains.
            certain = prediction.chance ** (1 if best is not None else 2)
            certain = 0.0 if prediction.chance < CHANCE else certain  # no lottery
            found.append(Rated(proposal, prediction, certain * prediction.gain / self._effort(proposal.point)))
        return sorted(found, key=lambda one: -one.score)

    def _effort(self, point: Point) -> float:
        """What a trial costs beside others: training alone makes so much of a difference that the choice may depend on
        how busy the machine is."""
        if not point["distill"]:
            return 1.0
        return math.sqrt(max(self.bench.expected(point) / self.bench.usual, 1.0))

    def _figured(self, pool: Sequence[Proposal]) -> list[tuple[Proposal, Figures]]:
        return [(proposal, self.known.figures(proposal)) for proposal in pool]

    def _pool(self, trials: Sequence[Trial]) -> list[Proposal]:
        """Proposals of this stage, each once."""
        found: dict[tuple[object, ...], Proposal] = {}
        parents = moves.parents(self.judge, trials)
        for proposal in (
            *self._unpruned(),
            *self._pruned(parents),
            *moves.variants(self.space, parents, self.stage, self.goal.about.quality),
        ):
            key = (*sorted(proposal.point.items(), key=repr), proposal.prospect and proposal.prospect.key)
            if not self.known.draft_failed(proposal) and self._differs(proposal.point["fuse"]):
                found.setdefault(key, proposal)
        return list(found.values())

    def _differs(self, fuse: Value) -> bool:
        """Whether fusing makes another model: where there is nothing to fuse it is the same by another name."""
        first = self.space.dimensions["fuse"][0]
        if fuse == first:
            return True
        both = [Proposal(self.space.point({"fuse": one})) for one in (first, fuse)]
        if any(self.known.draft(one) for one in both):
            return True
        return self.known.figures(both[0]).bytes != self.known.figures(both[1]).bytes

    def _unpruned(self) -> Iterator[Proposal]:
        """Every precision, of the first form, later of all."""
        forms = self.space.dimensions["fuse"][: None if self.stage else 1]
        for precision, fuse in itertools.product(self.space.dimensions["precision"], forms):
            if precision != "float" or fuse:
                yield Proposal(self.space.point({"precision": precision, "fuse": fuse}))

    def _pruned(self, parents: Sequence[moves.Parent]) -> Iterator[Proposal]:
        """Along what pruning steers by: for every family widths of several costs, which hold what can be counted."""
        if not self._prunes:
            return
        for point, steer in itertools.product(self._families(parents), self._steers):
            for level in self._levels_of(point, steer):
                prospect = self.known.widths(point, self._budget(point, steer, level))
                if prospect is not None:
                    yield Proposal(point, prospect)

    def _families(self, parents: Sequence[moves.Parent]) -> list[Point]:
        """Precisions that may be best when pruned, with every training; later in all kinds of widths, then with other
        rankings: of those that came near, then of all. And all other choices as the best has them."""
        dimensions = self.space.dimensions
        found: list[Point] = []
        for place, precision in enumerate(self._precisions()):
            near = any(parent.proposal.point["precision"] == precision for parent in parents)
            wide = self.stage >= ALL or (self.stage == RANKINGS and near)
            rankings = dimensions["importance"][: None if wide else 1]
            trainings = dimensions["distill"][: None if wide or not place else 1]
            multiples = dimensions["round_to"][: None if self.stage else 1]  # tables of each take seconds
            kinds = itertools.product([precision], rankings, multiples, dimensions["branches"], trainings)
            found += [self.space.point(dict(zip(FAMILY, kind, strict=True)), pruned=True) for kind in kinds]
        own = [self.space.point(parent.proposal.point, pruned=True) for parent in parents if parent.best]
        return [*found, *(point for point in own if point not in found)]

    def _precisions(self) -> list[Value]:
        """Precisions to prune, the best unpruned goal first: a few at first, later all."""
        costs = []
        for precision in self.space.dimensions["precision"]:
            proposal = Proposal(self.space.point({"precision": precision}))
            if not self.known.draft(proposal):
                costs.append((getattr(self.known.figures(proposal), self._steers[0]), precision))
        costs.sort(key=lambda pair: pair[0])
        most = None if self.stage >= ALL else BRANCHES
        return [precision for cost, precision in costs if self.stage >= ALL or cost <= CLOSE * costs[0][0]][:most]

    @property
    def _steers(self) -> tuple[str, ...]:
        """What widths are chosen to save: what the goal counts, or the limit that a quality stands against."""
        found = (saved(one) for one in (self.goal, *self.bounds))
        return self.space.steers or (next(filter(None, found), "macs"),)

    def _levels_of(self, point: Point, steer: str) -> list[float]:
        """Costs that widths are chosen for, as shares of the original's; infinite: what the limits alone ask for."""
        key = (steer, *(point[name] for name in (*FAMILY, *FORM)))
        if key not in self._levels:
            self._levels[key] = sorted(self._first_levels(point, steer), reverse=True)
        return self._levels[key]

    def _first_levels(self, point: Point, steer: str) -> list[float]:
        unpruned = self._whole(point, steer)
        if self.space.keep is not None:
            return [share * unpruned for share in self.space.keep]
        floor = self.known.floor(point, steer)
        if floor is None:
            return []
        limit = min((one.bound for one in self.bounds if saved(one) == steer), default=math.inf)
        if self.goal.about.quality and limit < unpruned:
            return [share * limit for share in WITHIN if share * limit > floor]
        return [math.inf, *(share * unpruned for share in LEVELS if share * unpruned > floor)]

    def _whole(self, point: Point, steer: str) -> float:
        """What the unpruned model of a form costs, as a share of the original's."""
        unpruned = self.space.point({name: point[name] for name in FORM})
        return float(getattr(self.known.figures(Proposal(unpruned)), steer))

    def _budget(self, point: Point, steer: str, level: float) -> Bounds:
        """What limits allow that can be told before a trial, and the level."""
        most = {steer: level}
        for one in self.bounds:
            name = saved(one)
            if one.counted or (name == "time" and steer != "time"):
                bound = one.bound / self.forecasts.off(point["precision"], one)
                most[name] = min(most.get(name, math.inf), bound)
        return Bounds(**most)

    def _pruned_like(self, parent: moves.Parent, parents: Sequence[moves.Parent]) -> list[Point]:
        """Choices under which widths near a parent's are looked for: its own, or all of its precision where it is not
        pruned."""
        point = parent.proposal.point
        if parent.proposal.prospect is not None:
            return [point]
        families = self._families(parents) if self._prunes else []
        return [one for one in families if all(one[name] == point[name] for name in (*FORM, "distill"))]

    def _halved(self, proposal: Proposal) -> bool:
        """Add the levels half-way between what this proposal costs and the next ones, where they are far apart."""
        if not self._prunes or self.space.keep is not None:
            return False
        added = 0
        for steer in self._steers:
            levels = self._levels_of(proposal.point, steer)
            here = getattr(self.known.figures(proposal), steer)
            whole = math.inf if self.goal.about.quality else self._whole(proposal.point, steer)
            above = [level for level in (whole, *levels) if here * APART < level < math.inf]
            below = [level for level in levels if level * APART < here]
            new = {round(math.sqrt(here * level), 4) for level in (*above[-1:], *below[:1])} - {*levels}
            levels[:] = sorted({*levels, *new}, reverse=True)
            added += len(new)
        return added > 0

    def _candidate(self, ranked: Rated) -> Candidate:
        """With what was expected of it, and where it lies, which trials are remembered by."""
        proposal, prediction = ranked.proposal, ranked.prediction
        made = self.space.candidate(proposal.point, proposal.prospect, origin=proposal.origin or self._origin)
        where = self.forecasts.written(proposal, prediction.figures)
        why = proposal.why or self._why(prediction)
        return dataclasses.replace(
            made, point={**proposal.point, **where}, why=why, forecast=self.forecasts.forecast(proposal, prediction)
        )

    @property
    def _origin(self) -> str:
        return ("outlook", "widened", "widened", "everything")[min(self.stage, ALL)]

    def _why(self, prediction: Prediction) -> str:
        if self._best() is None:
            return "the most promising"
        if self.goal.about.quality:
            return "expected to be better"
        return f"expected to gain {100 * prediction.chance * prediction.gain:.1f} %"


def saved(one: Yardstick) -> str:
    """What of a candidate's figures a yardstick falls with; empty for qualities."""
    if one.counted:
        return one.counted
    if one.about.quality:
        return ""
    if one.about.source in ("latency", "energy"):
        return "time"
    return "" if one.metric == "nodes" else "bytes"
