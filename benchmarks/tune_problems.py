"""The problems that a search is measured on, and for each the ten recipes that a person would write.

Ten over nine models, with one to three limits on accuracy, the worst class, fidelity, agreement, size, latency and
memory. Two more are run by name only: limits that nothing known holds, and data to train on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).parent.parent / "sample_models"
CIFAR = {"layout": "nchw", "scale": "1/255", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

Json = dict[str, Any]
Steps = list[Json]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, a recipe with `tune:`, recipes by hand, and the limit on quality below which no front counts."""

    model: Path
    recipe: Json
    by_hand: Sequence[Steps]
    floor: Json


def _problem(
    model: Path,
    calibration: Json,
    evaluation: Json,
    limits: list[Json],
    by_hand: Sequence[Steps],
    *,
    minimize: Json | str | None = None,
    maximize: str | None = None,
    batch: int = 1,
    floor: Json | None = None,
    training: Json | None = None,
) -> Problem:
    memory = any(limit["metric"].startswith("memory") for limit in limits)
    recipe = {
        "version": 1,
        "data": {"calibration": calibration, "evaluation": evaluation, **({"training": training} if training else {})},
        "evaluate": {
            "accuracy": {"metric": "top1"} if "labels" in evaluation else [],
            "latency": {"batch": [batch]},
            "memory": memory,
            "energy": False,
        },
        "tune": {"limits": limits, **({"minimize": minimize} if minimize else {"maximize": maximize})},
    }
    return Problem(model, recipe, [[{"step": "simplify"}, *steps] for steps in by_hand], floor or limits[0])


def _drop(points: str) -> Json:
    return {"metric": "accuracy.top1", "max_drop": points}


def _ratio(metric: str, share: float) -> Json:
    return {"metric": metric, "max_ratio": share}


def _prune(**target: float) -> Json:
    return {"step": "prune.channels", "target": {name: f"{share:g} %" for name, share in target.items()}}


def _weights(**options: Any) -> Json:
    return {"step": "quantize.weights", **options}


INT8: Json = {"step": "quantize.static"}
DYNAMIC: Json = {"step": "quantize.dynamic"}
FP16: Json = {"step": "convert.fp16"}
FUSE: Json = {"step": "fuse", "if_possible": True}
DISTILL: Json = {"step": "distill", "budget": {"epochs": 5}}
INT4 = _weights(bits=4)

CONVOLUTIONS: list[Steps] = [
    [INT8],
    [_prune(params=80), INT8],
    [_prune(params=70), INT8],
    [_prune(params=60), INT8],
    [_prune(macs=80), INT8],
    [_prune(macs=60), INT8],
    [_prune(latency=80), INT8],
    [_prune(latency=60), INT8],
    [_prune(params=85, latency=90), INT8],
    [_prune(params=80, latency=80), INT8],
]
TRAINED: list[Steps] = [
    *CONVOLUTIONS[:2],
    [_prune(latency=80), INT8],
    [_prune(params=60), DISTILL, INT8],
    [_prune(params=45), DISTILL, INT8],
    [_prune(params=30), DISTILL, INT8],
    [_prune(latency=60), DISTILL, INT8],
    [_prune(latency=40), DISTILL, INT8],
    [_prune(params=45, latency=50), DISTILL, INT8],
    [_prune(params=45), DISTILL, INT8, {"step": "quantize.aware"}],
]


def _cifar(
    file: str, assets: Path, limits: list[Json], by_hand: Sequence[Steps], trained: bool = False, **goal: Any
) -> Problem:
    shared = {"inputs": {"input": "images"}, "preprocess": CIFAR}
    train = {"path": str(assets / "cifar10_train.npz"), **shared}
    evaluation = {"path": str(assets / "cifar10_test.npz"), "labels": "labels", **shared}
    augment = [{"flip": "horizontal"}, {"crop": {"pad": 4}}]
    training = {**train, "augment": augment} if trained else None
    calibration = {**train, "samples": 512}
    return _problem(assets / file, calibration, evaluation, limits, by_hand, training=training, **goal)


def _quarter(file: str, points: str, assets: Path) -> Problem:
    limits = [_drop(points), _ratio("size.file", 0.25)]
    return _cifar(file, assets, limits, CONVOLUTIONS, minimize="latency.median")


def resnet20(assets: Path) -> Problem:
    """Fastest with at most two points lost and a quarter of the size."""
    return _quarter("resnet20_cifar10.onnx", "2 pp", assets)


def resnet20_tight(assets: Path) -> Problem:
    """The same with a point lost, which nothing is known to hold without training: how does a search end?"""
    return _quarter("resnet20_cifar10.onnx", "1 pp", assets)


def resnet20_small(assets: Path) -> Problem:
    """Most accurate with a fifth of the size and 60 % of the time."""
    by_hand = [
        [INT8],
        *([_prune(params=share), INT8] for share in (60, 55, 50, 45)),
        [_prune(macs=60), INT8],
        [_prune(params=60, latency=90), INT8],
        [_prune(params=55, latency=80), INT8],
        [_prune(params=55, macs=60), INT8],
        [{**_prune(params=55), "round_to": 8}, INT8],
    ]
    limits = [_ratio("size.file", 0.2), _ratio("latency.median", 0.6)]
    floor = _drop("10 pp")
    return _cifar("resnet20_cifar10.onnx", assets, limits, by_hand, maximize="accuracy.top1", floor=floor)


def resnet56(assets: Path) -> Problem:
    """Fastest with at most a point lost and a quarter of the size."""
    return _quarter("resnet56_cifar10.onnx", "1 pp", assets)


def resnet56_trained(assets: Path) -> Problem:
    """Fastest with at most a point lost and an eighth of the size, training allowed."""
    limits = [_drop("1 pp"), _ratio("size.file", 0.125)]
    return _cifar("resnet56_cifar10.onnx", assets, limits, TRAINED, trained=True, minimize="latency.median")


def squeezenet(assets: Path) -> Problem:
    """Fastest with at most a point lost of 500 photographs."""
    images = {"path": str(assets / "imagenet_600"), "labels": "labels.csv"}
    preprocess = {"channels": "bgr", "mean": [104, 117, 123], "layout": "nchw"}
    calibration = {**images, "first": 100, "preprocess": preprocess}
    evaluation = {**images, "skip": 100, "preprocess": preprocess}
    by_hand = [
        [INT8],
        *([_prune(latency=share), INT8] for share in (95, 90, 80, 70)),
        *([_prune(macs=share), INT8] for share in (95, 90, 80)),
        [_prune(params=90), INT8],
        [_prune(latency=90)],
    ]
    model = assets / "squeezenet_v1.1.onnx"
    return _problem(model, calibration, evaluation, [_drop("1 pp")], by_hand, minimize="latency.median")


def yolox(assets: Path) -> Problem:
    """Fastest detector with 20 dB of the original's outputs and 90 % of the size."""
    preprocess = {"resize": 416, "channels": "bgr", "layout": "nchw"}
    images = {"path": str(assets / "imagenet_600"), "preprocess": preprocess}
    by_hand = [
        [INT8],
        [{**INT8, "prefer": "speed"}],
        [{**INT8, "prefer": "size"}],
        [{**INT8, "calibration": "percentile"}],
        [{**INT8, "calibration": "minmax"}],
        [_prune(macs=90), INT8],
        [_prune(latency=90), INT8],
        [_prune(params=95), INT8],
        [_prune(params=85)],
        [FP16],
    ]
    limits = [{"metric": "fidelity.sqnr", "min": "20 dB"}, _ratio("size.file", 0.9)]
    calibration, evaluation = {**images, "first": 64}, {**images, "skip": 100, "samples": 40}
    return _problem(assets / "yolox_nano.onnx", calibration, evaluation, limits, by_hand, minimize="latency.median")


def minilm(assets: Path) -> Problem:
    """Smallest with at most a point lost, the original's speed and 70 % of its memory."""
    tables = _weights(bits=4, include=["*embeddings/Gather"])
    by_hand = [
        [INT4],
        [_weights(bits=8)],
        [DYNAMIC],
        [tables, DYNAMIC],
        [FUSE, INT4],
        [FUSE, tables, DYNAMIC],
        [_weights(bits=4, block_size=128)],
        [_weights(bits=4, block_size=64, method="k_quant", symmetric=False)],
        [_prune(params=90), INT4],
        [_prune(macs=80), INT4],
    ]
    limits = [_drop("1 pp"), _ratio("latency.median", 1.0), _ratio("memory.peak", 0.7)]
    calibration = {"path": str(assets / "sst2_calib.npz"), "samples": 128}
    evaluation = {"path": str(assets / "sst2_dev.npz"), "labels": "label"}
    return _problem(assets / "sst2_minilm.onnx", calibration, evaluation, limits, by_hand, minimize="size.file")


def llama(assets: Path) -> Problem:
    """Smallest with at most a point fewer bytes guessed, and at most 1.1 times as slow."""
    by_hand = [
        [INT4],
        [_weights(bits=8)],
        [_weights(bits=4, block_size=64)],
        [_weights(bits=4, block_size=128)],
        [_weights(bits=4, block_size=256, method="k_quant")],
        [_weights(bits=4, method="k_quant", symmetric=False)],
        [FUSE, INT4],
        [_prune(params=90), INT4],
        [_prune(params=80), INT4],
        [DYNAMIC],
    ]
    data = {"path": str(assets / "llama_tiny_calib.npz")}
    calibration, evaluation = {**data, "first": 32}, {**data, "skip": 32, "labels": "labels"}
    limits = [_drop("1 pp"), _ratio("latency.median", 1.1)]
    return _problem(assets / "llama_tiny.onnx", calibration, evaluation, limits, by_hand, minimize="size.file")


def _digits(
    name: str, inputs: str, preprocess: Json, limits: list[Json], by_hand: Sequence[Steps], **goal: Any
) -> Problem:
    shared = {"inputs": {inputs: "images"}, "preprocess": preprocess}
    calibration = {"path": str(SAMPLES / "digits_train.npz"), "samples": 512, **shared}
    evaluation = {"path": str(SAMPLES / "digits_test.npz"), "labels": "labels", **shared}
    return _problem(SAMPLES / f"{name}.onnx", calibration, evaluation, limits, by_hand, **goal)


def mlp(assets: Path) -> Problem:
    """Fastest at batch 64 with at most half a point lost, and four by any digit."""
    by_hand = [
        [INT8],
        [DYNAMIC],
        *([_prune(params=share), INT8] for share in (50, 10, 2.5)),
        *([_prune(params=share), DYNAMIC] for share in (10, 2.5)),
        [_prune(params=2.5)],
        *([_prune(params=share)] for share in (5, 1)),
    ]
    preprocess = {"scale": "1/16", "shape": [64]}
    goal = {"metric": "latency.median", "batch": 64}
    limits = [_drop("0.5 pp"), {"metric": "accuracy.worst_class", "max_drop": "4 pp"}]
    return _digits("digits_mlp", "pixels", preprocess, limits, by_hand, minimize=goal, batch=64)


def cnn(assets: Path) -> Problem:
    """Fastest at batch 1 with at most half a point lost, 98 % of the original's answers and a tenth of its size."""
    by_hand = [
        [INT8],
        *([_prune(params=share), INT8] for share in (50, 40, 30, 20)),
        [_prune(macs=50, params=40), INT8],
        [_prune(macs=30, params=30), INT8],
        *([_prune(latency=share, params=40), INT8] for share in (80, 60, 40)),
    ]
    preprocess = {"resize": [32, 32], "scale": "1/16", "mean": 0.5, "std": 0.5, "layout": "nchw"}
    limits = [_drop("0.5 pp"), {"metric": "agreement", "min": "98 %"}, _ratio("size.file", 0.1)]
    return _digits("digits_cnn", "image", preprocess, limits, by_hand, minimize="latency.median")


def vit(assets: Path) -> Problem:
    """Smallest with at most a point lost and the original's speed."""
    by_hand = [
        [INT4],
        [_weights(bits=8)],
        [INT8],
        [FUSE, DYNAMIC],
        [FUSE, INT4],
        *([_prune(params=share), INT4] for share in (80, 60, 40)),
        [_prune(params=60), FUSE, DYNAMIC],
        [_prune(params=40), INT8],
    ]
    preprocess = {"scale": "1/16", "layout": "nchw"}
    limits = [_drop("1 pp"), _ratio("latency.median", 1.0)]
    return _digits("digits_vit", "image", preprocess, limits, by_hand, minimize="size.file")


#: By name: a function of the folder with other people's models and data, which the samples do without.
PROBLEMS: dict[str, Callable[[Path], Problem]] = {
    "resnet20": resnet20,
    "resnet20-small": resnet20_small,
    "resnet56": resnet56,
    "squeezenet": squeezenet,
    "yolox": yolox,
    "minilm": minilm,
    "llama": llama,
    "mlp": mlp,
    "cnn": cnn,
    "vit": vit,
    "resnet20-tight": resnet20_tight,
    "resnet56-trained": resnet56_trained,
}
#: Those that are measured unless others are named.
TEN = tuple(PROBLEMS)[:10]
