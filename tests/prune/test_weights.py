"""`prune.weights`: sparsity, thresholds, N:M patterns, and the optimal-brain update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError, RecipeError, StepError
from lepton_cli.graph.edit import set_weight
from lepton_cli.model import io
from lepton_cli.probe import moments
from lepton_cli.prune import weights
from lepton_cli.prune.details import PrunedTensor
from lepton_cli.prune.spec import PruneWeights
from tests.coupling.networks import Network
from tests.prune.context import context, images, redundant, relative_error

Floats = NDArray[np.float64]


def params(**options: object) -> PruneWeights:
    return PruneWeights.model_validate({"step": "prune.weights", **options})


def zeros(model: ir.Model) -> float:
    kinds = ("Conv", "Gemm")
    arrays = [node.inputs[1].const_value.numpy() for node in model.graph if node.op_type in kinds]
    return float(np.mean(np.concatenate([array.ravel() for array in arrays]) == 0))


def test_rows_are_shared_out_over_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row has 27 features, of which 4 times as many rows are drawn: 108 over 8 batches of 4 pictures, 13.5 each."""
    drawn: list[tuple[int, ...]] = []
    gram = moments.gram
    monkeypatch.setattr(moments, "ROWS", 10)
    monkeypatch.setattr(moments, "gram", lambda x: drawn.append(x.shape) or gram(x))
    model = redundant()
    weights.prune(model, params(sparsity="50 %", importance="hessian"), context(model, tmp_path, images(32)))
    assert drawn[:8] == [(14, 27)] * 8
    assert drawn[8][1] != 27


@pytest.mark.parametrize("kind", ["l1", "l2", "zscore", "hessian"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_sparsity_is_what_was_asked(kind: str, scope: str, tmp_path: Path) -> None:
    model, data = redundant(), images(32)
    options = {"sparsity": "70 %", "importance": kind, "scope": scope}
    outcome = weights.prune(model, params(**options), context(model, tmp_path, data))
    onnx.checker.check_model(ir.to_proto(outcome.model))
    assert zeros(outcome.model) == pytest.approx(0.7, abs=0.02)
    assert outcome.changed == 6


def test_the_report_says_what_zeros_are_good_for(tmp_path: Path) -> None:
    model, data = redundant(), images(8)
    outcome = weights.prune(model, params(sparsity="50 %"), context(model, tmp_path, data))
    assert "shrink only the compressed" in outcome.summary
    assert len(io.to_bytes(outcome.model)) == pytest.approx(len(io.to_bytes(model)), rel=0.02)


def test_the_update_beats_magnitudes(tmp_path: Path) -> None:
    model, data = redundant(), images()
    errors = [
        relative_error(
            weights.prune(model, params(importance=kind, **how), context(model, tmp_path, data)).model, model, data
        )
        for how in ({"sparsity": "60 %"}, {"pattern": "2:4"})
        for kind in ("hessian", "l1")
    ]
    assert errors[0] < errors[1]
    assert errors[2] < errors[3]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sparsity": "50 %", "threshold": 0.1},
        {"sparsity": "100 %"},
        {"pattern": "4:2"},
        {"pattern": "0:4"},
        {"pattern": "4:4"},
    ],
)
def test_contradictory_options(options: dict[str, object], tmp_path: Path) -> None:
    model = redundant()
    with pytest.raises(RecipeError):
        weights.prune(model, params(**options), context(model, tmp_path, images(2)))


def test_hessian_without_data(tmp_path: Path) -> None:
    model = redundant()
    given_context = context(model, tmp_path, None, check=images(2))
    with pytest.raises(DataError):
        weights.prune(model, params(sparsity="50 %", importance="hessian"), given_context)
    assert weights.prune(model, params(sparsity="50 %"), given_context).details.importance == "l1"


def test_the_input_is_not_changed(tmp_path: Path) -> None:
    model = redundant()
    before = io.to_bytes(model)
    weights.prune(model, params(sparsity="50 %"), context(model, tmp_path, images(8)))
    assert io.to_bytes(model) == before


def unblocked(
    matrix: Floats, xx: Floats, stays: Callable[[Floats], NDArray[np.bool_]], block: int
) -> tuple[Floats, Floats]:
    """SparseGPT as the paper's sequence of optimal-brain steps; the weights, and the damped Gram matrix.

    Input by input: its error goes into all inputs behind it, and it leaves the inverse by Gaussian elimination.
    `stays` picks the weights of the next `block` inputs that stay, by w^2 / [H^-1]_jj.
    """
    damped = xx + 0.01 * np.mean(np.diag(xx)) * np.eye(len(xx))
    rows, inverse = [], np.linalg.inv(damped)
    for j in range(len(xx)):
        rows.append(inverse[j].copy())
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    pivots = np.array([row[j] for j, row in enumerate(rows)])[:, None]
    work = matrix.copy()
    for j, row in enumerate(rows):
        if j % block == 0:
            mask = stays(work[j : j + block] ** 2 / pivots[j : j + block])
        lost = np.where(mask[j % block], 0.0, work[j])
        work[j + 1 :] -= np.outer(row[j + 1 :], lost / row[j])
        work[j] -= lost
    return work, damped


def least(share: float) -> Callable[[Floats], NDArray[np.bool_]]:
    def stays(scores: Floats) -> NDArray[np.bool_]:
        return scores >= np.append(np.sort(scores, axis=None), np.inf)[round(share * scores.size)]

    return stays


def of_every(keep: int, of: int) -> Callable[[Floats], NDArray[np.bool_]]:
    def stays(scores: Floats) -> NDArray[np.bool_]:
        mask = np.ones(scores.shape, bool)
        for start in range(0, len(scores) - of + 1, of):
            for column in range(scores.shape[1]):
                mask[start + np.argsort(scores[start : start + of, column])[: of - keep], column] = False
        return mask

    return stays


def correlated(size: int, outputs: int, seed: int = 0) -> tuple[Floats, Floats]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(2 * size, size)) + random.normal(size=(2 * size, 1))
    return random.normal(size=(size, outputs)), x.T @ x


@pytest.mark.parametrize("size", [65, 192, 512])
def test_blocks_change_nothing_about_the_update(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SETTLE", 0)
    matrix, xx = correlated(size, 3)
    wanted, _ = unblocked(matrix, xx, least(0.6), 128)
    np.testing.assert_allclose(weights.sparsify(matrix, xx, 0.6, (0, 0)), wanted, atol=1e-9)


@pytest.mark.parametrize(("size", "keep", "of", "block"), [(192, 2, 4, 128), (65, 1, 4, 128), (200, 2, 3, 126)])
def test_patterns_are_chosen_along_the_inputs(
    size: int, keep: int, of: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks hold whole groups of M; the weights left over behind the last group all stay."""
    monkeypatch.setattr(weights, "SETTLE", 0)
    matrix, xx = correlated(size, 3)
    wanted, _ = unblocked(matrix, xx, of_every(keep, of), block)
    found = weights.sparsify(matrix, xx, None, (keep, of))
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    groups = found[: size // of * of].reshape(-1, of, 3)
    assert (np.count_nonzero(groups, axis=1) == keep).all()
    assert found[size // of * of :].all()


@pytest.mark.parametrize(("limit", "of", "block"), [(10, 4, 8), (3, 4, 4), (8, 4, 8)])
def test_a_block_is_at_least_one_group(limit: int, of: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SETTLE", 0)
    monkeypatch.setattr(weights, "BLOCK", limit)
    matrix, xx = correlated(26, 2)
    wanted, _ = unblocked(matrix, xx, of_every(1, of), block)
    np.testing.assert_allclose(weights.sparsify(matrix, xx, None, (1, of)), wanted, atol=1e-9)


@given(st.integers(2, 12), st.integers(1, 4), st.floats(0.1, 0.9), st.integers(0, 99))
@settings(max_examples=25)
def test_what_stays_is_the_best_that_these_zeros_allow(size: int, outputs: int, share: float, seed: int) -> None:
    matrix, xx = correlated(size, outputs, seed)
    found = weights.sparsify(matrix, xx, share, (0, 0))
    assert np.count_nonzero(found == 0) == round(share * found.size)
    start, damped = unblocked(matrix, xx, least(share), 128)
    for column in range(outputs):
        free = start[:, column] != 0
        best = np.linalg.solve(damped[np.ix_(free, free)], damped[free] @ matrix[:, column])
        np.testing.assert_allclose(found[free, column], best, atol=1e-6)
        assert not found[~free, column].any()


def test_an_output_may_lose_all_its_weights() -> None:
    matrix, xx = correlated(8, 2)
    matrix[:, 0] *= 1e-9
    found = weights.sparsify(matrix, xx, 0.5, (0, 0))
    assert not found[:, 0].any()
    np.testing.assert_allclose(found[:, 1], matrix[:, 1])


def test_inputs_that_are_always_zero_lose_the_smallest_weights() -> None:
    found = weights.sparsify(np.array([[3.0], [1.0], [2.0], [4.0]]), np.zeros((4, 4)), 0.5, (0, 0))
    np.testing.assert_allclose(found, [[3.0], [0.0], [0.0], [4.0]])


def test_next_to_nothing_the_ridge_has_a_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of 1e-12 beside squares of 1e-14: all of the first weight's error would go to the second without."""
    monkeypatch.setattr(weights, "SETTLE", 0)
    xx = np.full((2, 2), 1e-14)
    found = weights.sparsify(np.array([[1.0], [2.0]]), xx, 0.5, (0, 0))
    np.testing.assert_allclose(found, [[0.0], [2.0 + 1 / (1 + 1)]])


def products() -> ir.Model:
    """A convolution, products in both orientations and one that no matrix view exists of."""
    n = Network(3)
    x = n.node("Relu", n.conv(n.input("x", "batch", 3, 8, 8), 3, 8))
    x = n.node("ConvTranspose", x, n.weight(8, 6, 2, 2), n.weight(6), strides=[2, 2])
    x = n.node("Flatten", n.node("GlobalAveragePool", x))
    x = n.node("Gemm", x, n.weight(6, 12), n.weight(12))
    x = n.node("Gemm", x, n.weight(8, 12), n.weight(8), transB=1)
    return n.model(n.linear(x, 8, 10))


def stored(model: ir.Model) -> dict[str, Floats]:
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return {
        node.name or "": node.inputs[1].const_value.numpy().astype(np.float64)
        for node in model.graph
        if node.op_type in kinds
    }


MEASURES: dict[str, Callable[[Floats], Floats]] = {
    "l1": lambda w: np.abs(w) / np.sqrt(np.mean(w**2)),
    "l2": lambda w: w**2 / np.sqrt(np.mean(w**4)),
    "zscore": lambda w: np.abs((w - w.mean()) / w.std()),
}


@pytest.mark.parametrize("kind", ["l1", "l2", "zscore"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_least_important_weights_are_zero_and_no_others(kind: str, scope: str, tmp_path: Path) -> None:
    model = products()
    before = stored(model)
    scores = {node: MEASURES[kind](array) for node, array in before.items()}
    every = np.sort(np.concatenate([array.ravel() for array in scores.values()]))
    given_params = params(sparsity="70 %", importance=kind, scope=scope)
    outcome = weights.prune(model, given_params, context(model, tmp_path, None, check=images(2)))
    for node, after in stored(outcome.model).items():
        own = np.sort(scores[node], axis=None)
        limit = own[round(0.7 * len(own))] if scope == "layer" else every[int(np.ceil(0.7 * (len(every) - 1)))]
        np.testing.assert_array_equal(after, np.where(scores[node] < limit, 0, before[node]))


def test_a_global_share_decides_how_many_the_update_takes_from_each(tmp_path: Path) -> None:
    model = products()
    before = stored(model)
    scores = {node: MEASURES["l1"](array) for node, array in before.items()}
    every = np.sort(np.concatenate([array.ravel() for array in scores.values()]))
    limit = every[int(np.ceil(0.6 * (len(every) - 1)))]
    given_params = params(sparsity="60 %", importance="hessian", scope="global")
    outcome = weights.prune(model, given_params, context(model, tmp_path, images(16)))
    assert outcome.details.importance == "hessian"
    for node, after in stored(outcome.model).items():
        assert np.count_nonzero(after == 0) == np.count_nonzero(scores[node] < limit), node


@pytest.mark.parametrize("kind", ["l1", "hessian"])
def test_n_of_m_stay_along_the_inputs_of_every_operator(kind: str, tmp_path: Path) -> None:
    model = products()
    outcome = weights.prune(model, params(pattern="1:4", importance=kind), context(model, tmp_path, images(16)))
    conv, transposed, plain, across, last = stored(outcome.model).values()
    by_inputs = [conv.reshape(8, 27).T, plain, across.T, last]
    assert [array.shape for array in by_inputs] == [(27, 8), (6, 12), (12, 8), (8, 10)]
    for array in [*by_inputs, transposed.reshape(8, -1)]:
        whole = len(array) // 4 * 4
        assert (np.count_nonzero(array[:whole].reshape(-1, 4, array.shape[1]), axis=1) == 1).all()
        assert array[whole:].all()
    if kind == "l1":
        was = stored(model)["Gemm_5"][:4]
        assert (np.argmax(np.abs(was), axis=0) == np.argmax(np.abs(plain[:4]), axis=0)).all()


def test_the_update_sees_what_the_layers_before_it_have_become(tmp_path: Path) -> None:
    """The second of two products is fitted to the inputs that the first one, pruned already, gives it."""
    n = Network(5)
    hidden = n.node("MatMul", n.input("x", "batch", 6), n.weight(6, 5))
    model = n.model(n.node("MatMul", hidden, n.weight(5, 4)))
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    outcome = weights.prune(model, params(sparsity="50 %"), context(model, tmp_path, Arrays({"x": x})))
    before, (first, second) = list(stored(model).values()), stored(outcome.model).values()
    for inputs, matrix, found in ((x, before[0], first), (x @ first, before[1], second)):
        xx = inputs.T.astype(np.float64) @ inputs
        damped = xx + 0.01 * np.mean(np.diag(xx)) * np.eye(len(xx))
        for column in range(matrix.shape[1]):
            free = found[:, column] != 0
            best = np.linalg.solve(damped[np.ix_(free, free)], damped[free] @ matrix[:, column])
            np.testing.assert_allclose(found[free, column], best, atol=1e-4)


def test_weights_at_the_threshold_stay(tmp_path: Path) -> None:
    n = Network()
    values = np.array([[0.5, -0.25], [0.125, -0.5], [0.25, 0.0]], np.float32)
    kept = n.node("MatMul", n.input("x", "batch", 3), n.weight(values=values))
    model = n.model(n.node("MatMul", kept, n.weight(values=np.full((2, 2), 0.5, np.float32))))
    given_context = context(model, tmp_path, None, check=Arrays({"x": np.zeros((1, 3), np.float32)}))
    outcome = weights.prune(model, params(threshold=0.25), given_context)
    assert stored(outcome.model)["MatMul_0"].tolist() == [[0.5, -0.25], [0, -0.5], [0.25, 0]]
    assert [(d.action, d.reason) for d in outcome.decisions] == [
        ("pruned", "33.3% of 6 weights are zero"),
        ("kept", "0.0% of 4 weights are zero"),
    ]
    assert outcome.changed == 1
    assert outcome.summary.startswith("20.0% of 10 weights are zero in 1 tensors")
    assert outcome.details.tensors == (
        PrunedTensor(node="MatMul_0", weights=6, zeros=2),
        PrunedTensor(node="MatMul_1", weights=4, zeros=0),
    )
    nothing = weights.prune(model, params(threshold=0.0), given_context)
    assert nothing.model is model
    assert nothing.changed == 0
    squares = weights.prune(model, params(threshold=0.1, importance="l2"), given_context)
    assert stored(squares.model)["MatMul_0"].tolist() == [[0.5, 0], [0, -0.5], [0, 0]]


def test_weights_that_do_not_vary_have_no_zscore(tmp_path: Path) -> None:
    n = Network()
    model = n.model(n.node("MatMul", n.input("x", "batch", 2), n.weight(values=np.full((2, 2), 0.5, np.float32))))
    given_context = context(model, tmp_path, None, check=Arrays({"x": np.zeros((1, 2), np.float32)}))
    assert weights.prune(model, params(threshold=1e-9, importance="zscore"), given_context).changed == 1


def test_what_is_left_alone_says_why(tmp_path: Path) -> None:
    n = Network()
    x = n.input("x", "batch", 4)
    first = n.weight(4, 4)
    for name in (first, first, n.weight(4, 4)):
        x = n.node("MatMul", x, name)
    model = n.model(n.node("MatMul", x, n.node("Transpose", x, perm=[1, 0])))
    whole = n.weights["w1"]
    given_context = context(model, tmp_path, None, check=Arrays({"x": np.zeros((1, 4), np.float32)}))
    given_params = params(sparsity="50 %", exclude=["MatMul_2"])
    reasons = {d.node: (d.action, d.reason) for d in weights.prune(model, given_params, given_context).decisions}
    assert reasons == {
        "MatMul_0": ("pruned", "50.0% of 16 weights are zero"),
        "MatMul_1": ("kept", "it shares `w0` with an earlier node"),
        "MatMul_2": ("kept", "left out by include/exclude"),
        "MatMul_4": ("kept", "its weight is computed, not stored"),
    }
    nothing = weights.prune(model, params(sparsity="50 %", include=["Transpose*"]), given_context)
    assert (nothing.changed, nothing.model) == (0, model)
    dry = weights.prune(model, given_params, dataclasses.replace(given_context, dry=True))
    assert (dry.changed, dry.model) == (1, model)
    assert [d.action for d in dry.decisions] == ["prunable", "kept", "kept", "kept"]
    set_weight(model.graph.initializers["w1"], np.where(np.eye(4), np.nan, whole).astype(np.float32))
    with pytest.raises(StepError, match="not finite"):
        weights.prune(model, params(sparsity="50 %"), given_context)


def test_defaults_of_inputs_are_weights_and_integers_are_not(tmp_path: Path) -> None:
    n = Network()
    x = n.input("x", "batch", 4)
    x = n.node("MatMul", x, n.weight(4, 4))
    numbers = n.node(
        "Cast", n.node("MatMul", n.node("Cast", x, to=6), n.weight(values=np.eye(4, dtype=np.int32))), to=1
    )
    model = n.model(n.node("MatMul", numbers, n.weight(4, 3)))
    model.graph.inputs.append(model.graph.initializers["w0"])
    given_context = context(model, tmp_path, None, check=Arrays({"x": np.zeros((1, 4), np.float32)}))
    outcome = weights.prune(model, params(sparsity="50 %"), given_context)
    assert {d.node: d.reason for d in outcome.decisions} == {
        "MatMul_0": "50.0% of 16 weights are zero",
        "MatMul_2": "its weight is INT32, not float",
        "MatMul_4": "50.0% of 12 weights are zero",
    }
