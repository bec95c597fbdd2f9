"""Repairing what is left without labels or gradients: least squares and bias correction, layer after layer.

Every layer is fitted to what the model before pruning computed at the same place; where the layer ends in a residual
Add, to the block's sum minus the pruned shortcut, so that it also corrects the error already on the stream. A repair
is judged on calibration batches it was not fitted to and kept only where it helps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.data.dataset import Dataset
from lepton_cli.errors import StepError
from lepton_cli.graph.coupling import Coupling, Ids
from lepton_cli.prune import gram, linear, taps
from lepton_cli.prune.gram import Moments, Wanted
from lepton_cli.prune.linear import Linear, Matrix
from lepton_cli.prune.taps import Arrays

#: Ridges tried, relative to the mean diagonal; the held-out batches choose.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclasses.dataclass(frozen=True)
class Repair:
    """What was tried on one layer; errors are shares of the target's variance on held-out batches."""

    node: str
    kind: str
    kept: bool
    error_before: float
    error_after: float
    #: Fewer rows than features to fit: the ridge had to decide.
    scarce: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """Calibration data and how to run it."""

    data: Dataset
    workdir: Path
    threads: int
    seed: int
    samples: int


@dataclasses.dataclass(frozen=True)
class Aim:
    """Where a layer's target is read: a value of the reference, minus a value of the current model."""

    value: str
    shortcut: str | None


def aim(model: ir.Model, layer: Linear) -> Aim:
    """The sum of the residual block that the layer ends, or the layer's own output."""
    values = {output.name: output for node in model.graph for output in node.outputs}
    output = values[layer.biased]
    uses = list(output.uses())
    if len(uses) == 1 and uses[0][0].op_type == "Add" and not output.is_graph_output():
        add, index = uses[0]
        other = add.inputs[1 - index]
        if other is not None and other is not output and other.producer() is not None:
            return Aim(add.outputs[0].name or "", other.name)
    return Aim(layer.biased, None)


def wanted(model: ir.Model, layer: Linear, coupling: Coupling, removed: Collection[int] | Ids) -> tuple[Wanted, Aim]:
    """The layer with its target in terms of values of the pruned and of the reference model."""
    where = aim(model, layer)
    shape = coupling.facts.shapes[where.value]
    mask = coupling.keep((where.value, layer.channel_axis % len(shape)), removed)
    matrix = linear.matrix_of(model, layer)

    def target(now: Arrays, then: Arrays) -> NDArray[Any]:
        full = then[where.value]
        if mask is not None:
            full = np.compress(mask, full, axis=layer.channel_axis)
        return full if where.shortcut is None else full - now[where.shortcut]

    return Wanted(layer, matrix.shape[1], matrix.shape[0], target), where


def repair(
    model: ir.Model,
    reference: ir.Model,
    layers: Sequence[Linear],
    coupling: Coupling,
    removed: Collection[int] | Ids,
    source: Source,
    kinds: Collection[str],
) -> list[Repair]:
    """Fit `layers` (independent of one another) of `model`, in place."""
    aimed = [wanted(model, layer, coupling, removed) for layer in layers]
    now = [name for w, a in aimed for name in (w.linear.input, a.shortcut) if name is not None]
    current = taps.Tap(model, now, source.workdir, source.threads)
    original = taps.Tap(reference, [a.value for _, a in aimed], source.workdir, source.threads)
    found = gram.collect(
        [w for w, _ in aimed], batches(model, source), current.run, original.run, source.samples, source.seed
    )
    return [_repair_layer(model, layer, *found[layer.node], kinds) for layer in layers]


def batches(model: ir.Model, source: Source) -> Any:
    """Calibration batches, small enough that some can be held out."""
    size = max(1, min(32, source.samples // (2 * gram.HOLD_EVERY)))
    return taps.batches(model, source.data, source.samples, size)


def _repair_layer(model: ir.Model, layer: Linear, fit: Moments, held: Moments, kinds: Collection[str]) -> Repair:
    both = fit + held
    if not np.isfinite(both.xx).all() or not np.isfinite(both.xy).all():
        raise StepError(
            "prune.non-finite",
            f"the activations at `{layer.node}` are not finite on the calibration data",
            hint="check the preprocessing, or exclude this part of the model",
        )
    bias = linear.bias_of(model, layer)
    start = np.concatenate(
        [linear.matrix_of(model, layer), np.zeros((1, fit.xy.shape[1])) if bias is None else bias[None]]
    )
    judge = held if held.rows else fit
    before = judge.error(start)
    tries: list[tuple[float, str, Matrix]] = []
    if "least_squares" in kinds:
        ridge, error = min(
            ((r, judge.error(solve(fit, start, r, bias is not None))) for r in RIDGES), key=lambda t: t[1]
        )
        tries.append((error, "least_squares", solve(both, start, ridge, bias is not None)))
    if "bias" in kinds and bias is not None:
        tries.append((judge.error(_shifted(fit, start)), "bias", _shifted(both, start)))
    if not tries:
        return Repair(layer.node, "none", False, before, before)
    after, kind, solution = min(tries, key=lambda t: t[0])
    kept = bool(np.isfinite(solution).all()) and after < before * 0.999
    if kept:
        linear.store(model, layer, solution[:-1], None if bias is None else solution[-1])
    return Repair(layer.node, kind, kept, before, after, scarce=fit.rows < 2 * len(start))


def solve(moments: Moments, start: Matrix, ridge: float, intercept: bool) -> Matrix:
    """Ridge regression around `start`; the intercept is free, or fixed where the layer has no bias."""
    size = len(start) - 1
    xx, xy = moments.xx[:size, :size], moments.xy[:size]
    mean_x = moments.xx[size, :size] / max(moments.rows, 1)
    mean_y = moments.y / max(moments.rows, 1)
    if intercept:
        xx = xx - moments.rows * np.outer(mean_x, mean_x)
        xy = xy - moments.rows * np.outer(mean_x, mean_y)
    damping = ridge * max(float(np.diag(xx).mean()), 1e-12)
    step = np.linalg.solve(xx + damping * np.eye(size), xy - xx @ start[:size])
    weight = start[:size] + step
    last = mean_y - mean_x @ weight if intercept else start[size]
    return np.concatenate([weight, last[None]])


def _shifted(moments: Moments, start: Matrix) -> Matrix:
    """`start` with the bias that makes the mean right."""
    count = max(moments.rows, 1)
    shifted = start.copy()
    shifted[-1] += moments.y / count - moments.xx[-1] @ start / count
    return shifted


def after_the_cut(model: ir.Model, coupling: Coupling, removed: Collection[int] | Ids) -> list[Linear]:
    """Linear layers whose inputs are not what they were, in topological order."""
    changed: set[str] = set()
    layers = linear.find(model)
    found = []
    for node in model.graph:
        names = [value.name or "" for value in node.inputs if value is not None]
        sliced = any(
            coupling.keep((name, axis), removed) is not None
            for name in names
            if name in model.graph.initializers
            for axis in range(len(coupling.facts.shapes.get(name, ())))
        )
        if sliced or not changed.isdisjoint(names):
            dirty = not changed.isdisjoint(names)
            changed.update(output.name or "" for output in node.outputs)
            if node.name in layers and dirty:
                found.append(layers[node.name])
    return found


def stages(layers: Sequence[Linear], model: ir.Model) -> list[list[Linear]]:
    """Consecutive layers that read the same input and can be fitted in one pass over the data."""
    found: list[list[Linear]] = []
    for layer in layers:
        if found and found[-1][0].input == layer.input and aim(model, layer).shortcut is None:
            found[-1].append(layer)
        else:
            found.append([layer])
    return found


def facts(repairs: Sequence[Repair]) -> list[Mapping[str, Any]]:
    """For the report."""
    return [dataclasses.asdict(repair) for repair in repairs]
