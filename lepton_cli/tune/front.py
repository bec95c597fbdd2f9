"""The trade-off: which trials no other beats in both cost and quality."""

from __future__ import annotations

from collections.abc import Sequence

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
