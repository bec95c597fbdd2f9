"""The latency asked for is the latency measured, whatever the tables say; no test here looks at a clock's result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli import cache
from lepton_cli.coupling import branches
from lepton_cli.graph import cost as node_cost
from lepton_cli.graph import shapes
from lepton_cli.machine import Machine, machine
from lepton_cli.model import io
from lepton_cli.prune import allocate, analysis, channels, depth, latency, sensitivity, targets, times
from lepton_cli.prune.allocate import Table
from lepton_cli.prune.cost import Widths
from lepton_cli.prune.hessian import Ranking
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.runtime import Values
from tests.coupling.test_shortcuts import network
from tests.prune.context import context, images, redundant


class Linear:
    """Time as a sum over the columns."""

    def __init__(self, *weights: float) -> None:
        self.weights = np.array(weights)

    def __call__(self, widths: Widths) -> float:
        return float(self.weights @ widths)

    def table(self, widths: Widths, group: int, levels: Widths) -> np.ndarray:
        return self(widths) + self.weights[group] * (levels - widths[group])


def tables() -> list[Table]:
    levels = np.array([10, 8, 6, 4, 2, 0])
    return [Table(levels, scale * (10.0 - levels) ** 2) for scale in (1.0, 2.0, 5.0)]


@pytest.mark.parametrize("off", [0.8, 1.0, 1.1])
def test_wrong_tables_are_corrected_by_whole_model_times(off: float) -> None:
    cost, offered = Linear(0.03, 0.03, 0.04), tables()
    asked: list[Widths] = []

    def measure(widths: Widths) -> float:
        asked.append(widths)
        return 1 - off * (1 - cost(widths))

    found = latency.search(0.75, offered, cost, [], "global", measure)
    assert found.widths is not None
    assert found.ratio <= 0.75 * (1 + latency.CLOSE)
    assert found.ratio == pytest.approx(0.75, abs=0.08)
    assert len(asked) <= latency.TRIES


def test_other_limits_hold_beside_the_time() -> None:
    cost, offered = Linear(0.03, 0.03, 0.04), tables()
    size = Linear(0.0, 8.0, 2.0)
    found = latency.search(0.8, offered, cost, [(size, 60.0)], "global", cost)
    assert found.widths is not None
    assert cost(found.widths) <= 0.8 * (1 + latency.CLOSE)
    assert size(found.widths) <= 60
    assert size(allocate.choose(offered, allocate.Limits([(cost, 0.8)]), "global")) > 60


def test_what_cannot_be_reached_says_how_far_it_goes() -> None:
    cost, offered = Linear(0.03, 0.03, 0.04), tables()
    found = latency.search(0.1, offered, cost, [], "global", lambda widths: 0.5 + 0.5 * cost(widths))
    assert found.widths is None
    assert found.ratio == pytest.approx(0.5)


def test_narrower_can_be_slower() -> None:
    class Blocks(Linear):
        def table(self, widths: Widths, group: int, levels: Widths) -> np.ndarray:
            return np.array([self(np.where(np.arange(3) == group, level, widths)) for level in levels])

        def __call__(self, widths: Widths) -> float:
            return float(self.weights @ np.where(widths % 4 == 0, widths, widths + 3))

    cost, offered = Blocks(0.03, 0.03, 0.04), tables()
    assert allocate.fastest(offered, cost).tolist() == [0, 0, 0]
    widths = allocate.best(offered, cost, 0.8)
    assert cost(widths) <= 0.8
    assert not (widths == 2).any()


def params(**options: object) -> PruneChannels:
    return PruneChannels.model_validate({"step": "prune.channels", "target": {"latency": "100 %"}, **options})


def test_a_stored_choice_gives_the_same_bytes_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = redundant(), images(64)
    cached = context(model, tmp_path, data, cache=tmp_path)
    found = latency._decide

    def decide(plan: object, *rest: object) -> dict[str, object]:
        stored = found(plan, *rest)  # type: ignore[arg-type]
        branch = latency.droppable(plan, params(), cached)[0]  # type: ignore[arg-type]
        return {**stored, "dropped": [branch.add]}

    monkeypatch.setattr(latency, "_decide", decide)
    first = channels.prune(model, params(), cached)
    monkeypatch.delattr(latency, "_decide")
    second = channels.prune(model, params(), cached)
    assert io.to_bytes(first.model) == io.to_bytes(second.model)
    (branch,) = first.details.branches
    rows = {row.node: row for row in first.details.widths}
    assert all(rows[node].after == 0 for node in branch.nodes if node in rows)
    assert {d.action for d in first.decisions if d.node in branch.nodes} == {"dropped"}
    assert "1 branch" in first.summary


def test_plan_says_how_many_branches_could_go(tmp_path: Path) -> None:
    model = redundant()
    outcome = channels.prune(model, params(), context(model, tmp_path, images(4), dry=True))
    assert "2 residual branches can go as a whole" in outcome.summary


def test_branches_stay_where_the_options_say_so(tmp_path: Path) -> None:
    found = analysis.analysed(redundant(), params(), {"x": (2, 3, 8, 8)})
    data = context(redundant(), tmp_path, images(4))
    both = latency.droppable(found, params(), data)
    assert len(both) == 2
    assert not latency.droppable(found, params(drop_branches=False), data)
    assert not latency.droppable(found, params(scope="layer"), data)
    assert not latency.droppable(found, params(recover=[]), data)
    assert not latency.droppable(found, params(), context(redundant(), tmp_path, check=images(4)))
    assert latency.droppable(found, params(exclude=[both[0].nodes[-1]]), data) == both[1:]


def test_shortcuts_are_rewritten_for_latency_only() -> None:
    model, shape = network(), {"x": (2, 3, 8, 8)}
    assert analysis.analysed(model, params(), shape).rewritten == ("Pad_4",)
    assert not analysis.analysed(model, params(exclude=["Pad*"]), shape).rewritten
    assert not analysis.analysed(model, PruneChannels(step="prune.channels"), shape).rewritten


def test_what_is_timed_decides_what_is_remembered(tmp_path: Path) -> None:
    model, data, other = redundant(), images(8), images(8)
    other.fingerprint = "1"
    first, second = (
        latency._timed_on(params(), context(model, tmp_path, data, check=check)) for check in (data, other)
    )
    assert first != second


def asked_for(ratios: dict[int, float], target: float = 0.5, others: latency.Parts = ()) -> tuple[latency.Met, list]:
    """One group of ten channels, time a tenth each; the measured ratios by width, and the widths asked for."""
    table, asked = Table(np.arange(10, 0, -1), (10.0 - np.arange(10, 0, -1)) ** 2), []

    def measure(widths: Widths) -> float:
        asked.append(int(widths[0]))
        return ratios[int(widths[0])]

    return latency.search(target, [table], Linear(0.1), others, "global", measure), asked


def test_the_first_proposal_is_taken_where_it_is_close_enough() -> None:
    for ratio in (0.509, 0.5, 0.491):
        found, asked = asked_for({5: ratio})
        assert asked == [5]
        assert found.widths is not None
        assert (found.widths.tolist(), found.ratio, found.predicted) == ([5], ratio, 0.5)


def test_a_slow_proposal_is_followed_by_one_as_much_narrower_as_it_was_slower() -> None:
    """0.7 where 0.5 was predicted: 0.36 is asked for next, which three channels hold and four do not."""
    found, asked = asked_for({5: 0.7, 3: 0.5})
    assert asked == [5, 3]
    assert found.widths is not None
    assert found.widths.tolist() == [3]
    assert found.predicted == pytest.approx(0.3)


def test_a_fast_proposal_is_followed_by_a_wider_one_and_the_widest_that_holds_is_taken() -> None:
    """0.3 for 0.5: 0.83 is asked for, eight channels are too slow; 0.66: six are it, though not close."""
    found, asked = asked_for({5: 0.3, 8: 0.6, 6: 0.43, 7: 0.52})
    assert asked == [5, 8, 6, 7]
    assert found.widths is not None
    assert (found.widths.tolist(), found.ratio) == ([6], 0.43)


def test_a_ratio_beyond_the_tolerance_is_not_taken() -> None:
    found, asked = asked_for({5: 0.511, 4: 0.4})
    assert asked == [5, 4]
    assert found.ratio == 0.4


def test_widths_proposed_again_are_not_timed_again() -> None:
    """Three channels are asked for at any budget from 0.3; steps of 1.5 % of the target lead to the fourth."""
    found, asked = asked_for({5: 0.7, 3: 0.45, 4: 0.5})
    assert asked[:2] == [5, 3]
    assert len(asked) == len(set(asked))
    assert found.widths is not None
    assert found.ratio <= 0.5


def test_where_even_the_narrowest_is_too_slow_nothing_more_is_tried() -> None:
    found, asked = asked_for(dict.fromkeys(range(1, 11), 0.6), 0.05)
    assert asked == [1]
    assert (found.widths, found.dropped, found.ratio) == (None, (), 0.6)


def test_widths_that_break_another_limit_are_never_taken() -> None:
    found, asked = asked_for(dict.fromkeys(range(1, 11), 0.5), 0.5, [(Linear(1.0), 0.5)])
    assert asked == [1]
    assert found.widths is None
    found, asked = asked_for(dict.fromkeys(range(1, 11), 0.5), 0.5, [(Linear(1.0), 3.0)])
    assert found.widths is not None
    assert found.widths.tolist() == [3]


def test_time_that_only_wider_levels_save_is_found() -> None:
    """The narrowest is slow; the fastest is asked for where the target seems out of reach."""
    table = Table(np.array([4, 3, 2, 1]), np.array([0.0, 1.0, 2.0, 3.0]))

    class Odd(Linear):
        def __call__(self, widths: Widths) -> float:
            return {4: 1.0, 3: 0.7, 2: 0.6, 1: 0.9}[int(widths[0])]

        def table(self, widths: Widths, group: int, levels: Widths) -> np.ndarray:
            return np.array([self(np.array([level])) for level in levels])

    found = latency.search(0.5, [table], Odd(), [], "global", lambda widths: 0.5 if widths[0] == 2 else 1.0)
    assert found.widths is not None
    assert found.widths.tolist() == [2]


@pytest.mark.parametrize(("lost", "drops"), [(0.3, True), (9.0, False)])
def test_a_branch_goes_where_that_costs_least(lost: float, drops: bool) -> None:
    """Half of the time must go: the branch, or half of its channels, which loses a half."""
    levels = np.arange(10, 0, -1)
    tables = [
        Table(np.append(levels, 0), np.append(((10.0 - levels) / 5) ** 2 / 2, lost)),
        Table(levels, 10.0 - levels),
    ]
    cost = Linear(0.08, 0.02)
    found = latency.search(0.6, tables, cost, [], "global", cost)
    assert found.widths is not None
    assert (found.widths[0] == 0) == drops
    assert cost(found.widths) <= 0.6 * (1 + latency.CLOSE)


def test_branches_are_level_zero_of_their_column(tmp_path: Path) -> None:
    found = analysis.analysed(redundant(), params(), {"x": (2, 3, 8, 8)})
    both = branches.find(found.model, found.coupling.facts)
    columns = depth.columns(dataclasses.replace(found, groups=found.groups[:2]), both)
    tables = [Table(np.array([8, 4]), np.array([0.0, 1.0])), Table(np.array([12, 6]), np.array([0.0, 2.0]))]
    offered = latency._with_branches(columns, tables, [0.25, 0.75])
    losses = dict(zip(columns.branches, [0.25, 0.75], strict=True))
    assert sorted(losses) == [1, 2]
    assert [(table.levels.tolist(), table.loss.tolist()) for table in offered] == [
        ([8, 4], [0.0, 1.0]),
        ([12, 6, 0], [0.0, 2.0, losses[1]]),
        ([1, 0], [0.0, losses[2]]),
    ]


class Counted:
    """Takes multiply-accumulates, of the analysed model's shares, for time."""

    made: list[Counted] = []
    once, setup = 0.01, 0.0

    def __init__(self, reference: ir.Model, feeds: Values, *settings: object) -> None:
        self.whole = self.count(reference)
        self.feeds, self.settings, self.last = feeds, settings, None
        self.seconds: list[float] = []
        Counted.made.append(self)

    def count(self, model: ir.Model) -> float:
        return float(sum(node_cost.macs(model, shapes.concrete(model, {"x": (1, 3, 8, 8)})).values()))

    def ratio(self, model: ir.Model) -> float:
        self.last = model
        return self.count(model) / self.whole

    def ratios(
        self,
        candidates: Sequence[Callable[[], ir.Model]],
        seconds: float,
        done: Callable[[], object] = lambda: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        self.seconds.append(seconds)
        return np.array([self.ratio(candidate()) for candidate in candidates]), np.zeros(len(candidates))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    monkeypatch.setattr(latency, "Stopwatch", Counted)
    monkeypatch.setattr(Counted, "made", [])
    return Counted


def chosen(
    folder: Path, losses: list[float], monkeypatch: pytest.MonkeyPatch, target: str = "60 %", **given: Any
) -> tuple[latency.Met, analysis.Analysis]:
    monkeypatch.setattr(latency, "_losses", lambda *_: losses)
    wanted = params(target={"latency": target})
    found = analysis.analysed(redundant(), wanted, {"x": (2, 3, 8, 8)})
    rankings = [Ranking(np.arange(group.channels), np.arange(1.0, group.channels)) for group in found.groups]
    tables = [
        Table(levels, 0.1 * (levels[0] - levels) ** 2.0)
        for levels in (np.arange(group.channels, 0, -3) for group in found.groups)
    ]
    given_context = context(redundant(), folder, images(16), cache=folder)
    choice = latency.choose(
        found, wanted, given.get("others", []), given_context, rankings, tables, given.get("quantize")
    )
    return choice, found


def test_branches_without_loss_are_dropped(
    tmp_path: Path, counted: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice, found = chosen(tmp_path, [0.0, 0.0], monkeypatch)
    assert choice.dropped
    assert choice.widths is not None
    (watch,) = counted.made
    assert choice.ratio == pytest.approx(watch.ratio(watch.last))
    assert choice.ratio <= 0.6 * (1 + latency.CLOSE)
    inside = {node for branch in choice.dropped for node in branch.nodes}
    for group, width in zip(found.groups, choice.widths, strict=True):
        if group.name in inside:
            assert width == group.channels
    assert {node.name for node in watch.last.graph}.isdisjoint(inside)


def test_branches_that_are_needed_stay(tmp_path: Path, counted: type[Counted], monkeypatch: pytest.MonkeyPatch) -> None:
    choice, found = chosen(tmp_path, [1e9, 1e9], monkeypatch)
    assert not choice.dropped
    assert choice.widths is not None
    assert (choice.widths < [group.channels for group in found.groups]).any()
    assert choice.ratio <= 0.6 * (1 + latency.CLOSE)
    assert choice.predicted == pytest.approx(choice.ratio, rel=0.05)


def test_what_was_decided_is_not_decided_again(
    tmp_path: Path, counted: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = chosen(tmp_path, [0.0, 1e9], monkeypatch)
    assert len(first.dropped) == 1
    again, _ = chosen(tmp_path, [1e9, 1e9], monkeypatch)
    assert len(counted.made) == 1
    assert again.widths is not None
    assert first.widths is not None
    assert again.widths.tolist() == first.widths.tolist()
    assert (again.dropped, again.ratio, again.predicted) == (first.dropped, first.ratio, first.predicted)
    chosen(tmp_path, [0.0, 1e9], monkeypatch, "70 %")
    assert len(counted.made) == 2
    assert len(list(tmp_path.glob("times-*.npz"))) == 1, "no target changes the layers' times"
    unreachable, _ = chosen(tmp_path, [1e9, 1e9], monkeypatch, "0.1 %")
    assert unreachable.widths is None
    assert not unreachable.dropped
    assert 0.001 < unreachable.ratio < 0.1


def test_layers_are_timed_once_for_all_levels_and_longer_where_time_is_a_target(
    tmp_path: Path, counted: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = analysis.analysed(redundant(), params(), {"x": (2, 3, 8, 8)})
    here = context(redundant(), tmp_path, images(16), cache=tmp_path)
    fast, small = params(target={"latency": "60 %"}), params(target={"macs": "60 %"}, round_to=3)
    columns = depth.columns(found, branches.find(found.model, found.coupling.facts))

    def table(of: depth.Columns, options: PruneChannels, once: float = 0.01) -> tuple[list[float], times.Times]:
        watch = Counted(found.model, {})
        watch.once = once
        seconds = times.SECONDS * (latency.ASIDE if options.target.latency is None else 1)
        cost = latency.times_of(of, watch, options, here, seconds)  # type: ignore[arg-type]
        return watch.seconds, cost

    assert table(columns, small)[0] == pytest.approx([times.SECONDS / 10])
    seconds, first = table(columns, fast)
    assert seconds == [times.SECONDS], "a tenth of the time is too little"
    for options in (fast, small):
        seconds, again = table(columns, options, once=60.0)
        assert seconds == [], "what was measured counts, not what would be now"
        for (one, saved), (two, also) in zip(first.saved, again.saved, strict=True):
            assert (one.tolist(), saved.tolist()) == (two.tolist(), also.tolist())
    assert table(depth.columns(found, []), fast)[0] == [times.SECONDS]
    fewer = dataclasses.replace(found, groups=found.groups[1:])
    assert table(depth.columns(fewer, []), fast)[0] == [times.SECONDS]
    assert len(list(tmp_path.glob("times-*.npz"))) == 3


def test_models_are_timed_as_they_will_run(
    tmp_path: Path, counted: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize(model: ir.Model) -> ir.Model:
        return model

    chosen(tmp_path, [0.0, 0.0], monkeypatch, quantize=quantize)
    (watch,) = counted.made
    assert watch.settings == ("cpu", 1, tmp_path, quantize)
    assert watch.seconds == [times.SECONDS]
    np.testing.assert_array_equal(watch.feeds["x"], images(16).feeds["x"][:1])


def test_other_limits_are_those_of_the_groups(
    tmp_path: Path, counted: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocate, "BLENDS", 2)
    monkeypatch.setattr(latency, "TRIES", 2)
    choice, _ = chosen(tmp_path, [0.0, 0.0], monkeypatch, "90 %", others=[(Linear(1.0, 0.0, 0.0), 3.0)])
    assert choice.widths is not None
    assert choice.widths[0] <= 3


def priced(*weights: float) -> list[Table]:
    """Groups of ten channels, of which two stay, that lose so much for each that goes."""
    return [Table(np.arange(10, 1, -1), weight * np.arange(9.0)) for weight in weights]


class Clock:
    """Whole models are as fast as `time` says; the widths stand for the models."""

    def __init__(self, time: Linear) -> None:
        self.time, self.timed = time, 0

    def ratios(self, candidates: Sequence[Callable[[], Any]], seconds: float) -> tuple[np.ndarray, np.ndarray]:
        assert seconds == pytest.approx(times.SECONDS / 20)
        self.timed = len(candidates)
        return np.array([self.time(candidate()) for candidate in candidates]), np.zeros(len(candidates))


def thrifty(
    tables: list[Table],
    time: Linear,
    others: latency.Parts,
    shares: dict[str, float],
    told: Linear | None = None,
    judge: latency.WholeLosses | None = None,
) -> tuple[list[int], Clock]:
    """The widths taken where `time` is true; `told`: what the tables of layers say."""
    clock = Clock(time)
    options = params(target={metric: f"{100 * share} %" for metric, share in shares.items()}, timed_as="int8")
    found = latency._thrifty(tables, told or time, others, options, lambda widths: widths, clock, judge)  # type: ignore
    assert found.widths is not None
    assert found.ratio == time(found.widths)
    assert found.predicted == (told or time)(found.widths)
    return found.widths.tolist(), clock


def test_of_equally_good_widths_the_fastest_are_taken() -> None:
    """Both groups cost the same multiply-accumulates and lose the same; only the second saves time."""
    macs, time = Linear(1.0, 1.0), Linear(0.0, 0.1)
    widths, _ = thrifty(priced(0.02, 0.02), time, [(macs, 12.0)], {"macs": 0.1})
    assert widths == [10, 2]


def test_whole_models_decide_and_not_the_tables() -> None:
    """The tables have it the wrong way round: all that they propose is slower than the best without them."""
    time, told = Linear(0.0, 0.1), Linear(0.1, 0.0)
    widths, clock = thrifty(priced(0.021, 0.02), time, [(Linear(1.0, 1.0), 12.0)], {"macs": 0.1}, told)
    assert widths == [10, 2]
    assert 1 < clock.timed <= 1 + 2 * latency.PROPOSALS


def test_half_of_the_proposals_are_of_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables say that half a block saves time, and it is slow; a whole one costs a little more."""
    monkeypatch.setattr(latency, "machine", lambda: Machine("a processor", "x86", ("avx512f",), 2))
    offered = [Table(np.arange(64, 0, -8), 0.01 * np.arange(8.0)) for _ in range(2)]

    class Blocks(Linear):
        def __call__(self, widths: Widths) -> float:
            return super().__call__(np.where(widths % 16, 4, 1) * widths)

    widths, _ = thrifty(offered, Blocks(0.001, 0.001), [(Linear(1.0, 1.0), 88.0)], {"macs": 0.05}, Linear(1e-3, 1e-3))
    assert sum(widths) <= 88
    assert all(width % 16 == 0 for width in widths)


@pytest.mark.parametrize(
    ("dearer", "metric", "wanted"),
    [
        (2.3, "macs", [10, 2]),
        (2.32, "macs", [2, 10]),
        (2.3, "params", [10, 2]),
        (2.32, "params", [2, 10]),
    ],
)
def test_time_is_worth_some_loss(dearer: float, metric: str, wanted: list[int]) -> None:
    """A choice between a fifth of the time at a loss of 0.16 x `dearer` and all of it at 0.16, to which 0.01 is added:
    5 times the speed is worth 2.24 times the loss."""
    tables = priced(0.02, 0.02 * dearer)
    time, cost = Linear(0.0, 0.1), Linear(1.0, 1.0)
    assert thrifty(tables, time, [(cost, 12.0)], {metric: 0.1})[0] == wanted


def test_less_of_the_time_than_of_what_was_asked_for_is_worth_nothing() -> None:
    """Where nine tenths are asked for, the second group loses one channel for time, and not all that would save it."""
    macs, time = Linear(1.0, 1.0), Linear(0.0, 0.1)
    assert thrifty(priced(0.001, 0.00105), time, [(macs, 19.0)], {"macs": 0.9})[0] == [10, 9]
    assert thrifty(priced(0.001, 0.00105), time, [(macs, 19.0)], {"macs": 0.1})[0] == [10, 2]


def test_a_loss_that_is_none_to_speak_of_is_worth_any_time() -> None:
    tables = priced(1e-9, 1e-4)
    assert thrifty(tables, Linear(0.0, 0.1), [(Linear(1.0, 1.0), 12.0)], {"size": 0.1})[0] == [10, 2]


def test_losses_of_whole_models_decide_between_what_is_close() -> None:
    """By the tables the second group, which saves time, is a little better; whole models without it lose far more."""
    judged: list[list[int]] = []

    def judge(offered: Sequence[Widths]) -> list[float]:
        judged.extend(widths.tolist() for widths in offered)
        return [0.3 if widths[1] < 10 else 0.1 for widths in offered]

    given = priced(0.02, 0.02 * 2.3), Linear(0.0, 0.1), [(Linear(1.0, 1.0), 12.0)], {"macs": 0.1}
    assert thrifty(*given)[0] == [10, 2]
    assert thrifty(*given, None, judge)[0] == [2, 10]
    assert [10, 2] in judged
    assert [2, 10] in judged
    # Six per cent by the tables is too far for them.
    judged.clear()
    far = priced(0.02, 0.02), *given[1:]
    assert thrifty(*far, None, judge)[0] == [10, 2]
    assert judged == []


def test_without_data_no_loss_is_measured(tmp_path: Path) -> None:
    found = analysis.analysed(redundant(), params(), {"x": (2, 3, 8, 8)})
    here = context(redundant(), tmp_path, check=images(4))
    assert latency.whole_losses(depth.columns(found, []), [], params(), here) is None


def test_losses_of_whole_models_are_those_of_their_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a repair where the options ask for one."""
    found = analysis.analysed(redundant(), params(), {"x": (2, 3, 8, 8)})

    def loss(_: object, widths: Widths, orders: Sequence[np.ndarray], trial: object, repaired: bool) -> float:
        return float(widths[0]) + len(orders) + 10 * repaired

    monkeypatch.setattr(depth.Columns, "loss", loss)
    given = depth.columns(found, []), [np.arange(3)]
    here = context(redundant(), tmp_path, images(16))
    for options, expected in ((params(), [15.0, 13.0]), (params(recover=[]), [5.0, 3.0])):
        judge = latency.whole_losses(*given, options, here)
        assert judge is not None
        assert judge([np.array([4]), np.array([2])]) == expected


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_without_a_latency_time_decides_between_widths_and_branches(
    metric: str, tmp_path: Path, counted: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are those of multiply-accumulates here; layers are timed once, and then some whole models."""
    monkeypatch.setattr(latency, "_losses", lambda *_: [0.0, 1e9])
    wanted = params(target={metric: "50 %"}, timed_as="int8")
    found = analysis.analysed(redundant(), wanted, {"x": (2, 3, 8, 8)})
    rankings = [Ranking(np.arange(group.channels), np.arange(1.0, group.channels)) for group in found.groups]
    tables = [
        Table(levels, 0.1 * (levels[0] - levels) ** 2.0)
        for levels in (np.arange(g.channels, 0, -3) for g in found.groups)
    ]
    goal = targets.goal(found, metric, 0.5, context(redundant(), tmp_path, images(16)))
    here = context(redundant(), tmp_path, images(16), cache=tmp_path)
    choice = latency.choose(found, wanted, [goal.part], here, rankings, tables, None)
    assert choice.widths is not None
    assert len(choice.dropped) == 1
    assert choice.ratio < 1
    assert choice.predicted == pytest.approx(choice.ratio, abs=0.1)
    (watch,) = counted.made
    assert watch.seconds == pytest.approx([times.SECONDS / 10, times.SECONDS / 20])
    again = latency.choose(found, wanted, [goal.part], here, rankings, tables, None)
    assert len(counted.made) == 1
    assert again.widths is not None
    assert again.widths.tolist() == choice.widths.tolist()


def test_losses_of_branches_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = redundant()
    found = analysis.analysed(model, params(), {"x": (2, 3, 8, 8)})
    both = branches.find(found.model, found.coupling.facts)
    given_context = context(model, tmp_path, images(16), cache=tmp_path)
    asked: list[tuple[int, float]] = []
    monkeypatch.setattr(sensitivity, "prepare", lambda *given: asked.append(given[3:]))
    monkeypatch.setattr(depth, "losses", lambda plan, found, *_: [0.25 * (k + 1) for k in range(len(found))])
    assert latency._losses(found, both, given_context) == [0.25, 0.5]
    macs = sum(node_cost.macs(found.model, shapes.concrete(found.model, {"x": (1, 3, 8, 8)})).values())
    assert asked == [(2, macs)]
    monkeypatch.delattr(depth, "losses")
    assert latency._losses(found, both, given_context) == [0.25, 0.5]
    others = dataclasses.replace(given_context, seed=1), dataclasses.replace(given_context, calibration=images(17))
    for other in others:
        with pytest.raises(AttributeError):
            latency._losses(found, both, other)
    with pytest.raises(AttributeError):
        latency._losses(found, both[:1], given_context)
    assert latency._losses(found, [], given_context) == []
    assert latency._losses(found, both, dataclasses.replace(given_context, calibration=None)) == []


def test_times_hold_for_one_machine_and_use_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = redundant(), images(8)
    one = context(model, tmp_path, data)
    seen = [latency._timed_on(params(), one), latency._timed_on(params(timed_as="int8"), one)]
    changes: list[dict[str, Any]] = [{"provider": "cuda"}, {"threads": 2}, {"batch": 8}, {"original": redundant(1)}]
    seen += [latency._timed_on(params(), dataclasses.replace(one, **change)) for change in changes]
    another = dataclasses.replace(machine(), processor="another")
    monkeypatch.setattr(latency, "machine", lambda: another)
    seen.append(latency._timed_on(params(), one))
    assert len({cache.key(**parts) for parts in seen}) == len(seen)
