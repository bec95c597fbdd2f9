"""How many samples a step takes, how many of them go in at once, and how many judge."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import numpy as np
import torch

from lepton_cli.data.batching import layout
from lepton_cli.data.dataset import Batch
from lepton_cli.errors import StepError
from lepton_cli.model import io
from lepton_cli.train import proof
from lepton_cli.train.network import Network
from lepton_cli.train.outside import is_float
from lepton_cli.train.spec import TrainingBudget, TrainingOptions

#: Samples a step, where the data allows it. Where codes learn, which are near already, more and smaller steps come
#: nearer from as many samples (ResNet-20 in 4 bits: loss 0.137 with 128, 0.119 with 64).
BATCH, QUANTIZED_BATCH = 128, 64
#: So many steps at least, where a budget of few samples allows it. ResNet-20 at half its work, 6,000 pictures five
#: times, divergence from the original on others: 1.13 in 224 steps of 128, 1.03 in 448, 1.01 in 896, 1.08 in 1,792.
STEPS, FEWEST = 500, 16
#: Bytes that are kept for the gradients of samples that go in at once; what a step takes beyond them follows.
MOST_BYTES = 2 << 30
#: Samples that losses are chosen and weighed by, and how many of them at once; a fixed batch of more is taken whole.
TRIED, FIRST = 64, 8
#: Samples kept apart that are judged, more tell little more and cost at every mark; and bytes of them.
JUDGED, JUDGED_BYTES = 1000, 512 << 20


class TrainingSamples(Protocol):
    """What a training step needs of its data."""

    count: int

    @property
    def fingerprint(self) -> str:
        """Of samples, their changes and their order."""

    def batch(self, step: int, size: int) -> Batch:
        """Batch number `step`: the same samples, changed the same way, for the same number."""


@dataclasses.dataclass(frozen=True)
class Load:
    """Bytes of one sample: `learning`, kept for its gradients; `judging`, its inputs, twice, and its outputs."""

    learning: int
    judging: int


def piece(network: Network, samples: TrainingSamples) -> int | None:
    """How many samples the network takes; `None`: any number.

    A graph whose batch was frozen to 1 may fail with more, or lay one sample over another without failing: what comes
    out of several has to be what comes out of each alone.
    """
    fixed = layout(io.inputs(network.model)).fixed  # the data was opened for the model that the recipe began with
    both = samples.batch(0, 2)
    if fixed is not None or both.count < 2:
        return fixed
    with torch.no_grad():
        names = network.compared
        single = [network.run(proof.tensors(part.feeds, network.device), names) for part in pieces(both, 1)]
        try:
            together = network.run(proof.tensors(both.feeds, network.device), names)
        except StepError:
            return 1
    apart, _, same = proof.measure(network.model)
    for name, found in together.items():
        if not is_float(found) or not single[0][name].dim():
            continue
        axis = proof.sample_axis(single[0][name].shape, found.shape)
        expected = torch.cat([one[name] for one in single], axis).cpu().numpy()
        if not apart(expected, found.cpu().numpy()) <= same:
            return 1
    return None


def pieces(whole: Batch, size: int) -> list[Batch]:
    """As many samples at once; what is left over is left out."""
    return [whole.part(np.arange(start, start + size)) for start in range(0, whole.count - size + 1, size)]


def load(network: Network, samples: Batch) -> Load:
    """What torch keeps of a run until the gradients are there, as it says itself."""
    held: dict[int, int] = {}
    mine = {one.untyped_storage().data_ptr() for one in network.parameters.values()}

    def noted(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    feeds = proof.tensors(samples.feeds, network.device)
    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        outputs = network.run(feeds, network.compared)
    fed, found = (sum(one.nbytes for one in some.values() if is_float(one)) for some in (feeds, outputs))
    return Load(sum(held.values()) // samples.count, (2 * fed + found) // samples.count)


def piece_that_fits(of: Load, size: int) -> int | None:
    """How many samples of a step go in at once, evenly, so that memory holds them; `None`: all."""
    most = max(1, MOST_BYTES // max(of.learning, 1))
    return None if most >= size else math.ceil(size / math.ceil(size / most))


def judged(of: Load) -> int:
    """How many samples kept apart judge."""
    return max(1, min(JUDGED, JUDGED_BYTES // max(of.judging, 1)))


def batch(network: Network, options: TrainingOptions, count: int, whole: int) -> int:
    """Samples of a step, of `count` that there are: as asked, else by the budget; in whole pieces."""
    if isinstance(options.batch, int):
        most = options.batch
    else:
        most = QUANTIZED_BATCH if network.exponents else BATCH
        if (views := seen(options.budget, count)) is not None:
            most = min(most, max(FEWEST, views // STEPS))
    return max(whole, min(most, count) // whole * whole)


def seen(budget: TrainingBudget, count: int) -> int | None:
    """Samples seen, counted each time; `None` where the time decides."""
    if budget.time is not None:
        return None
    return budget.samples if budget.samples is not None else math.ceil((budget.epochs or 0) * count)
