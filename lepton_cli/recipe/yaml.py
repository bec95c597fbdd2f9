"""YAML text as a tree of nodes, each with its place: YAML 1.2 scalars, no surprises, bounded in every direction.

PyYAML's own rules turn `no` into false, `12:30` into 750 and `1e-3` into text, keep the last of two equal keys, and
recurse as deep as the text says. So only its events are used here; the tree is built from them.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from typing import Any

import yaml

from lepton_cli.errors import Place, RecipeError
from lepton_cli.recipe.scalars import Scalar, printable, scalar

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
#: Nodes after every alias has been written out: what stops alias bombs.
MAX_NODES = 100_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG = "tag:yaml.org,2002:"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "null": type(None),
    "bool": bool,
    "int": int,
    "float": (int, float),
}
#: libyaml reads ahead, and since 0.2.6 stops at a depth of its own before ours is seen.
_TOO_DEEP = "exceeded maximum nesting depth"
#: What libyaml says, in words that help. The first fragment found in its message counts.
_PROBLEMS: tuple[tuple[str, str, str | None], ...] = (
    (
        "mapping values are not allowed",
        "a `:` that YAML does not expect here",
        "quote the text, or check the indentation",
    ),
    ("did not find expected key", "the indentation does not fit the lines above", None),
    ("did not find expected '-' indicator", "the indentation does not fit the list above", None),
    ("could not find expected ':'", "a key without `:` after it", "write `key: value`"),
    ("did not find expected ',' or ']'", "a list in brackets is not closed, or a `,` is missing", None),
    ("did not find expected ',' or '}'", "a mapping in braces is not closed, or a `,` is missing", None),
    ("unexpected end of stream", "a quoted text is not closed", None),
    ("while scanning an alias", "`*` begins an alias in YAML", 'quote the text: `"*"`'),
    ("cannot start any token", "a character that needs quotes at the start of a value", "quote the text"),
    (
        "block sequence entries are not allowed",
        "a list item (`-`) is not allowed here",
        "put the list on lines of its own",
    ),
)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One value of the text and where it is written. `size` and `height` count what lies below, aliases included."""

    value: Scalar | dict[str, Node] | list[Node]
    place: Place
    #: Of a mapping: the place of each key.
    keys: dict[str, Place] = dataclasses.field(default_factory=dict)
    size: int = 1
    height: int = 0

    def plain(self) -> Any:
        """The value as dicts, tuples and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return tuple(child.plain() for child in self.value)
        return self.value


def container(value: dict[str, Node] | list[Node], place: Place, keys: dict[str, Place] | None = None) -> Node:
    """A mapping or list node; refuses what grows too large or too deep."""
    children = list(value.values() if isinstance(value, dict) else value)
    size = 1 + sum(child.size for child in children)
    height = 1 + max((child.height for child in children), default=0)
    if size > MAX_NODES:
        raise RecipeError(
            "recipe.too-large", f"more than {MAX_NODES:,} values once every alias is written out", where=place
        )
    if height > MAX_DEPTH:
        raise too_deep(place)
    return Node(value, place, keys or {}, size, height)


def too_deep(place: Place) -> RecipeError:
    """The error for lists and mappings inside each other beyond `MAX_DEPTH`."""
    return RecipeError("recipe.nesting", f"nested more than {MAX_DEPTH} levels deep", where=place)


def read(text: str, file: str) -> Node:
    """The one document in `text` as a tree. Raises RecipeError with a place for everything that is wrong with it."""
    lines = _LINE_BREAK.split(text)
    if bad := _UNPRINTABLE.search(text):
        before = _LINE_BREAK.split(text[: bad.start()])
        place = Place(file, len(before), len(before[-1]) + 1)
        raise RecipeError(
            "recipe.encoding",
            f"the character U+{ord(bad[0]):04X} is not allowed in YAML",
            where=place,
            hint="is this a text file? `lepton compress MODEL -r RECIPE`",
        )
    composer = _Composer(text, file, lines)
    try:
        return composer.document()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, composer) from None
    except yaml.YAMLError as error:
        raise RecipeError("recipe.syntax", "not valid YAML", where=Place(file, 1, 1), cause=str(error)) from None


def decode(data: bytes, file: str) -> str:
    """UTF-8 text of a file's bytes, without a byte order mark."""
    if len(data) > MAX_BYTES:
        raise RecipeError(
            "recipe.too-large", f"larger than {MAX_BYTES // 10**6} MB: this is not a recipe", where=Place(file, 1, 1)
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        lines = _LINE_BREAK.split(before)
        raise RecipeError(
            "recipe.encoding",
            f"not UTF-8 text (byte 0x{data[error.start]:02x})",
            where=Place(file, len(lines), len(lines[-1]) + 1),
            hint="save the file as UTF-8; a model is given as `lepton compress MODEL -r RECIPE`",
        ) from None


class _Composer:
    """Builds the tree from the event stream; events are drawn lazily, so limits stop the parser early."""

    def __init__(self, text: str, file: str, lines: list[str]) -> None:
        self.file = file
        self.lines = lines
        self.events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        #: `None` while the anchored value is still being read.
        self.anchors: dict[str, Node | None] = {}

    def line(self, mark: Any) -> str:
        """The line of a mark; libyaml's last mark may lie one line below the text."""
        return self.lines[mark.line] if mark.line < len(self.lines) else ""

    def place(self, start: Any, end: Any = None) -> Place:
        source = self.line(start)
        length = max(1, len(source.rstrip()) - start.column)
        if end is not None and end.line == start.line:
            length = max(1, min(length, end.column - start.column))
        if len(source) > 500:
            # A line nobody can read is not shown.
            source, length = "", 1
        return Place(self.file, start.line + 1, start.column + 1, source, length)

    def document(self) -> Node:
        next(self.events)
        first = next(self.events)
        if isinstance(first, yaml.StreamEndEvent):
            raise RecipeError("recipe.empty", "the file holds nothing", where=Place(self.file, 1, 1))
        root = self.node(next(self.events), 0)
        next(self.events)
        after = next(self.events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise RecipeError(
                "recipe.documents",
                "a second YAML document begins here",
                where=self.place(after.start_mark),
                hint="remove the `---`",
            )
        return root

    def node(self, event: Any, depth: int) -> Node:
        place = self.place(event.start_mark, event.end_mark)
        if depth > MAX_DEPTH:
            raise too_deep(place)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, depth, place)
        if event.anchor:
            self.anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self.resolve(event, place), place)
        elif isinstance(event, yaml.SequenceStartEvent):
            self.check_tag(event.tag, "seq", place)
            node = self.sequence(place, depth)
        else:
            self.check_tag(event.tag, "map", place)
            node = self.mapping(place, depth)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def alias(self, event: Any, depth: int, place: Place) -> Node:
        if event.anchor not in self.anchors:
            near = difflib.get_close_matches(event.anchor, self.anchors, 1)
            raise RecipeError(
                "recipe.alias",
                f"`*{printable(event.anchor)}` refers to an anchor that is not defined above",
                where=place,
                hint=f"did you mean `*{near[0]}`?" if near else 'to write a text that begins with `*`, quote it: `"*"`',
            )
        target = self.anchors[event.anchor]
        if target is None:
            raise RecipeError("recipe.alias", f"`*{printable(event.anchor)}` contains itself", where=place)
        if depth + target.height > MAX_DEPTH:
            raise too_deep(place)
        return target

    def sequence(self, place: Place, depth: int) -> Node:
        items = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, depth + 1))
        return container(items, place)

    def mapping(self, place: Place, depth: int) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        merged: list[Node] = []
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key_place = self.place(event.start_mark, event.end_mark)
            key, merges = self.key(event, key_place)
            value = self.node(next(self.events), depth + 1)
            if merges:
                merged += self.sources(value, key_place)
                continue
            if key in keys:
                first = keys[key]
                raise RecipeError(
                    "recipe.duplicate-key",
                    f"the key `{printable(key)}` is given twice",
                    where=key_place,
                    note=f"first at {first}",
                    hint="keep one of the two",
                )
            values[key], keys[key] = value, key_place
        for source in merged:
            assert isinstance(source.value, dict)
            for key, value in source.value.items():
                if key not in values:
                    values[key], keys[key] = value, source.keys[key]
        return container(values, place, keys)

    def key(self, event: Any, place: Place) -> tuple[str, bool]:
        """The key's text, as written (`no`, `1` and `null` are names like any other), and whether it is `<<`."""
        if isinstance(event, yaml.AliasEvent):
            value = self.alias(event, 0, place).value
        elif isinstance(event, yaml.ScalarEvent):
            self.check_tag(event.tag, "str", place)
            if event.anchor:
                self.anchors[event.anchor] = Node(event.value, place)
            value = event.value
        else:
            value = None
        if not isinstance(value, str):
            raise RecipeError("recipe.syntax", "a key must be a simple word", where=place)
        return value, value == "<<" and isinstance(event, yaml.ScalarEvent) and bool(event.implicit[0])

    def sources(self, node: Node, place: Place) -> list[Node]:
        nodes = node.value if isinstance(node.value, list) else [node]
        if not all(isinstance(source.value, dict) for source in nodes):
            raise RecipeError("recipe.syntax", "`<<` merges mappings, and this is not one", where=place)
        return nodes

    def resolve(self, event: Any, place: Place) -> Scalar:
        tag: str | None = event.tag
        if tag is None and not event.implicit[0]:
            return str(event.value)
        if tag in ("!", _TAG + "str"):
            return str(event.value)
        kind = (tag or "").removeprefix(_TAG)
        if tag is not None and (kind == tag or kind not in _TYPES):
            raise _unknown_tag(tag, place)
        try:
            value = scalar(event.value)
        except ValueError as error:
            raise RecipeError("recipe.wrong-value", f"`{printable(event.value)}`: {error}", where=place) from None
        if tag is not None and not isinstance(value, _TYPES[kind]):
            raise RecipeError("recipe.wrong-value", f"`{printable(event.value)}` is not a YAML {kind}", where=place)
        return value

    def check_tag(self, tag: str | None, kind: str, place: Place) -> None:
        if tag not in (None, "!", _TAG + kind):
            raise _unknown_tag(tag, place)


def _unknown_tag(tag: str | None, place: Place) -> RecipeError:
    name = (tag or "").replace(_TAG, "!!")
    return RecipeError(
        "recipe.tag",
        f"the tag `{printable(name)}` is not allowed",
        where=place,
        cause="recipes hold plain values only and never create objects",
        hint="remove the tag",
    )


def _syntax_error(error: yaml.MarkedYAMLError, composer: _Composer) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return RecipeError("recipe.syntax", "not valid YAML", where=Place(composer.file, 1, 1), cause=str(error))
    if error.context_mark and not composer.line(mark).strip():
        # At the end of the text there is nothing to show: point at what was left open.
        mark = error.context_mark
    place = composer.place(mark)
    if composer.line(mark)[mark.column : mark.column + 1] == "\t":
        return RecipeError("recipe.syntax", "a tab where YAML wants blanks", where=place, hint="indent with blanks")
    said = " ".join(part for part in (error.context, error.problem) if part)
    if _TOO_DEEP in said:
        return too_deep(place)
    known = (row[1:] for row in _PROBLEMS if row[0] in said)
    message, hint = next(known, ("not valid YAML", None))
    return RecipeError("recipe.syntax", message, where=place, cause=said, hint=hint)
