"""Markdown, HTML, JUnit and GitHub output: complete, bounded, and harmless whatever a node is called."""

from __future__ import annotations

import html.parser
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_cli.errors import OutputError
from lepton_cli.measure.results import ClassChange, Flip
from lepton_cli.prune.details import PruneChannelsDetails, Width
from lepton_cli.quantize.details import QuantizeStaticDetails, Sensitivity, Speed
from lepton_cli.report import charts, figures, github, junit, markdown, render, store
from lepton_cli.report import html as page
from lepton_cli.report.model import RECORDS, Failure, Report, StepRecord
from lepton_cli.step import Decision
from lepton_cli.train.details import TrainingDetails, TrainingMark
from tests.report import builders

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "<!-- --> | ``` `code` | **b** [x](javascript:alert(1)) @everyone",
    "\u202eevil\u202c\u2066 \x00\x1b[31mred",
    "{{ 7 * 7 }}{% raw %}",
    "conv\nline::error ::x\r\n]]>",
    "n" * 5000,
)


def hostile(names: tuple[str, ...] = HOSTILE) -> Report:
    """Every text that can come from a model, a data set or a message is one of `names`."""
    report = builders.report()
    layers = tuple(builders.layer(name, 1000, "float32", 10) for name in names)
    variants = builders.with_layers(report.variants, layers)
    widths = tuple(Width(node=name, before=8, after=4) for name in names)
    sensitivity = tuple(Sensitivity(node=name, op=name, sqnr_db=20.0) for name in names)
    detailed = (
        ("prune.channels", PruneChannelsDetails(widths=widths)),
        ("quantize.static", QuantizeStaticDetails(target=names[0], why=names[0], sensitivity=sensitivity)),
    )
    steps = tuple(
        StepRecord(
            index=index,
            step=name,
            changed=1,
            seconds=0.1,
            summary=name,
            warnings=(name,),
            decisions=(Decision(node=name, op=name, action=name, reason=name),),
        )
        for index, name in enumerate(names)
    )
    steps += tuple(
        RECORDS[step](index=len(names), step=step, changed=1, seconds=0.1, summary="", details=details)
        for step, details in detailed
    )
    gates = tuple(
        builders.verdict(
            "size.file",
            "fail",
            scope={"output": name},
            observed=name,
            excess=name,
            reason=name,
            hint=name,
            where=f"{name}:3",
        )
        for name in names
    )
    assert report.accuracy is not None
    accuracy = report.accuracy.model_copy(
        update={
            "classes": tuple(ClassChange(label=name, n=1, original=1, compressed=0.5) for name in names),
            "flips": tuple(
                Flip(sample=1, label=name, original=name, compressed=name, confidence=0.5) for name in names
            ),
            "warnings": names,
        }
    )
    return report.model_copy(
        update={
            "headline": names[0],
            "variants": variants,
            "steps": steps,
            "gates": gates,
            "accuracy": accuracy,
            "reproduce": "\n".join(names),
            "error": Failure(code=names[0], message=names[1 % len(names)], cause=names[0], help=names[0]),
        }
    )


class Page(html.parser.HTMLParser):
    """What a browser would make of the page: its elements, attributes and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[-1] += data
        else:
            self.text += data


def assert_harmless(text: str) -> None:
    seen = Page(text)
    assert seen.tags.count("script") == 2
    assert seen.scripts[1] == (Path(page.__file__).with_name("templates") / "report.js").read_text()
    json.loads(seen.scripts[0])
    assert not {"img", "iframe", "object", "base"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)


def test_html_is_one_file_without_network() -> None:
    text = page.render(builders.report())
    seen = Page(text)
    links = [value for name, value in seen.attributes if name in ("src", "href", "action", "data", "srcset")]
    assert links == ["data:,"]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert len(text.encode()) < 300_000


def test_html_shows_all_parts() -> None:
    text = page.render(
        builders.report(gates=(builders.verdict(), builders.verdict("macs", "skipped", reason="no shapes")))
    )
    for title in (
        "Original and compressed",
        "Gates",
        "Warnings",
        "Latency, cpu batch 1",
        "Size by layer",
        "Channels kept",
        "Error by layer",
        "Accuracy by class",
        "Changed answers",
        "Steps",
        "Environment",
        "How to reproduce",
    ):
        assert title in text
    assert "no shapes" in text


def test_html_tells_what_layers_reach_where_they_were_timed() -> None:
    rows = (
        Sensitivity(node="a", op="Conv", sqnr_db=30.0, int8_gmacs=123.4, float_gmacs=45.6),
        Sensitivity(node="b", op="Conv", sqnr_db=40.0, int8_gmacs=77.7),
    )
    step = builders.steps()[-1]
    for told, expected in (
        (rows, True),
        (tuple(Sensitivity(node=r.node, op="Conv", sqnr_db=1.0) for r in rows), False),
    ):
        details = QuantizeStaticDetails(sensitivity=told)
        text = page.render(builders.report(steps=(step.model_copy(update={"details": details}),)))
        assert ("int8 GMAC/s" in text) == expected
        assert all((f">{rate}</td>" in text) == expected for rate in (123, 46, 78))


def test_html_charts_have_titles_descriptions_and_tables() -> None:
    text = page.render(builders.report())
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) >= 6
    assert all('role="img"' in drawing and "<title>" in drawing and "<desc>" in drawing for drawing in drawings)
    assert text.count("The same numbers as a table") == text.count("<figure>")


def test_html_embeds_the_report_without_raw_times() -> None:
    report = builders.report()
    embedded = json.loads(Page(page.render(report)).scripts[0])
    assert embedded["variants"][1]["size"]["file"] == report.variants[1].size.file
    assert Report.model_validate_json(json.dumps(embedded)).headline == report.headline


def test_html_of_hostile_names_is_harmless() -> None:
    assert_harmless(page.render(hostile()))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(min_size=1), min_size=1, max_size=3).map(tuple))
def test_html_of_any_names_is_harmless(names: tuple[str, ...]) -> None:
    assert_harmless(page.render(hostile(names)))


def test_html_of_a_huge_model_stays_small() -> None:
    names = tuple(f"/encoder/layer.{index}/attention/self/query/MatMul_quantized_{index}" for index in range(4000))
    layers = tuple(builders.layer(name, 1000 + index, "float32", 10) for index, name in enumerate(names))
    report = builders.report()
    variants = builders.with_layers(report.variants, layers)
    decisions = tuple(
        Decision(node=name, op="MatMul", action="quantized", reason="a reason of some words") for name in names
    )
    steps = tuple(step.model_copy(update={"decisions": decisions}) for step in report.steps)
    big = report.model_copy(update={"variants": variants, "steps": steps})
    text = page.render(big)
    assert len(text.encode()) < 300_000
    assert "more in report.json" in text
    assert len(markdown.render(big).encode()) <= markdown.LARGEST


@pytest.mark.parametrize(
    "changes",
    [
        {"variants": (), "accuracy": None, "latency": None, "steps": (), "recipe": None, "data": ()},
        {"variants": (builders.variant("original", builders.sizes(), 1),), "accuracy": None, "latency": None},
        {"status": "failed", "complete": False, "error": {"code": "step.failed", "message": "out of memory"}},
        {"steps": tuple(step.without_lists() for step in builders.steps())},
        {"steps": (builders.unknown_step(),)},
    ],
)
def test_every_rendering_of_partial_reports(changes: dict[str, object]) -> None:
    report = builders.report(**changes)
    for kind in render.FILES:
        assert isinstance(render.render(report, kind), str)
    assert report.headline in Page(page.render(report)).text.replace("\N{NON-BREAKING HYPHEN}", "-")


def test_a_step_that_left_the_model_tells_what_it_tried_as_not_applied() -> None:
    speed = Speed(speedup=0.8, verdict="int8 does not pay here")
    details = QuantizeStaticDetails(target="x86-vnni", speed=speed)
    told = {}
    for why in ("", "its result is as large as before"):
        record = RECORDS["quantize.static"](
            index=0, step="quantize.static", changed=0, seconds=0.1, summary=why, left_because=why, details=details
        )
        report = builders.report(steps=(record,))
        told[bool(why)] = [markdown.render(report), page.render(report)]
        assert ("int8 does not pay here" in report.headline) == (not why)
    assert all("tried, not applied: target" in text and "x86-vnni" in text for text in told[True])
    assert not any("tried" in text for text in told[False])


def test_markdown_starts_with_marker_and_verdict() -> None:
    lines = markdown.render(builders.report(gates=(builders.verdict(),))).splitlines()
    assert lines[0] == "<!-- lepton:resnet20-int8 -->"
    assert lines[2].startswith("**6.3x smaller")
    assert "the gate passed" in lines[2]


def test_markdown_lists_the_worst_gate_first_and_folds_steps() -> None:
    gates = (
        builders.verdict(),
        builders.verdict("macs", "inconclusive"),
        builders.verdict("nodes", "fail", excess="over by 3"),
    )
    text = markdown.render(builders.report(gates=gates))
    assert text.index("`nodes`") < text.index("`macs`") < text.index("`size.file`")
    assert "FAIL" in text
    assert "over by 3" in text
    assert "<details><summary>2. prune.channels: 60.1 % of the MACs remain</summary>" in text
    assert "- **pruned** 3, 32 to 24 channels: `layer2.0.conv1`" in text
    assert "lepton compress models/resnet20.onnx" in text


def test_markdown_of_hostile_names_keeps_its_structure() -> None:
    text = markdown.render(hostile())
    outside = re.sub(r"```sh\n.*?\n```", "", text, flags=re.DOTALL)
    outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", outside)
    assert not re.search(r"(?<!\\)<(?!/?(details|summary|br|sub)\b|!-- lepton:)", outside)
    assert "@everyone" not in outside
    for line in text.splitlines():
        if line.startswith("| ") and "set in" not in line and "recipe" in line:
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 6)


def test_markdown_is_cut_at_60_kilobytes() -> None:
    warnings = tuple(f"warning number {index}: {'x' * 200}" for index in range(400))
    text = markdown.render(builders.report(warnings=warnings))
    assert len(text.encode()) <= markdown.LARGEST
    assert text.rstrip().endswith("truncated, full report in report.html and report.json_")
    assert text.count("<details>") == text.count("</details>")


@given(st.text())
def test_markdown_code_spans_hold_any_name(name: str) -> None:
    span = markdown.code(name)
    fence = re.match("`+", span)
    assert fence
    inner = span[len(fence[0]) : -len(fence[0])]
    assert span.endswith(fence[0])
    assert fence[0] not in re.findall("`+", inner)
    assert "\n" not in span
    assert not re.search(r"(?<!\\)\|", span)


def test_junit_counts_and_places() -> None:
    gates = (
        builders.verdict(),
        builders.verdict(
            "macs", "fail", observed="9 M", excess="over by 1 M", hint="largest: fc", where="recipe.yaml:50"
        ),
        builders.verdict("nodes", "fail", level="warn"),
        builders.verdict("latency.median", "inconclusive", scope={"provider": "cpu", "batch": 1}),
        builders.verdict("latency.median", "skipped", reason="no CUDA"),
    )
    root = ET.fromstring(junit.render(builders.report(gates=gates)))
    suite = root[0]
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "1",
        "errors": "0",
        "skipped": "3",
    }
    failed = suite.findall("testcase")[1]
    assert (failed.get("file"), failed.get("line")) == ("recipe.yaml", "50")
    failure = failed.find("failure")
    assert failure is not None
    assert failure.get("message") == "found 9 M, over by 1 M"
    assert "largest: fc" in (failure.text or "")


def test_junit_of_a_broken_run_is_not_green() -> None:
    root = ET.fromstring(junit.render(builders.report(complete=False, status="interrupted")))
    assert root[0].get("errors") == "1"


@given(st.lists(st.text(min_size=1), min_size=1, max_size=2).map(tuple))
def test_junit_is_well_formed_whatever_the_names(names: tuple[str, ...]) -> None:
    ET.fromstring(junit.render(hostile(names)))


def test_annotations_name_file_line_and_title_worst_first() -> None:
    gates = (
        builders.verdict("nodes", "skipped", reason="why"),
        builders.verdict(
            "size.file", "fail", limit="max 200 kB", excess="over by 10,345 bytes", hint="100 % of, it:\nx"
        ),
        builders.verdict(),
    )
    lines = github.annotations(builders.report(gates=gates)).splitlines()
    assert lines[0] == (
        "::error file=recipe.yaml,line=47,title=size.file::"
        "limit max 200 kB, found 210,345 bytes, over by 10,345 bytes%0A100 %25 of, it:%0Ax"
    )
    assert lines[1].startswith("::notice file=recipe.yaml,line=47,title=nodes::skipped: ")
    assert len(lines) == 2


def test_at_most_ten_annotations_each_on_one_line() -> None:
    gates = tuple(builders.verdict("size.file", "fail", level="warn" if i < 20 else "error") for i in range(30))
    lines = github.annotations(builders.report(gates=gates)).splitlines()
    assert len(lines) == 10
    assert all(line.startswith("::error ") for line in lines)
    for line in github.annotations(hostile()).splitlines():
        assert re.match(r"::error [^\n]*::", line)


def test_annotation_properties_are_escaped() -> None:
    gate = builders.verdict("size.file", "fail", scope={"output": "a,b:c%"}, where="C:\\r,x.yaml:3")
    line = github.annotations(builders.report(gates=(gate,)))
    assert "title=size.file a%2Cb%3Ac%25" in line
    assert "file=C%3A\\r%2Cx.yaml,line=3" in line


def test_summary_is_appended_only_inside_actions(tmp_path: Path) -> None:
    target = tmp_path / "summary.md"
    target.write_text("before\n")
    assert not github.append_summary(builders.report(), {})
    assert github.append_summary(builders.report(), {"GITHUB_STEP_SUMMARY": str(target)})
    assert target.read_text().startswith("before\n<!-- lepton:")
    with pytest.raises(OutputError):
        github.append_summary(builders.report(), {"GITHUB_STEP_SUMMARY": str(tmp_path)})


def test_files_by_kind(tmp_path: Path) -> None:
    written = render.write(builders.report(), tmp_path, ("json", "md", "html", "junit"))
    assert [path.name for path in written] == ["report.json", "report.md", "report.html", "report.junit.xml"]
    assert store.read(written[0]) == builders.report()


def test_chart_ticks_are_round() -> None:
    assert charts.ticks(0, 0.62e-3) == pytest.approx([0, 0.2e-3, 0.4e-3, 0.6e-3])
    assert 3 <= len(charts.ticks(0.9, 1.1)) <= 6


@given(st.floats(0, 1e3), st.floats(1e-9, 1e3))
def test_chart_ticks_lie_within(start: float, width: float) -> None:
    end = start + width
    if end - start > 1e-6 * end:
        assert all(start - 1e-6 * width <= time <= end + 1e-6 * width for time in charts.ticks(start, end))


def test_chart_of_equal_times_and_of_none() -> None:
    sample = charts.Sample("one", "after", 0.001, (0.001,) * 5)
    assert "<svg" in charts.distributions("title", "text", [sample])
    assert charts.distributions("title", "text", [charts.Sample("none", "after", 0.001, ())]) == ""
    assert charts.bars("title", "text", []) == ""


def test_long_names_keep_their_end_from_a_separator_on() -> None:
    assert charts.shortened("/stages/stages.2/stages.2.0/conv2/conv/Conv") == "…/stages.2.0/conv2/conv/Conv"
    assert len(charts.shortened("n" * 500)) <= 34


@given(st.text())
def test_shortened_names_are_never_longer(name: str) -> None:
    assert len(charts.shortened(name)) <= max(34, min(len(name), 34))


def test_outliers_do_not_flatten_a_distribution() -> None:
    sample = charts.Sample("one", "after", 0.001, (0.001,) * 90 + (0.5,) * 10)
    assert charts.time_axis([sample])[1] < 0.004
    table = builders.latency_table()
    slow = table.results[0].model_copy(update={"times": (0.483e-3,) * 90 + (0.5,) * 10})
    text = page.render(builders.report(latency=table.model_copy(update={"results": (slow, *table.results[1:])})))
    assert "runs took longer than the axis" in text


def test_a_curve_ends_at_its_last_step_and_marks_what_stays() -> None:
    """Heights are drawn downwards: the least loss is lowest, and the best mark the one that is filled."""
    drawn = str(charts.curve("title", "text", [(0, 4.0), (50, 1.0), (100, 2.0)], 1))
    circles = re.findall(r'<circle class="(\w+)" cx="([\d.]+)%" cy="([\d.]+)" r="(\d)"/>', drawn)
    assert [(style, float(x), int(r)) for style, x, _, r in circles] == [
        ("before", 0.0, 3),
        ("after", 50.0, 5),
        ("before", 100.0, 3),
    ]
    heights = [float(y) for _, _, y, _ in circles]
    assert heights == [20.0, pytest.approx(20 + 120 * 0.75), pytest.approx(20 + 120 * 0.5)]
    assert drawn.count('class="curve"') == 2
    flat = str(charts.curve("title", "text", [(0, 1.0), (8, 1.0)], 0))
    assert "nan" not in flat


def test_what_a_training_did_is_drawn_and_listed() -> None:
    marks = tuple(TrainingMark(step=step, loss=loss) for step, loss in ((0, 1.5), (5, 0.75), (10, 0.8)))
    details = TrainingDetails(batch=128, kept_apart=300, marks=marks, kept_step=5)
    step = RECORDS["distill"](index=0, step="distill", changed=1, seconds=1.0, summary="", details=details)
    (figure,) = (one for one in figures.figures(builders.report(steps=(step,))) if one.key == "training-1")
    assert figure.rows == (("0", "1.5"), ("5", "0.75"), ("10", "0.8"))
    assert "300 samples kept apart" in figure.text
    assert "after step 5" in figure.text
    assert "Loss while training, distill" in page.render(builders.report(steps=(step,)))
