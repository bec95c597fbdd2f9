"""The figures at the head of the HTML report name what came out worst."""

from __future__ import annotations

import pytest

from lepton_cli.measure.results import Accuracy, Fidelity, FidelityPart
from lepton_cli.report import html
from tests.report import builders


def close(output: str, sqnr: float | None, agreement: float | None = None, **parts: float) -> Fidelity:
    return Fidelity(
        output=output,
        agreement=agreement,
        agreement_low=agreement,
        agreement_high=agreement,
        sqnr_db=sqnr,
        max_abs_error=0.0 if sqnr is None else 1.0,
        n=8,
        parts=tuple(FidelityPart(where=f"[:, {name}]", sqnr_db=decibel) for name, decibel in parts.items()),
    )


@pytest.mark.parametrize(
    ("fidelity", "cards"),
    [
        ([close("y", 40.0)], [("Fidelity", "40.0 dB", "errors are 1 % of the output", "SQNR")]),
        ([close("y", None)], [("Fidelity", "identical", "errors are 0 % of the output", "SQNR")]),
        ([close("y", 30.2, 0.9)], [("Agreement", "90.00 %", "same answer as the original", "SQNR 30.2 dB")]),
        ([close("y", None, 1.0)], [("Agreement", "100.00 %", "same answer as the original", "")]),
        (
            [close("boxes", 60.0), close("scores", 40.0, box=50.0, score=20.0)],
            [("Fidelity", "20.0 dB", "errors are 10 % of the output", "SQNR, worst of 3: scores[:, score]")],
        ),
        (
            [close("a", 20.0, 0.99), close("b", 40.0, 0.5), close("c", None)],
            [
                ("Agreement", "50.00 %", "same answer as the original", "worst of 2: b"),
                ("Fidelity", "20.0 dB", "errors are 10 % of the output", "SQNR, worst of 3: a"),
            ],
        ),
        ([], []),
    ],
)
def test_the_worst_output_or_part_is_named(fidelity: list[Fidelity], cards: list[tuple[str, ...]]) -> None:
    report = builders.report(accuracy=Accuracy(fidelity=tuple(fidelity)), latency=None, variants=())
    assert [tuple(card.values()) for card in html.cards(report)] == cards
