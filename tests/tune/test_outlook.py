"""The outlook against normal distributions conditioned by hand, and against networks simulated otherwise."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_cli.tune import outlook
from lepton_cli.tune.outlook import Drop, Features, Observation, Outlook, Quantity, Ratio, memory_share

#: One hypothesis: a drop of 2 % at a loss of 0.05, by the power 1.5; a third of it behind training.
ONE = Drop(0.01, scales=(2.0,), powers=(1.5,), healing=(1 / 3,), offsets=((0.3, 1.0),))
PLAIN = Drop(0.01, 1.0)


def pruned(loss: float, precision: str = "float", trained: float = 0.0, **options: str | float | None) -> Features:
    return Features(precision, loss, trained=trained, options=tuple(options.items()))


def expect(quantity: Quantity, observations: Sequence[Observation], one: Features) -> tuple[float, float]:
    """Mean and standard deviation of what is expected of one candidate."""
    found = Outlook(quantity, observations).expect([one])
    variance = found.weights @ (found.spreads**2 + found.centres**2) - (found.weights @ found.centres) ** 2
    return float(found.weights @ found.centres[:, 0]), math.sqrt(float(variance[0]))


def test_nothing_observed_is_the_law() -> None:
    assert expect(ONE, [], pruned(0.2)) == pytest.approx((0.16, 0.35 * 0.16))
    assert expect(ONE, [], pruned(0.2, trained=2)) == pytest.approx((0.16 / 3, 0.35 * 0.16 / 3))
    assert expect(ONE, [], pruned(0.05, "int8")) == pytest.approx((0.02, math.hypot(0.35 * 0.02, 0.003)))
    assert expect(ONE, [], pruned(0.0)) == pytest.approx((0, 1e-5))
    assert expect(dataclasses.replace(ONE, most=0.5), [], pruned(0.2))[0] == pytest.approx(0.5 - 0.5 * math.exp(-0.32))


def test_one_observation_by_hand() -> None:
    """Another loss, precision, training and choice: what of the observed surprise is expected there."""
    seen = Observation(pruned(0.05, importance="hessian"), 0.03, 0.004)
    asked = pruned(0.1, "int8", trained=3, importance="taylor")
    there, here = 0.02, 0.02 * 2**1.5 / 3
    likeness = 0.9**2 * math.exp(-math.log(2) / 0.7) * math.exp(-math.log(4) / 3)
    shared = (0.35 * there) * (0.35 * here) * likeness
    variance = (0.35 * there) ** 2 + 0.004**2 + 1e-5**2
    mean = here + shared / variance * (0.03 - there)
    spread = math.sqrt((0.35 * here) ** 2 + 0.003**2 - shared**2 / variance)
    assert expect(ONE, [seen], asked) == pytest.approx((mean, spread), rel=1e-6)


def test_two_observations_by_hand() -> None:
    """Unpruned and pruned int8: the offset of the precision is learnt from both, and how large offsets of it are."""
    first, second = (
        Observation(pruned(0, "int8"), 0.004, 0.001),
        Observation(pruned(0.05, "int8", guard=1), 0.03, 0.002),
    )
    asked = pruned(0.1, "int8")
    size = (0.003**2 + 0.004**2 + 0.01**2) / 3
    law, asked_law = 0.35 * 0.02, 0.35 * 0.02 * 2**1.5
    a, b = size + 0.001**2 + 1e-5**2, size * 0.9
    d = size + law**2 + 0.002**2 + 1e-5**2
    u, v = size, size * 0.9 + law * asked_law * 0.9 * math.exp(-math.log(2) / 0.7)
    determinant = a * d - b * b
    left, right = (d * u - b * v) / determinant, (a * v - b * u) / determinant
    mean = 0.02 * 2**1.5 + left * 0.004 + right * 0.01
    spread = math.sqrt(size + asked_law**2 - left * u - right * v)
    assert expect(ONE, [first, second], asked) == pytest.approx((mean, spread), rel=1e-6)


def test_hypotheses_are_weighed_by_what_they_say() -> None:
    """Two scales and one observation: the ratio of the weights is that of priors and of normal densities. A collapse
    counts by half of what lies beyond ten units."""
    two = dataclasses.replace(ONE, scales=(1.0, 3.0), powers=(1.0,))
    for value, doubt in ((0.018, 0.0), (0.26, 0.08)):
        parts = []
        for scale in (1.0, 3.0):
            law = 0.01 * scale * 0.04 / 0.05
            variance = (0.35 * law) ** 2 + 0.003**2 + 1e-5**2 + doubt**2
            prior = math.exp(-((math.log(scale) / 1.5) ** 2) / 2)
            parts.append(prior * math.exp(-((value - law) ** 2) / variance / 2) / math.sqrt(variance))
        found = Outlook(two, [Observation(pruned(0.04), value, 0.003)]).expect([pruned(0.04)])
        assert sorted(found.weights) == pytest.approx(
            sorted(part / sum(parts) for part in parts if part > 0.005 * sum(parts))
        )


def test_what_is_expected_of_any_network() -> None:
    """A unit at a loss of 0.05 is as likely as not; a twentieth of it and twenty times as much are not likely."""
    expected = Outlook(PLAIN, []).expect([pruned(0.05), pruned(0.05, trained=1)])
    assert expected.below(0.01)[0] == pytest.approx(0.5, abs=0.02)
    assert expected.low[0] == pytest.approx(0.01 / math.exp(1.5 * 1.96), rel=0.2)
    assert 0.01 * math.exp(1.5 * 1.5) < expected.high[0] < 0.01 * math.exp(1.5 * 2.2)
    assert expected.below(0.01)[1] > 0.6


def test_nothing_said_is_the_original() -> None:
    original = Features("float")
    assert Outlook(PLAIN, []).expect([original]).high == pytest.approx([0], abs=1e-4)
    assert Outlook(Ratio(), []).expect([original]).below(1.0) == pytest.approx([0.5])
    assert Outlook(Ratio(memory_share), []).expect([original]).below(1.0) == pytest.approx([0.5])
    trained = dataclasses.replace(ONE, healing=(0.0,))
    assert Outlook(trained, []).expect([dataclasses.replace(original, loss=0.05)]).mean == pytest.approx([0.02])


def test_the_laws_of_all_networks() -> None:
    """The powers by their mean at a tenfold loss, what training leaves by its mean, offsets by the chance to be small:
    of the scale apart, which is one here."""
    drop = Drop(0.01, scales=(1.0,))
    found = Outlook(drop, []).expect([pruned(0.5), pruned(0.05, trained=1), pruned(0, "int8")])
    powers = [10**power for power in (0.75, 1, 1.25, 1.5, 2)]
    assert found.mean[:2] == pytest.approx([0.01 * sum(powers) / 5, 0.01 * (0.15 + 0.3 + 0.5 + 0.75 + 1) / 5], rel=0.01)
    chance = NormalDist().cdf
    small = 0.7 * chance(1 / 0.3) + 0.25 * chance(1 / 3) + 0.05 * chance(1 / 30)
    assert found.below(0.01)[2] == pytest.approx(small, abs=0.003)
    assert found.below(0.1)[2] == pytest.approx(0.7 + 0.25 * chance(10 / 3) + 0.05 * chance(1 / 3), abs=0.003)
    half = -math.log(2)
    small = 0.8 * chance(half / math.hypot(0.3, 0.1)) + 0.2 * chance(half / math.hypot(1, 0.1))
    assert Outlook(Ratio(), []).expect([Features("int8")]).below(0.5) == pytest.approx([small], abs=1e-6)


def test_unlikely_hypotheses_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred say as much as all."""
    some = Outlook(PLAIN, _some()).expect([pruned(0.05, "int8")])
    monkeypatch.setattr(outlook, "_LEFT_OUT", 0.0)
    all_ = Outlook(PLAIN, _some()).expect([pruned(0.05, "int8")])
    assert len(some.weights) < len(all_.weights) / 3
    assert some.weights.sum() == pytest.approx(1)
    assert some.mean == pytest.approx(all_.mean, rel=0.02)
    assert some.below(0.02) == pytest.approx(all_.below(0.02), abs=0.005)


def test_many_exact_results_of_the_same() -> None:
    """Rows that are equal, of drops without bound."""
    found = Outlook(Drop(0.01), [Observation(pruned(1e9), 0.9, 0.0)] * 40).expect([pruned(1e9)])
    assert found.mean == pytest.approx([0.9], rel=1e-3)


def test_the_whole_grid_against_one_inverse_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """All hypotheses with all terms: the joint distribution of observed and asked by plain loops, conditioned by the
    blocks of its inverse."""
    monkeypatch.setattr(outlook, "_LEFT_OUT", 0.0)
    drop = Drop(0.01, scales=(0.5, 1.0, 2.0), powers=(1.0, 2.0), healing=(0.3, 1.0), offsets=((0.3, 0.7), (3.0, 0.3)))
    source = random.Random(4)
    seen = [_any(source) for _ in range(6)]
    values = [source.uniform(0, 0.06) for _ in seen]
    errors = [source.uniform(0.001, 0.004) for _ in seen]
    asked = _any(source)
    total = mean = square = 0.0
    for scale in drop.scales:
        for power in drop.powers:
            for healing in drop.healing:
                for offset, weight in drop.offsets:
                    law, matrix = _joint([*seen, asked], 0.01 * scale, power, healing, 0.01 * offset)
                    matrix[range(6), range(6)] += np.square(errors) + 1e-10
                    rest = np.array(values) - law[:6]
                    sign, size = np.linalg.slogdet(matrix[:6, :6])
                    assert sign == 1
                    evidence = -0.5 * (rest @ np.linalg.inv(matrix[:6, :6]) @ rest + size)
                    share = weight * math.exp(-0.5 * (math.log(scale) / 1.5) ** 2 + evidence - 20)
                    inverse = np.linalg.inv(matrix)
                    centre = law[6] - inverse[6, :6] @ rest / inverse[6, 6]
                    total, mean = total + share, mean + share * centre
                    square += share * (centre**2 + 1 / inverse[6, 6])
    mean, square = mean / total, square / total
    observations = [Observation(*parts) for parts in zip(seen, values, errors, strict=True)]
    assert expect(drop, observations, asked) == pytest.approx((mean, math.sqrt(square - mean**2)), rel=1e-5)


def _any(source: random.Random) -> Features:
    precision, trained = source.choice(["float", "int8", "dynamic"]), source.choice([0.0, 2.0, 5.0])
    guard = source.choice([None, 0.005, 0.01])
    return pruned(source.uniform(0.02, 0.2), precision, trained, guard=guard, importance=source.choice("ab"))


def _joint(
    features: Sequence[Features], scale: float, power: float, healing: float, offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """Means and covariances."""
    law = np.array([scale * (one.loss / 0.05) ** power * (healing if one.trained else 1) for one in features])
    matrix = np.zeros((len(features), len(features)))
    for i, one in enumerate(features):
        for j, two in enumerate(features):
            shared = math.exp(-abs(math.log(1 + one.trained) - math.log(1 + two.trained)) / 3)
            shared *= math.prod(0.9 for a, b in zip(one.options, two.options, strict=True) if a != b)
            near = shared * math.exp(-abs(math.log(one.loss / two.loss)) / 0.7)
            if one.precision == two.precision:
                matrix[i, j] += 0 if one.precision == "float" else offset**2 * shared
            else:
                near *= 0.9
            matrix[i, j] += 0.35**2 * law[i] * law[j] * near
    return law, matrix


def test_intervals_hold_what_they_promise() -> None:
    """Networks drawn otherwise than from the grid, their deviations walked along the loss: of what was not observed 95
    of 100 lie within the interval, and as many below a limit as was said."""
    source = random.Random(0)
    inside, said, below = [], [], []
    for _ in range(60):
        features, truths = _network(source)
        observations = [
            Observation(one, truth + source.gauss(0, 0.003), 0.003)
            for one, truth in zip(features[:5], truths[:5], strict=True)
        ]
        expected = Outlook(PLAIN, observations).expect(features[5:])
        wanted = np.array(truths[5:])
        inside += ((expected.low <= wanted) & (wanted <= expected.high)).tolist()
        for limit in (0.005, 0.01, 0.03):
            said.append(expected.below(limit).mean())
            below.append((wanted <= limit).mean())
    assert 0.92 < np.mean(inside) < 0.98
    assert np.mean(said) == pytest.approx(np.mean(below), abs=0.03)


def _network(source: random.Random) -> tuple[list[Features], list[float]]:
    """Fifteen candidates in an order of chance, and their true drops: at most 100 %, as a rule."""
    scale, power = 0.01 * source.lognormvariate(0, 1.5), source.uniform(0.75, 2)
    healing, offset = source.uniform(0.15, 1), source.gauss(0, 0.003)
    losses = sorted(math.exp(source.uniform(math.log(0.01), math.log(0.2))) for _ in range(15))
    walk, found = source.gauss(0, 1), []
    for before, loss in zip([losses[0], *losses], losses, strict=False):
        step = math.exp(-math.log(loss / before) / 0.7)
        walk = step * walk + math.sqrt(1 - step**2) * source.gauss(0, 1)
        precision, trained = source.choice(["float", "int8"]), source.choice([0.0, 0.0, 3.0])
        drop = scale * (loss / 0.05) ** power * (healing if trained else 1)
        drop = -math.expm1(-drop)
        found.append((pruned(loss, precision, trained), drop * (1 + 0.35 * walk) + offset * (precision == "int8")))
    source.shuffle(found)
    return [features for features, _ in found], [drop for _, drop in found]


@given(
    st.lists(st.floats(0, 2), min_size=2, max_size=8), st.sampled_from(["float", "int8"]), st.sampled_from([0.0, 3.0])
)
def test_more_loss_is_no_less_drop(losses: list[float], precision: str, trained: float) -> None:
    few = Drop(0.01, 1.0, scales=(0.2, 1.0, 5.0), powers=(0.75, 2.0), healing=(0.3, 1.0))
    expected = Outlook(few, []).expect([pruned(loss, precision, trained) for loss in sorted(losses)])
    assert (np.diff(expected.mean) >= -1e-12).all()
    assert (np.diff(expected.high) >= -1e-5).all()


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8), st.floats(0.001, 0.05), st.floats(0.8, 1.8))
def test_more_loss_is_no_less_drop_behind_a_law(losses: list[float], scale: float, power: float) -> None:
    """Observed where the drop is a power of the loss."""
    seen = [Observation(pruned(loss), scale * (loss / 0.05) ** power, 0.002) for loss in (0.02, 0.05, 0.1)]
    expected = Outlook(Drop(0.01), seen).expect([pruned(loss) for loss in sorted(losses)])
    assert (np.diff(expected.mean) >= -1e-9).all()


def _some() -> list[Observation]:
    source = random.Random(2)
    return [Observation(_any(source), source.uniform(0, 0.1), 0.003) for _ in range(9)]


def _told(quantity: Quantity, observations: Sequence[Observation]) -> list[list[float]]:
    source = random.Random(3)
    found = Outlook(quantity, observations).expect([pruned(0.0, "int8"), *(_any(source) for _ in range(5))])
    return [list(found.mean), list(found.low), list(found.high), list(found.below(0.02)), list(found.gain(0.02))]


def test_the_order_of_trials_is_no_matter() -> None:
    for told, again in zip(_told(PLAIN, _some()), _told(PLAIN, _some()[::-1]), strict=True):
        assert told == pytest.approx(again, rel=1e-6, abs=1e-9)


def test_what_is_not_finite_says_nothing() -> None:
    known, wrong = (
        _some(),
        [
            Observation(pruned(0.05), math.nan, 0.001),
            Observation(pruned(0.05), math.inf, 0.001),
            Observation(pruned(0.05), 0.01, math.inf),
            Observation(pruned(math.nan), 0.01, 0.001),
        ],
    )
    assert _told(PLAIN, [*known, *wrong]) == _told(PLAIN, known)
    nothing = [Observation(Features("float"), value, 0.01) for value in (0.0, -1.0, math.nan)]
    assert _told(Ratio(), nothing) == _told(Ratio(), [])


def test_what_was_measured_exactly_is_expected_again() -> None:
    """Also twice the same, and where the law is far off."""
    for value in (0.02, 0.9):
        seen = [Observation(pruned(0.3, "int8", 2, guard=0.01), value, 0.0), Observation(pruned(0.05), 0.01, 0.0)]
        found = Outlook(PLAIN, [*seen, *seen]).expect([one.features for one in seen])
        assert found.mean == pytest.approx([value, 0.01], rel=0.01)
        assert found.high - found.low == pytest.approx([0, 0], abs=1e-3)


def test_two_exact_results_of_the_same_are_averaged() -> None:
    seen = [Observation(pruned(0.1), value, 0.0) for value in (0.02, 0.03)]
    assert Outlook(PLAIN, seen).expect([pruned(0.1)]).mean == pytest.approx([0.025], rel=0.01)


def test_few_samples_say_less() -> None:
    """The same value of 400 samples and of 50,000."""
    moved = [Outlook(PLAIN, [Observation(pruned(0.05), 0.05, error)]).expect([pruned(0.05)]) for error in (0.02, 0.001)]
    assert moved[0].high - moved[0].low > 5 * (moved[1].high - moved[1].low)
    assert moved[1].mean == pytest.approx([0.05], rel=0.02)


def test_trials_far_away_spoil_nothing_near_the_limit() -> None:
    """A drop that saturates at 60 %, and is 1 % at a loss of 0.023: with five trials far beyond, what two near trials
    tell of the limit stays."""

    def truth(loss: float) -> float:
        return 0.6 * (1 - math.exp(-((loss / 0.3) ** 1.6)))

    near = [Observation(pruned(loss), truth(loss), 0.002) for loss in (0.02, 0.04)]
    far = [Observation(pruned(loss), truth(loss), 0.003) for loss in (0.8, 1.0, 1.5, 2.0, 3.0)]
    asked = [pruned(loss) for loss in (0.02, 0.024, 0.03, 0.05)]
    wanted = np.array([truth(one.loss) for one in asked])
    for most in (1.0, math.inf):
        alone, both = (Outlook(Drop(0.01, most), seen).expect(asked) for seen in (near, near + far))
        assert both.mean == pytest.approx(alone.mean, rel=0.25)
        assert (both.low <= wanted).all()
        assert (wanted <= both.high).all()


def test_one_collapse_is_no_law() -> None:
    """Neither of int8, whose offset it is, for other precisions, nor of one pruned trial for milder ones."""
    asked = [pruned(0.03), pruned(0.02, "fp16")]
    known = [Observation(pruned(loss), loss / 5, 0.0015) for loss in (0.04, 0.05, 0.1)]
    before = Outlook(PLAIN, known).expect(asked)
    for wild in (Observation(pruned(0, "int8"), 0.8, 0.02), Observation(pruned(0.06, trained=5), 0.8, 0.02)):
        after = Outlook(PLAIN, [*known, wild]).expect(asked)
        assert after.mean == pytest.approx(before.mean, rel=0.1)
        assert after.below(0.01) == pytest.approx(before.below(0.01), abs=0.05)
    int8 = Outlook(PLAIN, [*known, Observation(pruned(0, "int8"), 0.8, 0.02)]).expect([pruned(0.03, "int8")])
    assert int8.mean == pytest.approx([0.8], abs=0.03)


def test_a_drop_is_never_more_than_all() -> None:
    found = Outlook(Drop(0.01, 0.9), [Observation(pruned(3.0), 0.9, 0.001)]).expect([pruned(5.0), pruned(1e9)])
    assert (found.mean <= 0.9).all()
    assert found.high == pytest.approx([0.9, 0.9])
    assert found.below(0.9).tolist() == [1, 1]


def test_ratios_by_hand() -> None:
    """Float: the tables said 0.5 and 0.4 of the time, the first took 0.6; logarithms, offset and scatter apart."""
    one = Ratio(offsets=((0.3, 1.0),))
    seen = Observation(Features("float", time=0.5), 0.6, 0.012)
    near = math.exp(-math.log(0.5 / 0.4) / 0.7)
    variance = 0.05**2 + 0.1**2 + 0.02**2 + 1e-6
    shared = 0.05**2 + 0.1**2 * near
    mean = math.log(0.4) + shared / variance * math.log(0.6 / 0.5)
    spread = math.sqrt(0.05**2 + 0.1**2 - shared**2 / variance)
    assert expect(one, [seen], Features("float", time=0.4)) == pytest.approx((mean, spread), rel=1e-6)
    # Another precision: no offset in common, and nine tenths of the scatter.
    mean = math.log(0.4) + 0.1**2 * near * 0.9 / variance * math.log(0.6 / 0.5)
    spread = math.sqrt(0.3**2 + 0.1**2 - (0.1**2 * near * 0.9) ** 2 / variance)
    assert expect(one, [seen], Features("int8", time=0.4, trained=9)) == pytest.approx((mean, spread), rel=1e-6)
    told = Outlook(one, [seen]).expect([Features("int8", time=0.4)])
    assert told.mean == pytest.approx([math.exp(mean + spread**2 / 2)], rel=1e-6)
    assert told.below(math.exp(mean + spread)) == pytest.approx([0.841345], abs=1e-6)


def test_a_precision_that_the_tables_do_not_know_is_learnt() -> None:
    """int8 takes a quarter where nothing was said; what is pruned in it follows the tables from there."""
    seen = [Observation(Features("int8", time=1.0), 0.25, 0.003)]
    found = Outlook(Ratio(), seen).expect([Features("int8", time=1.0), Features("int8", time=0.5), Features("float")])
    assert found.mean[:2] == pytest.approx([0.25, 0.125], rel=0.05)
    assert found.mean[2] == pytest.approx(1, abs=0.25)
    # Another choice: how large offsets of int8 are is what was left, beside one usual offset.
    size, surprise = (0.3**2 + math.log(0.25) ** 2) / 2, math.log(0.25)
    variance = size + 0.1**2 + 0.012**2 + 1e-6
    mean, left = 0.9 * (size + 0.01) / variance * surprise, size + 0.01 - (0.9 * (size + 0.01)) ** 2 / variance
    told = expect(Ratio(), seen, Features("int8", options=(("guard", 0.01),)))
    assert told == pytest.approx((mean, math.sqrt(left)), rel=1e-6)


def test_half_of_the_memory_follows_the_file() -> None:
    features = [Features("float", bytes=share) for share in (0.0, 0.5, 1.0)]
    assert [memory_share(one) for one in features] == [0.5, 0.75, 1.0]
    assert np.exp(Outlook(Ratio(memory_share), []).expect(features).centres[0]) == pytest.approx([0.5, 0.75, 1.0])
