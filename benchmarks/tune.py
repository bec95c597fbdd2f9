"""What `lepton tune` finds in a given time, and how it compares with random search over the same space.

    python benchmarks/tune.py [--only resnet20,resnet56,minilm,digits,cnn,random] [--minutes 15] [--seeds 3]
                              [--assets DIR] [--json FILE] [--work DIR] [--threads N]

`resnet20` and `minilm` need a folder with resnet20_cifar10.onnx, cifar10_{train,test}.npz, sst2_minilm.onnx and
sst2_{calib,dev}.npz (--assets). A search that was stopped goes on when --work names the same folder again.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lepton_cli.commands.compress import compress
from lepton_cli.commands.job import prepare
from lepton_cli.commands.tune import tune
from lepton_cli.measure import latency
from lepton_cli.measure.environment import environment
from lepton_cli.measure.spec import LatencySpec
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict, load_recipe
from lepton_cli.report import facts
from lepton_cli.report.model import Report
from lepton_cli.report.trial import Trial
from lepton_cli.tune import front

SAMPLES = Path(__file__).parent.parent / "sample_models"
CONFIGS = Path(__file__).parent.parent / "configs"
#: Recipes that work without a search, for each task.
BUNDLED = {
    "resnet20": ("cnn-int8.yaml", "cnn-prune-int8.yaml"),
    "resnet56": ("cnn-int8.yaml", "cnn-prune-int8.yaml"),
    "cnn": ("cnn-int8.yaml", "cnn-prune-int8.yaml"),
    "digits": ("mlp-prune-int8.yaml",),
    "minilm": ("transformer-prune-int8.yaml",),
}
CIFAR = {"layout": "nchw", "scale": "1/255", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

Task = tuple[Path, dict[str, Any]]


def _recipe(
    calibration: dict[str, Any], evaluation: dict[str, Any], section: dict[str, Any], batch: int
) -> dict[str, Any]:
    return {
        "version": 1,
        "data": {"calibration": calibration, "evaluation": evaluation},
        "evaluate": {"accuracy": {"metric": "top1"}, "latency": {"batch": [batch]}, "memory": False},
        "tune": section,
    }


def _digits(name: str, inputs: str, preprocess: dict[str, Any], section: dict[str, Any], batch: int) -> Task:
    shared = {"inputs": {inputs: "images"}, "preprocess": preprocess}
    calibration = {"path": str(SAMPLES / "digits_train.npz"), **shared}
    evaluation = {"path": str(SAMPLES / "digits_test.npz"), "labels": "labels", **shared}
    return SAMPLES / f"{name}.onnx", _recipe(calibration, evaluation, section, batch)


def _limits(drop: str, *others: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"metric": "accuracy.top1", "max_drop": drop}, *others]


def digits() -> Task:
    """Fastest MLP at batch 64 that loses at most half a point."""
    section = {"limits": _limits("0.5 pp"), "minimize": {"metric": "latency.median", "batch": 64}}
    return _digits("digits_mlp", "pixels", {"scale": "1/16", "shape": [64]}, section, 64)


def cnn() -> Task:
    """Fastest CNN at batch 1 that loses at most half a point."""
    preprocess = {"resize": [32, 32], "scale": "1/16", "mean": 0.5, "std": 0.5, "layout": "nchw"}
    return _digits("digits_cnn", "image", preprocess, {"limits": _limits("0.5 pp"), "minimize": "latency.median"}, 1)


def resnet(file: Path, assets: Path, limits: list[dict[str, Any]]) -> Task:
    """Fastest ResNet for CIFAR-10 at batch 1 within the limits."""
    shared = {"inputs": {"input": "images"}, "preprocess": CIFAR}
    calibration = {"path": str(assets / "cifar10_train.npz"), "samples": 1024, **shared}
    evaluation = {"path": str(assets / "cifar10_test.npz"), "labels": "labels", **shared}
    return file, _recipe(calibration, evaluation, {"limits": limits, "minimize": "latency.median"}, 1)


def resnet20(assets: Path) -> Task:
    """At most half a point lost."""
    return resnet(assets / "resnet20_cifar10.onnx", assets, _limits("0.5 pp"))


def resnet56(assets: Path) -> Task:
    """At most 1.5 points lost, and five times smaller."""
    small = {"metric": "size.file", "max_ratio": 0.2}
    return resnet(assets / "resnet56_cifar10.onnx", assets, _limits("1.5 pp", small))


def minilm(assets: Path) -> Task:
    """Smallest MiniLM that loses at most a point and is not slower."""
    limits = _limits("1 pp", {"metric": "latency.median", "batch": 1, "max_ratio": 1.0})
    calibration = {"path": str(assets / "sst2_calib.npz"), "samples": 256}
    evaluation = {"path": str(assets / "sst2_dev.npz"), "labels": "label"}
    section = {"limits": limits, "minimize": "size.file"}
    return assets / "sst2_minilm.onnx", _recipe(calibration, evaluation, section, 1)


class _Quiet:
    """Looks on and says one line a trial."""

    def start(self, *_: object) -> None: ...

    def begin(self, name: str) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self, trial: Trial, trials: Sequence[Trial], best: Trial | None) -> None:
        mark = "*" if best is not None and best.key == trial.key else " "
        print(f"  {mark} {len(trials):3d} {trial.seconds:7.1f} s  {trial.name}  {trial.reason}", flush=True)


def search(task: Task, folder: Path, time: str, **changes: Any) -> Report:
    """One search."""
    model, recipe = task
    section = {**recipe["tune"], "budget": {"time": time}, **{k: v for k, v in changes.items() if k != "seed"}}
    loaded = from_dict({**recipe, "name": "tuned", "seed": changes.get("seed", 0), "tune": section})
    return tune(model, loaded, folder, _Quiet()).report


def found(report: Report) -> dict[str, Any]:
    """The numbers of a finished search."""
    tuned = report.tune
    assert tuned is not None
    chosen = next(row for row in tuned.trials if row.key == tuned.best)
    numbers: dict[str, Any] = {
        "chosen": chosen.name,
        "trials": len(tuned.trials),
        "holds the limits": tuned.met,
    }
    for metric in ("latency.median", "size.file"):
        fact = facts.find(report, metric)[0]
        assert fact.ratio is not None
        word = "times faster" if metric == "latency.median" else "times smaller"
        numbers[word] = [round(1 / bound, 2) for bound in (fact.ratio.value, fact.ratio.high, fact.ratio.low)]
    fact = facts.find(report, "accuracy.top1")[0]
    assert fact.difference is not None
    numbers["points"] = round(100 * fact.difference.value, 2)
    numbers["overhead outside evaluation"] = f"{100 * (tuned.overhead or 0):.1f} %"
    numbers["ended"] = tuned.ended
    return numbers


def bundled(task: Task, recipes: Sequence[str], tuned: Path, folder: Path) -> dict[str, Any]:
    """The steps of the bundled recipes on the same task, and the tuned model against the best that holds the limits.

    The last is one interleaved comparison of the two models.
    """
    model, recipe = task
    limits = {**{key: value for key, value in recipe.items() if key != "tune"}, "gates": recipe["tune"]["limits"]}
    results: dict[str, Any] = {}
    holding: list[tuple[float, str]] = []
    for name in recipes:
        steps = [
            step.model_dump(mode="json", exclude_defaults=True) for step in load_recipe(CONFIGS / name).recipe.steps
        ]
        report = compress(
            model, from_dict({**limits, "name": "bundled", "steps": steps}), folder / name, Silent()
        ).report
        if not report.complete:  # a target that this model cannot reach
            results[name] = {"failed": report.error.message if report.error else ""}
            continue
        fact, accuracy = facts.find(report, "latency.median")[0], facts.find(report, "accuracy.top1")[0]
        assert fact.ratio is not None
        assert accuracy.difference is not None
        results[name] = {
            "times faster": round(1 / fact.ratio.value, 2),
            "points": round(100 * accuracy.difference.value, 2),
            "holds the limits": report.status == "ok",
        }
        if report.status == "ok":
            holding.append((fact.ratio.value, name))
    if holding:
        best = min(holding)[1]
        evaluate = {**recipe["evaluate"], "latency": {**recipe["evaluate"]["latency"], "time": "30 s"}}
        plain = from_dict({**limits, "evaluate": evaluate, "steps": [{"step": "simplify"}], "gates": []})
        job = prepare(folder / best / "bundled.onnx", plain)
        change = latency.compare(
            {"bundled": job.loaded.path, "tuned": tuned}, job.feeds, plain.recipe.evaluate.latency or LatencySpec()
        ).changes[0]
        bounds = [round(1 / bound, 2) for bound in (change.ratio, change.high, change.low)]
        results["tuned, times faster than the best that holds the limits"] = {best: bounds}
    return results


def hypervolume(points: Iterable[front.Tradeoff], reference: front.Tradeoff) -> float:
    """Area that the points dominate, up to the reference (the worst cost and loss that count)."""
    inside = [point for point in points if point[0] < reference[0] and point[1] < reference[1]]
    area, right = 0.0, [inside[i] for i in front.pareto(inside)]
    for index, (cost, loss) in enumerate(right):
        end = right[index + 1][0] if index + 1 < len(right) else reference[0]
        area += (end - cost) * (reference[1] - loss)
    return area


def areas(report: Report) -> tuple[float, float]:
    """Area under the front, points lost up to one: with the cost relative to the original, and with its logarithm."""
    assert report.tune is not None
    rows = [row for row in report.tune.trials if row.feasible and row.cost and row.quality is not None]
    accuracy = facts.find(report, "accuracy.top1")[0]
    assert accuracy.reference is not None
    top = accuracy.reference.value
    plain = hypervolume([(row.cost, row.quality + top) for row in rows], (1.0, 0.01))
    logarithm = hypervolume([(math.log10(row.cost), row.quality + top) for row in rows], (0.0, 0.01))
    return round(plain, 6), round(logarithm, 6)


def against_random(task: Task, folder: Path, time: str, seeds: int) -> dict[str, Any]:
    """Structured and random search, same space, same time, several seeds."""
    found_areas: dict[str, list[tuple[float, float]]] = {"structured": [], "random": []}
    for seed in range(seeds):
        for strategy, kept in found_areas.items():
            report = search(task, folder / f"{strategy}-{seed}", time, strategy=strategy, seed=seed)
            kept.append(areas(report))
            print(f"  {strategy}, seed {seed}: {kept[-1]}, {json.dumps(found(report))}", flush=True)
    pairs = list(zip(found_areas["structured"], found_areas["random"], strict=True))
    return {
        "areas (cost, log cost)": found_areas,
        "better of": len(pairs),
        "better by cost": sum(a[0] > b[0] for a, b in pairs),
        "better by log cost": sum(a[1] > b[1] for a, b in pairs),
    }


def main() -> None:
    """Run what was asked for and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="resnet20,minilm,digits,random")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--threads", type=int, help="of onnxruntime; default: all cores")
    given = parser.parse_args()
    time = f"{60 * given.minutes:g} s"
    tasks: dict[str, Callable[[], Task]] = {
        "digits": digits,
        "cnn": cnn,
        "resnet20": lambda: resnet20(given.assets),
        "resnet56": lambda: resnet56(given.assets),
        "minilm": lambda: minilm(given.assets),
    }
    here = environment()
    results: dict[str, Any] = {"machine": here.cpu, "cores": here.usable_cores, "time": time}
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        for name in given.only.split(","):
            print(name, flush=True)
            if name == "random":
                results[name] = against_random(digits(), work / name, time, given.seeds)
            else:
                task = tasks[name]()
                if given.threads:
                    task[1]["evaluate"]["latency"]["threads"] = given.threads
                results[name] = found(search(task, work / name, time))
                tuned = work / name / "tuned.onnx"
                results[name]["bundled"] = bundled(task, BUNDLED[name], tuned, work / f"{name}-bundled")
            print(json.dumps(results[name], indent=1), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
