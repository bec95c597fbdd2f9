"""`prune.weights`: single weights to zero, with the optimal-brain update of those that stay (SparseGPT-style)."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.errors import DataError, RecipeError, StepError
from lepton_cli.graph import fold, select
from lepton_cli.graph.edit import set_weight
from lepton_cli.model import io
from lepton_cli.probe import activations, linear, moments
from lepton_cli.probe.factor import inverse_factor
from lepton_cli.probe.linear import Linear, Matrix
from lepton_cli.prune import recover
from lepton_cli.prune.details import PrunedTensor, PruneWeightsDetails
from lepton_cli.prune.spec import PruneWeights
from lepton_cli.step import Context, Decision, Outcome

#: Features whose zeros are chosen together before the next features are corrected.
BLOCK = 128
#: Rounds of conjugate gradients after the zeros are chosen.
SETTLE = 24
PLAIN = "zeros shrink only the compressed (gzip) file: onnxruntime stores and multiplies them like any other number"


@dataclasses.dataclass(frozen=True)
class Prunable:
    """One weight tensor: its node, operator, and matrix view [inputs, outputs] where the layer is linear."""

    node: str
    op: str
    name: str
    array: NDArray[np.float64]
    layer: Linear | None


def prune(model: ir.Model, options: PruneWeights, context: Context) -> Outcome:
    """Zero weights by sparsity, threshold or N:M pattern. Raises RecipeError without exactly one usable option."""
    keep, of = _pattern(options)
    chosen = select.select([node.name or "" for node in model.graph.all_nodes()], options.include, options.exclude)
    kind = options.importance or ("hessian" if context.calibration is not None and options.threshold is None else "l1")
    if kind == "hessian" and context.calibration is None:
        raise DataError(
            "data.missing",
            "importance `hessian` needs calibration data, and the recipe gives none",
            hint="add `data: {calibration: {path: ...}}`, or choose `l1`",
            option=("importance",),
        )
    copy = io.clone(model)
    fold.expose_weights(copy)
    weights, left = _weights(copy, chosen)
    if context.dry or not weights:
        planned = [Decision(node=w.node, op=w.op, action="prunable", reason=f"{w.array.size} weights") for w in weights]
        return Outcome(
            model, len(weights) if context.dry else 0, (*planned, *left), f"{len(weights)} tensors can be pruned"
        )
    cut = _threshold(weights, options, kind)
    decisions, rows, before, after, total = list(left), [], 0, 0, 0
    with context.progress.stage("zeroing weights", len(weights)) as stage:
        for weight in weights:
            array = _one(copy, weight, options, kind, cut, (keep, of), context)
            old, new = int(np.count_nonzero(weight.array)), int(np.count_nonzero(array))
            before, after, total = before + old, after + new, total + array.size
            if new < old:
                value = copy.graph.initializers[weight.name]
                held = value.const_value
                set_weight(value, array.astype(held.dtype.numpy() if held is not None else np.float32))
            action = "pruned" if new < old else "kept"
            share = 1 - new / max(array.size, 1)
            decisions.append(
                Decision(
                    node=weight.node,
                    op=weight.op,
                    action=action,
                    reason=f"{share:.1%} of {array.size} weights are zero",
                )
            )
            rows.append(PrunedTensor(node=weight.node, weights=int(array.size), zeros=int(array.size - new)))
            stage.advance()
    changed = sum(decision.action == "pruned" for decision in decisions)
    summary = f"{1 - after / max(total, 1):.1%} of {total} weights are zero in {changed} tensors; {PLAIN}"
    return Outcome(
        copy if changed else model,
        changed,
        tuple(decisions),
        summary,
        PruneWeightsDetails(tensors=tuple(rows), note=PLAIN, importance=kind),
    )


def _pattern(options: PruneWeights) -> tuple[int, int]:
    """N and M of the pattern, or zeros; exactly one of sparsity, threshold and pattern must be given."""
    given = [name for name in ("sparsity", "threshold", "pattern") if getattr(options, name) is not None]
    if len(given) != 1:
        raise RecipeError(
            "recipe.weights-target",
            "give exactly one of `sparsity`, `threshold`, `pattern`"
            + (f", not {' and '.join(given)}" if given else ""),
            hint="for example `sparsity: 80 %`",
            option=(given[1],) if len(given) > 1 else (),
        )
    if options.sparsity is not None and not 0 <= options.sparsity < 1:
        raise RecipeError("recipe.sparsity", "sparsity must be at least 0 % and below 100 %", option=("sparsity",))
    if options.pattern is None:
        return 0, 0
    keep, of = (int(part) for part in options.pattern.split(":"))
    if not 0 < keep < of:
        raise RecipeError(
            "recipe.pattern",
            f"`{options.pattern}`: of M weights N stay, so N must be from 1 to M - 1",
            option=("pattern",),
        )
    return keep, of


def _weights(model: ir.Model, chosen: set[str]) -> tuple[list[Prunable], list[Decision]]:
    """Weights of convolutions and products, in graph order, and decisions about nodes left alone."""
    layers = linear.find(model)
    found: list[Prunable] = []
    left: list[Decision] = []
    for node in model.graph:
        if node.op_type not in ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul"):
            continue
        value = node.inputs[1]
        tensor = value.const_value if value is not None and value.is_initializer() else None
        reason = ""
        if tensor is None or value is None:
            reason = "its weight is computed, not stored"
        elif not tensor.dtype.is_floating_point():
            reason = f"its weight is {tensor.dtype}, not float"
        elif node.name not in chosen:
            reason = "left out by include/exclude"
        elif not tensor.size:
            reason = "its weight is empty"
        elif any(weight.name == value.name for weight in found):
            reason = f"it shares `{value.name}` with an earlier node"
        if reason or tensor is None or value is None:
            left.append(Decision(node=node.name or "", op=node.op_type, action="kept", reason=reason))
            continue
        array = np.asarray(tensor.numpy(), np.float64)
        if not np.isfinite(array).all():
            raise StepError(
                "prune.non-finite",
                f"the weights `{value.name}` of node `{node.name}` are not finite",
                hint="the model is damaged",
            )
        found.append(Prunable(node.name or "", node.op_type, value.name or "", array, layers.get(node.name or "")))
    return found, left


def _scores(array: NDArray[np.float64], kind: str, *, relative: bool) -> NDArray[np.float64]:
    """Importance of every weight; `relative` makes tensors comparable."""
    if kind == "zscore":
        return np.asarray(np.abs(array - array.mean()) / max(float(array.std()), 1e-12))
    size = np.abs(array) if kind != "l2" else np.square(array)
    return np.asarray(size / max(float(np.sqrt(np.mean(size**2))), 1e-30)) if relative else size


def _threshold(weights: list[Prunable], options: PruneWeights, kind: str) -> float | None:
    """The one importance below which weights go, for a threshold or a global sparsity."""
    if options.threshold is not None:
        return float(options.threshold)
    if options.scope == "layer" or options.sparsity is None:
        return None
    scores = np.concatenate([_scores(weight.array, kind, relative=True).ravel() for weight in weights])
    return float(np.quantile(scores, float(options.sparsity), method="higher")) if len(scores) else None


def _one(
    model: ir.Model,
    weight: Prunable,
    options: PruneWeights,
    kind: str,
    cut: float | None,
    pattern: tuple[int, int],
    context: Context,
) -> NDArray[np.float64]:
    """The pruned tensor."""
    share = None if options.sparsity is None else float(options.sparsity)
    if cut is not None:
        scores = _scores(weight.array, kind, relative=options.threshold is None)
        share = float(np.mean(scores < cut))
        if kind != "hessian":
            return np.asarray(np.where(scores < cut, 0.0, weight.array))
    if kind == "hessian" and weight.layer is not None:
        return _optimal(model, weight, share, pattern, context)
    matrix = weight.array if weight.layer is None else weight.layer.matrix(weight.array)
    scores = _scores(matrix, kind, relative=False)
    zeroed = matrix * _mask(scores, share, pattern)
    return zeroed if weight.layer is None else np.asarray(weight.layer.weight_from(zeroed, weight.array))


def _mask(scores: NDArray[np.float64], share: float | None, pattern: tuple[int, int]) -> NDArray[np.bool_]:
    """True where weights stay: the best N of every M along the first axis, or all but `share`."""
    keep, of = pattern
    if not scores.size:
        return np.ones(scores.shape, np.bool_)
    if not of:
        flat = np.ones(scores.size, np.bool_)
        flat[np.argsort(scores, axis=None, kind="stable")[: round((share or 0.0) * scores.size)]] = False
        return flat.reshape(scores.shape)
    mask = np.ones(scores.shape, np.bool_)
    whole = len(scores) // of * of
    parts = scores[:whole].reshape(-1, of, *scores.shape[1:])
    rank = np.argsort(np.argsort(-parts, axis=1, kind="stable"), axis=1, kind="stable")
    mask[:whole] = (rank < keep).reshape(whole, *scores.shape[1:])
    return mask


def _optimal(
    model: ir.Model, weight: Prunable, share: float | None, pattern: tuple[int, int], context: Context
) -> NDArray[np.float64]:
    """Zeros chosen block by block with the error pushed into the weights that follow; inputs of the pruned model."""
    layer, data = weight.layer, context.calibration
    if layer is None or data is None:
        return weight.array
    matrix = layer.matrix(weight.array)
    source = recover.Calibration(data, context.workdir, context.threads, context.seed, data.count)
    inner = activations.Activations(model, [layer.input], context.workdir, context.threads)
    batch = 1 / recover.count(model, source)
    found = moments.grams([layer], [len(matrix)], recover.batches(model, source), inner.run, batch, context.seed)
    xx = found[layer.node][:-1, :-1]
    return np.asarray(layer.weight_from(sparsify(matrix, xx, share, pattern), weight.array))


def sparsify(matrix: Matrix, xx: Matrix, share: float | None, pattern: tuple[int, int]) -> Matrix:
    """SparseGPT (Frantar & Alistarh 2023) on a matrix [inputs, outputs] with Gram matrix `xx` of its inputs."""
    size = len(matrix)
    damped = xx + (0.01 * max(float(np.diag(xx).mean()), 1e-12)) * np.eye(size)
    upper = inverse_factor(damped)
    work = matrix.copy()
    block = BLOCK if not pattern[1] else max(pattern[1], BLOCK // pattern[1] * pattern[1])
    for start in range(0, size, block):
        stop = min(start + block, size)
        diagonal = np.diag(upper)[start:stop, None]
        mask = _mask((work[start:stop] / diagonal) ** 2, share, pattern)
        errors = np.zeros((stop - start, matrix.shape[1]))
        for row in range(start, stop):
            errors[row - start] = np.where(mask[row - start], 0.0, work[row]) / upper[row, row]
            work[row:stop] -= np.outer(upper[row, row:stop], errors[row - start])
            work[row] = np.where(mask[row - start], work[row], 0.0)
        work[stop:] -= upper[start:stop, stop:].T @ errors
    return _settled(matrix, damped, work)


def _settled(matrix: Matrix, damped: Matrix, start: Matrix) -> Matrix:
    """The best weights with the zeros of `start`: conjugate gradients on all columns at once, diagonal scaling.

    The block-wise update only corrects what comes later; this also corrects what came before.
    """
    free = start != 0
    diagonal = np.diag(damped)[:, None]
    work = start.copy()
    residual = free * (damped @ (matrix - work))
    direction = residual / diagonal
    strength = np.sum(residual * direction, axis=0)
    for _ in range(SETTLE):
        pushed = free * (damped @ direction)
        step = strength / np.maximum(np.sum(direction * pushed, axis=0), 1e-300)
        work += step * direction
        residual -= step * pushed
        scaled = residual / diagonal
        after = np.sum(residual * scaled, axis=0)
        direction = scaled + after / np.maximum(strength, 1e-300) * direction
        strength = after
    return work
