"""The recipe's own metric from end to end: inputs, text, lengths, and which way is better."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_cli import gates, metrics
from lepton_cli.data.dataset import Batch
from lepton_cli.data.memory import Arrays
from lepton_cli.errors import RecipeError, ReportError
from lepton_cli.measure import accuracy, hooks
from lepton_cli.measure.results import Accuracy
from lepton_cli.measure.spec import AccuracySpec
from lepton_cli.measure.stream import Results
from lepton_cli.measure.track import Track
from lepton_cli.recipe.load import load_recipe
from lepton_cli.recipe.schema import Gate
from lepton_cli.report import facts, headline, table
from lepton_cli.report.model import Report
from lepton_cli.tensors import TensorInfo
from lepton_cli.tune.yardsticks import yardsticks
from tests.measure import builders
from tests.report import builders as reports
from tests.tune import builders as tuning

HOOKS = """
import numpy as np

def fed(outputs, labels, inputs):
    return inputs["x"][:, 0]

def fed_once(outputs, labels, inputs):
    return float(inputs["x"][:, 0].sum())

def two(outputs, labels, power=2.0):
    return outputs["y"][:, 0] ** power

def maybe(outputs, labels, inputs=None):
    return inputs["x"][:, 0] * 10

def any_number(*given):
    return float(len(given))

def length(outputs, labels, inputs):
    assert all(type(text) is str for text in labels["labels"])
    return [len(text) for text in labels["labels"]]

def letters(outputs, labels):
    return float(len("".join(labels["labels"])))

def error(outputs, labels):
    return abs(outputs["y"][:, 0])

def one(outputs):
    return 0.0
"""
ROWS = np.arange(1, 8, dtype=np.float32)[:, None]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(HOOKS)
    return tmp_path


def measure(base: Path, function: str, labels: Any = None, factor: float = 1.0, **options: Any) -> Accuracy:
    """On inputs 1 to 7, three at a time; the compressed model answers `factor` times the input."""
    data = Arrays({"x": ROWS}, np.zeros(7) if labels is None else labels, batch=3, **options.pop("data", {}))
    arms = {"original": builders.identity("N, 1"), "compressed": builders.linear(np.array([[factor]], np.float32))}
    spec = AccuracySpec(metric="python", function=f"own.py:{function}", **options)
    return accuracy.evaluate(arms, data, [spec], allow_code=True, base=base)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("fed", 4),  # the mean of 1 to 7
        ("fed_once", 28),  # their sum, of all batches together
        ("two", 20),  # the mean of the squares: its third parameter is its own
        ("maybe", 40),
        ("any_number", 2),
    ],
)
def test_what_a_function_is_given(base: Path, function: str, expected: float) -> None:
    found = measure(base, function).values["original"][0]
    assert found.value == pytest.approx(expected)
    assert found.n == 7


def test_a_function_of_one_argument_is_refused(base: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be called with") as caught:
        measure(base, "one")
    assert caught.value.option == ("evaluate", "accuracy", 0, "function")
    assert caught.value.cause == "it is written one(outputs)"


TEXTS = ["a", "bb", "ccc", "a", "dd d", "0012", "e"]


def test_text_stays_text(base: Path) -> None:
    """1 + 2 + 3 + 1 + 4 + 4 + 1 letters, batch by batch and all at once."""
    assert measure(base, "length", TEXTS).values["original"][0].value == pytest.approx(16 / 7)
    assert measure(base, "letters", TEXTS).values["original"][0].value == 16


def test_text_that_looks_like_numbers_stays_text_where_the_data_say_so(base: Path) -> None:
    digits = ["0012", "7", "1e3", "3.50", "nan", "-1", "00"]
    as_text = {"data": {"label_type": "text"}}
    assert measure(base, "letters", digits, **as_text).values["original"][0].value == 4 + 1 + 3 + 4 + 3 + 2 + 2


def test_classes_that_are_named_stay_numbers(base: Path) -> None:
    (base / "own.py").write_text("def mean(outputs, labels):\n    return labels['labels']\n")
    named = {"data": {"class_names": ["cat", "dog"]}}
    assert measure(base, "mean", [0, 1, 1, 0, 0, 0, 1], **named).values["original"][0].value == pytest.approx(3 / 7)


def _results(batch: Batch, count: int) -> Results:
    return Results({"original": {"y": np.zeros(count)}}, {}, 0, count, {}, batch)


def test_inputs_are_joined_where_their_samples_are() -> None:
    """A state [layers, batch, size], a rate that all share, sequences of two lengths."""
    seen: dict[str, Any] = {}

    def keep(outputs: Any, labels: Any, inputs: Any) -> float:
        seen.update(inputs)
        return 0.0

    hook = hooks.Hook("keep", keep, Path("own.py"), takes_inputs=True)
    track = Track(AccuracySpec(metric="python", function="own.py:keep"), "y", "labels", hook)
    axes = {"state": 1, "rate": None, "x": 0}
    for count, length in ((2, 3), (3, 5)):
        state = np.full((2, count, 4), count)
        feeds = {"state": state, "rate": np.array(16_000), "x": np.full((count, length), count)}
        track.add("original", _results(Batch(feeds, {}, 0, axes), count))
    track.value("original")
    assert seen["state"].shape == (2, 5, 4)
    assert (seen["state"][0, :, 0] == [2, 2, 3, 3, 3]).all()
    assert seen["rate"] == 16_000
    assert [row.shape for row in seen["x"]] == [(3,), (3,), (5,), (5,), (5,)]


def _report(found: Accuracy) -> Report:
    return reports.report(accuracy=found)


def test_lower_is_better_where_the_recipe_says_so(base: Path) -> None:
    """The error doubles from 4 to 8: worse in the table and the headline, an increase for gates and a search."""
    found = measure(base, "error", factor=2.0, better="lower")
    assert not found.changes[0].higher_is_better
    report = _report(found)
    row = next(row for row in table.rows(report) if "python" in row.label)
    assert (row.tone, row.note, row.change) == ("worse", "lower is better", "+4")
    fact = facts.find(report, "accuracy.python")[0]
    assert fact.about.better == "lower"
    assert "+4 python" in headline.headline(report)
    for limit, outcome in ((5, "pass"), (3, "fail")):
        one = Gate.model_validate({"metric": "accuracy.python", "max_increase": limit})
        assert gates.judge([one], report)[0].verdict == outcome
    with pytest.raises(ReportError, match="lower is better") as caught:
        gates.judge([Gate.model_validate({"metric": "accuracy.python", "max_drop": 3})], report)
    assert caught.value.hint == "write `max_increase`"
    higher = _report(measure(base, "error", factor=2.0))
    with pytest.raises(ReportError, match="higher is better"):
        gates.judge([Gate.model_validate({"metric": "accuracy.python", "max_increase": 3})], higher)


def test_two_functions_of_one_output_are_judged_apart(base: Path) -> None:
    """Answers are doubled: the sum of the squares grows by 60, the error by 4."""
    data = Arrays({"x": ROWS}, np.zeros(7), batch=3)
    arms = {"original": builders.identity("N, 1"), "compressed": builders.linear(np.array([[2]], np.float32))}
    specs = [AccuracySpec(metric="python", function=f"own.py:{name}", better="lower") for name in ("two", "error")]
    report = _report(accuracy.evaluate(arms, data, specs, allow_code=True, base=base))
    found = facts.find(report, "accuracy.python")
    assert [fact.difference.value for fact in found if fact.difference] == pytest.approx([60, 4])
    verdicts = gates.judge([Gate.model_validate({"metric": "accuracy.python", "max_increase": 10})], report)
    assert [verdict.verdict for verdict in verdicts] == ["fail", "pass"]


def test_a_search_counts_an_error_as_one(base: Path) -> None:
    limit = tuning.gate("accuracy.python", max_increase=1)
    judge = tuning.judge(limit, goal="accuracy.python")
    same, worse = (measure(base, "error", factor=factor, better="lower") for factor in (1.0, 1.5))
    original, trial = tuning.trial("original", accuracy=same), tuning.trial(accuracy=worse)
    (bound,), goal = yardsticks(judge, original)
    assert bound.bound == 1
    for one in (bound, goal):
        read = one.read(judge.report(trial))
        assert read is not None
        assert read[0] == pytest.approx(2)  # from 4 to 6
    assert judge.value(trial) == pytest.approx(6)
    assert judge.value(original) == pytest.approx(4)
    assert [breach.metric for breach in judge.breaches(trial)] == ["accuracy.python"]


def test_the_score_of_an_error_falls_as_it_grows(base: Path) -> None:
    data = Arrays({"x": ROWS}, np.zeros(7))
    spec = AccuracySpec(metric="python", function="own.py:error", better="lower")
    scores = [
        accuracy.score(builders.linear(np.array([[factor]], np.float32)), data, [spec], allow_code=True, base=base)
        for factor in (1.0, 2.0)
    ]
    assert scores == pytest.approx([-4, -8])


RECIPE = """version: 1
steps: [{{step: simplify}}]
evaluate: {{accuracy: {{metric: python, function: own.py:error{better}}}}}
{rest}
"""


def _load(folder: Path, better: str, rest: str) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.format(better=better, rest=rest))
    load_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize(
    ("better", "rest", "right"),
    [
        (", better: lower", "gates: [{metric: accuracy.python, max_drop: 1}]", "max_increase"),
        ("", "gates: [{metric: accuracy.python, max_increase: 1}]", "max_drop"),
        (", better: lower", "tune: {limits: [{metric: accuracy.python, max_drop: 1}]}", "max_increase"),
        (", better: lower", "tune: {maximize: accuracy.python}", "minimize"),
        ("", "tune: {minimize: accuracy.python}", "maximize"),
    ],
)
def test_the_wrong_way_round_is_an_error_at_its_place(tmp_path: Path, better: str, rest: str, right: str) -> None:
    with pytest.raises(RecipeError, match=f"write `{right}`") as caught:
        _load(tmp_path, better, rest)
    assert caught.value.where is not None
    assert caught.value.where.line == 4
    turned = rest
    for wrong in ("max_drop", "max_increase", "minimize", "maximize"):
        if f"{wrong}:" in rest:
            turned = rest.replace(f"{wrong}:", f"{right}:")
    _load(tmp_path, better, turned)


def test_directions_belong_to_functions_alone() -> None:
    with pytest.raises(RecipeError, match="`better` is for `python`, and `mae` takes none"):
        AccuracySpec(metric="mae", better="lower")
    assert metrics.of("accuracy.python", lower=True) == dataclasses.replace(
        metrics.METRICS["accuracy.python"], better="lower"
    )
    assert metrics.of("accuracy.mae", lower=True) is metrics.METRICS["accuracy.mae"]


def test_inputs_of_a_model_keep_their_text(base: Path) -> None:
    """`Arrays.of` numbers again what it was given; text stays text."""
    given = Arrays({"x": ROWS}, ["1", "2", "1", "2", "1", "2", "10"], label_type="text")
    again = given.of([TensorInfo("x", "float32", ("n", 1))], "evaluation")
    assert again.text_labels == {"labels"}
    assert again.class_names["labels"] == ("1", "10", "2")
