"""What differs between two graphs, as plain rows: the one source for terminal, Markdown and HTML."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from lepton_cli.graph.details import GraphDiff, LayerChange
from lepton_cli.report import words
from lepton_cli.report.model import Report


@dataclasses.dataclass(frozen=True)
class Changes:
    """`facts`: labelled lines. `rows`: layers that changed, under `header`; `more` of them are left out."""

    facts: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    more: int
    header: tuple[str, ...] = ("layer", "operator", "type", "weight", "parameters")


def changes(report: Report, longest: int) -> Changes | None:
    """What the report says about the graphs, `longest` layers at most; `None` when it says nothing."""
    diff = report.diff
    if diff is None:
        return None
    changed = [layer for layer in diff.layers if layer.change == "changed"]
    rows = tuple(_row(layer) for layer in changed[:longest])
    return Changes(tuple(_facts(diff)), rows, max(0, len(changed) - longest))


def _facts(diff: GraphDiff) -> Iterator[tuple[str, str]]:
    if diff.operators:
        yield "operators", ", ".join(f"{name} {old} → {new}" for name, (old, new) in diff.operators.items())
    for label, sides in (("inputs", diff.inputs), ("outputs", diff.outputs)):
        if len(sides) == 2:
            yield label, f"{', '.join(sides[0])} → {', '.join(sides[1])}"
    for change, side in (("removed", 0), ("added", 1)):
        counts = Counter(layer.op[side] for layer in diff.layers if layer.change == change)
        if counts:
            yield f"layers {change}", ", ".join(f"{count} {op}" for op, count in counts.most_common())
    if not (diff.layers or diff.operators or diff.inputs or diff.outputs):
        yield "unchanged", "operators, widths and types"
    else:
        yield "unchanged", words.plural(diff.layers_same, "layer")


def _row(layer: LayerChange) -> tuple[str, ...]:
    shapes = tuple("x".join(map(str, shape)) if shape is not None else None for shape in layer.shape)
    counts = tuple(f"{count:,}" if count is not None else None for count in layer.parameters)
    return (layer.node, *(_pair(*pair) for pair in (layer.op, layer.dtype, shapes, counts)))


def _pair(before: str | None, after: str | None) -> str:
    """Both sides, or one word where they are equal."""
    return before or "-" if before == after else f"{before or '-'} → {after or '-'}"
