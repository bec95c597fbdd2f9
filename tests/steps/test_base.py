"""What every step has: its options, its decisions, its line in the table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from lepton_cli.steps import STEPS
from lepton_cli.steps.base import Context, Decision, Outcome, Params, Step
from tests.quantize.builders import context, mlp, rows


class Named(Params):
    """First line.

    More.
    """

    step: Literal["named"]


def test_a_step_touches_every_node_and_must_change_something_by_default() -> None:
    given = Named(step="named")
    assert (given.include, given.exclude, given.if_possible) == ((), (), False)
    assert not hasattr(Params.model_fields["step"], "step")
    with pytest.raises(ValidationError):
        Params.model_validate({})
    with pytest.raises(ValidationError):
        Named.model_validate({"step": "other"})
    with pytest.raises(ValidationError):
        Named.model_validate({"step": "named", "unknown": 1})


def test_the_summary_is_the_first_line_of_the_description() -> None:
    assert Step(Named, lambda *arguments: Outcome(mlp(), 0)).summary == "First line."
    for name, step in STEPS.items():
        assert step.params.__doc__ is not None
        assert step.summary == step.params.__doc__.splitlines()[0], name
        assert step.summary.endswith((".", ":", ";")) or len(step.summary) > 20


def test_the_table_names_every_step_as_its_options_do() -> None:
    assert list(STEPS) == [
        "simplify", "fuse", "prune.channels", "prune.weights", "quantize.static", "quantize.dynamic",
        "quantize.weights", "convert.fp16",
    ]  # fmt: skip
    for name, step in STEPS.items():
        assert step.params.model_validate({"step": name}).step == name
        module = name.replace(".", "_")
        assert step.apply.__module__ == f"lepton_cli.steps.{module}"
        assert step.params.__module__ == f"lepton_cli.steps.{module}"


def test_an_outcome_says_nothing_unless_told() -> None:
    outcome = Outcome(mlp(), 3)
    assert (outcome.decisions, outcome.summary, dict(outcome.details), outcome.warnings) == ((), "", {}, ())
    assert outcome.tolerance is None, "results may change"


def test_outcomes_and_contexts_and_decisions_do_not_change(tmp_path: Path) -> None:
    made = context(rows(1), tmp_path)
    assert made.dry is False
    for value, name in ((made, "seed"), (Outcome(mlp(), 0), "changed"), (STEPS["fuse"], "params")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)
    decision = Decision(node="a", op="b", action="c", reason="d")
    with pytest.raises(ValidationError):
        decision.node = "e"  # type: ignore[misc]
    assert {field.name for field in dataclasses.fields(Context) if field.default is not dataclasses.MISSING} == {"dry"}
