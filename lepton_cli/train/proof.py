"""The proof that torch computes what onnxruntime does: before the first step, and of what was written back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from lepton_cli.data.dataset import Dataset
from lepton_cli.errors import StepError
from lepton_cli.model import io
from lepton_cli.probe import activations
from lepton_cli.runtime import Session, Values
from lepton_cli.train.network import Network
from lepton_cli.train.outside import as_numpy, as_torch

#: Largest difference of an output, as a share of its largest value, that is rounding.
SAME = 1e-4
#: The same for a value inside, which errors before it add up in.
SAME_INSIDE = 1e-3
#: The same for a file in half precision, which onnxruntime rounds to at every node and training does not.
SAME_HALF = 2e-2
#: Root mean square of the difference over that of the output, 25 dB, where values are rounded to integers: a number in
#: the middle of two goes either way. Kernels that are right were measured to be 35 dB apart, wrong ones 23.
SAME_QUANTIZED = 10 ** (-25 / 20)
#: What a second way to compute an unsteady model may cost, times what onnxruntime's own two ways differ by.
MARGIN = 4.0
#: Share of whole numbers and decisions that rounding may turn.
TURNED = 0.01


def tensors(feeds: Values, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Arrays as tensors; numbers that say where or how many stay where Python reads them, strings are no tensors."""
    return {name: as_torch(array, torch.device(device)) for name, array in feeds.items()}


def sample_axis(alone: Sequence[int], together: Sequence[int]) -> int:
    """Along which axis results of single samples are joined: the first that is longer where they go in together."""
    pairs = enumerate(zip(alone, together, strict=False))
    return next((axis for axis, (one, several) in pairs if one != several), 0)


def prove(network: Network, check: Dataset, workdir: Path, threads: int) -> float:
    """The largest difference on the check batches, of what can be compared (`Network.compared`). Raises StepError that
    names the first node that differs."""
    model, names, worst = network.model, network.compared, 0.0
    apart, same, inside = measure(model)
    right = activations.Activations(model, names, workdir, threads)
    for batch in activations.batches(model, check):
        expected = right.run(batch.feeds)
        with torch.no_grad():
            found = network.run(tensors(batch.feeds, network.device), names)
        for name in names:
            array = expected[name]
            if not isinstance(array, np.ndarray):
                continue
            difference = apart(array, as_numpy(found[name]))
            most = same if name in network.outputs else inside
            if not difference <= most and not difference <= MARGIN * apart(
                array, _otherwise(model, batch.feeds, name, workdir, threads)
            ):
                raise _differs(network, batch.feeds, name, difference, workdir, threads)
            worst = max(worst, difference)
    return worst


def _half(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def measure(model: ir.Model) -> tuple[Callable[[NDArray[Any], NDArray[Any]], float], float, float]:
    """How outputs are compared, the most that is rounding, and the most for a value inside."""
    if any(node.op_type == "QuantizeLinear" for node in model.graph.all_nodes()):
        return noise, SAME_QUANTIZED, SAME_QUANTIZED
    half = any(_half(value) for value in model.graph.initializers.values())
    return distance, SAME_HALF if half else SAME, SAME_INSIDE


def _otherwise(model: ir.Model, feeds: Values, name: str, workdir: Path, threads: int) -> NDArray[np.generic]:
    """What onnxruntime itself gives when it computes in another order."""
    part = activations.piece(model, {}, [name])
    session = Session(io.payload(part, workdir), threads=threads, optimise=False, spin=False)
    return session.run({info.name: feeds[info.name] for info in session.inputs if info.name in feeds}, [name])[name]


def noise(expected: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    """Root mean square of the difference over that of what was expected."""
    if expected.shape != found.shape or expected.dtype.kind not in "fiub":
        return np.inf
    first, second = expected.astype(np.float64), found.astype(np.float64)
    if not np.isfinite(first).all():
        return distance(first, second)
    return float(np.sqrt(np.square(first - second).sum() / max(float(np.square(first).sum()), 1e-30)))


def distance(expected: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    """Largest difference as a share of the largest value; of whole numbers 0 where few are others, else infinite."""
    if expected.shape != found.shape or (expected.dtype.kind == "f") != (found.dtype.kind == "f"):
        return np.inf
    if expected.dtype.kind != "f":
        return 0.0 if expected.size == 0 or float(np.mean(expected != found)) <= TURNED else np.inf
    first, second = expected.astype(np.float64), found.astype(np.float64)
    usable = np.isfinite(first)
    if not np.array_equal(first[~usable], second[~usable], equal_nan=True) or not usable.any():
        return 0.0 if np.array_equal(first, second, equal_nan=True) else np.inf
    largest = float(np.abs(first[usable]).max())
    return float(np.abs(first[usable] - second[usable]).max()) / max(largest, 1e-30)


def _differs(network: Network, feeds: Values, output: str, difference: float, workdir: Path, threads: int) -> StepError:
    node = _first(network, feeds, workdir, threads)
    place = "" if node is None else f", first at node `{node.name}` ({node.op_type})"
    return StepError(
        "train.differs",
        f"torch computes `{output}` {difference:.1g} of its size away from onnxruntime{place}",
        hint="train with a loss on a value before it, or leave the step out",
    )


def _first(network: Network, feeds: Values, workdir: Path, threads: int) -> ir.Node | None:
    nodes = [node for node in network.model.graph if node.op_type != "Constant"]
    names = [value.name or "" for node in nodes for value in node.outputs if value.name]
    expected = activations.Activations(network.model, names, workdir, threads).run(feeds)
    given = tensors(feeds, network.device)
    apart, _, same = measure(network.model)
    for node in nodes:
        for value in node.outputs:
            array = expected.get(value.name or "")
            if not isinstance(array, np.ndarray) or not network.gradients.compares(value):
                continue
            with torch.no_grad():
                found = network.run(given, [value.name or ""])[value.name or ""]
            if not apart(array, as_numpy(found)) <= same:
                return node
    return None
