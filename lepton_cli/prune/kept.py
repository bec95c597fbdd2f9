"""Rankings kept on disk, since no target changes them, and what was decided by the clock, so that it stays decided."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli import __version__
from lepton_cli.graph import io
from lepton_cli.prune.hessian import Ranking

#: By group: the ranking and the loss after removing 0, 1, 2, ... channels.
Ranked = dict[str, tuple[Ranking, NDArray[np.float64]]]


def key(model: ir.Model, *settings: object) -> str:
    """Hash of the model and everything else that the rankings follow from."""
    return hashlib.sha256(repr((io.fingerprint(model), __version__, *settings)).encode()).hexdigest()[:32]


def load(folder: Path | None, name: str, groups: list[str]) -> Ranked:
    """What is kept for these groups; empty when nothing or something else is."""
    if folder is None:
        return {}
    try:
        # Opened here: numpy forgets to close what turns out to be damaged.
        with (folder / f"ranking-{name}.npz").open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            return {
                group: (Ranking(kept[f"order{i}"], kept[f"loss{i}"]), kept[f"curve{i}"])
                for i, group in enumerate(groups)
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def save(folder: Path | None, name: str, ranked: Ranked) -> None:
    """Keep rankings; a folder that cannot be written costs time later and nothing else."""
    if folder is None:
        return
    arrays: dict[str, NDArray[np.float64] | NDArray[np.int64]] = {}
    for i, (ranking, curve) in enumerate(ranked.values()):
        arrays |= {f"order{i}": ranking.order, f"loss{i}": ranking.loss, f"curve{i}": curve}
    target = folder / f"ranking-{name}.npz"
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        temporary.replace(target)
    except OSError:
        temporary.unlink(missing_ok=True)


def load_facts(folder: Path | None, name: str, *fields: str) -> dict[str, Any] | None:
    """What `save_facts` kept, when it has these fields; `None` when nothing or something else is there."""
    if folder is None:
        return None
    try:
        kept = json.loads((folder / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and kept.keys() >= set(fields) else None


def save_facts(folder: Path | None, name: str, facts: dict[str, Any]) -> None:
    """Keep what was measured or decided: a second run gives the same bytes, sooner."""
    if folder is None:
        return
    target = folder / f"{name}.json"
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(facts))
        temporary.replace(target)
    except OSError:
        temporary.unlink(missing_ok=True)
