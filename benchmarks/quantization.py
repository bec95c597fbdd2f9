"""int8 of lepton beside onnxruntime's own quantizer: accuracy, fidelity, speed and size, in one run.

    python benchmarks/quantization.py --assets DIR [--only resnet20,minilm] [--threads 1] [--json FILE]

DIR holds the models and data named below (see `CASES`). Accuracy is paired on the same samples; latency is at batch 1,
all arms of a model interleaved in random order, the median of paired ratios. NNCF joins in where it is installed.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib.util
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.data.dataset import Batch
from lepton_cli.graph import io
from lepton_cli.progress import Silent
from lepton_cli.quantize import speed
from lepton_cli.runtime import Session, onnxruntime
from lepton_cli.steps import STEPS
from lepton_cli.steps.base import Context

Feeds = dict[str, NDArray[Any]]


class Samples:
    """Arrays as a data set."""

    label_names: tuple[str, ...] = ()

    def __init__(self, name: str, feeds: Feeds, labels: NDArray[np.int64] | None = None) -> None:
        self.name = self.path = self.fingerprint = name
        self.feeds, self.labels = feeds, labels
        self.count = len(next(iter(feeds.values())))

    def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        count = min(self.count, limit or self.count)
        step = size or 32
        for start in range(0, count, step):
            yield Batch(
                {name: array[start : min(start + step, count)] for name, array in self.feeds.items()}, {}, start
            )

    def sample_hashes(self) -> list[str]:
        return []


def cifar(raw: bool) -> Callable[[Path, str], tuple[Samples, Samples]]:
    def read(assets: Path, name: str) -> tuple[Samples, Samples]:
        def part(file: str, count: int) -> Samples:
            arrays = np.load(assets / f"cifar10_{file}.npz")
            images = arrays["images"][:count].astype(np.float32)
            if not raw:
                mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
                images = (images / 255 - mean) / std
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
            return Samples(file, {name: images}, arrays["labels"][:count])

        return part("train", 512), part("test", 5000)

    return read


def imagenet(size: int, caffe: bool) -> Callable[[Path, str], tuple[Samples, Samples]]:
    def read(assets: Path, name: str) -> tuple[Samples, Samples]:
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
        return Samples("calibration", {name: stacked[:100]}), Samples("test", {name: stacked[100:]}, numbers[100:])

    return read


def sentences(assets: Path, name: str) -> tuple[Samples, Samples]:
    def part(file: str) -> Samples:
        arrays = np.load(assets / f"sst2_{file}.npz")
        feeds = {key: arrays[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
        return Samples(file, feeds, arrays.get("label"))

    return part("calib"), part("dev")


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its data, the steps to compare, and the batch size for accuracy."""

    file: str
    data: Callable[[Path, str], tuple[Samples, Samples]]
    steps: tuple[str, ...] = ("quantize.static",)
    batch: int = 32


CASES = {
    "resnet20": Case("resnet20_cifar10_fused.onnx", cifar(raw=False)),
    "resnet20-bn": Case("resnet20_cifar10.onnx", cifar(raw=False)),
    "resnet8": Case("mlperf_resnet8_cifar10.onnx", cifar(raw=True)),
    "squeezenet": Case("squeezenet_v1.1.onnx", imagenet(224, caffe=True), batch=1),
    "mobilenet": Case("mobilenet_v1_0.25_128.onnx", imagenet(128, caffe=False)),
    "minilm": Case("sst2_minilm.onnx", sentences, ("quantize.static", "quantize.dynamic")),
}


def outputs(model: ir.Model | Path, data: Samples, batch: int, threads: int) -> NDArray[np.float32]:
    """First output over all samples, one row each."""
    session = Session(model if isinstance(model, Path) else io.to_bytes(model), threads=threads)
    first = session.inputs[0].shape
    size = first[0] if first and isinstance(first[0], int) else batch
    name = session.outputs[0].name
    return np.concatenate([session.run(part.feeds)[name].reshape(len(next(iter(part.feeds.values()))), -1)
                           for part in data.batches(size)])  # fmt: skip


def with_onnxruntime(path: Path, data: Samples, out: Path, options: dict[str, Any], dynamic: bool = False) -> ir.Model:
    """What `onnxruntime.quantization` makes of the model."""
    onnxruntime()
    from onnxruntime.quantization import quantize_dynamic, quantize_static

    if dynamic:
        quantize_dynamic(path, out, op_types_to_quantize=["MatMul", "Gemm", "Gather", "Attention", "LSTM"])
    else:
        batches = data.batches(1)

        class Reader:
            def get_next(self) -> Feeds | None:
                part = next(batches, None)
                return None if part is None else part.feeds

        quantize_static(path, out, Reader(), **options)
    return io.load(out).model


def with_nncf(path: Path, data: Samples) -> ir.Model | None:
    """What NNCF makes of the model; `None` where it is not installed."""
    if importlib.util.find_spec("nncf") is None:
        return None
    import nncf
    import onnx

    batches = [part.feeds for part in data.batches(1, 300)]
    return ir.from_proto(nncf.quantize(onnx.load(path), nncf.Dataset(batches)))


def arms(case: Case, path: Path, model: ir.Model, data: Samples, threads: int, folder: Path) -> dict[str, ir.Model]:
    """The quantized models to compare, by name."""
    made: dict[str, ir.Model] = {}
    context = Context(data, None, data, model, None, "cpu", 1, threads, 0, Silent(), folder, None)
    for name in case.steps:
        step = STEPS[name]
        started = time.perf_counter()
        outcome = step.apply(model, step.params.model_validate({"step": name}), context)
        print(f"  lepton {name}: {outcome.summary} ({time.perf_counter() - started:.0f} s)", flush=True)
        for warning in outcome.warnings:
            print(f"    warning: {warning}")
        made[f"lepton {name}"] = outcome.model
    from onnxruntime.quantization import QuantType

    unsigned = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    made["onnxruntime defaults"] = with_onnxruntime(path, data, folder / "defaults.onnx", {})
    made["onnxruntime U8S8 per channel"] = with_onnxruntime(path, data, folder / "u8s8.onnx", unsigned)
    if "quantize.dynamic" in case.steps:
        made["onnxruntime dynamic"] = with_onnxruntime(path, data, folder / "dynamic.onnx", {}, dynamic=True)
    other = with_nncf(path, data)
    if other is not None:
        made["NNCF"] = other
    return made


def measure(name: str, case: Case, assets: Path, threads: int) -> list[dict[str, Any]]:
    """One row per arm."""
    path = assets / case.file
    model = io.load(path).model
    calibration, test = case.data(assets, io.inputs(model)[0].name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = arms(case, path, model, calibration, threads, folder)
        reference = outputs(model, test, case.batch, threads)
        context = Context(calibration, None, test, model, None, "cpu", 1, threads, 0, Silent(), folder, None)
        one = {key: array[:1] for key, array in test.feeds.items()}
        ratios = speed.compare([model, *made.values()], one, context, rounds=100, seconds=60.0)
        rows = []
        for (arm, candidate), ratio in zip(made.items(), ratios[1:], strict=True):
            found = outputs(candidate, test, case.batch, threads)
            noise = float(np.square(reference.astype(np.float64) - found).sum())
            assert test.labels is not None
            right, right_now = (x.argmax(1) == test.labels for x in (reference, found))
            rows.append(
                {
                    "model": name,
                    "arm": arm,
                    "accuracy": float(right.mean()),
                    "change_points": 100 * float(right_now.mean() - right.mean()),
                    "half_width_points": 196 * math.sqrt(float((right != right_now).mean()) / len(right)),
                    "agreement": float((reference.argmax(1) == found.argmax(1)).mean()),
                    "sqnr_db": 10 * math.log10(float(np.square(reference, dtype=np.float64).sum()) / max(noise, 1e-30)),
                    "speedup": ratio,
                    "size_ratio": len(io.to_bytes(model)) / len(io.to_bytes(candidate)),
                }
            )
    return rows


def main() -> None:
    """Run the cases asked for and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--only", default=",".join(CASES), help="comma-separated names of cases")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    for name in options.only.split(","):
        print(f"{name} ({CASES[name].file})", flush=True)
        rows += measure(name, CASES[name], options.assets, options.threads)
    print("\n| model | arm | top-1 change (points) | agreement | SQNR | speed-up | times smaller |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['arm']} | {row['change_points']:+.2f} ± {row['half_width_points']:.2f} "
            f"| {100 * row['agreement']:.2f} % | {row['sqnr_db']:.1f} dB | {row['speedup']:.2f}x "
            f"| {row['size_ratio']:.2f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
