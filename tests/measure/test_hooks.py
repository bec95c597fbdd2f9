"""The user's own metric: per sample, for everything at once, and broken in every way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import LeptonError, MeasurementError, RecipeError
from lepton_cli.measure import accuracy
from lepton_cli.measure.spec import AccuracySpec
from tests.measure import builders

SOURCE = """
import numpy as np
calls = []

def per_sample(outputs, labels):
    calls.append(len(outputs["y"]))
    return (outputs["y"].argmax(axis=1) == labels["labels"]).astype(float)

def whole(outputs, labels):
    return float((outputs["y"].argmax(axis=1) == labels["labels"]).mean())

def raises(outputs, labels):
    value = labels["labels"]
    return value["nothing"]

def infinite(outputs, labels):
    return float("inf")

def strange(outputs, labels):
    return np.zeros((3, 3))
"""


@pytest.fixture
def dataset() -> Arrays:
    labels = np.arange(20) % 4
    scores = np.eye(4, dtype=np.float32)[np.where(np.arange(20) < 2, 3 - labels, labels)]
    return Arrays({"x": scores}, {"labels": labels})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "hook.py").write_text(SOURCE)
    return tmp_path


def run(dataset: Arrays, base: Path, function: str) -> accuracy.Accuracy:
    model = builders.identity("N, 4")
    spec = AccuracySpec(metric="python", function=f"hook.py:{function}")
    return accuracy.evaluate({"original": model, "compressed": model}, dataset, [spec], allow_code=True, base=base)


def test_per_sample_values_are_paired(dataset: Arrays, base: Path) -> None:
    found = run(dataset, base, "per_sample")
    (metric,) = found.values["original"]
    assert (metric.metric, metric.value, metric.n) == ("python", 0.9, 20)
    assert metric.low is not None
    assert found.changes[0].method == "bootstrap"
    assert (found.changes[0].low, found.changes[0].high) == (0, 0)


def test_one_number_is_taken_over_everything(dataset: Arrays, base: Path) -> None:
    found = run(dataset, base, "whole")
    (metric,) = found.values["original"]
    assert (metric.value, metric.low, metric.n) == (0.9, None, 20)
    assert (found.changes[0].difference, found.changes[0].low, found.changes[0].method) == (0.0, None, "")


def test_an_exception_names_the_hook_and_its_line(dataset: Arrays, base: Path) -> None:
    with pytest.raises(MeasurementError, match=r"`hook.py:raises` raised IndexError") as caught:
        run(dataset, base, "raises")
    line = SOURCE.splitlines().index('    return value["nothing"]') + 1
    assert str(caught.value.where) == f"{base / 'hook.py'}:{line}"


@pytest.mark.parametrize(("function", "message"), [("infinite", "not finite"), ("strange", "shape")])
def test_useless_results(dataset: Arrays, base: Path, function: str, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        run(dataset, base, function)


def test_code_needs_permission(dataset: Arrays, base: Path) -> None:
    spec = AccuracySpec(metric="python", function="hook.py:whole")
    with pytest.raises(RecipeError, match="would run Python code") as caught:
        accuracy.evaluate({"original": builders.identity("N, 4")}, dataset, [spec], base=base)
    assert caught.value.option == ("evaluate", "accuracy", 0, "function")


@pytest.mark.parametrize(
    ("source", "message"),
    [("def other(): ...", "no function `f`"), ("1 / 0", "ZeroDivisionError"), ("def", "SyntaxError")],
)
def test_broken_files(dataset: Arrays, tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(source)
    spec = AccuracySpec(metric="python", function="broken.py:f")
    with pytest.raises(LeptonError, match=message):
        accuracy.evaluate({"original": builders.identity("N, 4")}, dataset, [spec], allow_code=True, base=tmp_path)
