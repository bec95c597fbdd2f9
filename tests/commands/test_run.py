"""How a run was asked for, and what is left of it when it breaks off."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from pathlib import Path

import pytest

from lepton_cli.cli import bench, compare, compress, evaluate, tune
from lepton_cli.commands.run import _OPTIONS, Arguments, Run
from lepton_cli.errors import MeasurementError
from lepton_cli.measure.results import Skipped
from lepton_cli.recipe.load import load_recipe

#: Options that change how the result is shown, or only from where it is computed; and words for the same thing.
SHOWN = {"json_output", "debug", "resume"}
SAME = {"first": "models", "second": "models", "model": "models"}


def test_a_line_is_read_back_by_a_shell() -> None:
    given = Arguments(
        "compare",
        (Path("a b.onnx"), Path("c.onnx")),
        recipe=Path("r.yaml"),
        overrides=("steps=[]", "name=it's"),
        batch="1,2",
        threads=2,
        strict=True,
        output=Path("out"),
    )
    assert shlex.split(given.line()) == [
        "lepton", "compare", "a b.onnx", "c.onnx", "-r", "r.yaml", "--set", "steps=[]", "--set", "name=it's",
        "--batch", "1,2", "--threads", "2", "--strict", "-o", "out",
    ]  # fmt: skip
    assert Arguments("bench", (Path("a.onnx"),)).line() == "lepton bench a.onnx"


def test_every_argument_has_its_option() -> None:
    assert {field.name for field in dataclasses.fields(Arguments)} == {"command", "models", *_OPTIONS}


@pytest.mark.parametrize("module", [compress, tune, compare, evaluate, bench])
def test_every_option_of_the_command_line_is_an_argument(module: object) -> None:
    options = set(inspect.signature(module.command).parameters) - SHOWN  # type: ignore[attr-defined]
    assert {SAME.get(name, name) for name in options} <= {"models", *_OPTIONS}


def test_a_recipe_remembers_how_it_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("version: 1\nsteps: [{step: simplify}]\n")
    recipe = load_recipe(path, ["seed=3", "name=small"])
    given = Arguments.of("evaluate", Path("a.onnx"), recipe, allow_code=True)
    assert given.line() == f"lepton evaluate a.onnx -r {path} --set seed=3 --set name=small --allow-code"


def test_what_is_left_of_a_run_that_broke_off() -> None:
    run = Run(Arguments("bench", (Path("a.onnx"),)))
    run.warnings.append("first")
    run.measured.skipped = (Skipped(what="latency", reason="no time"),)
    report = run.partial(MeasurementError("measure.test", "it broke"), warnings=["second", "first"])
    assert (report.command, report.status, report.complete) == ("bench", "failed", False)
    assert report.error is not None
    assert report.error.code == "measure.test"
    assert report.warnings == ("first", "second")
    assert report.skipped == run.measured.skipped
    assert (report.created, report.reproduce) == (run.clock.created, "lepton bench a.onnx")
    stopped = run.partial(None)
    assert (stopped.status, stopped.error and stopped.error.code) == ("interrupted", "interrupted")
