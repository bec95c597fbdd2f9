"""Where each part of a recipe is written."""

from __future__ import annotations

import dataclasses

from lepton_cli.errors import Place
from lepton_cli.recipe.yaml import Node

Path = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class SourceMap:
    """Places by path, such as `("steps", 2, "target", "macs")`; all `None` without a tree (a recipe made in code)."""

    root: Node | None = None

    def place(self, path: Path) -> Place | None:
        """The place of the value at `path`, or of its nearest parent that is written down.

        What begins on a later line than its key, or is empty, is shown at the key.
        """
        return self._walk(path, key=False)

    def key_place(self, path: Path) -> Place | None:
        """The place of the last key of `path`, or of the nearest parent that is written down."""
        return self._walk(path, key=True)

    def _walk(self, path: Path, key: bool) -> Place | None:
        if self.root is None:
            return None
        node, place = self.root, self.root.place
        for index, part in enumerate(path):
            if isinstance(node.value, dict) and isinstance(part, str) and part in node.value:
                key_place, node = node.keys[part], node.value[part]
                at_key = node.value is None or key_place.line != node.place.line or (key and index == len(path) - 1)
                place = key_place if at_key else node.place
            elif isinstance(node.value, list) and isinstance(part, int) and 0 <= part < len(node.value):
                node = node.value[part]
                place = node.place
            else:
                break
        return place
