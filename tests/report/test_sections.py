"""The plain sections: how the difference of two graphs is said."""

from __future__ import annotations

from typing import Any

from lepton_cli.report import html, markdown
from lepton_cli.report.sections import graph, sections
from tests.report import builders

LAYER: dict[str, Any] = {
    "node": "conv",
    "change": "changed",
    "op": ["Conv", "Conv"],
    "dtype": ["float32", "int8"],
    "shape": [[16, 3, 3, 3], [8, 3, 3, 3]],
    "parameters": [1432, 216],
}
GONE = {**LAYER, "node": "bn", "change": "removed", "op": ["BatchNormalization", None], "dtype": ["float32", None],
        "shape": [[16], None], "parameters": [16, None]}  # fmt: skip
DIFF: dict[str, Any] = {
    "nodes": [9, 8],
    "operators": {"BatchNormalization": [1, 0]},
    "inputs": [["x float32 [N, 8]"], ["input float32 [N, 8]"]],
    "outputs": [],
    "layers": [LAYER, GONE],
    "layers_same": 3,
}


def test_each_fact_has_its_line() -> None:
    found = graph(builders.report(diff=DIFF), 5)
    assert found is not None
    assert found.facts == (
        ("operators", "BatchNormalization 1 → 0"),
        ("inputs", "x float32 [N, 8] → input float32 [N, 8]"),
        ("layers removed", "1 BatchNormalization"),
        ("unchanged", "3 layers"),
    )
    assert found.rows == (("conv", "Conv", "float32 → int8", "16x3x3x3 → 8x3x3x3", "1,432 → 216"),)


def test_long_lists_are_cut_and_counted() -> None:
    found = graph(builders.report(diff={**DIFF, "layers": [LAYER] * 7}), 5)
    assert found is not None
    assert (len(found.rows), found.more, found.listed) == (5, 2, "7 changed layers")


def test_equal_graphs_are_said_to_be_equal() -> None:
    found = graph(builders.report(diff={"nodes": [1, 1], "layers_same": 1}), 5)
    assert found is not None
    assert found.facts == (("unchanged", "operators, widths and types"),)


def test_nothing_is_made_of_nothing() -> None:
    assert graph(builders.report(), 5) is None
    assert sections(builders.report(), 5) == []


def test_renderings_hold_it_harmlessly() -> None:
    hostile = {**LAYER, "node": "<script>|`x`"}
    report = builders.report(diff={**DIFF, "layers": [hostile]})
    said = markdown.render(report)
    assert "<summary>Graph</summary>" in said
    assert "BatchNormalization 1 → 0" in said
    page = html.render(report)
    assert "float32 → int8" in page
    assert "<script>|" not in page
