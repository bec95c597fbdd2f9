"""Every operator: ONNX's own backend models through `inspect`, steps and a pipeline; ends in a summary table.

    pip download --no-deps onnx==1.17.0 -d /tmp/onnx && python -m zipfile -e /tmp/onnx/*.whl /tmp/onnx/wheel
    python benchmarks/robustness.py --backend /tmp/onnx/wheel/onnx/backend/test/data

They come with inputs and outputs, and the results are compared with the stored outputs. (`corpus.py` takes whole models
of other people.) A worker process does the work, so that a crash or a timeout is one model's failure and no more.

Results: `passed` (transformed, outputs right), `left` (nothing to do, with the reason), `refused` (one LeptonError
before any work: onnxruntime cannot run the model, or the file is not valid), `caught` (a step failed or made something
wrong and the pipeline's own check stopped it), `failed` (wrong output, another exception, crash, timeout).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx

#: Name -> steps. Each goes through the runner, which checks every step's result.
PIPELINES: dict[str, list[dict[str, Any]]] = {
    "simplify": [{"step": "simplify"}],
    "quantize.dynamic": [{"step": "quantize.dynamic", "if_possible": True}],
    "prune.channels": [{"step": "prune.channels", "target": {"params": "70 %"}, "if_possible": True}],
    "all three": [
        {"step": "simplify"},
        {"step": "prune.channels", "target": {"params": "70 %"}, "if_possible": True},
        {"step": "quantize.dynamic", "if_possible": True},
    ],
}
EXTRA: dict[str, list[dict[str, Any]]] = {
    "prune.weights": [{"step": "prune.weights", "sparsity": "50 %", "if_possible": True}],
    "quantize.static": [{"step": "quantize.static", "if_possible": True}],
    "quantize.weights": [{"step": "quantize.weights", "if_possible": True}],
    "convert.fp16": [{"step": "convert.fp16", "if_possible": True}],
    "fuse": [{"step": "fuse"}],
}
#: The stored outputs come from other kernels than onnxruntime's; steps that keep outputs must stay this close.
TOLERANCE = 2e-3

Row = tuple[str, str, str]  # stage, result, reason


class Stored:
    """The inputs stored beside a backend model, as a data set of one batch."""

    name, path, count, fingerprint, fixed_batch = "stored", "(stored)", 1, "stored", None
    label_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, feeds: dict[str, Any]) -> None:
        self._feeds = feeds
        self.class_names: dict[str, tuple[str, ...]] = {}

    def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Any]:
        from lepton_cli.data.dataset import Batch

        yield Batch(self._feeds, {}, 0)

    def sample_hashes(self) -> list[str]:
        return []


def try_model(path: Path, extra: bool) -> list[Row]:
    """One model through everything."""
    from lepton_cli import runtime
    from lepton_cli.commands.inspect import inspect
    from lepton_cli.errors import LeptonError
    from lepton_cli.model import io

    rows: list[Row] = []
    try:
        inspect(path)
        rows.append(("inspect", "passed", ""))
        loaded = io.load(path)
    except LeptonError as error:
        return [*rows, ("inspect", "refused", _words(error))]
    except Exception as error:
        return [*rows, ("inspect", "failed", f"{type(error).__name__}: {error}"[:300])]
    try:
        data, expected = _data(path, loaded)
        feeds = next(iter(data.batches())).feeds
        runtime.Session(path, threads=1).run(feeds)
    except LeptonError as error:
        return [*rows, ("run", "refused", _words(error))]
    for name, steps in {**PIPELINES, **(EXTRA if extra else {})}.items():
        rows.append((name, *_pipeline(loaded, steps, data, expected)))
    return rows


def _pipeline(loaded: Any, steps: list[dict[str, Any]], data: Any, expected: list[Any]) -> tuple[str, str]:
    from lepton_cli import runtime
    from lepton_cli.commands import runner
    from lepton_cli.errors import LeptonError, StepError
    from lepton_cli.model import io
    from lepton_cli.steps import STEPS

    changed, reasons, left_out = 0, "", []
    with tempfile.TemporaryDirectory() as folder:
        context = _context(loaded.model, data, Path(folder))
        before = io.to_bytes(loaded.model)
        try:
            current = original = runner.reference(loaded.model, context)
            for index, options in enumerate(steps):
                params = STEPS[str(options["step"])].params.model_validate(options)
                current, record = runner.run_step(current, params, index, context, None)
                changed += record.changed
                left_out += record.warnings
                reasons = "; ".join(dict.fromkeys(decision.reason for decision in record.decisions))
            result = Path(folder) / "result.onnx"
            io.save(current.model, result)
            outputs = runtime.Session(io.payload(io.load(result).model, Path(folder)), threads=1).run(data_feeds(data))
        except StepError as error:
            return "failed" if error.code == "step.unforeseen" else "caught", _words(error)
        except LeptonError as error:
            return "refused", _words(error)
        except Exception as error:
            return "failed", f"{type(error).__name__}: {error}"[:300]
        if reason := next((w for w in left_out if w.startswith(("left out: after", "left out: `"))), ""):
            return ("failed" if "failed on this model" in reason else "caught"), reason
        if io.to_bytes(loaded.model) != before:
            return "failed", "the input model was changed"
        lossless = {options["step"] for options in steps} <= {"simplify", "fuse"}
        # Where onnxruntime itself misses the stored outputs (random operators), the runner's comparison has to do.
        if lossless and expected and not _difference(expected, list(original.outputs[0].values())):
            wrong = _difference(expected, list(outputs.values()))
            if wrong:
                return "failed", wrong
    return ("passed", "") if changed else ("left", reasons[:300])


def data_feeds(data: Any) -> Any:
    """The feeds of the first batch."""
    return next(iter(data.batches())).feeds


def _context(model: Any, data: Any, folder: Path) -> Any:
    from lepton_cli.cache import Cache
    from lepton_cli.progress import Silent
    from lepton_cli.step import Context

    return Context(
        calibration=data, evaluation=None, training=None, check=data, original=model, score=None, provider="cpu",
        batch=1, threads=1, seed=0, progress=Silent(), base=folder, workdir=folder, cache=Cache(None),
    )  # fmt: skip


def _data(path: Path, loaded: Any) -> tuple[Any, list[Any]]:
    from lepton_cli.data.open import synthetic
    from lepton_cli.model import io

    folder = path.parent / "test_data_set_0"
    infos = io.inputs(loaded.model)
    if not folder.is_dir():
        return synthetic(infos, seed=0, samples=2, batch=1), []
    stored = sorted(folder.glob("input_*.pb"), key=_number)
    kinds = {value.name: value.type for value in onnx.load(path, load_external_data=False).graph.input}
    feeds = {info.name: _read(file, kinds[info.name]) for info, file in zip(infos, stored, strict=False)}
    outputs = onnx.load(path, load_external_data=False).graph.output
    expected = [
        _read(file, value.type)
        for value, file in zip(outputs, sorted(folder.glob("output_*.pb"), key=_number), strict=False)
    ]
    return Stored({name: value for name, value in feeds.items() if value is not None}), expected


def _number(file: Path) -> int:
    return int(file.stem.split("_")[1])


def _read(file: Path, kind: Any) -> Any:
    data = file.read_bytes()
    if kind.HasField("sequence_type"):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    array = onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data))
    return array.astype(object) if array.dtype.kind in "US" else array


def _difference(expected: list[Any], found: list[Any]) -> str:
    """Why the outputs are not the stored ones."""
    for want, have in zip(expected, found, strict=False):
        if not isinstance(want, np.ndarray) or want.dtype.kind not in "fiub" or not isinstance(have, np.ndarray):
            continue
        if want.shape != have.shape:
            return f"shape {have.shape} instead of {want.shape}"
        scale = max(float(np.abs(np.nan_to_num(want.astype(np.float64), posinf=0, neginf=0)).max(initial=0)), 1e-3)
        with np.errstate(invalid="ignore"):
            error = np.nan_to_num(np.abs(want.astype(np.float64) - have.astype(np.float64))).max(initial=0) / scale
        if error > TOLERANCE:
            return f"differs by {error:.2g}"
    return ""


def _words(error: Any) -> str:
    return f"[{error.code}] {error.message}" + (f": {error.cause}" if error.cause else "")


def _work(pipe: Connection, extra: bool) -> None:
    warnings.simplefilter("ignore")
    while True:
        path = pipe.recv()
        try:
            pipe.send(try_model(path, extra))
        except Exception as error:
            pipe.send([("harness", "failed", f"{type(error).__name__}: {error}"[:300])])


class Worker:
    """A process that tries models, started again after a crash or a timeout."""

    def __init__(self, extra: bool, timeout: float) -> None:
        self.extra, self.timeout = extra, timeout
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, self.extra), daemon=True)
        self.process.start()
        other.close()

    def run(self, path: Path) -> list[Row]:
        self.pipe.send(path)
        try:
            if self.pipe.poll(self.timeout):
                return list(self.pipe.recv())
            reason = f"timeout after {self.timeout:.0f} s"
        except EOFError:
            reason = f"crash, exit code {self.process.exitcode}"
        self.process.kill()
        self.process.join()
        self.start()
        return [("process", "failed", reason)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", type=Path, required=True, help="folder onnx/backend/test/data of an onnx wheel")
    parser.add_argument("--extra", action="store_true", help="the other steps too")
    parser.add_argument("--timeout", type=float, default=600, help="seconds a model may take")
    parser.add_argument("--only", default="", help="models whose path contains this text")
    parser.add_argument("--every", type=int, default=1, help="every n-th model")
    parser.add_argument("--json", type=Path, help="write all results here")
    arguments = parser.parse_args()
    models = [path for path in sorted(arguments.backend.rglob("model.onnx")) if arguments.only in str(path)][
        :: arguments.every
    ]
    worker = Worker(arguments.extra, arguments.timeout)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    results: dict[str, list[Row]] = {}
    started = time.monotonic()
    for number, path in enumerate(models):
        name = path.parent.name
        results[str(path)] = rows = worker.run(path)
        for stage, result, reason in rows:
            counts[stage][result] += 1
            if result in ("failed", "caught"):
                print(f"{result:7} {name}  {stage}: {reason}", flush=True)
        if number % 100 == 99:
            print(f"... {number + 1} of {len(models)}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    kinds = ("passed", "left", "refused", "caught", "failed")
    print(f"\n{len(models)} models in {time.monotonic() - started:.0f} s\n")
    print(f"| {'stage':17} |" + "".join(f" {kind:>7} |" for kind in kinds))
    print("|---|" + "---:|" * len(kinds))
    for stage, found in counts.items():
        print(f"| {stage:17} |" + "".join(f" {found[kind]:7} |" for kind in kinds))
    return 1 if any(found["failed"] for found in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
