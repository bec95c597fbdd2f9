"""What a course finds out before it trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lepton_cli.data.dataset import Batch
from lepton_cli.train import course
from lepton_cli.train.operators import table
from lepton_cli.train.quantized import QuantizedNetwork
from tests.train.test_proof import quantized


@pytest.mark.parametrize(("shift", "piece"), [(0.1, None), (20.0, 1)])
def test_rounding_that_depends_on_the_batch_is_no_mixing_of_samples(
    shift: float, piece: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in another order: a number between two steps is one step away among others; another answer is not."""
    network, right = QuantizedNetwork(quantized()), table.OPERATORS["", "MatMul"]

    def product(call: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        return right(call, x, y) + (shift if len(x) > 1 else 0)  # type: ignore[operator]

    monkeypatch.setitem(table.OPERATORS, ("", "MatMul"), product)
    assert course._piece(network, Pictures()) == piece


class Pictures:
    """Samples drawn from their number."""

    count = 100
    fingerprint = "pictures"

    def batch(self, step: int, size: int) -> Batch:
        drawn = np.random.default_rng(step).normal(size=(size, 3, 16, 16)).astype(np.float32)
        return Batch({"x": drawn}, {}, step * size)
