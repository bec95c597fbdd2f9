"""What is derived from a model, what points stand for, and what a point may not be."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli.errors import RecipeError
from lepton_cli.recipe.tuning import Space
from lepton_cli.tune.space import Traits, derive, ladder

CNN = Traits(
    convolutions=True,
    products=True,
    transformer=False,
    quantized=False,
    prunable=True,
    calibrated=True,
    labelled=True,
    provider="cpu",
    tables=(),
    block=16,
    goal="time",
    max_drop=0.005,
)


def test_spaces_follow_from_the_model() -> None:
    cnn = derive(Space(), CNN).dimensions
    assert cnn["precision"] == ("int8", "float")
    assert cnn["guard"] == (None, 0.005)
    assert cnn["fuse"] == (False,)
    text = derive(Space(), dataclasses.replace(CNN, convolutions=False, transformer=True)).dimensions
    assert text["fuse"] == (True, False)
    assert "dynamic" in text["precision"]
    bert = dataclasses.replace(CNN, convolutions=False, transformer=True, tables=("words/[Gather]",))
    space = derive(Space(), bert)
    assert space.dimensions["precision"][0] == "mixed"
    steps = space.candidate(space.point(), "").steps
    assert [step.step for step in steps][-2:] == ["quantize.weights", "quantize.dynamic"]
    assert steps[-2].include == ("words/[[]Gather]",)
    bare = dataclasses.replace(CNN, calibrated=False, labelled=False, convolutions=False)
    assert derive(Space(), bare).dimensions["precision"] == ("dynamic", "float")
    assert "fp16" in derive(Space(), dataclasses.replace(CNN, provider="cuda")).dimensions["precision"]


def test_nothing_to_search_is_an_error() -> None:
    with pytest.raises(RecipeError) as found:
        derive(Space(), dataclasses.replace(CNN, quantized=True))
    assert found.value.code == "tune.space-empty"
    assert "quantized already" in (found.value.cause or "")


@pytest.mark.parametrize(
    ("given_space", "changes"),
    [
        ({"precision": ("int8",)}, {"calibrated": False}),
        ({"precision": ("dynamic",)}, {"products": False}),
        ({"keep": (0.5,)}, {"prunable": False}),
        ({"keep": ("0 %",)}, {}),
    ],
)
def test_values_that_cannot_work_are_errors(
    given_space: dict[str, tuple[object, ...]], changes: dict[str, bool]
) -> None:
    from lepton_cli import units

    plain = {k: tuple(units.Share(v) if isinstance(v, float) else v for v in vs) for k, vs in given_space.items()}
    with pytest.raises(RecipeError):
        derive(Space.model_validate(plain), dataclasses.replace(CNN, **changes))


def test_levels_fall_from_one() -> None:
    levels = list(ladder())
    assert levels[0] == 1
    assert levels == sorted(set(levels), reverse=True)


@given(st.integers(0, 10_000))
def test_points_are_steps_that_recipes_accept(seed: int) -> None:
    space = derive(Space(), dataclasses.replace(CNN, transformer=True))
    point = space.random(random.Random(seed))
    candidate = space.candidate(point, "test")
    assert candidate.steps[0].step == "simplify"
    pruned = any(step.step == "prune.channels" for step in candidate.steps)
    assert pruned == (point["keep"] != 1)
    assert space.point(**point) == point
    assert all(
        space.candidate(other, "").key("s") != candidate.key("s") for other in space.neighbours(point) if other != point
    )


def test_dimensions_without_meaning_make_no_new_points() -> None:
    space = derive(Space(), CNN)
    one = space.point(keep=1, precision="float", importance="activation", round_to=1, guard=0.005)
    assert one == space.point(precision="float")


def test_keys_depend_on_search_and_steps_only() -> None:
    space = derive(Space(), CNN)
    first = space.candidate(space.point(keep=0.5), "grid")
    again = space.candidate(space.point(keep=0.5), "refinement")
    assert first.key("s") == again.key("s") != first.key("t")


TRAINED = dataclasses.replace(CNN, trainable=True)


def test_what_was_pruned_is_distilled_where_there_is_what_that_needs() -> None:
    assert derive(Space(), CNN).dimensions["distill"] == (None,)
    space = derive(Space(), TRAINED)
    assert space.dimensions["distill"] == (None, 5)
    candidate = space.candidate(space.point(keep=0.5, precision="int8", distill=5), "")
    assert [step.step for step in candidate.steps] == ["simplify", "prune.channels", "distill", "quantize.static"]
    assert "distilled 5 epochs" in candidate.name
    assert space.point(distill=5) == space.point(), "what lost nothing has nothing to learn"


def test_epochs_are_searched() -> None:
    space = derive(Space.model_validate({"distill": ("none", 0.5, 3)}), CNN)
    assert space.dimensions["distill"] == (None, 0.5, 3)
    steps = space.candidate(space.point(keep=0.5, precision="float", distill=0.5), "").plain_steps()
    assert steps[-1] == {"step": "distill", "budget": {"epochs": 0.5}}


def test_int8_with_weights_of_4_bits_is_trained_and_only_where_named() -> None:
    assert "w4a8" not in derive(Space(), dataclasses.replace(TRAINED, goal="size")).dimensions["precision"]
    space = derive(Space(precision=("w4a8",), calibration=("minmax",), prune_by=("latency",)), TRAINED)
    steps = space.candidate(space.point(keep=0.5), "").plain_steps()
    assert [step["step"] for step in steps] == ["simplify", "prune.channels", "quantize.static", "quantize.aware"]
    assert steps[1]["timed_as"] == "int8"
    assert (steps[2]["calibration"], steps[3]["weight_bits"]) == ("minmax", 4)
