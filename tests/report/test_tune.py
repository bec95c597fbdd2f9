"""A search in the reports: distances to limits in words, the front with its limits and the path, the nearest."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lepton_cli.report import markdown, render, tune_facts
from lepton_cli.report.model import Axes, Axis, Bound, Margin, Narrowed, Nearest, Report, TrialRow, Tune
from lepton_cli.report.trial import Band, Forecast
from tests.report import builders

COST = Axis(metric="latency.median", higher_is_better=False, kind="ratio")
QUALITY = Axis(metric="accuracy.top1", higher_is_better=True, kind="share")
DROP = Bound(metric="accuracy.top1", comparison="max_drop", limit=0.01, axis="quality", at=-0.89)
FAST = Bound(metric="latency.median", comparison="max_ratio", limit=0.5, axis="cost", at=0.5)


def band(value: float) -> Band:
    return Band(value=value, low=value, high=value)


def margin(limit: int, found: float, room: float) -> Margin:
    return Margin(limit=limit, found=band(found), room=room)


def row(number: int, cost: float, accuracy: float, *, feasible: bool = True, **changes: Any) -> TrialRow:
    fields: dict[str, Any] = {"reached": "latency", "reason": "" if feasible else "beyond", "front": False, "file": 100}
    key = f"k{number}"
    return TrialRow(
        key=key, name=f"candidate {number}", feasible=feasible, cost=cost, quality=-accuracy, seconds=1.0,
        **{**fields, **changes},
    )  # fmt: skip


def tuned(*rows: TrialRow, **changes: Any) -> Tune:
    fields: dict[str, Any] = {
        "goal": Narrowed(metric="latency.median"),
        "limits": ("accuracy.top1 max_drop 1 pp", "latency.median max_ratio 50 %"),
        "bounds": (DROP, FAST),
        "best": "k1",
        "met": True,
    }
    axes = Axes(cost=COST, quality=QUALITY)
    return Tune(search="s", seed=0, space={}, axes=axes, trials=rows, **{**fields, **changes})


def report(*rows: TrialRow, **changes: Any) -> Report:
    return builders.report(command="tune", tune=tuned(*rows, **changes))


def page(*rows: TrialRow, **changes: Any) -> str:
    """The section of the search alone."""
    html = render.render(report(*rows, **changes), "html")
    return html[html.index('aria-labelledby="search"') :].partition("</section>")[0]


def dots(html: str) -> dict[int, tuple[float, float]]:
    """Where the point of each trial is drawn: per cent from the left, pixels from the top."""
    found = re.findall(r'#trial-(\d+)"><circle class="[^"]*" cx="([\d.]+)%" cy="([\d.]+)"', html)
    return {int(number): (float(x), float(y)) for number, x, y in found}


def lines(html: str, style: str) -> list[tuple[float, ...]]:
    """x1, y1, x2, y2 of the lines of a style."""
    found = re.findall(f'<line class="{style}" ([^>]*)>', html)
    at = [dict(re.findall(r'(\w\d)="([\d.]+)%?"', attributes)) for attributes in found]
    return [tuple(float(one[key]) for key in ("x1", "y1", "x2", "y2")) for one in at]


@pytest.mark.parametrize(
    ("metric", "comparison", "limit", "found", "room", "expected", "said"),
    [
        ("accuracy.top1", "max_drop", 0.01, 0.0083, 0.17, 0.009, "-0.83 pp of 1 (expected -0.9)"),
        ("accuracy.top1", "max_drop", 0.005, 0.0118, -1.36, None, "-1.18 pp beyond 0.5"),
        ("accuracy.top1", "max_drop", 0.005, -0.002, 1.4, -0.001, "+0.20 pp of 0.5 (expected +0.1)"),
        ("accuracy.mae", "max_increase", 0.2, 0.05, 0.75, 0.04, "+0.0500 of 0.200 (expected +0.0400)"),
        ("accuracy.top1", "min", 0.9, 0.9144, 0.016, 0.91, "91.44 % of at least 90 % (expected 91.00)"),
        ("size.file", "max_ratio", 0.25, 0.247, 0.012, 0.2491, "24.7 % of 25 % (expected 24.9)"),
        ("size.file", "max_ratio", 0.25, 0.295, -0.18, None, "29.5 % beyond 25 %"),
        ("size.file", "max", 250e3, 210e3, 0.16, 205e3, "210 kB of 250 kB (expected 205 kB)"),
        ("throughput", "min_ratio", 2.0, 1.8, -0.1, None, "180 % below 200 %"),
        ("latency.median", "max", 2e-3, 2.01e-3, -0.005, None, "2.01 ms of 2.00 ms"),
        ("latency.median", "max", 2e-3, 2.03e-3, -0.015, None, "2.03 ms beyond 2.00 ms"),
        ("size.file", "max_ratio", 0.5, 0.5, -1e-17, None, "50.0 % of 50 %"),
    ],
)
def test_a_distance_in_words(
    metric: str, comparison: Any, limit: float, found: float, room: float, expected: float | None, said: str
) -> None:
    bound = Bound(metric=metric, comparison=comparison, limit=limit)
    told = tune_facts.distance(bound, margin(0, found, room), None if expected is None else band(expected))
    assert told.text == f"{metric} {said}"
    assert told.held == (" of " in said)


def test_a_distance_names_what_narrows_the_limit() -> None:
    bound = Bound(metric="latency.median", batch=64, comparison="max_ratio", limit=0.5)
    assert tune_facts.distance(bound, margin(0, 0.4, 0.2), None).text == "latency.median batch 64 40.0 % of 50 %"


def test_each_limit_meets_its_own_forecast() -> None:
    forecast = Forecast(chance=0.617, limits=(None, band(0.45)))
    told = tune_facts.distances((DROP, FAST), (margin(1, 0.4, 0.2), margin(0, 0.002, 0.8)), forecast)
    assert [one.text for one in told] == [
        "latency.median 40.0 % of 50 % (expected 45.0)",
        "accuracy.top1 -0.20 pp of 1",
    ]
    assert tune_facts.reason("a near miss", forecast) == "a near miss (chance 62 %)"
    assert tune_facts.reason("", forecast) == "chance 62 %"
    assert tune_facts.reason("", None) == ""


def test_the_path_follows_the_goal() -> None:
    rows = (
        row(1, 0.6, 0.90),
        row(2, 0.3, 0.80, feasible=False),
        row(3, 0.7, 0.93),
        row(4, 0.5, 0.91),
        row(5, 0.4, 0.94),
    )
    assert tune_facts.improved(tuned(*rows)) == [0, 3, 4]
    accurate = tuned(*rows, goal=Narrowed(metric="accuracy.top1"))
    assert tune_facts.improved(accurate) == [0, 2, 4]


def test_limits_go_through_the_points_that_lie_on_them() -> None:
    html = page(row(1, 0.5, 0.9), row(2, 0.7, 0.89), row(3, 0.2, 0.88), row(4, 0.9, 0.91))
    at, (quality, cost) = dots(html), lines(html, "limit")
    assert quality == pytest.approx((0, at[2][1], 100, at[2][1]), abs=0.06)
    assert (cost[0], cost[2]) == pytest.approx((at[1][0], at[1][0]), abs=0.006)
    assert at[4][1] < at[2][1] < at[3][1], "more accurate is further up"
    assert at[3][0] < at[1][0] < at[4][0], "slower is further right"
    assert ">max_drop 1 pp<" in html
    assert ">max_ratio 50 %<" in html


def test_a_limit_beyond_all_points_is_on_the_drawing() -> None:
    html = page(row(1, 0.8, 0.8), row(2, 0.9, 0.82))
    at, (quality, cost) = dots(html), lines(html, "limit")
    assert 30 < quality[1] < min(y for _, y in at.values())
    assert 0 < cost[0] < min(x for x, _ in at.values())


def test_what_is_far_below_the_limit_does_not_press_the_rest_together() -> None:
    html = page(row(1, 0.3, 0.90), row(2, 0.2, 0.885), row(3, 0.1, 0.10), row(4, 0.05, 0.5), bounds=(DROP,))
    at = dots(html)
    assert at[3][1] == at[4][1] == max(y for _, y in at.values())
    # From the best down to four times its distance to the limit below the limit: 90 % to 85 %.
    assert (at[2][1] - at[1][1]) / (at[3][1] - at[1][1]) == pytest.approx((0.90 - 0.885) / (0.90 - 0.85), abs=0.01)
    assert "85.00 % and less" in html


def test_the_path_joins_what_became_the_best_in_order() -> None:
    better = row(4, 0.4, 0.905, why="the best chance", forecast=Forecast(chance=0.5))
    html = page(row(1, 0.6, 0.9), row(2, 0.3, 0.8, feasible=False), row(3, 0.5, 0.89), better)
    at = dots(html)
    assert lines(html, "path") == [(*at[1], *at[3]), (*at[3], *at[4])]
    assert re.findall(r'class="step"[^>]*>(\d+)<', html) == ["4", "3", "1"]
    assert "<title>4. candidate 4: 40.0 %, 90.50 %, 100 B\nthe best chance (chance 50 %)</title>" in html


def test_numbers_that_would_cover_each_other_are_left_out() -> None:
    html = page(row(1, 0.9, 0.9), row(2, 0.401, 0.9), row(3, 0.4, 0.9), row(4, 0.1, 0.5, feasible=False))
    assert re.findall(r'class="step"[^>]*>(\d+)<', html) == ["3", "1"]


def test_the_table_tells_distances_and_reasons() -> None:
    missed = row(
        1, 0.4, 0.87, feasible=False, reason="accuracy.top1: max_drop 1 pp, found 3 pp", why="near <the> best",
        forecast=Forecast(chance=0.25, goal=band(0.43), limits=(band(0.008), None)),
        margins=(margin(0, 0.03, -2), margin(1, 0.4, 0.2)),
    )  # fmt: skip
    failed = row(2, 0.4, 0.87, feasible=False, reached="failed", reason="a step broke", margins=(margin(1, 0.9, -0.8),))
    table = page(missed, failed).partition("<tbody>")[2]
    first, second = table.split("<tr")[1:3]
    assert '<div class="worse">accuracy.top1 -3.00 pp beyond 1 (expected -0.8)</div>' in first
    assert "<div>latency.median 40.0 % of 50 %</div>" in first
    assert "found 3 pp" not in first, "the distance says so"
    assert "near &lt;the&gt; best (chance 25 %)" in first
    assert re.search(r'data-label="cost"><div>40.0 %<div class="soft">expected 43.0 %<', first)
    assert "a step broke" in second
    assert "beyond" not in second


def test_an_expected_quality_stands_beside_the_quality() -> None:
    one = row(1, 0.4, 0.9, forecast=Forecast(chance=1, goal=band(-0.91)))
    html = page(one, goal=Narrowed(metric="accuracy.top1"))
    assert re.search(r'data-label="quality"><div>90.00 %<div class="soft">expected 91.00 %<', html)


def test_the_nearest_to_each_limit_are_listed() -> None:
    near = (
        Nearest(limit=1, key="k2", text="the best <time> is 52 %, by `candidate 2`"),
        Nearest(limit=0, key="elsewhere", text="1.1 points; chance 30 %"),
    )
    rows = (row(1, 0.8, 0.9, feasible=False), row(2, 0.52, 0.9, feasible=False))
    html = page(*rows, nearest=near, met=False)
    assert '<li>the best &lt;time&gt; is 52 %, by `candidate 2`, <a href="#trial-2">trial 2</a></li>' in html
    assert 'id="trial-2"' in html
    assert "<li>1.1 points; chance 30 %</li>" in html
    text = markdown.render(report(*rows, nearest=near, met=False))
    assert "- the best \\<time\\> is 52 %, by \\`candidate 2\\`\n- 1.1 points; chance 30 %\n" in text
    assert "Nothing holds" not in page(*rows)


def test_the_front_in_markdown_tells_the_distances() -> None:
    one = row(1, 0.4, 0.9, front=True, margins=(margin(0, 0.002, 0.8), margin(1, 0.4, 0.2)))
    text = markdown.render(report(one))
    said = "accuracy.top1 -0.20 pp of 1<br>latency.median 40.0 % of 50 %"
    assert f"| **candidate 1** | 40.0 % | 90.00 % | 100 B | {said} |" in text


def test_a_search_without_limits_or_reasons_is_drawn() -> None:
    html = page(row(1, 0.4, 0.9), row(2, 0.5, 0.8), bounds=())
    assert not lines(html, "limit")
    assert "limits, or why it ended" not in html


def test_values_that_are_not_finite_do_not_hide_the_others() -> None:
    html = page(row(1, 0.4, 0.9), row(2, 0.5, 0.8), row(3, 0.6, float("inf")), bounds=())
    assert "nan" not in html.partition("</svg>")[0]
    assert dots(html)[3][1] == dots(html)[1][1] < dots(html)[2][1]


def test_one_trial_is_labelled_once() -> None:
    html = page(row(1, 0.4, 0.9), bounds=())
    drawn = html.partition("</svg>")[0]
    assert (drawn.count(">40.0 %<"), drawn.count(">90.00 %<")) == (1, 1)


def test_limits_close_to_each_other_are_both_readable() -> None:
    """One is told at the right, the other at the left."""
    least = Bound(metric="accuracy.top1", comparison="min", limit=0.889, axis="quality", at=-0.889)
    limits = ("accuracy.top1 max_drop 1 pp", "accuracy.top1 min 88.9 %")
    html = page(row(1, 0.4, 0.9), row(2, 0.5, 0.8), bounds=(DROP, least), limits=limits)
    said = dict(re.findall(r'text-anchor="(\w+)">(max_drop 1 pp|min 88.9 %)<', html))
    assert said == {"end": "max_drop 1 pp", "start": "min 88.9 %"}


def test_a_quality_is_told_where_no_point_stands() -> None:
    """The dearest trial is the least accurate: its number would cover the accuracy at the right."""

    def anchor(*rows: TrialRow) -> str:
        html = page(*rows, bounds=(), limits=())
        return {said: side for side, said in re.findall(r'text-anchor="(\w+)">([\d.]+ %)<', html)}["89.00 %"]

    assert anchor(row(1, 0.8, 0.89), row(2, 0.1, 0.90)) == "start"
    assert anchor(row(1, 0.8, 0.90), row(2, 0.1, 0.89)) == "end"
    assert anchor(row(1, 0.8, 0.89), row(2, 0.051, 0.89), row(3, 0.05, 0.90)) == "end"  # at both sides


def test_costs_that_double_lie_equally_far_apart() -> None:
    at = dots(page(row(1, 0.1, 0.9), row(2, 0.2, 0.9), row(3, 0.4, 0.8), bounds=()))
    assert at[2][0] - at[1][0] == pytest.approx(at[3][0] - at[2][0], abs=0.02)
    assert at[2][0] > at[1][0]
