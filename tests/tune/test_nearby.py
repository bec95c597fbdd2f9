"""Where no trial holds all limits: which one comes nearest to each, and what is said of it."""

from __future__ import annotations

from typing import Any

from lepton_cli.report.trial import Trial
from tests.tune.builders import accuracy, gate, judge, latency, size, trial

DROP, SMALL, FAST = (
    gate("accuracy.top1", max_drop="1 pp"),
    gate("size.file", max_ratio="25 %"),
    gate("latency.median", max_ratio=0.5),
)


def untimed(name: str, drop: float, file: int, **fields: Any) -> Trial:
    """A trial that ended at its accuracy or its size."""
    given = {"reached": "accuracy", "reason": "x", "latency": None, "accuracy": accuracy(drop), **fields}
    return trial(name, size=size(file), **given)


def test_of_those_that_hold_the_others_the_nearest() -> None:
    trials = [
        untimed("far", 0.05, 240),
        untimed("near", 0.011, 249),
        untimed("large", 0.002, 300),
        untimed("larger", 0.0, 400),
        untimed("both", 0.0101, 251),
    ]
    found = judge(DROP, SMALL).nearest_by_limit(trials)
    assert [(one.limit, one.key) for one in found] == [(0, "near"), (1, "large")]
    assert found[0].text == (
        "with `size.file` at most 25.00 % of the original's the best `accuracy.top1` found is "
        "1.10 pp below the original's (allowed: 1 pp), by `near`"
    )
    assert found[1].text == (
        "with `accuracy.top1` at most 1 pp below the original's the best `size.file` found is "
        "30.00 % of the original's (allowed: 25.00 %), by `large`"
    )


def test_where_none_holds_the_others_it_is_said() -> None:
    trials = [untimed("far", 0.05, 240), untimed("near", 0.02, 250), untimed("nearer", 0.02, 245)]
    _, one = judge(DROP, SMALL).nearest_by_limit(trials)
    assert one.key == "nearer"
    assert one.text == (
        "no candidate holds the other limits; `size.file` of the one that misses them least is "
        "24.50 % of the original's (allowed: 25.00 %), by `nearer`"
    )


def test_what_was_not_measured_is_said() -> None:
    timed = trial("timed", accuracy=accuracy(0.005), size=size(200), latency=latency(0.6), reason="x")
    found = judge(DROP, SMALL, FAST).nearest_by_limit([untimed("near", 0.012, 200), timed])
    assert found[0].text.endswith("by `near`; `latency.median` was not measured")
    assert "at most 25.00 % of the original's the best" in found[0].text
    assert found[2].text.startswith("with `accuracy.top1` at most 1 pp below the original's, `size.file` at most")
    assert "60.00 % of the original's (allowed: 50.00 %), by `timed`" in found[2].text


def test_what_is_known_to_hold_the_others_comes_first() -> None:
    near = untimed("near", 0.012, 200)
    timed = trial("timed", accuracy=accuracy(0.02), size=size(200), latency=latency(0.4), reason="x")
    assert judge(DROP, SMALL, FAST).nearest_by_limit([near, timed])[0].key == "timed"


def test_a_single_limit() -> None:
    (one,) = judge(gate("size.file", max="400 B")).nearest_by_limit([trial("a", size=size(450)), trial("b")])
    assert one.text == "the best `size.file` found is 450 bytes (allowed: 400 B), by `a`"


def test_of_several_values_the_worst_counts() -> None:
    tables = [latency(0.55), latency(0.7, batch=8)]
    both = tables[0].model_copy(
        update={key: getattr(tables[0], key) + getattr(tables[1], key) for key in ("results", "changes")}
    )
    (one,) = judge(FAST).nearest_by_limit([trial("a", latency=both), trial("b", latency=latency(0.72))])
    assert one.text == (
        "the best `latency.median` (cpu batch 8 1 thread) found is 70.00 % of the original's (allowed: 50.00 %), by `a`"
    )


def test_some_samples_are_said_to_be_some() -> None:
    some = untimed("some", 0.05, 200, reached="proxy", accuracy=accuracy(0.05, n=400))
    (one, _) = judge(DROP, SMALL).nearest_by_limit([some])
    assert "is 5.00 pp below the original's (allowed: 1 pp) on 400 samples, by `some`" in one.text


def test_nothing_where_one_holds_all_and_nothing_of_what_failed() -> None:
    one = judge(SMALL)
    assert not one.nearest_by_limit([trial("a", size=size(250)), trial("b", size=size(300))])
    assert not one.nearest_by_limit([trial("f", reached="failed", reason="x"), trial("s", reached="size", reason="x")])
    assert not judge().nearest_by_limit([])


def test_warnings_are_no_limits() -> None:
    wish = gate("size.file", max="1 B", level="warn")
    (one,) = judge(wish, DROP).nearest_by_limit([untimed("a", 0.02, 500)])
    assert one.limit == 1
    assert one.text == ("the best `accuracy.top1` found is 2.00 pp below the original's (allowed: 1 pp), by `a`")
