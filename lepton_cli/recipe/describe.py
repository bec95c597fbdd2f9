"""What a path in a recipe is called, means and may hold: the words that errors are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from lepton_cli.recipe.scalars import printable
from lepton_cli.recipe.source import Path
from lepton_cli.steps import STEPS


def resolve(loc: tuple[str | int, ...], data: Any, names_key: bool = False) -> tuple[Path, Any]:
    """The path in the file and the value there: `loc` without the names of union branches pydantic puts in.

    `names_key`: the last part is a key that the file lacks or should not have, and is kept in any case.
    """
    path: list[str | int] = []
    value = data
    for index, part in enumerate(loc):
        mapped = isinstance(value, Mapping) and part in value
        listed = isinstance(value, tuple) and isinstance(part, int) and 0 <= part < len(value)
        if mapped or listed:
            value = value[part]
        elif not (names_key and index == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path), value


def value_at(path: Path, data: Any) -> Any:
    """The value at a path that is there."""
    return resolve(path, data)[1]


def owner(path: Path, data: Any, root: str = "") -> str:
    """The step, gate or section that `path` is or lies in, in words: `` `target` of step `fuse` ``; `root` for none."""
    if len(path) >= 2 and path[0] in ("steps", "gates") and isinstance(path[1], int):
        entry = value_at(path[:2], data)
        name = entry.get("step" if path[0] == "steps" else "metric") if isinstance(entry, Mapping) else None
        inside = f"{str(path[0])[:-1]} " + (f"`{printable(name)}`" if isinstance(name, str) else str(path[1] + 1))
        path = path[2:]
    else:
        inside = ""
    dotted = printable(".".join(str(part) for part in path), 200)
    if not dotted:
        return inside or root
    return f"`{dotted}`" + (f" of {inside}" if inside else "")


def shown(value: Any) -> str:
    """A wrong value, as the end of a sentence."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (tuple, list)):
        return "a list"
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"the text `{printable(value)}`" if isinstance(value, str) else f"`{printable(value)}`"


def options(path: Path, model: type[BaseModel], data: Any) -> list[str]:
    """The keys that the mapping at `path` may have."""
    return list(dict.fromkeys(name for found in _models_at(path, model, data) for name in found.model_fields))


def meaning(path: Path, model: type[BaseModel], data: Any) -> str | None:
    """The description of the option at `path`."""
    last = max((index for index, part in enumerate(path) if isinstance(part, str)), default=None)
    if last is None:
        return None
    for found in _models_at(path[:last], model, data):
        field = found.model_fields.get(str(path[last]))
        if field is not None and field.description:
            return f"`{path[last]}`: {field.description}"
    return None


def _models_at(path: Path, model: type[BaseModel], data: Any) -> list[type[BaseModel]]:
    """The types that a mapping at `path` may have."""
    current = [model]
    for index, part in enumerate(path):
        if isinstance(part, str):
            fields = [found.model_fields[part] for found in current if part in found.model_fields]
            # A key that is no field is the name of an entry (`preprocess_inputs: {image: …}`).
            current = [inner for field in fields for inner in _models_in(field.annotation)] if fields else current
        entry = value_at(path[: index + 1], data)
        if path[0] == "steps" and index == 1 and isinstance(entry, Mapping) and entry.get("step") in STEPS:
            current = [STEPS[entry["step"]].options]
    return current


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _models_in(argument)]
