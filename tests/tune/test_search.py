"""The search on a made-up model: pruning costs accuracy, int8 a little too, both save time."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tune_table import hypervolume
from lepton_cli.recipe.tuning import Objective, Space
from lepton_cli.report.trial import Trial
from lepton_cli.tune.bench import Bench
from lepton_cli.tune.candidate import Candidate
from lepton_cli.tune.journal import Journal
from lepton_cli.tune.limits import Judge
from lepton_cli.tune.search import WIDEN, Search, _probe
from lepton_cli.tune.space import SearchSpace, derive
from tests.tune.builders import accuracy, gate, judge, latency, size, trial
from tests.tune.test_space import CNN, TRAINED

SPEED = {"float": 1.0, "int8": 0.5}


def measured(candidate: Candidate, judge: Judge) -> Trial:
    """Accuracy falls ever faster with pruning; widths in blocks are quicker, ranking by activations is worse."""
    point: dict[str, Any] = dict(candidate.point)
    drop = 0.012 * (1 / point["keep"] - 1) ** 1.5 + (0.002 if point["precision"] == "int8" else 0)
    drop *= 1.3 if point["importance"] == "activation" else 1
    time = SPEED[point["precision"]] * (0.1 + 0.9 * point["keep"]) * (1.0 if point["round_to"] == 16 else 1.1)
    made = trial(candidate.name, accuracy=accuracy(drop), latency=latency(time), size=size(int(1000 * point["keep"])))
    made = made.model_copy(
        update={"point": point, "steps": tuple(candidate.plain_steps()), "origin": candidate.origin, "seconds": 1.0}
    )
    breaches = judge.breaches(made)
    return made.model_copy(update={"reached": "accuracy", "reason": breaches[0].text}) if breaches else made


def bench(folder: Path, one: Judge, most: int | None = None) -> Bench:
    return Bench(Journal(folder, "s"), one, "s", lambda candidate: measured(candidate, one), 1000.0, most, "cpu")


@pytest.fixture(name="space")
def _space() -> SearchSpace:
    return derive(Space(prune_by=("macs", "latency")), CNN)


LIMIT = gate("accuracy.top1", max_drop="0.5 pp")


def test_the_structured_search_finds_the_optimum(tmp_path: Path, space: SearchSpace) -> None:
    one = judge(LIMIT)
    search = Search(space, bench(tmp_path, one), [], 0)
    search.structured()
    best = one.best(search.bench.trials())
    assert best is not None
    points = [
        space.point(precision=p, keep=k, round_to=r)
        for p in SPEED
        for k in space.dimensions["keep"]
        for r in (16, 8, 1)
    ]
    optimum = one.best(measured(space.candidate(point, ""), one) for point in points)
    assert optimum is not None
    assert one.value(best) == one.value(optimum)
    assert len(search.bench.trials()) < 80
    assert search.ended


AXES = (Objective(metric="latency.median"), Objective(metric="accuracy.top1"))


@pytest.mark.parametrize(("axes", "most"), [(None, 20), (AXES, 20), (AXES, 45)])
def test_a_search_that_runs_again_repeats_nothing(
    tmp_path: Path, space: SearchSpace, axes: tuple[Objective, Objective] | None, most: int
) -> None:
    one = judge(LIMIT)
    first = Search(space, bench(tmp_path, one, 12), [], 0, axes)
    first.structured()
    assert first.ended == "the budget is spent"
    names = [t.name for t in first.bench.trials()]
    again = bench(tmp_path, one, most)
    new: list[str] = []
    again.finished = lambda trial: new.append(trial.name)
    Search(space, again, [], 0, axes).structured()
    assert len(names) == 12
    assert len(new) == most - 12
    assert not set(names) & set(new)
    whole = Search(space, bench(tmp_path / "whole", one, most), [], 0, axes)
    whole.structured()
    assert [t.name for t in whole.bench.trials()] == [*names, *new]


def test_the_front_gets_trials_besides_the_best(tmp_path: Path, space: SearchSpace) -> None:
    one = judge(LIMIT)
    search = Search(space, bench(tmp_path, one, 60), [], 0, AXES)
    search.structured()
    origins = Counter(trial.origin for trial in search.bench.trials())
    assert origins["front"] >= 2
    assert origins["refinement"] >= WIDEN * (origins["front"] - 1)


def test_tighter_limits_use_the_trials_that_are_there(tmp_path: Path, space: SearchSpace) -> None:
    one, strict = judge(LIMIT), judge(gate("accuracy.top1", max_drop="0.3 pp"))
    Search(space, bench(tmp_path, one), [], 0).structured()
    again = bench(tmp_path, strict)
    new: list[str] = []
    again.finished = lambda trial: new.append(trial.name)
    Search(space, again, [], 0).structured()
    best = strict.best(again.trials())
    assert best is not None
    assert not strict.breaches(best)
    fresh = bench(tmp_path / "fresh", strict)
    Search(space, fresh, [], 0).structured()
    assert len(new) < len(fresh.trials())


def test_looser_limits_measure_again_what_had_ended_early(tmp_path: Path, space: SearchSpace) -> None:
    strict, loose = judge(gate("accuracy.top1", max_drop="0.1 pp")), judge(gate("accuracy.top1", max_drop="5 pp"))
    Search(space, bench(tmp_path, strict), [], 0).structured()
    again = bench(tmp_path, loose)
    Search(space, again, [], 0).structured()
    best = loose.best(again.trials())
    assert best is not None
    assert (loose.value(best) or 1) < 0.3


def test_limits_that_only_small_models_hold(tmp_path: Path, space: SearchSpace) -> None:
    one = judge(gate("size.file", max="500 B"), goal="accuracy.top1")
    found = bench(tmp_path, one)
    Search(space, found, [], 0).structured()
    best = one.best(found.trials())
    assert best is not None
    assert best.point["keep"] == 0.49


def test_the_recipes_own_steps_come_first(tmp_path: Path, space: SearchSpace) -> None:
    own = space.candidate(space.point(keep=0.9), "recipe")
    found = bench(tmp_path, judge(LIMIT), 3)
    Search(space, found, [own], 0).structured()
    assert found.trials()[0].origin == "recipe"


def test_a_better_front_than_blind_sampling(tmp_path: Path, space: SearchSpace) -> None:
    one = judge(LIMIT)

    def area(folder: str, strategy: str, seed: int) -> float:
        found = bench(tmp_path / folder, one, 30)
        getattr(Search(space, found, [], seed), strategy)()
        good = [t for t in found.trials() if one.feasible(t)]
        loss = Objective(metric="accuracy.top1")
        return hypervolume([(one.value(t) or 1.0, one.value(t, loss) or 0.0) for t in good], (1.0, -0.89))

    for seed in range(3):
        assert area(f"s{seed}", "structured", seed) > area(f"r{seed}", "sampled", seed)


def test_failures_are_not_tried_again(tmp_path: Path, space: SearchSpace) -> None:
    one = judge(LIMIT)
    calls: list[str] = []

    def fails(candidate: Candidate) -> Trial:
        calls.append(candidate.name)
        plain = measured(candidate, one)
        return plain.model_copy(update={"reached": "failed", "reason": "broken"}) if len(candidate.steps) > 1 else plain

    for _ in range(2):
        found = Bench(Journal(tmp_path, "s"), one, "s", fails, 1000.0, 30, "cpu")
        Search(space, found, [], 0).structured()
    assert len(calls) == len(set(calls))


def test_times_of_another_processor_do_not_count(tmp_path: Path, space: SearchSpace) -> None:
    one = judge(LIMIT)
    candidate = space.candidate(space.point(), "grid")
    calls: list[str] = []

    def counted(candidate: Candidate) -> Trial:
        calls.append(candidate.name)
        return measured(candidate, one)

    for cpu in ("a", "a", "b"):
        Bench(Journal(tmp_path, "s"), one, "s", counted, 1000.0, None, cpu).run([candidate])
    assert len(calls) == 2


@pytest.mark.parametrize("deepest", range(10))
def test_pruning_is_bisected_from_the_mild_side(deepest: int) -> None:
    """Every deepest level that holds is found, the first probe is mild, and few are needed."""
    low, high, probes = 0, 10, []
    while high - low > 1:
        middle = _probe(low, high, 10)
        assert low < middle < high
        probes.append(middle)
        low, high = (middle, high) if middle <= deepest else (low, middle)
    assert low == deepest
    assert probes[0] == 2
    assert len(probes) <= 5


def test_a_size_limit_beside_a_goal_in_time(tmp_path: Path) -> None:
    """Parameters go until the size holds, and time is saved from there: both in one pruning step."""
    one = judge(gate("accuracy.top1", max_drop="1.5 pp"), gate("size.file", max_ratio=0.2))
    space = derive(Space(prune_by=("latency",)), dataclasses.replace(CNN, sized=True))

    def measure(candidate: Candidate) -> Trial:
        point: dict[str, Any] = dict(candidate.point)
        left = min(1.0, point["keep_params"])
        bytes_ = int(1000 * (0.28 * left + 0.02) * (1 if point["precision"] == "int8" else 3.3))
        drop = 0.004 * (1 / point["keep"] - 1) + 0.01 * (1 / left - 1) ** 1.5
        made = trial(candidate.name, accuracy=accuracy(drop), latency=latency(0.5 * point["keep"]), size=size(bytes_))
        made = made.model_copy(
            update={"point": point, "steps": tuple(candidate.plain_steps()), "origin": candidate.origin, "seconds": 1.0}
        )
        breaches = one.breaches(made)
        return made.model_copy(update={"reached": "accuracy", "reason": breaches[0].text}) if breaches else made

    tried = Bench(Journal(tmp_path, "s"), one, "s", measure, 1000.0, 40, "cpu")
    Search(space, tried, [], 0).structured()
    best = one.best(tried.trials())
    assert best is not None
    assert best.point["precision"] == "int8"
    assert best.point["keep"] < 0.5
    assert 0.5 < best.point["keep_params"] < 0.65
    (prune,) = [step for step in best.steps if step["step"] == "prune.channels"]
    assert set(prune["target"]) == {"latency", "params"}


def healed(candidate: Candidate, one: Judge) -> Trial:
    """As `measured`, and training gives back most of what pruning took."""
    point: dict[str, Any] = dict(candidate.point)
    made = measured(candidate, one)
    if point["distill"] is None:
        return made
    drop = 0.002 * (1 / point["keep"] - 1) ** 1.5
    made = made.model_copy(update={"accuracy": accuracy(drop), "reached": "latency", "reason": "", "seconds": 60.0})
    breaches = one.breaches(made)
    return made.model_copy(update={"reached": "accuracy", "reason": breaches[0].text}) if breaches else made


def test_what_training_heals_is_pruned_deeper(tmp_path: Path) -> None:
    """The deepest level of all is found within few trainings, from where pruning alone ends."""
    one = judge(LIMIT)
    space = derive(Space(prune_by=("macs",), round_to=(16,), importance=("hessian",)), TRAINED)
    bench = Bench(Journal(tmp_path, "s"), one, "s", lambda candidate: healed(candidate, one), 1000.0, 40, "cpu")
    Search(space, bench, [], 0).structured()
    best = one.best(bench.trials())
    assert best is not None
    points = [
        space.point(precision=p, keep=k, distill=e)
        for p in SPEED
        for k in space.dimensions["keep"]
        for e in space.dimensions["distill"]
    ]
    optimum = one.best(healed(space.candidate(point, ""), one) for point in points)
    assert optimum is not None
    assert optimum.point["distill"] == 5
    assert best.point == optimum.point
    bisected = [trial for trial in bench.trials() if trial.origin == "bisection"]
    trained = [trial.point for trial in bisected if trial.point["distill"]]
    alone = min(trial.point["keep"] for trial in bisected if not trial.point["distill"] and one.feasible(trial))
    assert 0 < len(trained) <= 8
    assert max(point["keep"] for point in trained) < alone


def test_a_search_with_training_that_runs_again_goes_on_as_in_one_piece(tmp_path: Path) -> None:
    one, space = judge(LIMIT), derive(Space(prune_by=("macs",)), TRAINED)

    def ran(folder: str, most: int) -> list[str]:
        found = Bench(Journal(tmp_path / folder, "s"), one, "s", lambda each: healed(each, one), 1000.0, most, "cpu")
        Search(space, found, [], 0, AXES).structured()
        return [trial.name for trial in found.trials()]

    for most in (12, 25, 40):
        pieces = ran("pieces", most)
    assert pieces == ran("whole", 40)


def test_training_begins_where_pruning_alone_ended_and_not_at_later_trials(tmp_path: Path) -> None:
    one, space = judge(LIMIT), derive(Space(prune_by=("macs",)), TRAINED)

    def trained(folder: str, *known: Trial) -> list[str]:
        found = Bench(Journal(tmp_path / folder, "s"), one, "s", lambda each: healed(each, one), 1000.0, 30, "cpu")
        for index, each in enumerate(known):
            found.store.add(each.model_copy(update={"key": f"known {index}"}))
        Search(space, found, [], 0).structured()
        return [trial.name for trial in found.trials() if trial.origin == "bisection" and trial.point["distill"]]

    later = space.candidate(space.point(keep=0.74, precision="int8", round_to=16), "refinement")
    assert one.feasible(measured(later, one))
    assert trained("known", measured(later, one)) == trained("alone") != []


def test_trials_of_another_space_are_judged_and_nothing_more(tmp_path: Path) -> None:
    """The search goes on in its own: their best has no neighbours in it."""
    one = judge(LIMIT)
    for keep, most in (("90 %", 30), ("95 %", 80)):
        space = derive(Space.model_validate({"keep": ("100 %", keep), "prune_by": ("macs", "params")}), CNN)
        search = Search(space, bench(tmp_path, one, most), [], 0, AXES)
        search.structured()
    kept = [trial.point["keep"] for trial in search.bench.trials()]
    assert not {0.9} & set(kept[30:])
    assert {0.95} <= set(kept[30:])
    best = one.best(search.bench.trials())
    assert best is not None
    assert best.point["keep"] == 0.9


def test_what_cannot_be_trained_in_time_is_left_out_and_tried_with_more(tmp_path: Path) -> None:
    one = judge()
    space = derive(Space.model_validate({"keep": ("50 %", "40 %"), "prune_by": ("macs",)}), TRAINED)
    plain, trained = (space.candidate(space.point(keep=0.5, distill=epochs), "") for epochs in (None, 5))
    begun: list[str] = []

    def bench(seconds: float) -> Bench:
        def measure(candidate: Candidate) -> Trial:
            begun.append(candidate.name)
            made = measured(candidate, one)
            late = candidate is trained and time.monotonic() + 60 > found.end
            return made.model_copy(update={"reached": "failed", "reason": "late", "begun": False}) if late else made

        found = Bench(Journal(tmp_path, "s"), one, "s", measure, seconds, None, "cpu")
        return found

    short = bench(50)
    first, second = short.run([trained, plain])
    assert (first.reason, second.reached) == ("late", "latency"), "the others go on"
    assert short.run([trained])[0].reason == "late"
    assert begun == [trained.name, plain.name], "asked for again it is not tried again"
    assert {trial.key for trial in short.trials()} == {trial.key for trial in (first, second)}
    assert [trial.key for trial in short.store.trials()] == [second.key], "with more time it may be begun"
    assert bench(100).run([trained])[0].reached == "latency"


def test_trainings_say_nothing_of_what_others_take(tmp_path: Path) -> None:
    """A minute each, twenty seconds left: what trains is begun and says itself that it does not fit."""
    one = judge()
    space = derive(Space.model_validate({"keep": ("50 %", "40 %"), "prune_by": ("macs",)}), TRAINED)
    bench = Bench(Journal(tmp_path, "s"), one, "s", lambda candidate: healed(candidate, one), 20.0, None, "cpu")
    first, second, third = (
        space.candidate(space.point(keep=keep, distill=epochs), "")
        for keep, epochs in ((0.5, 5), (0.4, 5), (0.4, None))
    )
    assert [trial.reached for trial in bench.run([first, second, third])] == ["latency"] * 3
    assert [trial.seconds for trial in bench.trials()] == [60.0, 60.0, 1.0]
