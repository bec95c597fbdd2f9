"""How much computing the search for a good int8 model may cost: what `effort` in a recipe stands for."""

from __future__ import annotations

import dataclasses
from typing import Literal

Name = Literal["quick", "normal", "thorough"]


@dataclasses.dataclass(frozen=True)
class Effort:
    """Limits of the search; what it finds is judged alike."""

    #: Layers measured alone; where there are more, groups of neighbours.
    groups: int
    #: Samples that tell which layers cost most, and which trials are hopeless.
    few: int
    #: Layers that a guard tries to take back into int8 once its limit holds.
    second_tries: int
    #: Numbers of first layers that are tried in float for speed, where a profile says that it may gain.
    prefixes: tuple[int, ...]
    #: Whether other ranges than from least to greatest are tried.
    clips: bool


EFFORTS: dict[Name, Effort] = {
    "quick": Effort(groups=16, few=4, second_tries=0, prefixes=(), clips=False),
    "normal": Effort(groups=48, few=8, second_tries=8, prefixes=(1, 2, 4, 8), clips=True),
    "thorough": Effort(groups=1_000, few=64, second_tries=1_000, prefixes=tuple(range(1, 17)), clips=True),
}
