"""What pruning takes and `distill` gives back without a label, on trained networks: the whole job by recipes.

    PYTHONPATH=. python benchmarks/recovery.py --assets DIR [--only squeezenet,minilm,resnet8,resnet20,resnet56]
        [--epochs N] [--seed N] [--set features=none]... [--macs SHARE]
    PYTHONPATH=. python benchmarks/recovery.py --assets DIR --only resnet20 --model NETWORK.onnx [--preprocess YAML]

Each network is simplified, loses channels down to its share of the MACs (`prune.channels`, calibrated without labels),
and learns its original's answers from samples without labels (`distill`). Judged by onnxruntime and numpy alone, on
samples that neither step sees: labels met, answers that are the original's, and decibels of the original's outputs over
the difference from them. One thread; CPU minutes are those of `distill`, the search for its rate included.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import yaml
from numpy.typing import NDArray

try:
    import torch
except ImportError as missing:
    raise SystemExit("training needs the extra `train`") from missing

import lepton_cli as lepton
from lepton_cli.model import io

Feeds = dict[str, NDArray[Any]]

#: What the networks were trained with, as a recipe has it; `prepared` computes it in numpy.
STANDARDISED = {"scale": "1/255", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CAFFE = {"channels": "bgr", "mean": [104, 117, 123]}
#: Of the 600 pictures so many are kept to judge by, drawn by this seed.
JUDGED, DRAWN = 200, 0
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
#: Samples at a time where outputs are judged.
BATCH = 50


@dataclasses.dataclass(frozen=True)
class Samples:
    """`learnt`: a recipe's data section without labels or random changes; `feeds` and `labels` are to judge by."""

    learnt: dict[str, Any]
    feeds: Feeds
    labels: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, the share of its MACs that stays, and its samples: where they come from, what the network takes of
    them, and what `distill` changes at random."""

    file: Path
    macs: str
    samples: Callable[[Case, Path, Path], Samples]
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    augment: tuple[dict[str, Any], ...] = ()
    calibration: int = 512


def prepared(
    images: NDArray[np.uint8], channels: str = "rgb", scale: str = "1", **standard: Any
) -> NDArray[np.float32]:
    """Pixels `[n, height, width, 3]` as the network takes them, `[n, 3, height, width]`."""
    over, below = (*map(float, scale.split("/")), 1.0)[:2]
    pixels = images[..., :: -1 if channels == "bgr" else 1].astype(np.float32) * np.float32(over / below)
    shifted = (pixels - np.float32(standard.get("mean", 0))) / np.float32(standard.get("std", 1))
    return np.ascontiguousarray(shifted.transpose(0, 3, 1, 2))


def cifar(case: Case, assets: Path, folder: Path) -> Samples:
    """6,000 images to learn from, 5,000 test images."""
    with np.load(assets / "cifar10_test.npz") as test:
        images, labels = test["images"], test["labels"]
    return _images(case, assets / "cifar10_train.npz", images, labels)


def photographs(case: Case, assets: Path, folder: Path) -> Samples:
    """400 pictures to learn from, 200 others of other classes."""
    from PIL import Image

    root = assets / "imagenet_600"
    with (root / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    images = np.stack([np.asarray(Image.open(root / row["file"]).convert("RGB")) for row in rows])
    labels = np.array([int(row["label"]) for row in rows])
    order = np.random.default_rng(DRAWN).permutation(len(rows))
    seen, learnt = order[:JUDGED], np.sort(order[JUDGED:])
    np.savez(folder / "learnt.npz", images=images[learnt])
    return _images(case, folder / "learnt.npz", images[seen], labels[seen])


def _images(case: Case, learnt: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Samples:
    (info,) = io.inputs(io.load(case.file).model)
    preprocess = {"layout": "nchw", **case.preprocess}
    section = {"path": str(learnt), "inputs": {info.name: "images"}, "preprocess": preprocess}
    return Samples(section, {info.name: prepared(images, **case.preprocess)}, labels)


def sentences(case: Case, assets: Path, folder: Path) -> Samples:
    """500 sentences to learn from, 872 others."""
    with np.load(assets / "sst2_dev.npz") as dev:
        feeds, labels = {name: dev[name] for name in TOKENS}, dev["label"]
    section = {"path": str(assets / "sst2_calib.npz"), "inputs": {name: name for name in TOKENS}}
    return Samples(section, feeds, labels)


PADDED = ({"flip": "horizontal"}, {"crop": {"pad": 4}})
CROPPED = ({"flip": "horizontal"}, {"crop": {"random": [0.5, 1.0]}})
CASES = {
    "squeezenet": Case(Path("squeezenet_v1.1.onnx"), "75.2 %", photographs, CAFFE, CROPPED, calibration=100),
    "minilm": Case(Path("sst2_minilm.onnx"), "50 %", sentences, calibration=256),
    "resnet8": Case(Path("mlperf_resnet8_cifar10.onnx"), "50 %", cifar, augment=PADDED),
    "resnet20": Case(Path("resnet20_cifar10.onnx"), "50 %", cifar, STANDARDISED, PADDED),
    "resnet56": Case(Path("resnet56_cifar10.onnx"), "50 %", cifar, STANDARDISED, PADDED),
}


def answers(model: Path | ir.Model, feeds: Feeds) -> NDArray[np.float32]:
    """Outputs `[n, classes]`, by one thread of onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else io.to_bytes(model), options, providers=["CPUExecutionProvider"]
    )
    count = len(next(iter(feeds.values())))
    found = [
        session.run(None, {name: array[start : start + BATCH] for name, array in feeds.items()})[0]
        for start in range(0, count, BATCH)
    ]
    return np.concatenate(found).reshape(count, -1)


def judged(outputs: NDArray[Any], original: NDArray[Any], labels: NDArray[Any]) -> tuple[float, float, float]:
    """Share of labels met, share of the original's answers, and decibels."""
    guesses = outputs.argmax(1)
    noise = float(np.square(original.astype(np.float64) - outputs).sum())
    decibels = 10 * np.log10(float(np.square(original.astype(np.float64)).sum()) / noise) if noise else np.inf
    return float(np.mean(guesses == labels)), float(np.mean(guesses == original.argmax(1))), decibels


def recovered(name: str, case: Case, assets: Path, step: Mapping[str, Any], seed: int) -> tuple[str, str]:
    """A row of the table, and what the step says of its work."""
    measured = {"accuracy": [], "latency": {"threads": 1, "time": "100 ms"}, "memory": False}
    common = {"version": 1, "seed": seed, "evaluate": measured}
    with tempfile.TemporaryDirectory() as scratch:
        samples = case.samples(case, assets, Path(scratch))
        calibration = {"calibration": {**samples.learnt, "samples": case.calibration}}
        pruning = [{"step": "simplify"}, {"step": "prune.channels", "target": {"macs": case.macs}}]
        pruned = lepton.compress(case.file, {**common, "data": calibration, "steps": pruning})
        training = {"training": {**samples.learnt, "augment": list(case.augment)}}
        recipe = {**common, "data": training, "steps": [{"step": "distill", "teacher": str(case.file), **step}]}
        begun = time.process_time()
        trained = lepton.compress(pruned.model, recipe)
        minutes = (time.process_time() - begun) / 60
    whole = answers(case.file, samples.feeds)
    before, after = (judged(answers(made.model, samples.feeds), whole, samples.labels) for made in (pruned, trained))
    (target,) = pruned.report.steps[1].details.model_dump()["targets"]
    top = judged(whole, whole, samples.labels)[0]
    row = (
        f"| {name} | {target['reached']:.1%} | {top:.2%} | {before[0]:.2%} -> {after[0]:.2%} "
        f"| {before[1]:.2%} -> {after[1]:.2%} | {before[2]:.1f} -> {after[2]:.1f} | {minutes:.2f} | {len(whole)} |"
    )
    said = trained.report.steps[0].details.model_dump()
    shown = ("learning_rate", "rates_too_high", "batch", "steps", "kept_step", "precision", "samples", "kept_apart")
    told = ", ".join(f"{key} {said[key]}" for key in (*shown, "losses", "features"))
    marks = ", ".join(f"{mark['step']}: {mark['loss']:.4f}" for mark in said["marks"])
    return row, f"{name}: {told}; loss by step {marks}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CASES), help="names, with commas")
    parser.add_argument("--model", type=Path, help="another network, of the samples that the one of `--only` takes")
    parser.add_argument("--macs", help="share that stays, instead of the network's own")
    parser.add_argument("--preprocess", type=yaml.safe_load, help="what `--model` takes of pictures, as in a recipe")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of `distill`")
    options = parser.parse_args()
    if unknown := [name for name in options.only if name not in CASES]:
        parser.error(f"no such network: {', '.join(unknown)}; there are {', '.join(CASES)}")
    torch.set_num_threads(1)
    step: dict[str, Any] = {"budget": {"epochs": options.epochs}}
    for setting in options.set:
        key, _, value = setting.partition("=")
        step[key] = yaml.safe_load(value)
    said = []
    print(
        "| network | MACs | original | top-1 | same answers | dB | CPU minutes | n |\n|---|---|---|---|---|---|---|---|"
    )
    assets = options.assets.resolve()
    for name in options.only:
        case = CASES[name]
        given = {"macs": options.macs, "preprocess": options.preprocess}
        case = dataclasses.replace(case, **{key: value for key, value in given.items() if value is not None})
        case = dataclasses.replace(case, file=assets / case.file if options.model is None else options.model.resolve())
        row, details = recovered(case.file.stem if options.model else name, case, assets, step, options.seed)
        print(row, flush=True)
        said.append(details)
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
