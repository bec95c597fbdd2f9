"""Turns validation errors into one RecipeError in plain words: what, where, and the nearest right word."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lepton_cli import metrics
from lepton_cli.errors import Place, RecipeError
from lepton_cli.recipe.describe import meaning, options, owner, resolve, shown, value_at
from lepton_cli.recipe.scalars import printable
from lepton_cli.recipe.source import Path, SourceMap
from lepton_cli.steps import STEPS

#: What a value should have been, by the type of the validation error.
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "`true` or `false`",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a mapping (`name: value`)",
    "model_type": "a mapping (`option: value`)",
    "model_attributes_type": "a mapping (`option: value`)",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
}
_LITERAL = re.compile(r"'([^']*)'|\b(\d+|True|False)\b")
_TRUTH = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
#: Other problems shown with the first one, and the most that are looked at.
_SHOWN = 3
_EXAMINED = 300


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong, before it becomes an error."""

    path: Path
    code: str
    message: str
    hint: str | None = None
    #: Whether the key is at fault rather than the value.
    at_key: bool = False
    #: For values that must be something else: what.
    wanted: str = ""
    #: Whether the value is of another kind altogether (a list, a text): a rival form of the option says more then.
    wrong_kind: bool = False

    def place(self, source: SourceMap) -> Place | None:
        return source.key_place(self.path) if self.at_key else source.place(self.path)


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What is being explained: the type and the data it was to be made from."""

    model: type[BaseModel]
    data: Any

    @property
    def root(self) -> str:
        return f"the {self.model.__name__.lower()}"


def explain(error: ValidationError, model: type[BaseModel], data: Any, source: SourceMap, name: str) -> RecipeError:
    """One RecipeError for the first problem in the file, with a note about the others.

    `name` is said instead of a place where there is none.
    """
    details = error.errors(include_url=False, include_input=False)
    subject = _Subject(model, data)
    problems = _one_per_path([_problem(detail, subject) for detail in details[:_EXAMINED]])
    placed = {(problem.place(source) or problem.path): problem for problem in reversed(problems)}
    in_order = sorted(
        placed.items(), key=lambda item: (item[0].line, item[0].column) if isinstance(item[0], Place) else (0, 0)
    )
    place, first = in_order[0]
    others = [
        f"line {place.line}: {problem.message}" if isinstance(place, Place) else problem.message
        for place, problem in in_order[1:]
    ]
    hidden = len(others) - _SHOWN + max(0, len(details) - _EXAMINED)
    more = f"; and {hidden} more" if hidden > 0 else ""
    return RecipeError(
        first.code,
        first.message,
        where=place if isinstance(place, Place) else name or None,
        hint=first.hint,
        note=f"also {'; '.join(others[:_SHOWN])}{more}" if others else None,
        option=first.path,
    )


def _one_per_path(problems: list[Problem]) -> list[Problem]:
    """A value that may have several forms gives a problem for each form: join them, or keep what lies deeper."""
    by_path: dict[Path, list[Problem]] = {}
    for problem in problems:
        by_path.setdefault(problem.path, []).append(problem)
    parents = {path[:length] for path in by_path for length in range(len(path))}
    return [_joined(rivals) for path, rivals in by_path.items() if path not in parents]


def _joined(rivals: list[Problem]) -> Problem:
    telling = [problem for problem in rivals if not problem.wrong_kind]
    if all(problem.wanted for problem in telling):
        telling = rivals
    first = telling[0]
    message = first.message
    for other in telling[1:]:
        if first.wanted and other.wanted:
            message = message.replace(f" must be {first.wanted}", f" must be {first.wanted} or {other.wanted}")
        else:
            message = f"{message}; {other.message}"
    hints = [problem.hint for problem in sorted(telling, key=lambda problem: problem.wrong_kind) if problem.hint]
    return dataclasses.replace(first, message=message, hint=hints[0] if hints else None)


def _problem(detail: ErrorDetails, subject: _Subject) -> Problem:
    kind, context = detail["type"], detail.get("ctx", {})
    path, value = resolve(detail["loc"], subject.data, names_key=kind in ("missing", "extra_forbidden"))
    if kind == "extra_forbidden":
        return _unknown_key(path, subject)
    if kind == "missing":
        return _missing(path, subject)
    if kind.startswith("union_tag") or (kind == "model_attributes_type" and path[:1] == ("steps",)):
        return _wrong_step(path, value)
    if kind == "unknown_metric":
        near = metrics.nearest(str(value))
        advice = f"did you mean `{near}`?" if near else f"one of: {', '.join(metrics.METRICS)}"
        return Problem(path, "recipe.unknown-metric", f"there is no metric `{printable(value)}`", advice)
    if kind == "wrong_key":
        message = f"{owner(path, subject.data)}: {context['sentence']}"
        return Problem(path, "recipe.wrong-value", message, at_key=True)
    hint = meaning(path, subject.model, subject.data)
    if kind == "value_error":
        sentence = printable(context["error"], 300)
        code = "recipe.unit-missing" if "has no unit" in sentence else "recipe.wrong-value"
        return Problem(path, code, f"{owner(path, subject.data, subject.root)}: {sentence}", hint)
    if kind in ("too_short", "too_long"):
        return _wrong_length(path, kind, context, subject)
    return _wrong_value(path, value, kind, context, subject)


def _unknown_key(path: Path, subject: _Subject) -> Problem:
    key = printable(path[-1])
    where = owner(path[:-1], subject.data, subject.root)
    allowed = options(path[:-1], subject.model, subject.data)
    near = difflib.get_close_matches(key.lower(), allowed, 1, 0.6)
    words = [f"did you mean `{near[0]}`?"] if near else []
    step = value_at(path[:2], subject.data).get("step") if path[0] == "steps" else None
    words.append(f"all options: lepton steps {step}" if len(path) == 3 and step else f"known: {', '.join(allowed)}")
    return Problem(path, "recipe.unknown-key", f"{where} has no option `{key}`", "   ".join(words), at_key=True)


def _missing(path: Path, subject: _Subject) -> Problem:
    parent, key = path[:-1], path[-1]
    where = owner(parent, subject.data, subject.root)
    if isinstance(key, int):
        return Problem(parent, "recipe.wrong-value", f"{where} needs more than {key} item{'s' * (key != 1)}")
    hint = f"add `{key}:`"
    if not parent and key == "version":
        hint = "write `version: 1` in the first line"
    if not parent and key == "steps":
        hint = "write `steps:` with a list of `- step: NAME`"
        if "gates" in subject.data:
            hint += "   (a file of gates alone is a budget: lepton gate MODEL --budget FILE)"
    return Problem(parent, "recipe.missing-key", f"{where} has no `{key}`", hint)


def _wrong_step(path: Path, value: Any) -> Problem:
    number = path[1] + 1 if len(path) > 1 and isinstance(path[1], int) else ""
    every = ", ".join(STEPS)
    if not isinstance(value, Mapping):
        known = isinstance(value, str) and value in STEPS
        hint = f"write `- step: {value}`" if known else f"write `- step: NAME`, NAME one of: {every}"
        return Problem(path, "recipe.wrong-value", f"step {number} is {shown(value)}, not a mapping", hint)
    if "step" in value:
        name = printable(value["step"])
        near = difflib.get_close_matches(re.sub(r"[-_ ]", ".", name.lower()), STEPS, 1, 0.5)
        hint = f"did you mean `{near[0]}`?   all steps: lepton steps" if near else f"steps: {every}"
        return Problem((*path, "step"), "recipe.unknown-step", f"there is no step `{name}`", hint)
    names = [key for key in value if key in STEPS]
    near = difflib.get_close_matches("step", [str(key) for key in value], 1, 0.6)
    if names:
        hint = f"write `- step: {names[0]}`, with its options on the following lines"
    elif near:
        hint = f"did you mean `step` instead of `{printable(near[0])}`?"
    else:
        hint = f"add `step: NAME`, NAME one of: {every}"
    return Problem(path, "recipe.missing-key", f"step {number} has no `step`", hint)


def _wrong_length(path: Path, kind: str, context: Mapping[str, Any], subject: _Subject) -> Problem:
    count = context["min_length"] if kind == "too_short" else context["max_length"]
    wanted = f"{'at least' if kind == 'too_short' else 'at most'} {count} item{'s' * (count != 1)}"
    message = f"{owner(path, subject.data, subject.root)} needs {wanted}"
    return Problem(path, "recipe.wrong-value", message, meaning(path, subject.model, subject.data))


def _wrong_value(path: Path, value: Any, kind: str, context: Mapping[str, Any], subject: _Subject) -> Problem:
    where = owner(path, subject.data, subject.root)
    hint = meaning(path, subject.model, subject.data)
    if kind == "string_pattern_mismatch":
        return Problem(path, "recipe.wrong-value", f"{where} cannot be {shown(value)}", hint)
    wanted = _EXPECTED.get(kind, "of another form").format(**context)
    if kind == "literal_error":
        allowed = [
            (word or number).replace("True", "true").replace("False", "false")
            for word, number in _LITERAL.findall(context["expected"])
        ]
        near = difflib.get_close_matches(printable(value).lower(), allowed, 1, 0.5)
        if near:
            hint = f"did you mean `{near[0]}`?"
        wanted = ", ".join(f"`{word}`" for word in allowed[:-1]) + (" or " if allowed[1:] else "") + f"`{allowed[-1]}`"
    elif value is None:
        hint = "give it a value, or remove the line"
    elif kind == "bool_type" and isinstance(value, str) and value.lower() in _TRUTH:
        hint = f"write `{_TRUTH[value.lower()]}`"
    elif kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+", value):
        hint = f"write {value} without quotes"
    elif kind == "string_type" and isinstance(value, (int, float)):
        hint = f'write "{shown(value).strip("`")}" in quotes'
    message = f"{where} must be {wanted}, not {shown(value)}"
    return Problem(path, "recipe.wrong-value", message, hint, wanted=wanted, wrong_kind=kind.endswith("_type"))
