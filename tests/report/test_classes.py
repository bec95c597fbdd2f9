"""Classes in reports: the worst first, on one scale, and nothing painted that chance may have done."""

from __future__ import annotations

import re

import pytest

from lepton_cli.measure import rows
from lepton_cli.measure.results import Accuracy, ClassChange
from lepton_cli.measure.rows import Counts
from lepton_cli.report import classes, figures, html, markdown
from lepton_cli.report.headline import headline
from lepton_cli.report.model import Report
from tests.report import builders

LOST = [6, 6, 6, 86, 6, 60, 6, 6, 6, 0]


def of(*counted: Counts) -> Report:
    found, spread = rows.judged({("logits", ""): counted})
    return builders.report(accuracy=Accuracy(classes=found, spread=spread))


def drawn(report: Report) -> list[str]:
    """The drawings of the chart."""
    (figure,) = (one for one in figures.figures(report) if one.key == "classes")
    return re.findall(r"<svg.*?</svg>", str(figure.chart), re.DOTALL)


def bars(report: Report) -> list[tuple[str, float, float, float, float]]:
    """Style, left end and width of each bar, and both ends of its interval, in per cent of the width."""
    found = re.findall(
        r'<rect class="(?!track)(\w+)" x="([\d.]+)%" y="\d+" width="([\d.]+)%".*?'
        r'<line class="range" x1="([\d.]+)%" x2="([\d.]+)%"',
        "".join(drawn(report)),
        re.DOTALL,
    )
    return [(style, *map(float, numbers)) for style, *numbers in found]  # type: ignore[misc]


def test_bars_are_drawn_from_the_middle_of_one_scale() -> None:
    report = builders.report(accuracy=builders.accuracy(lost=LOST))
    assert report.accuracy is not None
    cat = next(one for one in report.accuracy.classes if one.label == "cat")
    assert cat.low is not None and cat.high is not None  # noqa: PT018
    # Its interval ends at 19 points: the axis at 20.
    assert 0.15 < -cat.low < 0.2
    style, left, width, low, high = bars(report)[0]
    assert (style, left, width) == ("worse", pytest.approx(10), pytest.approx(40))
    assert (low, high) == pytest.approx((50 + 250 * cat.low, 50 + 250 * cat.high), abs=0.01)
    assert all(">-20 pp<" in one and ">+20 pp<" in one for one in drawn(report))
    # Dog lost for certain, truck won six of six by chance in 32 and ten classes, the others are equal.
    assert [style for style, *_ in bars(report)] == ["worse", "worse", *["chance"] * 8]
    assert bars(report)[-1][1:3] == pytest.approx((50, 3))


def test_of_many_classes_the_worst_are_drawn() -> None:
    report = of(*(Counts(f"c{label}", 400 - label, label, 0, 0) for label in range(30)))
    (figure,) = (one for one in figures.figures(report) if one.key == "classes")
    assert len(bars(report)) == 24
    assert figure.text.endswith("The 24 that lost most are drawn.")
    assert [row[0] for row in figure.rows] == [f"c{label}" for label in range(29, -1, -1)]


def test_small_changes_are_drawn_small() -> None:
    """Half a point on an axis of five."""
    report = of(*(Counts(str(label), 9000, 60, 10, 930) for label in range(3)))
    assert bars(report)[0][1:3] == pytest.approx((45, 5))
    assert ">-5 pp<" in drawn(report)[0]


def test_a_gain_that_is_no_chance_is_coloured() -> None:
    assert bars(of(Counts("a", 400, 0, 40, 60)))[0][0] == "after"


def test_classes_of_a_few_samples_are_listed_and_not_drawn() -> None:
    report = of(*(Counts(str(label), 0, 1, 0, 0) for label in range(100)), Counts("right", 1, 0, 0, 0))
    (figure,) = (one for one in figures.figures(report) if one.key == "classes")
    assert not drawn(report)
    assert figure.legend == ()
    assert figure.text == "None of the 101 classes has 30 samples: they are counted, not judged."
    assert figure.rows[0] == ("0", "1", "100.00 %", "0.00 %", "-", "-", "1", "0", "-")
    assert figure.rows[-1][0] == "right"
    assert "100.00 pp" not in html.render(report)
    assert "100.00 pp" not in markdown.render(report)


def test_the_worst_come_first_and_those_of_a_few_samples_behind() -> None:
    report = of(
        Counts("few", 10, 19, 0, 0),
        Counts("won", 90, 0, 10, 0),
        Counts("fewer", 1, 2, 0, 0),
        Counts("lost", 80, 20, 0, 0),
        Counts("same", 100, 0, 0, 0),
    )
    assert [one.label for one in classes.ranked(report)] == ["lost", "same", "won", "few", "fewer"]
    assert classes.summary(report) == (
        "Change in percentage points with its 95 % interval, losses to the left. 2 of 3 classes changed by more than "
        "chance (McNemar's exact test, Holm's correction); 2 with fewer than 30 samples are "
        "counted, not judged."
    )


def test_a_line_of_the_table() -> None:
    row = classes.ranked(of(Counts("a", 40, 8, 0, 2), Counts("b", 50, 0, 0, 0)))[0]
    told = dict(zip(classes.HEADER, classes.cells(builders.report(), row), strict=True))
    assert {key: told[key] for key in ("class", "n", "original", "compressed", "change", "lost", "won")} == {
        "class": "a",
        "n": "50",
        "original": "96.00 %",
        "compressed": "80.00 %",
        "change": "-16.00 pp",
        "lost": "8",
        "won": "0",
    }
    # Two of 2^8 ways, and two classes.
    assert told["p (Holm)"] == "0.0156"
    assert re.fullmatch(r"\[-2\d\.\d\d, -\d\.\d\d\]", told["95 % interval"])


def test_reports_of_earlier_versions_hold_no_counts() -> None:
    old = ClassChange(label="a", n=500, original=0.9, compressed=0.8)
    report = builders.report(accuracy=Accuracy(classes=(old,)))
    assert classes.cells(report, old) == ("a", "500", "90.00 %", "80.00 %", "-10.00 pp", "-", "-", "-", "-")
    assert html.render(report)
    assert markdown.render(report)


def test_outputs_are_told_where_several_have_classes() -> None:
    counted = (Counts("a", 100, 0, 0, 0),)
    found, spread = rows.judged({("first", ""): counted, ("second", ""): (Counts("a", 100, 0, 0, 0),)})
    report = builders.report(accuracy=Accuracy(classes=found, spread=spread))
    assert [classes.name(report, one) for one in classes.ranked(report)] == ["a of first", "a of second"]


def test_groups_are_told_by_their_column() -> None:
    counted = {
        ("y", ""): (Counts("a", 100, 0, 0, 0),),
        ("y", "site"): (Counts("north", 450, 50, 0, 0), Counts("south", 500, 0, 0, 0)),
    }
    found, spread = rows.judged(counted)
    report = builders.report(accuracy=Accuracy(classes=found, spread=spread))
    assert [classes.name(report, one) for one in classes.ranked(report)] == ["site north", "a", "site south"]
    assert "site north -10.0 pp" in headline(report)
    assert "1 of 3 classes and groups changed by more than chance" in classes.summary(report)
    assert "<summary>Accuracy by class and group</summary>" in markdown.render(report)
    assert "Accuracy by class and group</h2>" in html.render(report)


def test_markdown_lists_the_worst_twenty() -> None:
    report = of(*(Counts(f"c{label}", 400 - label, label, 0, 0) for label in range(30)))
    text = markdown.render(report)
    part = text[text.index("<summary>Accuracy by class") :]
    part = part[: part.index("</details>")]
    named = re.findall(r"^\| `(c\d+)` ", part, re.MULTILINE)
    assert named == [f"c{label}" for label in range(29, 9, -1)]
    assert "and 10 more in report.json" in part
    assert "McNemar" in part
