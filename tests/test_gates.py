"""Judging: every comparison, every kind of metric, and what happens when there is nothing to judge."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli import gates
from lepton_cli.errors import ReportError
from lepton_cli.measure import rows
from lepton_cli.measure.results import (
    Accuracy,
    Fidelity,
    FidelityPart,
    Latency,
    LatencyTable,
    LossSpread,
    MetricValue,
    Skipped,
)
from lepton_cli.measure.rows import Counts
from lepton_cli.recipe.schema import Gate
from lepton_cli.report import facts
from lepton_cli.report.model import FileFacts, Report, Verdict
from tests.report import builders


def gate(metric: str, **limits: Any) -> Gate:
    return Gate.model_validate({"metric": metric, **limits})


def judge(one: Gate, report: Report, **options: Any) -> Verdict:
    verdicts = gates.judge([one], report, **options)
    assert len(verdicts) == 1
    return verdicts[0]


@pytest.fixture(name="report")
def _report() -> Report:
    return builders.report()


def test_every_metric_of_a_full_report_can_be_judged(report: Report) -> None:
    expected = {"size.file", "size.gzip", "parameters", "nonzeros", "macs", "nodes", "memory.peak", "accuracy.top1"}
    expected |= {"agreement", "fidelity.sqnr", "latency.median", "latency.p90", "latency.p99", "throughput"}
    assert expected <= set(facts.names(report))


@pytest.mark.parametrize(
    ("one", "outcome"),
    [
        (gate("size.file", max="188 kB"), "pass"),
        (gate("size.file", max="187 kB"), "fail"),
        (gate("size.file", max_ratio=0.2), "pass"),
        (gate("size.file", max_ratio="15 %"), "fail"),
        (gate("size.file", max_increase="0 kB"), "pass"),
        (gate("parameters", max=100_000), "fail"),
        (gate("nonzeros", max_ratio=0.7), "pass"),
        (gate("macs", max_ratio=0.5), "fail"),
        (gate("nodes", max=67), "pass"),
        (gate("memory.peak", max="48 MB"), "pass"),
        (gate("memory.peak", max_ratio=0.7), "fail"),
        (gate("accuracy.top1", min="91 %"), "pass"),
        (gate("accuracy.top1", min="92 %"), "fail"),
        (gate("accuracy.top1", max_drop="0.36 pp"), "pass"),
        (gate("accuracy.top1", max_drop="0.3 pp"), "fail"),
        (gate("accuracy.top1", min_ratio="99 %"), "pass"),
        (gate("agreement", min="98 %"), "fail"),
        (gate("fidelity.sqnr", min="30 dB"), "pass"),
    ],
)
def test_values_that_do_not_wobble_pass_or_fail(report: Report, one: Gate, outcome: str) -> None:
    assert judge(one, report).verdict == outcome


@pytest.mark.parametrize(
    ("limit", "outcome"),
    [({"max_ratio": 0.42}, "pass"), ({"max_ratio": 0.41}, "inconclusive"), ({"max_ratio": 0.39}, "fail")],
)
def test_latency_is_judged_by_its_whole_interval(report: Report, limit: dict[str, float], outcome: str) -> None:
    verdict = judge(gate("latency.median", provider="cpu", batch=1, **limit), report)
    assert verdict.verdict == outcome
    assert verdict.scope == {"provider": "cpu", "batch": 1}
    if outcome == "inconclusive":
        assert "measure longer" in verdict.hint
        assert verdict.reason


@pytest.mark.parametrize(
    ("one", "outcome"),
    [
        # Class cat lost 86 and won 6 of 500, the others lost and won 6.
        (gate("accuracy.worst_class", max_drop="10 pp"), "fail"),
        (gate("accuracy.worst_class", max_drop="15 pp"), "inconclusive"),
        (gate("accuracy.worst_class", max_drop="17 pp"), "inconclusive"),
        (gate("accuracy.worst_class", max_drop="25 pp"), "pass"),
        (gate("accuracy.worst_class", min="60 %"), "pass"),
        (gate("accuracy.worst_class", min="73 %"), "inconclusive"),
        (gate("accuracy.worst_class", min="85 %"), "fail"),
        (gate("accuracy.worst_class", min_ratio="70 %"), "pass"),
        (gate("accuracy.worst_class", min_ratio="83 %"), "inconclusive"),
        (gate("accuracy.worst_class", min_ratio="95 %"), "fail"),
        # 86 of 140 in one of ten classes.
        (gate("accuracy.evenness", max=4), "fail"),
        (gate("accuracy.evenness", max=6), "inconclusive"),
        (gate("accuracy.evenness", max=8), "pass"),
        (gate("accuracy.evenness", max_increase=3), "fail"),
    ],
)
def test_the_worst_class_is_judged_by_its_whole_interval(one: Gate, outcome: str) -> None:
    report = builders.report(accuracy=builders.accuracy(lost=[6, 6, 6, 86, 6, 6, 6, 6, 6, 6]))
    verdict = judge(one, report)
    assert verdict.verdict == outcome
    assert verdict.scope == {}
    if outcome == "inconclusive":
        assert "every class" in verdict.hint
        assert "interval" in verdict.reason
    if one.metric == "accuracy.worst_class" and one.comparison == "max_drop":
        assert verdict.observed.startswith("16.00 pp [")
        assert verdict.observed.endswith("] (class cat, n = 500)")


def test_the_worst_group_of_each_column_is_judged() -> None:
    whole = builders.accuracy(lost=[6] * 9 + [86])
    group = whole.spread[0].model_copy(
        update={"column": "site", "worst": whole.classes[-1].model_copy(update={"column": "site", "label": "north"})}
    )
    other = builders.accuracy().spread[0].model_copy(update={"column": "age"})
    report = builders.report(accuracy=whole.model_copy(update={"spread": (*whole.spread, group, other)}))
    first, second = gates.judge([gate("accuracy.worst_group", max_drop="10 pp")], report)
    assert (first.verdict, first.scope) == ("fail", {"group": "site"})
    assert first.observed.endswith("(site north, n = 500)")
    assert (second.verdict, second.scope) == ("pass", {"group": "age"})
    (open_one, _) = gates.judge([gate("accuracy.worst_group", max_drop="16 pp")], report)
    assert open_one.hint.endswith("more samples of every group")
    (alone,) = gates.judge([gate("accuracy.worst_class", max_drop="10 pp")], report)
    assert alone.scope == {}
    with pytest.raises(ReportError) as caught:
        gates.judge([gate("accuracy.worst_group", max_drop="1 pp")], builders.report(accuracy=whole))
    assert caught.value.cause == "the evaluation data has no `groups`"


def test_a_class_that_was_never_right_has_lost_nothing() -> None:
    classes, spread = rows.judged({("logits", ""): (Counts("none", 0, 0, 0, 50),)})
    report = builders.report(accuracy=Accuracy(classes=classes, spread=spread))
    (fact,) = facts.find(report, "accuracy.worst_class")
    assert fact.ratio is not None
    assert (fact.ratio.value, fact.ratio.low) == (1, 1)
    assert judge(gate("accuracy.worst_class", min_ratio="95 %"), report).verdict == "pass"


def test_a_class_that_looks_bad_by_chance_fails_no_gate() -> None:
    """Of ten classes one lost 2 points net; it might as well have lost none."""
    report = builders.report(accuracy=builders.accuracy(lost=[6] * 9 + [16]))
    verdict = judge(gate("accuracy.worst_class", max_drop="1 pp"), report)
    assert (verdict.verdict, verdict.observed[:7]) == ("inconclusive", "2.00 pp")


@pytest.mark.parametrize(
    ("spread", "why"),
    [
        (
            (LossSpread(output="y", change=-0.1, classes=100, judged=0, largest=29),),
            "no class has 30 samples (the largest has 29)",
        ),
        ((), "an original, and labels that are classes"),
    ],
)
def test_a_gate_on_classes_that_were_not_judged_says_why(spread: tuple[LossSpread, ...], why: str) -> None:
    report = builders.report(accuracy=builders.accuracy().model_copy(update={"spread": spread}))
    for metric in ("accuracy.worst_class", "accuracy.evenness"):
        with pytest.raises(ReportError) as caught:
            gates.judge([gate(metric, max=1)], report)
        assert caught.value.code == "gate.metric-missing"
        assert caught.value.cause is not None
        assert why in caught.value.cause


def test_a_gate_on_the_classes_of_an_output_without_any_names_those_that_have(report: Report) -> None:
    with pytest.raises(ReportError) as caught:
        gates.judge([gate("accuracy.worst_class", max_drop="1 pp", output="box")], report)
    assert caught.value.cause is None
    assert caught.value.hint == "`accuracy.worst_class` was measured for: logits"


def test_absolute_latency_and_throughput(report: Report) -> None:
    assert judge(gate("latency.median", max="0.25 ms", batch=1), report).verdict == "pass"
    assert judge(gate("latency.median", max="0.19 ms", batch=1), report).verdict == "fail"
    assert judge(gate("latency.median", max="0.196 ms", batch=1), report).verdict == "inconclusive"
    assert judge(gate("throughput", min=1000, batch=1), report).verdict == "pass"
    assert judge(gate("throughput", min_ratio=3, batch=1), report).verdict == "fail"


def test_a_failing_size_says_limit_value_excess_place_and_what_is_large(report: Report) -> None:
    verdict = judge(gate("size.file", max="180 kB"), report, places=lambda index: f"recipe.yaml:{47 + index}")
    assert verdict.limit == "max 180 kB"
    assert verdict.observed == "187,168 bytes"
    assert verdict.excess == "over by 7,168 bytes"
    assert verdict.where == "recipe.yaml:47"
    assert verdict.hint.startswith("largest: layer3.0.conv1 22.1 kB int8")


def test_the_largest_layer_is_shown_with_the_reason_it_was_kept(report: Report) -> None:
    steps = (*report.steps[:2], report.steps[2].model_copy(update={"decisions": (builders.kept("layer3.0.conv1"),)}))
    verdict = judge(gate("size.file", max="1 kB"), report.model_copy(update={"steps": steps}))
    assert "layer3.0.conv1 22.1 kB int8 (kept: excluded at recipe.yaml:38)" in verdict.hint


def test_a_failing_accuracy_names_the_most_sensitive_nodes(report: Report) -> None:
    verdict = judge(gate("accuracy.top1", max_drop="0.1 pp"), report)
    assert verdict.observed == "0.36 pp [0.01, 0.71] (n = 5,000)"
    assert verdict.excess == "over by 0.26 pp"
    assert "most sensitive: layer2.0.conv2 (24.2 dB)" in verdict.hint
    assert "exclude" in verdict.hint


def test_an_accuracy_within_says_when_its_interval_reaches_beyond(report: Report) -> None:
    assert "interval reaches beyond" in judge(gate("accuracy.top1", max_drop="0.5 pp"), report).reason
    assert judge(gate("accuracy.top1", max_drop="2 pp"), report).reason == ""
    assert "interval reaches within" in judge(gate("accuracy.top1", max_drop="0.1 pp"), report).reason


def test_the_limit_itself_is_within_in_spite_of_binary_fractions() -> None:
    report = builders.report(accuracy=builders.accuracy(0.9, 0.895, n=1000))
    assert judge(gate("accuracy.top1", max_drop="0.5 pp"), report).verdict == "pass"


def test_a_gate_without_a_scope_is_judged_on_everything_measured(report: Report) -> None:
    verdicts = gates.judge([gate("latency.median", max_ratio=0.5)], report)
    assert [verdict.scope["batch"] for verdict in verdicts] == [1, 32]


def test_a_gate_on_a_metric_never_measured_is_an_error_that_says_what_was(report: Report) -> None:
    with pytest.raises(ReportError) as caught:
        gates.judge([gate("accuracy.f1", min="90 %")], report, places=lambda index: "budget.yaml:3")
    assert caught.value.code == "gate.metric-missing"
    assert caught.value.exit_code == 2
    assert str(caught.value.where) == "budget.yaml:3"
    assert "accuracy.top1" in (caught.value.hint or "")


def test_a_scope_never_measured_names_the_scopes_that_were(report: Report) -> None:
    with pytest.raises(ReportError) as caught:
        gates.judge([gate("latency.median", max="1 ms", provider="cpu", batch=8)], report)
    assert "cpu/1" in (caught.value.hint or "")


def test_an_optional_provider_that_is_not_there_is_skipped_with_its_reason(report: Report) -> None:
    verdict = judge(gate("latency.median", max="1 ms", provider="cuda"), report)
    assert verdict.verdict == "skipped"
    assert "no CUDA device" in verdict.reason
    assert gates.status([verdict]) == "ok"


def test_skipped_memory_is_a_verdict_not_an_error(report: Report) -> None:
    variants = tuple(one.model_copy(update={"memory": None}) for one in report.variants)
    bare = report.model_copy(
        update={"variants": variants, "skipped": (Skipped(what="memory original", reason="no /proc here"),)}
    )
    assert judge(gate("memory.peak", max="1 MB"), bare).verdict == "skipped"


def test_strict_turns_open_verdicts_into_failures(report: Report) -> None:
    one = gate("latency.median", max_ratio=0.41, batch=1)
    verdict = judge(one, report, strict=True)
    assert verdict.verdict == "fail"
    assert verdict.reason.startswith("inconclusive, which --strict counts as failed")
    assert judge(gate("latency.median", max="1 ms", provider="cuda"), report, strict=True).verdict == "fail"
    assert judge(gate("size.file", max="1 MB"), report, strict=True).verdict == "pass"


def test_only_failures_at_level_error_fail(report: Report) -> None:
    warned = judge(gate("size.file", max="1 kB", level="warn"), report)
    assert warned.verdict == "fail"
    assert gates.status([warned]) == "ok"
    assert gates.status([warned, judge(gate("size.file", max="1 kB"), report)]) == "gate_failed"


def test_not_a_number_fails() -> None:
    accuracy = builders.accuracy(0.9, math.nan)
    verdict = judge(gate("accuracy.top1", min="10 %"), builders.report(accuracy=accuracy, headline="-"))
    assert verdict.verdict == "fail"
    assert "not a number" in verdict.reason


def test_an_identical_output_passes_any_fidelity() -> None:
    same = Fidelity(
        output="logits", agreement=1, agreement_low=0.99, agreement_high=1, sqnr_db=None, max_abs_error=0, n=100
    )
    report = builders.report(accuracy=builders.accuracy().model_copy(update={"fidelity": (same,)}))
    verdict = judge(gate("fidelity.sqnr", min="60 dB"), report)
    assert verdict.verdict == "pass"
    assert verdict.observed == "identical"


def test_a_ratio_needs_two_models(report: Report) -> None:
    alone = report.model_copy(update={"variants": report.variants[:1]})
    assert judge(gate("size.file", max="2 MB"), alone).verdict == "pass"
    with pytest.raises(ReportError) as caught:
        gates.judge([gate("size.file", max_ratio=0.5)], alone)
    assert caught.value.code == "gate.no-reference"


def test_cost_is_judged_by_provider_and_batch() -> None:
    entries = [
        {"variant": name, "provider": "cpu", "batch": 1, "threads": 2, "per_million": value}
        for name, value in (("original", 0.10), ("compressed", 0.04))
    ]
    report = builders.report(cost={"per_hour": 0.4, "currency": "USD", "entries": entries})
    verdict = judge(gate("cost.per_million", max="0.03 USD"), report)
    assert verdict.verdict == "fail"
    assert verdict.observed == "0.0400 USD [0.0396, 0.0404]"
    assert judge(gate("cost.per_million", max_ratio=0.5), report).verdict == "pass"


def test_a_slow_quantized_model_on_a_machine_without_int8_instructions_is_explained() -> None:
    report = builders.report(
        environment=builders.environment(instructions=("avx2",)), latency=builders.latency_table(ratio=1.4)
    )
    verdict = judge(gate("latency.median", max_ratio=1.0, batch=1), report)
    assert "no int8 dot product" in verdict.hint


def test_nodes_that_ran_elsewhere_explain_a_slow_provider(report: Report) -> None:
    fallback = builders.latency("compressed", 0.9e-3, provider="cuda").model_copy(
        update={"placement": {"CUDAExecutionProvider": 40, "CPUExecutionProvider": 27}}
    )
    table = LatencyTable(results=(builders.latency("original", 0.5e-3, provider="cuda"), fallback))
    verdict = judge(gate("latency.median", max="0.5 ms"), report.model_copy(update={"latency": table}))
    assert "27 nodes on CPUExecutionProvider" in verdict.hint


class TestBaseline:
    """Gates against a stored state."""

    def test_growth_against_the_baseline(self, report: Report) -> None:
        one = gate("size.file", max_increase="1 kB", against="baseline")
        assert judge(one, report, baseline=report).verdict == "pass"
        smaller = builders.report(
            variants=(report.variants[0], builders.variant("compressed", builders.sizes(0.5, "int8"), 48_000_000))
        )
        verdict = judge(one, report, baseline=smaller)
        assert verdict.verdict == "fail"
        assert verdict.limit == "max_increase 1 kB from baseline"

    def test_needs_a_baseline(self, report: Report) -> None:
        with pytest.raises(ReportError) as caught:
            judge(gate("size.file", max_ratio=1, against="baseline"), report)
        assert caught.value.code == "gate.no-baseline"

    def test_of_another_model_is_an_error(self, report: Report) -> None:
        other = report.variants[0].model_copy(update={"file": FileFacts(path="other.onnx", sha256="0" * 64)})
        baseline = report.model_copy(update={"variants": (other, report.variants[1])})
        with pytest.raises(ReportError) as caught:
            judge(gate("size.file", max_ratio=1, against="baseline"), report, baseline=baseline)
        assert caught.value.code == "baseline.other-model"

    def test_latency_of_another_machine_is_skipped(self, report: Report) -> None:
        baseline = report.model_copy(update={"environment": builders.environment(cpu="AMD EPYC 7763")})
        verdict = judge(gate("latency.median", max_ratio=1.1, batch=1, against="baseline"), report, baseline=baseline)
        assert verdict.verdict == "skipped"
        assert "AMD EPYC 7763" in verdict.reason
        assert judge(gate("size.file", max_ratio=1, against="baseline"), report, baseline=baseline).verdict == "pass"

    def test_latency_of_the_same_machine_compares_the_paired_ratios(self, report: Report) -> None:
        # The machine was half as fast when the baseline was made: only the ratio to the original counts.
        then = builders.report(latency=_twice_as_slow(builders.latency_table(0.406)))
        one = gate("latency.median", max_ratio=1.1, batch=1, against="baseline")
        assert judge(one, report, baseline=then).verdict == "pass"
        slower = builders.report(latency=builders.latency_table(0.55))
        assert judge(one, slower, baseline=then).verdict == "fail"

    def test_accuracy_on_other_data_is_skipped(self, report: Report) -> None:
        other = report.data[1].model_copy(update={"fingerprint": "f0" * 32})
        baseline = report.model_copy(update={"data": (report.data[0], other)})
        one = gate("accuracy.top1", max_drop="1 pp", against="baseline")
        assert judge(one, report, baseline=baseline).verdict == "skipped"
        assert judge(one, report, baseline=report).verdict == "pass"

    def test_metric_that_the_baseline_does_not_hold_is_skipped(self, report: Report) -> None:
        baseline = report.model_copy(update={"latency": None})
        verdict = judge(gate("latency.median", max_ratio=1, batch=1, against="baseline"), report, baseline=baseline)
        assert verdict.verdict == "skipped"


def _twice_as_slow(table: LatencyTable) -> LatencyTable:
    def slower(result: Latency) -> Latency:
        doubled = {name: 2 * getattr(result, name) for name in ("median", "low", "high")}
        return result.model_copy(update=doubled)

    return table.model_copy(update={"results": tuple(slower(result) for result in table.results)})


@given(ratio=st.floats(0.05, 20), half=st.floats(0, 0.3), limit=st.floats(0.05, 20))
def test_a_latency_verdict_agrees_with_its_interval(ratio: float, half: float, limit: float) -> None:
    report = builders.report(latency=builders.latency_table(ratio, half), headline="-", steps=())
    verdict = judge(gate("latency.median", max_ratio=limit, batch=1), report)
    low, high = ratio * (1 - half), ratio * (1 + half)
    expected = "pass" if high <= limit else "fail" if low > limit else "inconclusive"
    if min(abs(low - limit), abs(high - limit)) > 1e-9:
        assert verdict.verdict == expected
    assert (verdict.excess != "") == (verdict.verdict == "fail")


def test_energy_is_judged_by_its_interval() -> None:
    report = builders.report(energy=builders.energy_table())
    assert judge(gate("energy", max_ratio=0.5), report).verdict == "pass"
    assert judge(gate("energy", max_ratio=0.4), report).verdict == "inconclusive"
    failed = judge(gate("energy", max="4 mJ"), report)
    assert (failed.verdict, failed.excess) == ("fail", "over by 0.800 mJ")


def test_energy_without_a_meter_is_skipped_with_the_reason() -> None:
    notice = Skipped(what="energy", reason="this machine shows no energy meter")
    verdict = judge(gate("energy", max="4 mJ"), builders.report(skipped=(notice,)))
    assert (verdict.verdict, verdict.reason) == ("skipped", "energy: this machine shows no energy meter")


def test_every_part_of_an_output_is_judged(report: Report) -> None:
    """Boxes at 38 dB and scores at 11: the whole may pass, the scores do not."""
    assert report.accuracy is not None
    parts = (FidelityPart(where="[:, 0:4]", sqnr_db=38.4), FidelityPart(where="[:, 4:85]", sqnr_db=10.8))
    close = report.accuracy.fidelity[0].model_copy(update={"sqnr_db": 13.8, "parts": parts})
    report = report.model_copy(update={"accuracy": report.accuracy.model_copy(update={"fidelity": (close,)})})
    found = gates.judge([gate("fidelity.sqnr", min="12 dB")], report)
    assert [(one.scope, one.verdict) for one in found] == [
        ({}, "pass"),
        ({"part": "[:, 0:4]"}, "pass"),
        ({"part": "[:, 4:85]"}, "fail"),
    ]


def test_agreement_of_an_output_that_decides_nothing_was_never_measured(report: Report) -> None:
    assert report.accuracy is not None
    close = report.accuracy.fidelity[0].model_copy(
        update={"agreement": None, "agreement_low": None, "agreement_high": None}
    )
    report = report.model_copy(update={"accuracy": report.accuracy.model_copy(update={"fidelity": (close,)})})
    with pytest.raises(ReportError) as raised:
        judge(gate("agreement", min="98 %"), report)
    assert raised.value.code == "gate.metric-missing"
    assert "fidelity.sqnr" in f"{raised.value.cause} {raised.value.hint}"


def test_times_with_several_threads_are_judged_each_and_told_apart(report: Report) -> None:
    report = report.model_copy(update={"latency": builders.on_threads(two=0.5, one=0.8)})
    both = gates.judge([gate("latency.median", max_ratio=0.6)], report)
    assert [(one.scope, one.verdict) for one in both] == [
        ({"provider": "cpu", "batch": 1, "threads": 2}, "pass"), ({"provider": "cpu", "batch": 1, "threads": 1}, "fail")
    ]  # fmt: skip
    assert judge(gate("latency.median", max_ratio=0.6, threads=2), report).verdict == "pass"
    assert judge(gate("latency.median", max="1.59 ms", threads=1), report).verdict == "inconclusive"
    alone = builders.report()
    assert {frozenset(one.scope) for one in gates.judge([gate("latency.median", max="1 s")], alone)} == {
        frozenset({"provider", "batch"})
    }, "one number of threads is not told"
    assert judge(gate("latency.median", max="1 s", batch=1, threads=2), alone).scope["threads"] == 2


def test_times_are_compared_with_those_of_as_many_threads(report: Report) -> None:
    report = report.model_copy(update={"latency": builders.on_threads(two=0.5, one=0.8)})
    before = report.model_copy(update={"latency": builders.on_threads(two=0.5, one=0.4)})
    one = gates.judge([gate("latency.median", max_ratio=1.1, against="baseline")], report, baseline=before)
    assert [verdict.verdict for verdict in one] == ["pass", "fail"]
    assert one[1].observed.startswith("2.00 ")


def test_new_outputs_are_judged_by_limits_and_not_against_the_original(report: Report) -> None:
    assert report.accuracy is not None
    new = MetricValue(metric="top1", output="kind", value=0.9, low=0.89, high=0.91, n=5000)
    values = {**report.accuracy.values, "compressed": (*report.accuracy.values["compressed"], new)}
    report = report.model_copy(update={"accuracy": report.accuracy.model_copy(update={"values": values})})
    assert len(gates.judge([gate("accuracy.top1", min="50 %")], report)) == 2
    assert judge(gate("accuracy.top1", max_drop="0.4 pp"), report).verdict == "pass"
    assert judge(gate("accuracy.top1", output="kind", min="91 %"), report).verdict == "fail"
    with pytest.raises(ReportError, match="which has no such output"):
        judge(gate("accuracy.top1", output="kind", max_drop="1 pp"), report)
