"""Which layers int8 does not pay for, kept on disk: measured once, so that a second run gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lepton_cli import __version__
from lepton_cli.model import io
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.targets import Target, instruction_sets
from lepton_cli.runtime import onnxruntime
from lepton_cli.step import Context

Decided = tuple[Choice, dict[str, Any]]


def decide(
    model: ir.Model, choice: Choice, target: Target, context: Context, measure: Callable[[], Decided]
) -> Decided:
    """What `measure` decides, or what it decided for the same model, machine and settings before."""
    if context.cache is None or io.weight_bytes(model) >= io.EXTERNAL_ABOVE:
        return measure()
    path = context.cache / f"speed-{_key(model, choice, target, context)}.json"
    kept = _load(path)
    if kept is not None:
        for reason, nodes in kept["dropped"].items():
            choice = choice.without(nodes, reason, model)
        return choice, kept["measured"]
    decided, measured = measure()
    dropped: dict[str, list[str]] = {}
    for decision in decided.kept:
        if decision.node in choice.anchors - decided.anchors:
            dropped.setdefault(decision.reason, []).append(decision.node)
    _save(path, {"dropped": dropped, "measured": measured})
    return decided, measured


def _key(model: ir.Model, choice: Choice, target: Target, context: Context) -> str:
    digest = hashlib.sha256(io.to_bytes(model))
    shown = None if context.calibration is None else context.calibration.fingerprint
    machine = (sorted(instruction_sets()), context.provider, context.batch, context.threads, shown)
    digest.update(
        repr((__version__, onnxruntime().__version__, sorted(choice.anchors), target.name, *machine)).encode()
    )
    return digest.hexdigest()[:32]


def _load(path: Path) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and {"dropped", "measured"} <= kept.keys() else None


def _save(path: Path, decided: dict[str, Any]) -> None:
    """A folder that cannot be written costs time later and nothing else."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(decided))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
