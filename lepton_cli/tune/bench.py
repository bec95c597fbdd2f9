"""The bench: candidates go in, trials come out, each measured once by one process, until the budget is spent."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

from lepton_cli.report.trial import Trial
from lepton_cli.tune.candidate import Candidate, Point
from lepton_cli.tune.deadline import OutOfTime, deadline
from lepton_cli.tune.journal import Store
from lepton_cli.tune.limits import Judge

#: Seconds between looks at what another process is measuring.
_POLL = 0.2


#: Times that training makes a trial longer, before one is known.
_TRAINING = 10.0
#: A trial may end this much after the search should have, as a share of its time; then it is given up.
OVERTIME = 0.05


class Spent(Exception):
    """The budget is spent. Never leaves the search."""


@dataclasses.dataclass
class Bench:
    """`measure` makes a trial of a candidate; `seconds` and `most` are the budget, earlier runs included."""

    store: Store
    judge: Judge
    search: str
    measure: Callable[[Candidate], Trial]
    seconds: float
    most: int | None
    cpu: str
    #: Seconds of a trial before one of its kind is known.
    usual: float = 1.0
    #: Told of every trial when it is new, and before one is begun.
    finished: Callable[[Trial], None] = lambda trial: None
    beginning: Callable[[Candidate], None] = lambda candidate: None

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._before = max((trial.elapsed for trial in self.store.trials()), default=0.0)
        #: Seconds spent in `measure`: the rest is the overhead of the search.
        self.measuring = 0.0
        #: Trials that were not begun: with more time they are, so the store does not have them.
        self._left_out: dict[str, Trial] = {}

    @property
    def elapsed(self) -> float:
        """Seconds of search, runs before an interruption included."""
        return self._before + time.monotonic() - self._started

    @property
    def own_seconds(self) -> float:
        """Seconds of search in this run alone."""
        return time.monotonic() - self._started

    @property
    def end(self) -> float:
        """The moment of `time.monotonic()` at which a trial is given up."""
        return self._started - self._before + self.seconds * (1 + OVERTIME)

    def trials(self) -> list[Trial]:
        """All trials that still count, the newest of each candidate."""
        return list(self._known().values())

    def _known(self) -> dict[str, Trial]:
        return self._left_out | {trial.key: trial for trial in self.store.trials()}

    def run(self, candidates: Sequence[Candidate]) -> list[Trial]:
        """Trials of the candidates, in their order. Raises Spent when the budget ends first.

        What another process is working on is left to it: its result is waited for after everything else is done.
        """
        by_key = {candidate.key(self.search): candidate for candidate in candidates}
        results: dict[str, Trial] = {}
        while len(results) < len(by_key):
            known = self._known()
            results |= {key: known[key] for key in by_key if key in known and self._usable(known[key])}
            waiting = False
            for key, candidate in by_key.items():
                if key in results:
                    continue
                with self.store.claim(key) as mine:
                    if not mine:
                        waiting = True
                        continue
                    newest = {trial.key: trial for trial in self.store.trials()}
                    if key in newest and self._usable(newest[key]):
                        results[key] = newest[key]  # another process finished it between look and claim
                        continue
                    self._check_budget(1 + sum(trial.elapsed > 0 and trial.key != key for trial in newest.values()))
                    results[key] = self._new(key, candidate)
            if waiting:
                self._check_budget(0)
                time.sleep(_POLL)
        return [results[candidate.key(self.search)] for candidate in candidates]

    def _new(self, key: str, candidate: Candidate) -> Trial:
        self.beginning(candidate)
        before = time.monotonic()
        try:
            with deadline(self.end - time.monotonic()):
                trial = self.measure(candidate)
        except OutOfTime:
            raise Spent from None
        finally:
            self.measuring += time.monotonic() - before
        trial = trial.model_copy(update={"key": key, "elapsed": self.elapsed, "cpu": self.cpu})
        if trial.begun:
            self.store.add(trial)
        else:
            self._left_out[key] = trial
        self.finished(trial)
        return trial

    def _check_budget(self, count: int) -> None:
        if self.elapsed >= self.seconds or (self.most is not None and count > self.most):
            raise Spent

    def taken(self, candidate: Candidate) -> bool:
        """Whether another process is measuring it."""
        with self.store.claim(candidate.key(self.search)) as mine:
            return not mine

    def expected(self, point: Point) -> float:
        """Seconds that such a trial takes, as far as others tell."""
        known = [trial for trial in self.store.trials() if trial.point and trial.reached != "failed"]
        alike = [trial.seconds for trial in known if _kind(trial.point) == _kind(point)]
        return statistics.median(alike) if alike else self.usual * (_TRAINING if _kind(point)[-1] else 1.0)

    def fits(self, candidate: Candidate) -> bool:
        """Whether it can be finished, as far as trials like it tell: what cannot is not begun.

        One that trains is: how long it takes is foreseen when its training begins.
        """
        if any(step.training for step in candidate.steps):
            return True
        return self.elapsed + self.expected(candidate.point) <= self.seconds * (1 + OVERTIME)

    def _usable(self, trial: Trial) -> bool:
        """Whether an earlier trial says all that the present limits ask.

        One that ended early counts while it still breaks a limit; times count on the processor they were taken on.
        """
        if trial.reached == "failed":
            return True
        if trial.reason:
            return bool(self.judge.breaches(trial))
        if self.judge.needs("memory") and trial.memory is None:
            return False
        return not self.judge.needs("latency") or (trial.latency is not None and trial.cpu == self.cpu)


def _kind(point: Point) -> tuple[object, ...]:
    """What decides how long a trial takes: the precision, whether channels are pruned, and how long is trained."""
    pruned = bool(point.get("loss"))
    return point.get("precision"), point.get("guard"), pruned, point.get("distill") if pruned else None
