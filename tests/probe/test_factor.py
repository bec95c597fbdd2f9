"""The triangular factor of an inverse, from its definition."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_cli.probe import factor
from lepton_cli.probe.factor import inverse_factor


@pytest.mark.parametrize("size", [1, 7, 37])
def test_the_factor_is_upper_and_its_square_the_inverse(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """37: blocks of blocks, of odd sizes; two matrices at once, one of them nearly singular before its damping."""
    monkeypatch.setattr(factor, "_SMALL", 8)
    random = np.random.default_rng(size)
    rows = [random.normal(size=(size, size // 2 + 1)), random.normal(size=(size, 2 * size))]
    matrices = np.stack([x @ x.T + 0.1 * np.eye(size) for x in rows])
    upper = inverse_factor(matrices)
    assert not np.tril(upper, -1).any()
    assert (np.einsum("gkk->gk", upper) > 0).all(), "the one with a positive diagonal, which makes it unique"
    for one, matrix in zip(upper, matrices, strict=True):
        np.testing.assert_allclose(one.T @ one @ matrix, np.eye(size), atol=1e-8)


def test_a_matrix_that_is_not_positive_definite_is_an_error() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        inverse_factor(np.diag([1.0, -1.0]))
