"""The quantized models to compare: lepton's, those of `onnxruntime.quantization`, and those of other tools."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from quantization_cases import Case, Feeds

import lepton_cli
from lepton_cli.cache import Cache
from lepton_cli.data.dataset import Dataset
from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.runtime import onnxruntime
from lepton_cli.step import Context
from lepton_cli.steps import STEPS

#: What a tool prints last when it fails is as long as this at most.
CAUSE = 160


def context(model: ir.Model, data: Dataset, threads: int, folder: Path) -> Context:
    """What a step works with: batch 1 on the CPU."""
    return Context(
        calibration=data, evaluation=None, training=None, check=data, original=model, score=None, provider="cpu",
        batch=1, threads=threads, seed=0, progress=Silent(), base=folder, workdir=folder, cache=Cache(None),
    )  # fmt: skip


def lepton(name: str, path: Path, data: Arrays, threads: int) -> tuple[ir.Model, str]:
    """One step with nothing but its defaults, and what it said."""
    made = lepton_cli.apply(path, STEPS[name].options(step=name), data=data, threads=threads)
    last = made.steps[-1]
    return made.model, "; ".join((last.summary, *last.warnings))


def prepared(path: Path, folder: Path) -> Path:
    """The model after onnxruntime's own pre-processing, or itself where that fails."""
    onnxruntime()
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out = folder / "prepared.onnx"
    for skipped in (False, True):  # the symbolic inference of shapes fails more often than the rest
        try:
            quant_pre_process(str(path), str(out), skip_symbolic_shape=skipped)
            return out
        except Exception as error:
            print(f"  onnxruntime's pre-processing: {type(error).__name__}: {str(error)[:CAUSE]}", flush=True)
    return path


def with_onnxruntime(path: Path, data: Arrays, out: Path, options: dict[str, Any]) -> ir.Model:
    """What `quantize_static` of onnxruntime makes of the model."""
    onnxruntime()
    from onnxruntime.quantization import quantize_static

    batches = data.batches(1)

    class Reader:
        def get_next(self) -> Feeds | None:
            part = next(batches, None)
            return None if part is None else part.feeds

    quantize_static(path, out, Reader(), **options)
    return io.load(out).model


def with_onnxruntime_dynamic(path: Path, out: Path) -> ir.Model:
    """What `quantize_dynamic` of onnxruntime makes of the model, without Conv, which it makes many times slower."""
    onnxruntime()
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(
        path, out, op_types_to_quantize=["MatMul", "Gemm", "Gather", "Attention", "LSTM"], per_channel=True
    )
    return io.load(out).model


def with_peer(tool: str, python: Path, path: Path, data: Arrays, out: Path, transformer: bool) -> ir.Model | None:
    """What another tool makes of the model in its own environment; `None` (and why, printed) when it fails."""
    calibration = out.with_suffix(".npz")
    feeds: dict[str, Any] = dict(data.feeds)
    np.savez(calibration, **feeds)
    command = [str(python), str(Path(__file__).resolve().with_name("quantization_peer.py")), tool]
    command += ["--model", str(path.resolve()), "--calibration", str(calibration), "--out", str(out)]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, *(["--transformer"] if transformer else [])],
        capture_output=True,
        text=True,
        check=False,
        cwd=out.parent,  # some tools leave files where they run
    )
    calibration.unlink()
    if done.returncode or not out.exists():
        cause = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1][:CAUSE]
        print(f"  {tool}: failed: {cause}", flush=True)
        return None
    print(f"  {tool} ({time.perf_counter() - started:.0f} s)", flush=True)
    return io.load(out).model


def arms(
    case: Case, path: Path, data: Arrays, threads: int, folder: Path, peers: Mapping[str, Path]
) -> dict[str, ir.Model]:
    """The quantized models to compare, by name."""
    made = {}
    for name in case.steps:
        made[f"lepton {name}"], said = lepton(name, path, data, threads)
        print(f"  lepton {name}: {said}", flush=True)
    from onnxruntime.quantization import QuantType

    unsigned = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    made["onnxruntime defaults"] = with_onnxruntime(path, data, folder / "defaults.onnx", {})
    made["onnxruntime U8S8 per channel"] = with_onnxruntime(path, data, folder / "u8s8.onnx", unsigned)
    if case.transformer:
        matrices = {**unsigned, "op_types_to_quantize": ["MatMul", "Gemm"]}
        made["onnxruntime U8S8, MatMul only"] = with_onnxruntime(path, data, folder / "matmul.onnx", matrices)
        made["onnxruntime dynamic"] = with_onnxruntime_dynamic(path, folder / "dynamic.onnx")
    for tool, python in peers.items():
        names = [tool, f"{tool}-dynamic"] if tool == "neural-compressor" and case.transformer else [tool]
        for name in names:
            other = with_peer(name, python, path, data, folder / f"{name}.onnx", case.transformer)
            if other is not None:
                made[name] = other
    return made
