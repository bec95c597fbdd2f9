"""Batch-norm re-estimation: means and variances as the pruned model really has them, where the nodes are kept."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lepton_cli.graph.edit import set_weight
from lepton_cli.model import io
from lepton_cli.probe import activations, parts
from lepton_cli.probe.comparable import comparable
from lepton_cli.probe.distances import relative_error
from lepton_cli.prune import recover
from lepton_cli.prune.recover import Calibration, Repair


def reestimate(model: ir.Model, reference: ir.Model, source: Calibration) -> tuple[ir.Model, list[Repair]]:
    """The model with new statistics if that brings its outputs closer to the reference's, else as it was."""
    nodes = [node.name or "" for node in model.graph if node.op_type == "BatchNormalization" and _own(node)]
    if not nodes:
        return model, []
    trial = io.clone(model)
    for name in nodes:
        _one(trial, name, source)
    held = recover.judging(model, source, 256)
    wanted = activations.outputs(reference, held, source.workdir, source.threads)
    ways = parts.segments(comparable(reference))
    before, after = (
        relative_error(activations.outputs(m, held, source.workdir, source.threads), wanted, ways)
        for m in (model, trial)
    )
    helps = after < before
    return (trial if helps else model), [Repair(name, "batch_norm", helps, before, after) for name in nodes]


def _own(node: ir.Node) -> bool:
    """Are mean and variance initializers that only this node reads?"""
    return all(value is not None and value.is_initializer() and len(value.uses()) == 1 for value in node.inputs[3:5])


def _one(model: ir.Model, name: str, source: Calibration) -> None:
    """New mean and variance of one node, in place; nodes before it have theirs already."""
    node = next(node for node in model.graph if node.name == name)
    x, mean_value, variance_value = node.inputs[0], node.inputs[3], node.inputs[4]
    if x is None or mean_value is None or variance_value is None or mean_value.const_value is None:
        return
    inner = activations.Activations(model, [x.name or ""], source.workdir, source.threads)
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for feeds in recover.batches(model, source):
        array = inner.run(feeds)[x.name or ""]
        rows = np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])
        count += len(rows)
        total = total + rows.sum(axis=0, dtype=np.float64)
        squares = squares + np.square(rows, dtype=np.float64).sum(axis=0)
    mean = total / max(count, 1)
    dtype = mean_value.const_value.numpy().dtype
    set_weight(mean_value, mean.astype(dtype))
    set_weight(variance_value, np.maximum(squares / max(count, 1) - mean**2, 0).astype(dtype))
