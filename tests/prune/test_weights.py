"""`prune.weights`: sparsity, thresholds, N:M patterns, and the optimal-brain update."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_cli.errors import DataError, RecipeError
from lepton_cli.model import io
from lepton_cli.prune import weights
from lepton_cli.prune.spec import PruneWeights
from tests.prune.context import context, images, redundant, relative_error


def params(**options: object) -> PruneWeights:
    return PruneWeights.model_validate({"step": "prune.weights", **options})


def zeros(model: ir.Model) -> float:
    kinds = ("Conv", "Gemm")
    arrays = [node.inputs[1].const_value.numpy() for node in model.graph if node.op_type in kinds]
    return float(np.mean(np.concatenate([array.ravel() for array in arrays]) == 0))


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


@pytest.mark.parametrize("kind", ["l1", "hessian"])
def test_patterns_hold_along_the_inputs(kind: str, tmp_path: Path) -> None:
    model, data = redundant(), images(16)
    outcome = weights.prune(model, params(pattern="1:4", importance=kind), context(model, tmp_path, data))
    for node in outcome.model.graph:
        if node.op_type == "Conv":
            array = node.inputs[1].const_value.numpy()
            flat = array.reshape(len(array), -1)
            groups = flat[:, : flat.shape[1] // 4 * 4].reshape(len(flat), -1, 4)
            assert (np.count_nonzero(groups, axis=2) <= 1).all()


def test_threshold(tmp_path: Path) -> None:
    model = redundant()
    outcome = weights.prune(model, params(threshold=0.3), context(model, tmp_path, None, check=images(2)))
    for node in outcome.model.graph:
        if node.op_type == "Conv":
            array = node.inputs[1].const_value.numpy()
            assert ((array == 0) | (np.abs(array) >= 0.3)).all()


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
    assert weights.prune(model, params(sparsity="50 %"), given_context).details["importance"] == "l1"


def test_the_input_is_not_changed(tmp_path: Path) -> None:
    model = redundant()
    before = io.to_bytes(model)
    weights.prune(model, params(sparsity="50 %"), context(model, tmp_path, images(8)))
    assert io.to_bytes(model) == before


@given(st.integers(2, 40), st.integers(1, 6), st.floats(0.1, 0.9), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_update_makes_up_for_the_zeros(size: int, outputs: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(200, size)) @ random.normal(size=(size, size))
    matrix = random.normal(size=(size, outputs))
    ours = weights.sparsify(matrix, x.T @ x, share, (0, 0))
    assert np.mean(ours == 0) == pytest.approx(share, abs=0.5 / size + 1e-9)
    masked = np.where(ours == 0, 0, matrix)
    assert np.sum((x @ (ours - matrix)) ** 2) <= 1.05 * np.sum((x @ (masked - matrix)) ** 2) + 1e-9
