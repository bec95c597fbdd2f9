"""The comparison table and the headline: the same words for every output."""

from __future__ import annotations

import pytest

from lepton_cli.measure.results import CostTable, FidelityPart, LatencyTable, MetricValue, Skipped
from lepton_cli.prune.details import Width
from lepton_cli.report import words
from lepton_cli.report.headline import headline
from lepton_cli.report.model import Report
from lepton_cli.report.table import TableRow, rows
from lepton_cli.step import Details
from tests.report import builders


def row(label: str, **changes: object) -> TableRow:
    return next(one for one in rows(builders.report(**changes)) if one.label == label)


def test_the_table_in_order() -> None:
    assert [one.label for one in rows(builders.report())] == [
        "size, file",
        "size, gzip",
        "parameters",
        "multiply-accumulates",
        "accuracy, top-1",
        "agreement with original",
        "fidelity (SQNR)",
        "latency, cpu batch 1",
        "latency, cpu batch 32",
        "throughput, cpu batch 32",
        "latency, cuda batch 1",
        "peak memory",
    ]


def test_changes_in_the_units_people_use() -> None:
    assert row("size, file").change == "-84.1 %"
    accuracy = row("accuracy, top-1")
    assert (accuracy.original, accuracy.compressed, accuracy.change) == ("91.80 %", "91.44 %", "-0.36 pp")
    assert (accuracy.detail, accuracy.interval) == ("(n = 5,000)", "[-0.71, -0.01]")
    latency = row("latency, cpu batch 1")
    assert (latency.original, latency.compressed, latency.change) == ("0.483 ms", "0.196 ms", "2.46x")
    assert (latency.detail, latency.interval, latency.tone) == ("(2 threads)", "[2.41, 2.51]", "better")


def test_worse_is_said_in_words() -> None:
    assert row("latency, cpu batch 1", latency=builders.latency_table(1.5)).note == "slower"
    assert row("latency, cpu batch 1", latency=builders.latency_table(1.01)).note == "same speed"
    assert row("latency, cpu batch 1", latency=builders.latency_table(1.01, half=0.2)).note == "no clear difference"
    larger = (builders.variant("original", builders.sizes(), 1), builders.variant("compressed", builders.sizes(1.2), 2))
    assert row("size, file", variants=larger).note == "larger"


def test_nonzeros_appear_only_where_there_are_zeros() -> None:
    sparse = builders.sizes(0.6).model_copy(update={"nonzeros": 20_000})
    variants = (builders.variant("original", builders.sizes(), 1), builders.variant("compressed", sparse, 1))
    assert row("non-zero parameters", variants=variants).compressed == "20.0 k"


def test_skipped_measurements_are_rows_with_their_reason() -> None:
    assert row("latency, cuda batch 1").skipped == "no CUDA device (optional)"
    assert row("memory original", skipped=(Skipped(what="memory original", reason="no /proc"),)).skipped == "no /proc"


def test_one_model_alone_has_values_and_no_changes() -> None:
    listed = rows(
        builders.report(
            variants=(builders.variant("original", builders.sizes(), 61_000_000),),
            accuracy=builders.accuracy().model_copy(update={"changes": (), "fidelity": ()}),
            latency=LatencyTable(results=(builders.latency("original", 0.483e-3),)),
        )
    )
    assert all(not one.compressed and not one.change for one in listed)
    assert {one.label for one in listed} >= {"size, file", "accuracy, top-1", "latency, cpu batch 1"}


def test_cost_with_its_currency() -> None:
    entries = [
        {"variant": name, "provider": "cpu", "batch": 1, "threads": 2, "per_million": value}
        for name, value in (("original", 0.10), ("compressed", 0.04))
    ]
    cost = row("cost of a million, cpu batch 1", cost={"per_hour": 0.4, "currency": "USD", "entries": entries})
    assert (cost.original, cost.compressed, cost.change) == ("0.100 USD", "0.0400 USD", "-59.4 %")


def test_times_with_several_threads_are_told_apart() -> None:
    found = builders.report(latency=builders.on_threads(two=0.5, one=1.25))
    assert headline(found).startswith("1.2x SLOWER (cpu, batch 1 on 1 thread), ")
    faster = builders.report(latency=builders.on_threads(two=0.5, one=0.8))
    assert "2.0x faster (cpu, batch 1 on 2 threads)" in headline(faster)
    entries = [
        {"variant": name, "provider": "cpu", "batch": 1, "threads": threads, "per_million": 0.1}
        for threads in (2, 1)
        for name in ("original", "compressed")
    ]
    cost = {"per_hour": 0.4, "currency": "USD", "entries": entries}
    listed = rows(found.model_copy(update={"cost": CostTable.model_validate(cost)}))
    for label in ("latency, cpu batch 1", "cost of a million, cpu batch 1"):
        assert [one.detail for one in listed if one.label == label] == ["(2 threads)", "(1 thread)"]


def test_good_news() -> None:
    gates = (builders.verdict(), builders.verdict("accuracy.top1"))
    text = headline(builders.report(gates=gates))
    assert text == "6.3x smaller, 2.5x faster (cpu, batch 1), -0.36 pp top-1: all 2 gates passed"


def test_the_worst_comes_first() -> None:
    assert headline(builders.report(latency=builders.latency_table(1.5))).startswith(
        "1.5x SLOWER (cpu, batch 1 and 32), 6.3x smaller"
    )
    assert headline(builders.report(accuracy=builders.accuracy(0.918, 0.85))).startswith("-6.80 pp top-1")
    larger = (builders.variant("original", builders.sizes(), 1), builders.variant("compressed", builders.sizes(1.2), 2))
    assert headline(builders.report(variants=larger)).startswith("1.2x LARGER")


def test_a_class_that_pays_is_said_with_the_whole() -> None:
    """The worst one, beside what it is compared with; a loss of the whole that is small is said first then too."""
    lost = [6, 6, 6, 86, 6, 60, 6, 6, 6, 6]
    told = headline(builders.report(accuracy=builders.accuracy(0.918, 0.8648, lost=lost)))
    assert told == "-5.32 pp top-1, class cat -16.0 pp, 6.3x smaller, 2.5x faster (cpu, batch 1)"
    told = headline(builders.report(accuracy=builders.accuracy(0.918, 0.915, lost=lost)))
    assert told.startswith("-0.30 pp top-1, class cat -16.0 pp, 6.3x smaller")
    # 1.8 points of one class are less than two beyond the whole, 4 of another no more than chance.
    for fewer in ([6] * 9 + [20], [16] * 9 + [26]):
        told = headline(builders.report(accuracy=builders.accuracy(0.918, 0.915, lost=fewer)))
        assert "class" not in told
    both = builders.accuracy(0.918, 0.8648, lost=lost)
    spread = (*both.spread, both.spread[0].model_copy(update={"output": "other"}))
    told = headline(builders.report(accuracy=both.model_copy(update={"spread": spread})))
    assert told.startswith("-5.32 pp top-1, class cat of logits -16.0 pp, ")


def test_a_failed_gate_opens_the_line() -> None:
    gates = (builders.verdict(outcome="fail", excess="over by 10,345 bytes"), builders.verdict("macs"))
    text = headline(builders.report(gates=gates, status="gate_failed"))
    assert text.startswith("1 of 2 gates FAILED (size.file over by 10,345 bytes): 6.3x smaller")


def test_open_gates_are_counted() -> None:
    gates = (
        builders.verdict(),
        builders.verdict("macs", "inconclusive"),
        builders.verdict("nodes", "fail", level="warn"),
    )
    assert headline(builders.report(gates=gates)).endswith("1 of 3 gates passed, 1 failed as a warning, 1 inconclusive")


@pytest.mark.parametrize(
    ("changes", "opening"),
    [
        ({"status": "interrupted", "complete": False}, "INTERRUPTED, partial results"),
        ({"status": "failed", "error": {"message": "no memory"}}, "FAILED (no memory), partial results"),
        ({"complete": False}, "UNFINISHED, partial results"),
    ],
)
def test_a_partial_run_says_so_first(changes: dict[str, object], opening: str) -> None:
    assert headline(builders.report(**changes)).startswith(opening)


def test_a_report_of_nothing() -> None:
    assert headline(builders.report(variants=(), accuracy=None, latency=None)) == "nothing was compared"


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0"), (2.4639, "2.46"), (0.6, "0.600"), (1234.5, "1,234"), (1e-7, "1.00e-07"), (-0.36, "-0.360")],
)
def test_three_significant_digits(amount: float, text: str) -> None:
    assert words.significant(amount) == text


def test_differences_are_in_the_unit_of_the_metric() -> None:
    found = [words.difference(-0.01234, kind) for kind in ("share", "decibel", "number", "coefficient")]
    assert found == ["-1.23 pp", "-0.0123 dB", "-0.0123", "-0.0123"]
    assert words.exact(30.046, "decibel") == "30.05 dB"
    assert words.exact(float("inf"), "decibel") == "identical"


def test_a_loss_that_rounds_to_nothing_has_no_sign_of_its_own() -> None:
    assert words.points(-0.0, sign=False) == "0.00 pp"
    assert words.points(-1e-9) == "+0.00 pp"
    assert words.difference(-1e-9, "share") == "+0.00 pp"
    assert words.percent(-1e-9, sign=False) == "0.0 %"


def test_settings_are_the_single_values_of_details() -> None:
    class Told(Details):
        target: str = "x86-vnni"
        sqnr_db: float = 46.5612
        tried: dict[str, float] = {"minmax": 1.0}
        kept: bool = True
        unknown: float | None = None
        why: str = ""
        widths: tuple[Width, ...] = (Width(node="a", before=2, after=1),)

    details = Told()
    assert words.settings(details) == [
        ("target", "x86-vnni"),
        ("sqnr (dB)", "46.56"),
        ("tried", "minmax 1"),
        ("kept", "yes"),
    ]


def test_models_are_named_where_there_are_several() -> None:
    changes = tuple(builders.change(1e-3, 0.5).model_copy(update={"variant": name}) for name in ("small", "tiny"))
    latency = builders.latency_table().model_copy(update={"changes": changes})
    labels = [row.label for row in rows(builders.report(latency=latency))]
    assert "latency, cpu batch 1, small" in labels
    assert "latency, cpu batch 1, tiny" in labels


def test_without_labels_poor_agreement_comes_first() -> None:
    measured = builders.accuracy()
    poor = measured.fidelity[0].model_copy(update={"agreement": 0.5})
    unlabelled = measured.model_copy(update={"values": {}, "changes": (), "fidelity": (poor,)})
    opening = "only 50.00 % AGREEMENT with the original, "
    assert headline(builders.report(accuracy=unlabelled)).startswith(opening)
    labelled = measured.model_copy(update={"fidelity": (poor,)})
    assert "AGREEMENT" not in headline(builders.report(accuracy=labelled))


def test_energy_is_a_row_and_a_metric() -> None:
    found = row("energy, cpu batch 1", energy=builders.energy_table())
    assert (found.original, found.compressed, found.change) == ("12.0 mJ", "4.80 mJ", "-60.0 %")
    assert found.remark == "[-61.20, -58.80]  above rest 7.20 mJ → 2.88 mJ"
    assert row("energy, cpu batch 1", energy=builders.energy_table(1.01)).note == "no clear difference"


def _fidelity(**changes: object) -> Report:
    """A report without labels whose one output has this fidelity."""
    measured = builders.accuracy()
    close = measured.fidelity[0].model_copy(
        update={"agreement": None, "agreement_low": None, "agreement_high": None, **changes}
    )
    return builders.report(gates=(), accuracy=measured.model_copy(update={"changes": (), "fidelity": (close,)}))


PARTS = (FidelityPart(where="[:, :, 0:4]", sqnr_db=38.4), FidelityPart(where="[:, :, 4:85]", sqnr_db=10.8))


def test_where_nothing_is_decided_errors_are_a_share_of_the_output() -> None:
    report = _fidelity(sqnr_db=34.0)
    assert "AGREEMENT" not in headline(report)
    assert "ERRORS" not in headline(report)
    shown = [row for row in rows(report) if row.label.startswith(("agreement", "fidelity"))]
    assert [(row.label, row.compressed) for row in shown] == [("fidelity (SQNR)", "34.0 dB")]
    assert shown[0].note.startswith("errors are 2 % of the output")
    assert shown[0].detail == "(n = 5,000)"


def test_large_errors_come_first_where_nothing_is_decided() -> None:
    assert headline(_fidelity(sqnr_db=19.9)).startswith("ERRORS of 10 % of the output (19.9 dB)")
    assert not headline(_fidelity(sqnr_db=20.1)).startswith("ERRORS")


def test_every_part_of_an_output_has_a_line() -> None:
    shown = [row for row in rows(_fidelity(sqnr_db=13.8, parts=PARTS)) if row.label.startswith("fidelity of ")]
    assert [(row.label, row.compressed) for row in shown] == [
        ("fidelity of logits[:, :, 0:4]", "38.4 dB"),
        ("fidelity of logits[:, :, 4:85]", "10.8 dB"),
    ]


def test_a_part_far_behind_comes_first() -> None:
    told = headline(_fidelity(sqnr_db=21.0, parts=PARTS))
    assert told.startswith("`logits`[:, :, 4:85] at only 10.8 dB SQNR ([:, :, 0:4] at 38.4 dB)")
    for worst, best in ((20.1, 38.4), (10.8, 20.7)):
        parts = tuple(FidelityPart(where="[:, 0]", sqnr_db=decibel) for decibel in (worst, best))
        assert "at only" not in headline(_fidelity(sqnr_db=21.0, parts=parts))


@pytest.mark.parametrize(
    ("decibel", "share"),
    [
        (40, "1 %"),
        (34, "2 %"),
        (20, "10 %"),
        (12, "25 %"),
        (0, "100 %"),
        (-3, "more than 100 %"),
        (90, "less than 0.01 %"),
    ],
)
def test_decibels_as_shares(decibel: float, share: str) -> None:
    assert words.error_share(decibel) == share


def test_a_metric_of_a_new_output_stands_alone() -> None:
    report = builders.report()
    assert report.accuracy is not None
    new = MetricValue(metric="top1", output="kind", value=0.978, low=0.974, high=0.982, n=5000)
    values = {**report.accuracy.values, "compressed": (*report.accuracy.values["compressed"], new)}
    made = row("accuracy, top-1 of kind", accuracy=report.accuracy.model_copy(update={"values": values}))
    assert (made.original, made.compressed, made.change) == ("-", "97.80 %", "")
    assert (made.detail, made.interval) == ("(n = 5,000)", "[97.40, 98.20]")
