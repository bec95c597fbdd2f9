"""Rounds weights so that the layer's output changes least, not each weight by itself.

Optimal-brain rounding (GPTQ; Frantar et al., 2022): weights of a row are rounded one after another, and the error of
each is made up for by those not yet rounded, following the covariance of the layer's input. Before it, each channel's
scale is searched; after it, the bias takes over the mean error that is left (bias correction).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph.edit import array_of, set_weight
from lepton_cli.model import io
from lepton_cli.probe.blas import one_thread
from lepton_cli.probe.factor import inverse_factor
from lepton_cli.probe.moments import Moments
from lepton_cli.quantize.choose import Choice

Float64Array = NDArray[np.float64]
#: Clipped ranges tried per channel, as shares of the full one.
CUTS = np.linspace(1.0, 0.7, 13)
#: Share of the mean variance added to each input, so that nothing is divided by zero.
DAMPING = 0.01
#: Columns rounded before the columns to the right hear of their errors.
BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A copy of the model with weights on their grids, and the scales of the grids: (axis, one per channel)."""

    model: ir.Model
    scales: dict[str, tuple[int, NDArray[np.float32]]]


@one_thread()
def apply(
    model: ir.Model,
    choice: Choice,
    moments: Mapping[str, Moments],
    *,
    limit: int,
    gptq: bool = True,
    correct_bias: bool = True,
) -> Rounded:
    """Round the weights of all chosen anchors with known moments to integers within [-limit, limit] times a scale.

    `gptq` false searches scales only. Shared weights are left to the writer.
    """
    copy = io.clone(model)
    scales: dict[str, tuple[int, NDArray[np.float32]]] = {}
    for node in copy.graph:
        known = moments.get(node.name or "") if node.name in choice.anchors else None
        value = node.inputs[1] if known is not None else None
        weight = array_of(node)
        if known is None or value is None or weight is None or len(value.uses()) != 1 or value.is_graph_output():
            continue
        rows, axis = _as_rows(node, weight, len(known.first))
        steps, rounded = _layer(rows, known.covariance, limit, gptq)
        set_weight(value, _as_weight(node, rounded, weight).astype(np.float32))
        scales[value.name or ""] = (axis, steps.reshape(-1).astype(np.float32))
        if correct_bias:
            shift = np.einsum("gnk,gk->gn", rows - rounded, known.mean).reshape(-1)
            _shift_bias(node, shift)
    return Rounded(copy, scales)


def _as_rows(node: ir.Node, weight: NDArray[np.float32], groups: int) -> tuple[Float64Array, int]:
    """The weight as [groups, outputs per group, K], and its axis of output channels."""
    exact = weight.astype(np.float64)
    if node.op_type == "Conv":
        return exact.reshape(groups, weight.shape[0] // groups, -1), 0
    if node.attributes.get_int("transB", 0) == 1:
        return exact[None], 0
    return exact.T[None], 1


def _as_weight(node: ir.Node, rows: Float64Array, like: NDArray[np.float32]) -> Float64Array:
    if node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1:
        return rows.reshape(like.shape)
    return np.ascontiguousarray(rows[0].T)


def _layer(rows: Float64Array, covariance: Float64Array, limit: int, gptq: bool) -> tuple[Float64Array, Float64Array]:
    """Scales [groups, n, 1] and rounded rows [groups, n, K]."""
    steps = _search(rows, covariance, limit)
    if not gptq:
        return steps, _nearest(rows, steps, limit)
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        try:
            damped = covariance + damping * np.eye(rows.shape[-1]) * _mean_variance(covariance)
            return steps, _gptq(rows, damped, steps, limit)
        except np.linalg.LinAlgError:
            continue  # inputs of very different sizes: the covariance is singular within rounding
    return steps, _nearest(rows, steps, limit)


def _mean_variance(covariance: Float64Array) -> Float64Array:
    mean = np.einsum("gkk->g", covariance) / covariance.shape[-1]
    return np.where(mean > 0, mean, 1.0)[:, None, None]


def _nearest(rows: Float64Array, steps: Float64Array, limit: int) -> Float64Array:
    rounded: Float64Array = np.clip(np.rint(rows / steps), -limit, limit) * steps
    return rounded


def _search(rows: Float64Array, covariance: Float64Array, limit: int) -> Float64Array:
    full = np.abs(rows).max(axis=-1, keepdims=True) / limit
    full = np.where(full > 0, full, 1.0)
    best, least = full, np.full(full.shape, np.inf)
    for cut in CUTS:
        error = rows - _nearest(rows, full * cut, limit)
        cost = np.einsum("gnk,gnk->gn", np.matmul(error, covariance), error)[..., None]
        best, least = np.where(cost < least, full * cut, best), np.minimum(cost, least)
    # The file holds float32 scales: round to the grid that will really be used.
    exact: Float64Array = best.astype(np.float32).astype(np.float64)
    return exact


def _gptq(rows: Float64Array, covariance: Float64Array, steps: Float64Array, limit: int) -> Float64Array:
    """Columns in order of falling variance; errors spread by the Cholesky factor of the inverse covariance."""
    order = np.argsort(-np.einsum("gkk->gk", covariance), axis=-1, kind="stable")
    undo = np.argsort(order, axis=-1, kind="stable")
    left = np.take_along_axis(rows, order[:, None, :], axis=2)
    sorted_ = np.take_along_axis(np.take_along_axis(covariance, order[:, :, None], 1), order[:, None, :], 2)
    factor = inverse_factor(sorted_)
    made = np.empty_like(left)
    for start in range(0, left.shape[-1], BLOCK):
        end = min(start + BLOCK, left.shape[-1])
        errors = np.empty((*left.shape[:2], end - start))
        for k in range(start, end):
            made[..., k] = _nearest(left[..., k], steps[..., 0], limit)
            error = (left[..., k] - made[..., k]) / factor[:, k, k][:, None]
            left[..., k + 1 : end] -= error[..., None] * factor[:, None, k, k + 1 : end]
            errors[..., k - start] = error
        # Columns beyond the block are touched once, by a matrix product: they are read only when it is their turn.
        left[..., end:] -= np.matmul(errors, factor[:, start:end, end:])
    return np.take_along_axis(made, undo[:, None, :], axis=2)


def _shift_bias(node: ir.Node, shift: Float64Array) -> None:
    """Add `shift` to a constant bias that only this node reads; MatMul has none and is left as it is."""
    value = node.inputs[2] if len(node.inputs) > 2 and node.op_type != "MatMul" else None
    if value is None or value.const_value is None or len(value.uses()) != 1 or value.const_value.size != shift.size:
        return
    bias = value.const_value.numpy().astype(np.float64)
    set_weight(value, (bias + shift.reshape(bias.shape)).astype(np.float32))
