"""int8 of lepton beside other quantizers: accuracy, fidelity, speed and size, in one run.

    python benchmarks/quantization.py --assets DIR [--only resnet20,minilm] [--threads 1] [--json FILE]
        [--peer nncf=PYTHON] [--peer neural-compressor=PYTHON] [--peer onnx-neural-compressor=PYTHON]
    python benchmarks/quantization.py --only memory,calibration
    python benchmarks/quantization.py --models FILE_OR_FOLDER... [--data NPZ_OR_PICTURES] [--pixels -1 1]
        [--batch 1 32] [--arms TEXT,...] [--limit 900] [--seconds 6]

DIR holds the models and data named in `quantization_cases.py`. Accuracy is paired on the same samples; latency is at
batch 1, all arms of a model interleaved in random order, the median of paired ratios. A peer is a tool of
`quantization_peer.py` with the interpreter of the environment it is installed in:

    python -m venv /tmp/nncf && /tmp/nncf/bin/pip install nncf onnx onnxruntime
    python -m venv /tmp/inc && /tmp/inc/bin/pip install neural-compressor==3.7 onnx==1.17.0 onnxruntime six prettytable
    python -m venv /tmp/oinc && /tmp/oinc/bin/pip install onnx-neural-compressor scipy prettytable onnxruntime onnx
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import quantization_models
import quantization_scale
from numpy.typing import NDArray
from quantization_arms import arms, context
from quantization_cases import CASES, Case

from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.quantize import speed
from lepton_cli.runtime import Session

#: Seconds that the latency comparison of one model may take.
SECONDS = 90.0
EXTRA = ("memory", "calibration")


def outputs(model: ir.Model, data: Arrays, batch: int, threads: int) -> NDArray[np.float32]:
    """First output over all samples, one row each."""
    session = Session(io.to_bytes(model), threads=threads)
    first = session.inputs[0].shape
    size = first[0] if first and isinstance(first[0], int) else batch
    name = session.outputs[0].name
    return np.concatenate([session.run(part.feeds)[name].reshape(len(next(iter(part.feeds.values()))), -1)
                           for part in data.batches(size)])  # fmt: skip


def measure(name: str, case: Case, assets: Path, threads: int, peers: Mapping[str, Path]) -> list[dict[str, Any]]:
    """One row per arm."""
    path = assets / case.file
    model = io.load(path).model
    calibration, test = case.data(assets, io.inputs(model)[0].name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = arms(case, path, calibration, threads, folder, peers)
        reference = outputs(model, test, case.batch, threads)
        one = {key: array[:1] for key, array in test.feeds.items()}
        gains, _ = speed.compare(
            [model, *made.values()], one, context(model, calibration, threads, folder), seconds=SECONDS
        )
        rows = []
        for (arm, candidate), gain in zip(made.items(), gains[1:], strict=True):
            found = outputs(candidate, test, case.batch, threads)
            sizes = len(io.to_bytes(model)) / len(io.to_bytes(candidate))
            rows.append({"model": name, "arm": arm, "speedup": gain.typical, "size_ratio": sizes}
                        | judged(reference, found, test.labels["labels"]))  # fmt: skip
    return rows


def judged(reference: NDArray[np.float32], found: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Paired accuracy (with the half width of its 95 % interval), agreement and SQNR of the outputs."""
    noise = float(np.square(reference.astype(np.float64) - found).sum())
    right, right_now = (x.argmax(1) == labels for x in (reference, found))
    return {
        "accuracy": float(right.mean()),
        "change_points": 100 * float(right_now.mean() - right.mean()),
        "half_width_points": 196 * math.sqrt(float((right != right_now).mean()) / len(right)),
        "agreement": float((reference.argmax(1) == found.argmax(1)).mean()),
        "sqnr_db": 10 * math.log10(float(np.square(reference, dtype=np.float64).sum()) / max(noise, 1e-30)),
    }


def table(rows: list[dict[str, Any]]) -> None:
    """Print the rows as Markdown."""
    print("\n| model | arm | top-1 change (points) | agreement | SQNR | speed-up | times smaller |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['arm']} | {row['change_points']:+.2f} ± {row['half_width_points']:.2f} "
            f"| {100 * row['agreement']:.2f} % | {row['sqnr_db']:.1f} dB | {row['speedup']:.2f}x "
            f"| {row['size_ratio']:.2f} |"
        )


def _peer(text: str) -> tuple[str, Path]:
    tool, _, python = text.partition("=")
    # No resolve(): the link inside an environment is what makes its packages visible.
    return tool, Path(python).absolute()


def main() -> None:
    """Run what is asked for and print one table each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--only", default=",".join(CASES), help=f"of {', '.join((*CASES, *EXTRA))}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", type=_peer, action="append", default=[], metavar="TOOL=PYTHON")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", type=Path, nargs="+", help="compare on these, whatever they are")
    parser.add_argument("--data", type=Path, help="NPZ with arrays by input, or pictures for inputs that take some")
    parser.add_argument("--pixels", type=float, nargs=2, default=[-1.0, 1.0], help="what black and white are")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--arms", default="", help="only arms whose name contains one of these texts")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds a model may take")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each of the two latency comparisons")
    parser.add_argument("--scratch", type=Path, help="folder for what is temporary")
    parser.add_argument("--keep", type=Path, help="folder that receives the models of all arms")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.models:
        quantization_models.compare(options)
        return
    rows = []
    for name in options.only.split(","):
        if name == "memory":
            quantization_scale.memory()
        elif name == "calibration":
            quantization_scale.calibration(options.threads)
        else:
            print(f"{name} ({CASES[name].file})", flush=True)
            rows += measure(name, CASES[name], options.assets, options.threads, dict(options.peer))
    if rows:
        table(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
