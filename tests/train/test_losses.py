"""Losses by their formulas, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lepton_cli.train import losses


def softened(x: np.ndarray, temperature: float = 4.0) -> np.ndarray:
    shares = np.exp(x / temperature - (x / temperature).max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def some(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, shape)


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)])
def test_distil_is_the_divergence_from_the_teacher(shape: tuple[int, ...]) -> None:
    found, teacher = some(*shape), some(*shape, seed=1)
    first, second = softened(found), softened(teacher)
    rows = found.size // shape[-1]
    expected = 16 * float((second * np.log(second / first)).sum()) / rows  # the teacher's weights, not the student's
    assert float(losses.distil(torch.tensor(found), torch.tensor(teacher))) == pytest.approx(expected, rel=1e-9)
    assert float(losses.distil(torch.tensor(teacher), torch.tensor(teacher))) == pytest.approx(0, abs=1e-12)


def test_probabilities_are_compared_by_their_logarithms() -> None:
    found, teacher = some(5, 7), some(5, 7, seed=1)
    expected = losses.distil(torch.tensor(found), torch.tensor(teacher))
    made = losses.distil_shares(torch.tensor(softened(found, 1)), torch.tensor(softened(teacher, 1)))
    assert float(made) == pytest.approx(float(expected), rel=1e-6)
    zero = torch.tensor([[1.0, 0.0]])
    assert torch.isfinite(losses.distil_shares(zero, zero.flip(1)))


def test_relative_is_a_share_of_the_variance() -> None:
    teacher = np.array([[1.0], [3.0], [5.0], [7.0]])
    said, loss = losses.kind(torch.tensor(teacher))
    assert said == "relative"
    assert float(loss(torch.tensor(teacher + 2), torch.tensor(teacher))) == pytest.approx(4 / 5)
    assert float(loss(torch.tensor(np.full_like(teacher, 4)), torch.tensor(teacher))) == pytest.approx(1)
    # Of one sample alone too, whose own variance is none.
    assert float(loss(torch.tensor(teacher[:1] + 2), torch.tensor(teacher[:1]))) == pytest.approx(4 / 5)
    _, flat = losses.kind(torch.full((4, 1), 3.0))
    assert float(flat(torch.full((4, 1), 5.0), torch.full((4, 1), 3.0))) == pytest.approx(4)


def test_cross_entropy() -> None:
    found, labels = some(6, 4), np.array([0, 1, 2, 3, 0, 1])
    expected = -np.log(softened(found, 1)[np.arange(6), labels]).mean()
    assert float(losses.cross_entropy(torch.tensor(found), torch.tensor(labels))) == pytest.approx(expected)


def test_the_kind_follows_from_the_answers() -> None:
    assert losses.kind(torch.tensor(some(5, 7))) == ("distil", losses.distil)
    assert losses.kind(torch.tensor(softened(some(5, 7)))) == ("distil_shares", losses.distil_shares)
    assert losses.kind(torch.tensor(some(5, 1)))[0] == "relative"
    assert losses.kind(torch.tensor(some(5, 3, 8, 8)))[0] == "relative"
