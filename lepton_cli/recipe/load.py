"""Reads recipes and budgets: text -> tree -> overrides -> typed recipe, with the places kept for later errors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError

from lepton_cli.errors import RecipeError
from lepton_cli.recipe import overrides as settings
from lepton_cli.recipe.explain import explain
from lepton_cli.recipe.judgeable import check_directions, check_goal, check_measured, check_repeated
from lepton_cli.recipe.order import check_order
from lepton_cli.recipe.scalars import is_plain
from lepton_cli.recipe.schema import Budget, Recipe
from lepton_cli.recipe.source import SourceMap
from lepton_cli.recipe.yaml import MAX_BYTES, MAX_DEPTH, Node, decode, read

_T = TypeVar("_T", Recipe, Budget)
#: Letters of a line that is written.
_LINE = 110


@dataclasses.dataclass(frozen=True)
class _Loaded(Generic[_T]):
    """What was read and where it stood. `path` is `None` for what was made in code."""

    value: _T
    path: Path | None
    source: SourceMap

    @property
    def base(self) -> Path:
        """The folder that relative paths in the file start from."""
        return self.path.parent if self.path else Path()

    def resolved(self) -> dict[str, Any]:
        """Every option, defaults included, in the notation of the file."""
        return self.value.model_dump(mode="json")

    def resolved_yaml(self) -> str:
        """`resolved()` as a file that reads back as an equal value."""
        return write(self.resolved())

    @property
    def sha256(self) -> str:
        """Hash of what was read, defaults included; notation and order of the file do not count."""
        canonical = json.dumps(self.resolved(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


@dataclasses.dataclass(frozen=True)
class LoadedRecipe(_Loaded[Recipe]):
    """A recipe and where it came from. `overrides`: what changed it after reading, as written. `warnings`: what was
    assumed in it, for the report."""

    overrides: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """The recipe; paths in it are as written, relative to `base`."""
        return self.value

    @property
    def name(self) -> str:
        """The recipe's name, or else its file's: fit for a file name."""
        stem = self.path.stem if self.path else ""
        return self.value.name or re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "compressed"


class LoadedBudget(_Loaded[Budget]):
    """A budget and where it came from."""

    @property
    def budget(self) -> Budget:
        """The budget."""
        return self.value


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe file and apply `--set` overrides. Raises RecipeError only."""
    root = settings.apply(read_file(path, "recipe"), overrides)
    source = SourceMap(root)
    return LoadedRecipe(_validate(Recipe, root.plain(), source, str(path)), path, source, tuple(overrides))


def load_budget(path: Path) -> LoadedBudget:
    """Read a budget file. Raises RecipeError only."""
    root = read_file(path, "budget")
    source = SourceMap(root)
    if isinstance(root.value, dict) and "steps" in root.value:
        raise RecipeError(
            "recipe.unknown-key",
            "this is a recipe, not a budget",
            where=source.key_place(("steps",)),
            hint="a budget holds `version: 1` and `gates:` only: copy the recipe's gates into a file of their own",
        )
    return LoadedBudget(_validate(Budget, root.plain(), source, str(path)), path, source)


def from_dict(data: Mapping[str, Any], name: str = "", overrides: Sequence[str] = ()) -> LoadedRecipe:
    """A recipe made in code, with `--set` overrides. `name` stands in errors instead of a place.

    Raises RecipeError only.
    """
    if overrides:
        root = settings.apply(read(yaml.dump(data, Dumper=_Dumper, sort_keys=False), name), overrides)
        source = SourceMap(root)
        return LoadedRecipe(_validate(Recipe, root.plain(), source, name), None, source, tuple(overrides))
    source = SourceMap()
    return LoadedRecipe(_validate(Recipe, _tuples(data), source, name), None, source)


def from_recipe(recipe: Recipe) -> LoadedRecipe:
    """A recipe that was made as one, with the checks of a file that its types do not make. Raises RecipeError."""
    source = SourceMap()
    _check(recipe, source)
    return LoadedRecipe(recipe, None, source)


def read_file(path: Path, what: str) -> Node:
    """The tree of a YAML file; `what` is the word for it in errors."""
    try:
        if path.is_dir():
            raise RecipeError("recipe.not-readable", f"`{path}` is a folder, not a {what} file", where=str(path))
        if path.exists() and not path.is_file():
            raise RecipeError("recipe.not-readable", f"`{path}` is not a regular file", where=str(path))
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(
            "recipe.not-found",
            f"there is no {what} file `{path}`",
            where=str(path),
            hint="lepton init MODEL   writes one",
        ) from None
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecipeError(
            "recipe.not-readable", f"cannot read the {what} file `{path}`", where=str(path), cause=cause
        ) from None
    return read(decode(data, str(path)), str(path))


def _validate(kind: type[_T], data: Any, source: SourceMap, name: str) -> _T:
    if not isinstance(data, Mapping):
        raise RecipeError(
            "recipe.wrong-value",
            f"a {kind.__name__.lower()} is a mapping: `version: 1`, then `{'steps' if kind is Recipe else 'gates'}:`",
            where=source.place(()) or name or None,
        )
    try:
        value = kind.model_validate(data, strict=True)
    except ValidationError as error:
        raise explain(error, kind, data, source, name) from None
    _check(value, source)
    return value


def _check(value: Recipe | Budget, source: SourceMap) -> None:
    """What types cannot say: gates that repeat each other or that nothing answers, steps in a wrong order."""
    check_repeated(value.gates, source)
    if isinstance(value, Recipe):
        check_measured(value.gates, value, source)
        check_directions(value.gates, value.evaluate, source)
        check_order(value.steps, source)
        if value.tune is not None:
            check_repeated(value.tune.limits, source, ("tune", "limits"))
            check_measured(value.tune.limits, value, source, ("tune", "limits"))
            check_directions(value.tune.limits, value.evaluate, source, ("tune", "limits"))
            check_goal(value.tune, value.evaluate, source)


def _tuples(value: Any, depth: int = 0) -> Any:
    """Lists as tuples, which is what strict validation takes."""
    if depth > MAX_DEPTH:
        raise RecipeError("recipe.nesting", f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        return {key: _tuples(child, depth + 1) for key, child in value.items()}
    return tuple(_tuples(child, depth + 1) for child in value) if isinstance(value, (list, tuple)) else value


class _Dumper(yaml.SafeDumper):
    """Writes texts in quotes where YAML 1.2 would read something else (PyYAML itself only knows 1.1)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        if node.flow_style and _long(child for pair in node.value for child in pair):
            node.flow_style = False
        return node

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        node = super().represent_sequence(tag, sequence, flow_style)
        if node.flow_style and _long(node.value):
            node.flow_style = False
        return node


def _long(nodes: Iterable[yaml.Node]) -> bool:
    """Whether these are too much for one line, with what stands between them."""
    return sum(len(node.value) + 2 for node in nodes) > _LINE


def write(plain: Any) -> str:
    """YAML that reads back as an equal value; what is in plain values stands on one line where it fits."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_LINE, default_flow_style=None)


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Double quotes also where a character ends a line for YAML (NEL, LS, PS): only there it is written escaped.
    plain = is_plain(text) and text.splitlines() == [text]
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)
