"""`lepton bench`: what it prints, what it accepts, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.cli.small import QUICK, data, model
from tests.conftest import Invoke


def test_one_model(invoke: Invoke, tmp_path: Path) -> None:
    found = invoke("bench", model(tmp_path / "a.onnx"), *QUICK)
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("a: ")
    assert "cpu batch 1 (1 thread, n = " in found.stdout
    assert "speed" not in found.stdout


def test_several_models_with_other_input_names(invoke: Invoke, tmp_path: Path) -> None:
    first = model(tmp_path / "a.onnx")
    second = model(tmp_path / "b.onnx", hidden=3, name="features")
    third = model(tmp_path / "a-very-long-name-of-a-model.onnx")
    found = invoke("bench", first, second, third, *QUICK, "--batch", "1,4")
    assert found.exit_code == 0, found.output
    assert found.stdout.count("reference") == 2
    assert "cpu batch 4" in found.stdout
    assert max(map(len, found.stdout.splitlines()[1:])) <= 100


def test_json_holds_the_report(invoke: Invoke, tmp_path: Path) -> None:
    first, second = model(tmp_path / "a.onnx"), model(tmp_path / "b.onnx")
    data(tmp_path / "data.npz")
    found = invoke("bench", first, second, *QUICK, "--data", "data.npz", "--batch", "100", "--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert [variant["name"] for variant in report["variants"]] == ["a", "b"]
    assert [result["batch"] for result in report["latency"]["results"]] == [100, 100]
    assert report["latency"]["changes"][0]["variant"] == "b"


def test_the_same_file_twice_is_a_test_of_the_machine(invoke: Invoke, tmp_path: Path) -> None:
    path = model(tmp_path / "a.onnx")
    found = invoke("bench", path, path, *QUICK, "--json")
    assert [variant["name"] for variant in json.loads(found.stdout)["variants"]] == ["a#1", "a#2"]
    (tmp_path / "new").mkdir()
    found = invoke("bench", path, model(tmp_path / "new" / "a.onnx"), *QUICK, "--json")
    assert [variant["name"] for variant in json.loads(found.stdout)["variants"]][1] == "new/a"


def test_a_missing_provider_is_an_error_unless_optional(invoke: Invoke, tmp_path: Path) -> None:
    path = model(tmp_path / "a.onnx")
    assert invoke("bench", path, *QUICK, "--provider", "nonesuch").exit_code == 2
    found = invoke("bench", path, *QUICK, "--provider", "cpu", "--provider", "nonesuch?")
    assert found.exit_code == 0, found.output
    assert "latency nonesuch: skipped" in found.stdout


def test_shapes_of_open_inputs(invoke: Invoke, tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "open.onnx")
    found = invoke("bench", "open.onnx", *QUICK, "--shape", "x=1x3x6x5", "--batch", "2", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["latency"]["results"][0]["batch"] == 2


def test_inputs_that_are_single_values(invoke: Invoke, tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x, float f) => (float[N, 3] y) { y = Mul (x, f) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "scalar.onnx")
    found = invoke("bench", "scalar.onnx", "scalar.onnx", *QUICK, "--batch", "1,3")
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize(
    "wrong",
    [
        ("--batch", "0"),
        ("--batch", "one"),
        ("--batch", "1,"),
        ("--shape", "x=1x9"),
        ("--shape", "z=1x8"),
        ("--shape", "x=8,8"),
        ("--shape", "x"),
        ("--time", "3"),
        ("--precision", "2"),
        ("--data", "missing.npz"),
        ("--threads", "0"),
        ("--threads", "2,"),
        ("--threads", "2,99999"),
        ("--threads", "two"),
    ],
)
def test_wrong_options_end_in_2(invoke: Invoke, tmp_path: Path, wrong: tuple[str, str]) -> None:
    found = invoke("bench", model(tmp_path / "a.onnx"), *wrong)
    assert found.exit_code == 2, found.output
    assert found.stdout == ""


def test_models_that_take_other_inputs_are_refused(invoke: Invoke, tmp_path: Path, samples: Path) -> None:
    found = invoke("bench", model(tmp_path / "a.onnx"), samples / "digits_vit.onnx", *QUICK)
    assert found.exit_code == 2
    assert "error[model.other-inputs]" in found.stderr
