"""A candidate: a list of steps with a name people can read and a key that says what it computes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lepton_cli import cache
from lepton_cli.errors import RecipeError
from lepton_cli.graph.spec import HeadOptions
from lepton_cli.report.trial import Forecast, Value
from lepton_cli.step import Options
from lepton_cli.steps import STEPS
from lepton_cli.train.spec import FloatTraining

Point = Mapping[str, Value]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Steps to try. `point` is where they lie in the space; empty for the recipe's own steps."""

    name: str
    steps: tuple[Options, ...]
    point: Point = dataclasses.field(default_factory=dict)
    #: Which part of the search asked for it, why, and what it expects.
    origin: str = ""
    why: str = ""
    forecast: Forecast | None = None

    def key(self, search: str) -> str:
        """Hash of the steps within a search; `search` stands for model, data and seed."""
        return prefix_key(search, self.steps)

    def plain_steps(self) -> list[dict[str, Any]]:
        """The steps as a recipe writes them, defaults left out."""
        return [step.model_dump(mode="json", exclude_defaults=True) for step in self.steps]


def beginning(steps: Sequence[Options]) -> tuple[Options, ...]:
    """What every candidate begins with: the recipe's steps before the first that compresses, up to the last of these
    that trains or makes an output. Raises RecipeError where an output is made later: other candidates would lack it.
    """
    early = list(itertools.takewhile(lambda step: step.cleaning or _teaches(step), steps))
    while early and not _teaches(early[-1]):
        early.pop()
    for index, step in enumerate(steps[len(early) :], start=len(early)):
        if isinstance(step, HeadOptions):
            raise RecipeError(
                "tune.late-head",
                f"`{step.step}` stands behind a step that compresses, so that other candidates would lack its output",
                hint="put it, and the `finetune` for it, in front: every candidate begins with them",
                option=("steps", index),
            )
    return tuple(early)


def _teaches(step: Options) -> bool:
    return isinstance(step, (HeadOptions, FloatTraining))


def prefix_key(search: str, steps: Sequence[Options]) -> str:
    """Hash of what these steps make of the model that `search` stands for."""
    return cache.key(search=search, steps=steps)


def read_steps(plain: Sequence[Mapping[str, Any]]) -> tuple[Options, ...]:
    """Steps written as in a recipe. Raises pydantic's ValidationError for what no recipe may hold."""
    return tuple(STEPS[str(step["step"])].options.model_validate(_tuples(step)) for step in plain)


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(child) for key, child in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
