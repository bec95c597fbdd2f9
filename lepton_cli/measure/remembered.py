"""A session that runs every batch once: a search compares hundreds of models with the same original."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from lepton_cli.runtime import Session, Values

#: Bytes of outputs kept; batches beyond are run again.
KEPT = 500_000_000


class Remembered(Session):
    """Outputs by content of the inputs. Pass it to `accuracy.evaluate` in place of a model."""

    def __init__(self, model: bytes, *, threads: int | None = None) -> None:
        super().__init__(model, threads=threads)
        self._outputs: dict[bytes, Values] = {}
        self._bytes = 0

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> Values:
        """As `Session.run`; arrays handed out are not to be changed."""
        key = _key(feeds, outputs)
        found = self._outputs.get(key)
        if found is None:
            found = super().run(feeds, outputs)
            size = sum(value.nbytes for value in found.values() if isinstance(value, np.ndarray))
            if self._bytes + size <= KEPT:
                self._outputs[key] = found
                self._bytes += size
        return dict(found)


def _key(feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None) -> bytes:
    digest = hashlib.blake2b(repr(outputs).encode(), digest_size=16)
    for name, array in feeds.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes() if array.dtype == object else np.ascontiguousarray(array).data)
    return digest.digest()
