"""What every step has: its options, its decisions, its line in the table."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from lepton_cli.errors import RecipeError
from lepton_cli.recipe.load import from_dict
from lepton_cli.step import Context, Decision, Options, Outcome, Step
from lepton_cli.steps import STEPS
from tests.quantize.builders import context, mlp, rows


class Named(Options):
    """First line.

    More.
    """

    step: Literal["named"] = "named"


def test_a_step_touches_every_node_and_must_change_something_by_default() -> None:
    given = Named()
    assert (given.include, given.exclude, given.if_possible) == ((), (), False)
    assert not hasattr(Options.model_fields["step"], "step")
    with pytest.raises(ValidationError):
        Options.model_validate({})
    with pytest.raises(ValidationError):
        Named.model_validate({"step": "other"})
    with pytest.raises(ValidationError):
        Named.model_validate({"step": "named", "unknown": 1})


def test_the_summary_is_the_first_line_of_the_description() -> None:
    assert Step(Named, "nowhere:named").summary == "First line."
    for name, step in STEPS.items():
        assert step.options.__doc__ is not None
        assert step.summary == step.options.__doc__.splitlines()[0], name
        assert step.summary.endswith((".", ":", ";")) or len(step.summary) > 20


def test_the_table_names_every_step_as_its_options_do() -> None:
    assert list(STEPS) == [
        "simplify", "fuse", "batch.free", "head.add", "head.replace", "prune.channels", "prune.weights", "distill",
        "finetune", "quantize.static", "quantize.aware", "quantize.dynamic", "quantize.weights", "convert.fp16",
    ]  # fmt: skip
    needed = {"head.add": {"at": "x", "name": "y", "classes": 2}, "head.replace": {"classes": 2}}
    for name, step in STEPS.items():
        assert step.options.model_validate({"step": name, **needed.get(name, {})}).step == name


def test_an_outcome_says_nothing_unless_told() -> None:
    outcome = Outcome(mlp(), 3)
    assert (outcome.decisions, outcome.summary, outcome.details, outcome.warnings) == ((), "", None, ())
    assert outcome.tolerance is None, "results may change"


def test_outcomes_and_contexts_and_decisions_do_not_change(tmp_path: Path) -> None:
    made = context(rows(1), tmp_path)
    assert (made.dry, made.draft, made.until, made.answers) == (False, False, math.inf, None)
    assert [made.judged, *(dataclasses.replace(made, **{kind: True}).judged for kind in ("dry", "draft"))] == [
        True, False, False,
    ]  # fmt: skip
    for value, name in ((made, "seed"), (Outcome(mlp(), 0), "changed"), (STEPS["fuse"], "options")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)
    decision = Decision(node="a", op="b", action="c", reason="d")
    with pytest.raises(ValidationError):
        decision.node = "e"  # type: ignore[misc]
    assert {field.name for field in dataclasses.fields(Context) if field.default is not dataclasses.MISSING} == {
        "dry", "draft", "until", "answers",
    }  # fmt: skip


def test_what_is_known_about_a_step_stands_on_its_options() -> None:
    known = {
        name: (o.cleaning, o.needs_data, o.for_machine)
        for name, o in ((name, step.options) for name, step in STEPS.items())
    }
    assert known == {
        "simplify": (True, False, False),
        "fuse": (True, False, False),
        "batch.free": (False, False, False),
        "head.add": (False, False, False),
        "head.replace": (False, False, False),
        "prune.channels": (False, False, False),
        "prune.weights": (False, False, False),
        "distill": (False, False, False),
        "finetune": (False, False, False),
        "quantize.static": (False, True, True),
        "quantize.aware": (False, False, False),
        "quantize.dynamic": (False, False, True),
        "quantize.weights": (False, False, False),
        "convert.fp16": (False, False, False),
    }


def test_only_labels_make_new_answers() -> None:
    def new(step: str, **options: Any) -> bool:
        return STEPS[step].options.model_validate({"step": step, **options}).new_answers

    assert new("finetune")
    assert new("finetune", losses=[{"kind": "mse"}, {"kind": "distill"}])
    assert not new("finetune", losses=[{"kind": "distill"}])
    assert not new("distill", labels="30 %")
    assert not new("quantize.static")


@pytest.mark.parametrize(
    ("target", "share"),
    [({"params": "30 %"}, 0.3), ({"size": "40 %"}, 0.4), ({"macs": "50 %"}, None), ({"latency": "50 %"}, None)],
)
def test_pruning_says_what_is_left_where_its_target_does(target: dict[str, str], share: float | None) -> None:
    options = STEPS["prune.channels"].options.model_validate({"step": "prune.channels", "target": target})
    assert options.kept_share == share


def test_a_recipe_says_the_name_of_a_step_and_code_need_not() -> None:
    assert Named() == Named(step="named")
    assert Named(if_possible=True).model_dump(exclude_defaults=True) == {"step": "named", "if_possible": True}
    assert next(iter(Named().model_dump())) == "step"
    schema = Named.model_json_schema()
    assert schema["required"] == ["step"]
    assert "default" not in schema["properties"]["step"]
    with pytest.raises(RecipeError, match="no `step`"):
        from_dict({"version": 1, "steps": [{"fold_batch_norm": True}]})
