"""What is worked on: the best and what missed by little; what is changed of it; and that trials are remembered."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from lepton_cli.prune.prospects import Prospect
from lepton_cli.recipe.tuning import Space
from lepton_cli.report.trial import Trial, Value
from lepton_cli.tune.candidate import Candidate, read_steps
from lepton_cli.tune.journal import Journal
from lepton_cli.tune.known import Proposal
from lepton_cli.tune.moves import Parent, parents, remembered, variants
from lepton_cli.tune.space import SearchSpace, derive
from tests.tune.builders import accuracy, gate, judge, latency, size, trial
from tests.tune.test_space import CNN, TEXT, TRAINED

DROP, SMALL = gate("accuracy.top1", max_drop="2 pp"), gate("size.file", max="400 B")
FAST = gate("latency.median", max_ratio=0.5)
WHERE = {"loss": 0.05, "time": 0.4, "bytes": 0.25, "parameters": 0.5, "macs": 0.45}
PROSPECT = Prospect({"g": 8, "h": 3}, (), loss=0.05, parameters=0.5, macs=0.45)
OTHER = Prospect({"g": 7, "h": 3}, (), loss=0.05, parameters=0.5, macs=0.45)


@pytest.fixture(name="space", scope="module")
def _space() -> SearchSpace:
    return derive(Space(fuse=(False, True)), TRAINED)


def made(candidate: Candidate, **fields: Any) -> Trial:
    """A trial of a candidate, with where it lies, as the search leaves it."""
    fields = {"point": {**candidate.point, **WHERE}, **fields}
    found = trial(candidate.name, **fields)
    return found.model_copy(update={"steps": tuple(candidate.plain_steps())})


def named(space: SearchSpace, name: str, **fields: Any) -> Trial:
    found = made(space.candidate(space.point({"precision": "int8"}, pruned=True), PROSPECT), **fields)
    return found.model_copy(update={"name": name, "key": name})


def names(found: list[Parent]) -> list[str]:
    return [parent.trial.name for parent in found]


def test_what_missed_by_little_is_worked_on(space: SearchSpace) -> None:
    """Within 30 % of the limit, however exactly it is known."""
    one = judge(DROP)
    tried = [
        named(space, name, accuracy=accuracy(drop, half=0.0))
        for name, drop in (("held", 0.0199), ("near", 0.0259), ("far", 0.0261))
    ]
    found = parents(one, tried)
    assert names(found) == ["held", "near"]
    assert [(parent.best, parent.missed) for parent in found] == [(True, False), (False, True)]


def test_what_may_have_missed_by_noise_is_worked_on(space: SearchSpace) -> None:
    """Within one and a half times the error, half of the interval: of 2 points those that lost 3.5 within 1."""
    tried = [
        named(space, name, accuracy=accuracy(drop, half=0.01)) for name, drop in (("near", 0.0349), ("far", 0.0351))
    ]
    assert names(parents(judge(DROP), tried)) == ["near"]


def test_each_limit_that_is_missed_has_to_be_near(space: SearchSpace) -> None:
    one = judge(DROP, SMALL)
    tried = [
        named(space, "both near", accuracy=accuracy(0.024, half=0.0), size=size(480)),
        named(space, "one far", accuracy=accuracy(0.024, half=0.0), size=size(560)),
        named(space, "the other far", accuracy=accuracy(0.04, half=0.0), size=size(480)),
    ]
    assert names(parents(one, tried)) == ["both near"]


def test_the_best_comes_first_then_the_nearest(space: SearchSpace) -> None:
    """By what is missing of all limits together; three at most, and those within the limits are not the best."""
    one = judge(DROP, SMALL, goal="size.file")
    tried = [
        named(space, "c: 15 and 20 %", accuracy=accuracy(0.023, half=0.0), size=size(480)),
        named(space, "a: 30 %", accuracy=accuracy(0.026, half=0.0), size=size(300)),
        named(space, "worse", size=size(390)),
        named(space, "b: 5 %", accuracy=accuracy(0.021, half=0.0), size=size(300)),
        named(space, "best", size=size(380)),
        named(space, "d: 10 %", accuracy=accuracy(0.02, half=0.0), size=size(440)),
    ]
    found = parents(one, tried)
    assert names(found) == ["best", "b: 5 %", "d: 10 %"]
    assert names(parents(one, tried[:3])) == ["worse", "a: 30 %", "c: 15 and 20 %"]
    assert names(parents(one, list(reversed(tried)))) == names(found), "the order of trials is no matter"


def test_quality_is_missed_or_size(space: SearchSpace) -> None:
    """What missed nothing but a size is not mended by a better model of the same size."""
    one = judge(DROP, SMALL)
    lost = named(space, "lost", accuracy=accuracy(0.024, half=0.0), size=size(300))
    large = named(space, "large", size=size(410))
    found = parents(one, [lost, large])
    assert [(parent.trial.name, parent.best, parent.missed) for parent in found] == [
        ("large", False, False),
        ("lost", False, True),
    ]


def test_what_holds_within_what_a_trial_can_tell_is_no_miss(space: SearchSpace) -> None:
    """A time half a percent beyond its limit: it is the best, and that once."""
    one = judge(FAST)
    tried = [named(space, "best", latency=latency(0.5)), named(space, "a little", latency=latency(0.502))]
    assert names(parents(one, tried)) == ["best"]
    assert names(parents(one, tried[1:])) == ["a little"]


def test_what_failed_is_not_worked_on(space: SearchSpace) -> None:
    one = judge(SMALL)
    failed = named(space, "a", reached="failed", reason="broken", size=size(410))
    assert parents(one, [failed]) == []
    nothing = named(space, "b", accuracy=accuracy(math.nan), size=size(410))
    assert parents(judge(DROP, SMALL), [nothing]) == [], "nor what is no number"
    assert parents(one, []) == []


def test_the_recipes_own_steps_are_not_worked_on(space: SearchSpace) -> None:
    """They lie nowhere in the space; the next one takes no place away from others."""
    one = judge(goal="size.file")
    own = trial("recipe", size=size(100))
    assert parents(one, [own]) == []
    assert remembered(own) is None


CHOICES: list[tuple[dict[str, Value], Prospect | None]] = [
    ({"precision": "int8"}, PROSPECT),
    ({"precision": "int8", "guard": 0.005, "calibration": "percentile", "distill": 5, "round_to": 1}, PROSPECT),
    ({"precision": "float", "importance": "activation", "fuse": True}, PROSPECT),
    ({"precision": "float"}, Prospect({"g": 8}, ("add1", "add2"), loss=0.05, parameters=0.5, macs=0.45)),
    ({"precision": "float"}, Prospect({}, ("add1",), loss=0.05, parameters=0.5, macs=0.45)),
    ({"precision": "int8", "fuse": True}, None),
    ({"precision": "int8", "calibration": "minmax"}, None),
]


@pytest.mark.parametrize(("chosen", "prospect"), CHOICES)
def test_a_trial_is_remembered_as_it_was(
    chosen: dict[str, Value], prospect: Prospect | None, space: SearchSpace, tmp_path: Path
) -> None:
    """Also by another process, which reads it from the journal: the same steps, and where they lie."""
    proposal = Proposal(space.point(chosen, pruned=prospect is not None), prospect)
    candidate = space.candidate(proposal.point, proposal.prospect)
    Journal(tmp_path, "s").add(made(candidate))
    (again,) = Journal(tmp_path, "s").trials()
    found = remembered(again)
    assert found is not None
    assert found.point == proposal.point
    assert found.prospect == prospect
    repeated = space.candidate(found.point, found.prospect)
    assert repeated.steps == candidate.steps
    assert repeated.key("s") == candidate.key("s")
    assert found.key == proposal.key


def test_steps_in_front_of_all_candidates_are_not_remembered_as_theirs() -> None:
    first = read_steps([{"step": "simplify"}, {"step": "finetune"}])
    space = derive(Space(), TRAINED, first)
    candidate = space.candidate(space.point({"precision": "float"}, pruned=True), PROSPECT)
    found = remembered(made(candidate))
    assert found is not None
    assert space.candidate(found.point, found.prospect).steps == candidate.steps


def changed(space: SearchSpace, parent: Parent, stage: int, *, quality: bool = False) -> list[tuple[str, Value]]:
    """The choices that differ from the parent's, one in each variant; its widths are the parent's."""
    found = []
    for variant in variants(space, [parent], stage, quality):
        assert variant.prospect == parent.proposal.prospect
        assert space.point(variant.point, pruned=variant.prospect is not None) == variant.point
        ((name, value),) = [(n, v) for n, v in variant.point.items() if v != parent.proposal.point[n]]
        found.append((name, value))
    return found


def parent(space: SearchSpace, *, missed: bool, prospect: Prospect | None = PROSPECT, **chosen: Value) -> Parent:
    point = space.point(chosen, pruned=prospect is not None)
    return Parent(trial("a"), Proposal(point, prospect), not missed, missed)


def test_what_missed_quality_is_mended_at_once(space: SearchSpace) -> None:
    """One choice at a time: ranges, the guard, training, fusion."""
    one = parent(space, missed=True, precision="int8")
    expected = [
        ("calibration", "percentile"),
        ("calibration", "minmax"),
        ("guard", 0.005),
        ("distill", 5),
        ("fuse", True),
    ]
    for stage in (0, 1, 2):
        assert changed(space, one, stage) == expected
    (first, *_) = variants(space, [one], 0, False)
    assert (first.origin, first.why) == ("near miss", "a near miss with another `calibration`")


def test_the_best_is_varied_when_the_search_widens(space: SearchSpace) -> None:
    """Only by what can better it, and never by the guard, which gives speed back for quality that is not missing."""
    one = parent(space, missed=False, precision="int8")
    assert changed(space, one, 0, quality=True) == []
    assert changed(space, one, 1) == [("fuse", True), ("prefer", "speed")]
    assert changed(space, one, 1, quality=True) == [
        ("calibration", "percentile"), ("calibration", "minmax"), ("distill", 5), ("fuse", True)
    ]  # fmt: skip
    (first, *_) = variants(space, [one], 1, True)
    assert (first.origin, first.why) == ("around the best", "the best with another `calibration`")


def test_other_blocks_of_the_best_are_known_to_the_byte_and_need_no_widening() -> None:
    space = derive(Space(block_size=(32, 128, 256)), dataclasses.replace(TEXT, goal="size"))
    one = parent(space, missed=False, precision="weights4", block_size=128)
    assert changed(space, one, 0) == [("block_size", 32), ("block_size", 256)]
    assert changed(space, parent(space, missed=False, precision="dynamic"), 0) == []


def test_a_guard_may_be_left_out_of_the_best(space: SearchSpace) -> None:
    one = parent(space, missed=False, precision="int8", guard=0.005)
    assert ("guard", None) in changed(space, one, 1)


def test_what_means_nothing_is_not_changed(space: SearchSpace) -> None:
    """Float has no ranges and no guard; what is not pruned is not trained."""
    assert changed(space, parent(space, missed=True, precision="float"), 0) == [("distill", 5), ("fuse", True)]
    whole = parent(space, missed=True, prospect=None, precision="float")
    assert changed(space, whole, 0) == [("fuse", True)]


def test_only_choices_of_the_space_are_made() -> None:
    space = derive(Space.model_validate({"calibration": ("minmax",), "guard": ("none",), "distill": ("none",)}), CNN)
    assert changed(space, parent(space, missed=True, precision="int8"), 2) == []


def test_what_missed_a_size_is_not_called_the_best(space: SearchSpace) -> None:
    """It is varied when the search widens, and said for what it is."""
    large = named(space, "large", size=size(410))
    (found,) = parents(judge(DROP, SMALL), [large])
    assert list(variants(space, [found], 0, False)) == []
    first = next(iter(variants(space, [found], 1, True)))
    assert (first.origin, first.why) == ("near miss", "a near miss with another `calibration`")


def test_widths_that_miss_in_several_ways_are_left(space: SearchSpace) -> None:
    """Calibration and guard turn a hair's breadth, and no more; what was varied is not varied again."""
    one = judge(gate("accuracy.top1", max_drop="1 pp"))
    tried: list[Trial] = []
    for number, name in enumerate((None, "percentile", "minmax", "entropy")):
        point = space.point({"precision": "int8", "calibration": name}, pruned=True)
        candidate = space.candidate(point, PROSPECT, "near miss" if number else "outlook")
        fields = {"origin": candidate.origin, "accuracy": accuracy(0.011 + number / 1e4)}
        tried.append(made(candidate, key=f"{number}", **fields))
        found = parents(one, tried)
        assert found[0].varied == number
        assert bool(list(variants(space, found[:1], 0, False))) == (number < 3)
        assert list(variants(space, found[1:], 0, False)) == []
    other = space.candidate(space.point({"precision": "int8"}, pruned=True), OTHER)
    (first, *_) = parents(one, [made(other, key="other", accuracy=accuracy(0.0105)), *tried])
    assert first.varied == 0
    assert list(variants(space, [first], 0, False))
