"""Turns validation errors into one RecipeError in plain words: what, where, and the nearest right word."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lepton_cli.errors import Place, RecipeError
from lepton_cli.recipe import metrics
from lepton_cli.recipe.source import Path, SourceMap
from lepton_cli.steps import STEPS

#: What a value should have been, by the type of the validation error.
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "`true` or `false`",
    "bool_parsing": "`true` or `false`",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a mapping (`name: value`)",
    "mapping_type": "a mapping (`name: value`)",
    "model_type": "a mapping (`option: value`)",
    "model_attributes_type": "a mapping (`option: value`)",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "of another form",
    "string_too_short": "a longer text",
    "string_too_long": "a shorter text",
    "literal_error": "{expected}",
}
_QUOTED = re.compile(r"'([^']*)'|\b(\d+|True|False|None)\b")
_TRUTH = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_MORE = 3


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong, before it becomes an error."""

    path: Path
    code: str
    message: str
    hint: str | None = None
    #: Whether the key is at fault rather than the value.
    at_key: bool = False
    #: Whether another form of the same value would have been possible: then the other's problem says more.
    wrong_kind: bool = False


def explain(error: ValidationError, model: type[BaseModel], data: Any, source: SourceMap, name: str) -> RecipeError:
    """One RecipeError for the first problem in the file, with a note about the others. `name`: file to name without places."""
    problems = _distinct(
        _problem(detail, model, data) for detail in error.errors(include_url=False, include_input=False)
    )
    placed = [(_place(problem, source), problem) for problem in problems]
    placed.sort(key=lambda pair: (pair[0].line, pair[0].column) if pair[0] else (0, 0))
    place, first = placed[0]
    return RecipeError(
        first.code,
        first.message,
        where=place or name or None,
        hint=first.hint,
        note=_others(placed[1:]),
        option=first.path,
    )


def _place(problem: Problem, source: SourceMap) -> Place | None:
    return source.key_place(problem.path) if problem.at_key else source.place(problem.path)


def _others(placed: list[tuple[Place | None, Problem]]) -> str | None:
    if not placed:
        return None
    shown = "; ".join(
        f"line {place.line}: {problem.message}" if place else problem.message for place, problem in placed[:_MORE]
    )
    left = len(placed) - _MORE
    return f"also {shown}" + (f"; and {left} more" if left > 0 else "")


def _distinct(problems: Iterable[Problem]) -> list[Problem]:
    """One problem for each path. A value that may have several forms gives one error for each form."""
    by_path: dict[Path, list[Problem]] = {}
    for problem in problems:
        by_path.setdefault(problem.path, []).append(problem)
    chosen = []
    for path, rivals in by_path.items():
        if any(len(other) > len(path) and other[: len(path)] == path for other in by_path):
            continue
        telling = [problem for problem in rivals if not problem.wrong_kind] or rivals
        message = telling[0].message
        for other in telling[1:]:
            message = _join(message, other.message)
        hint = next((problem.hint for problem in telling if problem.hint), None)
        chosen.append(dataclasses.replace(telling[0], message=message, hint=hint))
    return chosen


def _join(first: str, second: str) -> str:
    """`x must be a, not v` and `x must be b, not v` -> `x must be a or b, not v`."""
    head, found, _ = second.partition(" must be ")
    start, tail = first.rpartition(", not ")[::2]
    if found and start.startswith(head + found):
        wanted = second[len(head + found) :].rpartition(", not ")[0]
        return f"{start} or {wanted}, not {tail}"
    return f"{first}; {second}"


def _problem(detail: ErrorDetails, model: type[BaseModel], data: Any) -> Problem:
    kind = detail["type"]
    context = detail.get("ctx", {})
    path, value = _resolve(detail["loc"], data, kind in ("missing", "extra_forbidden"))
    if kind == "extra_forbidden":
        return _unknown_key(path, model, data)
    if kind == "missing":
        return _missing(path, data)
    if kind.startswith("union_tag") or (kind == "model_attributes_type" and path[:1] == ("steps",)):
        return _wrong_step(path, value, data)
    if kind == "unknown_metric":
        near = metrics.nearest(str(value))
        hint = f"did you mean `{near}`?" if near else f"one of: {', '.join(metrics.METRICS)}"
        return Problem((*path,), "recipe.unknown-metric", f"there is no metric `{_cut(value)}`", hint)
    if kind == "value_error":
        sentence = str(context["error"])
        code = "recipe.unit-missing" if "has no unit" in sentence else "recipe.wrong-value"
        return Problem(path, code, f"{describe(path, data)}: {sentence}", _meaning(path, model, data))
    if kind in ("too_short", "too_long"):
        wanted = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return Problem(
            path, "recipe.wrong-value", f"{describe(path, data)} needs {wanted} item(s)", _meaning(path, model, data)
        )
    return _wrong_value(kind, context, path, value, model, data)


def _resolve(loc: tuple[str | int, ...], data: Any, names_key: bool) -> tuple[Path, Any]:
    """The path in the file and the value there: `loc` without the names of union branches pydantic puts in."""
    path: list[str | int] = []
    value = data
    for index, part in enumerate(loc):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, tuple) and isinstance(part, int) and 0 <= part < len(value):
            value = value[part]
        elif not (names_key and index == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path), value


def _at(data: Any, path: Path) -> Any:
    return _resolve(path, data, names_key=False)[1]


def owner(path: Path, data: Any) -> tuple[str, Path]:
    """The part of the file that `path` lies in, in words, and what is left of the path."""
    if len(path) >= 2 and path[0] in ("steps", "gates") and isinstance(path[1], int):
        key = "step" if path[0] == "steps" else "metric"
        entry = _at(data, path[:2])
        name = entry.get(key) if isinstance(entry, Mapping) else None
        return f"{str(path[0])[:-1]} " + (f"`{name}`" if isinstance(name, str) else str(path[1] + 1)), path[2:]
    return "", path


def describe(path: Path, data: Any) -> str:
    """`target.macs` of step `prune.channels`."""
    inside, rest = owner(path, data)
    dotted = ".".join(str(part) for part in rest)
    if not dotted:
        return inside or "the file"
    return f"`{dotted}`" + (f" of {inside}" if inside else "")


def _unknown_key(path: Path, model: type[BaseModel], data: Any) -> Problem:
    inside, rest = owner(path[:-1], data)
    key = str(path[-1])
    allowed = _options(path[:-1], model, data)
    where = f"`{'.'.join(map(str, rest))}`" + (f" of {inside}" if inside else "") if rest else inside or "the file"
    near = difflib.get_close_matches(key.lower(), allowed, 1, 0.6)
    words = [f"did you mean `{near[0]}`?"] if near else []
    if inside.startswith("step") and not rest:
        words.append(f"all options: lepton steps {_at(data, path[:2])['step']}")
    else:
        words.append(f"known: {', '.join(allowed)}")
    message = f"{where} has no option `{_cut(key)}`"
    return Problem(path, "recipe.unknown-key", message, "   ".join(words), at_key=True)


def _missing(path: Path, data: Any) -> Problem:
    inside, rest = owner(path[:-1], data)
    where = f"`{'.'.join(map(str, rest))}`" + (f" of {inside}" if inside else "") if rest else inside or "the file"
    key = path[-1]
    hint = {
        "version": "write `version: 1` in the first line",
        "steps": "write `steps:` with a list of `- step: NAME`",
    }.get(str(key) if not path[:-1] else "", f"add `{key}:`")
    if not path[:-1] and key == "steps" and isinstance(data, Mapping) and "gates" in data:
        hint += "   (a file with gates alone is a budget: lepton gate MODEL --budget FILE)"
    return Problem(path[:-1], "recipe.missing-key", f"{where} has no `{key}`", hint)


def _wrong_step(path: Path, value: Any, data: Any) -> Problem:
    number = path[1] + 1 if len(path) > 1 and isinstance(path[1], int) else ""
    every = ", ".join(STEPS)
    if not isinstance(value, Mapping):
        known = isinstance(value, str) and value in STEPS
        hint = f"write `- step: {value}`" if known else f"write `- step: NAME`, NAME one of: {every}"
        return Problem(path, "recipe.wrong-value", f"step {number} is {_shown(value)}, not a mapping", hint)
    if "step" in value:
        name = value["step"]
        near = difflib.get_close_matches(re.sub(r"[-_ ]", ".", str(name).lower()), STEPS, 1, 0.5)
        hint = f"did you mean `{near[0]}`?   all steps: lepton steps" if near else f"steps: {every}"
        return Problem((*path, "step"), "recipe.unknown-step", f"there is no step `{_cut(name)}`", hint)
    names = [key for key in value if key in STEPS]
    near = difflib.get_close_matches("step", list(value), 1, 0.6)
    if names:
        hint = f"write `- step: {names[0]}`, with its options on the following lines"
    elif near:
        hint = f"did you mean `step` instead of `{near[0]}`?"
    else:
        hint = f"add `step: NAME`, NAME one of: {every}"
    return Problem(path, "recipe.missing-key", f"step {number} has no `step`", hint)


def _wrong_value(
    kind: str, context: Mapping[str, Any], path: Path, value: Any, model: type[BaseModel], data: Any
) -> Problem:
    hint = _meaning(path, model, data)
    if kind == "literal_error":
        allowed = [next(filter(None, found)) for found in _QUOTED.findall(context["expected"])]
        allowed = [{"True": "true", "False": "false"}.get(word, word) for word in allowed]
        near = difflib.get_close_matches(str(value).lower(), allowed, 1, 0.5)
        hint = f"did you mean `{near[0]}`?" if near else hint
        context = {
            "expected": ", ".join(f"`{word}`" for word in allowed[:-1])
            + (" or " if allowed[1:] else "")
            + f"`{allowed[-1]}`"
        }
    elif kind == "bool_type" and isinstance(value, str) and value.lower() in _TRUTH:
        hint = f"write `{_TRUTH[value.lower()]}`"
    elif kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+", value):
        hint = f"write {value} without quotes"
    elif kind == "string_type" and isinstance(value, (int, float)):
        hint = f'write "{_shown(value).strip("`")}" in quotes'
    wanted = _EXPECTED.get(kind, "of another form").format(**context)
    message = f"{describe(path, data)} must be {wanted}, not {_shown(value)}"
    return Problem(path, "recipe.wrong-value", message, hint, wrong_kind=kind.endswith("_type"))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (tuple, list)):
        return "a list"
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"the text `{_cut(value)}`" if isinstance(value, str) else f"`{_cut(value)}`"


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _options(path: Path, model: type[BaseModel], data: Any) -> list[str]:
    return list(dict.fromkeys(name for found in _models_at(path, model, data) for name in found.model_fields))


def _meaning(path: Path, model: type[BaseModel], data: Any) -> str | None:
    """The description of the option at `path`."""
    names = [part for part in path if isinstance(part, str)]
    if not names:
        return None
    parent = path[: max(index for index, part in enumerate(path) if part == names[-1])]
    for found in _models_at(parent, model, data):
        field = found.model_fields.get(names[-1])
        if field is not None and field.description:
            return f"`{names[-1]}`: {field.description}"
    return None


def _models_at(path: Path, model: type[BaseModel], data: Any) -> list[type[BaseModel]]:
    """The types that a mapping at `path` may have."""
    current = [model]
    for index, part in enumerate(path):
        if isinstance(part, str):
            current = [
                inner
                for found in current
                if part in found.model_fields
                for inner in _models_in(found.model_fields[part].annotation)
            ] or current
        entry = _at(data, path[: index + 1])
        if path[0] == "steps" and index == 1 and isinstance(entry, Mapping) and entry.get("step") in STEPS:
            current = [STEPS[entry["step"]].params]
    return current


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _models_in(argument)]
