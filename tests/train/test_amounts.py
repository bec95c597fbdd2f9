"""How many samples go in at once, by what the graph and the memory hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lepton_cli.data.dataset import Batch
from lepton_cli.train import amounts
from lepton_cli.train.details import TrainingDetails
from lepton_cli.train.network import Network
from lepton_cli.train.operators import table
from lepton_cli.train.quantized import QuantizedNetwork
from lepton_cli.train.spec import TrainingBudget
from tests.quantize.builders import Graph
from tests.train.test_distill import classifier, damaged, trained
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
    assert amounts.piece(network, Pictures()) == piece


class Pictures:
    """Samples drawn from their number."""

    count = 100
    fingerprint = "pictures"

    def batch(self, step: int, size: int) -> Batch:
        drawn = np.random.default_rng(step).normal(size=(size, 3, 16, 16)).astype(np.float32)
        return Batch({"x": drawn}, {}, step * size)


def stack(depth: int) -> Network:
    """Tanh on tanh: torch keeps the result of each one for its gradient, and nothing else that samples make."""
    graph = Graph()
    x = graph.op("MatMul", graph.take("x", ["b", 6]), graph.constant(np.ones((6, 50), np.float32)))
    for _ in range(depth):
        x = graph.op("Tanh", x)
    return Network(graph.model(x))


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("count", [1, 8])
def test_what_gradients_keep_is_counted(depth: int, count: int) -> None:
    """The inputs for the weights' gradient, and a result of each tanh; inputs twice and outputs for the judge."""
    found = amounts.load(stack(depth), Batch({"x": np.ones((count, 6), np.float32)}, {}, 0))
    assert found == amounts.Load(4 * (6 + depth * 50), 4 * (2 * 6 + 50))


@pytest.mark.parametrize(
    ("learning", "size", "piece"),
    [(0, 128, None), (1 << 24, 128, None), (1 << 25, 128, 64), (3 << 24, 128, 32), (1 << 29, 6, 3), (1 << 33, 2, 1)],
)
def test_a_step_goes_in_evenly_by_what_fits(learning: int, size: int, piece: int | None) -> None:
    """Two GiB hold 128 of 16 MiB, 64 of 32, 42 of 48, 4 of 512 and none of 8 GiB, which is tried all the same."""
    assert amounts.piece_that_fits(amounts.Load(learning, 0), size) == piece


@pytest.mark.parametrize(("judging", "count"), [(1, 1000), (1 << 19, 1000), (1 << 20, 512), (1 << 40, 1)])
def test_large_samples_are_judged_by_fewer(judging: int, count: int) -> None:
    assert amounts.judged(amounts.Load(0, judging)) == count


def test_a_step_in_pieces_leads_where_a_whole_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (2 << 30, 40 * 4 * (8 + 24)):  # what 40 samples keep: the inputs and what Relu made of them
        monkeypatch.setattr(amounts, "MOST_BYTES", most)
        budget = TrainingBudget(epochs=2)
        outcome = trained(damaged(classifier()), classifier(), tmp_path, budget=budget, batch=100, precision="float32")
        details = outcome.details
        assert isinstance(details, TrainingDetails)
        found.append(details)
    assert [one.piece for one in found] == [0, 34]
    assert found[0].steps == found[1].steps
    for first, second in zip(found[0].marks, found[1].marks, strict=True):
        assert first.loss == pytest.approx(second.loss, rel=1e-3)
