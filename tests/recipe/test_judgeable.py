"""Gates that are repeated, and gates that the recipe's own measurements can never answer."""

import pytest

from lepton_cli.errors import RecipeError

LATENCY = "latency: {providers: [cpu, {name: cuda, optional: true}], batch: [1, 32], threads: 2}"


def with_gate(gate):
    return ("gates:\n", f"gates:\n  - {{{gate}}}\n")


def test_identical_gates_are_an_error(load):
    with pytest.raises(RecipeError, match="two gates limit `max` of") as caught:
        load(("output:", "  - {metric: size.file, max: 2 MB}\noutput:"))
    assert caught.value.code == "recipe.duplicate-gate"
    assert caught.value.where.line == 26
    assert ":23:5" in caught.value.note


@pytest.mark.parametrize(
    "gate",
    [
        "metric: size.file, max: 2 MB, level: warn",
        "metric: size.file, max_increase: 0 B",
        "metric: size.file, max_ratio: 1, against: baseline",
        "metric: latency.median, max_ratio: 0.6, provider: CPUExecutionProvider, batch: 32",
        "metric: latency.p99, max: 1 s, provider: cuda",
        "metric: latency.p99, max: 1 s, threads: 2",
        "metric: throughput, min: 5",
        "metric: agreement, min: 90 %",
        "metric: memory.peak, max: 1 GB",
        "metric: accuracy.worst_class, max_drop: 3 pp",
        "metric: accuracy.evenness, max: 2",
    ],
)
def test_gates_that_are_measured(load, gate):
    assert len(load(with_gate(gate)).recipe.gates) == 4


@pytest.mark.parametrize(
    ("changes", "underlined", "said"),
    [
        ([with_gate("metric: latency.p90, max: 1 s, provider: tensorrt")], "tensorrt", "measured on cpu, cuda only"),
        ([with_gate("metric: latency.p90, max: 1 s, batch: 8")], "8", "at batch 1, 32 only"),
        ([with_gate("metric: latency.p90, max: 1 s, threads: 3")], "3", "with 2 threads only"),
        ([(LATENCY, "latency: false")], "latency.median", "`evaluate.latency` is false"),
        ([with_gate("metric: cost.per_million, max: 1")], "cost.per_million", "no price"),
        (
            [with_gate("metric: memory.peak, max: 1 GB"), (LATENCY, "memory: false")],
            "memory.peak",
            "`evaluate.memory` is false",
        ),
        (
            [("{metric: top1}", "[{metric: topk, k: 3}, {metric: f1}]")],
            "accuracy.top1",
            "as accuracy.top3, accuracy.f1 only",
        ),
        (
            [
                ("{metric: top1}", "[{metric: mae}]"),
                with_gate("metric: accuracy.worst_class, max_drop: 3 pp"),
            ],
            "accuracy.worst_class",
            "as accuracy.mae only",
        ),
        ([with_gate("metric: accuracy.worst_group, max_drop: 3 pp")], "accuracy.worst_group", "has no groups"),
    ],
)
def test_gates_that_can_never_be_judged(load, changes, underlined, said):
    with pytest.raises(RecipeError) as caught:
        load(*changes)
    error = caught.value
    assert error.code == "recipe.gate-not-measured"
    assert said in error.message
    assert error.where.source[error.where.column - 1 :][: error.where.length] == underlined
    assert error.hint


def test_without_accuracy_in_the_recipe_every_metric_may_be_found(load):
    assert load(("accuracy: {metric: top1}", "accuracy: []"), with_gate("metric: accuracy.f1, min: 0.5"))
