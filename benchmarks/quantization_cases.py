"""Models and data of the quantization benchmark; all of them lie in the folder given with `--assets`."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays

Feeds = dict[str, NDArray[Any]]


def cifar(raw: bool) -> Callable[[Path, str], tuple[Arrays, Arrays]]:
    """512 training images to calibrate with, 5,000 test images."""

    def read(assets: Path, name: str) -> tuple[Arrays, Arrays]:
        def part(file: str, count: int) -> Arrays:
            arrays = np.load(assets / f"cifar10_{file}.npz")
            images = arrays["images"][:count].astype(np.float32)
            if not raw:
                mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
                images = (images / 255 - mean) / std
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
            return Arrays({name: images}, arrays["labels"][:count], name=file)

        return part("train", 512), part("test", 5000)

    return read


def imagenet(size: int, caffe: bool) -> Callable[[Path, str], tuple[Arrays, Arrays]]:
    """100 images to calibrate with, the other 500 to judge."""

    def read(assets: Path, name: str) -> tuple[Arrays, Arrays]:
        from PIL import Image

        images, labels = [], []
        folder = assets / "imagenet_600"
        for file, label in list(csv.reader((folder / "labels.csv").open()))[1:]:
            path = folder / file if (folder / file).exists() else folder / "images" / file
            image = Image.open(path).convert("RGB")
            image = image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)
            pixels = np.asarray(image, dtype=np.float32)
            pixels = pixels[:, :, ::-1] - np.float32([104, 117, 123]) if caffe else pixels / np.float32(127.5) - 1
            images.append(pixels.transpose(2, 0, 1))
            labels.append(int(label) + (0 if caffe else 1))
        stacked, numbers = np.ascontiguousarray(np.stack(images), dtype=np.float32), np.array(labels)
        return Arrays({name: stacked[:100]}), Arrays({name: stacked[100:]}, numbers[100:])

    return read


def sentences(assets: Path, name: str) -> tuple[Arrays, Arrays]:
    """500 unlabelled sentences to calibrate with, 872 labelled ones."""

    def part(file: str) -> Arrays:
        arrays = np.load(assets / f"sst2_{file}.npz")
        feeds = {key: arrays[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
        return Arrays(feeds, arrays.get("label"), name=file)

    return part("calib"), part("dev")


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its data, the steps to compare, and the batch size for accuracy."""

    file: str
    data: Callable[[Path, str], tuple[Arrays, Arrays]]
    steps: tuple[str, ...] = ("quantize.static",)
    batch: int = 32

    @property
    def transformer(self) -> bool:
        """Whether dynamic quantization and the other tools' settings for transformers apply."""
        return "quantize.dynamic" in self.steps


CASES = {
    "resnet20": Case("resnet20_cifar10_fused.onnx", cifar(raw=False)),
    "resnet20-bn": Case("resnet20_cifar10.onnx", cifar(raw=False)),
    "resnet8": Case("mlperf_resnet8_cifar10.onnx", cifar(raw=True)),
    "squeezenet": Case("squeezenet_v1.1.onnx", imagenet(224, caffe=True), batch=1),
    "mobilenet": Case("mobilenet_v1_0.25_128.onnx", imagenet(128, caffe=False)),
    "minilm": Case("sst2_minilm.onnx", sentences, ("quantize.static", "quantize.dynamic")),
}
