"""The report's plain sections: labelled facts and a list, said once and drawn alike in Markdown and HTML.

A new section is a function here and its place in `SECTIONS`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator

from lepton_cli.graph.details import GraphDiff, LayerChange
from lepton_cli.report import bought, words
from lepton_cli.report.model import Report


@dataclasses.dataclass(frozen=True)
class Section:
    """`facts`: labelled lines. `rows`: a list under `header`, names first; `more` are left out, `noun` says of what."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    more: int = 0
    noun: str = "row"

    @property
    def listed(self) -> str:
        """How long the whole list is, in words."""
        return words.plural(len(self.rows) + self.more, self.noun)


def sections(report: Report, longest: int) -> list[Section]:
    """All sections that the report has something to say in, with `longest` rows each at most."""
    found = (section(report, longest) for section in SECTIONS)
    return [section for section in found if section is not None]


def graph(report: Report, longest: int) -> Section | None:
    """What differs between two graphs."""
    diff = report.diff
    if diff is None:
        return None
    changed = [layer for layer in diff.layers if layer.change == "changed"]
    return Section(
        "Graph",
        tuple(_differences(diff)),
        ("layer", "operator", "type", "weight", "parameters"),
        tuple(_row(layer) for layer in changed[:longest]),
        max(0, len(changed) - longest),
        "changed layer",
    )


def _differences(diff: GraphDiff) -> Iterator[tuple[str, str]]:
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


def steps(report: Report, longest: int) -> Section | None:
    """What each step bought, all steps until then together, against the original."""
    listed = bought.rows(report)
    if not listed:
        return None
    shown = tuple((row.name, f"{row.size}; {row.speed}; {row.exactness}") for row in listed[:longest])
    return Section("What each step bought", (("after the step", "file; speed; exactness"), *shown))


def environment(report: Report) -> Section:
    """Where and with what the numbers were made: the last section."""
    here = report.environment
    listed = [
        ("lepton", here.lepton),
        ("onnxruntime", here.onnxruntime or "not installed"),
        ("onnx", here.onnx or "not installed"),
        ("Python", here.python),
        ("system", here.system),
        ("CPU", here.cpu),
        ("instruction sets", " ".join(here.instructions) or "-"),
        ("cores", f"{here.usable_cores} usable of {here.cores}"),
        ("memory", words.value(here.memory, "size")),
        ("providers", ", ".join(here.providers) or "-"),
    ]
    listed += [(f"{one.name} model", f"{one.file.path} (sha256 {one.file.sha256[:16]})") for one in report.variants]
    listed += [
        (f"{data.role} data", f"{data.path}, {words.plural(data.samples, 'sample')} ({data.fingerprint[:16]})")
        for data in report.data
    ]
    if report.recipe:
        listed.append(("recipe", f"{report.recipe.path or report.recipe.name} (sha256 {report.recipe.sha256[:16]})"))
    return Section("Environment", tuple(listed))


#: In reading order.
SECTIONS: tuple[Callable[[Report, int], Section | None], ...] = (steps, graph)
