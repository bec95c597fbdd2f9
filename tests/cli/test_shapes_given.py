"""`--shape` in every command that makes inputs up, and what happens where what was made up does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.conftest import Invoke

RECIPE = """
version: 1
steps: [{step: quantize.dynamic}]
evaluate: {latency: {batch: 1, time: 0.2 s}, memory: false}
"""


def _save(pixels: int) -> None:
    """A classifier of pictures that says nothing of their size, but for the number of their pixels."""
    weights = np.random.default_rng(0).standard_normal((pixels, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"], name="fc")],
        "g",
        [helper.make_tensor_value_info("x", 1, ["batch", 1, "h", "w_"])],
        [helper.make_tensor_value_info("y", 1, ["batch", 64])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "m.onnx")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The classifier of 10 x 10 pictures and a recipe."""
    monkeypatch.chdir(tmp_path)
    _save(100)
    Path("r.yaml").write_text(RECIPE)
    return tmp_path


def words(found: object) -> str:
    return " ".join((found.stdout + found.stderr).split())  # type: ignore[attr-defined]


def test_a_guess_that_does_not_fit_is_a_warning(invoke: Invoke, folder: Path) -> None:
    """Two primes: nobody guesses 97 x 89."""
    _save(97 * 89)
    found = invoke("plan", "m.onnx", "-r", "r.yaml")
    code, told = found.exit_code, words(found)
    assert code == 0
    assert "made-up inputs do not fit this model" in told
    assert "--shape" in told
    assert invoke("compress", "m.onnx", "-r", "r.yaml", "-o", "out").exit_code == 0
    report = json.loads(Path("out/report.json").read_text())
    assert any("made-up inputs do not fit" in warning for warning in report["warnings"])
    assert {skipped["what"] for skipped in report["skipped"]} >= {"agreement", "latency"}
    assert report["latency"] is None
    (made,) = Path("out").glob("*.onnx")
    assert any(node.op_type == "MatMulInteger" for node in onnx.load(made).graph.node)


def test_shapes_that_are_given_are_used(invoke: Invoke, folder: Path) -> None:
    fitting = ("--shape", "x=1x1x10x10")
    found = invoke("plan", "m.onnx", "-r", "r.yaml", *fitting)
    code, told = found.exit_code, words(found)
    assert (code, "do not fit" in told) == (0, False)
    assert invoke("compress", "m.onnx", "-r", "r.yaml", "-o", "out", *fitting).exit_code == 0
    report = json.loads(Path("out/report.json").read_text())
    assert report["latency"]["results"]
    assert "--shape x=1x1x10x10" in json.dumps(report)
    seen = json.loads(invoke("inspect", "m.onnx", "--json", *fitting).stdout)
    assert (seen["shapes"], seen["size"]["macs"]) == ("x 1x1x10x10", 6400)
    assert invoke("init", "m.onnx", *fitting).exit_code == 0
    assert "lepton plan m.onnx -r m.yaml --shape x=1x1x10x10" in Path("m.yaml").read_text()


@pytest.mark.parametrize("command", ["plan", "compress", "inspect", "init", "bench"])
@pytest.mark.parametrize("shape", ["z=1x1", "x=1x2", "x=1x2x10x10", "x=1xb"])
def test_shapes_that_cannot_be_are_refused(invoke: Invoke, folder: Path, command: str, shape: str) -> None:
    recipe = ["-r", "r.yaml"] if command in ("plan", "compress") else []
    found = invoke(command, "m.onnx", *recipe, "--shape", shape)
    code, told = found.exit_code, words(found)
    assert code == 2
    assert "usage.shape" in told


def test_a_shape_that_is_given_and_does_not_run_is_an_error(invoke: Invoke, folder: Path) -> None:
    found = invoke("plan", "m.onnx", "-r", "r.yaml", "--shape", "x=1x1x9x9")
    code, told = found.exit_code, words(found)
    assert code == 2
    assert "model.run" in told
