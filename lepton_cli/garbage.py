"""When Python looks for garbage in cycles: not while graphs are built, and not while models are timed."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Garbage is looked for later.

    A graph is many small objects, all in use. To look through them again and again while they are made takes longer
    than to make them (62 % of the time of `quantize.qdq.write`).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
