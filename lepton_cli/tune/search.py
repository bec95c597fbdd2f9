"""What to try next. The structured search knows three things a blind one does not:

* accuracy falls with pruning, so the limit is found by bisection, for the most promising precisions only;
* what is good without pruning is mostly good with it, so precisions are ranked on the unpruned model first;
* the best lies at the limit, so the rest of the budget goes into the neighbours of the best and of the front.

Every choice follows from the trials and the seed alone: a search that is run again reads its trials from the journal
and goes on where it ended.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from lepton_cli.recipe.tuning import Objective
from lepton_cli.report.trial import Trial, Value
from lepton_cli.tune import front
from lepton_cli.tune.bench import Bench, Spent
from lepton_cli.tune.candidate import Candidate, Point
from lepton_cli.tune.space import LADDERS, SearchSpace

#: Precisions that are pruned, of those ranked without pruning, and how close to the best they must be.
BRANCHES, CLOSE = 2, 1.6
#: Loss of accuracy beyond the limit, relative to it, that one deeper trial may follow.
NEAR = 0.5
#: Trials around the best for each one around the rest of the front.
WIDEN = 2
#: Share of the mutations that begin with the point of the front that keeps most.
KEEPING = 0.4
#: Trials that improve nothing after which the search is done, and points drawn in vain before the space is.
PATIENCE = 24
_DRAWS = 60

Propose = Callable[[Sequence[Trial]], Point | None]


class Search:
    """One search over one space."""

    def __init__(
        self,
        space: SearchSpace,
        bench: Bench,
        start: Sequence[Candidate],
        seed: int,
        axes: tuple[Objective, Objective] | None = None,
    ) -> None:
        """`start`: candidates tried before all others, such as the recipe's own steps.

        `axes`: the two sides of the front, what is made small and what is kept; without them the best alone counts.
        """
        self.space, self.bench, self.judge = space, bench, bench.judge
        self.start, self.seed, self.axes = start, seed, axes
        #: Why the search ended, in words.
        self.ended = ""

    def structured(self, propose: Propose | None = None) -> None:
        """Grid, bisection, refinement; then `propose` (Optuna) or mutations of the front."""
        self._until_spent(lambda: self._structured(propose))

    def sampled(self, propose: Propose | None = None) -> None:
        """Points from `propose`, or at random, until the budget ends or the space does."""
        source = random.Random(self.seed)
        blind: Propose = lambda trials: self.space.random(source)  # noqa: E731
        self._until_spent(lambda: self._rest([("optuna", propose) if propose else ("random", blind)], None))

    def _until_spent(self, work: Callable[[], None]) -> None:
        try:
            self.bench.run(self.start)
            work()
        except Spent:
            self.ended = "the budget is spent"

    def _structured(self, propose: Propose | None) -> None:
        ranked = self._grid()
        ranked[:BRANCHES] = [self._small_enough(point) for point in ranked[:BRANCHES]]
        self._bisect(self._close([point for point in ranked if self.judge.feasible(self._trial(point, "grid"))]))
        if self._best_point() is None:
            # Nothing holds the limits unpruned: smaller models may (limits on size or time), the mildest first.
            self._bisect([point for point in ranked if not self._too_far(self._trial(point, "grid"))][:BRANCHES])
        self._bisect(self._trained(ranked[0]))
        self._refine()
        self._rest([("optuna", propose), ("mutation", None)] if propose else [("mutation", None)], PATIENCE)

    def _trained(self, otherwise: Point) -> list[Point]:
        """The best without training so far, with the last of the trainings, where there is one: what that heals can be
        pruned deeper. Of a search that is run again, later trials are known already, and do not count."""
        plain, last = (self.space.dimensions["distill"][at] for at in (0, -1))
        if last == plain:
            return []
        known = [trial for trial in self.bench.trials() if trial.point in self.space]
        early = [trial for trial in known if trial.origin in ("grid", "bisection") and trial.point["distill"] == plain]
        best = self.judge.best(early)
        return [{**(otherwise if best is None else best.point), "distill": last}]

    def _trial(self, point: Point, origin: str) -> Trial:
        return self._run([point], origin)[0]

    def _run(self, points: Sequence[Point], origin: str) -> list[Trial]:
        return self.bench.run([self.space.candidate(point, origin) for point in points])

    def _grid(self) -> list[Point]:
        """Every precision without pruning, the best goal first; what could not be measured last."""
        dimensions = self.space.dimensions
        points = [
            self.space.point(fuse=fuse, precision=precision)
            for precision in dimensions["precision"]
            for fuse in dimensions["fuse"]
        ]
        trials = self._run(points, "grid")
        worst = float("inf")
        values = [self.judge.value(trial) if trial.complete else None for trial in trials]
        order = sorted(range(len(points)), key=lambda i: (worst if values[i] is None else values[i], i))
        return [points[index] for index in order]

    def _small_enough(self, point: Point) -> Point:
        """The point with as few parameters as the limits on size ask for: there the bisection begins."""
        levels = self.space.dimensions["keep_params"]
        while point["keep_params"] != levels[-1]:
            trial = self._trial(point, "grid")
            excess = max((breach.excess for breach in self.judge.breaches(trial) if breach.sized), default=0.0)
            if excess == 0 or self._too_far(trial):
                break
            at = levels.index(point["keep_params"]) + 1
            wanted = float(levels[at - 1] or 1) / (1 + excess)
            fewer = next((level for level in levels[at:] if float(level or 1) <= wanted), levels[-1])
            point = self.space.point(**{**point, "keep_params": fewer})
        return point

    def _close(self, ranked: Sequence[Point]) -> Sequence[Point]:
        """The first few, without those that are far behind the best: pruning helps them no more than the best."""
        values = [self.judge.value(self._trial(point, "grid")) for point in ranked[:BRANCHES]]
        limit = CLOSE * values[0] if values and values[0] is not None and values[0] > 0 else float("inf")
        return [point for point, value in zip(ranked, values, strict=False) if value is not None and value <= limit]

    def _too_far(self, trial: Trial) -> bool:
        """Whether less compression is needed, as far as one can tell."""
        return trial.reached == "failed" or any(breach.quality for breach in self.judge.breaches(trial))

    def _near_miss(self, trial: Trial) -> bool:
        """Whether quality is just beyond the limit: accuracy falls with noise, so the next may be better."""
        excess = [breach.excess for breach in self.judge.breaches(trial) if breach.quality]
        return bool(excess) and max(excess) <= NEAR

    def _bisect(self, branches: Sequence[Point]) -> None:
        """The deepest pruning that keeps the quality, from that of each branch, for all at once: processes share it.

        Mild pruning is tried first, then ever more until one is too far: trials on the mild side tell more, and many
        models end there; the first that misses by little does not stop it yet. Between the last that held and the
        first that did not, probes lie at a third.
        """
        levels = self.space.dimensions["keep"]
        if len(levels) < 2:
            return
        brackets = {index: (levels.index(point["keep"]), len(levels)) for index, point in enumerate(branches)}
        missed: set[int] = set()
        while brackets:
            middles = {i: _probe(low, high, len(levels)) for i, (low, high) in brackets.items() if high - low > 1}
            points = [self._pruned(branches[i], levels[middle]) for i, middle in middles.items()]
            trials = self._run(points, "bisection")
            for (i, middle), trial in zip(middles.items(), trials, strict=True):
                low, high = brackets[i]
                near = i not in missed and self._near_miss(trial)
                missed |= {i} if near else set()
                brackets[i] = (low, middle) if self._too_far(trial) and not near else (middle, high)
            brackets = {i: brackets[i] for i in middles}

    def _pruned(self, point: Point, keep: Value) -> Point:
        return self.space.point(**{**point, "keep": keep})

    def _best_point(self) -> Point | None:
        """The best feasible point of the space."""
        best = self.judge.best(trial for trial in self.bench.trials() if trial.point in self.space)
        return None if best is None else best.point

    def _front(self) -> list[Point]:
        """Points that no other within the limits beats in both axes, by rising cost; without axes the best alone."""
        best = self._best_point()
        if self.axes is None:
            return [] if best is None else [best]
        feasible = [trial for trial in self.bench.trials() if trial.point in self.space and self.judge.feasible(trial)]
        pairs = [tuple(self.judge.value(trial, axis) for axis in self.axes) for trial in feasible]
        known = [(index, (a, b)) for index, (a, b) in enumerate(pairs) if a is not None and b is not None]
        return [feasible[known[at][0]].point for at in front.pareto([pair for _, pair in known])]

    def _refine(self) -> None:
        """Climb: all neighbours of the best, again from each better one; every few trials one for the whole front."""
        tried: set[str] = set()
        while (point := self._best_point()) is not None:
            name = repr(sorted(point.items()))
            if name in tried:
                return
            tried.add(name)
            for neighbour in self.space.neighbours(point):
                self._trial(neighbour, "refinement")
                self._widen()
                if self._best_point() != point:
                    break

    def _widen(self) -> None:
        """One trial for the front where enough were spent on the best: the trials themselves tell, so that a search
        that is run again goes on alike."""
        counts = Counter(trial.origin for trial in self.bench.trials())
        if self.axes is not None and counts["refinement"] >= WIDEN * (counts["front"] + 1):
            candidate = next(self._unknown(self._mutation(), "front"), None)
            if candidate is not None:
                self.bench.run([candidate])

    def _mutation(self) -> Propose:
        """Points near the front: one of it, one or two dimensions drawn anew, pruning by a few levels."""
        draws = itertools.count()

        def propose(trials: Sequence[Trial]) -> Point | None:
            source = random.Random(f"{self.seed} {len(trials)} {next(draws)}")
            parents = self._front()
            if not parents:
                return self.space.random(source)
            # The best has the rest of the search: here the end where quality is kept gets more than its part.
            chosen = dict(parents[-1] if source.random() < KEEPING else source.choice(parents))
            for name in source.sample(sorted(self.space.dimensions), source.choice((1, 1, 2))):
                values = self.space.dimensions[name]
                chosen[name] = (
                    self.space.near(name, chosen[name], source.choice((-3, -2, -1, 1, 2, 3)))
                    if name in LADDERS
                    else source.choice(values)
                )
            return self.space.point(**chosen)

        return propose

    def _rest(self, proposals: Sequence[tuple[str, Propose | None]], patience: int | None) -> None:
        """Proposals in turn until the budget ends, the space does, or `patience` of them improved nothing.

        Without a function of its own a proposal is a mutation of the front.
        """
        fruitless = 0
        while patience is None or fruitless < patience:
            first = len(self.bench.trials()) % len(proposals)
            turn = [*proposals[first:], *proposals[:first]]
            found = (next(self._unknown(propose or self._mutation(), origin), None) for origin, propose in turn)
            candidate = next(filter(None, found), None)
            if candidate is None:
                self.ended = "every candidate has been tried"
                return
            before = self._front()
            self.bench.run([candidate])
            fruitless = 0 if self._front() != before else fruitless + 1
        self.ended = f"{patience} trials in a row brought nothing better"

    def _unknown(self, propose: Propose, origin: str) -> Iterator[Candidate]:
        trials = self.bench.trials()
        known = {trial.key for trial in trials}
        for _ in range(_DRAWS):
            point = propose(trials)
            if point is None:
                return
            candidate = self.space.candidate(point, origin)
            if candidate.key(self.bench.search) not in known:
                yield candidate


def _probe(low: int, high: int, count: int) -> int:
    """The next level between one that holds and one that does not; `high` is `count` while none is too far."""
    return min(2 * low + 2, high - 1) if high == count else low + max(1, (high - low) // 3)
