"""Where nothing holds all limits: how near to each of them one comes that holds the others."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_cli.recipe.schema import Gate
from lepton_cli.report.model import Nearest
from lepton_cli.report.trial import Trial
from lepton_cli.tune.readings import Reading, binding, clause, named

#: A trial with its readings.
Read = tuple[Trial, tuple[Reading, ...]]


def nearby(limits: Sequence[Gate], trials: Sequence[Read]) -> tuple[Nearest, ...]:
    """One for each limit that any of the trials was measured against.

    Those that hold the others come first, all of them measured before some of them; where none does, the one that is
    beyond them by least in sum. Among these the one nearest to the limit counts, of equal ones the first by name.
    """
    wanted = dict(binding(limits))
    found = []
    for index in wanted:
        rivals = [_Rival(index, trial, readings) for trial, readings in trials if _of(readings, index)]
        if rivals:
            best = min(rivals, key=lambda rival: rival.order(len(wanted)))
            found.append(Nearest(limit=index, key=best.trial.key, text=best.text(wanted)))
    return tuple(found)


def _of(readings: Sequence[Reading], index: int) -> list[Reading]:
    return [reading for reading in readings if reading.index == index]


class _Rival:
    """A trial as it stands to one limit, and to the others."""

    def __init__(self, index: int, trial: Trial, readings: Sequence[Reading]) -> None:
        self.index, self.trial = index, trial
        own = _of(readings, index)
        self.worst = min(own, key=lambda reading: reading.room)
        self.scope = self.worst.fact.scope if len(own) > 1 else self.worst.gate.scope
        others = [reading for reading in readings if reading.index != index]
        self.beyond = sum(reading.excess(partial=trial.reached == "proxy") for reading in others)
        self.known = {reading.index for reading in others}

    def order(self, limits: int) -> tuple[float, int, float, str]:
        """Smallest first."""
        return self.beyond, limits - len(self.known), -self.worst.room, self.trial.name

    def text(self, wanted: dict[int, Gate]) -> str:
        """One sentence."""
        metric = named(self.worst.gate.metric, self.scope)
        part = f" on {self.worst.fact.n:,} samples" if self.trial.reached == "proxy" and self.worst.fact.n else ""
        value = f"{self.worst.found}{part}, by `{self.trial.name}`"
        if self.beyond:
            return f"no candidate holds the other limits; {metric} of the one that misses them least is {value}"
        held = ", ".join(clause(gate) for index, gate in wanted.items() if index in self.known)
        missing = [gate for index, gate in wanted.items() if index != self.index and index not in self.known]
        unknown = ", ".join(named(gate.metric, gate.scope) for gate in missing)
        return (
            f"with {held} the best {metric} found is {value}" if held else f"the best {metric} found is {value}"
        ) + (f"; {unknown} {'was' if len(missing) == 1 else 'were'} not measured" if missing else "")
