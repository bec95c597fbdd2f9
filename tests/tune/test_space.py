"""What is derived from a model, what points stand for, and what a point may not be."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli.errors import RecipeError
from lepton_cli.prune.prospects import Prospect
from lepton_cli.quantize.spec import QuantizeWeights
from lepton_cli.recipe.tuning import Space
from lepton_cli.report.trial import Value
from lepton_cli.tune.candidate import read_steps
from lepton_cli.tune.space import KERNELS, WORDS, Traits, derive

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
    goal="time",
    max_drop=0.005,
)
TRAINED = dataclasses.replace(CNN, trainable=True)
TEXT = dataclasses.replace(CNN, convolutions=False, transformer=True)
PROSPECT = Prospect({"g": 8}, (), loss=0.05, parameters=0.5, macs=0.25)


def plain(space: Space, traits: Traits = CNN, **chosen: Value) -> list[dict[str, object]]:
    """The steps of a point without pruning, as a recipe writes them."""
    made = derive(space, traits)
    return made.candidate(made.point(chosen)).plain_steps()


@pytest.mark.parametrize(
    ("traits", "precision"),
    [
        (CNN, ("int8", "float")),
        (TEXT, ("dynamic", "weights4", "weights8", "float")),
        (dataclasses.replace(TEXT, tables=("words",)), ("mixed", "dynamic", "weights4", "weights8", "float")),
        (dataclasses.replace(TEXT, goal="size"), ("weights4", "dynamic", "weights8", "fp16", "float")),
        (dataclasses.replace(CNN, goal="size"), ("weights4", "int8", "weights8", "fp16", "float")),
        (dataclasses.replace(CNN, calibrated=False, convolutions=False), ("dynamic", "float")),
        (dataclasses.replace(CNN, calibrated=False, products=False), ("float",)),
        (dataclasses.replace(CNN, provider="cuda"), ("fp16", "int8", "float")),
        (dataclasses.replace(CNN, quantized=True, transformer=True), ("float",)),
    ],
)
def test_precisions_follow_from_the_model_and_the_goal(traits: Traits, precision: tuple[str, ...]) -> None:
    assert derive(Space(), traits).dimensions["precision"] == precision


def test_other_choices_follow_too() -> None:
    cnn = derive(Space(), CNN)
    assert {name: values for name, values in cnn.dimensions.items() if name != "precision"} == {
        "fuse": (False,),
        "importance": ("hessian", "activation"),
        "round_to": (None, 1),
        "branches": (True, False),
        "distill": (None,),
        "guard": (None, 0.005),
        "calibration": (None, "percentile", "minmax"),
        "prefer": ("balance", "speed"),
        "block_size": (32,),
    }
    small = derive(Space(), dataclasses.replace(TEXT, goal="size")).dimensions
    assert (small["prefer"], small["block_size"]) == (("balance", "size"), (32, 64, 128, 256))
    assert (cnn.prunes, cnn.keep, cnn.steers, cnn.dropped) == (True, None, (), ())
    assert derive(Space(), TEXT).dimensions["fuse"] == (True, False)
    assert derive(Space(), dataclasses.replace(TEXT, goal="size")).dimensions["fuse"] == (False, True)
    bare = derive(Space(), dataclasses.replace(CNN, calibrated=False, labelled=False)).dimensions
    assert (bare["importance"], bare["guard"]) == (("l2", "l1"), (None,))
    assert derive(Space(), dataclasses.replace(CNN, max_drop=None)).dimensions["guard"] == (None,)
    assert derive(Space(), TRAINED).dimensions["distill"] == (None, 5)


def test_widths_follow_what_is_stored_and_what_is_timed() -> None:
    """A file is smallest with any width, a time with whole vectors; four bits are stored in blocks of 32 weights."""
    small = dataclasses.replace(CNN, goal="size")
    assert derive(Space(), CNN).dimensions["round_to"] == (None, 1)
    assert derive(Space(), small).dimensions["round_to"] == (1, 32, None)
    assert derive(Space(), TEXT).dimensions["round_to"] == (None, 1, 32)
    assert derive(Space(precision=("int8",)), small).dimensions["round_to"] == (1, None)
    assert derive(Space(round_to=(4,)), small).dimensions["round_to"] == (4,)


def test_what_is_given_is_what_is_searched() -> None:
    given_ = Space.model_validate(
        {
            "keep": ("50 %", "100 %", "80 %", "50 %"),
            "prune_by": ("latency", "params", "size", "macs"),
            "importance": ("l1", "l1"),
            "round_to": (8, 4),
            "precision": ("float", "int8"),
            "calibration": ("mse", "auto"),
            "guard": ("1 pp", "none"),
            "distill": ("none", 0.5, 3),
            "fuse": (False, True),
            "prefer": ("size", "balance"),
            "block_size": (128, 16),
        }
    )
    space = derive(given_, CNN)
    assert dict(space.dimensions) == {
        "precision": ("float", "int8"),
        "fuse": (False, True),
        "importance": ("l1",),
        "round_to": (8, 4),
        "branches": (True, False),
        "distill": (None, 0.5, 3),
        "guard": (0.01, None),
        "calibration": ("mse", None),
        "prefer": ("size", "balance"),
        "block_size": (128, 16),
    }
    assert space.keep == (0.8, 0.5), "most first; everything is no pruning"
    assert space.steers == ("time", "parameters", "bytes", "macs")
    assert space.prunes


@pytest.mark.parametrize("keep", [("100 %",), ()])
def test_nothing_is_pruned_where_all_is_to_remain(keep: tuple[str, ...]) -> None:
    space = derive(Space.model_validate({"keep": keep}), CNN)
    assert (space.keep, space.prunes, space.dropped) == ((), False, ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"quantized": True}, "quantized already"), ({"prunable": False}, "no channel can be removed")],
)
def test_what_cannot_be_pruned_is_said(changes: dict[str, Any], reason: str) -> None:
    space = derive(Space(fuse=(True,)), dataclasses.replace(CNN, **changes))
    assert not space.prunes
    (dropped,) = space.dropped
    assert dropped.startswith("pruning: ")
    assert reason in dropped


@pytest.mark.parametrize(
    "space", [{"precision": ("float",), "keep": ("100 %",)}, {"precision": ("float",), "keep": ()}]
)
def test_nothing_to_search_is_an_error(space: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(RecipeError) as found:
        derive(Space.model_validate(space), CNN)
    assert (found.value.code, found.value.option) == ("tune.space-empty", ("tune", "space"))
    with pytest.raises(RecipeError) as found:
        derive(Space(), dataclasses.replace(CNN, quantized=True))
    assert found.value.code == "tune.space-empty"
    assert "quantized already" in (found.value.cause or "")
    assert derive(Space.model_validate({**space, "fuse": (True,)}), CNN).dimensions["fuse"] == (True,)


@pytest.mark.parametrize(
    ("space", "changes", "where"),
    [
        ({"precision": ("float", "int8")}, {"calibrated": False}, ("precision", 1)),
        ({"precision": ("w4a8",)}, {"calibrated": False}, ("precision", 0)),
        ({"precision": ("dynamic",)}, {"products": False}, ("precision", 0)),
        ({"precision": ("weights8",)}, {"products": False}, ("precision", 0)),
        ({"precision": ("fp16",)}, {"quantized": True}, ("precision", 0)),
        ({"precision": ("mixed",)}, {}, ("precision", 0)),
        ({"keep": ("100 %", "50 %")}, {"prunable": False}, ("keep",)),
        ({"keep": ("50 %",)}, {"quantized": True}, ("keep",)),
        ({"keep": ("50 %", "0 %")}, {}, ("keep", 1)),
        ({"keep": ("101 %",)}, {}, ("keep", 0)),
    ],
)
def test_values_that_cannot_work_are_errors(
    space: dict[str, tuple[str, ...]], changes: dict[str, Any], where: tuple[str | int, ...]
) -> None:
    with pytest.raises(RecipeError) as found:
        derive(Space.model_validate(space), dataclasses.replace(CNN, **changes))
    assert found.value.code in ("tune.impossible", "recipe.wrong-value")
    assert found.value.option == ("tune", "space", *where)


#: Everything that can be chosen at once.
WHOLE = derive(
    Space.model_validate(
        {
            "precision": ("float", "int8", "dynamic", "mixed", "weights8", "weights4", "fp16", "w4a8"),
            "fuse": (False, True),
            "guard": ("none", "0.5 pp"),
        }
    ),
    dataclasses.replace(TRAINED, tables=("words",)),
)


@given(
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in WHOLE.dimensions.items()}), st.booleans()
)
def test_points_are_steps_that_recipes_accept(chosen: dict[str, Value], pruned: bool) -> None:
    point = WHOLE.point(chosen, pruned=pruned)
    candidate = WHOLE.candidate(point, PROSPECT if pruned else None, "test")
    assert read_steps(json.loads(json.dumps(candidate.plain_steps()))) == candidate.steps
    names = [step.step for step in candidate.steps]
    assert names[0] == "simplify"
    assert ("prune.channels" in names) == pruned
    assert ("distill" in names) == (pruned and chosen["distill"] is not None)
    assert ("fuse" in names) == chosen["fuse"]
    assert candidate.point == point
    assert candidate.origin == "test"
    assert WHOLE.point(point, pruned=pruned) == point
    assert candidate.steps[-len(WHOLE.quantizing(point)) or len(names) :] == WHOLE.quantizing(point)


def test_other_points_are_other_steps() -> None:
    """But for what means nothing there, which is then the first value: each is one candidate."""
    for pruned in (True, False):
        every = itertools.product(*WHOLE.dimensions.values())
        points = [WHOLE.point(dict(zip(WHOLE.dimensions, values, strict=True)), pruned=pruned) for values in every]
        distinct = {repr(point): point for point in points}
        prospect = PROSPECT if pruned else None
        keys = {WHOLE.candidate(point, prospect).key("s") for point in distinct.values()}
        # Rules that widths are chosen by: with the same widths they make no other candidate.
        rounded = len(WHOLE.dimensions["round_to"]) * len(WHOLE.dimensions["branches"]) if pruned else 1
        assert len(keys) * rounded == len(distinct)


def test_choices_without_meaning_make_no_new_points() -> None:
    space = derive(Space(), TRAINED)
    one = space.point(
        {"precision": "float", "importance": "activation", "round_to": 1, "distill": 5, "guard": 0.005}, pruned=False
    )
    assert one == space.point({"precision": "float"})
    float_ = space.point({"precision": "float", "distill": 5, "guard": 0.005, "calibration": "minmax"}, pruned=True)
    assert (float_["distill"], float_["guard"], float_["calibration"]) == (5, None, None)
    assert space.point({}) == {name: values[0] for name, values in space.dimensions.items()}


def test_widths_are_the_steps_own() -> None:
    """The same model on every machine, however it was found."""
    space = derive(Space(), CNN)
    prospect = dataclasses.replace(PROSPECT, dropped=("add1",))
    candidate = space.candidate(space.point({"precision": "float", "importance": "activation"}, pruned=True), prospect)
    assert candidate.plain_steps() == [
        {"step": "simplify"},
        {"step": "prune.channels", "widths": {"g": 8}, "importance": "activation", "drop_branches": ["add1"]},
    ]
    assert candidate.name == "keep 50.0 % params, 25.0 % macs (activation, 1 branch less), float"
    two = dataclasses.replace(prospect, dropped=("add1", "add2"))
    assert "2 branches less" in space.candidate(candidate.point, two).name


@pytest.mark.parametrize(
    ("precision", "steps", "words"),
    [
        ("float", [], "float"),
        ("fp16", [{"step": "convert.fp16"}], "fp16"),
        ("int8", [{"step": "quantize.static"}], "int8"),
        ("dynamic", [{"step": "quantize.dynamic"}], "dynamic int8"),
        ("weights8", [{"step": "quantize.weights", "bits": 8}], "8-bit weights"),
        ("weights4", [{"step": "quantize.weights"}], "4-bit weights"),
        (
            "mixed",
            [{"step": "quantize.weights", "include": ["words/[[]Gather]"]}, {"step": "quantize.dynamic"}],
            "dynamic int8 with 4-bit tables",
        ),
        (
            "w4a8",
            [{"step": "quantize.static"}, {"step": "quantize.aware", "weight_bits": 4}],
            "int8 with 4-bit weights",
        ),
    ],
)
def test_precisions_as_steps(precision: str, steps: list[dict[str, object]], words: str) -> None:
    traits = dataclasses.replace(TRAINED, tables=("words/[Gather]",))
    space = derive(Space.model_validate({"precision": (precision,)}), traits)
    candidate = space.candidate(space.point({}))
    found = candidate.plain_steps()
    assert found[0] == {"step": "simplify"}
    assert [{name: step.get(name) for name in told} for step, told in zip(found[1:], steps, strict=True)] == steps
    bits = {"weights4": 4, "mixed": 4, "weights8": 8}
    assert [step.bits for step in candidate.steps if isinstance(step, QuantizeWeights)] == (
        [bits[precision]] if precision in bits else []
    )
    assert candidate.name == words
    assert WORDS.get(precision, precision) == words


def test_options_of_int8() -> None:
    space = Space.model_validate({"guard": ("none", "0.5 pp")})
    (_, static) = plain(space, precision="int8", guard=0.005, calibration="percentile")
    assert (static["calibration"], static["accuracy_guard"]) == ("percentile", {"max_drop": "0.5 pp"})
    made = derive(space, CNN)
    point = made.point({"precision": "int8", "guard": 0.005, "calibration": "percentile"})
    assert made.candidate(point).name == "int8 (percentile, guard 0.5 pp)"
    assert [step["step"] for step in plain(space, precision="int8")] == ["simplify", "quantize.static"]
    (_, fast) = plain(space, precision="int8", prefer="speed")
    assert fast["prefer"] == "speed"
    assert made.candidate(made.point({"precision": "int8", "prefer": "speed"})).name == "int8 (for speed)"
    assert made.point({"precision": "float", "prefer": "speed"})["prefer"] == "balance"


@pytest.mark.parametrize("precision", ["weights4", "mixed"])
def test_blocks_of_four_bits(precision: str) -> None:
    traits = dataclasses.replace(TEXT, goal="size", tables=("words",))
    space = derive(Space(), traits)
    candidate = space.candidate(space.point({"precision": precision, "block_size": 128}))
    assert [step.block_size for step in candidate.steps if isinstance(step, QuantizeWeights)] == [128]
    assert candidate.name.endswith("(blocks of 128)")
    assert space.point({"precision": "dynamic", "block_size": 128})["block_size"] == 32


def test_what_was_pruned_is_distilled_in_front_of_what_quantizes() -> None:
    space = derive(Space(fuse=(True,)), TRAINED)
    point = space.point({"precision": "int8", "distill": 5}, pruned=True)
    candidate = space.candidate(point, PROSPECT)
    assert [step.step for step in candidate.steps] == [
        "simplify", "prune.channels", "distill", "fuse", "quantize.static"
    ]  # fmt: skip
    assert candidate.plain_steps()[2] == {"step": "distill"}, "five epochs are its default"
    assert candidate.name == "keep 50.0 % params, 25.0 % macs (hessian), distilled 5 epochs, fused, int8"
    assert [step.step for step in space.quantizing(point)] == ["fuse", "quantize.static"]
    half = derive(Space.model_validate({"distill": (0.5,)}), CNN)
    trained = half.candidate(half.point({"precision": "float"}, pruned=True), PROSPECT)
    assert trained.plain_steps()[-1] == {"step": "distill", "budget": {"epochs": 0.5}}


def test_every_candidate_begins_with_the_steps_in_front() -> None:
    first = read_steps([{"step": "simplify"}, {"step": "finetune"}])
    space = derive(Space(), CNN, first)
    for prospect in (None, PROSPECT):
        assert space.candidate(space.point({}), prospect).steps[:2] == first


def test_keys_depend_on_search_and_steps_only() -> None:
    space = derive(Space(), CNN)
    point = space.point({}, pruned=True)
    first, again = (space.candidate(point, PROSPECT, origin) for origin in ("outlook", "near miss"))
    assert first.key("s") == again.key("s") != first.key("t")
    other = dataclasses.replace(PROSPECT, widths={"g": 7})
    assert space.candidate(point, other).key("s") != first.key("s")
    better = dataclasses.replace(PROSPECT, loss=0.01)
    assert space.candidate(point, better).key("s") == first.key("s")


def test_int8_with_weights_of_4_bits_is_tried_only_where_named() -> None:
    assert "w4a8" not in derive(Space(), dataclasses.replace(TRAINED, goal="size")).dimensions["precision"]
    space = derive(Space(precision=("w4a8",), calibration=("minmax",)), TRAINED)
    static, aware = space.candidate(space.point({})).plain_steps()[1:]
    assert (static["calibration"], aware["weight_bits"]) == ("minmax", 4)
    assert KERNELS["w4a8"] == "int8"
