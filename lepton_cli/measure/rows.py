"""Who pays for compression: classes side by side, with chance and their number taken into account.

A class of few samples changes much by chance, and of many classes some do. Every class has an exact test and an
interval of its own; what is said of the worst one holds for all of them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_cli.measure import statistics
from lepton_cli.measure.results import ENOUGH, Accuracy, ClassChange, LossSpread
from lepton_cli.timing.intervals import Estimate, Z

#: Classes that a warning names.
_NAMED = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """Samples of one class by who is right: both models, the first alone, the second alone, neither.

    Two classes with equal counts are two.
    """

    label: str
    both: int
    lost: int
    won: int
    neither: int

    @property
    def n(self) -> int:
        """All of them."""
        return self.both + self.lost + self.won + self.neither

    @property
    def judged(self) -> bool:
        """Whether they are enough to tell anything."""
        return self.n >= ENOUGH

    def difference(self, z: float = Z) -> Estimate:
        """The change with its interval."""
        return statistics.paired_difference(self.both, self.lost, self.won, self.neither, z)


def count(
    before: NDArray[np.bool_], after: NDArray[np.bool_], classes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The classes that occur, (k,), and their samples by who is right: both, the first, the second, neither, (k, 4).

    `before`, `after`: whether either model is right, and `classes`: the true class, each of shape (samples,).
    """
    known, which = np.unique(classes, return_inverse=True)
    kind = np.where(before, np.where(after, 0, 1), np.where(after, 2, 3))
    return known, np.bincount(which * 4 + kind, minlength=4 * len(known)).reshape(-1, 4)


def judged(
    counted: Mapping[tuple[str, str], Sequence[Counts]],
) -> tuple[tuple[ClassChange, ...], tuple[LossSpread, ...]]:
    """Every class of every output, and how each output's loss is spread; so for groups, by output and column.

    All classes that a report shows are judged together: chance has as many tries.
    """
    p = {one: statistics.mcnemar(one.lost, one.won) for part in counted.values() for one in part if one.judged}
    adjusted = dict(zip(p, statistics.holm(list(p.values())), strict=True))
    parts = {key: [_change(*key, one, p.get(one), adjusted.get(one)) for one in part] for key, part in counted.items()}
    spread = tuple(_spread(*key, list(zip(counted[key], part, strict=True))) for key, part in parts.items())
    return tuple(one for part in parts.values() for one in part), spread


def _change(output: str, column: str, one: Counts, p: float | None, adjusted: float | None) -> ClassChange:
    found = one.difference() if one.judged else None
    return ClassChange(
        label=one.label,
        n=one.n,
        original=(one.both + one.lost) / one.n,
        compressed=(one.both + one.won) / one.n,
        output=output,
        column=column,
        lost=one.lost,
        won=one.won,
        low=found.low if found else None,
        high=found.high if found else None,
        p=p,
        p_adjusted=adjusted,
    )


def _spread(output: str, column: str, part: Sequence[tuple[Counts, ClassChange]]) -> LossSpread:
    """Of one output, by class or by the groups of a column.

    Every judged class has an interval that holds with all others; the largest loss lies between the largest of their
    lower ends and the largest of their upper ends.
    """
    large = [(one, change) for one, change in part if one.judged]
    found = LossSpread(
        output=output,
        column=column,
        change=sum(one.won - one.lost for one, _ in part) / sum(one.n for one, _ in part),
        classes=len(part),
        judged=len(large),
        largest=max(one.n for one, _ in part),
    )
    if not large:
        return found
    z = statistics.simultaneous(len(large))
    ends = [one.difference(z) for one, _ in large]
    counts, worst = min(large, key=lambda pair: (pair[1].change, pair[1].compressed))
    after = statistics.wilson(counts.both + counts.won, counts.n, z)
    evenness = _evenness([one for one, _ in large], z)
    return found.model_copy(
        update={
            "worst": worst,
            "low": min(end.low for end in ends),
            "high": min(end.high for end in ends),
            "compressed_low": after.low,
            "compressed_high": after.high,
            "evenness": evenness.value,
            "evenness_low": evenness.low,
            "evenness_high": evenness.high,
        }
    )


def _evenness(large: Sequence[Counts], z: float) -> Estimate:
    """The largest share lost over the share that all lost; 1 where nothing is.

    Given how many are lost in all, those of a class are a proportion of them.
    """
    lost, total = sum(one.lost for one in large), sum(one.n for one in large)
    if not lost:
        return Estimate(1.0, 1.0, 1.0)
    ends = [(total / one.n, statistics.wilson(one.lost, lost, z)) for one in large]
    return Estimate(
        max(total / one.n * one.lost / lost for one in large),
        max(1.0, *(scale * end.low for scale, end in ends)),
        max(scale * end.high for scale, end in ends),
    )


def warnings(accuracy: Accuracy) -> list[str]:
    """Of each output the classes that pay for it, in words."""
    said = []
    for one in accuracy.spread:
        paying = [row for row in accuracy.payers if one.pays(row)]
        if not paying:
            continue
        named = ", ".join(
            f"{row.title} {100 * row.change:+.1f} pp ({row.lost} answers lost, {row.won} won, n = {row.n:,})"
            for row in paying[:_NAMED]
        )
        more = f" and {len(paying) - _NAMED} more" if len(paying) > _NAMED else ""
        where = f" of `{one.output}`" if len({spread.output for spread in accuracy.spread}) > 1 else ""
        kind = "groups" if one.column else "classes"
        said.append(
            f"some {kind}{where} pay more than the whole ({100 * one.change:+.2f} pp): {named}{more}; "
            f"this is no chance (McNemar's test, Holm's correction for all that were judged)"
        )
    return said
