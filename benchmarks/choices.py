"""Whether `quantize.static` leaves the same layers in float each time: alone, and while another process computes.

    python benchmarks/choices.py MODEL.onnx... [--runs 10] [--threads 1]

Every run measures anew, in a process of its own; in every second one a process beside it multiplies matrices on one
core. What costs no time to decide (rounding, guards of exactness) is switched off. Printed are the sets that came out,
with how often in quiet and in busy runs, and the speed over float that the run measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from quantization_cost import make_samples

#: Keeps one core busy, with caches and vector units.
BUSY = "import numpy as np; a = np.ones((700, 700), np.float32)\nwhile True: a @ a"
SAMPLES = 8


def decide(model: Path, samples: Path, threads: int) -> dict[str, Any]:
    """The layers that came out in float because they are faster there, and the speed of the whole."""
    import lepton_cli as lepton
    from lepton_cli.graph.spec import Simplify
    from lepton_cli.quantize.details import QuantizeStaticDetails
    from lepton_cli.quantize.spec import QuantizeStatic

    step = QuantizeStatic(
        equalise=False,
        calibration="minmax",
        rounding="nearest",
        bias_correction=False,
        fidelity_guard=False,
        least_gain=False,
        if_possible=True,
    )
    with np.load(samples) as arrays:
        done = lepton.apply(model, Simplify(), step, data=lepton.Arrays(dict(arrays)), threads=threads).steps[-1]
    details = done.details
    speed = details.speed if isinstance(details, QuantizeStaticDetails) else None
    left = [] if speed is None else sorted(name for one in speed.returned for name in one.nodes)
    return {"left": left, "speedup": None if speed is None else speed.speedup}


def _run(model: Path, samples: Path, threads: int, busy: bool) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(model), str(samples), str(threads)]
    beside = subprocess.Popen([sys.executable, "-c", BUSY], env=environment) if busy else None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=samples.parent)
    finally:
        if beside is not None:
            beside.kill()
            beside.wait()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the sets of every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        model, samples, threads = arguments.worker
        print(json.dumps(decide(Path(model), Path(samples), int(threads))))
        return
    for path in arguments.models:
        counts: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
        speeds = []
        with tempfile.TemporaryDirectory() as folder:
            samples = Path(folder) / "samples.npz"
            make_samples(path, SAMPLES, samples)
            for number in range(arguments.runs):
                found = _run(path.resolve(), samples, arguments.threads, busy=number % 2 == 1)
                counts[tuple(found["left"])][number % 2] += 1
                speeds.append(found["speedup"])
        most = max(map(sum, counts.values()))
        told = ", ".join(f"{speed}x" for speed in speeds)
        print(f"{path.stem}: the same in {most} of {arguments.runs} ({told})", flush=True)
        for left, (quiet, busy) in counts.items():
            print(f"  {quiet} quiet, {busy} busy: {', '.join(left) or 'all in int8'}", flush=True)


if __name__ == "__main__":
    main()
