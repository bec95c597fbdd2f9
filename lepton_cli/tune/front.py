"""The trade-off: which trials no other beats in both cost and quality, and what mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lepton_cli.report.trial import Value

#: (cost, loss): both are better when lower.
Tradeoff = tuple[float, float]


def pareto(points: Sequence[Tradeoff]) -> list[int]:
    """Positions of the points that no other beats in both, by rising cost; of equal ones the first."""
    order = sorted(range(len(points)), key=lambda i: (points[i], i))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def importance(trials: Sequence[tuple[Mapping[str, Value], float]]) -> dict[str, float]:
    """Share of the variance of a result that the value of each dimension explains alone, largest first.

    Groups of one trial explain themselves, so each group's mean is judged with one degree of freedom taken off
    (adjusted R squared of a one-way analysis of variance); dimensions with one value only are left out.
    """
    results = [result for _, result in trials]
    count = len(results)
    if count < 4:
        return {}
    mean = sum(results) / count
    total = sum((result - mean) ** 2 for result in results)
    found: dict[str, float] = {}
    for name in trials[0][0]:
        groups: dict[Value, list[float]] = {}
        for point, result in trials:
            groups.setdefault(point.get(name), []).append(result)
        if len(groups) < 2 or len(groups) >= count or total <= 0:
            continue
        rest = sum(sum((r - sum(g) / len(g)) ** 2 for r in g) for g in groups.values())
        found[name] = max(0.0, 1 - rest / total * (count - 1) / (count - len(groups)))
    return dict(sorted(found.items(), key=lambda item: -item[1]))
