"""Every script of `benchmarks/` can at least be loaded: what they import moves."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.data.preprocess import apply
from lepton_cli.data.spec import Preprocess
from lepton_cli.model import io
from lepton_cli.step import Context
from tests.hostile.models import mlp
from tests.prune.context import images, redundant

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_benchmark_can_be_loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    try:
        importlib.import_module(name)
    except SystemExit as missing:  # an extra that only this benchmark needs
        pytest.skip(str(missing))
    finally:
        for module in set(sys.modules) - before:
            if Path(getattr(sys.modules[module], "__file__", None) or "").parent == FOLDER:
                del sys.modules[module]


def test_benchmarks_give_steps_what_they_work_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fields of `Context` come and go; the benchmarks that make one by hand are not seen by mypy."""
    monkeypatch.syspath_prepend(str(FOLDER))
    data, model = Arrays({"x": np.zeros((2, 3), np.float32)}), ir.from_proto(mlp(64))
    case = SimpleNamespace(calibration=dict(data.feeds), batch=1)
    arms, pruning, robustness = map(importlib.import_module, ("quantization_arms", "pruning", "robustness"))
    made = [arms.context(model, data, 1, tmp_path), pruning.given_to(case, model, 1, tmp_path),
            robustness._context(model, data, tmp_path)]  # fmt: skip
    for context in made:
        assert isinstance(context, Context)
        assert (context.original, context.provider, context.batch, context.threads) == (model, "cpu", 1, 1)
        assert (context.workdir, context.training) == (tmp_path, None)
        assert context.calibration is context.check


@pytest.mark.slow
def test_the_run_for_a_gpu_does_all_its_parts_on_the_processor(tmp_path: Path) -> None:
    """One row for each way to make a model, and what fails, here a file that is none, costs no other row."""
    (tmp_path / "resnet20_cifar10.onnx").write_bytes(mlp(64).SerializeToString())
    (tmp_path / "squeezenet_v1.1.onnx").write_bytes(b"no model")
    options = ["--assets", str(tmp_path), "--provider", "cpu", "--seconds", "0.1", "--json", str(tmp_path / "all.json")]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "cuda.py"), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    found = json.loads((tmp_path / "all.json").read_text())
    assert "provider cpu" in found["machine"]["doctor"]
    assert set(found["resnet20_cifar10"]) == set(found["squeezenet_v1.1"]) > {"advice", "same twice", "fp16", "4 bit"}
    assert all("failed" in part for part in found["squeezenet_v1.1"].values())
    assert not any("failed" in part for part in found["resnet20_cifar10"].values())
    made = found["resnet20_cifar10"]["int8 static"]
    assert made["nodes"].startswith("CPU ")
    assert 0.05 < made["ratio"] < 20
    assert "| resnet20_cifar10 | int8 static |" in done.stdout


@pytest.fixture
def recovery(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("torch", reason="needs the extra `train`")
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("recovery")


def test_recovery_judges_by_labels_by_the_original_and_by_decibels(recovery: ModuleType) -> None:
    original = np.array([[3, 0, 0], [0, 4, 0], [0, 0, 5], [0, 0, 5]], np.float32)
    outputs = np.array([[3, 0, 0], [0, 4, 1], [0, 6, 5], [0, 0, 5]], np.float32)
    top, same, decibels = recovery.judged(outputs, original, np.array([0, 1, 1, 0]))
    assert (top, same) == (3 / 4, 3 / 4)
    assert decibels == pytest.approx(10 * np.log10((9 + 16 + 25 + 25) / (1 + 36)))
    assert recovery.judged(original, original, np.array([0, 1, 1, 0]))[1:] == (1.0, np.inf)


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [({}, [10, 20, 30]), ("CAFFE", [-74, -97, -113]), ("STANDARDISED", [-1.946656, -1.685574, -1.281569])],
)
def test_recovery_judges_pixels_that_the_recipe_learns_from(
    preprocess: str | dict[str, Any], expected: list[float], recovery: ModuleType
) -> None:
    spec = getattr(recovery, preprocess) if isinstance(preprocess, str) else preprocess
    stored = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    stored[0, 1, 2] = 10, 20, 30
    made = recovery.prepared(stored, **spec)
    np.testing.assert_allclose(made[0, :, 1, 2], expected, atol=1e-5)
    read = apply(stored, Preprocess(layout="nchw", **spec), "float32")
    np.testing.assert_allclose(made, read, atol=1e-5)


def test_recovery_prunes_trains_and_tells(recovery: ModuleType, tmp_path: Path) -> None:
    """Labels are the original's answers: what meets them is the same as what agrees with it."""
    model = redundant(3)
    io.save(model, tmp_path / "net.onnx")
    learnt, seen = images(128).feeds["x"], images(40).feeds["x"]
    np.savez(tmp_path / "learnt.npz", x=learnt)
    labels = recovery.answers(model, {"x": seen}).argmax(1)
    section = {"path": str(tmp_path / "learnt.npz")}
    given = recovery.Samples(section, {"x": seen}, labels)
    case = recovery.Case(tmp_path / "net.onnx", "60 %", lambda *_: given, calibration=96)
    row, told = recovery.recovered("net", case, tmp_path, {"budget": {"samples": 256}, "batch": 32}, seed=0)
    name, macs, top, met, same, _, minutes, count = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, top, met, count) == ("net", "100.00%", same, "40")
    assert 50 < float(macs.rstrip("%")) <= 60
    assert float(minutes) < 5
    assert "steps 8, " in told
    assert "batch 32, " in told
