"""Accuracy that channel pruning keeps, and what each part of it contributes.

    python benchmarks/pruning.py --assets DIR [--only NAME] [--ablation | --int8 [--distill]]
        [--samples N] [--threads N]

Without `--assets` only the bundled sample models are measured. Everything is measured on data that calibration has
not seen; calibration uses no labels.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli import runtime
from lepton_cli.cache import Cache
from lepton_cli.data.memory import Arrays
from lepton_cli.data.spec import TrainingSpec
from lepton_cli.data.training import open_training
from lepton_cli.errors import LeptonError
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.prune import channels, stopwatch
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.quantize import static
from lepton_cli.quantize.spec import QuantizeStatic
from lepton_cli.step import Context
from lepton_cli.train.spec import Distill
from lepton_cli.train.steps import distill

SAMPLES = Path(__file__).parent.parent / "sample_models"
Feeds = dict[str, NDArray[np.generic]]
IMAGES = {
    "preprocess": {"layout": "nchw", "scale": "1/255", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "augment": [{"flip": "horizontal"}, {"crop": {"pad": 4}}],
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its calibration and evaluation data, the targets and the points that may be lost at each."""

    name: str
    model: Path
    calibration: Feeds
    evaluation: Feeds
    labels: NDArray[np.int64]
    targets: dict[str, float]
    metric: str = "macs"
    options: dict[str, object] = dataclasses.field(default_factory=dict)
    batch: int = 1


def cifar(folder: Path, file: str, count: int) -> tuple[Feeds, NDArray[np.int64]]:
    with np.load(folder / file) as data:
        images, labels = data["images"][:count].astype(np.float32), data["labels"][:count]
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    return {"input": np.ascontiguousarray(((images / 255 - mean) / std).transpose(0, 3, 1, 2))}, labels


def resnet(folder: Path, samples: int) -> Case:
    test, labels = cifar(folder, "cifar10_test.npz", 5000)
    targets = {"75.2 %": 0.3, "60.2 %": 1.2, "50 %": 2.5}
    calibration = cifar(folder, "cifar10_train.npz", samples)[0]
    return Case("resnet20", folder / "resnet20_cifar10.onnx", calibration, test, labels, targets)


def resnet56(folder: Path, samples: int) -> Case:
    targets = {"75.2 %": 0.1, "60.2 %": 0.6, "50 %": 1.8}
    model = folder / "resnet56_cifar10.onnx"
    return dataclasses.replace(resnet(folder, samples), name="resnet56", model=model, targets=targets)


def squeezenet(folder: Path, samples: int) -> Case:
    from PIL import Image

    rows = (folder / "imagenet_600" / "labels.csv").read_text().split()[1:]
    images, labels = [], []
    for row in rows:
        file, label = row.split(",")
        pixels = np.asarray(Image.open(folder / "imagenet_600" / file).convert("RGB"), np.float32)[:, :, ::-1]
        images.append((pixels - np.array([104, 117, 123], np.float32)).transpose(2, 0, 1))
        labels.append(int(label))
    array = np.ascontiguousarray(np.stack(images))
    return Case(
        "squeezenet",
        folder / "squeezenet_v1.1.onnx",
        {"input": array[:100]},
        {"input": array[100:]},
        np.array(labels[100:]),
        {"75.2 %": 3.0},
    )


def minilm(folder: Path, samples: int) -> Case:
    names = ("input_ids", "attention_mask", "token_type_ids")
    with np.load(folder / "sst2_calib.npz") as data:
        calibration: Feeds = {name: data[name][:samples] for name in names}
    with np.load(folder / "sst2_dev.npz") as data:
        evaluation: Feeds = {name: data[name] for name in names}
        labels = data["label"]
    return Case("minilm", folder / "sst2_minilm.onnx", calibration, evaluation, labels, {"80 %": 1.5})


def mlp(folder: Path, samples: int) -> Case:
    def pixels(file: str) -> tuple[Feeds, NDArray[np.int64]]:
        with np.load(SAMPLES / file) as data:
            return {"pixels": (data["images"].reshape(-1, 64) / 16).astype(np.float32)}, data["labels"]

    test, labels = pixels("digits_test.npz")
    options: dict[str, object] = {"min_width": "1 %"}
    return Case(
        "mlp",
        SAMPLES / "digits_mlp.onnx",
        pixels("digits_train.npz")[0],
        test,
        labels,
        {"3.2 %": 0.5},
        "params",
        options,
    )


def timed(make: Callable[[Path, int], Case], targets: dict[str, float], batch: int = 1) -> Callable[[Path, int], Case]:
    """The same model and data with targets in measured time: 77 % is 1.3 times faster."""

    def case(folder: Path, samples: int) -> Case:
        plain = make(folder, samples)
        name = f"{plain.name}, batch {batch}"
        return dataclasses.replace(plain, name=name, targets=targets, metric="latency", batch=batch)

    return case


CASES: dict[str, Callable[[Path, int], Case]] = {
    "mlp": mlp,
    "resnet20": resnet,
    "resnet56": resnet56,
    "squeezenet": squeezenet,
    "minilm": minilm,
    "resnet20-latency": timed(resnet, {"77 %": 0.8}),
    "resnet20-latency-32": timed(resnet, {"77 %": 0.8}, 32),
    "resnet56-latency": timed(resnet56, {"77 %": 0.8}),
    "resnet56-latency-32": timed(resnet56, {"77 %": 0.8}, 32),
    "squeezenet-latency": timed(squeezenet, {"83.3 %": 3.0}),
    "minilm-latency": timed(minilm, {"80 %": 1.5}),
}

#: Name -> options; every row changes one thing of the row of the full method.
ABLATION: dict[str, dict[str, object]] = {
    "full method": {},
    "no repair": {"recover": []},
    "bias correction only": {"recover": ["bias"]},
    "l1 ranking": {"importance": "l1"},
    "activation ranking": {"importance": "activation"},
    "l1 ranking, no repair": {"importance": "l1", "recover": []},
    "same share in every layer": {"scope": "layer"},
    "multiples of 8": {"round_to": 8},
}


def accuracy(
    model: Path | bytes, feeds: Feeds, labels: NDArray[np.int64], threads: int
) -> tuple[float, NDArray[np.int64]]:
    """Top-1 and the guesses."""
    session = runtime.Session(model, threads=threads)
    guesses = []
    for start in range(0, len(labels), 50):
        batch = {name: array[start : start + 50] for name, array in feeds.items()}
        first = next(iter(session.run(batch).values()))
        guesses.append(first.reshape(len(first), -1).argmax(axis=1))
    joined = np.concatenate(guesses)
    return float(np.mean(joined == labels)), joined


def given_to(case: Case, model: ir.Model, threads: int, folder: Path) -> Context:
    data = Arrays(case.calibration)
    return Context(
        calibration=data,
        evaluation=None,
        training=None,
        check=data,
        original=model,
        score=None,
        provider="cpu",
        batch=case.batch,
        threads=threads,
        seed=0,
        progress=Silent(),
        base=folder,
        workdir=folder,
        cache=Cache(None),
    )


def measure(case: Case, label: str, target: str, options: dict[str, object], threads: int) -> None:
    """Prune once and print a line."""
    model = io.load(case.model).model
    base, guesses = accuracy(case.model, case.evaluation, case.labels, threads)
    given = {"step": "prune.channels", "target": {case.metric: target}, **case.options, **options}
    with tempfile.TemporaryDirectory() as folder:
        context = given_to(case, model, threads, Path(folder))
        start = time.perf_counter()
        try:
            outcome = channels.prune(model, PruneChannels.model_validate(given), context)
        except LeptonError as error:
            print(f"| {case.name} | {label} | {target} | {error.message} | | | |", flush=True)
            return
        seconds = time.perf_counter() - start
        again = (
            f" ({timed_again(case, context, outcome.model):.1%} when timed again)" if case.metric == "latency" else ""
        )
    after, changed = accuracy(io.to_bytes(outcome.model), case.evaluation, case.labels, threads)
    allowed = case.targets.get(target)
    limit = f"at most {allowed}" if allowed is not None and not options else ""
    reached = outcome.details.targets[0].reached
    agree = float(np.mean(guesses == changed))
    print(
        f"| {case.name} | {label} | {reached:.1%} {case.metric}{again} | {base:.2%} -> {after:.2%} "
        f"| {100 * (base - after):+.2f} {limit} | {agree:.2%} | {seconds:.0f} s |",
        flush=True,
    )


def beside_int8(case: Case, threads: int, training: Path | None = None, share: str = "60 %") -> None:
    """`prune.channels` and `quantize.static` beside `quantize.static` alone, as a recipe without options has them.

    `training`: NPZ of CIFAR-10 images by which `distill` trains in between.
    """
    model = io.load(case.model).model
    wanted = {"step": "prune.channels", "target": {"macs": share}, "timed_as": "int8"}
    with tempfile.TemporaryDirectory() as folder:
        context = given_to(case, model, threads, Path(folder))
        start = time.process_time()
        pruned = channels.prune(model, PruneChannels.model_validate(wanted), context)
        seconds, small = time.process_time() - start, pruned.model
        if training is not None:
            (name,) = case.evaluation
            spec = TrainingSpec.model_validate({"path": training.name, "inputs": {name: "images"}, **IMAGES})
            data = open_training(spec, io.inputs(model), seed=0, base=training.parent)
            begun = time.process_time()
            small = distill(small, Distill(step="distill"), dataclasses.replace(context, training=data)).model
            print(f"distill: {(time.process_time() - begun) / 60:.2f} CPU minutes", flush=True)
        plain, both = (
            static.quantize(one, QuantizeStatic(step="quantize.static"), context).model for one in (model, small)
        )
        feeds = {name: np.resize(array, (case.batch, *array.shape[1:])) for name, array in case.evaluation.items()}
        ratio = stopwatch.Stopwatch(plain, feeds, "cpu", threads, context.workdir).ratio(both)
    alone, after = (accuracy(io.to_bytes(one), case.evaluation, case.labels, threads)[0] for one in (plain, both))
    print(
        f"| {case.name} | prune and int8 beside int8 | {pruned.details.targets[0].reached:.1%} macs, {1 / ratio:.2f}x "
        f"as fast | {alone:.2%} -> {after:.2%} | {100 * (alone - after):+.2f} | | {seconds:.0f} s of processors |",
        flush=True,
    )


def timed_again(case: Case, context: Context, model: ir.Model) -> float:
    """Time of the finished model over the original's, with sessions of their own."""
    feeds = {name: np.resize(array, (case.batch, *array.shape[1:])) for name, array in case.evaluation.items()}
    watch = stopwatch.Stopwatch(context.original, feeds, context.provider, context.threads, context.workdir)
    return watch.ratio(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--ablation", action="store_true", help="what each part contributes, at the middle target")
    parser.add_argument("--int8", action="store_true", help="60 % of the MACs and int8 beside int8 alone")
    parser.add_argument("--distill", action="store_true", help="train in between, with cifar10_train.npz")
    parser.add_argument("--samples", type=int, default=2048, help="calibration samples at most")
    parser.add_argument("--threads", type=int, default=runtime.usable_threads())
    chosen = parser.parse_args()
    names = [chosen.only] if chosen.only else list(CASES)
    print("| model | method | remains | top-1 | points lost | same answers | time |\n|---|---|---|---|---|---|---|")
    for name in names:
        if name != "mlp" and chosen.assets is None:
            continue
        case = CASES[name](chosen.assets or Path(), chosen.samples)
        if not case.model.exists():  # ResNet-56 is nowhere to be had as a file: bring your own
            print(f"| {case.name} | {case.model.name} is not in the folder | | | | | |", flush=True)
            continue
        if chosen.int8:
            beside_int8(case, chosen.threads, chosen.assets / "cifar10_train.npz" if chosen.distill else None)
        elif chosen.ablation:
            middle = list(case.targets)[len(case.targets) // 2]
            for label, options in ABLATION.items():
                measure(case, label, middle, options, chosen.threads)
        else:
            for target in case.targets:
                measure(case, "full method", target, {}, chosen.threads)


if __name__ == "__main__":
    main()
