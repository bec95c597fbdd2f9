"""Which nodes a step touches: `include` and `exclude` globs on node names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from lepton_cli.errors import RecipeError


def select(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> set[str]:
    """Names matched by `include` (empty: all) and not by `exclude`.

    Raises RecipeError for a glob that matches nothing; its `option` says which one.
    """
    names = list(names)
    chosen = set(names) if not include else set()
    for option, globs in (("include", include), ("exclude", exclude)):
        for index, glob in enumerate(globs):
            matched = {name for name in names if fnmatchcase(name, glob)}
            if not matched:
                raise RecipeError(
                    "recipe.glob-matches-nothing",
                    f"`{glob}` matches no node of the model",
                    hint="lepton inspect MODEL --nodes   lists all names",
                    option=(option, index),
                )
            chosen = chosen | matched if option == "include" else chosen - matched
    return chosen
