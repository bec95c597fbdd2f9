"""Where a training stands: kept every minute and at Ctrl-C, for the same training when it is started again.

What is kept lies in the cache, under all that decides the result; a training that was finished is not done again. Order
and augmentation follow from the number of the step, so what is gone on with gives the bytes of a run in one piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from lepton_cli.cache import Cache

#: Seconds between two; and times what it takes to write one, so that writing takes little of a training.
EVERY, SHARE = 60.0, 20.0
_KIND = "training"


class Checkpoints:
    """Those of one training. `key`: all that decides what it gives."""

    def __init__(self, cache: Cache, key: str) -> None:
        self._cache, self._key = cache, key
        self._wait, self._last = EVERY, time.monotonic()
        #: What is kept besides the trainer's state.
        self.facts: dict[str, Any] = {}

    def found(self) -> Mapping[str, Any] | None:
        """The newest; `None` where there is none."""
        return self._cache.get(_KIND, self._key, "done", "marks", "facts")

    def keep(self, state: Callable[[], Mapping[str, Any]], *, now: bool = False) -> None:
        """Write `state`, arrays and JSON values, if it is time, or `now`."""
        begun = time.monotonic()
        if self._cache.folder is None or (not now and begun - self._last < self._wait):
            return
        self._cache.put(_KIND, self._key, {**state(), "facts": self.facts})
        self._last = time.monotonic()
        self._wait = max(EVERY, SHARE * (self._last - begun))
