"""Peak memory of a model, measured in a process of its own: nothing else that was loaded counts."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lepton_cli import scratch
from lepton_cli.errors import MeasurementError
from lepton_cli.machine import usable_threads
from lepton_cli.measure.arms import Payload
from lepton_cli.measure.results import Memory
from lepton_cli.runtime import Values


def measure(
    model: Payload,
    feeds: Values,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    runs: int = 3,
    timeout: float = 600.0,
) -> Memory:
    """Peak resident memory of loading the model and running it on one batch a few times.

    The baseline is the same process with onnxruntime loaded and nothing else. On CUDA the device memory in use is read
    from nvidia-smi before and after: it includes what other processes allocate meanwhile. Raises MeasurementError when
    the process fails (also when the system ends it for lack of memory).
    """
    with scratch.folder() as folder:
        path = model if isinstance(model, Path) else folder / "model.onnx"
        if isinstance(model, bytes):
            path.write_bytes(model)
        feeds_path = folder / "feeds.npz"
        numbered: dict[str, Any] = {f"feed{i}": array for i, array in enumerate(feeds.values())}
        np.savez(feeds_path, **numbered)
        job = {
            "model": str(path),
            "feeds": str(feeds_path),
            "names": list(feeds),
            "provider": provider,
            "threads": threads or usable_threads(),
            "runs": runs,
        }
        found = _worker(job, timeout)
    return Memory(peak=found["peak"], added=max(0, found["peak"] - found["baseline"]), device=found["device"])


def _worker(job: dict[str, object], timeout: float) -> dict[str, int]:
    command = [sys.executable, "-m", "lepton_cli.measure.memory_worker"]
    # The worker must find this very package, wherever the current folder is.
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasurementError("measure.memory", f"the memory measurement took longer than {timeout:.0f} s") from error
    answer: dict[str, int] = {}
    with contextlib.suppress(ValueError, IndexError):
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    if done.returncode or "peak" not in answer:
        lines = done.stderr.strip().splitlines()
        cause = str(answer.get("error") or (lines[-1] if lines else f"it ended with code {done.returncode}"))
        if done.returncode == -9:
            cause = "the system ended it: not enough memory"
        raise MeasurementError("measure.memory", "the process that measures memory failed", cause=cause[:300])
    return answer
