"""Losses by their formulas, in numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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


CLASSES = np.array([0, 3, 2, 3, 0, 1])
SHARES = softened(some(6, 4, seed=2), 2)
PLACES = np.array([[0, 3, 1], [2, 2, 0]])
YES = np.random.default_rng(4).random((6, 4)).round(1)
LIKE = some(6, 4, seed=5)


def by_place(found: np.ndarray) -> np.ndarray:
    """Classes on axis 1 of `[2, 4, 3]`, in loops."""
    logs = np.log(softened(np.moveaxis(found, 1, -1), 1))
    return np.array([np.mean([-logs[n, at, PLACES[n, at]] for at in range(3)]) for n in range(2)])


def huber(found: np.ndarray) -> np.ndarray:
    far = np.abs(found - LIKE)
    return np.where(far < 1, far**2 / 2, far - 0.5).mean(1)


def cosine(found: np.ndarray) -> np.ndarray:
    return 1 - (found * LIKE).sum(1) / np.sqrt((found**2).sum(1) * (LIKE**2).sum(1))


def yes_or_no(found: np.ndarray) -> np.ndarray:
    return (-YES * np.log(found) - (1 - YES) * np.log(1 - found)).mean(1)


@pytest.mark.parametrize(
    ("loss", "found", "labels", "formula"),
    [
        (losses.cross_entropy, some(6, 4), CLASSES, lambda x: -np.log(softened(x, 1)[np.arange(6), CLASSES])),
        (
            partial(losses.cross_entropy, shares=True),
            softened(some(6, 4), 1),
            CLASSES,
            lambda x: -np.log(x[np.arange(6), CLASSES]),
        ),
        (losses.cross_entropy, some(6, 4), SHARES, lambda x: -(SHARES * np.log(softened(x, 1))).sum(1)),
        (losses.cross_entropy, some(2, 4, 3), PLACES, by_place),
        (
            partial(losses.cross_entropy, axis=2),
            np.moveaxis(some(2, 4, 3), 1, 2).copy(),
            PLACES,
            lambda x: by_place(np.moveaxis(x, 2, 1)),
        ),
        (losses.binary, some(6, 4), YES, lambda x: yes_or_no(1 / (1 + np.exp(-x)))),
        (partial(losses.binary, shares=True), 1 / (1 + np.exp(-some(6, 4))), YES, yes_or_no),
        (losses.mse, some(6, 4), LIKE, lambda x: ((x - LIKE) ** 2).mean(1)),
        (losses.mse, some(6), LIKE[:, 0], lambda x: (x - LIKE[:, 0]) ** 2),
        (losses.mae, some(6, 4), LIKE, lambda x: np.abs(x - LIKE).mean(1)),
        (losses.huber, some(6, 4), LIKE, huber),
        (losses.cosine, some(6, 4), LIKE, cosine),
    ],
)
def test_losses_by_labels_and_their_gradients(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    found: np.ndarray,
    labels: np.ndarray,
    formula: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Against the formula in numpy, and its differences quotients."""
    given = torch.tensor(found, requires_grad=True)
    rows = loss(given, torch.tensor(labels))
    np.testing.assert_allclose(rows.detach().numpy(), formula(found), rtol=1e-6)
    rows.sum().backward()
    step, expected = 1e-6, np.empty(found.size)
    for place in range(found.size):
        move = np.zeros(found.size)
        move[place] = step
        moved = [formula(found + sign * move.reshape(found.shape)).sum() for sign in (1, -1)]
        expected[place] = (moved[0] - moved[1]) / (2 * step)
    assert given.grad is not None
    np.testing.assert_allclose(given.grad.numpy().ravel(), expected, rtol=1e-4, atol=1e-6)


def test_a_class_that_is_all_but_ruled_out_can_be_learnt() -> None:
    """Its probability in float32 is 1e-20: the gradient before the softmax is still 1, as that of the logits."""
    logits = torch.tensor([[46.0, 0.0]], requires_grad=True)
    losses.cross_entropy(logits.softmax(1), torch.tensor([1]), shares=True).sum().backward()
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), [[1, -1]], rtol=1e-5)


def test_the_kind_follows_from_the_answers() -> None:
    assert losses.kind(torch.tensor(some(5, 7))) == ("distil", losses.distil)
    assert losses.kind(torch.tensor(softened(some(5, 7)))) == ("distil_shares", losses.distil_shares)
    assert losses.kind(torch.tensor(some(5, 1)))[0] == "relative"
    assert losses.kind(torch.tensor(some(5, 3, 8, 8)))[0] == "relative"
