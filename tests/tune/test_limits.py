"""Which limit breaks, and which trial is better."""

from __future__ import annotations

import dataclasses

import pytest

from lepton_cli.measure import rows
from lepton_cli.measure.results import Accuracy, Memory
from lepton_cli.measure.rows import Counts
from lepton_cli.recipe.tuning import Objective
from tests.tune.builders import accuracy, gate, judge, latency, size, trial


def test_breaches_name_limit_and_value() -> None:
    one = judge(gate("accuracy.top1", max_drop="0.5 pp"), gate("size.file", max="400 B"))
    breaches = one.breaches(trial(accuracy=accuracy(0.02)))
    assert [b.metric for b in breaches] == ["accuracy.top1", "size.file"]
    assert breaches[0].text == "accuracy.top1: max_drop 0.5 pp, found 2.00 pp"
    assert breaches[0].quality
    assert not breaches[1].quality
    assert breaches[1].excess == pytest.approx(0.25)


def test_exactly_at_the_limit_is_within() -> None:
    assert not judge(gate("accuracy.top1", max_drop="0.5 pp")).breaches(trial(accuracy=accuracy(0.005)))


def test_some_samples_reject_only_what_the_whole_interval_rejects() -> None:
    one = judge(gate("accuracy.top1", max_drop="0.5 pp"))
    proxy = {"reached": "proxy"}
    assert not one.breaches(trial(accuracy=accuracy(0.012, half=0.01), **proxy))
    assert one.breaches(trial(accuracy=accuracy(0.02, half=0.01), **proxy))
    assert one.breaches(trial(accuracy=accuracy(0.012, half=0.01)))


def by_class(lost: int, n: int) -> Accuracy:
    """Ten classes of `n` samples that were right, of which one lost so many."""
    counted = [Counts(str(label), n - gone, gone, 0, 0) for label, gone in enumerate([lost, *[0] * 9])]
    classes, spread = rows.judged({("y", ""): counted})
    return Accuracy(classes=classes, spread=spread)


def test_some_samples_reject_a_worst_class_only_where_it_is_certain() -> None:
    one = judge(gate("accuracy.worst_class", max_drop="5 pp"))
    proxy = {"reached": "proxy"}
    # 10 points of 40 samples may be none of all; of 400 they are 6 at least, with ten classes as well.
    assert not one.breaches(trial(accuracy=by_class(4, 40), **proxy))
    assert one.breaches(trial(accuracy=by_class(40, 400), **proxy))
    assert one.breaches(trial(accuracy=by_class(4, 40)))
    assert not one.breaches(trial(accuracy=by_class(20, 400)))
    # Of some samples no class may have enough: nothing is known then.
    assert not one.breaches(trial(accuracy=by_class(20, 20), **proxy))
    assert not one.margins(trial(accuracy=by_class(20, 20), **proxy))


def test_times_break_a_limit_by_more_than_a_trial_can_tell() -> None:
    one = judge(gate("latency.median", max_ratio=1.0))
    assert not one.breaches(trial(latency=latency(1.005)))
    assert one.breaches(trial(latency=latency(1.02)))


def test_memory_is_compared_with_the_originals() -> None:
    limits = (gate("memory.peak", max_ratio=0.9), gate("memory.peak", max_increase="1 kB"))
    one = dataclasses.replace(judge(*limits, goal="memory.peak"), memory=Memory(peak=10_000, added=1))
    large, small = (trial(name, memory=Memory(peak=peak, added=1)) for name, peak in (("a", 9_900), ("b", 5_000)))
    assert [breach.text for breach in one.breaches(large)] == ["memory.peak: max_ratio 0.9, found 0.990"]
    assert not one.breaches(small)
    assert one.value(small) == 0.5


def test_more_parameters_than_the_limit_allows_are_a_matter_of_size() -> None:
    names = ("size.gzip", "parameters", "nonzeros", "macs", "nodes")
    breaches = judge(*(gate(name, max="1 B" if "." in name else 1) for name in names)).breaches(trial())
    assert {breach.metric for breach in breaches} == set(names)
    assert {breach.metric for breach in breaches if breach.sized} == {"size.gzip", "parameters", "nonzeros"}


def test_warnings_are_no_limits() -> None:
    assert not judge(gate("size.file", max="1 B", level="warn")).breaches(trial())


def test_the_best_is_the_fastest_within_the_limits() -> None:
    one = judge(gate("accuracy.top1", max_drop="0.5 pp"))
    trials = [
        trial("slow", latency=latency(0.9)),
        trial("wrong", latency=latency(0.1), accuracy=accuracy(0.1)),
        trial("failed", reached="failed", reason="x", latency=latency(0.05)),
        trial("best", latency=latency(0.4)),
    ]
    best = one.best(trials)
    assert best is not None
    assert best.name == "best"
    assert one.best(trials[1:3]) is None
    nearest = one.nearest(trials[1:3])
    assert nearest is not None
    assert nearest.name == "wrong"


def test_goals_that_are_better_when_higher() -> None:
    one = judge(goal=Objective(metric="accuracy.top1"))
    best = one.best([trial("a", accuracy=accuracy(0.1)), trial("b", accuracy=accuracy(0.0))])
    assert best is not None
    assert best.name == "b"


def test_equal_trials_are_decided_by_size_and_name() -> None:
    one = judge()
    trials = [trial("b"), trial("a"), trial("large", size=size(900))]
    for order in (trials, trials[::-1]):
        best = one.best(order)
        assert best is not None
        assert best.name == "a"
