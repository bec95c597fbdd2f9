"""The command in a report, run again in the same folder, gives the same report."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.cli import small
from tests.conftest import Invoke
from tests.tune import builders

#: What is measured, or tells when and how long: the rest must be equal.
MEASURED = {"created", "environment", "seconds", "latency", "memory", "headline", "elapsed", "overhead"}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    small.model(tmp_path / "a model.onnx", hidden=2)
    small.model(tmp_path / "b.onnx", noise=0.1)
    small.data(tmp_path / "data.npz")
    small.recipe(tmp_path / "recipe.yaml")
    gates = "gates: [{metric: nodes, max_ratio: 2, against: baseline}]\n"
    small.recipe(tmp_path / "judged.yaml", gates=gates)
    (tmp_path / "budget.yaml").write_text("version: 1\ngates: [{metric: nodes, max: 9}]\n")


def settled(value: Any) -> Any:
    """Without what is measured."""
    if isinstance(value, dict):
        return {key: settled(child) for key, child in value.items() if key not in MEASURED}
    noise = (" wanted ±", " of the bursts")  # of warnings that the machine was not quiet enough
    if isinstance(value, list):
        return [settled(child) for child in value if not (isinstance(child, str) and any(n in child for n in noise))]
    return value


def twice(invoke: Invoke, *arguments: object) -> list[str]:
    """Run, then run what the report says; the words of that command."""
    first = invoke(*arguments, "--json")
    assert first.exit_code in (0, 1), first.stderr
    report = json.loads(first.stdout)
    program, *words = shlex.split(report["reproduce"])
    assert program == "lepton"
    again = invoke(*words, "--json")
    assert again.exit_code == first.exit_code, again.stderr
    assert settled(json.loads(again.stdout)) == settled(report)
    return words


def pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(words))


SET = ("--set", "evaluate.latency.time=30 ms", "--set", "seed=3")


def test_compress(invoke: Invoke) -> None:
    words = twice(invoke, "compress", "a model.onnx", "-r", "recipe.yaml", "-o", "base", "--set", "seed=3")
    assert ("--set", "seed=3") in pairs(words)
    stored = invoke("baseline", "update", "base/report.json", "-o", "baseline.json")
    assert stored.exit_code == 0, stored.stderr
    words = twice(
        invoke, "compress", "a model.onnx", "-r", "judged.yaml", "-o", "out dir", *SET,
        "--baseline", "baseline.json", "--strict", "--allow-code",
    )  # fmt: skip
    assert {(SET[0], SET[1]), (SET[2], SET[3]), ("--baseline", "baseline.json")} <= set(pairs(words))
    assert {"--strict", "--allow-code"} < set(words)


def test_compress_without_a_recipe(invoke: Invoke) -> None:
    words = twice(invoke, "compress", "a model.onnx", "--data", "data.npz", "--labels", "labels", "-o", "out")
    assert {("--data", "data.npz"), ("--labels", "labels"), ("-o", "out")} <= set(pairs(words))


def test_tune(invoke: Invoke, tmp_path: Path) -> None:
    builders.data(tmp_path / "data.npz", builders.network(tmp_path / "net.onnx"))
    section = "{limits: [{metric: size.file, max_ratio: 0.9}], minimize: size.file, budget: {trials: 3}}"
    builders.recipe(tmp_path / "tune.yaml", section)
    words = twice(invoke, "tune", "net.onnx", "-r", "tune.yaml", "-o", "found", "--set", "tune.budget.trials=2")
    assert ("--set", "tune.budget.trials=2") in pairs(words)
    first = json.loads((tmp_path / "found" / "report.json").read_text())
    assert len(first["tune"]["trials"]) == 2
    words = twice(invoke, "tune", "net.onnx", "-r", "tune.yaml", "--from", "found/report.json", "-o", "b")
    assert ("--from", "found/report.json") in pairs(words)


def test_compare(invoke: Invoke) -> None:
    words = twice(
        invoke, "compare", "a model.onnx", "b.onnx", "-r", "recipe.yaml", "-o", "out", *SET,
        "--budget", "budget.yaml", "--strict",
    )  # fmt: skip
    assert words[1:3] == ["a model.onnx", "b.onnx"]
    assert {("--budget", "budget.yaml"), ("-o", "out")} <= set(pairs(words))
    assert "--strict" in words


def test_compare_without_a_recipe(invoke: Invoke) -> None:
    words = twice(
        invoke, "compare", "b.onnx", "a model.onnx", "--data", "data.npz", "--batch", "1,2", *small.QUICK,
        "--provider", "cpu", "--precision", "50%",
    )  # fmt: skip
    assert {("--batch", "1,2"), ("--time", "50 ms"), ("--provider", "cpu"), ("--precision", "50%")} <= set(pairs(words))


def test_evaluate(invoke: Invoke) -> None:
    words = twice(
        invoke, "evaluate", "b.onnx", "-r", "recipe.yaml", "--set", "data.evaluation.samples=30", "--allow-code"
    )
    assert ("--set", "data.evaluation.samples=30") in pairs(words)
    assert "--allow-code" in words


def test_bench(invoke: Invoke) -> None:
    words = twice(
        invoke, "bench", "a model.onnx", "b.onnx", *small.QUICK, "--shape", "x=2x8", "--provider", "cpu",
        "--provider", "cuda?",
    )  # fmt: skip
    assert {("--shape", "x=2x8"), ("--provider", "cuda?"), ("--threads", "1")} <= set(pairs(words))
