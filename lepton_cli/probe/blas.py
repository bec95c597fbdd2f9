"""numpy's matrix products on one thread.

OpenBLAS shares a product of a few hundred rows among its threads, and these look for the next one for milliseconds
afterwards. Many small products in a row cost several times their processor time that way, and take longer.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """No other threads for the products inside. Nothing changes where numpy brings no OpenBLAS of its own."""
    library = _openblas()
    if library is None:
        yield
        return
    before = library.scipy_openblas_get_num_threads64_()
    library.scipy_openblas_set_num_threads64_(1)
    try:
        yield
    finally:
        library.scipy_openblas_set_num_threads64_(before)


@functools.cache
def _openblas() -> ctypes.CDLL | None:
    """The library that numpy's wheel carries, which is loaded already."""
    inside = Path(np.__file__).parent
    for folder in (inside.with_name("numpy.libs"), inside / ".dylibs"):
        for file in folder.glob("*scipy_openblas64_*"):
            with contextlib.suppress(OSError):
                library = ctypes.CDLL(str(file))
                if hasattr(library, "scipy_openblas_set_num_threads64_"):
                    return library
    return None
