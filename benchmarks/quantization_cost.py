"""What int8 costs to make: CPU seconds and peak memory of lepton beside onnxruntime's `quantize_static`.

    python benchmarks/quantization_cost.py MODEL.onnx... [--samples 32] [--data NPZ_OR_PICTURES] [--pixels -1 1]
        [--peer neural-compressor=PYTHON]

Both calibrate on the same samples, made up where none are given, each in a process of its own; imports count.
onnxruntime does its own pre-processing first and takes weights per channel. Models are read as files of one sample at a
time. Peers are those of `quantization.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TOOLS = ("onnxruntime", "lepton")
MEGABYTE = 1024  # of kilobytes, as the kernel counts


def make_samples(
    model: Path, count: int, out: Path, data: Path | None = None, pixels: tuple[float, float] = (-1.0, 1.0)
) -> None:
    """Write inputs of `count` samples on axis 0."""
    from quantization_models import samples

    from lepton_cli.model import io

    np.savez(out, allow_pickle=False, **samples(io.load(model).model, data, pixels, count))


def with_lepton(model: Path, samples: Path) -> str:
    """`simplify` and `quantize.static` with their defaults; what the step said."""
    import lepton_cli as lepton
    from lepton_cli.graph.spec import Simplify
    from lepton_cli.quantize.spec import QuantizeStatic

    with np.load(samples) as arrays:
        data = lepton.Arrays(dict(arrays))
    return lepton.apply(model, Simplify(), QuantizeStatic(if_possible=True), data=data).steps[-1].summary


def with_onnxruntime(model: Path, samples: Path) -> str:
    """Pre-processing and `quantize_static`, one scale per channel."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with np.load(samples) as arrays:
        feeds = [
            {name: array[i : i + 1] for name, array in arrays.items()} for i in range(len(arrays[arrays.files[0]]))
        ]
    waiting = iter(feeds)

    class Reader:
        def get_next(self) -> Any:
            return next(waiting, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(model, prepared)
        quantize_static(prepared, Path(folder) / "made.onnx", Reader(), per_channel=True)
    return ""


WORK: dict[str, Callable[[Path, Path], str]] = {"onnxruntime": with_onnxruntime, "lepton": with_lepton}


def with_peer(tool: str, python: str, model: Path, samples: Path) -> str:
    """Another tool in the environment that it is installed in."""
    with tempfile.TemporaryDirectory() as folder:
        command = [python, str(Path(__file__).resolve().with_name("quantization_peer.py")), tool]
        command += ["--model", str(model), "--calibration", str(samples), "--out", str(Path(folder) / "made.onnx")]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    return ""


def worker(tool: str, model: Path, samples: Path) -> None:
    """One run of one tool, or of TOOL=PYTHON, told as JSON on the last line."""
    started = time.perf_counter()
    name, _, python = tool.partition("=")
    said = with_peer(name, python, model, samples) if python else WORK[tool](model, samples)
    used = resource.getrusage(resource.RUSAGE_CHILDREN if python else resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "cpu": used.ru_utime + used.ru_stime,
                "wall": time.perf_counter() - started,
                "peak": used.ru_maxrss / MEGABYTE,
                "said": said,
            }
        )
    )


def _environment() -> dict[str, str]:
    """With this repository's lepton, from whatever folder."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def measure(tool: str, model: Path, samples: Path) -> dict[str, Any]:
    """CPU and wall seconds, megabytes, and what was said; or why it failed."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", tool, str(model.resolve()), str(samples)]
    # Where its pre-processing fails, onnxruntime leaves a copy of the model in the working folder.
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=samples.parent, env=_environment())
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1][:160]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--data", type=Path, help="NPZ with arrays by input, or pictures for inputs that take some")
    parser.add_argument("--pixels", type=float, nargs=2, default=[-1.0, 1.0], help="what black and white are")
    parser.add_argument("--peer", action="append", default=[], metavar="TOOL=PYTHON")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        tool, model, samples = arguments.worker
        return worker(tool, Path(model), Path(samples))
    tools = [*TOOLS, *arguments.peer]
    columns = " | ".join(f"{tool.partition('=')[0]}, CPU s | MB" for tool in tools)
    print(f"| model | {columns} | at most 3 times onnxruntime + 10 s | lepton says |")
    print("|---" * (2 * len(tools) + 3) + "|")
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            samples = Path(folder) / "samples.npz"
            make_samples(model, arguments.samples, samples, arguments.data, tuple(arguments.pixels))
            theirs, ours, *others = (measure(tool, model, samples) for tool in tools)
        cells = [
            cell
            for found in (theirs, ours, *others)
            for cell in ([f"{found['cpu']:.1f}", f"{found['peak']:.0f}"] if "cpu" in found else [found["failed"], "-"])
        ]
        held = "-"
        if "cpu" in theirs and "cpu" in ours:
            held = "yes" if ours["cpu"] <= 3 * theirs["cpu"] + 10 else "no"
        print(f"| {model.stem} | {' | '.join(cells)} | {held} | {ours.get('said', '')} |", flush=True)
    return None


if __name__ == "__main__":
    main()
