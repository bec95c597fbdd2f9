"""`--set steps.1.target.macs=50%`: changes to a recipe from the shell, before it is validated."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

from lepton_cli.errors import Place, RecipeError
from lepton_cli.recipe.scalars import printable
from lepton_cli.recipe.yaml import Node, container, read

_FILE = "--set"
#: Lists whose entries may be called by name, and the key that holds the name.
_NAMED = {"steps": "step", "gates": "metric"}
_LONGEST = 10_000


def apply(root: Node, overrides: Sequence[str]) -> Node:
    """A new tree with every override applied in order. Raises RecipeError that shows the override."""
    for text in overrides:
        root = _Override(text).apply(root)
    return root


@dataclasses.dataclass(frozen=True)
class _Override:
    """One KEY=VALUE, and the errors that show it."""

    text: str

    def apply(self, root: Node) -> Node:
        path, equals, written = self.text.partition("=")
        if not equals or not path.strip():
            raise self.error(
                "recipe.override", "an override is KEY=VALUE", 0, "for example `--set steps.1.target.macs=50%`"
            )
        if len(self.text) > _LONGEST:
            raise self.error("recipe.override", f"an override of more than {_LONGEST:,} characters", 0)
        parts = path.strip().split(".")
        if "" in parts:
            raise self.error("recipe.override", f"`{path}` has an empty part", 0)
        return self.put(root, parts, (), self.value(written, len(path) + 1))

    def value(self, written: str, offset: int) -> Node:
        if not written.strip():
            return Node(None, self.place(offset))
        try:
            node = read(written, _FILE)
        except RecipeError as error:
            here = error.where if isinstance(error.where, Place) and error.where.line == 1 else None
            hint = error.hint or "quote what is special in YAML: --set 'steps.0.exclude=[\"a*\"]'"
            raise self.error(error.code, error.message, offset + (here.column - 1 if here else 0), hint) from None
        return self.moved(node, offset)

    def moved(self, node: Node, offset: int) -> Node:
        """The same tree with places that show the whole override."""

        def shift(place: Place) -> Place:
            if place.line > 1:
                return self.place(offset)
            return dataclasses.replace(place, column=place.column + offset, source=self.shown())

        keys = {key: shift(place) for key, place in node.keys.items()}
        if isinstance(node.value, dict):
            return container(
                {key: self.moved(child, offset) for key, child in node.value.items()}, shift(node.place), keys
            )
        if isinstance(node.value, list):
            return container([self.moved(child, offset) for child in node.value], shift(node.place))
        return Node(node.value, shift(node.place))

    def put(self, node: Node | None, parts: list[str], above: tuple[str, ...], value: Node) -> Node:
        """`node` with `value` at `parts`; nodes may be shared by aliases, so the way down is copied."""
        if not parts:
            return value
        if len(above) > 50:
            raise self.error("recipe.nesting", "nested more than 50 levels deep", 0)
        if node is None or node.value is None:
            node = Node({}, self.place(0))
        if isinstance(node.value, dict):
            taken = self.key_length(node.value, parts)
            key = ".".join(parts[:taken])
            child = self.put(node.value.get(key), parts[taken:], (*above, key), value)
            keys = {**node.keys, key: node.keys[key] if parts[taken:] and key in node.keys else self.place(0)}
            return container({**node.value, key: child}, node.place, keys)
        if isinstance(node.value, list):
            index, taken = self.index(node.value, parts, above)
            child = self.put(node.value[index], parts[taken:], (*above, *parts[:taken]), value)
            return container([*node.value[:index], child, *node.value[index + 1 :]], node.place)
        raise self.error(
            "recipe.override",
            f"`{'.'.join(above)}` is a single value and has no `{parts[0]}`",
            0,
            f"--set {'.'.join(above)}=...",
        )

    def key_length(self, mapping: dict[str, Node], parts: list[str]) -> int:
        """How many parts make up the key: keys that are there may hold dots themselves (`input.1`)."""
        return next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in mapping), 1)

    def index(self, items: list[Node], parts: list[str], above: tuple[str, ...]) -> tuple[int, int]:
        """Position in a list, given as a number or as a name that occurs once, and how many parts it took."""
        where = ".".join(above)
        first = parts[0]
        if first.isascii() and first.isdigit() and len(first) < 7:
            if int(first) < len(items):
                return int(first), 1
            last = f"the last is {where}.{len(items) - 1}" if items else "it is empty"
            raise self.error("recipe.override", f"`{where}` has no item {first}: {last}", 0, "counting begins with 0")
        names = [_name(item, _NAMED.get(where, "")) for item in items]
        for taken in range(len(parts), 0, -1):
            wanted = ".".join(parts[:taken])
            if names.count(wanted) == 1:
                return names.index(wanted), taken
            if wanted in names:
                places = ", ".join(f"{where}.{index}" for index, name in enumerate(names) if name == wanted)
                raise self.error(
                    "recipe.override", f"`{wanted}` occurs {names.count(wanted)} times", 0, f"one of: {places}"
                )
        known = [name for name in names if name]
        near = difflib.get_close_matches(".".join(parts[:2]), known, 1, 0.5) or difflib.get_close_matches(
            first, known, 1
        )
        hint = f"did you mean `{where}.{near[0]}`?" if near else f"write a position: {where}.0"
        raise self.error("recipe.override", f"`{where}` is a list and has no `{first}`", 0, hint)

    def shown(self) -> str:
        return printable(self.text, 500) if len(self.text) <= 500 else ""

    def place(self, offset: int) -> Place:
        length = len(self.text) - offset if offset else len(self.text.partition("=")[0])
        return Place(_FILE, 1, offset + 1, self.shown(), max(1, length) if self.shown() else 1)

    def error(self, code: str, message: str, offset: int, hint: str | None = None) -> RecipeError:
        return RecipeError(code, printable(message, 300), where=self.place(offset), hint=hint)


def _name(node: Node, key: str) -> str | None:
    if isinstance(node.value, dict) and key in node.value and isinstance(node.value[key].value, str):
        return str(node.value[key].value)
    return None
