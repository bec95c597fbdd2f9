"""How far lepton's latency numbers can be trusted: A/A, power, agreement with a hand loop, and the cost of spinning.

    python benchmarks/measurement.py [--quick] [--json FILE] [--model MODEL.onnx]
                                     [--only aa,power,agreement,spinning,report]
    python benchmarks/measurement.py --only alone --model FLOAT.onnx --other INT8.onnx [--threads N]

A/A and power run with a process that keeps one core busy. The model is a chain of MatMul and Relu unless one is given;
the slowed model of `power` is always that chain with 10 % more layers, so that the truth is known. `report` compresses
a bundled model, opens its page in headless Chromium where there is one, and judges it with `lepton gate`. `alone`
times two models in processes of their own, as whoever deploys one of them would see it, in turn with `lepton bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lepton_cli import runtime, units
from lepton_cli.measure.doctor import layers
from lepton_cli.measure.environment import environment
from lepton_cli.measure.latency import compare
from lepton_cli.measure.results import LatencyChange
from lepton_cli.measure.spec import LatencySpec
from lepton_cli.runtime import Session, Values, onnxruntime

#: 20 layers against 22: 10 % more work.
LAYERS, WIDTH = 20, 256


@dataclasses.dataclass(frozen=True)
class Task:
    """What is timed: a model and its feeds."""

    model: bytes
    feeds: Values

    @staticmethod
    def read(path: Path | None) -> Task:
        """The model in `path` with zeros at batch 1, or the chain."""
        if path is None:
            return Task(layers(LAYERS, WIDTH), {"x": np.ones((4, WIDTH), np.float32)})
        session = Session(path, threads=1)
        feeds = {i.name: np.zeros(i.concrete(1, 64), np.dtype(i.dtype)) for i in session.inputs}
        return Task(path.read_bytes(), feeds)


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Another process that never rests."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def change(first: bytes, second: bytes, feeds: Values, seconds: float, seed: int, threads: int = 1) -> LatencyChange:
    """One comparison as a recipe would run it."""
    spec = LatencySpec(threads=threads, time=units.Seconds(seconds), precision=units.Share(0.01))
    return compare({"original": first, "compressed": second}, lambda batch: feeds, spec, seed=seed).changes[0]


def same_model(task: Task, runs: int, seconds: float) -> dict[str, Any]:
    """A/A: no difference beyond 3 % may be called, and 1.0 is in the interval."""
    with busy_core():
        found = [change(task.model, task.model, task.feeds, seconds, seed) for seed in range(runs)]
    return {
        "runs": runs,
        "interval covers 1.0": sum(c.low <= 1 <= c.high for c in found) / runs,
        "called beyond 3 %": sum(c.low > 1.03 or c.high < 0.97 for c in found),
        "largest ratio error": max(abs(c.ratio - 1) for c in found),
        "median half-width": float(np.median([(c.high - c.low) / 2 for c in found])),
    }


def slowed_model(runs: int, seconds: float) -> dict[str, Any]:
    """Power: 10 % more work must be called slower."""
    first, second = layers(LAYERS, WIDTH), layers(LAYERS * 11 // 10, WIDTH)
    feeds = {"x": np.ones((4, WIDTH), np.float32)}
    found, times = [], []
    with busy_core():
        for seed in range(runs):
            started = perf_counter()
            found.append(change(first, second, feeds, seconds, seed))
            times.append(perf_counter() - started)
    return {
        "runs": runs,
        "called slower": sum(c.low > 1 for c in found),
        "ratios": [round(min(c.ratio for c in found), 4), round(max(c.ratio for c in found), 4)],
        "longest run, s": max(times),
    }


def hand_loop(task: Task, repeats: int, seconds: float) -> dict[str, Any]:
    """Agreement: medians of lepton and of a plain loop over `InferenceSession.run`, taken in turn."""
    ratios = []
    spec = LatencySpec(threads=1, time=units.Seconds(seconds), precision=units.Share(0.0001))
    for seed in range(repeats):
        plain = _loop(task, 1, lambda options: None, seconds)
        ours = compare({"model": task.model}, lambda batch: task.feeds, spec, seed=seed).results[0].median
        ratios.append(ours / plain)
    return {"repeats": repeats, "median ratio": float(np.median(ratios)), "range": [min(ratios), max(ratios)]}


def spinning(task: Task, repeats: int, seconds: float) -> dict[str, Any]:
    """What options that end the spinning of idle threads cost a session that runs alone on all usable threads."""
    threads = runtime.usable_threads()
    variants: dict[str, Callable[[Any], None]] = {
        "default": lambda options: None,
        "spin_duration_us": lambda options: options.add_session_config_entry(
            "session.intra_op.spin_duration_us", str(runtime.SPIN)
        ),
        "force_spinning_stop": lambda options: options.add_session_config_entry("session.force_spinning_stop", "1"),
        "no spinning": lambda options: options.add_session_config_entry("session.intra_op.allow_spinning", "0"),
    }
    medians: dict[str, list[float]] = {name: [] for name in variants}
    generator = np.random.default_rng(0)
    for _ in range(repeats):
        for name in generator.permutation(list(variants)):
            medians[name].append(_loop(task, threads, variants[name], seconds))
    reference = np.array(medians["default"])
    return {"threads": threads} | {
        name: float(np.median(np.array(found) / reference)) for name, found in medians.items()
    }


def alone(first: Path, second: Path, threads: int, repeats: int, seconds: float) -> dict[str, Any]:
    """Fresh processes with onnxruntime's own options, one model each, in turn with fresh ones of `lepton bench`."""
    plain: list[list[float]] = []
    ours: list[list[float]] = []
    changes: list[list[float]] = []
    bench = ["bench", str(first), str(second), "--threads", str(threads), "--time", f"{seconds} s", "--json"]
    for _ in range(repeats):
        loops = [[sys.executable, __file__, "--loop", str(path), "--threads", str(threads)] for path in (first, second)]
        plain.append([float(subprocess.run(loop, check=True, capture_output=True).stdout) for loop in loops])
        run = subprocess.run([sys.executable, "-m", "lepton_cli", *bench], check=True, capture_output=True)
        table = json.loads(run.stdout)["latency"]
        ours.append([result["median"] for result in table["results"]])
        changes.append([1 / table["changes"][0][key] for key in ("ratio", "high", "low")])
    ratio, low, high = np.array(changes).T
    common = float(np.median(ratio))
    return {
        "threads": threads,
        "alone, ms": np.round(1e3 * np.median(plain, axis=0), 3).tolist(),
        "alone, ratio": float(np.median([a / b for a, b in plain])),
        "bench, ms": np.round(1e3 * np.median(ours, axis=0), 3).tolist(),
        "bench, ratio": common,
        "bench, ratios": np.round(ratio, 3).tolist(),
        "within 2 % or covering": int(
            np.sum((np.abs(ratio / common - 1) < 0.02) | ((low <= common) & (common <= high)))
        ),
    }


def report(repeats: int) -> dict[str, Any]:
    """The page of a real run: its size, what the browser's console says. `gate` on its report: time and imports."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lepton = [sys.executable, "-m", "lepton_cli"]
        recipe = ["-r", str(root / "configs" / "mlp-prune-int8.yaml"), "--set", "evaluate.latency.time=2s"]
        model = root / "sample_models" / "digits_mlp.onnx"
        subprocess.run([*lepton, "compress", str(model), *recipe, "-o", name], check=False, capture_output=True)
        budget = folder / "budget.yaml"
        budget.write_text("version: 1\ngates:\n  - {metric: size.file, max: 1 GB}\n")
        gate = ["gate", str(folder / "report.json"), "--budget", str(budget)]
        times = []
        for _ in range(repeats):
            started = perf_counter()
            subprocess.run([*lepton, *gate], check=True, capture_output=True)
            times.append(perf_counter() - started)
        traced = [sys.executable, "-X", "importtime", "-m", "lepton_cli", *gate]
        loaded = subprocess.run(traced, check=True, capture_output=True, text=True).stderr
        modules = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in loaded.splitlines() if "|" in line}
        return {
            "page, bytes": (folder / "report.html").stat().st_size,
            "console": _console(folder / "report.html", folder / "profile"),
            "gate, s": float(np.median(times)),
            "gate imports": sorted(modules & {"numpy", "onnx", "onnx_ir", "onnxruntime"}) or "nothing heavy",
        }


def _console(page: Path, profile: Path) -> str:
    """What a page writes to the console of headless Chromium without a network: errors, blocked requests."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return "not looked at: no Chromium here"
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    quiet = ["--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"]
    seen = ["--enable-logging=stderr", "--v=0", f"--screenshot={page.with_suffix('.png')}", page.as_uri()]
    done = subprocess.run(
        [browser, *options.split(), *quiet, *seen], capture_output=True, text=True, timeout=120, check=False
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return "; ".join(said) or "silent"


def _loop(task: Task, threads: int, adjust: Callable[[Any], None], seconds: float) -> float:
    """Median time of `InferenceSession.run` in a plain loop, the first tenth left out."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    adjust(options)
    session = ort.InferenceSession(task.model, options, providers=["CPUExecutionProvider"])
    times: list[float] = []
    end = perf_counter() + seconds
    while perf_counter() < end:
        before = perf_counter()
        session.run(None, task.feeds)
        times.append(perf_counter() - before)
    return float(np.median(times[len(times) // 10 :]))


def main() -> int:
    """Run the experiments and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    parser.add_argument("--model", type=Path, help="model to time instead of the chain")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--only", default="aa,power,agreement,spinning,report")
    parser.add_argument("--other", type=Path, help="second model of `alone`")
    parser.add_argument("--threads", type=int, default=runtime.usable_threads(), help="of `alone`")
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop:
        print(_loop(Task.read(arguments.loop), arguments.threads, lambda options: None, 1.0))
        return 0
    task, quick, only = Task.read(arguments.model), arguments.quick, arguments.only.split(",")
    experiments: dict[str, Callable[[], dict[str, Any]]] = {
        "aa": lambda: same_model(task, 8 if quick else 40, 3 if quick else 10),
        "power": lambda: slowed_model(4 if quick else 20, 5 if quick else 30),
        "agreement": lambda: hand_loop(task, 4 if quick else 20, 0.5),
        "alone": lambda: alone(arguments.model, arguments.other, arguments.threads, 3 if quick else 10, 10),
        "report": lambda: report(3 if quick else 10),
        "spinning": lambda: spinning(task, 4 if quick else 20, 0.3),
    }
    results: dict[str, Any] = {"environment": environment().model_dump()}
    for name in only:
        results[name] = experiments[name]()
        print(name)
        for key, value in results[name].items():
            print(f"  {key:24} {value:.4f}" if isinstance(value, float) else f"  {key:24} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
