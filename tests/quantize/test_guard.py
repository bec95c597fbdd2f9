"""Sensitivity and the accuracy guard, with scores that are known beforehand."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from lepton_cli.model import io
from lepton_cli.probe.distances import Closeness
from lepton_cli.quantize import choose, details, guard
from lepton_cli.quantize.details import Guard, GuardTrial
from lepton_cli.quantize.effort import EFFORTS
from lepton_cli.quantize.guard import GroupSensitivity
from tests.quantize.builders import Graph, Told, context, rows


def chain(count: int) -> tuple[ir.Model, choose.Choice, list[str]]:
    """`count` products in a row, all chosen, and their names in graph order."""
    graph = Graph()
    x = graph.take("x", ["b", 16])
    for _ in range(count):
        x = graph.linear(x, 16, 16)
    model = graph.model(x)
    choice = choose.candidates(model, {node.name or "" for node in model.graph})
    return model, choice, [node.name or "" for node in model.graph]


class Written:
    """Stands for the writer: a copy of the model that knows which choice it was made of."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.choices: dict[int, choose.Choice] = {}
        self.kept: list[ir.Model] = []

    def __call__(self, choice: choose.Choice) -> ir.Model:
        made = io.clone(self.model)
        self.kept.append(made)
        self.choices[id(made)] = choice
        return made

    def score(self, costs: dict[str, float], wide: float = 1.0) -> Callable[[ir.Model], float]:
        """1 less the cost of every anchor in int8; `wide` is the share of it that 16 bits cost."""

        def score(model: ir.Model) -> float:
            choice = self.choices.get(id(model))
            if choice is None:
                return 1.0
            return 1.0 - sum(costs[name] * (wide if name in choice.wide else 1) for name in choice.anchors)

        return score


def ranked(names: Iterable[str], step_db: float = 1.0) -> Callable[[], list[GroupSensitivity]]:
    return lambda: [GroupSensitivity((name,), "Gemm", i * step_db) for i, name in enumerate(names)]


def held(
    costs: list[float], max_drop: float, *, wide: float = 1.0, **options: object
) -> tuple[set[int], set[int], Guard, choose.Choice]:
    """Numbers of the layers left in float and in 16 bits; layers are ranked by their costs."""
    model, choice, names = chain(len(costs))
    written = Written(model)
    order = sorted(names, key=lambda name: -costs[names.index(name)])
    score = written.score(dict(zip(names, costs, strict=True)), wide)
    found, made, report = guard.hold(model, choice, written, ranked(order), score, max_drop, **options)  # type: ignore[arg-type]
    if found.anchors:
        assert written.choices[id(made)] == found
    else:
        assert made is model
    return {names.index(n) for n in choice.anchors - found.anchors}, {names.index(n) for n in found.wide}, report, found


def counts(report: Guard) -> list[int | None]:
    return [trial.in_float for trial in report.trials]


def test_nothing_is_returned_where_the_limit_holds_at_once() -> None:
    dropped, _, report, found = held([0.125, 0.25, 0.0625], 0.4375)
    assert dropped == set()
    assert found.kept == ()
    assert report.holds is True
    assert report.max_drop == 0.4375
    assert report.reference == 1.0
    assert report.trials == (GuardTrial(in_float=0, drop=0.4375),)


def test_a_drop_of_just_the_limit_holds_and_more_does_not() -> None:
    assert held([0.25, 0.0], 0.25)[0] == set()
    assert held([0.25, 0.0], 0.2499)[0] == {0}


def test_the_worst_goes_first_and_alone_where_that_is_enough() -> None:
    dropped, _, report, _ = held([0.01, 0.3, 0.02, 0.01], 0.05)
    assert dropped == {1}
    # With all in int8 the limit does not hold; without the worst it does.
    assert counts(report) == [0, 1]


def test_groups_are_doubled_and_the_mildest_are_tried_again() -> None:
    # 1, 2 and 4 layers are tried, then 3 are found to be enough, and neither of the two worst may come back.
    costs = [0.2, 0.3, 0.4, 0.1, 0.0, 0.0]
    dropped, _, report, found = held(costs, 0.15)
    assert dropped == {0, 1, 2}
    assert counts(report) == [0, 1, 2, 4, 3, 2, 2]
    assert report.holds is True
    assert [trial.drop for trial in report.trials] == [1.0, 0.6, 0.3, 0.0, 0.1, 0.4, 0.5]
    assert {decision.node for decision in found.kept} == {f"Gemm_{i}" for i in dropped}
    assert {decision.reason for decision in found.kept} == {"returned to float by accuracy_guard"}


@pytest.mark.parametrize(
    ("guess", "tried"),
    [
        (1, [1, 2, 4, 3]),
        (2, [2, 3]),
        (3, [3, 2]),
        (5, [5, 4, 2, 3]),
        (8, [8, 7, 5, 2, 3]),
        (0, [1, 2, 4, 3]),
        (99, [8, 7, 5, 2, 3]),
    ],
)
def test_the_least_number_is_found_from_any_guess(guess: int, tried: list[int]) -> None:
    """Eight layers of which three must go: steps of 1, 2, 4 from the guess, up or down, then halves."""
    heard: list[tuple[int, float]] = []

    def told(ranking: Sequence[GroupSensitivity], drop: float) -> int:
        heard.append((len(ranking), drop))
        return guess

    costs = [0.25, 0.25, 0.25, *[0.0] * 5]
    dropped, _, report, _ = held(costs, 0.125, guess=told, effort=EFFORTS["quick"])
    assert dropped == {0, 1, 2}
    assert counts(report) == [0, *tried]
    assert heard == [(8, 0.75)]


def test_from_above_the_guess_all_may_go_back() -> None:
    dropped, _, report, found = held([0.25] * 6, 0.125, guess=lambda ranking, drop: 4, effort=EFFORTS["quick"])
    assert dropped == set(range(6))
    assert not found.anchors
    assert counts(report) == [0, 4, 5, 6]


@pytest.mark.parametrize(
    ("alone", "drop", "count"),
    [
        # Noise of 8, 4, 2 and 1 parts: without the first 7 of 15 are left, 3.3 dB less; without the second too 3, 7 dB.
        ([-9.031, -6.021, -3.010, 0.0], 3.3, 1),
        ([-9.031, -6.021, -3.010, 0.0], 3.4, 2),
        ([-9.031, -6.021, -3.010, 0.0], 6.98, 2),
        ([-9.031, -6.021, -3.010, 0.0], 7.0, 3),
        ([-9.031, -6.021, -3.010, 0.0], 11.7, 3),
        ([-9.031, -6.021, -3.010, 0.0], 11.8, 4),
        ([-math.inf, -math.inf, 30.0, 40.0], 5.0, 2),  # what is not finite alone goes first
        ([-3100.0, -2900.0, 30.0, 40.0], 3120.0, 2),  # a constant output: 10 to the 310th is no float
        ([10.0, 20.0, 30.0, 40.0], math.inf, 0),  # nothing is known
    ],
)
def test_noise_adds_up(alone: list[float], drop: float, count: int) -> None:
    ranking = [GroupSensitivity((str(i),), "Conv", sqnr_db) for i, sqnr_db in enumerate(alone)]
    assert guard._as_noise(ranking, drop) == count


def test_none_more_than_needed_goes_back() -> None:
    # Only one layer costs, but it is ranked third: the two mild ones before it come back.
    model, choice, names = chain(5)
    written = Written(model)
    score = written.score(dict(zip(names, [0, 0, 0.5, 0, 0], strict=True)))
    found, made, report = guard.hold(model, choice, written, ranked(names), score, 0.1, reason="so")
    assert choice.anchors - found.anchors == {names[2]}
    assert [(decision.node, decision.reason) for decision in found.kept] == [(names[2], "so")]
    assert written.choices[id(made)] == found
    assert counts(report) == [0, 1, 2, 4, 3, 2, 1]


def test_all_layers_may_go_back_and_then_it_is_the_model_itself() -> None:
    dropped, _, report, found = held([0.2, 0.2, 0.2], 0.0)
    assert dropped == {0, 1, 2}
    assert found.nodes == frozenset()
    assert counts(report) == [0, 1, 2, 3, 2, 2]
    assert report.holds is True


@pytest.mark.parametrize("needed", range(17))
def test_the_least_number_that_holds_is_found_by_halving(needed: int) -> None:
    # Every layer costs the same, so that `needed` of the 16 have to go and any of them will do.
    dropped, _, report, _ = held([0.0625] * 16, 1.0 - 0.0625 * needed)
    assert dropped == set(range(needed))
    assert report.holds is True
    tried = [count for count in counts(report) if count is not None]
    first = tried.index(needed)
    assert first <= 2 * needed.bit_length()
    assert set(tried[tried.index(needed) + 1 :]) <= set(range(needed))


def test_a_score_that_is_no_number_ends_with_the_model_itself() -> None:
    model, choice, names = chain(2)
    written = Written(model)
    found, made, report = guard.hold(
        model, choice, written, ranked(names), lambda one: 0.0 if one is model else -math.inf, 0.5
    )
    assert made is model
    assert not found.anchors
    assert [trial.drop for trial in report.trials][:2] == [None, None]


@pytest.mark.parametrize(("effort", "tries"), [("quick", 0), ("normal", 8), ("thorough", 19)])
def test_trials_for_giving_back_are_limited(effort: Any, tries: int) -> None:
    costs = [0.1 - 0.001 * i for i in range(20)]
    dropped, _, report, _ = held(costs, 0.0, effort=EFFORTS[effort])
    assert dropped == set(range(20))
    # 7 trials on the way to all, 2 between, then all but one, the mildest first.
    assert counts(report) == [0, 1, 2, 4, 8, 16, 20, 18, 19] + [19] * tries


def test_wide_activations_are_tried_before_float() -> None:
    dropped, wide, report, found = held([0.01, 0.3, 0.02, 0.2], 0.1, wide=0.1, wide_first=True)
    assert dropped == set()
    assert wide == {1, 3}
    assert found.kept == ()
    # 1 - (0.01 + 0.02 + 0.03 + 0.2), then both, then the milder alone.
    assert [trial.model_dump(exclude_none=True) for trial in report.trials] == [
        {"float": 0, "drop": 0.53},
        {"int16": 1, "drop": 0.26},
        {"float": 1, "drop": 0.23},
        {"int16": 2, "drop": 0.08},
        {"int16": 1, "drop": 0.35},
    ]


def test_float_follows_where_wide_activations_do_not_hold() -> None:
    dropped, wide, report, _ = held([0.01, 0.3, 0.02, 0.2], 0.1, wide=0.9, wide_first=True)
    assert (dropped, wide) == ({1, 3}, set())
    wide_ones = [trial.int16 is not None for trial in report.trials]
    assert wide_ones == [False, True, False, True, False, False]


def test_groups_of_neighbours_go_back_together() -> None:
    model, choice, names = chain(4)
    written = Written(model)
    score = written.score(dict(zip(names, [0.0, 0.0, 0.2, 0.0], strict=True)))
    ranking = [GroupSensitivity((names[2], names[3]), "Gemm", 1.0), GroupSensitivity((names[0], names[1]), "Gemm", 2.0)]
    found, _, report = guard.hold(model, choice, written, lambda: ranking, score, 0.1)
    assert choice.anchors - found.anchors == {names[2], names[3]}
    assert counts(report) == [0, 1]


class Ratio:
    """Stands for the fidelity: the cost of the only layer written is its ratio."""

    def __init__(self, written: Written, costs: dict[str, float]) -> None:
        self.written, self.costs = written, costs

    def sqnr(self, model: ir.Model) -> float:
        return sum(self.costs[name] for name in self.written.choices[id(model)].anchors)


def ranking(costs: list[float], tmp_path: Path, groups: int = 48) -> tuple[list[GroupSensitivity], list[str], Told]:
    model, choice, names = chain(len(costs))
    written, told = Written(model), Told()
    ratio = Ratio(written, dict(zip(names, costs, strict=True)))
    effort = dataclasses.replace(EFFORTS["quick"], groups=groups)
    here = context(rows(), tmp_path, progress=told)
    found = guard.sensitivity(model, choice, written, ratio, here, effort)  # type: ignore[arg-type]
    return found, names, told


def test_sensitivity_quantizes_every_layer_alone_and_names_the_worst_first(tmp_path: Path) -> None:
    found, names, told = ranking([30.0, 10.0, 40.0, 20.0], tmp_path)
    expected = [(names[i], value) for i, value in ((1, 10.0), (3, 20.0), (0, 30.0), (2, 40.0))]
    assert [(*one.nodes, one.sqnr_db) for one in found] == expected
    assert {one.op for one in found} == {"Gemm"}
    assert told.stages == [("sensitivity", 4)]
    assert told.counts == [1] * 4


@pytest.mark.parametrize(("most", "sizes"), [(7, [1] * 7), (6, [2, 2, 2, 1]), (4, [2, 2, 2, 1]), (3, [3, 3, 1])])
def test_many_layers_are_measured_in_groups_of_neighbours(most: int, sizes: list[int], tmp_path: Path) -> None:
    found, names, _ = ranking([float(2**i) for i in range(7)], tmp_path, most)
    assert [len(one.nodes) for one in found] == sizes
    assert [name for one in found for name in one.nodes] == names
    assert [one.sqnr_db for one in found] == [sum(2.0 ** names.index(name) for name in one.nodes) for one in found]


def test_a_group_is_named_after_the_operator_of_its_first_layer(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 16]), 16, 16, gemm=False)
    model = graph.model(graph.linear(x, 16, 16))
    choice = choose.candidates(model, {node.name or "" for node in model.graph})
    written = Written(model)
    ratio = Ratio(written, dict.fromkeys(choice.anchors, 1.0))
    effort = dataclasses.replace(EFFORTS["quick"], groups=1)
    (found,) = guard.sensitivity(model, choice, written, ratio, context(rows(), tmp_path), effort)  # type: ignore[arg-type]
    assert (len(found.nodes), found.op) == (2, "MatMul")


def test_drops_are_reported_to_five_digits() -> None:
    report = held([0.123456789, 0.0], 1.0)[2]
    assert report.trials == (GuardTrial(in_float=0, drop=0.12346),)
    model, choice, names = chain(1)
    report = guard.hold(model, choice, Written(model), ranked(names), lambda made: 0.123456789, 0.0)[2]
    assert report.reference == 0.12346


def test_the_table_joins_neighbours_and_rounds() -> None:
    one = GroupSensitivity(("a", "b"), "Conv", 12.3456)
    alone = dataclasses.replace(one, nodes=("c",), sqnr_db=-1.0)
    rates = {"a": (1.0, 2.0), "c": (30.5, None)}
    assert guard.table([one, alone, dataclasses.replace(alone, nodes=("d",))], rates) == (
        details.Sensitivity(node="a, b", op="Conv", sqnr_db=12.35),
        details.Sensitivity(node="c", op="Conv", sqnr_db=-1.0, int8_gmacs=30.5),
        details.Sensitivity(node="d", op="Conv", sqnr_db=-1.0),
    )


class Close:
    """Stands for the fidelity: so many dB of a model on the first samples, and what all of them assure of others.

    First samples hope for 3 dB more than they show, and assure 3 dB less.
    """

    def __init__(self, written: Written, few: list[float], assured: list[float], samples: int) -> None:
        self.written, self.few, self.assured, self.samples = written, few, assured, samples
        self.asked: list[tuple[int, int]] = []

    def closeness(self, model: ir.Model, few: int, wanted_db: float) -> Closeness:
        assert (few, wanted_db) == (guard.NORMAL.few, guard.FLOOR_DB) == (8, 20)
        left = len(self.written.choices[id(model)].anchors)
        if few < self.samples and self.few[left] + 3 < wanted_db:
            self.asked.append((left, few))
            return Closeness(self.few[left], self.few[left] - 3, self.few[left] + 3)
        self.asked.append((left, self.samples))
        return Closeness(99.0, self.assured[left])


@pytest.mark.parametrize(
    ("few", "assured", "samples", "kept", "asked"),
    [
        # By how many are in int8, none first: with 4 and with 3, few samples settle it.
        ([99, 30, 17, 16.9, 16.9], [99, 30, 20, 30, 30], 64, 2, [(4, 8), (3, 8), (2, 64), (3, 8)]),
        # 4 fail on few samples, 3 and 2 on all; none at all needs no score, and 1 is between.
        (
            [99, 30, 17, 17, 13],
            [99, 30, 19.9, 19.9, 30],
            64,
            1,
            [(4, 8), (3, 64), (2, 64), (1, 64), (2, 64), (2, 64)],
        ),
        ([0, 0, 0, 0, 0], [99, 30, 20, 19.9, 30], 8, 4, [(4, 8)]),  # few are all: they say what there is to say
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_trials_that_the_first_samples_settle_are_not_run_on_all(
    few: list[float], assured: list[float], samples: int, kept: int, asked: list[tuple[int, int]], known: bool
) -> None:
    model, choice, names = chain(4)
    written = Written(model)
    fidelity = Close(written, few, assured, samples)
    made = written(choice)
    first = (made, fidelity.closeness(made, 8, 20.0)) if known else None
    heard: list[str] = []
    found, last, report = guard.hold_fidelity(
        model,
        choice,
        written,
        lambda: heard.append("") or ranked(names, 40.0)(),  # nearly all noise is the first one's: it is guessed
        fidelity,
        "int8",
        first=first,  # type: ignore[arg-type, func-returns-value]
    )
    assert len(found.anchors) == kept
    assert written.choices[id(last)] == found
    assert report.holds
    assert report.reference == 20
    assert fidelity.asked == asked  # what is known beforehand is asked about no second time
    assert len(heard) == (kept < 4)  # the ranking costs a pass for every layer: only where it is needed


def test_fidelity_is_looked_for_from_where_noise_adds_up_to() -> None:
    """Alone they have 0, 1, 2 and 3 dB, all together 6.1 too few: without the three worst 0.5 of 2.9 parts are left."""
    model, choice, names = chain(4)
    written = Written(model)
    fidelity = Close(written, [99, 30, 30, 16.9, 16.9], [99, 30, 30, 13.9, 13.9], 64)
    guard.hold_fidelity(model, choice, written, ranked(names), fidelity, "int8")  # type: ignore[arg-type]
    assert [left for left, _ in fidelity.asked[:3]] == [4, 1, 2]


@pytest.mark.parametrize(
    ("came", "said"),
    [
        (Closeness(19.9, 19.0), "comes out at 19.9 dB"),
        (Closeness(-math.inf, -math.inf), "is not usable"),
        (Closeness(25.7, 20.1), "25.7 dB on these, and of others no more than 20.1 dB is assured"),
        (Closeness(40.0, 25.9), "no more than 25.9 dB"),
        (Closeness(25.7, 22.8), ""),
        (Closeness(40.0, 26.1), ""),
        (Closeness(40.0, -math.inf), ""),
    ],
)
def test_outputs_far_off_or_known_of_these_samples_only_are_spoken_of(
    came: Closeness, said: str, tmp_path: Path
) -> None:
    found = guard.far(came, context(None, tmp_path))
    assert all(said in one for one in found)
    assert len(found) == bool(said)


@pytest.mark.parametrize(("returned", "spoken"), [(0, False), (2, False), (3, True), (20, True)])
def test_layers_that_went_back_are_spoken_of(returned: int, spoken: bool) -> None:
    before, after = (choose.Choice(frozenset(map(str, range(count))), frozenset(), ()) for count in (20, 20 - returned))
    found = guard.many_returned(before, after, Closeness(12.3, 11.0), "layers", "int8")
    assert bool(found) == spoken
    assert all(f"came out at 12.3 dB: {returned} of 20 layers are float again" in one for one in found)
