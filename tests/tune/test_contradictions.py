"""Limits that no model can hold: two that contradict each other, and one that is out of reach."""

from __future__ import annotations

import pytest

from lepton_cli.errors import RecipeError
from lepton_cli.measure.results import Accuracy, Fidelity
from lepton_cli.recipe.schema import Gate
from lepton_cli.tune.contradictions import check_contradictions
from tests.tune.builders import accuracy, gate, judge, size, trial


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (({"min": "90 %"}, {"max": "80 %"}), ("min 90 %", "max 80 %")),
        (({"min": "95 %"}, {"max": "91 %"}), ("min 95 %", "max 91 %")),
    ],
)
def test_contradictions_are_named(limits: tuple[dict[str, str], ...], words: tuple[str, str]) -> None:
    gates = [gate("accuracy.top1", **one) for one in limits]
    with pytest.raises(RecipeError) as found:
        check_contradictions(gates, judge(*gates), trial(accuracy=accuracy()))
    assert found.value.code == "tune.limits-contradict"
    assert all(word in found.value.message for word in words)


def test_a_ratio_may_contradict_an_absolute_limit() -> None:
    gates = [gate("size.file", max="400 B"), gate("size.file", min_ratio=0.9)]
    with pytest.raises(RecipeError, match="no model can hold both"):
        check_contradictions(gates, judge(*gates), trial(size=size(1000)))
    check_contradictions([gate("size.file", max="400 B")], judge(), trial())


def refused(*limits: Gate, floors: dict[str, float] | None = None) -> RecipeError:
    """Against an original of 1000 bytes, 250 parameters and 90 % right."""
    with pytest.raises(RecipeError) as found:
        check_contradictions(limits, judge(*limits), trial(size=size(1000)), floors, at=("gates",))
    return found.value


def test_what_no_candidate_can_fall_below() -> None:
    floors = {"size.file": 300.0, "parameters": 60.0}
    error = refused(gate("accuracy.top1", max_drop="1 pp"), gate("size.file", max_ratio="25 %"), floors=floors)
    assert error.code == "tune.limit-impossible"
    assert error.option == ("gates", 1)
    assert error.message == (
        "no candidate can have less `size.file` than 300 bytes, and `max_ratio 25 %` asks for at most 250 bytes"
    )
    assert "than 60, and `max 59` asks for at most 59" in refused(gate("parameters", max=59), floors=floors).message
    within = (gate("size.file", max="300 B"), gate("parameters", max=60), gate("size.file", min="200 B"))
    check_contradictions(within, judge(*within), trial(size=size(1000)), floors)


def test_shares_end_at_one() -> None:
    error = refused(gate("accuracy.top1", min_ratio=1.2))
    assert error.code == "tune.limit-impossible"
    assert error.message == "no `accuracy.top1` is above 100.00 %, and `min_ratio 1.2` asks for at least 108.00 %"
    all_right = trial(accuracy=accuracy(-0.1))
    for least in (
        gate("accuracy.top1", min="100 %"),
        gate("accuracy.top1", min_ratio=1),
        gate("size.file", min="9 MB"),
    ):
        check_contradictions([least], judge(least), all_right)


def test_only_what_binds_contradicts() -> None:
    low, wish = gate("size.file", min="500 B"), gate("size.file", max="400 B", level="warn")
    check_contradictions([low, wish], judge(low, wish), trial(), {"size.file": 450.0})
    assert refused(low, gate("size.file", max="400 B")).option == ("gates", 1)


def test_what_cannot_be_compared() -> None:
    """Said before the search, and not by the gates behind it."""
    alike = Fidelity(output="y", agreement=1, agreement_low=0.9, agreement_high=1, sqnr_db=None, max_abs_error=0, n=9)
    measured = trial(accuracy=Accuracy(fidelity=(alike,)))
    for limit in (gate("agreement", max_drop="1 pp"), gate("agreement", min_ratio=0.9, level="warn")):
        with pytest.raises(RecipeError) as found:
            check_contradictions([limit], judge(limit), measured)
        assert found.value.code == "tune.no-reference"
        assert found.value.option == ("tune", "limits", 0)
        assert found.value.hint == "use `min`"
    error = refused(gate("size.file", max="9 MB"), gate("size.file", max_ratio=0.4, against="baseline"))
    assert (error.code, error.option) == ("tune.no-baseline", ("gates", 1))
