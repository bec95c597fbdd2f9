"""Training from the file alone: which models torch computes as onnxruntime does, and what training brings.

    PYTHONPATH=. python benchmarks/training.py executor MODEL_OR_FOLDER...
    PYTHONPATH=. python benchmarks/training.py distill --assets DIR --student PRUNED.onnx --teacher ORIGINAL.onnx
        [--train IMAGES.npz] [--labels SHARE] [--epochs N] [--features none]

`distill`: a pruned CIFAR-10 network learns its original's answers from images, flipped and cropped, with a SHARE of the
loss for their labels (default: none); top-1 on test images that it never sees, the divergence from the teacher there
(which tells methods apart with less noise), and CPU minutes of one thread, the search for the rate included.

`executor`, for every model: the largest difference of an output as a share of its largest value, on made-up samples;
the share of its float constants that train, and of those the share that a gradient of the squared outputs reaches, or
of what those are made of that no gradient comes back from.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

try:
    import torch
except ImportError as missing:
    raise SystemExit("training needs the extra `train`") from missing

import lepton_cli as lepton
from lepton_cli.data.synthetic import synthetic
from lepton_cli.errors import LeptonError
from lepton_cli.graph.feeds import sized
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.train import losses, proof, weights
from lepton_cli.train.network import Network
from lepton_cli.train.outside import is_float

SAMPLES, BATCH, SEED = 4, 2, 0


def executor(path: Path) -> tuple[str, bool]:
    """A row of the table, and whether the model is right and trains."""
    loaded = io.load(path).model
    data = synthetic(sized(loaded), seed=SEED, samples=SAMPLES, batch=BATCH)
    begun = time.process_time()
    try:
        network = Network(loaded)
        with tempfile.TemporaryDirectory() as folder:
            difference = proof.prove(network, data, Path(folder), threads=1)
    except LeptonError as error:
        return f"| {path.stem} | {error.message[:150]} | | | {time.process_time() - begun:.1f} |", False
    every = sum(tensor.size for tensor in _floats(network.model))
    mine = sum(parameter.numel() for parameter in network.parameters.values())
    batch = next(iter(data.batches()))
    values = network.run(proof.tensors(batch.feeds), network.compared).values()
    loss = sum((one.square().mean() for one in values if is_float(one) and one.requires_grad), torch.zeros(()))
    reached = 0
    if loss.requires_grad:
        loss.backward()
        reached = sum(one.numel() for one in network.parameters.values() if one.grad is not None)
    row = f"| {path.stem} | {difference:.1e} | {mine / max(every, 1):.1%} of {every:,} | {reached / max(mine, 1):.1%} |"
    return f"{row} {time.process_time() - begun:.1f} |", bool(reached)


def _floats(model: ir.Model) -> list[ir.TensorProtocol]:
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    values += [node.outputs[0] for node in model.graph.all_nodes() if node.op_type == "Constant"]
    held = (weights.held(value) for value in values)
    return [tensor for tensor in held if tensor is not None and np.issubdtype(tensor.dtype.numpy(), np.floating)]


IMAGES = {"layout": "nchw", "scale": "1/255", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def distil(options: argparse.Namespace) -> None:
    """One line: before, after, and what it cost."""
    model = io.load(options.student).model
    (name,) = [info.name for info in io.inputs(model)]
    recipe = {
        "version": 1,
        "data": {
            "training": {
                "path": str((options.train or options.assets / "cifar10_train.npz").resolve()),
                "inputs": {name: "images"},
                **({"labels": "labels"} if options.labels else {}),
                "preprocess": IMAGES,
                "augment": [{"flip": "horizontal"}, {"crop": {"pad": 4}}],
            }
        },
        "steps": [
            {
                "step": "quantize.aware" if options.weight_bits else "distill",
                "teacher": str(options.teacher.resolve()),
                "budget": {"epochs": options.epochs},
                **({} if options.weight_bits else {"features": options.features}),
                **({"labels": f"{100 * options.labels:g} %"} if options.labels else {}),
                **({"weight_bits": options.weight_bits} if options.weight_bits else {}),
            }
        ],
        "evaluate": {"accuracy": [], "latency": {"threads": 1, "time": "100 ms"}, "memory": False},
    }
    begun = time.process_time()
    made = lepton.compress(options.student, recipe)
    minutes = (time.process_time() - begun) / 60
    test = np.load(options.assets / "cifar10_test.npz")
    teacher, before, after = (
        _answers(one, test["images"]) for one in (io.load(options.teacher).model, model, made.model)
    )
    right = [np.mean(one.argmax(1) == test["labels"]) for one in (before, after)]
    apart = [float(losses.distil(*map(torch.from_numpy, (one, teacher)))) for one in (before, after)]
    found = made.report.steps[0].details.model_dump()
    said = {key: found[key] for key in ("learning_rate", "rates_too_high", "precision", "steps", "samples_per_second")}
    marks = ", ".join(f"{mark['loss']:.3f}" for mark in found["marks"])
    print(
        f"{options.student.stem}: top-1 {right[0]:.2%} -> {right[1]:.2%}, loss on the test images {apart[0]:.3f} -> "
        f"{apart[1]:.3f}, in {minutes:.2f} CPU minutes; {said}; loss {marks}"
    )


def _answers(model: ir.Model, images: np.ndarray) -> np.ndarray:
    session = Session(io.to_bytes(model), threads=1)
    (name,) = [info.name for info in io.inputs(model)]
    found = []
    for start in range(0, len(images), 500):
        pixels = images[start : start + 500].astype(np.float32) / np.float32(255)
        feed = ((pixels - np.float32(IMAGES["mean"])) / np.float32(IMAGES["std"])).transpose(0, 3, 1, 2)
        found.append(session.run({name: np.ascontiguousarray(feed)})[session.outputs[0].name])
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("executor").add_argument("models", nargs="+", type=Path)
    other = parts.add_parser("distill")
    for option in ("--assets", "--student", "--teacher"):
        other.add_argument(option, type=Path, required=True)
    other.add_argument("--train", type=Path, help="NPZ with `images` and `labels`; default: cifar10_train.npz")
    other.add_argument("--labels", type=float, default=0.0, help="share of the loss that the labels have")
    other.add_argument("--epochs", type=float, default=5)
    other.add_argument("--features", choices=("auto", "none"), default="auto", help="whether values inside are learnt")
    other.add_argument(
        "--weight-bits", type=int, choices=(4, 8), help="the student is int8: train it by quantize.aware"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "distill":
        distil(options)
        return
    paths = [found for path in options.models for found in (sorted(path.rglob("*.onnx")) if path.is_dir() else [path])]
    print(
        "| model | largest difference | constants that train | reached by a gradient | CPU s |\n|---|---|---|---|---|"
    )
    right = 0
    for path in paths:
        try:
            row, well = executor(path)
        except Exception as error:  # one model shall not end the table
            row, well = f"| {path.stem} | **{type(error).__name__}: {str(error)[:120]}** | | | |", False
        right += well
        print(row, flush=True)
    print(f"\n{right} of {len(paths)} are computed as onnxruntime does, and train")


if __name__ == "__main__":
    main()
