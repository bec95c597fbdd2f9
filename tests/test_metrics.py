"""The table of metrics: whole, and the only place that measurements, recipes and reports have their metrics from."""

from __future__ import annotations

import typing

import pytest

from lepton_cli import metrics
from lepton_cli.measure.metrics import FORMULAS, formula
from lepton_cli.measure.results import Accuracy, MetricChange, MetricValue, Size
from lepton_cli.measure.spec import AccuracySpec
from lepton_cli.metrics import MEASURABLE, METRICS, UNITS, Kind, find, nearest
from lepton_cli.recipe.limits import parse_limit
from lepton_cli.report import facts, table, words
from lepton_cli.report.model import Report
from lepton_cli.schema import json_schema
from tests.conftest import ROOT
from tests.report import builders

#: Those that are measured as they are; what is said by class follows from them.
ACCURACIES = [metric for metric in METRICS.values() if metric.source == "accuracy" and not metric.by_class]


@pytest.mark.parametrize("name", METRICS)
def test_every_row_is_whole(name: str) -> None:
    metric = METRICS[name]
    assert metric.name == name
    assert metric.label
    assert metric.meaning[0].isupper()
    assert set(metric.scope) <= {"provider", "batch", "threads", "output"}
    assert find(name) is metrics.of(name) is metric


def test_labels_tell_metrics_apart() -> None:
    assert len({metric.label for metric in METRICS.values()}) == len(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_units_fit_the_kind(name: str) -> None:
    """What is said in the unit is read in it: 3 of anything is 3 in its base unit."""
    metric = METRICS[name]
    written = {"bytes": "3 B", "s": "3 s", "J": "3 J", "dB": "3 dB", "/s": "3/s"}.get(metric.unit)
    if metric.kind == "share":
        assert parse_limit(metric, "max", "3 %") == pytest.approx(0.03)
        assert words.value(0.03, metric.kind) == "3.00 %"
    elif metric.kind == "money":
        assert parse_limit(metric, "max", "3 EUR") == 3
    else:
        assert parse_limit(metric, "max", written or 3) == 3
        assert words.value(3, metric.kind).startswith("3")
        assert words.value(3, metric.kind).endswith(metric.unit.replace("bytes", "B"))


def test_every_kind_has_a_unit_and_a_metric() -> None:
    assert set(UNITS) == set(typing.get_args(Kind)) == {metric.kind for metric in METRICS.values()}


def _accuracy() -> Accuracy:
    """Everything that accuracy can be measured as."""
    names = [metric.short for metric in ACCURACIES]
    values = tuple(MetricValue(metric=name, output="y", value=0.5, low=None, high=None, n=9) for name in names)
    changes = tuple(
        MetricChange(metric=name, output="y", original=0.6, compressed=0.5, difference=-0.1, low=None, high=None, n=9)
        for name in names
    )
    both = {"original": values, "compressed": values}
    whole = builders.accuracy()
    spread = (*whole.spread, whole.spread[0].model_copy(update={"column": "site"}))
    return Accuracy(values=both, changes=changes, fidelity=whole.fidelity, spread=spread)


def _report() -> Report:
    prices = {"provider": "cpu", "batch": 1, "threads": 2, "per_million": 0.5}
    entries = [{**prices, "variant": name} for name in ("original", "compressed")]
    cost = {"currency": "USD", "per_hour": 0.4, "entries": entries}
    return builders.report(accuracy=_accuracy(), energy=builders.energy_table(), cost=cost)


def test_a_report_holds_every_metric_and_no_other() -> None:
    assert set(facts.names(_report())) == set(METRICS)


def test_facts_have_the_scope_that_gates_may_name() -> None:
    for fact in facts.facts(_report()):
        assert {*fact.scope} >= {*fact.about.scope}, fact.metric


def test_every_structural_metric_is_a_field_of_the_measurement() -> None:
    for metric in METRICS.values():
        assert (metric.source != "structure") or metric.short in Size.model_fields


def test_directions_and_labels_of_reports_come_from_the_table() -> None:
    """All of them fell by 0.1: better where lower is."""
    rows = {row.label: row for row in table.rows(_report())}
    for metric in ACCURACIES:
        row = rows[f"accuracy, {metric.label}"]
        assert (row.tone, row.note) == (("worse", "") if metric.better == "higher" else ("better", "lower is better"))


def test_every_accuracy_has_a_formula_and_the_other_way_round() -> None:
    assert set(FORMULAS) == {metric.name for metric in ACCURACIES} - {"accuracy.score"}
    assert list(FORMULAS) == [metric.name for metric in MEASURABLE.values()]
    by_position = {"miou", "dice", "perplexity"}
    of_classes = [word for word in MEASURABLE if formula(AccuracySpec(metric=word)).takes_classes]
    assert list(metrics.CLASSIFYING) == [word for word in of_classes if word not in by_position]


@pytest.mark.parametrize("word", MEASURABLE)
def test_formulas_fit_their_row(word: str) -> None:
    """What enters the score of several metrics grows as the model gets better; only shares are proportions."""
    spec = AccuracySpec(metric=word, k=5)
    assert spec.about is MEASURABLE[word]
    found = formula(spec)
    assert (found.share(0.7) > found.share(0.6)) == (found.constant is not None or spec.about.better == "higher")
    assert not found.proportion or spec.about.kind == "share"


def test_recipes_accept_what_can_be_measured() -> None:
    listed = json_schema("recipe")["$defs"]["AccuracySpec"]["properties"]["metric"]["enum"]
    assert listed == list(MEASURABLE)
    page = (ROOT / "docs/metrics.md").read_text()
    assert not [word for word in MEASURABLE if f"`{word}`" not in page]


def test_top_k_exists_for_every_k() -> None:
    found = metrics.of("accuracy.top17")
    assert found.meaning.endswith("first 17")
    assert found.label == "top-17"
    assert AccuracySpec(metric="topk", k=17).about == found
    wrong = ("top0", "top", "topk", "top-1", "top1\n", "top٣")
    assert [find(f"accuracy.{name}") for name in wrong] == [None] * len(wrong)


def test_a_metric_of_another_version_is_a_plain_number() -> None:
    unknown = metrics.accuracy("other")
    assert (unknown.label, unknown.kind, unknown.source) == ("other", "number", "accuracy")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("size", "size.file"),
        ("top1", "accuracy.top1"),
        ("p99", "latency.p99"),
        ("latency.mean", "latency.median"),
        ("acuracy.f1", "accuracy.f1"),
        ("???", None),
    ],
)
def test_the_nearest_metric(wrong: str, right: str | None) -> None:
    assert nearest(wrong) == right


def test_short_forms_are_the_nearest_metric() -> None:
    assert all(nearest(short) == name for short, name in metrics.SHORT.items())
