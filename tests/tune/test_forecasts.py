"""What trials are expected to measure: counted limits, products of chances, gains, and what trials teach."""

from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from lepton_cli.prune.prospects import Prospect
from lepton_cli.recipe.schema import Gate
from lepton_cli.report.trial import Forecast, Trial, Value
from lepton_cli.tune.forecasts import PLACED, Forecasts, _features
from lepton_cli.tune.journal import Journal
from lepton_cli.tune.known import Figures, Proposal
from lepton_cli.tune.outlook import Features, Observation, Outlook
from lepton_cli.tune.yardsticks import Yardstick, yardsticks
from tests.tune.builders import accuracy, gate, judge, latency, size, trial

NORMAL = statistics.NormalDist()
DROP, SLOW = gate("accuracy.top1", max_drop="2 pp"), gate("latency.median", max_ratio=0.5)
SMALL, FEW = gate("size.file", max="300 B"), gate("macs", max_ratio=0.6)
POINT: dict[str, Value] = {
    "precision": "int8",
    "fuse": False,
    "importance": "hessian",
    "round_to": None,
    "branches": True,
    "distill": None,
    "guard": None,
    "calibration": None,
}
#: A candidate as it was drafted, and what is known of one before.
DRAFTED = Figures(bytes=0.25, parameters=0.5, macs=0.45, time=0.4, loss=0.05, told=True, drafted=True)


def told(**figures: Any) -> Figures:
    return dataclasses.replace(DRAFTED, drafted=False, **figures)


def pruned(loss: float = 0.05, **chosen: Value) -> Proposal:
    return Proposal({**POINT, **chosen}, Prospect({"g": 8}, (), loss, parameters=0.5, macs=0.45))


def forecasts(*limits: Gate, goal: str = "latency.median", trials: tuple[Trial, ...] = ()) -> Forecasts:
    one = judge(*limits, goal=goal)
    found = Forecasts(one, *yardsticks(one, trial("original", size=size(1000), latency=latency(1.0))))
    found.learn(trials)
    return found


@dataclasses.dataclass(frozen=True)
class Told:
    """A prediction, and the same for a report."""

    chance: float
    gain: float
    forecast: Forecast


def predicted(found: Forecasts, figures: Figures = DRAFTED, best: float | None = None, loss: float = 0.05) -> Told:
    proposal, figures = pruned(loss), dataclasses.replace(figures, loss=loss)
    (one,) = found.predict([(proposal, figures)], best)
    return Told(one.chance, one.gain, found.forecast(proposal, one))


def made(found: Forecasts, name: str, proposal: Proposal, figures: Figures = DRAFTED, **fields: Any) -> Trial:
    """A trial of a proposal, as the search leaves it."""
    loss = proposal.prospect.loss if proposal.prospect else 0.0
    where = found.written(proposal, dataclasses.replace(figures, loss=loss))
    return trial(name, point={**proposal.point, **where}, **fields)


def test_what_is_counted_holds_or_does_not() -> None:
    """On the draft: 250 of 300 bytes, 45 % of 60 %; at the limit it holds."""
    for limit, name in ((SMALL, "bytes"), (FEW, "macs")):
        found = forecasts(limit)
        bound = found.bounds[0].bound
        for share, chance in ((0.5 * bound, 1.0), (bound, 1.0), (bound * (1 + 1e-6), 0.0), (2 * bound, 0.0)):
            one = predicted(found, dataclasses.replace(told(**{name: share}), drafted=True))
            assert one.chance == chance
            (band,) = one.forecast.limits
            assert band is not None
            assert band.value == band.low == band.high


@pytest.mark.parametrize("share", [0.29, 0.3, 0.302, 0.31])
@pytest.mark.parametrize(("by_tables", "doubt"), [(True, 0.02), (False, 0.3)])
def test_what_is_told_may_be_otherwise(share: float, by_tables: bool, doubt: float) -> None:
    """Tables of widths are good to 2 %, guesses before anything is drafted to 30 %; the limit is 300 of 1000 bytes."""
    figures = dataclasses.replace(told(bytes=share), told=by_tables)
    one = predicted(forecasts(SMALL), figures)
    assert one.chance == pytest.approx(NORMAL.cdf((0.3 - share) / (doubt * share)))
    (band,) = one.forecast.limits
    assert band is not None
    ends = [1000 * share * (1 + side * 1.96 * doubt) for side in (0, -1, 1)]
    assert [band.value, band.low, band.high] == pytest.approx(ends)


def test_all_limits_have_to_hold() -> None:
    """The chance is the product of each limit's alone, and what each looks at stands in their order."""
    figures = told(bytes=0.302, macs=0.59)
    alone = {limit: predicted(forecasts(limit), figures) for limit in (DROP, SLOW, SMALL, FEW)}
    assert all(0.02 < one.chance < 0.98 for one in alone.values())
    warned = gate("size.file", max="1 B", level="warn")
    one = predicted(forecasts(DROP, warned, SLOW, SMALL, FEW), figures)
    assert one.chance == pytest.approx(math.prod(found.chance for found in alone.values()))
    assert one.forecast.chance == round(one.chance, 4)
    assert one.forecast.limits[1] is None
    by_limit = [one.forecast.limits[place] for place in (0, 2, 3, 4)]
    assert by_limit == [found.forecast.limits[0] for found in alone.values()]
    assert predicted(forecasts(), figures).chance == 1, "nothing bounds"


def test_several_values_that_one_limit_bounds_are_several_limits() -> None:
    tables = (latency(1.0), latency(1.0, batch=8))
    both = tables[0].model_copy(
        update={"results": tables[0].results + tables[1].results, "changes": tables[0].changes + tables[1].changes}
    )
    one = judge(SLOW)
    twice = Forecasts(one, *yardsticks(one, trial("original", size=size(1000), latency=both)))
    twice.learn(())
    assert predicted(twice).chance == pytest.approx(predicted(forecasts(SLOW)).chance ** 2)


def test_what_a_law_foretells_is_what_the_outlook_says() -> None:
    """Chance and band of a limit on quality and time, against an outlook made by hand from the same trial."""
    plain = forecasts(DROP, SLOW)
    seen = made(plain, "seen", pruned(0.03), accuracy=accuracy(0.008, half=0.004), latency=latency(0.35))
    found = forecasts(DROP, SLOW, trials=(seen,))
    one = predicted(found)
    options = tuple(
        (name, POINT[name]) for name in ("fuse", "importance", "round_to", "branches", "guard", "calibration")
    )
    there, here = (Features("int8", loss, 0.4, 0.25, 0.0, options) for loss in (0.03, 0.05))
    drop, slow = found.bounds
    lost = Outlook(drop.quantity, [Observation(there, 0.008, 0.004 / 1.96)]).expect([here])
    late = Outlook(slow.quantity, [Observation(there, 0.35, 0.01 * 0.35 / 1.96)]).expect([here])
    assert one.chance == pytest.approx(float(lost.below(0.02)[0] * late.below(0.5)[0]), rel=1e-6)
    for band, expected in zip(one.forecast.limits, (lost, late), strict=True):
        assert band is not None
        ends = [float(part[0]) for part in (expected.mean, expected.low, expected.high)]
        assert [band.value, band.low, band.high] == pytest.approx(ends)
    assert one.gain == pytest.approx(float(late.gain(1.0)[0]))
    assert one.forecast.goal == one.forecast.limits[1], "the goal is the time too"


def test_gains_are_shares_of_the_best() -> None:
    """A size that was counted: 250 bytes against 1000, 500, and 200."""
    found = forecasts(goal="size.file")
    for best, gain in ((None, 0.75), (0.5, 0.5), (0.25, 0.0), (0.2, 0.0)):
        one = predicted(found, best=best)
        assert one.gain == pytest.approx(gain)
        assert one.forecast.goal is not None
        assert one.forecast.goal.value == pytest.approx(250)


def test_gains_of_a_time() -> None:
    """By its whole distribution: what may be better than the best is worth something where the mean is not."""
    found = forecasts()
    one = _features({**POINT, **found.written(pruned(), DRAFTED)})
    expected = Outlook(found.goal.quantity, ()).expect([one])
    for best in (None, 0.8, 0.3):
        reference = best or 1.0
        assert predicted(found, best=best).gain == pytest.approx(float(expected.gain(reference)[0]) / reference)
    assert predicted(found, best=0.3).gain > 0
    assert float(expected.mean[0]) > 0.3


def test_gains_of_a_quality() -> None:
    """In points; before anything holds against a loss of five."""
    found = forecasts(SMALL, goal="accuracy.top1")
    one = _features({**POINT, **found.written(pruned(), DRAFTED)})
    expected = Outlook(found.goal.quantity, ()).expect([one])
    assert predicted(found).gain == pytest.approx(float(expected.gain(0.05)[0]) / 0.01)
    assert predicted(found, best=0.004).gain == pytest.approx(float(expected.gain(0.004)[0]) / 0.01)
    goal = predicted(found).forecast.goal
    assert goal is not None
    assert goal.value == pytest.approx(float(expected.mean[0]) - 0.9), "as the judge counts it"
    assert goal.low < goal.value < goal.high


def test_trials_move_what_is_expected() -> None:
    """To what they had, at their own place."""
    before = predicted(forecasts(DROP))
    bands = []
    for drop in (0.001, 0.06):
        plain = forecasts(DROP)
        seen = made(plain, "seen", pruned(0.05), accuracy=accuracy(drop, half=0.002), latency=latency(0.5))
        found = forecasts(DROP, trials=(seen,))
        near = predicted(found)
        (band,) = near.forecast.limits
        assert band is not None
        assert band.value == pytest.approx(drop, abs=0.002)
        assert (near.chance > before.chance) == (drop < 0.02)
        bands.append(near)
        time = near.forecast.goal
        assert time is not None
        assert time.value == pytest.approx(0.5, abs=0.02), "and not the 40 % of its draft"
    assert bands[0].chance > 0.95 > 0.05 > bands[1].chance


def test_trials_that_say_nothing() -> None:
    """The recipe's own steps lie nowhere; what ended before it was timed says nothing of times."""
    before = predicted(forecasts(DROP, SLOW))
    own = trial("recipe", accuracy=accuracy(0.05))
    broken = trial("broken", reached="failed", size=None, accuracy=None, latency=None, point={**POINT, "loss": 0.05})
    assert predicted(forecasts(DROP, SLOW, trials=(own, broken))) == before
    plain = forecasts(DROP, SLOW)
    untimed = made(plain, "untimed", pruned(), latency=None, accuracy=accuracy(0.06))
    after = predicted(forecasts(DROP, SLOW, trials=(untimed,)))
    assert after.forecast.goal == before.forecast.goal
    assert after.chance < before.chance


def test_what_is_new_is_learnt() -> None:
    """Another trial, and more of the same one."""
    found = forecasts(SLOW)
    before = predicted(found)
    first = made(found, "a", pruned(), latency=None, reached="accuracy")
    found.learn([first])
    assert predicted(found) == before
    timed = first.model_copy(update={"latency": latency(0.6), "reached": "latency"})
    found.learn([timed])
    after = predicted(found)
    assert after.chance < before.chance
    found.learn([])
    assert predicted(found) == before


def test_how_much_slower_than_its_draft() -> None:
    """The median over trials of the precision; times and bytes alone."""
    found = forecasts(DROP, SLOW, FEW)
    drop, slow, few = found.bounds
    ratios = {"a": 0.6, "b": 0.5, "c": 0.42}
    seen = [made(found, name, pruned(), latency=latency(ratio), size=size(990)) for name, ratio in ratios.items()]
    found.learn(seen)
    assert found.off("int8", slow) == pytest.approx(0.5 / 0.4)
    assert found.off("float", slow) == 1
    assert found.off("int8", drop) == found.off("int8", few) == 1


def test_files_larger_than_their_drafts_correct_the_next() -> None:
    """250 of 1000 bytes were drafted: 252 are what was said, 320 are not; then 280 are expected to become 358."""
    small, many = (forecasts(gate("size.file", max="340 B")) for _ in range(2))
    for found, became in ((small, 252), (many, 320)):
        found.learn([made(found, "a", pruned(), size=size(became))])
    assert small.off("int8", small.bounds[0]) == 1
    assert predicted(small, dataclasses.replace(DRAFTED, bytes=0.3)).chance == 1
    assert many.off("int8", many.bounds[0]) == pytest.approx(1.28)
    after = predicted(many, dataclasses.replace(DRAFTED, bytes=0.28))
    (band,) = after.forecast.limits
    assert band is not None
    assert band.value == pytest.approx(0.28 * 1.28 * 1000)
    doubt = 0.3 * math.log(1.28)
    assert band.high == pytest.approx(0.28 * 1.28 * (1 + 1.96 * doubt) * 1000)
    assert after.chance == pytest.approx(NORMAL.cdf((0.34 - 0.3584) / (0.3584 * doubt)), rel=1e-6)
    assert predicted(many, dataclasses.replace(DRAFTED, bytes=0.2)).chance > 0.85


def test_a_time_that_only_looks_short_is_no_mark_to_beat() -> None:
    """0.4 was drafted. Known to a thousandth, 0.2 counts as found; within +-40 %, as what lies between; and a time that
    looks long stays what was found. Qualities, and what no outlook knows, are as found."""
    found = forecasts(DROP)
    (drop,) = found.bounds
    settled = {}
    for name, ratio, half in (("sure", 0.2, 0.001), ("noisy", 0.2, 0.4), ("long", 0.8, 0.4)):
        one = made(found, name, pruned(), latency=latency(ratio, half=half), accuracy=accuracy(0.03))
        found.learn([one])
        settled[name] = found.settled(one, found.goal)
        assert found.settled(one, drop) == found.found(one, drop)
    assert settled["sure"] == pytest.approx(0.2, rel=0.01)
    assert settled["noisy"] is not None
    assert 0.22 < settled["noisy"] < 0.38
    assert settled["long"] == pytest.approx(0.8)
    fresh = forecasts(DROP)
    fresh._outlooks.clear()
    assert fresh.settled(one, fresh.goal) == pytest.approx(0.8)


def test_an_error_is_expected_to_be_one() -> None:
    """What int8 alone loses is not known: around 0, of which an error has the upper half."""
    known, one = forecasts(), Yardstick("fidelity.sqnr", (), 0, 180.0, 0.1)
    found = Forecasts(judge(gate("fidelity.sqnr", min="20 dB")), [one], known.goal)
    found.learn([])
    proposal = Proposal(POINT)
    (seen,) = found.predict([(proposal, DRAFTED)], None)
    (band,) = found.forecast(proposal, seen).limits
    assert band is not None
    sizes, weights = (0.3, 3.0, 30.0), (0.7, 0.25, 0.05)  # of the limit's error, a tenth
    error = sum(weight * size * one.bound for size, weight in zip(sizes, weights, strict=True)) / math.sqrt(2 * math.pi)
    assert band.value == pytest.approx(-20 * math.log10(error), abs=0.6)  # rare hypotheses are left out
    assert band.low < 20 < band.value < band.high


def test_what_a_trial_has() -> None:
    found = forecasts(DROP, SLOW)
    one = trial(accuracy=accuracy(0.01), latency=latency(0.7))
    assert [found.found(one, stick) for stick in (*found.bounds, found.goal)] == pytest.approx([0.01, 0.7, 0.7])
    assert found.found(trial(latency=None), found.goal) is None


@pytest.mark.parametrize(
    "proposal",
    [
        pruned(0.0123456789, round_to=16, distill=0.5, guard=0.005, calibration="percentile"),
        pruned(1e-9, fuse=True, distill=5),
        Proposal({**POINT, "precision": "float", "fuse": True}),
        Proposal({**POINT, "guard": 0.005}),
    ],
)
def test_a_trial_lies_where_it_was_foretold(proposal: Proposal, tmp_path: Path) -> None:
    """Written to the journal and read again it has the same features, so that it says most of its own place."""
    found = forecasts(DROP)
    loss = proposal.prospect.loss if proposal.prospect else 0.0
    figures = Figures(bytes=0.251234567, parameters=0.5, macs=0.45, time=1 / 3, loss=loss, drafted=True)
    point = {**proposal.point, **found.written(proposal, figures)}
    journal = Journal(tmp_path, "s")
    journal.add(trial("a", point=point))
    (again,) = Journal(tmp_path, "s").trials()
    features = _features(again.point)
    assert features == _features(point, pruned=proposal.prospect is not None)
    assert features.loss == pytest.approx(loss, rel=1e-4)
    assert (features.time, features.bytes) == (0.33333, 0.25123)
    assert features.precision == proposal.point["precision"]
    kept = dict(features.options)
    assert kept["guard"] == proposal.point["guard"]
    assert kept["fuse"] == proposal.point["fuse"]
    if proposal.prospect is None:
        assert features.trained == 0
        assert not {"importance", "round_to"} & set(kept), "which nothing was ranked by"
    else:
        assert features.trained == (proposal.point["distill"] or 0)
        assert kept["round_to"] == proposal.point["round_to"]


def test_where_a_candidate_lies_is_written_by_its_widths() -> None:
    """Parameters and multiply-accumulates by the tables; of what is not pruned as the draft has them."""
    found = forecasts()
    assert found.written(pruned(0.05), DRAFTED) == dict(zip(PLACED, (0.05, 0.4, 0.25, 0.5, 0.45), strict=True))
    figures = dataclasses.replace(DRAFTED, parameters=0.9, macs=0.8)
    assert found.written(Proposal(POINT), figures) == dict(zip(PLACED, (0.0, 0.4, 0.25, 0.9, 0.8), strict=True))


def test_nothing_to_predict() -> None:
    assert forecasts(DROP).predict([], None) == []


def test_each_is_predicted_as_it_would_be_alone() -> None:
    found = forecasts(DROP, SMALL)
    both = [(pruned(0.02), told(bytes=0.29)), (pruned(0.2), told(bytes=0.31, time=0.1))]
    together, apart = found.predict(both, None), [found.predict([one], None)[0] for one in both]
    for one, other in zip(together, apart, strict=True):
        assert one.figures == other.figures
        assert (one.chance, one.gain) == pytest.approx((other.chance, other.gain))
    assert together[0].chance > together[1].chance
    assert together[0].gain < together[1].gain


def test_other_yardsticks_are_other_outlooks() -> None:
    """One metric under two limits is foretold in the unit of each."""
    other = gate("accuracy.top1", max_drop="8 pp")
    one = predicted(forecasts(DROP, other))
    apart = [predicted(forecasts(limit)) for limit in (DROP, other)]
    assert one.chance == pytest.approx(apart[0].chance * apart[1].chance)
