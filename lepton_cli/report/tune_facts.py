"""The trials of `lepton tune` as a report holds them (`extra["tune"]`), in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lepton_cli import metrics
from lepton_cli.report import words
from lepton_cli.report.model import Report


def search(report: Report) -> dict[str, Any] | None:
    """`extra["tune"]` of a search that tried something."""
    tuned = report.extra.get("tune")
    return tuned if isinstance(tuned, dict) and tuned.get("trials") else None


def trials(tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every trial in words, in the order they ended. `cost` and `quality` are empty where not measured."""
    return [trial(number, row, tuned) for number, row in enumerate(tuned["trials"], 1)]


def trial(number: int, row: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, Any]:
    """One trial; `kind` is `front`, `held` (within the limits) or `broken`."""
    cost, quality = tuned["axes"]["cost"], tuned["axes"]["quality"]
    kind = "front" if row["front"] and row["feasible"] else "held" if row["feasible"] else "broken"
    return {
        "number": number,
        "name": words.printable(row["name"], 160),
        "best": row["key"] == tuned["best"],
        "kind": kind,
        "x": row["cost"],
        "y": None if row["quality"] is None else -row["quality"],
        "cost": axis_value(row["cost"], cost),
        "quality": axis_value(row["quality"], quality),
        "file": "" if row["file"] is None else words.value(row["file"], "size"),
        "reason": words.printable(row["reason"], 300),
        "feasible": row["feasible"],
        "steps": row["steps"],
    }


def axis_value(value: float | None, axis: Mapping[str, Any]) -> str:
    """A cost or quality in words; they are stored so that lower is better, times as ratios to the original."""
    if value is None:
        return ""
    number = -value if axis["higher_is_better"] else value
    if axis["kind"] == "ratio":
        return f"{words.significant(100 * number)} %"
    return words.value(number, metrics.of(str(axis["metric"])).kind)


def label(axis: Mapping[str, Any]) -> str:
    """The metric with what narrows it down."""
    where = " ".join(f"{key} {axis[key]}" for key in ("provider", "batch", "output") if axis.get(key))
    return f"{axis['metric']}{f' ({where})' if where else ''}"
