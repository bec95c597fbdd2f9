"""Every model of a folder through quantization: does onnxruntime run the result, and does it agree with the original?

Inputs are random unless data are given: what matters is that nothing breaks and nothing is skipped without a reason.
The table holds the worst SQNR over the float outputs and, in brackets, the share of rows with the same greatest entry.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lepton_cli.commands import runner
from lepton_cli.data.open import synthetic
from lepton_cli.errors import LeptonError
from lepton_cli.model import io
from lepton_cli.probe.distances import Reference
from lepton_cli.progress import Silent
from lepton_cli.step import Context
from lepton_cli.steps import STEPS

SAMPLES = 32
STEP_NAMES = ("quantize.static", "quantize.dynamic")


def run(folder: Path) -> None:
    """One line per model and step."""
    print("\n| model | step | result | seconds |\n|---|---|---|---|")
    for path in sorted(folder.glob("*.onnx")):
        for name in STEP_NAMES:
            started = time.perf_counter()
            print(f"| {path.stem} | {name} | {_one(path, name)} | {time.perf_counter() - started:.0f} |", flush=True)


def _one(path: Path, name: str) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        try:
            model = io.load(path).model
            data = synthetic(io.inputs(model), seed=0, samples=SAMPLES, batch=4)
            context = Context(data, None, data, model, None, "cpu", 1, 1, 0, Silent(), Path(temporary), None)
            params = STEPS[name].params.model_validate({"step": name, "if_possible": True})
            # Through the runner: it checks the graph, the outputs' names, shapes and types, and that they are finite.
            after, record = runner.run_step(runner.reference(model, context), params, 0, context, None)
            if not record.changed:
                return "unchanged: " + _reasons([decision.reason for decision in record.decisions], record.summary)
            fidelity = Reference(model, context, samples=SAMPLES)
            return f"{record.changed} nodes, {_agreement(fidelity, after.model)}"
        except LeptonError as error:
            return f"{type(error).__name__}: {error}"


def _reasons(reasons: list[str], summary: str) -> str:
    common = Counter(reasons).most_common(2)
    return "; ".join(f"{reason} ({count})" for reason, count in common) or summary


def _agreement(fidelity: Reference, model: ir.Model) -> str:
    found = fidelity.run(model)
    ratio = min(fidelity.by_output(found).values(), default=float("nan"))
    name = fidelity.names[0] if fidelity.names else None
    if name is None or fidelity.reference[0][name].ndim < 2 or fidelity.reference[0][name].shape[-1] < 2:
        return f"{ratio:.1f} dB"
    same = np.concatenate(
        [(a[name].argmax(-1) == b[name].argmax(-1)).reshape(-1) for a, b in zip(fidelity.reference, found, strict=True)]
    )
    return f"{ratio:.1f} dB ({100 * same.mean():.0f} % of rows)"
