"""Who pays: by hand, and by reports of models of which it is known who does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_cli.measure import rows
from lepton_cli.measure.results import Accuracy, ClassChange, LossSpread
from lepton_cli.measure.rows import Counts, judged

CLASSES, SAMPLES = 10, 5000


def one(*counted: Counts) -> tuple[tuple[ClassChange, ...], LossSpread]:
    classes, (spread,) = judged({("y", ""): counted})
    return classes, spread


def test_samples_are_counted_by_who_is_right() -> None:
    labels = np.array([7, 7, 7, 7, 7, 2, 2, 2], dtype=np.int64)
    before = np.array([1, 1, 1, 0, 0, 1, 0, 0], dtype=bool)
    after = np.array([1, 0, 0, 1, 0, 1, 1, 1], dtype=bool)
    known, found = rows.count(before, after, labels)
    assert known.tolist() == [2, 7]
    assert found.tolist() == [[1, 0, 2, 0], [1, 2, 1, 1]]


def test_a_class_by_hand() -> None:
    (found, _, few), spread = one(Counts("a", 40, 8, 0, 2), Counts("b", 45, 1, 2, 2), Counts("c", 20, 9, 0, 0))
    assert (found.label, found.output, found.n, found.lost, found.won) == ("a", "y", 50, 8, 0)
    assert (found.original, found.compressed) == (0.96, 0.8)
    assert found.change == pytest.approx(-0.16)
    # Two of 2^8 ways; among two classes that are judged.
    assert found.p == pytest.approx(2 / 256)
    assert found.p_adjusted == pytest.approx(4 / 256)
    assert found.significant
    assert found.low is not None and found.high is not None  # noqa: PT018
    assert -0.3 < found.low < -0.16 < found.high < 0
    # 29 samples are counted and not judged, however they changed.
    assert (few.n, few.lost, few.won) == (29, 9, 0)
    assert (few.low, few.high, few.p, few.p_adjusted, few.significant) == (None, None, None, None, False)
    assert (spread.classes, spread.judged, spread.largest) == (3, 2, 50)
    assert spread.change == pytest.approx((-8 + 1 - 9) / 129)
    assert spread.worst == found


def test_thirty_samples_are_judged() -> None:
    (found,), spread = one(Counts("a", 21, 9, 0, 0))
    assert found.p == pytest.approx(2 / 2**9)
    assert spread.worst == found


def test_nothing_is_said_where_no_class_is_large() -> None:
    _, spread = one(*(Counts(str(label), 0, 1, 0, 0) for label in range(100)))
    assert (spread.classes, spread.judged, spread.largest, spread.change) == (100, 0, 1, -1)
    assert spread.worst is spread.evenness is spread.low is None


def test_all_outputs_are_judged_together() -> None:
    """Two outputs with two classes each are four tries; each has a spread of its own."""
    part = (Counts("a", 90, 8, 0, 2), Counts("b", 90, 5, 5, 0))
    again = tuple(Counts(*vars(row).values()) for row in part)
    classes, spreads = judged({("first", ""): part, ("second", ""): again})
    assert [row.output for row in classes] == ["first", "first", "second", "second"]
    assert [row.p_adjusted for row in classes] == pytest.approx([4 * 2 / 256, 1, 4 * 2 / 256, 1])
    assert [spread.output for spread in spreads] == ["first", "second"]
    assert Accuracy(classes=classes, spread=spreads).payers == (classes[0], classes[2])


def test_the_worst_class_is_that_which_lost_most() -> None:
    """Not that with the lowest accuracy; where none lost, that one."""
    _, spread = one(Counts("low", 30, 0, 0, 70), Counts("fell", 80, 20, 0, 0))
    assert spread.worst is not None
    assert spread.worst.label == "fell"
    _, spread = one(Counts("high", 90, 0, 0, 10), Counts("low", 30, 0, 0, 70))
    assert spread.worst is not None
    assert (spread.worst.label, spread.evenness, spread.evenness_high) == ("low", 1, 1)


def test_a_large_class_bounds_the_largest_loss_from_below() -> None:
    """A small class may by chance have lost more: that of 20 in 30 lost 5 points more is no proof, of 5000 it is."""
    large, small = Counts("large", 4500, 400, 0, 100), Counts("small", 26, 4, 1, 0)
    _, spread = one(large, small)
    assert spread.worst is not None and spread.high is not None and spread.low is not None  # noqa: PT018
    assert spread.worst.label == "small"
    # 8 points of 5000 samples are known to 0.9, of two classes at once.
    assert -0.08 < spread.high < -0.071
    assert spread.low < -0.2


def _score_gap(end: float, count: int, n: int, classes: int) -> float:
    """Zero where `end` is a bound of Wilson's: as far from the share as the quantile says."""
    tails = math.erfc(abs(count / n - end) / math.sqrt(2 * end * (1 - end) / n))
    return tails * classes - 0.05


def test_evenness_is_the_largest_share_over_that_of_all() -> None:
    # 8 %, 1 % and 1 % of each class; all together 10 of 300.
    _, spread = one(Counts("a", 89, 8, 3, 0), Counts("b", 90, 1, 0, 9), Counts("c", 90, 1, 0, 9))
    assert spread.evenness == pytest.approx(0.08 / (10 / 300))
    # Equal numbers, of which the smaller class lost a larger share; what won is no matter.
    _, spread = one(Counts("a", 45, 5, 9, 0), Counts("b", 95, 5, 0, 0), Counts("few", 0, 9, 0, 0))
    assert spread.evenness == pytest.approx((5 / 59) / (10 / 159))
    assert spread.evenness_low is not None and spread.evenness_high is not None  # noqa: PT018
    # Five of ten were lost in the smaller class, which has 59 of 159 samples.
    assert _score_gap(spread.evenness_high * 59 / 159, 5, 10, 2) == pytest.approx(0, abs=1e-9)
    assert spread.evenness_low == 1


def test_evenness_is_at_least_the_lower_end_of_the_worst() -> None:
    _, spread = one(Counts("a", 60, 40, 0, 0), Counts("b", 100, 0, 0, 0))
    assert spread.evenness == 2
    assert spread.evenness_low is not None
    assert _score_gap(spread.evenness_low / 2, 40, 40, 2) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("lost", "pays"),
    [
        # All lost 1 of 100 alike, and the last more: 2 points beyond the whole and no chance, or not.
        (40, True),
        (17, False),  # significant, but less than two points worse than the whole
    ],
)
def test_who_pays_lost_two_points_more_than_the_whole_and_not_by_chance(lost: int, pays: bool) -> None:
    others = [Counts(str(label), 900, 10, 10, 80) for label in range(9)]
    classes, spread = one(*others, Counts("last", 980 - lost, lost, 0, 20))
    assert classes[-1].significant
    assert spread.pays(classes[-1]) == pays
    assert not any(map(spread.pays, classes[:-1]))


def test_a_large_loss_by_chance_is_not_said() -> None:
    others = [Counts(str(label), 90, 2, 2, 6) for label in range(9)]
    classes, spread = one(*others, Counts("last", 80, 9, 1, 10))
    assert classes[-1].change == pytest.approx(-0.08)
    assert classes[-1].p is not None
    assert classes[-1].p < 0.05 < classes[-1].p * 10
    assert not spread.pays(classes[-1])


def test_a_warning_names_those_who_pay() -> None:
    others = [Counts(str(label), 440, 10, 10, 40) for label in range(8)]
    classes, spread = one(*others, Counts("cat", 350, 86, 12, 52), Counts("dog", 390, 60, 10, 40))
    (said,) = rows.warnings(Accuracy(classes=classes, spread=(spread,)))
    assert "the whole (-2.48 pp): class cat -14.8 pp (86 answers lost, 12 won, n = 500), class dog -10.0 pp" in said
    assert not rows.warnings(Accuracy(classes=classes[:8], spread=(one(*others)[1],)))


def _flipped(
    right: NDArray[np.bool_], lost: NDArray[np.float64], won: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Who is right afterwards, where each sample changes with the chance that is given for it."""
    drawn = generator.random(right.shape)
    return np.asarray(np.where(right, drawn >= lost, drawn < won))


def _report(before: NDArray[np.bool_], after: NDArray[np.bool_], labels: NDArray[np.int64]) -> LossSpread:
    """The spread, with the class of the least p as the worst."""
    known, found = rows.count(before, after, labels)
    classes, spread = one(*(Counts(str(label), *map(int, row)) for label, row in zip(known, found, strict=True)))
    assert len(classes) == CLASSES
    return spread.model_copy(update={"worst": min(classes, key=lambda row: row.p_adjusted or 0)})


def test_equal_models_are_seldom_coloured_and_a_worse_class_is_found() -> None:
    """1,000 reports of models that are equally good but for chance, and 300 with one class made 10 points worse."""
    generator = np.random.default_rng(18)
    labels = np.arange(SAMPLES) % CLASSES
    right = np.full(SAMPLES, 0.9)
    coloured, alone, certain = 0, 0, 0
    for _ in range(1000):
        before = generator.random(SAMPLES) < right
        # 4 % of the answers change, as many to the right as to the wrong.
        after = _flipped(before, 0.02 / right, 0.02 / (1 - right), generator)
        spread = _report(before, after, labels)
        assert spread.worst is not None and spread.high is not None  # noqa: PT018
        coloured += spread.worst.significant
        alone += (spread.worst.p or 0) <= 0.05
        certain += spread.high < 0
    noise = 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert coloured / 1000 <= 0.05 + noise
    assert certain / 1000 <= 0.05 + noise
    # Without the correction far more would be.
    assert alone / 1000 > 0.15
    found = 0
    worse = np.where(labels == 3, 0.12, 0.02)
    for _ in range(300):
        before = generator.random(SAMPLES) < right
        spread = _report(before, _flipped(before, worse / right, 0.02 / (1 - right), generator), labels)
        assert spread.worst is not None
        found += spread.worst.label == "3" and spread.pays(spread.worst)
    assert found / 300 >= 0.95
