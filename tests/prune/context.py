"""What a pruning step needs to run in a test: data in memory, and a small trained-looking network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli import runtime
from lepton_cli.cache import Cache
from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.step import Context
from tests.coupling.networks import Network


def context(
    model: ir.Model,
    folder: Path,
    data: Arrays | None = None,
    *,
    check: Arrays | None = None,
    dry: bool = False,
    cache: Path | None = None,
) -> Context:
    shown = check or data
    assert shown is not None
    return Context(
        calibration=data, evaluation=None, training=None, base=Path(), check=shown, original=model, score=None,
        provider="cpu", batch=1, threads=1, seed=0, progress=Silent(), workdir=folder, cache=Cache(cache), dry=dry,
    )  # fmt: skip


def images(count: int = 96, channels: int = 3, size: int = 8) -> Arrays:
    """Smooth random images: neighbouring pixels are alike, as in real ones."""
    random = np.random.default_rng(5)
    coarse = random.normal(size=(count, channels, size // 2, size // 2))
    fine = np.kron(coarse, np.ones((2, 2))) + 0.2 * random.normal(size=(count, channels, size, size))
    return Arrays({"x": fine.astype(np.float32)})


def redundant(seed: int = 0) -> ir.Model:
    """A residual network whose inner layers compute half of their channels as mixtures of the others."""
    n = Network(seed)
    x = n.node("Relu", n.norm(n.conv(n.input("x", "batch", 3, 8, 8), 3, 8), 8))
    for _ in range(2):
        first = n.conv(x, 8, 12)
        kernel, bias = n.weights[n.nodes[-1].input[1]], n.weights[n.nodes[-1].input[2]]
        kernel[6:], bias[6:] = kernel[:6] * 0.5, bias[:6] * 0.5
        x = n.node("Relu", n.node("Add", x, n.conv(n.node("Relu", first), 12, 8)))
    pooled = n.node("Flatten", n.node("GlobalAveragePool", x))
    return n.model(n.node("Gemm", pooled, n.weight(10, 8), n.weight(10), transB=1))


def outputs(model: ir.Model, data: Arrays) -> NDArray[np.float32]:
    session = runtime.Session(io.to_bytes(model), threads=1)
    return np.concatenate([next(iter(session.run(batch.feeds).values())) for batch in data.batches()])


def relative_error(model: ir.Model, reference: ir.Model, data: Arrays) -> float:
    now, then = outputs(model, data), outputs(reference, data)
    return float(np.sum((now - then) ** 2) / np.sum((then - then.mean(axis=0)) ** 2))


def whole(model: ir.Model, feeds: dict[str, NDArray[Any]], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """These values from a plain run of everything, every one an output."""
    proto = ir.to_proto(model)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in feeds)
    session = runtime.Session(onnx.shape_inference.infer_shapes(proto).SerializeToString(), threads=1, optimise=False)
    inputs = {info.name for info in session.inputs}
    return {**feeds, **session.run({name: array for name, array in feeds.items() if name in inputs})}


def ridge_solution(
    x: NDArray[Any], target: NDArray[Any], start: NDArray[Any], ridge: float, intercept: bool
) -> NDArray[Any]:
    """Rows that pull the weights to their start are added below the data: what `lstsq` finds is the ridge solution."""
    x, size = x.astype(np.float64), x.shape[1]
    spread = x - x.mean(axis=0) if intercept else x
    pull = np.sqrt(ridge * np.square(spread).sum() / size) * np.eye(size)
    if not intercept:
        weight = np.linalg.lstsq(np.concatenate([x, pull]), np.concatenate([target - start[-1], pull @ start[:-1]]))[0]
        return np.concatenate([weight, start[-1:]])
    left = np.block([[x, np.ones((len(x), 1))], [pull, np.zeros((size, 1))]])
    return np.linalg.lstsq(left, np.concatenate([target, pull @ start[:-1]]))[0]


def rectified_ridge(
    x: NDArray[Any],
    y: NDArray[Any],
    offset: NDArray[Any],
    start: NDArray[Any],
    ridge: float,
    intercept: bool,
    rounds: int,
) -> NDArray[Any]:
    """The same with a ReLU behind `x @ w + offset`: each round lowers targets of at most zero to the last guess."""
    plain = y.astype(np.float64) - offset
    solution = ridge_solution(x, plain, start, ridge, intercept)
    for _ in range(rounds):
        guess = x @ solution[:-1] + solution[-1]
        target = plain.copy()
        for i, k in np.ndindex(target.shape):
            if y[i, k] <= 0:  # any sum of at most zero is right; for one above, zero is the nearest
                target[i, k] = guess[i, k] if guess[i, k] + offset[i, k] <= 0 else -offset[i, k]
        solution = ridge_solution(x, target, start, ridge, intercept)
    return solution
