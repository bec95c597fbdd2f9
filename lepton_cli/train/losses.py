"""What is made small: how far an output is from the teacher's (a mean over the samples), or from labels (by sample)."""

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
#: What keeps logarithms of probabilities finite: gradients of classes that are all but ruled out have to come through.
_TINY, _NEAR = 1e-30, 1e-7


def distil(found: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of softened answers along the last axis, times the squared temperature.

    `found`, `teacher`: `[samples, ..., classes]`, numbers before the softmax (Hinton et al., 2015).
    """
    classes = found.shape[-1]
    first = functional.log_softmax(found.reshape(-1, classes) / TEMPERATURE, dim=1)
    second = functional.log_softmax(teacher.reshape(-1, classes) / TEMPERATURE, dim=1)
    apart = functional.kl_div(first, second, log_target=True, reduction="batchmean") * TEMPERATURE**2
    return apart.clamp_min(0.0)  # rounding alone makes a divergence negative: that is no better than none


def distil_shares(found: Tensor, teacher: Tensor) -> Tensor:
    """The same for outputs that are probabilities: their logarithms are the numbers before the softmax."""
    return distil(found.clamp_min(_LEAST).log(), teacher.clamp_min(_LEAST).log())


def relative(found: Tensor, teacher: Tensor, spread: float = 1.0) -> Tensor:
    """Mean squared error over `spread`, the variance of answers: 1 is as bad as always giving their mean."""
    return (found - teacher).square().mean() / spread


def cross_entropy(found: Tensor, labels: Tensor, axis: int = 1, shares: bool = False) -> Tensor:
    """`found`: classes on `axis`, before the softmax or (`shares`) after it; `labels`: class numbers without that axis,
    or shares of the classes with it. A number per sample, the mean over whatever else there is, as of all below.
    """
    logs = found.clamp_min(_TINY).log() if shares else found.log_softmax(axis)
    if labels.is_floating_point():
        return _by_sample(-(labels * logs).sum(axis))
    return _by_sample(-logs.gather(axis, labels.unsqueeze(axis)).squeeze(axis))


def binary(found: Tensor, labels: Tensor, shares: bool = False) -> Tensor:
    """Cross-entropy of every number by itself; `labels`: from 0 to 1, of the same shape."""
    if shares:
        found = found.clamp(_NEAR, 1 - _NEAR)
        return _by_sample(-labels * found.log() - (1 - labels) * (1 - found).log())
    return _by_sample(functional.binary_cross_entropy_with_logits(found, labels, reduction="none"))


def mse(found: Tensor, labels: Tensor) -> Tensor:
    """Squared error."""
    return _by_sample((found - labels).square())


def mae(found: Tensor, labels: Tensor) -> Tensor:
    """Absolute error."""
    return _by_sample((found - labels).abs())


def huber(found: Tensor, labels: Tensor) -> Tensor:
    """Half the squared error up to 1, growing as the absolute one beyond (Huber, 1964)."""
    return _by_sample(functional.huber_loss(found, labels, reduction="none"))


def cosine(found: Tensor, labels: Tensor) -> Tensor:
    """1 minus the cosine of the angle between vectors on the last axis."""
    return _by_sample(1 - functional.cosine_similarity(found, labels, dim=-1))


def _by_sample(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def kind(teacher: Tensor) -> tuple[str, Callable[[Tensor, Tensor], Tensor]]:
    """How answers like these are compared, and its name: `[samples, classes]` as classes, all others by numbers."""
    if teacher.dim() != 2 or teacher.shape[1] < 2:
        spread = float((teacher - teacher.mean()).square().mean())
        return "relative", partial(relative, spread=spread or 1.0)
    return ("distil_shares", distil_shares) if are_shares(teacher) else ("distil", distil)


def are_shares(values: Tensor, axis: int = 1) -> bool:
    """Whether they are probabilities that add up to 1 along the axis."""
    sums = values.sum(axis)
    return bool((values >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
