"""Results worth keeping between runs: keys of named parts, one folder, atomic writes, a bound on its size.

An entry is one `.npz` file: arrays as they are, everything else as JSON in a member of its own. Nothing in it is ever
executed, so a cache that somebody else wrote can spoil a result and no more. What cannot be read counts as not there,
and a folder that cannot be written costs time later and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from lepton_cli import __version__

if TYPE_CHECKING:
    import numpy as np

#: Raised when entries of the same key would mean something else than before.
VERSION = 1
#: Bytes of all entries together; those not used for longest go first.
LIMIT = 2_000_000_000
#: Packages whose version decides what a computation gives.
_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu")
_JSON = "json"


@functools.cache
def versions() -> dict[str, str]:
    """Versions that every key contains: lepton's, and those of the packages that compute."""
    found = {"lepton": __version__, "cache": str(VERSION)}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def key(**parts: object) -> str:
    """A hash (32 hexadecimal digits) of named parts and of `versions()`; another value of any part gives another key.

    Parts are JSON values, dataclasses, pydantic models, sets, paths and numpy arrays, in any nesting. Everything else
    is a TypeError: a text that holds an address would never be found again.
    """
    text = json.dumps(
        {"versions": versions(), "parts": parts}, sort_keys=True, ensure_ascii=False, default=_plain, allow_nan=True
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _plain(value: object) -> object:
    """JSON for what JSON has no type for."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):  # numpy arrays and numbers
        return [str(value.dtype), list(getattr(value, "shape", ())), hashlib.sha256(value.tobytes()).hexdigest()]
    raise TypeError(f"a cache key cannot contain a {type(value).__name__}")


def default_folder() -> Path | None:
    """`LEPTON_CACHE` (empty: `None`, keep nothing), else `lepton` in the user's cache folder."""
    chosen = os.environ.get("LEPTON_CACHE")
    if chosen == "":
        return None
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lepton"


@dataclasses.dataclass(frozen=True)
class Cache:
    """Entries by kind and key in `folder`; `None` keeps and finds nothing."""

    folder: Path | None
    limit: int = LIMIT

    @classmethod
    def usual(cls) -> Cache:
        """The cache of this user; one that keeps nothing where its folder cannot be made."""
        folder = default_folder()
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return cls(None)
        return cls(folder)

    def get(self, kind: str, key: str, *fields: str) -> dict[str, Any] | None:
        """What was put under this key; `None` when nothing is, or something without these fields or unreadable."""
        import numpy as np

        if self.folder is None:
            return None
        path = self._path(kind, key)
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                found: dict[str, Any] = json.loads(stored[_JSON].tobytes())
                found |= {name: stored[name] for name in stored.files if name != _JSON}
        except Exception:  # zipfile, zlib, json and numpy raise a dozen types for damaged files
            return None
        if not found.keys() >= set(fields):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def put(self, kind: str, key: str, values: Mapping[str, Any]) -> None:
        """Keep JSON values and numpy arrays by field name."""
        import numpy as np

        if self.folder is None:
            return
        arrays: dict[str, np.ndarray] = {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
        plain = json.dumps({name: value for name, value in values.items() if name not in arrays})
        path = self._path(kind, key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                np.savez_compressed(stream, **{_JSON: np.frombuffer(plain.encode(), np.uint8), **arrays})  # type: ignore[arg-type]
            temporary.replace(path)
            self._shrink()
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _path(self, kind: str, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{kind}-{key}.npz"

    def _shrink(self) -> None:
        """Remove the entries not used for longest until the rest is within the limit."""
        assert self.folder is not None
        entries = [(entry.stat(), entry.path) for entry in os.scandir(self.folder) if entry.name.endswith(".npz")]
        total = sum(facts.st_size for facts, _ in entries)
        for facts, path in sorted(entries, key=lambda entry: entry[0].st_mtime_ns):
            if total <= self.limit:
                break
            os.unlink(path)
            total -= facts.st_size
