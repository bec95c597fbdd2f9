"""Training from the file alone: which models torch computes as onnxruntime does, and with which gradients.

    PYTHONPATH=. python benchmarks/training.py executor MODEL_OR_FOLDER...

For every model: the largest difference of an output as a share of its largest value, on made-up samples; the share of
its float constants that train, and of those the share that a gradient of the squared outputs reaches.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from lepton_cli.data.synthetic import synthetic
from lepton_cli.errors import LeptonError
from lepton_cli.graph.feeds import sized
from lepton_cli.model import io
from lepton_cli.train import proof, weights
from lepton_cli.train.network import Network

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
    outputs = network.run(proof.tensors(batch.feeds))
    loss = sum((one.float().square().mean() for one in outputs.values() if one.requires_grad), torch.zeros(()))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["executor"])
    parser.add_argument("models", nargs="+", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
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
