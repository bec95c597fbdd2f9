"""Every CUDA path in one run: does it start, what falls back, what is fastest, and is the advice right.

    python benchmarks/cuda.py [--assets DIR] [--minutes 8] [--json FILE]

Wants a GPU and onnxruntime-gpu. Models: those of `MODELS` that DIR holds, else the bundled ones; inputs are made up, so
that SQNR says whether a path computes the right thing, not how exact it is on real data. Each part is a process of its
own: one that fails is a line of the table, and what no time was left for is named. `--provider cpu` runs all of it
without a GPU, as a test of this script.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).parent.parent
MODELS = ("resnet20_cifar10", "squeezenet_v1.1", "sst2_minilm", "llama_tiny")
BUNDLED = ("digits_cnn", "digits_vit")
#: What is made of each model, the most important first: time may run out.
VARIANTS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "fp16": ({"step": "convert.fp16"},),
    "4 bit": ({"step": "quantize.weights", "bits": 4},),
    "int8 static": ({"step": "quantize.static", "speed_guard": False},),
    "4 bit + fp16": ({"step": "quantize.weights", "bits": 4}, {"step": "convert.fp16"}),
    "int8 dynamic": ({"step": "quantize.dynamic"},),
}
#: What `init` writes for a model, by the step that makes it.
ADVISED = {"convert.fp16": "fp16", "quantize.static": "int8 static", "quantize.dynamic": "int8 dynamic"}
CALIBRATION = 16


class Failed(Exception):
    """A command that did not do its work; the message is what it said."""


class Bench:
    """Commands under one deadline."""

    def __init__(self, provider: str, seconds: float, minutes: float, folder: Path) -> None:
        self.provider, self.seconds, self.folder = provider, seconds, folder
        self.deadline = time.monotonic() + 60 * minutes

    def lepton(self, *arguments: object, codes: tuple[int, ...] = (0, 1)) -> str:
        """What `lepton` prints. Raises Failed."""
        left = self.deadline - time.monotonic()
        if left < 5:
            raise Failed("no time was left")
        command = [sys.executable, "-m", "lepton_cli", *map(str, arguments)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False, cwd=ROOT)
        except subprocess.TimeoutExpired:
            raise Failed(f"cut off after {left:.0f} s, as the time was up") from None
        if done.returncode not in codes:
            said = [line.strip() for line in done.stderr.splitlines() if line.startswith(("error", "  cause"))]
            raise Failed(" ".join(said) or f"ended with {done.returncode}: {(done.stderr or done.stdout)[-300:]}")
        return done.stdout

    def data(self, model: Path, samples: int = CALIBRATION) -> Path:
        """Made-up samples to calibrate or to train with. Raises Failed."""
        from lepton_cli.data.open import synthetic
        from lepton_cli.errors import LeptonError
        from lepton_cli.graph.feeds import sized
        from lepton_cli.model import io

        path = self.folder / f"{model.stem}.{samples}.npz"
        try:
            made = synthetic(sized(io.load(model).model), seed=1, samples=samples, batch=samples)
            np.savez(path, allow_pickle=False, **next(iter(made.batches())).feeds)
        except (LeptonError, StopIteration) as error:
            raise Failed(f"no inputs could be made up: {error}") from error
        return path

    def compress(self, model: Path, name: str) -> dict[str, Any]:
        """One row. Raises Failed."""
        recipe = {
            "version": 1,
            "name": "made",
            "data": {"calibration": {"path": str(self.data(model))}},
            "steps": [{**step, "if_possible": True} for step in VARIANTS[name]],
            "evaluate": {
                "latency": {
                    "providers": [self.provider],
                    "batch": [1, CALIBRATION],
                    "time": f"{self.seconds} s",
                },
                "energy": True,
            },
            "gates": [
                {"metric": "latency.median", "provider": self.provider, "batch": 1, "max_ratio": 1.0, "level": "warn"},
                {"metric": "fidelity.sqnr", "min": "20 dB", "level": "warn"},
            ],
        }
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        report: dict[str, Any] = json.loads(
            self.lepton("compress", model, "-r", path, "-o", self.folder / "out", "--json")
        )
        return row(report)

    def distill(self, model: Path) -> dict[str, Any]:
        """What training brings back of weights set to zero, and its rate on the device and beside it. Raises Failed."""
        found: dict[str, Any] = {}
        for device in dict.fromkeys((self.provider, "cpu")):
            recipe = {
                "version": 1,
                "name": "trained",
                "data": {"training": {"path": str(self.data(model, 160)), "holdout": "20 %"}},
                "steps": [
                    {"step": "prune.weights", "sparsity": "50 %"},
                    {"step": "distill", "budget": {"time": f"{2 * self.seconds} s"}, "batch": 32, "device": device},
                ],
                "evaluate": {"accuracy": [], "latency": {"time": "100 ms"}, "memory": False},
            }
            path = self.folder / "recipe.yaml"
            path.write_text(yaml.safe_dump(recipe))
            report = json.loads(self.lepton("compress", model, "-r", path, "-o", self.folder / "out", "--json"))
            said = report["steps"][-1]["details"]
            found[f"{device}: samples/s"] = f"{said['samples_per_second']:,.0f} ({said['precision']})"
            losses = [mark["loss"] for mark in said["marks"]]
            found[f"{device}: loss"] = f"{losses[0]:.3g} to {min(losses):.3g}"
        return found

    def same(self, model: Path) -> dict[str, Any]:
        """The model beside itself: the interval should hold 1. Raises Failed."""
        table = json.loads(
            self.lepton("bench", model, model, "--provider", self.provider, "--time", f"{self.seconds} s", "--json")
        )
        (change,) = table["latency"]["changes"] if "latency" in table else table["changes"]
        return {"ratio": interval(change), "holds 1": change["low"] <= 1 <= change["high"]}

    def advice(self, model: Path) -> str:
        """The step that `init` would take here. Raises Failed."""
        path = self.folder / f"{model.stem}.advice.yaml"
        self.lepton("init", model, "--data", self.data(model), "-o", path)
        steps = [step if isinstance(step, str) else step["step"] for step in yaml.safe_load(path.read_text())["steps"]]
        return next((ADVISED[step] for step in steps if step in ADVISED), "none")


def interval(change: Mapping[str, float]) -> str:
    """A ratio of times with its interval."""
    return f"{change['ratio']:.3f} [{change['low']:.3f}, {change['high']:.3f}]"


def row(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the table shows of a report, the compressed model's."""
    latency = report.get("latency") or {"results": [], "changes": [], "skipped": []}
    found: dict[str, Any] = {}
    left = [f"{step['step']}: {step['left_because']}" for step in report["steps"] if step.get("left_because")]
    if left:
        found["unchanged"] = "; ".join(left)
    if len(left) == len(report["steps"]):
        return found
    for result in latency["results"]:
        if result["variant"] != "compressed":
            continue
        if result["batch"] == 1:
            placed = result.get("placement") or {}
            found["nodes"] = ", ".join(f"{name.removesuffix('ExecutionProvider')} {n}" for name, n in placed.items())
        device = result.get("device_median")
        found[f"ms, batch {result['batch']}"] = f"{1e3 * result['median']:.3f}" + (
            f" ({1e3 * device:.3f} on the device)" if device else ""
        )
    for change in latency["changes"]:
        found[f"time over float, batch {change['batch']}"] = interval(change)
        if change["batch"] == 1:
            found["ratio"] = change["ratio"]
    memory = report["variants"][-1].get("memory") or {}
    if memory.get("device"):
        found["device memory"] = f"{memory['device'] / 1e6:.0f} MB"
    for change in (report.get("energy") or {"changes": []})["changes"]:
        found[f"energy over float, batch {change['batch']}"] = interval(change)
    fidelity = (report.get("accuracy") or {"fidelity": []})["fidelity"]
    known = [one["sqnr_db"] for one in fidelity if one.get("sqnr_db") is not None]
    found["SQNR"] = f"{min(known):.1f} dB" if known else "equal"
    found["gates"] = ", ".join(f"{gate['metric']} {gate['verdict']}" for gate in report.get("gates", ()))
    found["left out"] = "; ".join(
        f"{one['what']}: {one['reason']}" for one in (*latency["skipped"], *report.get("skipped", ()))
    )
    return found


def models(assets: Path | None) -> list[Path]:
    """The files to try."""
    found = [assets / f"{name}.onnx" for name in MODELS] if assets else []
    return [path for path in found if path.exists()] or [ROOT / "sample_models" / f"{name}.onnx" for name in BUNDLED]


def parts(bench: Bench, files: list[Path]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """What is done, in order: model, name, work."""
    yield "machine", "doctor", lambda: bench.lepton("doctor", "--provider", bench.provider, codes=(0, 1, 2, 3))
    for model in files:
        yield model.stem, "advice", functools.partial(bench.advice, model)
        yield model.stem, "same twice", functools.partial(bench.same, model)
    for name in VARIANTS:
        for model in files:
            yield model.stem, name, functools.partial(bench.compress, model, name)
    if importlib.util.find_spec("torch"):
        for model in files:
            yield model.stem, "distill", functools.partial(bench.distill, model)


def main() -> int:
    """Run, and print the table as Markdown. Ends in 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, help="folder with the models that are not bundled")
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--minutes", type=float, default=8, help="the whole ends after this")
    parser.add_argument("--seconds", type=float, default=4, help="of timing, for each batch size")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.provider, arguments.seconds, arguments.minutes, Path(folder))
        for model, name, work in parts(bench, models(arguments.assets)):
            started = time.monotonic()
            try:
                result = work()
            except Exception as error:  # whatever it is, the other parts go on
                failed += 1
                result = {"failed": f"{type(error).__name__}: {error}" if not isinstance(error, Failed) else str(error)}
            found.setdefault(model, {})[name] = result
            said = result if isinstance(result, str) else ", ".join(f"{key}: {value}" for key, value in result.items())
            print(f"[{time.monotonic() - started:5.1f} s] {model}, {name}: {said}", file=sys.stderr, flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1))
    print(table(found))
    return 1 if failed else 0


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the machine, then a row for each model and variant, then advice beside what was measured."""
    lines = [str(found.get("machine", {}).get("doctor", ""))]
    rows = [(model, name, got) for model, own in found.items() for name, got in own.items() if name in VARIANTS]
    columns = list(dict.fromkeys(key for _, _, got in rows for key in got if key != "ratio"))
    lines += ["| model | variant | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    lines += [
        f"| {model} | {name} | " + " | ".join(str(got.get(key, "")) for key in columns) + " |"
        for model, name, got in rows
    ]
    lines += ["", "| model | the model beside itself | `init` advises | fastest measured |", "|---|---|---|---|"]
    for model, own in found.items():
        if model == "machine":
            continue
        ratios = {name: own[name]["ratio"] for name in VARIANTS if "ratio" in own.get(name, {})}
        fastest = min(ratios, key=lambda name: ratios[name], default="nothing")
        said = f"{fastest} ({ratios[fastest]:.3f} of float's time)" if ratios and ratios[fastest] < 1 else "float"
        same = own.get("same twice", {})
        lines.append(f"| {model} | {same.get('ratio', same.get('failed'))} | {own.get('advice')} | {said} |")
    trained = {model: own["distill"] for model, own in found.items() if "distill" in own}
    columns = list(dict.fromkeys(key for got in trained.values() for key in got))
    lines += ["", "| `distill` | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"] if trained else []
    for model, got in trained.items():
        lines.append(f"| {model} | " + " | ".join(got.get(key, "") for key in columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
