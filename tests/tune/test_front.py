"""Fronts and their area."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tune_table import hypervolume
from lepton_cli.tune import front

POINTS = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=30)


@given(POINTS)
def test_nothing_beats_a_point_of_the_front(points: list[tuple[float, float]]) -> None:
    chosen = [points[i] for i in front.pareto(points)]
    for point in points:
        assert any(c[0] <= point[0] and c[1] <= point[1] for c in chosen)
    for one in chosen:
        assert not any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in points)


@given(POINTS, st.tuples(st.floats(0, 10), st.floats(0, 10)))
def test_the_area_never_shrinks_with_a_point_more(points: list[tuple[float, float]], more: tuple[float, float]) -> None:
    before = hypervolume(points, (10, 10))
    assert 0 <= before <= hypervolume([*points, more], (10, 10)) + 1e-9 <= 100 + 1e-6


def test_area_of_known_points() -> None:
    assert hypervolume([(1, 2), (2, 1), (3, 3), (5, 0)], (4, 4)) == pytest.approx(3 * 2 + 2 * 1)
