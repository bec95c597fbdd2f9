"""What each step bought, and when a part of the steps beats them all."""

from __future__ import annotations

from typing import Any

import pytest

from lepton_cli.graph.details import HeadDetails
from lepton_cli.measure.results import Fidelity
from lepton_cli.prune.details import PruneChannelsDetails, ReachedTarget
from lepton_cli.report import bought, html, markdown
from lepton_cli.report.headline import headline
from lepton_cli.report.model import RECORDS, Bought, Report
from tests.report import builders

WITHOUT = "without prune.channels"


def close(name: str, sqnr_db: float | None) -> tuple[Fidelity, ...]:
    made = Fidelity(output="logits", agreement=None, agreement_low=None, agreement_high=None, sqnr_db=sqnr_db,
                    max_abs_error=0.1, n=9, variant=name)  # fmt: skip
    return (made,)


def part(name: str = WITHOUT, **changes: Any) -> Bought:
    """Int8 alone: three times as fast as the original, 2 % of the time on each side, at a loss of 0.1 points."""
    ratio, half, lost = (changes.pop(key, value) for key, value in (("ratio", 1 / 3), ("half", 0.02), ("lost", 0.001)))
    (change,) = builders.accuracy(0.918, 0.918 - lost).changes
    fields: dict[str, Any] = {
        "name": name,
        "steps": (0, 2),
        "file": 250_000,
        "latency": builders.change(0.483e-3, ratio, half=half),
        "changes": (change,),
        "fidelity": close(name, 34.0),
    }
    return Bought(**{**fields, **changes})


def report(*parts: Bought, metric: str = "macs", **changes: Any) -> Report:
    """All steps: 2.46 times as fast, 0.36 points lost, 210 kB."""
    steps = list(builders.steps())
    target = ReachedTarget(metric=metric, target=0.6, reached=0.6)
    steps[1] = steps[1].model_copy(update={"details": PruneChannelsDetails(targets=(target,))})
    return builders.report(**{"steps": tuple(steps), "bought": parts, **changes})


SIMPLIFIED = part("after 1. simplify", steps=(0,), file=1_080_000, ratio=1.0, changes=(), fidelity=())
PRUNED = part("after 2. prune.channels", steps=(0, 1), file=700_000, ratio=0.625, lost=0.002)


def test_a_row_for_each_step_and_for_what_was_left_out() -> None:
    made = report(SIMPLIFIED, PRUNED, part())
    size = made.variants[0].size.file
    rows = bought.rows(made)
    assert [row.name for row in rows] == ["1. simplify", "2. prune.channels", "3. quantize.static", WITHOUT]
    assert [row.speed for row in rows] == [
        "1.00x [0.980, 1.02]", "1.60x [1.57, 1.63]", "2.46x [2.41, 2.51]", "3.00x [2.94, 3.06]"
    ]  # fmt: skip
    assert [row.exactness for row in rows] == [
        "equal outputs", "-0.20 pp top-1, 34.0 dB SQNR", "-0.36 pp top-1, 30.2 dB SQNR", "-0.10 pp top-1, 34.0 dB SQNR"
    ]  # fmt: skip
    assert rows[1].size == f"700 kB ({100 * (700_000 / size - 1):+.1f} %)"
    assert rows[2].size.endswith(f"({100 * (made.variants[1].size.file / size - 1):+.1f} %)")


def test_a_step_that_changed_nothing_has_no_row() -> None:
    steps = list(builders.steps())
    steps[2] = steps[2].model_copy(update={"changed": 0})
    made = builders.report(steps=tuple(steps), bought=(SIMPLIFIED,))
    assert [row.name for row in bought.rows(made)] == ["1. simplify", "2. prune.channels"]


def test_what_was_not_measured_is_left_out() -> None:
    """As the models of steps that an earlier run did."""
    assert [row.name for row in bought.rows(report(PRUNED))] == ["2. prune.channels", "3. quantize.static"]
    untimed = bought.rows(report(part(latency=None), latency=None, accuracy=None))
    assert [row.speed for row in untimed] == ["-", "-"]
    assert bought.rows(report(SIMPLIFIED, accuracy=None))[0].exactness == "-"


def test_nothing_is_said_of_a_single_step() -> None:
    assert bought.rows(builders.report()) == []
    assert bought.said(builders.report()) == ""
    assert "What each step bought" not in markdown.render(builders.report())


def test_identical_outputs_are_named() -> None:
    same = part(changes=(), fidelity=close(WITHOUT, None))
    assert bought.exactness(report(same), same) == "identical"
    two = part(fidelity=(*close(WITHOUT, 50.0), *close(WITHOUT, 20.0)))
    assert bought.exactness(report(two), two) == "-0.10 pp top-1, 20.0 dB SQNR", "the worst output"


def test_the_headline_names_the_part_that_is_better() -> None:
    made = report(part())
    smaller = made.variants[0].size.file / 250_000
    said = (
        f"A PART OF THE STEPS IS BETTER: {WITHOUT} 3.00x as fast as the original, -0.10 pp top-1, 34.0 dB SQNR, "
        f"{smaller:.1f}x smaller"
    )
    assert bought.said(made) == said
    assert headline(made).startswith(said)


@pytest.mark.parametrize(
    ("changes", "better"),
    [
        ({}, True),
        ({"ratio": 0.38, "half": 0.01}, True),
        ({"ratio": 0.4, "half": 0.001}, False),  # apart, and closer than two sessions of one model
        ({"ratio": 0.38, "half": 0.2}, False),  # the intervals overlap
        ({"ratio": 0.6}, False),
        ({"lost": 0.0036}, True),
        ({"lost": 0.0037}, False),
        ({"lost": -0.01}, True),
        ({"latency": None}, False),
    ],
)
def test_better_is_clearly_faster_and_as_exact(changes: dict[str, Any], better: bool) -> None:
    made = report(part(**changes))
    assert (bought.beaten(made) is not None) == better


@pytest.mark.parametrize(("ratio", "better"), [(0.39, True), (0.396, True), (0.399, False), (0.4, False)])
def test_sessions_of_one_model_differ_by_two_per_cent(ratio: float, better: bool) -> None:
    """All steps take 0.406 of the time, and no interval is wide."""
    made = report(part(ratio=ratio, half=0.001), latency=builders.latency_table(half=0.001))
    assert (bought.beaten(made) is not None) == better


def test_intervals_that_touch_do_not_lie_apart() -> None:
    (whole, *_) = builders.latency_table(half=0.1).changes
    touching = whole.model_copy(update={"ratio": 0.3, "low": 0.2, "high": whole.low})
    made = report(part(latency=touching), latency=builders.latency_table(half=0.1))
    assert bought.beaten(made) is None
    below = touching.model_copy(update={"high": whole.low - 1e-9})
    assert bought.beaten(report(part(latency=below), latency=builders.latency_table(half=0.1))) is not None


def test_two_targets_for_speed_are_none_for_size() -> None:
    made = report(part())
    steps = list(made.steps)
    both = tuple(ReachedTarget(metric=metric, target=0.6, reached=0.6) for metric in ("macs", "latency"))
    steps[1] = steps[1].model_copy(update={"details": PruneChannelsDetails(targets=both)})
    assert bought.beaten(report(part(file=10**6), steps=tuple(steps))) is not None
    three = (*both, ReachedTarget(metric="params", target=0.6, reached=0.6))
    steps[1] = steps[1].model_copy(update={"details": PruneChannelsDetails(targets=three)})
    assert bought.beaten(report(part(file=10**6), steps=tuple(steps))) is None


@pytest.mark.parametrize(
    ("metric", "size", "better"),
    [("macs", 1.0, True), ("latency", 4.0, True), ("params", 1.06, False), ("params", 1.04, True), ("size", 2, False)],
)
def test_larger_counts_where_less_of_it_was_asked_for(metric: str, size: float, better: bool) -> None:
    whole = report().variants[-1].size.file
    made = report(part(file=round(size * whole)), metric=metric)
    assert (bought.beaten(made) is not None) == better


def test_a_beginning_of_the_run_must_not_be_larger() -> None:
    """What a last step is for may be the size."""
    whole = report().variants[-1].size.file
    for size, better in ((1.04, True), (1.06, False)):
        made = report(part("after 2. prune.channels", steps=(0, 1), file=round(size * whole)))
        assert (bought.beaten(made) is not None) == better


def test_an_equal_part_has_lost_nothing() -> None:
    made = report(part("after 1. simplify", steps=(0,), file=1000, changes=(), fidelity=()))
    assert bought.beaten(made) is not None


@pytest.mark.parametrize(("db", "better"), [(29.0, False), (30.2, True), (31.0, True), (None, True)])
def test_without_labels_the_outputs_decide(db: float | None, better: bool) -> None:
    accuracy = builders.accuracy().model_copy(update={"changes": (), "values": {}})
    made = report(part(changes=(), fidelity=close(WITHOUT, db)), accuracy=accuracy)
    assert (bought.beaten(made) is not None) == better


def test_lower_may_be_better() -> None:
    (change,) = builders.accuracy().changes
    worse = change.model_copy(update={"difference": 0.2, "higher_is_better": False})
    accuracy = builders.accuracy().model_copy(update={"changes": (worse,)})
    for difference, better in ((0.1, True), (0.3, False)):
        mine = worse.model_copy(update={"difference": difference})
        assert (bought.beaten(report(part(changes=(mine,)), accuracy=accuracy)) is not None) == better


def test_of_several_the_fastest_is_named() -> None:
    other = part("after 2. prune.channels", steps=(0, 1), file=1000, ratio=0.3)
    found = bought.beaten(report(part(), other))
    assert found == other


def test_it_is_in_every_rendering_and_read_again() -> None:
    made = report(SIMPLIFIED, PRUNED, part())
    for text in (markdown.render(made), html.render(made)):
        assert "What each step bought" in text
        assert "without prune.channels" in text.replace("\\", "")
    assert Report.model_validate_json(made.model_dump_json()) == made


def test_a_step_of_a_later_version_is_no_reason_to_fail() -> None:
    steps = (*builders.steps()[:2], RECORDS["simplify"](index=2, step="simplify", changed=1, seconds=0.1, summary=""))
    assert bought.rows(builders.report(steps=steps, bought=(SIMPLIFIED,)))[-1].name == "3. simplify"


def test_a_part_without_the_new_outputs_is_never_better() -> None:
    """Nor is it said to be equal where nothing can be compared."""
    assert bought.beaten(report(part())) is not None
    steps = list(report().steps)
    details = HeadDetails(output="kind", at="pool", channels=64, width=2)
    steps[0] = RECORDS["head.replace"](
        index=0, step="head.replace", changed=1, seconds=0.1, summary="", details=details
    )
    made = report(part("after 1. head.replace", steps=(0,), changes=(), fidelity=()), part(), steps=tuple(steps))
    assert bought.beaten(made) is None
    assert bought.rows(made)[0].exactness == "-"
