"""The triangular factor that optimal-brain updates go by, for matrices with thousands of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Below this side LAPACK's general inverse is as fast as two halves.
_SMALL = 256


def inverse_factor(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper triangle `U` with `U^T U = inverse(matrix)`, of positive definite matrices [..., K, K].

    Without the inverse itself, which costs eight times a Cholesky factor. Raises numpy's LinAlgError where a matrix is
    not positive definite.
    """
    return _inverse(np.linalg.cholesky(matrix[..., ::-1, ::-1]))[..., ::-1, ::-1]


def _inverse(lower: NDArray[Any]) -> NDArray[np.float64]:
    """Inverse of a lower triangle, by its blocks."""
    half = lower.shape[-1] // 2
    if lower.shape[-1] <= _SMALL:
        return np.tril(np.linalg.inv(lower))
    result = np.zeros_like(lower)
    first, last = _inverse(lower[..., :half, :half]), _inverse(lower[..., half:, half:])
    result[..., :half, :half], result[..., half:, half:] = first, last
    result[..., half:, :half] = -last @ lower[..., half:, :half] @ first
    return result
