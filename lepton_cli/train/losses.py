"""What is made small: how far an output is from the teacher's, or from labels. Each is a mean over the samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

#: Softens the teacher's answers, so that what it holds for less likely counts too (Hinton et al., 2015).
TEMPERATURE = 4.0
#: Probabilities below this are noise.
_LEAST = 1e-8


def distil(found: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of softened answers along the last axis, times the squared temperature.

    `found`, `teacher`: `[samples, ..., classes]`, numbers before the softmax (Hinton et al., 2015).
    """
    classes = found.shape[-1]
    first = functional.log_softmax(found.reshape(-1, classes) / TEMPERATURE, dim=1)
    second = functional.log_softmax(teacher.reshape(-1, classes) / TEMPERATURE, dim=1)
    return functional.kl_div(first, second, log_target=True, reduction="batchmean") * TEMPERATURE**2


def distil_shares(found: Tensor, teacher: Tensor) -> Tensor:
    """The same for outputs that are probabilities: their logarithms are the numbers before the softmax."""
    return distil(found.clamp_min(_LEAST).log(), teacher.clamp_min(_LEAST).log())


def relative(found: Tensor, teacher: Tensor, spread: float = 1.0) -> Tensor:
    """Mean squared error over `spread`, the variance of answers: 1 is as bad as always giving their mean."""
    return (found - teacher).square().mean() / spread


def cross_entropy(found: Tensor, labels: Tensor) -> Tensor:
    """`found`: `[samples, classes]` before the softmax; `labels`: whole numbers `[samples]`."""
    return functional.cross_entropy(found, labels)


def kind(teacher: Tensor) -> tuple[str, Callable[[Tensor, Tensor], Tensor]]:
    """How answers like these are compared, and its name: `[samples, classes]` as classes, all others by numbers."""
    if teacher.dim() != 2 or teacher.shape[1] < 2:
        spread = float((teacher - teacher.mean()).square().mean())
        return "relative", partial(relative, spread=spread or 1.0)
    sums = teacher.sum(dim=1)
    if bool((teacher >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3)):
        return "distil_shares", distil_shares
    return "distil", distil
