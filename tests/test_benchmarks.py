"""Every script of `benchmarks/` can at least be loaded: what they import moves."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.step import Context
from tests.hostile.models import mlp

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
